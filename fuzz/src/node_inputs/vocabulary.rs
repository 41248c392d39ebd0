//! The few things that a history is about: with more of them, its events would seldom concern
//! the same one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use spegel_core::{
    ListedContent, ListedImage, PeerId,
    oci::{Descriptor, Digest},
};

use crate::bytes::Bytes;

/// Nodes that are real; the peers after them never answer.
pub(super) const NODES: usize = 3;

/// Peers in all.
const PEERS: usize = 5;

const REGISTRY_PORT: u16 = 5000;
const ROUTER_PORT: u16 = 5001;

const NAMES: [&str; 8] = [
    "registry.test/app:1",
    "registry.test/app:2",
    "registry.test/team/app:1",
    "excluded.test/app:1",
    "registry.test/app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "imported",
    "",
];

pub(super) fn peer(number: usize) -> PeerId {
    PeerId::from_public_key([u8::try_from(number).unwrap_or(u8::MAX); 32])
}

pub(super) fn any_peer(bytes: &mut Bytes<'_>) -> PeerId {
    peer(bytes.below(PEERS))
}

/// The node with this identity.
pub(super) fn node_of(peer: &PeerId) -> Option<usize> {
    (0..NODES).find(|number| self::peer(*number) == *peer)
}

pub(super) fn ip(number: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(number).unwrap_or(u8::MAX)).into()
}

pub(super) fn router_addr(number: usize) -> SocketAddr {
    SocketAddr::new(ip(number), ROUTER_PORT)
}

pub(super) const fn ports() -> (u16, u16) {
    (ROUTER_PORT, REGISTRY_PORT)
}

pub(super) fn any_addrs(bytes: &mut Bytes<'_>) -> Vec<IpAddr> {
    let count = bytes.below(12);
    (0..count)
        .map(|_| match bytes.byte() {
            0 => Ipv4Addr::UNSPECIFIED.into(),
            1 => Ipv4Addr::LOCALHOST.into(),
            2 => Ipv4Addr::new(169, 254, 1, 1).into(),
            3 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
            4 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(),
            5 => Ipv4Addr::BROADCAST.into(),
            number => ip(usize::from(number)),
        })
        .collect()
}

/// Content: an index, its two manifests, and blobs, some of them shared and one of another algorithm.
pub(super) fn any_digest(bytes: &mut Bytes<'_>) -> Digest {
    digest(bytes.below(8))
}

pub(super) fn digest(number: usize) -> Digest {
    match number {
        0..=2 => Digest::sha256_of(&document(number)),
        7 => Digest::Sha512([7; 64]),
        number => Digest::sha256_of(&[u8::try_from(number).unwrap_or(u8::MAX)]),
    }
}

/// What the content store has under [`digest`]`(number)`.
pub(super) fn document(number: usize) -> Vec<u8> {
    let descriptor = |number: usize, media_type: &str| {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{number}}}"#, digest(number))
    };
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
    let config = "application/vnd.oci.image.config.v1+json";
    let text = match number {
        0 => format!(r#"{{"manifests":[{},{}]}}"#, descriptor(1, manifest), descriptor(2, manifest)),
        1 | 2 => format!(
            r#"{{"config":{},"layers":[{},{}]}}"#,
            descriptor(3, config),
            descriptor(3 + number, layer),
            descriptor(4 + number, layer),
        ),
        _ => "a blob".to_owned(),
    };
    text.into_bytes()
}

pub(super) fn any_name(bytes: &mut Bytes<'_>) -> String {
    match bytes.below(NAMES.len() + 2) {
        8 => String::from_utf8_lossy(bytes.some()).into_owned(),
        9 => "a/".repeat(600),
        number => NAMES[number].to_owned(),
    }
}

pub(super) fn any_image(bytes: &mut Bytes<'_>) -> ListedImage {
    let name = any_name(bytes);
    let media_type = match bytes.below(4) {
        0 => "application/vnd.oci.image.index.v1+json",
        1 => "application/vnd.oci.image.manifest.v1+json",
        2 => "application/octet-stream",
        _ => return ListedImage { name, target: None },
    };
    let target = Descriptor { media_type: media_type.to_owned(), digest: any_digest(bytes), size: 7 };
    ListedImage { name, target: Some(target) }
}

pub(super) fn any_content(bytes: &mut Bytes<'_>) -> ListedContent {
    let digest = any_digest(bytes);
    content(digest, bytes)
}

pub(super) fn content(digest: Digest, bytes: &mut Bytes<'_>) -> ListedContent {
    let size = match bytes.byte() {
        255 => u64::MAX,
        size => size.into(),
    };
    let sources = match bytes.below(4) {
        0 => Vec::new(),
        1 => vec![("registry.test".to_owned(), "app,team/app".to_owned())],
        2 => vec![("excluded.test".to_owned(), "app".to_owned())],
        _ => vec![(any_name(bytes), any_name(bytes)); bytes.below(4)],
    };
    ListedContent { digest, size, sources }
}
