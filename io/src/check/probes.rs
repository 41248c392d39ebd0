//! Knocks at doors: asks once, waits as long as it is told, and says what happened.

use std::{fmt, io, net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream};
use spegel_core::{
    Member,
    check::{PROBES_CONCURRENT_MAX, PeerProbe, TargetAnswer, TargetProbe},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, ToSocketAddrs},
    time::timeout,
};

use crate::{clock, peer};

/// Largest answer read. Answers to these questions have a head of some 100 bytes; larger ones are
/// somebody else's, and are known as such by their beginning.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// What a dialer of libp2p says first (multistream-select 1.0). Whoever speaks libp2p says something back,
/// or has done so already where there is a cluster secret.
const GREETING: &[u8] = b"\x13/multistream/1.0.0\n";

/// Why nobody answered, in words for the operator.
struct Cause(String);

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an HTTP server answered.
struct Answer {
    status: u16,
    /// Whether it says that it has no body.
    is_empty: bool,
    /// What it says the time is, in milliseconds since the UNIX epoch.
    date_unix_ms: Option<u64>,
}

/// Asks each address that containerd is told to ask.
pub(super) async fn targets(urls: Vec<String>, patience: Duration) -> Vec<TargetProbe> {
    let probes =
        urls.into_iter().map(|url| async move { TargetProbe { answer: target(&url, patience).await, url } });
    stream::iter(probes).buffered(PROBES_CONCURRENT_MAX).collect().await
}

async fn target(url: &str, patience: Duration) -> TargetAnswer {
    let Some((scheme, authority)) = url.split_once("://") else {
        return TargetAnswer::Nobody("that is no URL".to_owned());
    };
    let authority = authority.split('/').next().unwrap_or_default();
    let with_port = |port: &str| {
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        if has_port { authority.to_owned() } else { format!("{authority}:{port}") }
    };
    if scheme == "https" {
        // Whoever ends TLS for the mirror need not be asked more than whether it is there.
        return match within(patience, connect(with_port("443"))).await {
            Ok(_) => TargetAnswer::Spegel,
            Err(cause) => TargetAnswer::Nobody(cause.0),
        };
    }
    let addr = with_port("80");
    // Two questions, since many a server answers one of them like a mirror would. None below /v2, where a mirror
    // takes whoever asks without credentials for a stranger, and says so.
    for (path, expected) in [("/livez", [200, 200]), ("/readyz", [200, 500])] {
        match within(patience, ask(addr.clone(), authority, path)).await {
            Ok(answer) if !expected.contains(&answer.status) => {
                return TargetAnswer::Other(format!("it answers {path} with {}", answer.status));
            }
            Ok(answer) if !answer.is_empty => {
                return TargetAnswer::Other(format!("its answer to {path} is not a mirror's"));
            }
            Ok(_) => {}
            Err(cause) => return TargetAnswer::Nobody(cause.0),
        }
    }
    TargetAnswer::Spegel
}

/// Knocks at the router and the registry of each peer.
pub(super) async fn peers(members: Vec<Member>, patience: Duration) -> Vec<PeerProbe> {
    stream::iter(members.into_iter().map(|member| probe(member, patience)))
        .buffered(PROBES_CONCURRENT_MAX)
        .collect()
        .await
}

async fn probe(member: Member, patience: Duration) -> PeerProbe {
    let ((router_addr, router), (registry_addr, registry)) = tokio::join!(
        first(member.router_addrs(), |addr| within(patience, greet(addr))),
        first(member.registry_addrs(), |addr| within(patience, livez(addr))),
    );
    PeerProbe {
        peer: member.peer.to_string(),
        router,
        clock_ahead_seconds: registry.as_ref().ok().copied().flatten(),
        registry: registry.map(drop),
        router_addr,
        registry_addr,
    }
}

/// The first address that answers; or the first, and why it does not.
async fn first<T, F: Future<Output = Result<T, Cause>>>(
    addrs: Vec<SocketAddr>,
    ask: impl Fn(SocketAddr) -> F,
) -> (String, Result<T, String>) {
    let mut failed = None;
    for addr in addrs {
        match ask(addr).await {
            Ok(answer) => return (addr.to_string(), Ok(answer)),
            Err(cause) => drop(failed.get_or_insert((addr.to_string(), Err(cause.0)))),
        }
    }
    failed.unwrap_or_else(|| ("no address".to_owned(), Err("it has told none".to_owned())))
}

async fn greet(addr: SocketAddr) -> Result<(), Cause> {
    let mut stream = connect(addr).await?;
    stream.write_all(GREETING).await?;
    match stream.read(&mut [0; 64]).await? {
        0 => Err(Cause("it hangs up".to_owned())),
        _ => Ok(()),
    }
}

/// How far the clock of a registry is ahead, in seconds, if it tells the time.
async fn livez(addr: SocketAddr) -> Result<Option<i64>, Cause> {
    let began = clock::unix_ms();
    let answer = ask(addr, &addr.to_string(), "/livez").await?;
    let ended = clock::unix_ms();
    match answer.status {
        200 => Ok(answer.date_unix_ms.map(|told| ahead_seconds(told, began, ended))),
        status => Err(Cause(format!("it answers /livez with {status}"))),
    }
}

