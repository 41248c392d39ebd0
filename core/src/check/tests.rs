//! Every way in which a node can be set up wrongly, and what is said about it.

use std::collections::BTreeMap;

use super::*;

const MIRROR: &str = "http://10.0.0.1:30020";

fn seen(names: &[&str]) -> Known<Vec<String>> {
    Known::Seen(names.iter().map(|name| (*name).to_owned()).collect())
}

fn peer(number: u8) -> PeerProbe {
    PeerProbe {
        peer: format!("12D3KooW{number}"),
        router: Ok(()),
        registry: Ok(()),
        clock_ahead_seconds: Some(0),
        router_addr: format!("10.0.0.{number}:5001"),
        registry_addr: format!("10.0.0.{number}:5000"),
    }
}

fn settings() -> Settings {
    Settings {
        source: SettingsSource::Running,
        config_path: "/etc/containerd/certs.d".to_owned(),
        discard_unpacked_layers: false,
        local_image_pull: false,
        mirrors: Vec::new(),
        ignored_sections: false,
    }
}

/// A node of which everything can be seen and is well.
fn well() -> Facts {
    Facts {
        distribution: Distribution::Plain,
        containerd: ContainerdFacts {
            socket: "/run/containerd/containerd.sock".to_owned(),
            version: Ok("2.1.9".to_owned()),
            settings: Known::Seen(settings()),
            content_root: Some("/var/lib/containerd/io.containerd.content.v1.content".to_owned()),
        },
        content: ContentStore {
            path: "/var/lib/containerd/io.containerd.content.v1.content".to_owned(),
            dir: StoreDir::Store,
            sample: Some((16, 16)),
        },
        registry_config_path: "/etc/containerd/certs.d".to_owned(),
        hosts: Known::Seen(BTreeMap::from([
            ("_default".to_owned(), HostsDir::Ours(vec![MIRROR.to_owned()])),
            ("_backup".to_owned(), HostsDir::Empty),
        ])),
        mirrored: seen(&["_default"]),
        proxies: Known::Seen(BTreeMap::new()),
        targets: vec![TargetProbe { url: MIRROR.to_owned(), answer: TargetAnswer::Spegel }],
        peers: Known::Seen(vec![peer(2), peer(3), peer(4)]),
    }
}

fn with_settings(facts: &mut Facts, change: impl FnOnce(&mut Settings)) {
    let mut settings = settings();
    change(&mut settings);
    facts.containerd.settings = Known::Seen(settings);
}

fn with_host(facts: &mut Facts, name: &str, dir: HostsDir) {
    let Known::Seen(hosts) = &mut facts.hosts else { panic!("hosts are seen") };
    hosts.insert(name.to_owned(), dir);
}

fn with_peer(facts: &mut Facts, number: usize, change: impl FnOnce(&mut PeerProbe)) {
    let Known::Seen(peers) = &mut facts.peers else { panic!("peers are seen") };
    change(&mut peers[number]);
}

fn with_proxy(facts: &mut Facts, variables: &[(&str, &str)]) {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    facts.proxies = Known::Seen(variables.collect());
}

fn hide<T>() -> Known<T> {
    Known::Hidden("nothing of it is mounted".to_owned())
}

/// What is wrong, which checks must say so, and how it comes about.
type Fault = (&'static str, &'static [Check], fn(&mut Facts));

