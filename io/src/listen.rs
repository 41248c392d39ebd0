//! Opens listening sockets the way the `--*-addr` flags describe them: an empty host is both
//! address families, each on a socket of its own. Called once per flag, at start.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted. Fewer and a burst of kubelet and containerd requests sees
/// retransmissions; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The text is not an address.
    #[error("{text:?} is not an address to listen on: expected :PORT, IPv4:PORT or [IPv6]:PORT")]
    Address {
        /// The text.
        text: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}; {}", advice(source))]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// What the operator can do about it.
fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        "stop the other process that uses the port, or choose another one"
    } else {
        "choose an address and port that this host lets the process use"
    }
}

/// Reads `[HOST]:PORT`, where the host is an IP address or `localhost`.
///
/// # Errors
///
/// [`ListenError::Address`]
pub fn parse(text: &str) -> Result<Vec<SocketAddr>, ListenError> {
    if let Ok(addr) = text.parse() {
        return Ok(vec![addr]);
    }
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok()) {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into()]);
    }
    match text.strip_prefix(':').and_then(|port| port.parse::<u16>().ok()) {
        Some(port) => Ok(vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]),
        None => Err(ListenError::Address { text: text.into() }),
    }
}

/// Listens on all of `addrs`; a host that lacks one of the two families is content with the other.
///
/// # Errors
///
/// [`ListenError::Bind`]
pub fn bind(addrs: &[SocketAddr]) -> Result<Vec<TcpListener>, ListenError> {
    let mut listeners = Vec::new();
    let mut lacking = None;
    for addr in addrs {
        let bound = socket(*addr).and_then(|socket| {
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket.into())
        });
        match bound {
            Ok(listener) => listeners.push(listener),
            Err(source) if lacks_family(*addr, &source) => {
                lacking = Some(ListenError::Bind { addr: *addr, source })
            }
            Err(source) => return Err(ListenError::Bind { addr: *addr, source }),
        }
    }
    match lacking {
        Some(error) if listeners.is_empty() => Err(error),
        Some(_) | None => Ok(listeners),
    }
}

/// A socket bound to `addr` that shares its port with nobody.
pub(crate) fn socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier life that linger in TIME_WAIT are no obstacle.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Where somebody on this machine asks whoever listens there.
#[must_use]
pub const fn reachable_here(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), v4.port())
        }
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), v6.port())
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => listen,
    }
}

/// Whether the error only says that the host has no such address family.
pub(crate) fn lacks_family(addr: SocketAddr, error: &io::Error) -> bool {
    /// `EAFNOSUPPORT` on Linux; the standard library has no name for it.
    const FAMILY_NOT_SUPPORTED: i32 = 97;
    addr.ip().is_unspecified()
        && (error.raw_os_error() == Some(FAMILY_NOT_SUPPORTED)
            || matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_an_ip_localhost_or_empty_for_both_families() {
        let read =
            |text: &str| parse(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(read(":5001").unwrap(), ["[::]:5001", "0.0.0.0:5001"]);
        assert_eq!(read("10.0.0.1:5001").unwrap(), ["10.0.0.1:5001"]);
        assert_eq!(read("[::1]:5001").unwrap(), ["[::1]:5001"]);
        assert_eq!(read("localhost:5001").unwrap(), ["127.0.0.1:5001"]);
        for text in ["", ":", "5001", "node-1:5001", ":70000", "10.0.0.1"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn taken_port_is_an_error() {
        let first = bind(&parse("127.0.0.1:0").unwrap()).unwrap();
        let addr = first[0].local_addr().unwrap();
        let message = bind(&[addr]).unwrap_err().to_string();
        assert!(message.contains(&addr.to_string()), "{message}");
        assert!(bind(&parse(&format!(":{}", addr.port())).unwrap()).is_err());
    }
}
