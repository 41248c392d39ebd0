//! The image is pulled through the mirror and runs on containerd with the chart's arguments, mounts and rights, which are
//! enough for all that a mirror does.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "real parts run on the real clock, and report figures"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use spegel_tests::{
    BOOTSTRAP_NAME, Chart, Cluster, ClusterOptions, Container, Generation, Image, ImageSpec, METRICS_PORT,
    MIRROR_PORT, Node, Puller, REGISTRY, image_archive, mib, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// The mirror finishes transfers for up to 25 seconds; here there are none.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Of the program, which is all that the image has.
const UNPACKED_BYTES_MAX: usize = 20_000_000;

/// The image in the cluster's registry.
fn published(cluster: &Cluster) -> Image {
    cluster.image_of_archive(&image_archive(), "spegel", env!("CARGO_PKG_VERSION"))
}

/// A pod that the chart makes, for a cluster whose nodes have containerd where this one has.
fn pod(node: &Node, kind: &str, name: &str) -> Value {
    let path = |name: &str| node.dir.join(name).display().to_string();
    let values = json!({
        "service": {"registry": {"nodeIp": node.address().to_string(), "nodePort": MIRROR_PORT}},
        "spegel": {
            "logLevel": "DEBUG",
            "containerdSock": node.containerd_socket(),
            "containerdContentPath": path("root/io.containerd.content.v1.content"),
            "containerdRegistryConfigPath": path("certs.d"),
            "persistence": {"hostPath": path("data")},
            "mirroredRegistries": [format!("http://{REGISTRY}")],
            "debugPprofEnabled": true,
        },
    });
    let objects = Chart::with(values).render().expect("the values are right");
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let spec = &found.unwrap_or_else(|| panic!("the chart has no {kind} {name}"))["spec"];
    if kind == "DaemonSet" { spec["template"]["spec"].clone() } else { spec.clone() }
}

/// There is no DNS of a cluster here, so that names of Services become others.
fn replace(container: &mut Container, flag: &str, value: &str) {
    let given = container.args.iter_mut().find(|argument| argument.starts_with(&format!("{flag}=")));
    *given.unwrap_or_else(|| panic!("the chart gives no {flag}")) = format!("{flag}={value}");
}

/// `spegel check` in the mirror's pod, which sees what the chart mounts and none of the node's processes.
fn check_sees_what_the_chart_mounts(cluster: &Cluster, node: &Node, mirror: &Container) {
    let checked = node.check_in_container(mirror);
    let levels = ["ok", "unknown"].map(|level| {
        let findings = checked.json["findings"].as_array().expect("findings are a list").iter();
        let names = findings.filter(|finding| finding["level"] == level);
        names.filter_map(|finding| finding["name"].as_str()).collect::<BTreeSet<_>>()
    });
    let mut well = BTreeSet::from([
        "containerd",
        "content_path",
        "hosts_toml",
        "hosts_shadowed",
        "other_mirror",
        "mirror",
        "peer_router",
        "peer_registry",
        "clock",
    ]);
    let mut unseen = BTreeSet::from(["proxy"]);
    // Up to 1.7 containerd tells its settings. From 2.0 on a file does, which here is not where a distribution has it.
    let told = node.generation < Generation::V2_1;
    if told { &mut well } else { &mut unseen }.extend(["config_path", "unpacked_layers"]);
    assert_eq!(levels, [well, unseen], "{}\n{}", checked.text, cluster.logs());
    assert_eq!((checked.code, checked.json["worst"].as_str()), (0, Some("unknown")), "{}", checked.text);
}

/// Starts the mirror of a node as the kubelet would.
fn start(cluster: &Cluster, node: &Node, image: &str) -> Container {
    let pod = pod(node, "DaemonSet", "spegel");
    fs::create_dir_all(node.dir.join("data")).expect("the node's directory is ours");
    let configuration = Container::of_pod(&pod, "configuration", image);
    cluster.expect("the configuration container", node.run_container(&configuration));
    let mut registry = Container::of_pod(&pod, "registry", image);
    replace(&mut registry, "--dns-bootstrap-domain", BOOTSTRAP_NAME);
    cluster.expect("the registry container", node.start_container(&registry));
    registry
}

