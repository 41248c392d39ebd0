//! Decides what may be mirrored, by the operator's words: which registries, and which names not.
//! Knows nothing of what is present; the inventory asks it what to announce, the registry
//! what to answer.

use std::{collections::BTreeSet, sync::Arc};

use regex::Regex;

/// Registry values that stand for all registries.
const WILDCARDS: [&str; 2] = ["_default", "*"];

/// Largest compiled filter in bytes. Smaller and long alternations are refused; larger
/// and one mistyped repetition takes the node's memory.
const REGEX_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What may be mirrored. Clones share one set.
#[derive(Clone, Debug, Default)]
pub struct Filters(Arc<Rules>);

#[derive(Debug, Default)]
struct Rules {
    /// Hosts with ports; `None` is all.
    registries: Option<BTreeSet<String>>,
    excluded: Vec<Regex>,
}

/// Why filters make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A mirrored registry is not a URL of a registry.
    #[error(
        "mirrored registry {value:?} {problem}: write it like https://registry.example:5000, or _default for all"
    )]
    Registry {
        /// The value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A registry filter is not a regular expression.
    #[error(
        "registry filter {value:?} is not a regular expression ({problem}): names that match it are not mirrored, write it like ^docker\\.io/private/"
    )]
    Regex {
        /// The value.
        value: String,
        /// What is wrong with it, in one line.
        problem: String,
    },
}

impl Filters {
    /// The filters of `--mirrored-registries` and `--registry-filters`. No registries, `_default`
    /// or `*` mean all of them; a name that matches any filter is excluded.
    ///
    /// # Errors
    ///
    /// [`FilterError`] names the first value that makes no sense.
    pub fn new(mirrored_registries: &[String], registry_filters: &[String]) -> Result<Self, FilterError> {
        let mut hosts = BTreeSet::new();
        let mut all = mirrored_registries.is_empty();
        for value in mirrored_registries {
            if WILDCARDS.contains(&value.as_str()) {
                all = true;
                continue;
            }
            let host = registry_host(value)
                .map_err(|problem| FilterError::Registry { value: value.clone(), problem })?;
            hosts.insert(host.to_owned());
        }
        let excluded = registry_filters.iter().map(|value| compile(value)).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Rules { registries: (!all).then_some(hosts), excluded })))
    }

    /// Whether a name may be mirrored: `registry/repository`, or with its tag if there is one.
    #[must_use]
    pub fn allows(&self, registry: &str, repository: &str, tag: Option<&str>) -> bool {
        if self.0.registries.as_ref().is_some_and(|registries| !registries.contains(registry)) {
            return false;
        }
        if self.0.excluded.is_empty() {
            return true;
        }
        let name = match tag {
            Some(tag) => format!("{registry}/{repository}:{tag}"),
            None => format!("{registry}/{repository}"),
        };
        !self.0.excluded.iter().any(|excluded| excluded.is_match(&name))
    }

    /// Whether every name is allowed, so that nobody need ask.
    #[must_use]
    pub fn is_unrestricted(&self) -> bool {
        self.0.registries.is_none() && self.0.excluded.is_empty()
    }
}

/// The host and port of a registry's URL, verbatim: images are named by it.
fn registry_host(url: &str) -> Result<&str, &'static str> {
    let (scheme, host) = url.split_once("://").ok_or("has no scheme")?;
    if !matches!(scheme, "http" | "https") {
        return Err("has a scheme other than http and https");
    }
    if host.contains('?') {
        return Err("has a query");
    }
    if host.contains('#') {
        return Err("has a fragment");
    }
    if host.contains('@') {
        return Err("has a user");
    }
    if host.contains('/') {
        return Err("has a path");
    }
    let name = match host.rsplit_once(':') {
        // The colons of an IPv6 address are in brackets.
        Some((name, port)) if !port.contains(']') => {
            port.parse::<u16>().map_err(|_| "has a port that is not a number up to 65535")?;
            name
        }
        Some(_) | None => host,
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_valid = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(is_host),
    };
    if is_valid { Ok(host) } else { Err("has no valid host") }
}

