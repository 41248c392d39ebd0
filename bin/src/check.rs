//! `spegel check`: what keeps this node from mirroring, in plain words.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use serde::Serialize;
use spegel_core::check::{self, Finding, Level};
use spegel_io::{
    check::{CheckSettings, distribution, gather, peers_of_registry, running_registry},
    containerd::ContainerdSettings,
};

use crate::cli::{self, Check, Command, OutputFormat, Registry};

/// Where registries serve metrics unless told otherwise.
const METRICS_PORT: u16 = 9090;

/// Nothing is wrong, as far as can be seen. 1 is for a check that could not be run.
const EXIT_WELL: u8 = 0;

/// Something keeps the node from mirroring.
const EXIT_ERROR: u8 = 2;

/// Something costs, but the node mirrors.
const EXIT_WARNING: u8 = 3;

/// Looks, and gives what to print and how to exit.
pub(crate) async fn run(flags: Check) -> (String, ExitCode) {
    let registry = running_registry().and_then(flags_of);
    let metrics = flags.metrics_addr.as_ref().or_else(|| registry.as_ref().map(|told| &told.metrics_addr));
    let peers = peers_of_registry(reachable(metrics.map_or(&[], |listen| &listen.0))).await;
    let format = flags.output;
    let findings = check::findings(&gather(&settings(flags, registry), peers).await);
    let text = match format {
        OutputFormat::Text => findings.iter().map(|finding| format!("{finding}\n")).collect(),
        OutputFormat::Json => json(&findings),
    };
    let code = match check::worst(&findings) {
        Level::Ok | Level::Unknown => EXIT_WELL,
        Level::Warning => EXIT_WARNING,
        Level::Error => EXIT_ERROR,
    };
    (text, code.into())
}

/// What was said here; else what the registry was told that runs here; else what such a node has.
fn settings(flags: Check, registry: Option<Registry>) -> CheckSettings {
    let node_root = flags.node_root.or_else(|| registry.as_ref().map(|registry| registry.node_root.clone()));
    let node_root = node_root.unwrap_or_else(|| PathBuf::from("/"));
    let usual = distribution(&node_root);
    let path = |said: Option<PathBuf>, told: fn(&Registry) -> &PathBuf, usual: &str| {
        said.or_else(|| registry.as_ref().map(told).cloned()).unwrap_or_else(|| PathBuf::from(usual))
    };
    let namespace = flags
        .containerd_namespace
        .or_else(|| registry.as_ref().map(|told| told.containerd_namespace.clone()));
    let mirrored = flags.mirrored_registries;
    CheckSettings {
        containerd: ContainerdSettings {
            socket: path(flags.containerd_sock, |told| &told.containerd_sock, usual.socket()),
            namespace: namespace.unwrap_or_else(|| "k8s.io".to_owned()),
            content_path: path(
                flags.containerd_content_path,
                |told| &told.containerd_content_path,
                usual.content_path(),
            ),
        },
        registry_config_path: path(
            flags.containerd_registry_config_path,
            |told| &told.containerd_registry_config_path,
            usual.registry_config_path(),
        ),
        mirrored_registries: Some(mirrored)
            .filter(|said| !said.is_empty())
            .or_else(|| registry.as_ref().map(|told| told.mirrored_registries.clone())),
        node_root,
    }
}

/// The flags of a command line, if they are the registry's.
fn flags_of(arguments: Vec<OsString>) -> Option<Registry> {
    match cli::parse(arguments).ok()?.command {
        Command::Registry(flags) => Some(*flags),
        Command::Configuration(_)
        | Command::Cleanup(_)
        | Command::CleanupWait(_)
        | Command::Check(_)
        | Command::Version(_) => None,
    }
}

/// Where to ask somebody on this machine who listens there.
fn reachable(listen: &[SocketAddr]) -> SocketAddr {
    let addr = listen.iter().find(|addr| addr.is_ipv4()).or_else(|| listen.first());
    addr.map_or_else(
        || (Ipv4Addr::LOCALHOST, METRICS_PORT).into(),
        |addr| spegel_io::listen::reachable_here(*addr),
    )
}

#[derive(Serialize)]
struct Output<'a> {
    worst: Level,
    findings: &'a [Finding],
}

fn json(findings: &[Finding]) -> String {
    let output = Output { worst: check::worst(findings), findings };
    serde_json::to_string_pretty(&output).map_or_else(|error| format!("{error}\n"), |text| text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_listens_everywhere_is_asked_at_home() {
        let at = |text: &str| reachable(&spegel_io::listen::parse(text).expect("an address"));
        assert_eq!(at(":9091"), "127.0.0.1:9091".parse().expect("an address"));
        assert_eq!(at("[::]:9091"), "[::1]:9091".parse().expect("an address"));
        assert_eq!(at("10.0.0.1:9091"), "10.0.0.1:9091".parse().expect("an address"));
        assert_eq!(reachable(&[]), "127.0.0.1:9090".parse().expect("an address"));
    }

    fn check(args: &[&str]) -> Check {
        let args = [&["spegel", "check"], args].concat();
        let cli = cli::parse(args.into_iter().map(OsString::from)).expect("the flags are right");
        let Command::Check(flags) = cli.command else { panic!("check expected") };
        *flags
    }

    #[test]
    fn what_is_not_said_is_what_the_registry_was_told() {
        let told = [
            "registry",
            "--containerd-sock=/a.sock",
            "--mirrored-registries",
            "https://a.test",
            "--node-root=/node",
        ];
        let line = ["/spegel"].iter().chain(&told).map(OsString::from).collect();
        let registry = flags_of(line);
        assert!(registry.is_some());
        let settings = settings(check(&["--containerd-content-path=/content"]), registry);
        assert_eq!(settings.containerd.socket, PathBuf::from("/a.sock"));
        assert_eq!(settings.containerd.content_path, PathBuf::from("/content"));
        assert_eq!(settings.node_root, PathBuf::from("/node"));
        assert_eq!(settings.mirrored_registries, Some(vec!["https://a.test".to_owned()]));
    }

    #[test]
    fn without_a_registry_it_is_what_is_usual() {
        assert!(flags_of(["/spegel", "version"].map(OsString::from).into()).is_none());
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(root.path().join("var/snap/microk8s/current/args")).expect("a directory");
        let node_root = format!("--node-root={}", root.path().display());
        let settings = settings(check(&[&node_root]), None);
        assert_eq!(
            settings.containerd.socket,
            PathBuf::from("/var/snap/microk8s/common/run/containerd.sock")
        );
        assert_eq!(settings.registry_config_path, PathBuf::from("/var/snap/microk8s/current/args/certs.d"));
        assert_eq!((settings.mirrored_registries, settings.containerd.namespace.as_str()), (None, "k8s.io"));
    }
}
