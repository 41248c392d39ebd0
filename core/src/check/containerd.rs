//! Whether containerd can be used: its version and its settings.

use super::{Check, ContentStore, Facts, Finding, Known, Settings, SettingsSource, StoreDir};

/// The oldest containerd that is supported, as (major, minor): older ones know no `hosts.toml` for all
/// registries that the kubelet's pulls use, or are untested.
pub const VERSION_MIN: (u64, u64) = (1, 6);

/// From here on the CRI plugin is several, which do not tell their settings, and the one for images has a
/// section of its own.
pub const VERSION_SPLIT_CRI: (u64, u64) = (2, 0);

/// From here on the CRI plugin pulls by the transfer service, unless a setting rules that out.
const VERSION_TRANSFER: (u64, u64) = (2, 1);

pub(super) fn reachable(facts: &Facts) -> Finding {
    const CHECK: Check = Check::Containerd;
    let containerd = &facts.containerd;
    let socket = &containerd.socket;
    let version = match &containerd.version {
        Ok(version) => version,
        Err(cause) => {
            return Finding::error(CHECK, format!("containerd does not answer at {socket}: {cause}.")).advise(
                "Start containerd, or name its socket with --containerd-sock (chart: spegel.containerdSock).",
            );
        }
    };
    let (least_major, least_minor) = VERSION_MIN;
    match major_minor(version) {
        None => {
            Finding::unknown(CHECK, format!("containerd answers, but its version {version:?} tells nothing."))
        }
        Some(version_number) if version_number < VERSION_MIN => Finding::error(
            CHECK,
            format!("containerd {version} is too old: {least_major}.{least_minor} is the oldest that works."),
        )
        .advise("Upgrade containerd."),
        Some(_) => Finding::ok(CHECK, format!("containerd {version} answers at {socket}.")),
    }
}

/// Major and minor of a version such as `1.6.20~ds1`, `v2.1.9` or `2.0.0-rc.1`.
#[must_use]
pub fn major_minor(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let leading = |text: &str| {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..digits].parse().ok()
    };
    Some((leading(numbers.next()?)?, leading(numbers.next()?)?))
}

fn version(facts: &Facts) -> Option<(u64, u64)> {
    major_minor(facts.containerd.version.as_ref().ok()?)
}

pub(super) fn config_path(facts: &Facts) -> Finding {
    const CHECK: Check = Check::ConfigPath;
    let settings = match &facts.containerd.settings {
        Known::Seen(settings) => settings,
        Known::Hidden(cause) => return unseen(CHECK, "config_path", cause),
    };
    let (ours, theirs) = (facts.registry_config_path.trim_end_matches('/'), settings.config_path.as_str());
    let source = source(settings);
    let set = format!("Set config_path = \"{ours}\" {}", where_to_set(facts, "registry"));
    if theirs.is_empty() {
        let ignored = if settings.ignored_sections {
            " (what is set under the plugin's name from before 2.0 does not count in a file of version 3)"
        } else if settings.mirrors.is_empty() {
            ""
        } else {
            " (the obsolete registry.mirrors is used instead)"
        };
        let summary =
            format!("containerd reads no mirror configuration: config_path is not set{ignored}{source}.");
        return Finding::error(CHECK, summary).advise(set);
    }
    let dirs: Vec<&str> = theirs.split(':').map(|dir| dir.trim_end_matches('/')).collect();
    if !dirs.contains(&ours) {
        let summary = format!("containerd reads {theirs}, but hosts.toml is written to {ours}{source}.");
        return Finding::error(CHECK, summary).advise(format!(
            "{set} Or have Spegel write there, with --containerd-registry-config-path={} (chart: spegel.containerdRegistryConfigPath).",
            dirs[0],
        ));
    }
    let transfers = version(facts).is_some_and(|version| version >= VERSION_TRANSFER);
    if dirs.len() > 1 && transfers && !settings.local_image_pull {
        let summary = format!(
            "containerd takes config_path {theirs:?} for one directory, which does not exist: its transfer service knows no lists{source}."
        );
        return Finding::error(CHECK, summary).advise(set);
    }
    Finding::ok(CHECK, format!("containerd reads {ours}{source}."))
}