const FAULTS: &[Fault] = &[
    ("containerd is away", &[Check::Containerd], |f| {
        f.containerd.version = Err("No such file or directory (os error 2)".to_owned());
    }),
    ("containerd is too old", &[Check::Containerd], |f| f.containerd.version = Ok("1.5.18".to_owned())),
    ("containerd's version is odd", &[Check::Containerd], |f| f.containerd.version = Ok("master".to_owned())),
    ("settings are not visible", &[Check::ConfigPath, Check::UnpackedLayers], |f| {
        f.containerd.settings = hide()
    }),
    ("config_path is not set", &[Check::ConfigPath], |f| with_settings(f, |s| s.config_path.clear())),
    ("config_path is not set, before 2.0, on k3s", &[Check::ConfigPath], |f| {
        f.distribution = Distribution::K3s;
        f.containerd.version = Ok("1.7.24".to_owned());
        with_settings(f, |s| s.config_path.clear());
    }),
    ("config_path is under the old name", &[Check::ConfigPath], |f| {
        with_settings(f, |s| {
            s.config_path.clear();
            s.ignored_sections = true;
            s.source = SettingsSource::File("/etc/containerd/config.toml".to_owned());
        });
    }),
    ("config_path is another", &[Check::ConfigPath], |f| {
        with_settings(f, |s| s.config_path = "/etc/docker/certs.d/".to_owned());
    }),
    ("config_path is a list for the transfer service", &[Check::ConfigPath], |f| {
        with_settings(f, |s| s.config_path = "/etc/containerd/certs.d:/etc/docker/certs.d".to_owned());
    }),
    ("layers are discarded", &[Check::UnpackedLayers], |f| {
        with_settings(f, |s| s.discard_unpacked_layers = true)
    }),
    ("layers are discarded on EKS, before 2.0", &[Check::UnpackedLayers], |f| {
        f.distribution = Distribution::Eks;
        f.containerd.version = Ok("1.7.24".to_owned());
        with_settings(f, |s| s.discard_unpacked_layers = true);
    }),
    ("obsolete mirrors are configured", &[Check::ConfigPath, Check::OtherMirror], |f| {
        with_settings(f, |s| {
            s.config_path.clear();
            s.mirrors = vec!["docker.io".to_owned()];
        });
    }),
    ("content path does not exist", &[Check::ContentPath], |f| {
        f.content.path = "/data/content".to_owned();
        f.content.dir = StoreDir::Missing;
    }),
    ("content path is another directory", &[Check::ContentPath], |f| {
        f.content.path = "/var/lib/containerd".to_owned();
        f.content.dir = StoreDir::NotAStore;
    }),
    ("content path is not readable", &[Check::ContentPath], |f| {
        f.content.dir = StoreDir::Unreadable("Permission denied (os error 13)".to_owned());
    }),
    ("content path is another store", &[Check::ContentPath], |f| {
        f.content.path = "/old/io.containerd.content.v1.content".to_owned();
        f.content.sample = Some((16, 0));
    }),
    ("content path does not exist, and containerd is away", &[Check::Containerd, Check::ContentPath], |f| {
        f.containerd.version = Err("Connection refused (os error 111)".to_owned());
        f.containerd.content_root = None;
        f.content.dir = StoreDir::Missing;
        f.content.sample = None;
    }),
    ("content store lacks blobs", &[Check::ContentPath], |f| f.content.sample = Some((16, 15))),
    ("content store is empty", &[Check::ContentPath], |f| f.content.sample = Some((0, 0))),
    ("content store cannot be compared", &[Check::ContentPath], |f| f.content.sample = None),
    ("hosts.toml is missing", &[Check::HostsToml], |f| f.hosts = Known::Seen(BTreeMap::new())),
    ("hosts.toml is not visible", &[Check::HostsToml, Check::HostsShadowed, Check::OtherMirror], |f| {
        f.hosts = hide()
    }),
    ("directory has no hosts.toml", &[Check::HostsToml], |f| with_host(f, "_default", HostsDir::Empty)),
    ("hosts.toml is somebody else's", &[Check::HostsToml, Check::OtherMirror], |f| {
        with_host(f, "_default", HostsDir::Foreign(vec!["https://zot.test".to_owned()]));
    }),
    ("hosts.toml makes no sense", &[Check::HostsToml], |f| {
        with_host(f, "_default", HostsDir::Unreadable("line 3: expected `=`".to_owned()));
    }),
    ("one of two registries is missing", &[Check::HostsToml], |f| {
        f.mirrored = seen(&["docker.io", "quay.io"]);
        f.hosts = Known::Seen(BTreeMap::new());
        with_host(f, "docker.io", HostsDir::Ours(vec![MIRROR.to_owned()]));
    }),
    ("what is mirrored is not known, and nothing is", &[Check::HostsToml], |f| {
        f.mirrored = hide();
        f.hosts = Known::Seen(BTreeMap::new());
    }),
    ("registry has a directory of its own", &[Check::HostsShadowed], |f| {
        with_host(f, "quay.io", HostsDir::Empty);
        with_host(f, "ghcr.io", HostsDir::Foreign(vec!["https://ghcr.io".to_owned()]));
    }),
    ("other mirror has a registry", &[Check::HostsShadowed, Check::OtherMirror], |f| {
        with_host(f, "quay.io", HostsDir::Foreign(vec!["https://cache.test/v2/quay".to_owned()]));
    }),
    ("proxy is not visible", &[Check::Proxy], |f| f.proxies = hide()),
    ("proxy without exception", &[Check::Proxy], |f| {
        with_proxy(f, &[("HTTP_PROXY", "http://user:secret@proxy:3128"), ("NO_PROXY", "10.96.0.0/12,.svc")]);
    }),
    ("proxy, and no mirror known", &[Check::Proxy, Check::Mirror], |f| {
        with_proxy(f, &[("HTTP_PROXY", "http://proxy:3128")]);
        f.targets.clear();
    }),
    ("nobody listens on the node port", &[Check::Mirror], |f| {
        f.targets[0].answer = TargetAnswer::Nobody("Connection refused (os error 111)".to_owned());
    }),
    ("first of two ports is dead", &[Check::Mirror], |f| {
        f.targets[0].answer = TargetAnswer::Nobody("no answer within 2s".to_owned());
        f.targets.push(TargetProbe { url: "http://10.0.0.1:30021".to_owned(), answer: TargetAnswer::Spegel });
    }),
    ("something else has the port", &[Check::Mirror], |f| {
        f.targets[0].answer = TargetAnswer::Other("404 for /livez".to_owned());
    }),
    ("peers are not visible", &[Check::PeerRouter, Check::PeerRegistry, Check::Clock], |f| f.peers = hide()),
    ("node is alone", &[Check::PeerRouter, Check::PeerRegistry, Check::Clock], |f| {
        f.peers = Known::Seen(Vec::new())
    }),
    ("router of one peer is closed", &[Check::PeerRouter], |f| {
        with_peer(f, 1, |peer| peer.router = Err("Connection refused (os error 111)".to_owned()));
    }),
    ("registries of all peers are closed", &[Check::PeerRegistry, Check::Clock], |f| {
        for number in 0..3 {
            with_peer(f, number, |peer| {
                peer.registry = Err("no answer within 2s".to_owned());
                peer.clock_ahead_seconds = None;
            });
        }
    }),
    ("clock is behind", &[Check::Clock], |f| {
        for number in 0..3 {
            with_peer(f, number, |peer| peer.clock_ahead_seconds = Some(40));
        }
    }),
    ("clock is ahead of most", &[Check::Clock], |f| {
        with_peer(f, 0, |peer| peer.clock_ahead_seconds = Some(-3600));
        with_peer(f, 1, |peer| peer.clock_ahead_seconds = Some(-3599));
    }),
    ("line breaks come from outside", &[Check::Containerd], |f| {
        f.containerd.version = Err("one\nline\u{1b}[31m".to_owned());
    }),
];

