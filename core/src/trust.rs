//! Decides who belongs to the cluster: reads the secrets that its nodes share, signs what one node
//! asks another, and judges what it is asked. Pure: wall time is an argument, and the file with the
//! secrets is read by the shell. Called by the registry, the mirror and the router.
//!
//! A signature is made for one request to one node and for a short time, so that who sees one can
//! do no more with it than see again what it has just seen. The answer is signed as well: an
//! address may have passed from a node to a stranger, and nothing else shows who answers for a tag.

use std::{fmt, sync::Arc, time::Duration};

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{
    PeerId,
    oci::{Algorithm, Digest},
};

/// Fewest bytes of a secret. 32 random characters of hexadecimal, the weakest alphabet in use, are
/// 128 bits; shorter ones could be guessed from one signature seen, without asking a node. Longer
/// than need be only refuses secrets that would do.
const SECRET_BYTES_MIN: usize = 32;

/// Secrets that hold at once: the one that is used, and the one that came before or comes next.
/// With one, rotation would split the cluster; with more, one that leaked is easily forgotten here.
const SECRETS_MAX: usize = 2;

/// Largest file of secrets. Smaller and long secrets do not fit; larger and a wrong path makes a
/// node read whatever is there.
pub const SECRET_FILE_BYTES_MAX: usize = 4096;

/// How often to look whether the file of secrets has changed. Longer and each step of a rotation
/// has to wait longer for the last node; shorter and idle nodes read it for nothing.
pub const SECRET_REREAD_INTERVAL: Duration = Duration::from_secs(5);

/// How long a signature holds, and how far the clocks of two nodes may differ. Shorter and nodes
/// with clocks that are somewhat off refuse each other; longer and a request that was overheard can
/// be repeated for longer.
pub const SIGNATURE_LIFETIME: Duration = Duration::from_secs(60);

/// What the registry key signs, so that nothing signed for one purpose serves another.
const REQUEST_LABEL: &[u8] = b"spegel request v1\n";
const ANSWER_LABEL: &[u8] = b"spegel answer v1\n";

/// First word of every signature.
const VERSION: &str = "v1";

/// The user that containerd gives its password for, where nobody chose one.
pub const CLIENT_USERNAME: &str = "spegel";

/// Why a file holds no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It has no line that is not empty.
    #[error("it is empty: expected one secret per line, such as `openssl rand -hex 32` makes")]
    Empty,
    /// A secret could be guessed.
    #[error(
        "the secret in line {line} has {length} bytes, at least {SECRET_BYTES_MIN} are needed: `openssl rand -hex 32` \
         makes one"
    )]
    TooShort {
        /// Number of the line, from 1.
        line: usize,
        /// Its length in bytes.
        length: usize,
    },
    /// There are more than a rotation needs.
    #[error("it holds {count} secrets, at most {SECRETS_MAX} hold at once: leave out the oldest")]
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Both are the same, which is surely a mistake.
    #[error("both secrets are the same: leave out one, or put the new one in its place")]
    Repeated,
    /// It is larger than secrets are.
    #[error("it is larger than {SECRET_FILE_BYTES_MAX} bytes: is it another file?")]
    TooLarge,
}

/// Why a request does not come from a node of the cluster, as far as one can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stranger {
    /// It is not signed.
    Unsigned,
    /// The signature cannot be read.
    Malformed,
    /// It was signed with another secret, or for another node or request.
    Forged,
    /// It was signed by a node, but too long ago, or that node's clock is behind.
    Expired {
        /// How long ago it ended, in seconds.
        by_s: u64,
    },
    /// It was signed by a node whose clock is ahead.
    Early {
        /// How much too far its end lies ahead, in seconds.
        by_s: u64,
    },
}

impl Stranger {
    /// A short name for labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Malformed => "malformed_signature",
            Self::Forged => "wrong_signature",
            Self::Expired { .. } => "signature_expired",
            Self::Early { .. } => "signature_early",
        }
    }
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clocks = "are the clocks of both nodes synchronized?";
        match self {
            Self::Unsigned => f.write_str("the request is not signed: does the node that asks have the cluster secret?"),
            Self::Malformed => f.write_str("the request's signature cannot be read: does the node run another release?"),
            Self::Forged => f.write_str(
                "the request's signature is wrong: it was made with another cluster secret, or for another node",
            ),
            Self::Expired { by_s } => write!(f, "the request's signature expired {by_s} s ago: {clocks}"),
            Self::Early { by_s } => write!(f, "the request was signed {by_s} s too far in the future: {clocks}"),
        }
    }
}

