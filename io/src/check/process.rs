//! What the process table tells: containerd's environment and command line, and those of the registry
//! that runs beside a `spegel check`.

use std::{collections::BTreeMap, ffi::OsString, fs, os::unix::ffi::OsStringExt as _, path::Path};

use spegel_core::check::Known;

/// The variables that name proxies; no other is kept.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];

/// Where containerd looks for its configuration unless told otherwise.
const CONFIG_FILE: &str = "/etc/containerd/config.toml";

/// The proxies in the environment of a process.
pub(super) fn proxies(pid: i32) -> Known<BTreeMap<String, String>> {
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(environment) => Known::Seen(proxies_in(&environment)),
        Err(error) => {
            Known::Hidden(format!("the environment of containerd's process cannot be read: {error}"))
        }
    }
}

fn proxies_in(environment: &[u8]) -> BTreeMap<String, String> {
    let variables = environment.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
    let pairs = variables.filter_map(|entry| entry.split_once('='));
    pairs
        .filter(|(name, _)| PROXY_VARIABLES.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The configuration file of a containerd that runs.
pub(super) fn config_file(pid: i32) -> Option<String> {
    config_file_in(&arguments(&fs::read(format!("/proc/{pid}/cmdline")).ok()?))
}

fn config_file_in(arguments: &[OsString]) -> Option<String> {
    let mut arguments = arguments.iter().skip(1).filter_map(|argument| argument.to_str());
    while let Some(argument) = arguments.next() {
        let name = argument.trim_start_matches('-');
        if name.len() == argument.len() {
            continue;
        }
        let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
        if matches!(name, "config" | "c") {
            return value.or_else(|| arguments.next()).map(str::to_owned);
        }
    }
    Some(CONFIG_FILE.to_owned())
}

/// The command line of the registry that runs in this network namespace, which in a pod is that of the
/// container; without the program's name.
#[must_use]
pub fn running_registry() -> Option<Vec<OsString>> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let here = namespace("self")?;
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids.into_iter().map(|pid| pid.to_string()).find_map(|pid| {
        let arguments = arguments(&fs::read(format!("/proc/{pid}/cmdline")).ok()?);
        (is_registry(&arguments) && namespace(&pid).as_ref() == Some(&here)).then_some(arguments)
    })
}

fn is_registry(arguments: &[OsString]) -> bool {
    let program = arguments.first().and_then(|program| Path::new(program).file_name());
    program.is_some_and(|name| name == "spegel")
        && arguments.iter().skip(1).any(|argument| argument == "registry")
}

fn arguments(line: &[u8]) -> Vec<OsString> {
    let line = line.strip_suffix(b"\0").unwrap_or(line);
    line.split(|byte| *byte == 0).map(|argument| OsString::from_vec(argument.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_file_is_the_one_named_on_the_command_line() {
        for (line, expected) in [
            ("containerd", CONFIG_FILE),
            ("containerd\0-c\0/a.toml\0--address\0/b", "/a.toml"),
            ("containerd\0--config\0/a.toml", "/a.toml"),
            ("containerd\0-l\0debug\0--config=/a.toml", "/a.toml"),
            ("/usr/bin/containerd\0-c=/a.toml", "/a.toml"),
        ] {
            assert_eq!(config_file_in(&arguments(line.as_bytes())).as_deref(), Some(expected), "{line:?}");
        }
    }

    #[test]
    fn proxies_are_all_that_is_kept_of_an_environment() {
        let kept = proxies_in(b"PATH=/bin\0HTTP_PROXY=http://a\0TOKEN=secret\0no_proxy=10.0.0.1,a=b\0odd");
        let expected = [("HTTP_PROXY", "http://a"), ("no_proxy", "10.0.0.1,a=b")];
        assert_eq!(kept, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn registry_is_told_from_other_processes() {
        let is = |line: &str| is_registry(&arguments(line.as_bytes()));
        assert!(is("/spegel\0registry\0--router-addr=:5001\0"));
        assert!(is("spegel\0--log-level=DEBUG\0registry\0"));
        assert!(!is("/spegel\0check\0"));
        assert!(!is("vi\0registry\0"));
        assert!(!is(""));
    }
}