/// HTTP tells whole seconds, so the time told began up to a second ago.
fn ahead_seconds(told_unix_ms: u64, began_unix_ms: u64, ended_unix_ms: u64) -> i64 {
    let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let here = signed(began_unix_ms) / 2 + signed(ended_unix_ms) / 2;
    (signed(told_unix_ms).saturating_add(500)).saturating_sub(here) / 1000
}

async fn within<T>(patience: Duration, answer: impl Future<Output = Result<T, Cause>>) -> Result<T, Cause> {
    timeout(patience, answer).await.unwrap_or_else(|_| Err(Cause(format!("no answer within {patience:?}"))))
}

async fn connect(addr: impl ToSocketAddrs) -> Result<TcpStream, Cause> {
    Ok(TcpStream::connect(addr).await?)
}

async fn ask(addr: impl ToSocketAddrs, host: &str, path: &str) -> Result<Answer, Cause> {
    let (answer, _) = exchange(addr, host, path, ANSWER_BYTES_MAX, false).await?;
    Ok(answer)
}

/// GETs what the registry tells about itself, at most `bytes_max` of it.
pub(super) async fn get(
    addr: SocketAddr,
    path: &str,
    bytes_max: usize,
    patience: Duration,
) -> Result<Vec<u8>, String> {
    let host = addr.to_string();
    match within(patience, exchange(addr, &host, path, bytes_max, true)).await {
        Ok((Answer { status: 200, .. }, body)) => Ok(body),
        Ok((Answer { status, .. }, _)) => Err(format!("{addr} answers {path} with {status}")),
        Err(cause) => Err(format!("{addr}: {cause}")),
    }
}

/// One request on a connection of its own.
async fn exchange(
    addr: impl ToSocketAddrs,
    host: &str,
    path: &str,
    bytes_max: usize,
    to_the_end: bool,
) -> Result<(Answer, Vec<u8>), Cause> {
    let mut stream = connect(addr).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: spegel-check\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    loop {
        let more = stream.read_buf(&mut bytes).await?;
        let head = peer::parse_head(&bytes).map_err(|_| Cause("what it says is not HTTP".to_owned()))?;
        if let Some((head, length)) = head.filter(|_| !to_the_end || more == 0) {
            let date = head.headers.get(http::header::DATE).and_then(|date| date.to_str().ok());
            let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
            let since_epoch = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
            let date_unix_ms = since_epoch.and_then(|since| u64::try_from(since.as_millis()).ok());
            let is_empty = head.headers.get(http::header::CONTENT_LENGTH).is_some_and(|length| length == "0");
            let answer = Answer { status: head.status.as_u16(), is_empty, date_unix_ms };
            return Ok((answer, bytes.split_off(length)));
        }
        if more == 0 {
            return Err(Cause("it hangs up".to_owned()));
        }
        if bytes.len() > bytes_max {
            return Err(Cause(format!("its answer is longer than {bytes_max} bytes")));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    /// Answers every connection with the next of these, and says where.
    async fn server(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _request = stream.read(&mut [0; 1024]).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        addr
    }

    async fn answer_at(answers: &'static [&'static str]) -> TargetAnswer {
        target(&format!("http://{}", server(answers).await), PATIENCE).await
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    const NOT_READY: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
    const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml";
    const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";

    #[tokio::test]
    async fn spegel_is_told_from_whatever_else_has_its_port() {
        assert_eq!(answer_at(&[OK, OK]).await, TargetAnswer::Spegel);
        assert_eq!(answer_at(&[OK, NOT_READY]).await, TargetAnswer::Spegel);
        let other = |text: &str| TargetAnswer::Other(text.to_owned());
        assert_eq!(answer_at(&[NOT_FOUND]).await, other("it answers /livez with 404"));
        assert_eq!(answer_at(&[OK, NOT_FOUND]).await, other("it answers /readyz with 404"));
        assert_eq!(answer_at(&[PAGE]).await, other("its answer to /livez is not a mirror's"));
        let nobody = |text: &str| TargetAnswer::Nobody(text.to_owned());
        assert_eq!(answer_at(&["SSH-2.0-OpenSSH_9.2\r\n"]).await, nobody("what it says is not HTTP"));
        assert_eq!(answer_at(&[""]).await, nobody("it hangs up"));
        assert_eq!(target("http://127.0.0.1:1", PATIENCE).await, nobody("Connection refused (os error 111)"));
    }

    #[tokio::test]
    async fn silence_ends_with_patience() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = target(&url, Duration::from_millis(20)).await;
        assert_eq!(answer, TargetAnswer::Nobody("no answer within 20ms".to_owned()));
    }

    #[tokio::test]
    async fn body_is_read_to_its_end_but_not_without_one() {
        const LONG: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnine byte";
        let addr = server(&[LONG, LONG, NOT_FOUND]).await;
        assert_eq!(get(addr, "/", 1000, PATIENCE).await, Ok(b"nine byte".to_vec()));
        assert!(get(addr, "/", 40, PATIENCE).await.is_err());
        assert!(get(addr, "/", 1000, PATIENCE).await.unwrap_err().ends_with("answers / with 404"));
    }

    #[test]
    fn clock_is_compared_with_the_middle_of_the_second_told() {
        let second = 1000;
        assert_eq!(ahead_seconds(10 * second, 10_200, 10_900), 0);
        assert_eq!(ahead_seconds(70 * second, 10_000, 10_000), 60);
        assert_eq!(ahead_seconds(10 * second, 70_000, 70_000), -59);
        assert!(ahead_seconds(0, u64::MAX, u64::MAX) < 0);
    }
}