/// What one node asks another over HTTP, as far as it is signed.
#[derive(Clone, Copy, Debug)]
pub struct NodeRequest<'a> {
    /// The node that is asked.
    pub peer: &'a PeerId,
    /// The HTTP method.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
}

/// The secrets that hold at the moment; the first is the one that is used.
#[derive(Clone)]
pub struct ClusterSecrets(Vec<Arc<Secret>>);

/// Keys of one secret, one for each purpose.
struct Secret {
    router: [u8; 32],
    registry: Hmac<Sha256>,
    client: [u8; 32],
    fingerprint: [u8; 32],
}

/// A request signed by this node, which knows the right answer's signature.
#[derive(Clone)]
pub struct SignedRequest {
    /// The signature, for a header.
    pub signature: String,
    exchange: Exchange,
}

/// A request of another node's, found to be so.
#[derive(Clone)]
pub struct VerifiedRequest(Exchange);

/// What both ends of a request share: the secret that they used, and what was signed.
#[derive(Clone)]
struct Exchange {
    secret: Arc<Secret>,
    mac: [u8; 32],
}

impl ClusterSecrets {
    /// Reads a file of secrets: one per line; empty lines and space around lines do not count.
    ///
    /// # Errors
    ///
    /// When there are none or too many, or when one is short.
    pub fn parse(text: &[u8]) -> Result<Self, SecretError> {
        if text.len() > SECRET_FILE_BYTES_MAX {
            return Err(SecretError::TooLarge);
        }
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let secrets: Vec<_> = (1..).zip(lines).filter(|(_, secret)| !secret.is_empty()).collect();
        if let Some((line, secret)) = secrets.iter().find(|(_, secret)| secret.len() < SECRET_BYTES_MIN) {
            return Err(SecretError::TooShort { line: *line, length: secret.len() });
        }
        match secrets[..] {
            [] => Err(SecretError::Empty),
            [(_, first), (_, second)] if first == second => Err(SecretError::Repeated),
            _ if secrets.len() > SECRETS_MAX => Err(SecretError::TooMany { count: secrets.len() }),
            _ => Ok(Self(secrets.iter().map(|(_, secret)| Arc::new(Secret::new(secret))).collect())),
        }
    }

    /// Keys of the connections between routers, for libp2p's private networks: the first to dial
    /// with, all to accept.
    pub fn router_keys(&self) -> impl Iterator<Item = [u8; 32]> {
        self.0.iter().map(|secret| secret.router)
    }

    /// Passwords of [`CLIENT_USERNAME`]: the first to give to containerd, all to accept.
    pub fn client_passwords(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|secret| hex(secret.client))
    }

    /// What people may see of each, to compare nodes: eight digits that say nothing of the secret.
    pub fn fingerprints(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|secret| hex(secret.fingerprint)[..8].to_owned())
    }

    /// Signs what this node asks another. `now_unix_ms` is wall time.
    ///
    /// # Panics
    ///
    /// Never: there is a secret.
    #[must_use]
    pub fn sign(&self, request: NodeRequest<'_>, now_unix_ms: u64) -> SignedRequest {
        let secret = self.0.first().expect("parsing gives one secret at least");
        let expiry_s = now_unix_ms / 1000 + SIGNATURE_LIFETIME.as_secs();
        let mac = secret.request_mac(request, expiry_s).finalize().into_bytes().into();
        let signature = format!("{VERSION} {expiry_s} {}", hex(mac));
        SignedRequest { signature, exchange: Exchange { secret: Arc::clone(secret), mac } }
    }

    /// Judges what this node is asked by another. `now_unix_ms` is wall time. Takes the same time
    /// for every wrong signature.
    ///
    /// # Errors
    ///
    /// When it is not signed with any of these secrets, or not for now. A clock is blamed only
    /// where the signature is right.
    pub fn verify(
        &self,
        request: NodeRequest<'_>,
        signature: Option<&[u8]>,
        now_unix_ms: u64,
    ) -> Result<VerifiedRequest, Stranger> {
        let signature = signature.ok_or(Stranger::Unsigned)?;
        let (expiry_s, mac) = read(signature).ok_or(Stranger::Malformed)?;
        let signs = |secret: &&Arc<Secret>| secret.request_mac(request, expiry_s).verify_slice(&mac).is_ok();
        let secret = self.0.iter().find(signs).ok_or(Stranger::Forged)?;
        let now_s = now_unix_ms / 1000;
        let latest_s = now_s + 2 * SIGNATURE_LIFETIME.as_secs();
        if expiry_s < now_s {
            return Err(Stranger::Expired { by_s: now_s - expiry_s });
        }
        if latest_s < expiry_s {
            return Err(Stranger::Early { by_s: expiry_s - latest_s });
        }
        Ok(VerifiedRequest(Exchange { secret: Arc::clone(secret), mac }))
    }
}

