//! HTTP Basic authentication (RFC 7617) with the one user that the operator configured.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header};
use spegel_core::oci::Digest;
use subtle::ConstantTimeEq;

/// The user name and password that containerd and other nodes must send.
#[derive(Clone)]
pub struct Credentials {
    header: HeaderValue,
    hash: [u8; 32],
}

impl Credentials {
    /// Credentials of a user.
    #[must_use]
    pub fn new(username: &[u8], password: &[u8]) -> Self {
        let pair = [username, b":", password].concat();
        let header = format!("Basic {}", STANDARD.encode(&pair));
        let mut header = HeaderValue::try_from(header).expect("base64 is visible ASCII");
        header.set_sensitive(true);
        Self { header, hash: hash(&pair) }
    }

    /// The `Authorization` header to send to other nodes.
    pub(crate) const fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// Whether a request carries these credentials. Takes the same time for every wrong pair:
    /// hashes are compared, so that not even the length can be measured.
    pub(crate) fn are_in(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(header::AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
        let encoded = match sent.split_at_checked(6) {
            Some((scheme, encoded)) if scheme.eq_ignore_ascii_case(b"basic ") => encoded,
            Some(_) | None => return false,
        };
        let pair = STANDARD.decode(encoded.trim_ascii()).unwrap_or_default();
        hash(&pair).ct_eq(&self.hash).into()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// SHA-256 of a secret, to be compared in constant time.
pub(crate) fn hash(secret: &[u8]) -> [u8; 32] {
    let Digest::Sha256(hash) = Digest::sha256_of(secret) else {
        unreachable!("sha256_of gives a SHA-256 digest")
    };
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(header: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, header.parse().unwrap());
        Credentials::new(b"user", b"pass:word").are_in(&headers)
    }

    #[test]
    fn only_the_configured_user_is_let_in() {
        assert!(accepts(&format!("Basic {}", STANDARD.encode("user:pass:word"))));
        assert!(accepts(&format!("basic  {}", STANDARD.encode("user:pass:word"))));
        assert!(!accepts(&format!("Basic {}", STANDARD.encode("user:pass:worx"))));
        assert!(!accepts(&format!("Basic {}", STANDARD.encode("user:"))));
        assert!(!accepts(&format!("Bearer {}", STANDARD.encode("user:pass:word"))));
        assert!(!accepts("Basic ***"));
        assert!(!accepts("Basic"));
        assert!(!accepts(""));
        assert!(!Credentials::new(b"user", b"").are_in(&HeaderMap::new()));
    }

    #[test]
    fn password_does_not_show_in_debug_output() {
        assert!(!format!("{:?}", Credentials::new(b"user", b"secret")).contains("secret"));
    }
}
