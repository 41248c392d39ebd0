//! Who a node is: its libp2p identity, and what every other node must know to reach it.

use std::{cmp::Ordering, fmt, net::IpAddr, net::SocketAddr, str::FromStr, sync::Arc};

/// A libp2p peer ID of an Ed25519 key, held as the 32 bytes of the public key.
///
/// Spegel, here and in Go, only ever makes Ed25519 identities; the peer ID of such a key
/// is the key itself under a fixed prefix ("identity" multihash, libp2p peer-ids spec).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerId([u8; 32]);

/// As the bytes are ordered. They are uniform, so that the first word tells most apart without a
/// call, and there is hardly a step without a search in a table by peer.
impl Ord for PeerId {
    fn cmp(&self, other: &Self) -> Ordering {
        let first_word = |peer: &Self| peer.0.first_chunk().copied().map(u64::from_be_bytes);
        first_word(self).cmp(&first_word(other)).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for PeerId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// `identity` multihash (0x00) of 36 bytes (0x24): protobuf key type 1 (Ed25519), 32 bytes of key.
const MULTIHASH_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// Why a text or byte string is not a [`PeerId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerIdError {
    /// The text is not base58.
    #[error("peer ID is not base58: expected a text like 12D3KooW…")]
    NotBase58,
    /// The identity is not an Ed25519 key.
    #[error("peer ID is not that of an Ed25519 key: expected a text like 12D3KooW…")]
    NotEd25519,
}

impl PeerId {
    /// The peer whose Ed25519 public key is `key`.
    #[must_use]
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The Ed25519 public key.
    #[must_use]
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the multihash that libp2p calls the bytes of a peer ID.
    ///
    /// # Errors
    ///
    /// [`PeerIdError::NotEd25519`] for identities of any other kind of key.
    pub fn from_multihash(bytes: &[u8]) -> Result<Self, PeerIdError> {
        let key = bytes.strip_prefix(&MULTIHASH_PREFIX).ok_or(PeerIdError::NotEd25519)?;
        key.try_into().map(Self).map_err(|_| PeerIdError::NotEd25519)
    }

    /// The multihash that libp2p calls the bytes of a peer ID.
    #[must_use]
    pub fn to_multihash(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&MULTIHASH_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        let bytes = bs58::decode(text).into_vec().map_err(|_| PeerIdError::NotBase58)?;
        Self::from_multihash(&bytes)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a node stands, as the operator names it (`topology.kubernetes.io/zone`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Zone(Arc<str>);

impl Zone {
    /// Longest zone name kept, in bytes: a Kubernetes label value. Longer names are cut, so
    /// that a member record stays small enough for many to fit in one gossip message.
    pub const LENGTH_MAX: usize = 63;

    /// A zone by its name; the empty name is no zone.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let mut end = name.len().min(Self::LENGTH_MAX);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        (end > 0).then(|| Self(name[..end].into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One life of one node: what membership gossips about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub peer: PeerId,
    /// Grows with each life of the process and each change of the fields below, so that the
    /// newest record wins. Milliseconds since the UNIX epoch when the process started, or more.
    pub generation: u64,
    /// Addresses it can be reached at, at most [`Member::ADDRS_MAX`], in its order of preference.
    pub addrs: Arc<[IpAddr]>,
    /// TCP port of the router (libp2p).
    pub router_port: u16,
    /// TCP port of the registry (HTTP).
    pub registry_port: u16,
    /// Zone, where the operator named one.
    pub zone: Option<Zone>,
}

impl Member {
    /// Most addresses kept of one member. Fewer and a dual-stack node with several networks
    /// loses some; more and gossip messages hold few members.
    pub const ADDRS_MAX: usize = 8;

    /// Where the router listens.
    #[must_use]
    pub fn router_addrs(&self) -> Vec<SocketAddr> {
        self.addrs.iter().map(|ip| SocketAddr::new(*ip, self.router_port)).collect()
    }

    /// Where the registry listens.
    #[must_use]
    pub fn registry_addrs(&self) -> Vec<SocketAddr> {
        self.addrs.iter().map(|ip| SocketAddr::new(*ip, self.registry_port)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_ordered_as_their_bytes_are() {
        let mut keys: Vec<[u8; 32]> = Vec::new();
        for at in [0, 1, 7, 8, 15, 31] {
            for byte in [1, 0x7f, 0x80, 0xff] {
                let mut key = [0; 32];
                key[at] = byte;
                keys.push(key);
            }
        }
        keys.sort_unstable();
        let peers: Vec<_> = keys.into_iter().map(PeerId::from_public_key).collect();
        assert!(peers.is_sorted_by(|one, other| one < other), "{peers:?}");
    }

    #[test]
    fn peer_id_text_round_trips() {
        let peer = PeerId::from_public_key([7; 32]);
        let text = peer.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse::<PeerId>(), Ok(peer));
    }

    #[test]
    fn peer_id_of_another_kind_of_key_is_refused() {
        assert_eq!(
            "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".parse::<PeerId>(),
            Err(PeerIdError::NotEd25519)
        );
        assert_eq!("not base58: 0OIl".parse::<PeerId>(), Err(PeerIdError::NotBase58));
        assert_eq!("".parse::<PeerId>(), Err(PeerIdError::NotEd25519));
    }

    #[test]
    fn zone_is_cut_at_a_character_boundary() {
        assert_eq!(Zone::new(""), None);
        let long = "é".repeat(40);
        assert_eq!(Zone::new(&long).map(|z| z.as_str().len()), Some(62));
    }
}
