//! `spegel check` says what keeps a node from mirroring: each finding on a node that is set up wrongly in just that
//! way, and no other finding with it.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock")]

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use spegel_tests::{
    Checked, Cluster, ClusterOptions, Generation, ImageSpec, METRICS_PORT, MIRROR_PORT, Node, Puller,
    REGISTRY, ROUTER_PORT, SECRET, StandIn, answer_status, outdated_containerd, request_head, spegel_binary,
    wait_for,
};

const WELL: i32 = 0;
const ERROR: i32 = 2;
const WARNING: i32 = 3;

/// The first check of a running registry comes ten seconds after its start, the next a minute after trouble.
const FIRST_CHECK_MAX: Duration = Duration::from_secs(30);
const NEXT_CHECK_MAX: Duration = Duration::from_secs(90);

/// Mirrors that know each other, on nodes that have an image.
fn cluster(nodes: u8, generation: Generation) -> Cluster {
    let cluster = Cluster::with_spegel(ClusterOptions::new(nodes, generation));
    share_an_image(&cluster);
    cluster
}

/// All nodes know each other, and have an image.
fn share_an_image(cluster: &Cluster) {
    let image = cluster.image(&ImageSpec::new("check", "1", &[1000]));
    for node in &cluster.nodes {
        cluster.expect("pull", node.pull(Puller::Cri, &image.by_tag()));
        let known = node.wait_members(cluster.nodes.len(), FIRST_CHECK_MAX);
        cluster.expect("all know each other", known);
    }
}

/// Asserts that these checks alone are not well, each at its level.
fn expect(cluster: &Cluster, checked: &Checked, code: i32, levels: &[(&str, &str)]) {
    let names: Vec<&str> = levels.iter().map(|(name, _)| *name).collect();
    assert_eq!(checked.not_well(), names, "{}\n{}", checked.text, cluster.logs());
    for (name, level) in levels {
        assert_eq!(checked.level(name), *level, "{name}: {}", checked.text);
    }
    assert_eq!(checked.code, code, "{}", checked.text);
}

/// Asserts that a line begins like this and says that.
fn says(checked: &Checked, beginning: &str, what: &str) {
    let line = checked.text.lines().find(|line| line.starts_with(beginning));
    let line = line.unwrap_or_else(|| panic!("no line begins with {beginning:?}: {}", checked.text));
    assert!(line.contains(what), "{what:?} is not in {line:?}");
}