fn wait_until_ready(cluster: &Cluster, node: &Node) {
    let look = || match node.get("/readyz", &[])?.status {
        200 => Ok(()),
        other => Err(format!("/readyz of {} says {other}", node.name)),
    };
    cluster.expect("the mirror is ready", wait_for("ready", PATIENCE, look));
}

/// How many mount namespaces of a node's processes have a mount at such a place.
fn mount_namespaces(node: &Node, place: &str) -> usize {
    let pids = node.netns().run("ip", &["netns", "pids", node.netns().name()]).expect("ip lists processes");
    let namespace = |pid: &str| {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
        let there = mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| at.ends_with(place)));
        there.then(|| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok())?
    };
    pids.lines().filter_map(namespace).collect::<BTreeSet<PathBuf>>().len()
}

/// Whether an ELF file of 64 bits names a program to load it with what it is linked to (`PT_INTERP`).
fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    assert_eq!(elf.get(..6), Some(&b"\x7fELF\x02\x01"[..]), "an ELF file of 64 bits, little-endian");
    let number = |at: usize, bytes: usize| {
        elf[at..at + bytes].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let index = |number: u64| usize::try_from(number).expect("a place in memory");
    let (start, size, count) = (index(number(0x20, 8)), index(number(0x36, 2)), index(number(0x38, 2)));
    assert!(count > 0, "there are program headers");
    (0..count).any(|header| number(start + header * size, 4) == PT_INTERP)
}

/// In the container no file can be written where files usually go, and the program is static.
fn profiles_can_be_made(cluster: &Cluster, node: &Node) {
    for (path, kind) in [("profile?seconds=1", "Type: cpu"), ("heap", "Type: inuse_space")] {
        let url = format!("http://localhost:{METRICS_PORT}/debug/pprof/{path}");
        let said = cluster.expect("go tool pprof", node.netns().run("go", &["tool", "pprof", "-top", &url]));
        assert!(said.contains(kind), "{said}");
    }
}

