//! What runs after the last mirror is gone: `cleanup` gives containerd its own configuration back
//! on each node and says so; `cleanup-wait` waits until every node has said so. Neither touches
//! anything else.

use std::{collections::BTreeSet, io, net::SocketAddr, path::Path, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    hosts_toml::{self, HostsTomlError},
    listen::{self, ListenError},
};

/// Longest that one node may take to answer a probe. Shorter and a busy node is never done; longer
/// and nodes that are gone hold up the others.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Probes under way at once. Fewer and a large cluster takes long to ask; more and the pod that
/// asks needs more sockets.
const PROBES_MAX: usize = 10;

/// Most addresses remembered. Fewer and the last nodes of a larger cluster are not waited for; more
/// only matters to a name whose addresses never end.
const SEEN_MAX: usize = 16_384;

/// Longest wait for requests under way once told to end. Shorter and a probe is cut off; longer
/// and a client that stalls holds up the pod's end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Why cleaning up, or waiting for it, came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// containerd's configuration is not restored.
    #[error(transparent)]
    HostsToml(#[from] HostsTomlError),
    /// Nobody can be told that it is restored.
    #[error("--addr: {0}")]
    Listen(#[from] ListenError),
    /// The flag is no endpoint.
    #[error("--probe-endpoint {endpoint:?} cannot be probed: expected HOST:PORT")]
    Endpoint {
        /// The flag.
        endpoint: String,
    },
}

/// Restores containerd's configuration, then answers `GET /readyz` with 200 and everything else
/// with 404 until `shutdown` is done.
///
/// # Errors
///
/// When the configuration cannot be restored, or `addr` cannot be listened on. A wrong address is
/// found before anything is restored.
pub async fn cleanup(
    addr: &str,
    config_path: &Path,
    shutdown: impl Future<Output = ()>,
) -> Result<(), CleanupError> {
    // Whoever asks before all is restored waits in the kernel's queue.
    let listeners = listen::bind(&listen::parse(addr)?)?;
    hosts_toml::restore(config_path)?;
    info!(path = %config_path.display(), "containerd's registry configuration is restored");

    let ready = get(|| async {}).fallback(|| async { StatusCode::NOT_FOUND });
    let router = Router::new().route("/readyz", ready);
    let end = CancellationToken::new();
    let mut servers = JoinSet::new();
    for listener in listeners {
        let end = end.clone().cancelled_owned();
        servers.spawn(axum::serve(listener, router.clone()).with_graceful_shutdown(end).into_future());
    }
    shutdown.await;
    end.cancel();
    // Who has not been answered by then is not waited for.
    let _cut = timeout(DRAIN_TIMEOUT, servers.join_all()).await;
    Ok(())
}

/// Waits until all addresses of `endpoint` (`HOST:PORT`) answer `GET /readyz` with 200 in
/// `threshold` rounds in a row, one round each `period`, of which none but the first brings an
/// address that was not there before. Has no end of its own: the job's deadline is Kubernetes' to
/// set.
///
/// # Errors
///
/// When `endpoint` is no endpoint.
pub async fn cleanup_wait(endpoint: &str, threshold: u32, period: Duration) -> Result<(), CleanupError> {
    let valid = endpoint
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if !valid {
        return Err(CleanupError::Endpoint { endpoint: endpoint.into() });
    }
    let mut rounds = interval(period.max(Duration::from_millis(1)));
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut successes = Successes::default();
    while successes.in_a_row < threshold.max(1) {
        rounds.tick().await;
        match round(endpoint).await {
            Ok(addrs) => {
                successes.add(addrs);
                let nodes = successes.seen.len();
                info!(nodes, successes = successes.in_a_row, threshold, "all nodes are cleaned up");
            }
            Err(cause) => {
                successes.in_a_row = 0;
                info!(%cause, "not all nodes are cleaned up");
            }
        }
    }
    Ok(())
}

/// Rounds in which every address answered.
///
/// A name that has many addresses does not show all of them at once: musl's resolver returns no more
/// than 48, and a cluster's DNS puts others first each time.
#[derive(Default)]
struct Successes {
    in_a_row: u32,
    seen: BTreeSet<SocketAddr>,
}

impl Successes {
    fn add(&mut self, addrs: BTreeSet<SocketAddr>) {
        let before = self.seen.len();
        self.seen.extend(addrs.into_iter().take(SEEN_MAX.saturating_sub(before)));
        // Where one more turned up, there may be yet others.
        self.in_a_row = if self.seen.len() > before { 1 } else { self.in_a_row + 1 };
    }
}

/// Probes all addresses once.
async fn round(endpoint: &str) -> Result<BTreeSet<SocketAddr>, String> {
    let found = lookup_host(endpoint).await.map_err(|error| format!("{endpoint}: {error}"))?;
    let addrs: BTreeSet<SocketAddr> = found.collect();
    if addrs.is_empty() {
        return Err(format!("{endpoint}: no addresses"));
    }
    let probe = |addr: SocketAddr| async move {
        match timeout(PROBE_TIMEOUT, status(addr)).await {
            Ok(Ok(StatusCode::OK)) => Ok(()),
            Ok(Ok(status)) => Err(format!("{addr} answered {status}")),
            Ok(Err(error)) => Err(format!("{addr}: {error}")),
            Err(_) => Err(format!("{addr}: no answer within {} s", PROBE_TIMEOUT.as_secs())),
        }
    };
    let probes: Vec<Result<(), String>> =
        futures::stream::iter(addrs.iter().copied()).map(probe).buffer_unordered(PROBES_MAX).collect().await;
    probes.into_iter().collect::<Result<(), String>>().map(|()| addrs)
}

async fn status(addr: SocketAddr) -> io::Result<StatusCode> {
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get("/readyz")
        .header(header::HOST, addr.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer =
        async { sender.send_request(request).await.map(|answer| answer.status()).map_err(io::Error::other) };
    tokio::select! {
        answer = answer => answer,
        broken = async { connection.await.err(); std::future::pending().await } => broken,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use tokio::net::TcpListener;

    use super::*;
    use crate::clock;

    fn free_addr() -> SocketAddr {
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn restores_then_is_ready_until_told_to_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("_backup/docker.io")).unwrap();
        std::fs::write(dir.path().join("_backup/docker.io/hosts.toml"), "x = 1").unwrap();
        let addr = free_addr();
        let text = format!(":{}", addr.port());
        let end = CancellationToken::new();
        let shutdown = end.clone().cancelled_owned();
        let requests = async {
            while status(addr).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(status(addr).await.unwrap(), StatusCode::OK);
            assert!(dir.path().join("docker.io/hosts.toml").exists());
            assert!(!dir.path().join("_backup").exists());
            for request in ["GET /other", "POST /readyz", "DELETE /readyz"] {
                let mut stream = TcpStream::connect(addr).await.unwrap();
                let text = format!("{request} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
                tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.unwrap();
                let mut answer = String::new();
                tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 404"), "{request}: {answer}");
            }
            end.cancel();
        };
        let (cleaned, ()) = tokio::join!(cleanup(&text, dir.path(), shutdown), requests);
        cleaned.unwrap();
        assert!(status(addr).await.is_err());
    }

    #[tokio::test]
    async fn wrong_flags_are_explained() {
        let end = std::future::pending();
        assert!(
            cleanup("8080", Path::new("/nonexistent"), end).await.unwrap_err().to_string().contains("--addr")
        );
        for endpoint in ["", "host", ":80", "host:", "host:0", "host:http"] {
            let error = cleanup_wait(endpoint, 1, Duration::ZERO).await.unwrap_err();
            assert!(error.to_string().contains("HOST:PORT"), "{error}");
        }
    }

    #[tokio::test]
    async fn port_in_use_is_found_before_anything_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("_backup/docker.io")).unwrap();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = taken.local_addr().unwrap().to_string();
        let error = cleanup(&addr, dir.path(), std::future::pending()).await.unwrap_err();
        assert!(error.to_string().starts_with("--addr: cannot listen on"), "{error}");
        assert!(dir.path().join("_backup/docker.io").exists());
    }

    #[tokio::test]
    async fn waits_for_so_many_successes_in_a_row() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        // Fails, succeeds, fails, then succeeds for good.
        let answer = move || async move {
            match count.fetch_add(1, Ordering::Relaxed) {
                0 | 2 => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::OK,
            }
        };
        let server =
            tokio::spawn(
                async move { axum::serve(listener, Router::new().route("/readyz", get(answer))).await },
            );
        cleanup_wait(&endpoint, 3, Duration::from_millis(5)).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 6);
        server.abort();
    }

    #[test]
    fn address_that_turns_up_later_starts_the_count_again() {
        let addrs = |hosts: &[u8]| {
            hosts.iter().map(|host| SocketAddr::from(([10, 0, 0, *host], 8080))).collect::<BTreeSet<_>>()
        };
        let mut successes = Successes::default();
        let counts = [&[1, 2][..], &[1, 2], &[3, 1], &[1, 2], &[2, 3]].map(|hosts| {
            successes.add(addrs(hosts));
            successes.in_a_row
        });
        assert_eq!(counts, [1, 2, 1, 2, 3]);
    }

    #[test]
    fn more_nodes_than_the_resolver_shows_are_waited_for() {
        const NODES: u32 = 500;
        let mut successes = Successes::default();
        let mut rounds = 0;
        // The cluster's DNS turns its list by as much as it likes for each answer.
        let mut first = 0;
        while successes.in_a_row < 3 {
            first = (first + 131) % NODES;
            let shown = (first..first + 48).map(|host| {
                let octets = (host % NODES).to_be_bytes();
                SocketAddr::from(([10, octets[1], octets[2], octets[3]], 8080))
            });
            successes.add(shown.collect());
            rounds += 1;
        }
        assert_eq!(successes.seen.len(), NODES as usize, "after {rounds} rounds");
    }

    #[tokio::test]
    async fn node_that_does_not_answer_fails_the_round_in_time() {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let endpoint = silent.local_addr().unwrap().to_string();
        let begin = clock::now();
        assert!(round(&endpoint).await.unwrap_err().contains("no answer"));
        assert!(clock::now() - begin < 3 * PROBE_TIMEOUT);
        drop(silent);
        assert!(round(&endpoint).await.unwrap_err().contains("refused"));
        assert!(round("nobody.invalid:80").await.is_err());
    }
}
