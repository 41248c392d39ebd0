//! Content digests (OCI image-spec, "Digests"): `algorithm:hex`.

use std::{fmt, str::FromStr};

use sha2::Digest as _;

/// The registered algorithms that containerd stores content under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// `sha256`
    Sha256,
    /// `sha384`
    Sha384,
    /// `sha512`
    Sha512,
}

impl Algorithm {
    /// Every algorithm, in order of name.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name, which is also the directory under `blobs/` in containerd's content store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }
}

/// The digest of some content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// `sha256:` and 64 hexadecimal digits.
    Sha256([u8; 32]),
    /// `sha384:` and 96 hexadecimal digits.
    Sha384([u8; 48]),
    /// `sha512:` and 128 hexadecimal digits.
    Sha512([u8; 64]),
}

/// Why a text is not a [`Digest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `:` between algorithm and value.
    #[error("digest has no algorithm: expected sha256:<64 hexadecimal digits>")]
    NoAlgorithm,
    /// The algorithm is not one that containerd stores content under.
    #[error("digest algorithm is not sha256, sha384 or sha512")]
    UnknownAlgorithm,
    /// The value is not lower-case hexadecimal of the algorithm's length.
    #[error("digest value is not lower-case hexadecimal of the algorithm's length")]
    InvalidValue,
}

impl Digest {
    /// The SHA-256 digest of `content`.
    #[must_use]
    pub fn sha256_of(content: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(content).into())
    }

    /// Whether this is the digest of `content`.
    #[must_use]
    pub fn matches(&self, content: &[u8]) -> bool {
        match self {
            Self::Sha256(value) => sha2::Sha256::digest(content)[..] == value[..],
            Self::Sha384(value) => sha2::Sha384::digest(content)[..] == value[..],
            Self::Sha512(value) => sha2::Sha512::digest(content)[..] == value[..],
        }
    }

    /// Reads the value of a digest whose algorithm is known, as in the content store's file names.
    ///
    /// # Errors
    ///
    /// [`DigestError::InvalidValue`] unless `hex` is lower-case and of the right length.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Result<Self, DigestError> {
        match algorithm {
            Algorithm::Sha256 => decode(hex).map(Self::Sha256),
            Algorithm::Sha384 => decode(hex).map(Self::Sha384),
            Algorithm::Sha512 => decode(hex).map(Self::Sha512),
        }
    }

    /// The algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha384(_) => Algorithm::Sha384,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The value, as lower-case hexadecimal.
    #[must_use]
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha384(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        };
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
        bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
    }
}

fn decode<const N: usize>(hex: &str) -> Result<[u8; N], DigestError> {
    fn nibble(digit: u8) -> Result<u8, DigestError> {
        match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(DigestError::InvalidValue),
        }
    }
    if hex.len() != 2 * N {
        return Err(DigestError::InvalidValue);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(bytes)
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::NoAlgorithm)?;
        let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == name);
        Self::from_hex(algorithm.ok_or(DigestError::UnknownAlgorithm)?, hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_algorithm_round_trips() {
        for (algorithm, length) in [("sha256", 64), ("sha384", 96), ("sha512", 128)] {
            let text = format!("{algorithm}:{}", "0a".repeat(length / 2));
            assert_eq!(text.parse::<Digest>().map(|d| d.to_string()), Ok(text));
        }
    }

    #[test]
    fn malformed_digests_are_refused() {
        let cases = [
            ("", DigestError::NoAlgorithm),
            ("sha256", DigestError::NoAlgorithm),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", DigestError::UnknownAlgorithm),
            ("SHA256:00", DigestError::UnknownAlgorithm),
            ("sha256:", DigestError::InvalidValue),
            ("sha256:00", DigestError::InvalidValue),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
        let upper = format!("sha256:{}", "0A".repeat(32));
        assert_eq!(upper.parse::<Digest>(), Err(DigestError::InvalidValue));
        let long = format!("sha256:{}", "00".repeat(33));
        assert_eq!(long.parse::<Digest>(), Err(DigestError::InvalidValue));
    }

    #[test]
    fn content_matches_its_own_digest_alone() {
        // FIPS 180-2, "abc".
        let sha384 = "sha384:cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed\
                      8086072ba1e7cc2358baeca134c825a7";
        let sha512 = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                      2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        let sha256 = Digest::sha256_of(b"abc");
        for digest in [Ok(sha256), sha384.parse(), sha512.parse()] {
            let digest: Digest = digest.expect("well-formed");
            assert!(digest.matches(b"abc") && !digest.matches(b"abd"), "{digest}");
        }
    }

    #[test]
    fn empty_content_has_the_well_known_digest() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::sha256_of(b"").to_string(), empty);
    }
}