fn runs_as_the_chart_says(generation: Generation) {
    let cluster = Cluster::new(ClusterOptions::new(2, generation));
    let [first, second] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let own = published(&cluster);
    for node in [first, second] {
        cluster.expect("pull of the image", node.pull(Puller::Cri, &own.by_tag()));
        cluster.expect("content of the image", node.verify(&own));
    }
    cluster.expect("import of the image", first.import_archive(&image_archive()));
    let imported = format!("localhost/spegel:{}", env!("CARGO_PKG_VERSION"));
    for name in [own.by_tag(), imported] {
        let version = Container::new("version", &name, &["version"]);
        let said = cluster.expect("spegel version", first.run_container(&version));
        assert_eq!(said, format!("spegel {}\n", env!("CARGO_PKG_VERSION")));
    }

    let early = ["cleanup", "--addr=:8099", "--containerd-registry-config-path=/nowhere"];
    let early = Container::new("early", &own.by_tag(), &early);
    cluster.expect("a container that is there before the mirror", first.start_container(&early));
    let mirrors = [first, second].map(|node| start(&cluster, node, &own.by_tag()));
    cluster.nodes.iter().for_each(|node| wait_until_ready(&cluster, node));
    for (node, mirror) in cluster.nodes.iter().zip(&mirrors) {
        cluster.expect("they know each other", node.wait_members(2, PATIENCE));
        check_sees_what_the_chart_mounts(&cluster, node, mirror);
    }

    // It sees the files of containers, which must not outlive them for that.
    let seen = mount_namespaces(first, "-early/rootfs");
    assert_eq!(seen, 2, "the node and the mirror see the container's files");
    cluster.expect("the container ends with 0", first.stop_container(&early, STOP_MAX));
    let gone = || match mount_namespaces(first, "-early/rootfs") {
        0 => Ok(()),
        left => Err(format!("{left} see them")),
    };
    cluster.expect("the files of an ended container", wait_for("they are gone", PATIENCE, gone));

    let hosts = first.dir.join(format!("certs.d/{REGISTRY}/hosts.toml"));
    let hosts = fs::read_to_string(hosts).expect("the configuration container wrote it");
    assert!(hosts.contains(&format!("http://{}", first.mirror_address())), "{hosts}");
    assert!(first.dir.join("data/private.key").exists(), "the identity is kept on the node");

    // Read from the content store, announced, found, and streamed by the other node.
    let app = cluster.image(&ImageSpec::new("app", "1", &[mib(3), mib(1)]));
    cluster.expect("pull from the registry", first.pull(Puller::Cri, &app.by_tag()));
    cluster.expect("the other node finds it", second.wait_finds(&app, PATIENCE));
    cluster.upstream.cut();
    cluster.expect("pull from the other node", second.pull(Puller::Cri, &app.by_tag()));
    cluster.expect("content", second.verify(&app));
    cluster.upstream.restore();
    profiles_can_be_made(&cluster, second);

    // Another file of the same name, which a mount of the file itself would never show.
    second.stop_containerd();
    let _gone_already = fs::remove_file(second.containerd_socket());
    second.start_containerd();
    let later = cluster.image(&ImageSpec::new("later", "1", &[mib(1)]));
    cluster.expect("pull after the restart", second.pull(Puller::Cri, &later.by_tag()));
    cluster.expect("a restarted containerd is found again", first.wait_finds(&later, PATIENCE));

    for (node, mirror) in cluster.nodes.iter().zip(&mirrors) {
        cluster.expect("the mirror ends with 0", node.stop_container(mirror, STOP_MAX));
    }
}

#[test]
fn image_runs_as_the_chart_says_on_containerd_1_6() {
    runs_as_the_chart_says(Generation::V1_6);
}

#[test]
fn image_runs_as_the_chart_says_on_containerd_1_7() {
    runs_as_the_chart_says(Generation::V1_7);
}

#[test]
fn image_runs_as_the_chart_says_on_containerd_2_1() {
    runs_as_the_chart_says(Generation::V2_1);
}

#[test]
fn uninstall_gives_containerd_its_own_configuration_back() {
    let cluster = Cluster::new(ClusterOptions::new(1, Generation::V2_1));
    let node = &cluster.nodes[0];
    let image = published(&cluster).by_tag();
    cluster.expect("pull of the image", node.pull(Puller::Cri, &image));
    let hosts = node.dir.join(format!("certs.d/{REGISTRY}/hosts.toml"));
    let before = fs::read_to_string(&hosts).expect("the harness wrote it");
    let mirror = start(&cluster, node, &image);
    wait_until_ready(&cluster, node);
    assert_ne!(fs::read_to_string(&hosts).expect("the configuration container wrote it"), before);
    cluster.expect("the mirror ends with 0", node.stop_container(&mirror, STOP_MAX));

    let cleanup = Container::of_pod(&pod(node, "DaemonSet", "spegel-cleanup"), "cleanup", &image);
    cluster.expect("the cleanup container", node.start_container(&cleanup));
    let mut wait = Container::of_pod(&pod(node, "Pod", "spegel-cleanup-wait"), "cleanup-wait", &image);
    replace(&mut wait, "--probe-endpoint", &format!("{}:8080", node.name));
    // The chart has as many rounds as outlast what DNS remembers; here the name is in a file.
    replace(&mut wait, "--threshold", "3");
    cluster.expect("the cleanup-wait container ends by itself", node.run_container(&wait));
    assert_eq!(fs::read_to_string(&hosts).expect("it is there again"), before);
    assert!(!node.dir.join("certs.d/_backup").exists(), "nothing is left of the mirror");
    cluster.expect("the cleanup container ends with 0", node.stop_container(&cleanup, STOP_MAX));
}

