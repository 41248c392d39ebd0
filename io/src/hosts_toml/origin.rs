//! Scheme, host and port of a registry or mirror. Pure parsing.

use std::fmt;

use http::uri::Authority;

/// `http[s]://HOST[:PORT]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) scheme: &'static str,
    /// With the port where one is given; also the name of a registry's directory.
    pub(super) host: String,
}

impl Origin {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const SHAPE: &str = "expected http[s]://HOST[:PORT]";
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| format!("the scheme is missing; {SHAPE}"))?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => "http",
            "https" => "https",
            _ => return Err(format!("the scheme is neither http nor https; {SHAPE}")),
        };
        if rest.contains('@') {
            return Err(format!("a user name is not supported; {SHAPE}"));
        }
        if rest.contains(['?', '#']) {
            return Err(format!("a query is not supported; {SHAPE}"));
        }
        if rest.contains('/') {
            return Err(format!("a path is not supported, not even a single slash; {SHAPE}"));
        }
        // The host becomes the name of a directory, between quotes in TOML.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        let authority: Authority = match rest.parse() {
            Ok(authority) if rest.chars().all(plain) && rest.starts_with(|c: char| c != '.' && c != '_') => {
                authority
            }
            Ok(_) | Err(_) => return Err(format!("{rest:?} is not a host; {SHAPE}")),
        };
        let without_port = authority.host().len() == rest.len();
        if authority.host().is_empty() || !(without_port || authority.port_u16().is_some()) {
            return Err(format!("{rest:?} is not a host; {SHAPE}"));
        }
        Ok(Self { scheme, host: rest.to_owned() })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)
    }
}

/// Puts the brackets around an IPv6 address that are missing where the chart joins `status.hostIP`
/// and a port: what follows the last colon is the port.
pub(super) fn with_brackets(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    match rest.rsplit_once(':') {
        Some((host, port)) if host.contains(':') && !rest.contains('[') => {
            format!("{scheme}://[{host}]:{port}")
        }
        Some(_) | None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_taken_verbatim() {
        for text in ["https://docker.io", "http://foo.bar:5000", "http://[fd00::1]:30020", "http://127.0.0.1"]
        {
            assert_eq!(Origin::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "docker.io",
            "ftp://docker.io",
            "https://",
            "https://docker.io/",
            "https://docker.io/v2",
            "https://docker.io?a",
            "https://a@docker.io",
            "https://..",
            "https://.spegel-a",
            "https://_backup",
            "https://a'b",
            "https://a b",
            "https://a:b",
            "https://:80",
            "https://a:99999",
            "http://fd00::1:30020",
        ] {
            assert!(Origin::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn brackets_are_added_where_they_are_missing() {
        assert_eq!(with_brackets("http://fd00::1:30020"), "http://[fd00::1]:30020");
        for text in ["http://[fd00::1]:30020", "http://10.0.0.1:30020", "http://a", "nonsense:::"] {
            assert_eq!(with_brackets(text), text);
        }
    }
}
