//! Addresses to listen at, as Go writes them: `:5000`, `127.0.0.1:5000`, `[::1]:5000`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// An address to listen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenAddr {
    /// `None` for all addresses of both families.
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: u16,
}

impl ListenAddr {
    /// What to bind, in order: the next only where the kernel lacks the family of the one before.
    pub(crate) fn candidates(&self) -> Vec<SocketAddr> {
        let ips = self.ip.map_or_else(
            || vec![IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED)],
            |ip| vec![ip],
        );
        ips.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect()
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is not an address such as :5000, 10.0.0.1:5000 or [::1]:5000");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let ip = match host {
            "" => None,
            "localhost" => Some(IpAddr::from(Ipv4Addr::LOCALHOST)),
            _ => {
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                let ip: IpAddr = bare.unwrap_or(host).parse().map_err(|_| wrong())?;
                if ip.is_ipv6() != bare.is_some() {
                    return Err(wrong());
                }
                Some(ip)
            }
        };
        Ok(Self { ip, port })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_go_are_read_and_written() {
        for text in [":5000", "10.0.0.1:5000", "[fd00::1]:5000"] {
            assert_eq!(text.parse::<ListenAddr>().map(|addr| addr.to_string()).as_deref(), Ok(text));
        }
        assert_eq!(
            "localhost:1".parse::<ListenAddr>().map(|addr| addr.to_string()).as_deref(),
            Ok("127.0.0.1:1")
        );
    }

    #[test]
    fn anything_else_is_an_error() {
        for text in
            ["", "5000", ":", ":65536", "fd00::1:5000", "[10.0.0.1]:5000", "example.com:5000", "[::1:5000"]
        {
            assert!(text.parse::<ListenAddr>().is_err(), "{text}");
        }
    }
}