#[test]
fn nothing_is_wrong_with_a_node_that_is_well() {
    let findings = findings(&well());
    let names: Vec<Check> = findings.iter().map(|finding| finding.check).collect();
    assert_eq!(names, Check::ALL);
    assert_eq!(worst(&findings), Level::Ok, "{findings:#?}");
}

/// The text of all that can be said, and that each fault is told by the checks it concerns alone.
#[test]
fn every_fault_is_told_in_a_line_with_what_to_do() {
    let mut text = String::new();
    for (name, concerned, breaks) in FAULTS {
        let mut facts = well();
        breaks(&mut facts);
        let findings = findings(&facts);
        let not_well: Vec<&Finding> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
        for check in Check::ALL {
            let told = not_well.iter().any(|finding| finding.check == check);
            assert_eq!(told, concerned.contains(&check), "{name}: {check}: {findings:#?}");
            assert!(findings.iter().any(|finding| finding.check == check), "{name}: nothing on {check}");
        }
        text.push_str(&format!("# {name}\n"));
        for finding in not_well {
            let line = finding.to_string();
            assert!(!line.contains(char::is_control), "{name}: {line:?}");
            assert!(line.ends_with('.'), "{name}: {line}");
            let does = finding.level <= Level::Unknown || finding.advice.is_some();
            assert!(does, "{name}: what to do about {line}");
            text.push_str(&format!("{line}\n"));
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn what_is_well_is_told_too() {
    let lines: Vec<String> = findings(&well()).iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

/// An address may hold a password.
#[test]
fn proxy_is_not_quoted() {
    let mut facts = well();
    with_proxy(&mut facts, &[("HTTP_PROXY", "http://user:secret@proxy:3128")]);
    assert!(!format!("{:?}", findings(&facts)).contains("secret"));
}

#[test]
fn exception_for_the_mirror_makes_a_proxy_harmless() {
    let mut facts = well();
    with_proxy(&mut facts, &[("HTTP_PROXY", "http://proxy:3128"), ("NO_PROXY", "10.0.0.0/8")]);
    assert_eq!(level_of(Check::Proxy, &findings(&facts)), Level::Ok);
}

#[test]
fn list_of_directories_is_well_where_images_are_pulled_locally_or_by_an_older_containerd() {
    let list = "/etc/containerd/certs.d:/etc/docker/certs.d";
    let mut facts = well();
    with_settings(&mut facts, |s| {
        s.config_path = list.to_owned();
        s.local_image_pull = true;
    });
    assert_eq!(level_of(Check::ConfigPath, &findings(&facts)), Level::Ok);
    with_settings(&mut facts, |s| s.config_path = list.to_owned());
    assert_eq!(level_of(Check::ConfigPath, &findings(&facts)), Level::Error);
    facts.containerd.version = Ok("2.0.5".to_owned());
    assert_eq!(level_of(Check::ConfigPath, &findings(&facts)), Level::Ok);
}

#[test]
fn oldest_supported_version_is_well() {
    let mut facts = well();
    for (version, level) in [("1.6.0", Level::Ok), ("1.5.99", Level::Error), ("0.9.9", Level::Error)] {
        facts.containerd.version = Ok(version.to_owned());
        assert_eq!(level_of(Check::Containerd, &findings(&facts)), level, "{version}");
    }
}

#[test]
fn clock_is_wrong_beyond_five_seconds_either_way() {
    let told = |seconds: &[i64]| {
        let mut facts = well();
        let peers = seconds.iter().map(|ahead| PeerProbe { clock_ahead_seconds: Some(*ahead), ..peer(2) });
        facts.peers = Known::Seen(peers.collect());
        level_of(Check::Clock, &findings(&facts))
    };
    for (seconds, level) in [
        (&[5][..], Level::Ok),
        (&[6], Level::Warning),
        (&[-5], Level::Ok),
        (&[-6], Level::Warning),
        (&[i64::MIN, 0], Level::Ok),
        (&[0, i64::MAX], Level::Ok),
        (&[0, 60, 60], Level::Warning),
        (&[60, 60, 60, 0], Level::Warning),
    ] {
        assert_eq!(told(seconds), level, "{seconds:?}");
    }
}

#[test]
fn findings_are_plain_json() {
    let mut facts = well();
    with_peer(&mut facts, 0, |peer| peer.router = Err("no answer within 2s".to_owned()));
    let findings: Vec<Finding> =
        findings(&facts).into_iter().filter(|f| f.check == Check::PeerRouter).collect();
    insta::assert_snapshot!(serde_json::to_string_pretty(&findings).expect("it has no odd keys"));
}

#[test]
fn levels_have_distinct_signs_and_what_needs_looking_at_is_above_zero() {
    let levels = [Level::Ok, Level::Unknown, Level::Warning, Level::Error];
    assert_eq!(levels.map(Level::sign), ['✔', '?', '!', '✘']);
    assert_eq!(levels.map(Level::value), [0, -1, 1, 2]);
    assert!(levels.is_sorted());
}

#[test]
fn node_in_trouble_looks_again_sooner() {
    for level in [Level::Ok, Level::Unknown, Level::Warning, Level::Error] {
        let is_troubled = matches!(level, Level::Warning | Level::Error);
        assert_eq!(interval_after(level), if is_troubled { INTERVAL_TROUBLED } else { INTERVAL });
    }
}
