//! Whether containerd goes through a proxy to reach the mirror, by the rules of Go's
//! `golang.org/x/net/http/httpproxy`, which containerd follows.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Check, Facts, Finding, Known};

pub(super) fn proxy(facts: &Facts) -> Vec<Finding> {
    const CHECK: Check = Check::Proxy;
    let variables = match &facts.proxies {
        Known::Seen(variables) => variables,
        Known::Hidden(cause) => {
            let summary = format!("Whether containerd uses a proxy is not visible from here: {cause}.");
            return vec![Finding::unknown(CHECK, summary).advise("Run `spegel check` on the node to know.")];
        }
    };
    let proxied = |url: &&str| variable_for(variables, url).is_some();
    if facts.targets.is_empty() && ["http://a.test", "https://a.test"].iter().any(proxied) {
        let summary = "containerd uses a proxy, and where it is told to find the mirror is not known.";
        return vec![Finding::unknown(CHECK, summary).advise("See to hosts_toml first.")];
    }
    let wrong: Vec<Finding> = facts
        .targets
        .iter()
        .filter_map(|target| {
            let variable = variable_for(variables, &target.url)?;
            let (_, host, _) = parts(&target.url)?;
            let summary = format!(
                "containerd asks the mirror {} through a proxy ({variable} in its environment).",
                target.url
            );
            let advice = format!(
                "Add {host} to NO_PROXY of containerd's service, then {}.",
                facts.distribution.restart()
            );
            Some(Finding::error(CHECK, summary).about(&target.url).advise(advice))
        })
        .collect();
    if wrong.is_empty() {
        return vec![Finding::ok(CHECK, "containerd asks the mirror without a proxy.")];
    }
    wrong
}

/// The variable that names a proxy for this URL, if one does.
fn variable_for(variables: &BTreeMap<String, String>, url: &str) -> Option<&'static str> {
    let first = |names: [&'static str; 2]| {
        let mut set = names.into_iter().filter_map(|name| Some((name, variables.get(name)?)));
        set.find(|(_, value)| !value.is_empty())
    };
    let (scheme, host, port) = parts(url)?;
    let names = if scheme == "https" { ["HTTPS_PROXY", "https_proxy"] } else { ["HTTP_PROXY", "http_proxy"] };
    let (name, _) = first(names)?;
    let exceptions = first(["NO_PROXY", "no_proxy"]).map_or("", |(_, value)| value.as_str());
    (!is_exempt(exceptions, host, port)).then_some(name)
}

/// Scheme, host without brackets, and port of a URL.
fn parts(url: &str) -> Option<(&str, &str, u16)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let default = if scheme == "https" { 443 } else { 80 };
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        return Some((scheme, host, port.strip_prefix(':').map_or(Some(default), |port| port.parse().ok())?));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) => Some((scheme, host, port.parse().ok()?)),
        None => Some((scheme, authority, default)),
    }
}

/// Whether `NO_PROXY` or being at home makes an exception of this host.
fn is_exempt(exceptions: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let ip: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    exceptions.split(',').map(|exception| exception.trim().to_ascii_lowercase()).any(|exception| {
        if exception.is_empty() {
            return false;
        }
        if exception == "*" {
            return true;
        }
        if let Some((network, bits)) = exception.split_once('/') {
            return ip
                .zip(network.parse().ok())
                .zip(bits.parse().ok())
                .is_some_and(|((ip, net), bits)| is_within(ip, net, bits));
        }
        let (name, wanted_port) = match exception.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((v6, rest)) => (v6, rest.strip_prefix(':')),
            // More than one colon is an address without a port.
            None => match exception.split_once(':') {
                Some((name, port)) if !port.contains(':') => (name, Some(port)),
                Some(_) | None => (exception.as_str(), None),
            },
        };
        if wanted_port.is_some_and(|wanted| wanted.parse() != Ok(port)) {
            return false;
        }
        if let Ok(wanted) = name.parse::<IpAddr>() {
            return ip == Some(wanted);
        }
        // `*.domain` and `.domain` are what is below it, `domain` is itself as well.
        let below = name.strip_prefix('*').unwrap_or(name);
        match below.strip_prefix('.') {
            Some(_) => host.ends_with(below),
            None => host == below || host.ends_with(&format!(".{below}")),
        }
    })
}