/// What docs/operating.md says of the one capability that somebody may need.
#[test]
fn configuration_of_other_users_takes_one_capability() {
    let cluster = Cluster::new(ClusterOptions::new(1, Generation::V2_1));
    let node = &cluster.nodes[0];
    let own = published(&cluster);
    cluster.expect("pull of the image", node.pull(Puller::Cri, &own.by_tag()));
    let foreign = node.dir.join("certs.d/other.example");
    fs::create_dir_all(&foreign).expect("the node's directory is ours");
    fs::write(foreign.join("hosts.toml"), "server = 'https://other.example'").expect("the directory is ours");
    for path in [foreign.join("hosts.toml"), foreign.clone()] {
        chown(&path, Some(1000), Some(1000)).expect("root may give files away");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("the file is root's to change");
    }

    let mut configuration =
        Container::of_pod(&pod(node, "DaemonSet", "spegel"), "configuration", &own.by_tag());
    let refused =
        node.run_container(&configuration).expect_err("root needs the capability for files of others");
    assert!(refused.contains("other.example") && refused.contains("Permission denied"), "{refused}");
    assert!(!node.dir.join("certs.d/_backup").exists(), "nothing was changed");

    configuration.capabilities = vec!["DAC_OVERRIDE".to_owned()];
    cluster.expect("the configuration container", node.run_container(&configuration));
    assert!(node.dir.join("certs.d/_backup/other.example/hosts.toml").exists(), "it is kept for later");
}

#[test]
fn image_is_small_and_says_what_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let unpacked =
        std::process::Command::new("tar").arg("-C").arg(dir.path()).arg("-xf").arg(image_archive()).status();
    assert!(unpacked.expect("tar starts").success());
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&fs::read(path).expect("the layout is complete")).expect("it is JSON")
    };
    let blob = |descriptor: &Value| {
        let digest =
            descriptor["digest"].as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
        dir.path().join("blobs/sha256").join(digest)
    };
    let linked = fs::read("/bin/tar").expect("tar is there");
    assert!(has_interpreter(&linked), "a program of Debian's is told from a static one");
    let index = read(&blob(&read(&dir.path().join("index.json"))["manifests"][0]));
    let manifests = index["manifests"].as_array().expect("an index");
    assert!(!manifests.is_empty());
    for entry in manifests {
        let manifest = read(&blob(entry));
        let size = manifest["layers"][0]["size"].as_u64().expect("a size");
        println!("{}: {size} bytes to download", entry["platform"]["architecture"]);
        assert!(size <= mib(20), "{size} bytes");
        let mut program = std::process::Command::new("tar");
        let program = program.arg("-xOzf").arg(blob(&manifest["layers"][0])).arg("spegel");
        let program = program.output().expect("tar starts").stdout;
        println!("{}: {} bytes on disk", entry["platform"]["architecture"], program.len());
        assert!(program.len() <= UNPACKED_BYTES_MAX, "{} bytes", program.len());
        assert!(!has_interpreter(&program), "the image has no libc to load");
        let config = read(&blob(&manifest["config"]));
        assert_eq!(config["architecture"], entry["platform"]["architecture"]);
        assert_eq!(config["config"]["Entrypoint"], json!(["/spegel"]));
        assert_eq!(config["config"]["User"], "0:0", "containerd's socket belongs to root");
        let labels = &config["config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
        assert!(labels["org.opencontainers.image.revision"].as_str().is_some_and(|text| !text.is_empty()));
        let mut list = std::process::Command::new("tar");
        let list = list.arg("-tzf").arg(blob(&manifest["layers"][0])).output().expect("tar starts");
        assert_eq!(String::from_utf8_lossy(&list.stdout), "spegel\n", "one file and nothing else");
    }
}