impl SignedRequest {
    /// Whether an answer that names `digest` comes from the node that was asked.
    #[must_use]
    pub fn is_answered(&self, digest: &str, signature: &[u8]) -> bool {
        let mac = signature.strip_prefix(VERSION.as_bytes()).and_then(|rest| from_hex(rest.trim_ascii()));
        mac.is_some_and(|mac| self.exchange.answer_mac(digest).verify_slice(&mac).is_ok())
    }
}

impl VerifiedRequest {
    /// The signature, for a header, of an answer that names `digest`.
    #[must_use]
    pub fn sign_answer(&self, digest: &str) -> String {
        format!("{VERSION} {}", hex(self.0.answer_mac(digest).finalize().into_bytes().into()))
    }
}

impl Exchange {
    fn answer_mac(&self, digest: &str) -> Hmac<Sha256> {
        let mut mac = self.secret.registry.clone();
        [ANSWER_LABEL, &self.mac, digest.as_bytes()].iter().for_each(|part| mac.update(part));
        mac
    }
}

impl Secret {
    fn new(secret: &[u8]) -> Self {
        let keys = Hkdf::<Sha256>::new(None, secret);
        let key = |purpose: &[u8]| {
            let mut key = [0; 32];
            keys.expand(purpose, &mut key).expect("HKDF gives up to 255 hashes");
            key
        };
        let registry = Hmac::new_from_slice(&key(b"spegel registry v1")).expect("HMAC takes any key");
        Self {
            router: key(b"spegel router v1"),
            registry,
            client: key(b"spegel client v1"),
            fingerprint: key(b"spegel fingerprint v1"),
        }
    }

    /// Neither method nor target nor peer ID can have a line break in it.
    fn request_mac(&self, request: NodeRequest<'_>, expiry_s: u64) -> Hmac<Sha256> {
        let mut mac = self.registry.clone();
        mac.update(REQUEST_LABEL);
        mac.update(
            format!("{}\n{}\n{}\n{expiry_s}", request.peer, request.method, request.target).as_bytes(),
        );
        mac
    }
}

/// Expiry and code of a request's signature.
fn read(signature: &[u8]) -> Option<(u64, [u8; 32])> {
    let mut words = std::str::from_utf8(signature).ok()?.split(' ');
    let (version, expiry, mac) = (words.next()?, words.next()?, words.next()?);
    let digits = expiry.bytes().all(|byte| byte.is_ascii_digit());
    if version != VERSION || !digits || words.next().is_some() {
        return None;
    }
    Some((expiry.parse().ok()?, from_hex(mac.as_bytes())?))
}

fn hex(bytes: [u8; 32]) -> String {
    Digest::Sha256(bytes).hex()
}

fn from_hex(text: &[u8]) -> Option<[u8; 32]> {
    match Digest::from_hex(Algorithm::Sha256, std::str::from_utf8(text).ok()?) {
        Ok(Digest::Sha256(bytes)) => Some(bytes),
        Ok(Digest::Sha384(_) | Digest::Sha512(_)) | Err(_) => None,
    }
}

impl fmt::Debug for ClusterSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterSecrets({})", self.0.len())
    }
}

impl fmt::Debug for SignedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignedRequest(…)")
    }
}

