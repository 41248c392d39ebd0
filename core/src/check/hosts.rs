//! Whether containerd's registry configuration leads to the mirror.

use std::collections::BTreeMap;

use super::{Check, Facts, Finding, HostsDir, Known};

/// containerd's name for all registries without a directory of their own.
const WILDCARD: &str = "_default";

/// Names no registry has: the backup of what was there, and files being put together.
fn is_registry(name: &str) -> bool {
    name != "_backup" && !name.starts_with('.')
}

const CONFIGURE: &str =
    "Run `spegel configuration` on the node (chart: restart this pod, with spegel.containerdMirrorAdd on).";

fn hidden(check: Check, facts: &Facts, cause: &str) -> Vec<Finding> {
    let path = &facts.registry_config_path;
    let finding = Finding::unknown(check, format!("{path} is not visible from here: {cause}."));
    vec![finding.advise("Run `spegel check` on the node to know.")]
}

/// Names of directories that should hold a file of ours. Where nobody said, those that do.
fn expected(facts: &Facts, hosts: &BTreeMap<String, HostsDir>) -> Vec<String> {
    if let Known::Seen(names) = &facts.mirrored {
        return names.clone();
    }
    let ours = hosts.iter().filter(|(name, dir)| is_registry(name) && matches!(dir, HostsDir::Ours(_)));
    let names: Vec<String> = ours.map(|(name, _)| name.clone()).collect();
    if names.is_empty() { vec![WILDCARD.to_owned()] } else { names }
}

pub(super) fn present(facts: &Facts) -> Vec<Finding> {
    const CHECK: Check = Check::HostsToml;
    let hosts = match &facts.hosts {
        Known::Seen(hosts) => hosts,
        Known::Hidden(cause) => return hidden(CHECK, facts, cause),
    };
    let root = &facts.registry_config_path;
    let expected = expected(facts, hosts);
    let wrong: Vec<Finding> = expected
        .iter()
        .filter_map(|name| {
            let file = format!("{root}/{name}/hosts.toml");
            let finding = match hosts.get(name) {
                Some(HostsDir::Ours(_)) => return None,
                None | Some(HostsDir::Empty) => Finding::error(
                    CHECK,
                    format!("{file} is missing, so containerd does not ask the mirror."),
                )
                .advise(CONFIGURE),
                Some(HostsDir::Foreign(_)) => Finding::error(
                    CHECK,
                    format!("{file} was written by somebody else and does not lead to the mirror."),
                )
                .advise(format!("{CONFIGURE} What is there moves to {root}/_backup.")),
                Some(HostsDir::Unreadable(cause)) => {
                    Finding::error(CHECK, format!("{file} cannot be read: {cause}.")).advise(CONFIGURE)
                }
            };
            Some(finding.about(name))
        })
        .collect();
    if wrong.is_empty() {
        let names = expected.join(", ");
        return vec![Finding::ok(CHECK, format!("containerd is sent to the mirror for {names} in {root}."))];
    }
    wrong
}

pub(super) fn shadowed(facts: &Facts) -> Vec<Finding> {
    const CHECK: Check = Check::HostsShadowed;
    let hosts = match &facts.hosts {
        Known::Seen(hosts) => hosts,
        Known::Hidden(cause) => return hidden(CHECK, facts, cause),
    };
    let root = &facts.registry_config_path;
    let expected = expected(facts, hosts);
    if !expected.iter().any(|name| name == WILDCARD) {
        return vec![Finding::ok(
            CHECK,
            "Each mirrored registry has its own directory, which nothing can shadow.",
        )];
    }
    let wrong: Vec<Finding> = hosts
        .iter()
        .filter(|(name, dir)| {
            is_registry(name) && !expected.contains(name) && !matches!(dir, HostsDir::Ours(_))
        })
        .map(|(name, _)| {
            let summary =
                format!("{root}/{name} takes precedence over _default, so what comes from {name} is not mirrored.");
            let advice = format!(
                "Remove the directory, or add https://{name} to --mirrored-registries (chart: spegel.mirroredRegistries)."
            );
            Finding::warning(CHECK, summary).about(name).advise(advice)
        })
        .collect();
    if wrong.is_empty() {
        return vec![Finding::ok(CHECK, "No registry has a directory that takes it away from _default.")];
    }
    wrong
}

/// A mirror that containerd asks before this one.
pub(super) fn other_mirror(facts: &Facts) -> Vec<Finding> {
    const CHECK: Check = Check::OtherMirror;
    let mut wrong = Vec::new();
    if let Known::Seen(settings) = &facts.containerd.settings
        && !settings.mirrors.is_empty()
    {
        let names = settings.mirrors.join(", ");
        let summary = format!(
            "containerd's configuration names mirrors for {names} (registry.mirrors, which is obsolete)."
        );
        let advice =
            "Move them to hosts.toml files and set config_path: containerd takes only one of the two.";
        wrong.push(Finding::error(CHECK, summary).advise(advice));
    }
    let hosts = match &facts.hosts {
        Known::Seen(hosts) => hosts,
        Known::Hidden(cause) if wrong.is_empty() => return hidden(CHECK, facts, cause),
        Known::Hidden(_) => return wrong,
    };
    let root = &facts.registry_config_path;
    let foreign = hosts.iter().filter(|(name, _)| is_registry(name)).filter_map(|(name, dir)| match dir {
        HostsDir::Foreign(others) => Some((name, others)),
        HostsDir::Ours(_) | HostsDir::Empty | HostsDir::Unreadable(_) => None,
    });
    for (name, others) in foreign {
        // A file without hosts only says how to reach the registry itself.
        let others: Vec<&str> =
            others.iter().map(String::as_str).filter(|host| !is_itself(host, name)).collect();
        if others.is_empty() {
            continue;
        }
        let summary =
            format!("{root}/{name}/hosts.toml sends containerd to {} instead of here.", others.join(", "));
        let advice = "Leave that to one of the two, or keep both with --prepend-existing (chart: spegel.prependExisting).";
        wrong.push(Finding::warning(CHECK, summary).about(name).advise(advice));
    }
    if wrong.is_empty() {
        return vec![Finding::ok(CHECK, "No other mirror stands before this one.")];
    }
    wrong
}

/// Whether a host is the registry that the directory is named after.
fn is_itself(host: &str, registry: &str) -> bool {
    let host = host.split_once("://").map_or(host, |(_, rest)| rest);
    let authority = host.split('/').next().unwrap_or_default();
    authority == registry || (registry == "docker.io" && authority == "registry-1.docker.io")
}