fn compile(value: &str) -> Result<Regex, FilterError> {
    regex::RegexBuilder::new(value).size_limit(REGEX_BYTES_MAX).build().map_err(|error| {
        // The error draws a caret below the expression; its last line says what is wrong.
        let text = error.to_string();
        let problem = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        FilterError::Regex { value: value.to_owned(), problem }
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    fn filters(registries: &[&str], excluded: &[&str]) -> Result<Filters, FilterError> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Filters::new(&owned(registries), &owned(excluded))
    }

    #[test]
    fn nothing_configured_allows_everything() {
        let lists: [&[&str]; 4] = [&[], &["_default"], &["*"], &["https://a.test", "*"]];
        for registries in lists {
            let filters = filters(registries, &[]).expect("filters");
            assert!(filters.is_unrestricted(), "{registries:?}");
            assert!(filters.allows("any.test", "a", None));
        }
        assert!(Filters::default().is_unrestricted());
        assert!(Filters::default().allows("any.test", "a", Some("b")));
    }

    #[test]
    fn only_mirrored_registries_are_allowed() {
        let filters = filters(&["https://docker.io", "http://r.test:5000", "https://[::1]:5000"], &[])
            .expect("filters");
        assert!(!filters.is_unrestricted());
        assert!(filters.allows("docker.io", "library/nginx", None));
        assert!(filters.allows("r.test:5000", "a", Some("b")));
        assert!(filters.allows("[::1]:5000", "a", None));
        for registry in ["registry-1.docker.io", "r.test", "r.test:5001", "Docker.io", ""] {
            assert!(!filters.allows(registry, "a", None), "{registry}");
        }
    }

    #[test]
    fn matching_names_are_excluded() {
        let filters = filters(&[], &[r"^docker\.io/private/", ":latest$"]).expect("filters");
        assert!(!filters.is_unrestricted());
        assert!(!filters.allows("docker.io", "private/a", None));
        assert!(!filters.allows("docker.io", "private/a", Some("1")));
        assert!(filters.allows("dockerxio", "private/a", None));
        assert!(filters.allows("docker.io", "a", None));
        assert!(filters.allows("docker.io", "a", Some("1")));
        assert!(!filters.allows("docker.io", "a", Some("latest")));
    }

    #[test]
    fn malformed_registries_are_named() {
        let cases = [
            ("docker.io", "has no scheme"),
            ("", "has no scheme"),
            ("ftp://docker.io", "has a scheme other than http and https"),
            ("https://docker.io/", "has a path"),
            ("https://docker.io/v2", "has a path"),
            ("https://docker.io?a=b", "has a query"),
            ("https://docker.io#a", "has a fragment"),
            ("https://user:secret@docker.io", "has a user"),
            ("https://", "has no valid host"),
            ("https://a b", "has no valid host"),
            ("https://:5000", "has no valid host"),
            ("https://::1", "has no valid host"),
            ("https://a:b", "has a port that is not a number up to 65535"),
            ("https://a:65536", "has a port that is not a number up to 65535"),
        ];
        for (value, problem) in cases {
            let error = filters(&["https://ok.test", value], &[]).expect_err(value);
            assert_eq!(error, FilterError::Registry { value: value.to_owned(), problem });
            assert!(error.to_string().contains("https://registry.example:5000"), "{error}");
        }
    }

    #[test]
    fn malformed_regexes_are_named_in_one_line() {
        for value in ["(", "a{9,1}", "[z-a]", "(?=a)", "((a{1000}){1000}){1000}"] {
            let error = filters(&[], &["ok", value]).expect_err(value).to_string();
            assert!(error.contains(&format!("{value:?}")) && !error.contains('\n'), "{error}");
        }
    }

    /// A filter that can be read without a regular expression.
    #[derive(Clone, Debug)]
    struct Excluded {
        text: String,
        from_start: bool,
        to_end: bool,
    }

    impl Excluded {
        fn regex(&self) -> String {
            let start = if self.from_start { "^" } else { "" };
            let end = if self.to_end { "$" } else { "" };
            format!("{start}{}{end}", regex::escape(&self.text))
        }

        fn matches(&self, name: &str) -> bool {
            match (self.from_start, self.to_end) {
                (true, true) => name == self.text,
                (true, false) => name.starts_with(&self.text),
                (false, true) => name.ends_with(&self.text),
                (false, false) => name.contains(&self.text),
            }
        }
    }

    fn excluded() -> impl Strategy<Value = Excluded> {
        const TEXTS: [&str; 11] = ["", "a", "a.test", "a.test/", "atest", "/x", "x/y", ":1", "y:1", ":", "."];
        (select(&TEXTS), any::<bool>(), any::<bool>()).prop_map(|(text, from_start, to_end)| Excluded {
            text: text.to_owned(),
            from_start,
            to_end,
        })
    }

    proptest! {
        #[test]
        fn names_are_allowed_as_reading_the_words_one_by_one_allows_them(
            registries in vec(select(&["https://a.test", "http://b.test:5000", "https://[::1]", "_default", "*"]), 0..3),
            excluded in vec(excluded(), 0..3),
            names in vec((
                select(&["a.test", "b.test", "b.test:5000", "[::1]", "atest"]),
                select(&["x", "x/y", "a.test/x"]),
                proptest::option::of(select(&["1", "10", "y"])),
            ), 1..8),
        ) {
            let regexes: Vec<String> = excluded.iter().map(Excluded::regex).collect();
            let regexes: Vec<&str> = regexes.iter().map(String::as_str).collect();
            let filters = filters(&registries, &regexes).expect("they make sense");
            let all = registries.is_empty() || registries.iter().any(|registry| matches!(*registry, "_default" | "*"));
            prop_assert_eq!(filters.is_unrestricted(), all && excluded.is_empty());
            for (registry, repository, tag) in names {
                let listed = registries.iter().any(|url| url.ends_with(&format!("//{registry}")));
                let mut name = format!("{registry}/{repository}");
                if let Some(tag) = tag {
                    name = format!("{name}:{tag}");
                }
                let allowed = (all || listed) && !excluded.iter().any(|excluded| excluded.matches(&name));
                prop_assert_eq!(filters.allows(registry, repository, tag), allowed, "{}", name);
            }
        }
    }
}