impl fmt::Debug for VerifiedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifiedRequest(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210";
    const NOW_MS: u64 = 1_700_000_000_500;
    const LIFETIME_MS: u64 = SIGNATURE_LIFETIME.as_secs() * 1000;

    fn secrets(lines: &[&str]) -> ClusterSecrets {
        ClusterSecrets::parse(lines.join("\n").as_bytes()).expect("secrets are right")
    }

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn asked<'a>(peer: &'a PeerId, method: &'a str, target: &'a str) -> NodeRequest<'a> {
        NodeRequest { peer, method, target }
    }

    /// What `verifier` says of a request signed by `signer`.
    fn judged(signer: &ClusterSecrets, verifier: &ClusterSecrets, at_ms: u64) -> Result<(), Stranger> {
        let peer = peer(1);
        let request = asked(&peer, "GET", "/v2/a/blobs/b?ns=c");
        let signed = signer.sign(request, NOW_MS);
        verifier.verify(request, Some(signed.signature.as_bytes()), at_ms).map(drop)
    }

    #[test]
    fn files_that_hold_no_secrets_say_what_is_wrong() {
        let of = |text: &str| ClusterSecrets::parse(text.as_bytes()).map(|secrets| secrets.0.len());
        assert_eq!(of(""), Err(SecretError::Empty));
        assert_eq!(of(" \n\r\n"), Err(SecretError::Empty));
        assert_eq!(of(&A[1..]), Err(SecretError::TooShort { line: 1, length: 31 }));
        assert_eq!(of(&format!("\n{A}\n short \n")), Err(SecretError::TooShort { line: 3, length: 5 }));
        assert_eq!(of(&format!("{A}\n{A}")), Err(SecretError::Repeated));
        assert_eq!(of(&format!("{A}\n{B}\n{A}x")), Err(SecretError::TooMany { count: 3 }));
        assert_eq!(of(&"x".repeat(SECRET_FILE_BYTES_MAX + 1)), Err(SecretError::TooLarge));
        assert_eq!(of(&"x".repeat(SECRET_FILE_BYTES_MAX)), Ok(1));
        assert_eq!(of(&format!("{A}\r\n\n {B} \n")), Ok(2));
    }

    #[test]
    fn space_around_a_secret_does_not_make_it_another() {
        let (plain, edited) =
            (secrets(&[A, B]), ClusterSecrets::parse(format!(" {A}\r\n\n{B}\n").as_bytes()).unwrap());
        assert_eq!(plain.router_keys().collect::<Vec<_>>(), edited.router_keys().collect::<Vec<_>>());
    }

    /// Computed with Python's `hmac` and RFC 5869 written out, so that a release that derives other
    /// keys, and would split clusters while it is rolled out, is noticed.
    #[test]
    fn keys_and_signatures_are_those_of_every_release() {
        let secrets = secrets(&[A]);
        let peer = peer(1);
        let signed = secrets.sign(asked(&peer, "GET", "/v2/a/manifests/b?ns=c"), NOW_MS);
        let answer = VerifiedRequest(signed.exchange.clone()).sign_answer("sha256:00");
        let router = hex(secrets.router_keys().next().unwrap());
        let client = secrets.client_passwords().next().unwrap();
        let fingerprint = secrets.fingerprints().next().unwrap();
        let all = [router, client, fingerprint, signed.signature, answer];
        assert_eq!(
            all,
            [
                "80a15d3622a1ebc5d184b9657c72c8b4ffb067a533f7e3c072899d6e6b9b9efc",
                "10b9fb7279d305eac69bc12c193b0496902ad13a51fe2aca643301bcd7f5b5c5",
                "d85d4425",
                "v1 1700000060 68f33eb9bebc77b7dc26ca162c110fa2bb1e1fbd9e37e061fea34d90c983e75f",
                "v1 66f6a4a0b8f2f2efb764c5a2f7d8a8e88a555d53daaec7f621f21daa9e549e77",
            ]
        );
    }

    #[test]
    fn request_of_a_node_is_verified_and_its_answer_too() {
        let (secrets, peer) = (secrets(&[A]), peer(1));
        let request = asked(&peer, "HEAD", "/v2/a/manifests/b?ns=c");
        let signed = secrets.sign(request, NOW_MS);
        let verified = secrets.verify(request, Some(signed.signature.as_bytes()), NOW_MS).unwrap();
        let answer = verified.sign_answer("sha256:00");
        assert!(signed.is_answered("sha256:00", answer.as_bytes()));
        assert!(!signed.is_answered("sha256:01", answer.as_bytes()), "of another digest");
        let other = secrets.sign(asked(&peer, "HEAD", "/v2/a/manifests/c?ns=c"), NOW_MS);
        assert!(!other.is_answered("sha256:00", answer.as_bytes()), "to another request");
        for nonsense in ["", "v1", "v1 00", "v2 00", signed.signature.as_str()] {
            assert!(!signed.is_answered("sha256:00", nonsense.as_bytes()), "{nonsense}");
        }
    }

    #[test]
    fn signature_is_for_one_node_method_and_target() {
        let (secrets, one, two) = (secrets(&[A]), peer(1), peer(2));
        let signed = secrets.sign(asked(&one, "GET", "/v2/a"), NOW_MS).signature;
        let verify = |request| secrets.verify(request, Some(signed.as_bytes()), NOW_MS).map(drop);
        assert_eq!(verify(asked(&one, "GET", "/v2/a")), Ok(()));
        assert_eq!(verify(asked(&two, "GET", "/v2/a")), Err(Stranger::Forged));
        assert_eq!(verify(asked(&one, "HEAD", "/v2/a")), Err(Stranger::Forged));
        assert_eq!(verify(asked(&one, "GET", "/v2/b")), Err(Stranger::Forged));
        let later = signed.replacen("v1 17", "v1 18", 1);
        assert_eq!(
            secrets.verify(asked(&one, "GET", "/v2/a"), Some(later.as_bytes()), NOW_MS).unwrap_err(),
            Stranger::Forged,
            "the end is signed too"
        );
    }

    #[test]
    fn signatures_that_cannot_be_read_are_malformed() {
        let (secrets, peer) = (secrets(&[A]), peer(1));
        let request = asked(&peer, "GET", "/v2/a");
        let mac = "0".repeat(64);
        assert_eq!(secrets.verify(request, None, NOW_MS).unwrap_err(), Stranger::Unsigned);
        for signature in [
            String::new(),
            "v1".into(),
            format!("v2 1 {mac}"),
            format!("v1 -1 {mac}"),
            format!("v1 +1 {mac}"),
            format!("v1 18446744073709551616 {mac}"),
            format!("v1 1 {mac}0"),
            format!("v1 1 {}", &mac[1..]),
            format!("v1 1 {mac} "),
            format!("v1  1 {mac}"),
        ] {
            let verified = secrets.verify(request, Some(signature.as_bytes()), NOW_MS);
            assert_eq!(verified.unwrap_err(), Stranger::Malformed, "{signature:?}");
        }
        let verified = secrets.verify(request, Some(b"v1 1 \xff"), NOW_MS);
        assert_eq!(verified.unwrap_err(), Stranger::Malformed);
        let verified = secrets.verify(request, Some(format!("v1 {} {mac}", u64::MAX).as_bytes()), u64::MAX);
        assert_eq!(verified.unwrap_err(), Stranger::Forged);
    }

    #[test]
    fn clocks_may_differ_by_the_lifetime_and_no_more() {
        let secrets = secrets(&[A]);
        let at = |at_ms| judged(&secrets, &secrets, at_ms);
        assert_eq!(at(NOW_MS), Ok(()));
        assert_eq!(at(NOW_MS + LIFETIME_MS), Ok(()));
        assert_eq!(at(NOW_MS - LIFETIME_MS), Ok(()));
        assert_eq!(at(NOW_MS + LIFETIME_MS + 1000), Err(Stranger::Expired { by_s: 1 }));
        assert_eq!(at(NOW_MS - LIFETIME_MS - 1000), Err(Stranger::Early { by_s: 1 }));
        assert_eq!(at(0), Err(Stranger::Early { by_s: 1_700_000_000 - 60 }));
    }

    /// Each step of a rotation has nodes of two neighbouring steps side by side.
    #[test]
    fn neighbouring_steps_of_a_rotation_trust_each_other() {
        let steps = [secrets(&[A]), secrets(&[A, B]), secrets(&[B, A]), secrets(&[B])];
        for pair in steps.windows(2) {
            for (signer, verifier) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                assert_eq!(judged(signer, verifier, NOW_MS), Ok(()), "{signer:?} {verifier:?}");
                assert!(verifier.router_keys().any(|key| Some(key) == signer.router_keys().next()));
                assert!(verifier.client_passwords().any(|it| Some(it) == signer.client_passwords().next()));
            }
        }
        assert_eq!(judged(&steps[0], &steps[3], NOW_MS), Err(Stranger::Forged));
        assert_eq!(judged(&steps[3], &steps[0], NOW_MS), Err(Stranger::Forged));
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let secrets = secrets(&[A, B]);
        let signed = secrets.sign(asked(&peer(1), "GET", "/"), NOW_MS);
        assert_eq!(format!("{secrets:?} {signed:?}"), "ClusterSecrets(2) SignedRequest(…)");
    }
}
