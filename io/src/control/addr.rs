//! Between the addresses of libp2p and those of the kernel. Pure parsing, called by the control
//! adapter and the bootstrap resolvers.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};
use spegel_core::{BootstrapAddr, PeerId};

/// `/ip4|ip6/…/tcp/…`.
pub(crate) fn to_multiaddr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip()).with(Protocol::Tcp(addr.port()))
}

/// The TCP address a multiaddr begins with.
pub(crate) fn to_socket_addr(addr: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = addr.iter();
    let ip = ip_of(parts.next()?)?;
    let Protocol::Tcp(port) = parts.next()? else { return None };
    Some(SocketAddr::new(ip, port))
}

/// Reads `/ip4|ip6/ADDRESS[/tcp/PORT][/p2p/ID]`; without a port, `default_port`.
///
/// # Errors
///
/// What was expected, in words.
pub(crate) fn parse_bootstrap_addr(text: &str, default_port: u16) -> Result<BootstrapAddr, &'static str> {
    const SHAPE: &str = "expected /ip4/ADDRESS/tcp/PORT or /ip6/ADDRESS/tcp/PORT, optionally with /p2p/ID";
    let addr: Multiaddr = text.parse().map_err(|_| SHAPE)?;
    let mut parts = addr.iter().peekable();
    let ip = parts.next().and_then(ip_of).ok_or(SHAPE)?;
    let port = match parts.peek() {
        Some(Protocol::Tcp(port)) => {
            let port = *port;
            parts.next();
            port
        }
        _ => default_port,
    };
    let peer = match parts.next() {
        None => None,
        Some(Protocol::P2p(peer)) => {
            Some(to_core_peer(&peer).ok_or("the ID after /p2p/ is not that of an Ed25519 key")?)
        }
        Some(_) => return Err(SHAPE),
    };
    if parts.next().is_some() {
        return Err(SHAPE);
    }
    if port == 0 || ip.is_unspecified() {
        return Err("no node can be reached at an unspecified address or port 0");
    }
    Ok(BootstrapAddr { addr: SocketAddr::new(ip, port), peer })
}

/// The peer in libp2p's words.
pub(crate) fn to_libp2p_peer(peer: PeerId) -> libp2p::PeerId {
    libp2p::PeerId::from_bytes(&peer.to_multihash()).expect("the multihash of an Ed25519 key is a peer ID")
}

/// The peer in the core's words, unless its key is of another kind than Ed25519.
pub(crate) fn to_core_peer(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_multihash(&peer.to_bytes()).ok()
}

fn ip_of(part: Protocol<'_>) -> Option<IpAddr> {
    if let Protocol::Ip4(ip) = part {
        Some(ip.into())
    } else if let Protocol::Ip6(ip) = part {
        Some(ip.into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_addresses_of_both_families_with_and_without_id() {
        let peer = PeerId::from_public_key([7; 32]);
        let parse = |text: &str| parse_bootstrap_addr(text, 5001).map(|it| (it.addr.to_string(), it.peer));
        assert_eq!(parse("/ip4/10.0.0.1/tcp/5002"), Ok(("10.0.0.1:5002".into(), None)));
        assert_eq!(parse(&format!("/ip6/fd00::1/tcp/1/p2p/{peer}")), Ok(("[fd00::1]:1".into(), Some(peer))));
        assert_eq!(parse("/ip4/10.0.0.1"), Ok(("10.0.0.1:5001".into(), None)));
        assert_eq!(parse(&format!("/ip4/10.0.0.1/p2p/{peer}")), Ok(("10.0.0.1:5001".into(), Some(peer))));
    }

    #[test]
    fn other_multiaddrs_are_refused() {
        let rsa = "/ip4/10.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N";
        for text in [
            "",
            "10.0.0.1:5001",
            "/dns4/a/tcp/1",
            "/ip4/10.0.0.1/udp/1",
            "/ip4/10.0.0.1/tcp/1/ws",
            "/ip4/10.0.0.1/tcp/0",
            "/ip4/0.0.0.0/tcp/1",
            rsa,
        ] {
            assert!(parse_bootstrap_addr(text, 5001).is_err(), "{text}");
        }
    }
}