/// Runs `spegel configuration` on a node.
fn configure(node: &Node, registries: &str, target: &str) {
    let args = [
        "configuration".to_owned(),
        format!("--containerd-registry-config-path={}", node.registry_config_path().display()),
        format!("--mirrored-registries={registries}"),
        format!("--mirror-targets={target}"),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    node.netns().run(spegel_binary().to_str().expect("a path"), &args).expect("spegel configuration");
}

fn own_target(node: &Node) -> String {
    format!("http://{}", node.mirror_address())
}

/// Keeps what goes to a port of this node from arriving.
fn close(node: &Node, port: u16) {
    let rules = format!(
        "table inet check{port} {{ chain in {{ type filter hook input priority 0; tcp dport {port} drop; }}; }}\n"
    );
    node.netns().nft(&rules).expect("nft takes the rules");
}

fn open(node: &Node, port: u16) {
    node.netns().nft(&format!("delete table inet check{port}\n")).expect("nft takes the rules");
}

fn settings_of(generation: Generation) {
    let cluster = cluster(2, generation);
    let node = &cluster.nodes[0];
    let checked = node.check(&[]);
    expect(&cluster, &checked, WELL, &[]);
    says(&checked, "✔ config_path: ", &node.registry_config_path().display().to_string());
    assert_eq!(checked.json["worst"], "ok");

    node.reconfigure_containerd(|text| {
        text.replace("discard_unpacked_layers = false", "discard_unpacked_layers = true")
    });
    let checked = node.check(&[]);
    expect(&cluster, &checked, ERROR, &[("unpacked_layers", "error")]);
    says(&checked, "✘ unpacked_layers: ", "discard_unpacked_layers = false under [plugins.");
    node.reconfigure_containerd(|text| {
        text.replace("discard_unpacked_layers = true", "discard_unpacked_layers = false")
    });

    let path = format!("config_path = '{}'", node.registry_config_path().display());
    node.reconfigure_containerd(|text| text.replace(&path, "config_path = '/etc/other/certs.d'"));
    let checked = node.check(&[]);
    expect(&cluster, &checked, ERROR, &[("config_path", "error")]);
    says(&checked, "✘ config_path: ", "containerd reads /etc/other/certs.d");
    node.reconfigure_containerd(|text| text.replace("config_path = '/etc/other/certs.d'", ""));
    let checked = node.check(&[]);
    expect(&cluster, &checked, ERROR, &[("config_path", "error")]);
    says(&checked, "✘ config_path: ", "config_path is not set");
}

#[test]
fn settings_of_containerd_1_6_are_judged() {
    settings_of(Generation::V1_6);
}

#[test]
fn settings_of_containerd_1_7_are_judged() {
    settings_of(Generation::V1_7);
}

#[test]
fn settings_of_containerd_2_1_are_judged() {
    settings_of(Generation::V2_1);
}

/// Mirrors that let in neither nodes nor clients without what `put` gives them.
fn all_is_well_with(put: impl Fn(&Node)) {
    let cluster = Cluster::new(ClusterOptions::new(2, Generation::V2_1));
    cluster.nodes.iter().for_each(put);
    cluster.start_spegel();
    share_an_image(&cluster);
    for node in &cluster.nodes {
        assert!(node.authorization().is_some(), "containerd shows nothing: {}", node.logs());
        expect(&cluster, &node.check(&[]), WELL, &[]);
    }
}

#[test]
fn cluster_with_a_secret_is_well() {
    all_is_well_with(|node| node.put_cluster_secret(&[SECRET]));
}

#[test]
fn cluster_with_basic_auth_is_well() {
    all_is_well_with(|node| node.put_basic_auth("mirror", "pass:word"));
}

/// Whether a pull comes by the mirror. Where no `hosts.toml` says otherwise the registry is taken for one with TLS, so
/// that the pull itself may fail.
fn is_asked(cluster: &Cluster, node: &Node, tag: &str) -> bool {
    let requests = || cluster.expect("metrics", node.metric("http_request_duration_seconds_count", "/v2/*"));
    let image = cluster.image(&ImageSpec::new("asked", tag, &[1000]));
    let before = requests();
    let _fails_without_hosts_toml = node.pull(Puller::Cri, &image.by_tag());
    requests() > before + 0.5
}

#[test]
fn list_of_directories_keeps_the_transfer_service_from_the_mirror() {
    let cluster = cluster(1, Generation::V2_1);
    let node = &cluster.nodes[0];
    let alone = [("peer_router", "unknown"), ("peer_registry", "unknown"), ("clock", "unknown")];
    let with_alone = |first: &[(&'static str, &'static str)]| [first, &alone].concat();
    let dir = node.registry_config_path().display().to_string();
    node.reconfigure_containerd(|text| {
        text.replace(&format!("config_path = '{dir}'"), &format!("config_path = '{dir}:/etc/docker/certs.d'"))
    });
    let checked = node.check(&[]);
    expect(&cluster, &checked, ERROR, &with_alone(&[("config_path", "error")]));
    says(&checked, "✘ config_path: ", "for one directory");
    assert!(!is_asked(&cluster, node, "list"), "a list leads to the mirror after all: the finding is wrong");

    node.reconfigure_containerd(|text| {
        text.replace(
            "discard_unpacked_layers = false",
            "discard_unpacked_layers = false\nuse_local_image_pull = true",
        )
    });
    expect(&cluster, &node.check(&[]), WELL, &alone);
    assert!(is_asked(&cluster, node, "local"), "local pulls understand lists");
}

#[test]
fn configuration_of_either_version_and_its_imports_are_read() {
    let cluster = cluster(1, Generation::V2_1);
    let node = &cluster.nodes[0];
    let original = fs::read_to_string(node.containerd_config()).expect("the harness wrote it");
    let imports = node.dir.join("conf.d");
    fs::create_dir(&imports).expect("the node's directory is ours");
    let head = original.split("[plugins.'io.containerd.cri.v1.images']").next().expect("it has a beginning");
    let dir = node.registry_config_path().display();
    let old = format!(
        "[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '{dir}'\n\
         [plugins.'io.containerd.grpc.v1.cri'.containerd]\ndiscard_unpacked_layers = false\n"
    );
    let discard = "[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n";
    let with_import = |version: u8| {
        head.replace("version = 3\n", &format!("version = {version}\nimports = ['conf.d/*.toml']\n"))
    };

    // As it was written for 1.x, half of it in an import.
    fs::write(imports.join("registry.toml"), format!("version = 2\n{old}")).expect("it is ours");
    node.reconfigure_containerd(|_| with_import(2));
    assert_eq!(node.check(&[]).level("config_path"), "ok", "{}", node.check(&[]).text);
    assert!(is_asked(&cluster, node, "v2"), "what is well leads to the mirror");
    // The same in a file of version 3, which imports it as well; and something that goes wrong in another import.
    fs::write(imports.join("z-last.toml"), format!("version = 3\n{discard}")).expect("it is ours");
    node.reconfigure_containerd(|_| with_import(3));
    let checked = node.check(&[]);
    assert_eq!(
        (checked.level("config_path"), checked.level("unpacked_layers")),
        ("ok", "error"),
        "{}",
        checked.text
    );
    fs::remove_file(imports.join("z-last.toml")).expect("it is there");

    // The old section in a file of version 3 itself does not count.
    node.reconfigure_containerd(|_| format!("{head}{old}"));
    let checked = node.check(&[]);
    assert_eq!(checked.level("config_path"), "error", "{}", checked.text);
    says(&checked, "✘ config_path: ", "from before 2.0 does not count");
    assert!(!is_asked(&cluster, node, "ignored"), "it counts after all: the finding is wrong");
}

#[test]
fn obsolete_mirrors_in_the_configuration_are_another_mirror() {
    let cluster = cluster(1, Generation::V1_7);
    let node = &cluster.nodes[0];
    let registry = "[plugins.\"io.containerd.grpc.v1.cri\".registry]";
    node.reconfigure_containerd(|text| {
        let head = text.split(registry).next().expect("it has a beginning");
        format!("{head}[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"{REGISTRY}\"]\nendpoint = ['http://{REGISTRY}']\n")
    });
    let checked = node.check(&[]);
    assert_eq!(
        (checked.level("config_path"), checked.level("other_mirror")),
        ("error", "error"),
        "{}",
        checked.text
    );
    says(&checked, "✘ other_mirror: ", REGISTRY);
    assert_eq!(checked.code, ERROR);
}

#[test]
fn containerd_that_is_away_or_too_old_is_named() {
    let cluster = cluster(2, Generation::V1_6);
    let node = &cluster.nodes[0];
    node.stop_containerd();
    let checked = node.check(&[]);
    assert_eq!((checked.code, checked.level("containerd")), (ERROR, "error"), "{}", checked.text);
    says(&checked, "✘ containerd: ", "does not answer at");
    says(&checked, "? proxy: ", "containerd does not answer");

    // A directory of its own: it would not know what a later one has written.
    fs::rename(node.dir.join("root"), node.dir.join("root-of-1.6")).expect("the node's directory is ours");
    node.spawn_containerd_as(&outdated_containerd(), &[]);
    let answers = || match node.check(&[]) {
        checked if checked.text.contains("does not answer") => Err(checked.text),
        checked => Ok(checked),
    };
    let (checked, _) = cluster.expect("1.4 answers", wait_for("containerd", FIRST_CHECK_MAX, answers));
    assert_eq!((checked.code, checked.level("containerd")), (ERROR, "error"), "{}", checked.text);
    says(&checked, "✘ containerd: ", "is too old");
}

#[test]
fn hosts_toml_that_does_not_lead_here_is_named() {
    let cluster = cluster(2, Generation::V2_1);
    let node = &cluster.nodes[0];
    let own = node.registry_config_path().join(REGISTRY);
    let file = own.join("hosts.toml");

    fs::remove_file(&file).expect("it is there");
    let checked = node.check(&[]);
    expect(&cluster, &checked, ERROR, &[("hosts_toml", "error"), ("mirror", "unknown")]);
    says(&checked, "✘ hosts_toml: ", "is missing");
    fs::remove_dir_all(node.registry_config_path()).expect("it is there");
    says(&node.check(&[]), "✘ hosts_toml: ", "is missing");

    configure(node, &format!("http://{REGISTRY}"), &own_target(node));
    expect(&cluster, &node.check(&[]), WELL, &[]);
    let foreign = "[host.'http://cache.test:5000']\ncapabilities = ['pull']\n";
    fs::write(&file, foreign).expect("it is there");
    let checked = node.check(&[]);
    expect(
        &cluster,
        &checked,
        ERROR,
        &[("hosts_toml", "error"), ("other_mirror", "warning"), ("mirror", "unknown")],
    );
    says(&checked, "✘ hosts_toml: ", "somebody else");
    says(&checked, "! other_mirror: ", "http://cache.test:5000");

    fs::write(&file, "[host").expect("it is there");
    says(&node.check(&[]), "✘ hosts_toml: ", "line 1");
}

#[test]
fn directory_of_a_registry_that_shadows_the_default_is_named() {
    let cluster = cluster(2, Generation::V2_1);
    let node = &cluster.nodes[0];
    configure(node, "_default", &own_target(node));
    let all = ["--mirrored-registries=_default"];
    expect(&cluster, &node.check(&all), WELL, &[]);
    assert!(is_asked(&cluster, node, "default"), "_default leads to the mirror");

    // Without a file: that is enough.
    fs::create_dir(node.registry_config_path().join(REGISTRY)).expect("it is ours");
    let checked = node.check(&all);
    expect(&cluster, &checked, WARNING, &[("hosts_shadowed", "warning")]);
    says(&checked, "! hosts_shadowed: ", REGISTRY);
    assert_eq!(checked.of("hosts_shadowed")[0]["subject"], REGISTRY);
}

#[test]
fn content_path_that_is_not_containerds_is_named() {
    let cluster = cluster(2, Generation::V2_1);
    let [node, other] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let right = node.content_path().display().to_string();
    for (path, what) in [
        ("/nowhere".to_owned(), "There is no content store at /nowhere"),
        (node.dir.join("root").display().to_string(), "neither blobs nor ingest"),
    ] {
        let checked = node.check(&[&format!("--containerd-content-path={path}")]);
        expect(&cluster, &checked, ERROR, &[("content_path", "error")]);
        says(&checked, "✘ content_path: ", what);
        says(&checked, "✘ content_path: ", &right);
    }
    // Another containerd's, which has nothing of this one's.
    let foreign = other.dir.join("foreign");
    fs::create_dir_all(foreign.join("blobs/sha256")).expect("it is ours");
    let checked = node.check(&[&format!("--containerd-content-path={}", foreign.display())]);
    expect(&cluster, &checked, ERROR, &[("content_path", "error")]);
    says(&checked, "✘ content_path: ", "some other content store");
}

#[test]
fn proxy_without_an_exception_for_the_mirror_is_named() {
    let cluster = cluster(2, Generation::V2_1);
    let node = &cluster.nodes[0];
    let proxied = |exceptions: &str| {
        node.stop_containerd();
        let variables = [("HTTP_PROXY", "http://someone:secret@10.99.0.249:3128"), ("NO_PROXY", exceptions)];
        node.spawn_containerd_with(&variables);
        node.wait_containerd();
        node.check(&[])
    };
    let checked = proxied(".svc,10.200.0.0/16");
    expect(&cluster, &checked, ERROR, &[("proxy", "error")]);
    says(&checked, "✘ proxy: ", &format!("Add {} to NO_PROXY", node.address()));
    assert!(!checked.text.contains("secret"), "a password is shown: {}", checked.text);
    expect(&cluster, &proxied("10.99.0.0/24"), WELL, &[]);
}

#[test]
fn mirror_that_does_not_answer_where_containerd_looks_for_it_is_named() {
    let cluster = cluster(2, Generation::V2_1);
    let node = &cluster.nodes[0];
    let registry = format!("http://{REGISTRY}");
    let elsewhere = format!("http://{}:30020", node.address());
    configure(node, &registry, &elsewhere);
    let checked = node.check(&[]);
    expect(&cluster, &checked, ERROR, &[("mirror", "error")]);
    says(&checked, "✘ mirror: ", &format!("Nobody answers at {elsewhere}"));

    let port: SocketAddr = elsewhere.trim_start_matches("http://").parse().expect("an address");
    let _other = StandIn::start(node.netns(), port, |mut stream| answer_status(&mut stream, "404 Not Found"));
    let checked = node.check(&[]);
    expect(&cluster, &checked, ERROR, &[("mirror", "error")]);
    says(&checked, "✘ mirror: ", "Something else than Spegel answers");

    configure(node, &registry, &own_target(node));
    close(node, MIRROR_PORT);
    let checked = node.check(&[]);
    expect(&cluster, &checked, ERROR, &[("mirror", "error")]);
    says(&checked, "✘ mirror: ", "no answer within 2s");
    open(node, MIRROR_PORT);
    expect(&cluster, &node.check(&[]), WELL, &[]);
}

#[test]
fn peers_that_cannot_be_reached_are_named_one_by_one() {
    let cluster = cluster(3, Generation::V2_1);
    let [node, second, third] = cluster.nodes.as_slice() else { panic!("three nodes") };
    close(second, MIRROR_PORT);
    let checked = node.check(&[]);
    expect(&cluster, &checked, WARNING, &[("peer_registry", "warning")]);
    assert_eq!(checked.of("peer_registry").len(), 1, "{}", checked.text);
    says(&checked, "! peer_registry: ", &second.mirror_address().to_string());
    close(third, MIRROR_PORT);
    let checked = node.check(&[]);
    expect(&cluster, &checked, ERROR, &[("peer_registry", "error"), ("clock", "unknown")]);
    assert_eq!(checked.of("peer_registry").len(), 2, "{}", checked.text);
    open(second, MIRROR_PORT);
    open(third, MIRROR_PORT);

    // What membership has open stays open; the check dials anew. It takes the node some seconds to find it out.
    close(third, ROUTER_PORT);
    let checked = node.check(&[]);
    expect(&cluster, &checked, WARNING, &[("peer_router", "warning")]);
    says(&checked, "! peer_router: ", &SocketAddr::new(third.address(), ROUTER_PORT).to_string());
    open(third, ROUTER_PORT);
}

/// The answer of a registry whose only peer is a stand-in with another time.
fn told(peer: SocketAddr) -> String {
    format!(
        r#"{{"peers": [{{"peer": "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo", "addresses": ["{}"],
            "router_port": {}, "registry_port": {}}}]}}"#,
        peer.ip(),
        ROUTER_PORT,
        peer.port()
    )
}