/// Whether an address lies in a network.
fn is_within(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    let equal = |one: u128, other: u128, width: u32| {
        bits <= width && (bits == 0 || (one ^ other) >> (width - bits) == 0)
    };
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => equal(u32::from(ip).into(), u32::from(network).into(), 32),
        (IpAddr::V6(ip), IpAddr::V6(network)) => equal(ip.into(), network.into(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        for (exceptions, host, port, expected) in [
            ("", "10.0.0.1", 30020, false),
            ("", "localhost", 1, true),
            ("", "127.0.0.7", 1, true),
            ("", "::1", 1, true),
            ("*", "10.0.0.1", 1, true),
            ("10.0.0.1", "10.0.0.1", 1, true),
            ("10.0.0.1", "10.0.0.11", 1, false),
            ("a.test, 10.0.0.0/8", "10.9.8.7", 1, true),
            ("10.0.0.0/8", "11.0.0.1", 1, false),
            ("10.0.0.0/0", "11.0.0.1", 1, true),
            ("10.0.0.0/33", "10.0.0.0", 1, false),
            ("fd00::/8", "fd99::1", 1, true),
            ("fd00::/8", "10.0.0.1", 1, false),
            ("fd99::1", "fd99::1", 1, true),
            ("[fd99::1]:80", "fd99::1", 81, false),
            ("10.0.0.1:30020", "10.0.0.1", 30020, true),
            ("10.0.0.1:30021", "10.0.0.1", 30020, false),
            ("mirror.test", "mirror.test", 1, true),
            ("mirror.test", "a.mirror.test", 1, true),
            ("mirror.test", "amirror.test", 1, false),
            (".mirror.test", "mirror.test", 1, false),
            (".mirror.test", "a.mirror.test", 1, true),
            ("*.mirror.test", "a.mirror.test", 1, true),
            ("MIRROR.test", "mirror.TEST.", 1, true),
            (" , ,", "10.0.0.1", 1, false),
        ] {
            assert_eq!(is_exempt(exceptions, host, port), expected, "NO_PROXY={exceptions:?} {host}:{port}");
        }
    }

    #[test]
    fn urls_are_taken_apart() {
        assert_eq!(parts("http://10.0.0.1:30020"), Some(("http", "10.0.0.1", 30020)));
        assert_eq!(parts("http://[fd00::1]:30020"), Some(("http", "fd00::1", 30020)));
        assert_eq!(parts("https://[fd00::1]/v2"), Some(("https", "fd00::1", 443)));
        assert_eq!(parts("http://mirror.test"), Some(("http", "mirror.test", 80)));
        for text in ["mirror.test", "http://a:b", "http://[fd00::1"] {
            assert_eq!(parts(text), None, "{text}");
        }
    }

    #[test]
    fn variable_of_the_scheme_counts_and_upper_case_comes_first() {
        let set = |list: &[(&str, &str)]| {
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let lower = set(&[("http_proxy", "http://proxy:1")]);
        assert_eq!(variable_for(&lower, "http://10.0.0.1:1"), Some("http_proxy"));
        assert_eq!(variable_for(&lower, "https://10.0.0.1:1"), None);
        let both =
            set(&[("HTTP_PROXY", "a"), ("http_proxy", "b"), ("NO_PROXY", ""), ("no_proxy", "10.0.0.1")]);
        assert_eq!(variable_for(&both, "http://10.0.0.1:1"), None);
        assert_eq!(variable_for(&both, "http://10.0.0.2:1"), Some("HTTP_PROXY"));
    }
}