pub(super) fn unpacked_layers(facts: &Facts) -> Finding {
    const CHECK: Check = Check::UnpackedLayers;
    let settings = match &facts.containerd.settings {
        Known::Seen(settings) => settings,
        Known::Hidden(cause) => return unseen(CHECK, "discard_unpacked_layers", cause),
    };
    let source = source(settings);
    if settings.discard_unpacked_layers {
        let summary = format!(
            "containerd throws layers away once they are unpacked (discard_unpacked_layers = true), so this node has none to share{source}."
        );
        return Finding::error(CHECK, summary).advise(format!(
            "Set discard_unpacked_layers = false {} What was pulled before has to be pulled again to be shared.",
            where_to_set(facts, "layers")
        ));
    }
    Finding::ok(CHECK, format!("containerd keeps unpacked layers{source}."))
}

fn unseen(check: Check, setting: &str, cause: &str) -> Finding {
    Finding::unknown(check, format!("{setting} of containerd is not visible from here: {cause}."))
        .advise("Run `spegel check` on the node to know.")
}

fn source(settings: &Settings) -> String {
    match &settings.source {
        SettingsSource::Running => String::new(),
        SettingsSource::File(file) => format!(", says {file}"),
    }
}

/// Where a setting goes, and what makes it count; ends its sentence.
fn where_to_set(facts: &Facts, setting: &str) -> String {
    let split = version(facts).is_none_or(|version| version >= VERSION_SPLIT_CRI);
    let section = match (setting, split) {
        ("registry", true) => "[plugins.'io.containerd.cri.v1.images'.registry]",
        ("registry", false) => "[plugins.\"io.containerd.grpc.v1.cri\".registry]",
        (_, true) => "[plugins.'io.containerd.cri.v1.images']",
        (_, false) => "[plugins.\"io.containerd.grpc.v1.cri\".containerd]",
    };
    let (place, restart) = (facts.distribution.settings_place(), facts.distribution.restart());
    format!("under {section} in {place}, then {restart}.")
}

pub(super) fn content_path(facts: &Facts) -> Finding {
    const CHECK: Check = Check::ContentPath;
    let ContentStore { path, dir, sample } = &facts.content;
    let advice = match facts.containerd.content_root.as_deref() {
        Some(root) if root.trim_end_matches('/') != path.trim_end_matches('/') => {
            format!("containerd says that it is {root}: set --containerd-content-path (chart: spegel.containerdContentPath) to that.")
        }
        Some(_) => "That is where containerd keeps it, so it is this process that cannot see it: mount the directory.".to_owned(),
        None => "Set --containerd-content-path (chart: spegel.containerdContentPath) to io.containerd.content.v1.content below containerd's root.".to_owned(),
    };
    let wrong = |summary: String| Finding::error(CHECK, summary).advise(advice.clone());
    match dir {
        StoreDir::Missing => wrong(format!("There is no content store at {path}.")),
        StoreDir::NotAStore => {
            wrong(format!("{path} is no content store: neither blobs nor ingest is in it."))
        }
        StoreDir::Unreadable(cause) => wrong(format!("The content store {path} cannot be read: {cause}.")),
        StoreDir::Store => match sample {
            Some((looked, 0)) if *looked > 0 => {
                wrong(format!("{path} is some other content store: nothing that containerd has is there."))
            }
            Some((looked, present)) if present < looked => Finding::warning(
                CHECK,
                format!("Of {looked} blobs that containerd has, only {present} are in {path}."),
            )
            .advise("Look for errors of the disk; `ctr content ls` lists what containerd thinks it has."),
            Some((0, _)) => Finding::unknown(
                CHECK,
                format!("{path} is a content store; containerd has nothing yet to look for in it."),
            ),
            Some(_) => Finding::ok(CHECK, format!("Content is read from {path}.")),
            None => Finding::unknown(
                CHECK,
                format!(
                    "{path} is a content store; whether it is containerd's cannot be said while that does not answer."
                ),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_every_packager_are_read() {
        for (text, expected) in [
            ("1.6.20~ds1", Some((1, 6))),
            ("v2.1.9", Some((2, 1))),
            ("2.0.0-rc.1", Some((2, 0))),
            ("1.7.24+unknown", Some((1, 7))),
            ("2.1-k3s1", Some((2, 1))),
            ("", None),
            ("2", None),
            ("unknown", None),
            ("2.x", None),
        ] {
            assert_eq!(major_minor(text), expected, "{text:?}");
        }
    }
}