#[test]
fn clock_that_is_far_from_the_others_is_named() {
    let cluster = cluster(2, Generation::V2_1);
    let [node, other] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let late = SocketAddr::new(other.address(), 5555);
    let _peer = StandIn::start(other.netns(), late, |mut stream| {
        if request_head(&mut stream).is_some() {
            let date = "Date: Sat, 01 Jan 2000 00:00:00 GMT";
            let answer =
                format!("HTTP/1.1 200 OK\r\n{date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _gone_away = stream.write_all(answer.as_bytes());
        }
    });
    let telling = SocketAddr::new(node.address(), 9999);
    let body = told(late);
    let _registry = StandIn::start(node.netns(), telling, move |mut stream| {
        if request_head(&mut stream).is_some() {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _gone_away = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    let checked = node.check(&[&format!("--metrics-addr={telling}")]);
    expect(&cluster, &checked, WARNING, &[("clock", "warning")]);
    says(&checked, "! clock: ", "ahead of those of the 1 nodes");
}

#[test]
fn running_registry_tells_the_same_in_metrics_log_and_debug_page() {
    let cluster = Cluster::new(ClusterOptions::new(1, Generation::V2_1));
    let node = &cluster.nodes[0];
    cluster.spawn_spegel(node);
    configure(node, "http://elsewhere.test", &own_target(node));
    cluster.expect("ready", node.wait_ready(FIRST_CHECK_MAX));
    let value = |expected: f64| {
        move || match node.metric("spegel_check", "name=\"hosts_toml\"")? {
            value if (value - expected).abs() < 0.5 && node.metrics()?.contains("name=\"hosts_toml\"") => {
                Ok(())
            }
            value => Err(format!("spegel_check is {value}")),
        }
    };
    cluster.expect("the first check", wait_for("error", FIRST_CHECK_MAX, value(2.0)));
    let page = SocketAddr::new(node.address(), METRICS_PORT);
    let answer = cluster.expect("GET", node.connect(page)).get("/debug/web/check", &[]);
    let page: serde_json::Value =
        serde_json::from_slice(&cluster.expect("the debug page", answer).body).expect("it is JSON");
    let on_command = node.check(&[]);
    assert_eq!(page["worst"], "error", "{page}");
    assert_eq!(page["findings"], on_command.json["findings"], "{page}\n{}", on_command.text);
    let said = |text: &str| node.spegel_log().matches(text).count();
    assert_eq!(said("is missing, so containerd does not ask the mirror"), 1, "{}", node.logs());

    configure(node, &format!("http://{REGISTRY}"), &own_target(node));
    cluster.expect("the next check", wait_for("mended", NEXT_CHECK_MAX, value(0.0)));
    assert_eq!(said("what was found by the check is no longer so"), 1, "{}", node.logs());
    let unseen = cluster.expect("metrics", node.metric("spegel_check", "name=\"clock\""));
    assert!(unseen < -0.5, "what cannot be seen is not well: {unseen}");
}

#[test]
fn nothing_is_said_to_be_well_that_cannot_be_seen() {
    let cluster = Cluster::new(ClusterOptions::new(1, Generation::V2_1));
    let node = &cluster.nodes[0];
    // As in a pod that has containerd's socket and nothing else: no registry runs, no process can be seen.
    let nowhere = format!("--node-root={}", node.dir.join("nowhere").display());
    let socket = format!("--containerd-sock={}", node.containerd_socket().display());
    let content = format!("--containerd-content-path={}", node.content_path().display());
    let script = format!(
        "mount -t proc proc /proc && exec {} check {nowhere} {socket} {content}",
        spegel_binary().display()
    );
    let output = node.netns().run("unshare", &["--mount", "--pid", "--fork", "sh", "-c", &script]);
    let text = cluster.expect("check", output);
    for name in [
        "config_path",
        "unpacked_layers",
        "hosts_toml",
        "hosts_shadowed",
        "other_mirror",
        "proxy",
        "mirror",
        "peer_router",
        "clock",
    ] {
        assert!(text.contains(&format!("? {name}: ")), "{name} is not unknown: {text}");
    }
    assert!(text.contains("✔ containerd: "), "{text}");
}

#[test]
fn check_that_cannot_be_run_exits_with_1() {
    let status = std::process::Command::new(spegel_binary()).args(["check", "--output=xml"]).output();
    assert_eq!(status.expect("spegel can be started").status.code(), Some(1));
}
