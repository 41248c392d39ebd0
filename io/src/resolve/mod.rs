//! Asks the bootstrapper where members may be found: DNS, HTTP, or a fixed list. One call is one
//! attempt; when to ask, whom of the answer to dial and what to do about an answer that leads back
//! to this node are decisions of the core. The shell calls it for [`Output::ResolveBootstrap`].
//!
//! DNS goes through the system's own resolver (`getaddrinfo`) and not through one of Rust's: what
//! `getent ahosts NAME` says in the container is then what this node sees, `/etc/hosts`, search
//! list and all. Its two weaknesses do not matter here: it holds a thread while it waits, which is
//! one at a time, and musl's returns no more than 48 addresses, of which a node needs one.
//!
//! [`Output::ResolveBootstrap`]: spegel_core::Output::ResolveBootstrap

mod http;
mod serve;
#[cfg(test)]
mod tests;
mod tls;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use spegel_core::{BootstrapAddr, Input};
use tokio::{net::lookup_host, sync::mpsc};

use crate::control::parse_bootstrap_addr;
use http::HttpResolver;
pub use serve::id_router;

/// Most addresses taken from one answer. Fewer and a node of a very large cluster only ever sees
/// the same part of it; more would serve nobody.
const ADDRS_MAX: usize = 4096;

/// The flags that name the bootstrapper.
#[derive(Clone, Debug, Default)]
pub struct ResolverSettings {
    /// `--bootstrap-kind`: `dns`, `http` or `static`.
    pub kind: String,
    /// `--dns-bootstrap-domain`
    pub dns_domain: String,
    /// `--http-bootstrap-url`
    pub http_url: String,
    /// `--http-bootstrap-cert-dir`; empty for none.
    pub http_cert_dir: PathBuf,
    /// `--static-bootstrap-peers`
    pub static_peers: Vec<String>,
    /// This node's own router port, which the others are assumed to use too.
    pub router_port: u16,
}

/// Why the flags name no bootstrapper.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// No such kind.
    #[error("unknown bootstrap kind {kind:?}: set --bootstrap-kind to dns, http or static")]
    UnknownKind {
        /// The kind.
        kind: String,
    },
    /// A flag that the kind needs is empty.
    #[error("--bootstrap-kind={kind} needs {flag}")]
    Missing {
        /// The kind.
        kind: &'static str,
        /// The flag.
        flag: &'static str,
    },
    /// The domain has a port or cannot be a name.
    #[error(
        "--dns-bootstrap-domain {domain:?} is not a host name: give the name alone, the port is that of --router-addr"
    )]
    Domain {
        /// The domain.
        domain: String,
    },
    /// The URL cannot be asked.
    #[error("--http-bootstrap-url {url:?} cannot be used: {cause}; expected http[s]://HOST[:PORT]/PATH")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A certificate or key cannot be used.
    #[error("--http-bootstrap-cert-dir: {path}: {cause}", path = path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        cause: String,
    },
    /// A peer of the list is no usable multiaddr.
    #[error("--static-bootstrap-peers: {addr:?}: {cause}")]
    Peer {
        /// The peer.
        addr: String,
        /// What is wrong with it.
        cause: &'static str,
    },
}

/// Knows how to ask one bootstrapper.
#[derive(Clone, Debug)]
pub struct Resolver {
    source: Arc<Source>,
    router_port: u16,
}

#[derive(Debug)]
enum Source {
    Dns { domain: String },
    Http(HttpResolver),
    Static { addrs: Vec<BootstrapAddr> },
}

impl Resolver {
    /// Reads the flags; asks nobody yet.
    ///
    /// # Errors
    ///
    /// When they name no bootstrapper.
    pub fn new(settings: &ResolverSettings) -> Result<Self, ResolverError> {
        let source = match settings.kind.as_str() {
            "dns" => Source::Dns { domain: domain(&settings.dns_domain)? },
            "http" if settings.http_url.is_empty() => {
                return Err(ResolverError::Missing { kind: "http", flag: "--http-bootstrap-url" });
            }
            "http" => Source::Http(HttpResolver::new(&settings.http_url, &settings.http_cert_dir)?),
            "static" => Source::Static { addrs: peers(&settings.static_peers, settings.router_port)? },
            kind => return Err(ResolverError::UnknownKind { kind: kind.into() }),
        };
        Ok(Self { source: Arc::new(source), router_port: settings.router_port })
    }

    /// Makes one attempt in the background; what comes of it within `timeout` goes to `inputs`.
    pub fn perform(&self, timeout: Duration, inputs: mpsc::Sender<Input>) {
        let resolver = self.clone();
        tokio::spawn(async move {
            let input = resolver.resolve(timeout).await;
            // The core is gone only when the process ends.
            let _ended = inputs.send(input).await;
        });
    }

    /// Makes one attempt, which takes no longer than `timeout`.
    pub async fn resolve(&self, timeout: Duration) -> Input {
        let found = tokio::time::timeout(timeout, self.ask()).await;
        match found {
            Ok(Ok(addrs)) => Input::BootstrapResolved { addrs: addrs.into_iter().take(ADDRS_MAX).collect() },
            Ok(Err(cause)) => Input::BootstrapFailed { cause },
            Err(_) => {
                let cause = format!("{}: no answer within {timeout:?}", self.name());
                Input::BootstrapFailed { cause }
            }
        }
    }

    async fn ask(&self) -> Result<BTreeSet<BootstrapAddr>, String> {
        let found: BTreeSet<BootstrapAddr> = match &*self.source {
            Source::Dns { domain } => {
                let found = lookup_host((domain.as_str(), self.router_port)).await;
                let found = found.map_err(|error| format!("{}: {error}", self.name()))?;
                found
                    .map(plain)
                    .filter(|addr| usable(*addr))
                    .map(|addr| BootstrapAddr { addr, peer: None })
                    .collect()
            }
            Source::Http(http) => {
                http.ask(self.router_port).await.map_err(|cause| format!("{}: {cause}", self.name()))?
            }
            Source::Static { addrs } => addrs.iter().copied().collect(),
        };
        if found.is_empty() {
            return Err(format!("{}: the answer has no usable address", self.name()));
        }
        Ok(found)
    }

    fn name(&self) -> String {
        match &*self.source {
            Source::Dns { domain } => format!("DNS bootstrap {domain}"),
            Source::Http(http) => format!("HTTP bootstrap {}", http.url()),
            Source::Static { .. } => "static bootstrap".into(),
        }
    }
}

fn domain(text: &str) -> Result<String, ResolverError> {
    if text.is_empty() {
        return Err(ResolverError::Missing { kind: "dns", flag: "--dns-bootstrap-domain" });
    }
    let odd = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if text.contains(odd) || text.len() > 254 {
        return Err(ResolverError::Domain { domain: text.into() });
    }
    Ok(text.into())
}

fn peers(texts: &[String], router_port: u16) -> Result<Vec<BootstrapAddr>, ResolverError> {
    if texts.is_empty() {
        return Err(ResolverError::Missing { kind: "static", flag: "--static-bootstrap-peers" });
    }
    let read = |text: &String| {
        parse_bootstrap_addr(text, router_port)
            .map_err(|cause| ResolverError::Peer { addr: text.clone(), cause })
    };
    texts.iter().map(read).collect()
}

/// The address without the zone that getaddrinfo may put on it.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn usable(addr: SocketAddr) -> bool {
    !addr.ip().is_unspecified() && addr.port() != 0
}
