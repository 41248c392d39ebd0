//! Bootstrap over HTTP: a list of peers at a URL, as [`super::id_router`] of another node or a load
//! balancer before several gives it. Redirects are not followed: the flag names the place.

use std::{collections::BTreeSet, path::Path, path::PathBuf, sync::Arc};

use ::http::{Request, Uri, header, uri::Scheme};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use spegel_core::BootstrapAddr;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{ResolverError, tls};
use crate::{control::parse_bootstrap_addr, net::Stream};

/// Largest answer read, in bytes. Smaller and a list of some hundred peers is refused; larger and
/// a wrong URL makes this node hold a web page.
const ANSWER_SIZE_MAX: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct HttpResolver {
    url: Uri,
    host: String,
    port: u16,
    tls: Option<ServerName<'static>>,
    cert_dir: PathBuf,
}

/// One entry of the answer; field names as the Go implementation writes them.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "ID", default)]
    id: Option<String>,
    #[serde(rename = "Addrs", default)]
    addrs: Option<Vec<String>>,
}

impl HttpResolver {
    pub(super) fn new(text: &str, cert_dir: &Path) -> Result<Self, ResolverError> {
        let invalid = |cause: &str| ResolverError::Url { url: text.into(), cause: cause.into() };
        let url: Uri = text.parse().map_err(|error| invalid(&format!("{error}")))?;
        let secure = match url.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(_) => return Err(invalid("the scheme is neither http nor https")),
            None => return Err(invalid("the scheme is missing")),
        };
        let authority = url.authority().ok_or_else(|| invalid("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("a user name is not supported"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(invalid("the host is missing"));
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure {
            // Read at every attempt, since certificates are renewed; read here so that a wrong one
            // is found at start.
            tls::client_config(cert_dir)?;
            let name = ServerName::try_from(host.clone())
                .map_err(|_| invalid("the host is not a name or address"))?;
            Some(name)
        } else {
            None
        };
        Ok(Self { url, host, port, tls, cert_dir: cert_dir.to_owned() })
    }

    pub(super) fn url(&self) -> &Uri {
        &self.url
    }

    pub(super) async fn ask(&self, router_port: u16) -> Result<BTreeSet<BootstrapAddr>, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(text)?;
        let answer = match &self.tls {
            None => self.fetch(stream).await?,
            Some(name) => {
                let config = tls::client_config(&self.cert_dir).map_err(text)?;
                let connector = TlsConnector::from(Arc::new(config));
                self.fetch(connector.connect(name.clone(), stream).await.map_err(text)?).await?
            }
        };
        addrs(&answer, router_port)
    }

    async fn fetch(&self, stream: impl Stream) -> Result<Bytes, String> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let host = self.url.authority().map_or("", |authority| authority.as_str());
        let request = Request::get(path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, "spegel")
            .header(header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(text)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(text)?;
            if !response.status().is_success() {
                return Err(format!("answered {}", response.status()));
            }
            let body = Limited::new(response.into_body(), ANSWER_SIZE_MAX).collect().await;
            body.map(|body| body.to_bytes()).map_err(|error| format!("answer not read: {error}"))
        };
        // The connection lives no longer than the exchange does.
        tokio::select! {
            answer = exchange => answer,
            broken = async { connection.await.err(); std::future::pending().await } => broken,
        }
    }
}

/// The usable addresses of an answer. Others are passed over: the Go implementation also lists
/// QUIC addresses at which nobody listens.
fn addrs(answer: &[u8], router_port: u16) -> Result<BTreeSet<BootstrapAddr>, String> {
    let entries: Vec<Entry> = serde_json::from_slice(answer)
        .map_err(|error| format!("the answer is not a list of peers: {error}"))?;
    let mut found = BTreeSet::new();
    for entry in entries {
        let id = entry.id.filter(|id| !id.is_empty());
        let named = match id.map(|id| id.parse()) {
            None => None,
            Some(Ok(peer)) => Some(peer),
            Some(Err(_)) => continue,
        };
        for addr in entry.addrs.unwrap_or_default() {
            if let Ok(addr) = parse_bootstrap_addr(&addr, router_port) {
                found.insert(BootstrapAddr { peer: addr.peer.or(named), ..addr });
            }
        }
    }
    Ok(found)
}

fn text(error: impl std::error::Error) -> String {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use spegel_core::PeerId;

    use super::*;

    #[test]
    fn answers_of_both_implementations_are_read() {
        let peer = PeerId::from_public_key([7; 32]);
        let answer = format!(
            r#"[{{"ID":"{peer}","Addrs":["/ip4/10.0.0.1/tcp/5001","/ip4/10.0.0.1/udp/5001/quic-v1"]}},
                {{"ID":"","Addrs":["/ip6/fd00::1"]}},
                {{"ID":"what","Addrs":["/ip4/10.0.0.2/tcp/5001"]}},
                {{"Addrs":null}}, {{}}]"#
        );
        let found: Vec<_> = addrs(answer.as_bytes(), 5002)
            .unwrap()
            .into_iter()
            .map(|it| (it.addr.to_string(), it.peer))
            .collect();
        assert_eq!(found, [("10.0.0.1:5001".into(), Some(peer)), ("[fd00::1]:5002".into(), None)]);
    }

    #[test]
    fn other_answers_are_explained() {
        for answer in ["", "{}", "<html>", "[1]", r#"[{"ID":1}]"#] {
            let cause = addrs(answer.as_bytes(), 5001).unwrap_err();
            assert!(cause.contains("not a list of peers"), "{cause}");
        }
        assert_eq!(addrs(b"[]", 5001).unwrap().len(), 0);
    }
}
