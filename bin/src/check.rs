//! `spegel check`: what keeps this node from mirroring, in plain words.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, process::ExitCode};

use serde::Serialize;
use spegel_core::check::{self, Finding, Level};
use spegel_io::{
    check::{CheckSettings, distribution, gather, peers_of_registry, running_registry},
    containerd::ContainerdSettings,
};

use crate::cli::{self, Check, Command, OutputFormat, Registry};

/// Nothing is wrong, as far as can be seen. 1 is for a check that could not be run.
const EXIT_WELL: u8 = 0;

/// Something keeps the node from mirroring.
const EXIT_ERROR: u8 = 2;

/// Something costs, but the node mirrors.
const EXIT_WARNING: u8 = 3;

/// Looks, and gives what to print and how to exit.
pub(crate) async fn run(flags: Check) -> (String, ExitCode) {
    let registry = running_registry().and_then(flags_of);
    let metrics = flags.metrics_addr.as_ref().map(|listen| &listen.0);
    let metrics = metrics.or_else(|| registry.as_ref().map(|registry| &registry.metrics_addr.0));
    let peers = peers_of_registry(reachable(metrics.and_then(|addrs| addrs.first()).copied())).await;
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

/// Where to ask somebody who listens there on this machine.
fn reachable(listen: Option<SocketAddr>) -> SocketAddr {
    const USUAL_PORT: u16 = 9090;
    match listen {
        Some(addr) if addr.ip().is_unspecified() => {
            SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), addr.port())
        }
        Some(addr) => addr,
        None => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), USUAL_PORT),
    }
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
