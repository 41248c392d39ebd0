//! What the directory knows content by.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::oci::Digest;

/// The name under which content is announced and looked up: SHA-256 of its text, which is
/// a digest (`sha256:<hex>`) or a tagged image name (`registry/repository:tag`).
///
/// One fixed size for both keeps messages and tables small, and names of private images
/// off the wire. It is also what the Go implementation hashes its DHT records under.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of a text that is already in canonical form.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// The key of a digest.
    #[must_use]
    pub fn of_digest(digest: &Digest) -> Self {
        Self::of(&digest.to_string())
    }

    /// A key received from a peer.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes that travel.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The first eight bytes: enough to tell keys apart in a trace.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the Go implementation's tests: record `1220` + these bytes.
    #[test]
    fn key_is_the_sha256_of_the_text() {
        let hex: String = Key::of("foobar").as_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "c3ab8ff13720e8ad9047dd39466b3c8974e592c2fa383d4a3960714caef0c4f2");
    }
}
