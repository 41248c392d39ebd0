//! Accepts connections and speaks HTTP/1.1 on them: bounds on their number, on the size of
//! requests and on the time a client may take to send one, and an orderly end of connections
//! and of the whole server. Knows nothing of registries; serves the metrics as well.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;
use tower::Service as _;
use tracing::debug;

use super::patience::Patient;
use crate::{
    net::{Listener, Stream},
    zero_copy::{Kernel, Lane, ZeroCopy},
};

/// Most connections at once; more wait in the kernel's queue. Too few and one client with many
/// idle connections shuts out others; too many and their buffers exhaust the pod's memory.
const CONNECTIONS_MAX: usize = 4096;

/// Longest that a client may take to send the head of a request, and that a connection may be
/// idle between requests. Too short breaks clients on bad links; too long lets idle clients
/// hold connections.
const HEAD_READ_MAX: Duration = Duration::from_secs(10);

/// Largest head of a request. containerd's are below 1 KiB.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Most headers of a request.
const HEADERS_MAX: usize = 64;

/// Most bytes buffered per connection and direction before it is written; must hold the head of a
/// request. Smaller costs system calls; larger than one read of a body that is copied, and every slow
/// client holds two of them. Frames that the kernel sends should be larger, so that each is sent
/// before the body is asked for the next.
const BUFFER_BYTES_MAX: usize = HEAD_BYTES_MAX;

/// Pause after the kernel could not give a connection (out of descriptors, mostly): without
/// one the loop would spin until one is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection that has been shut down for writing is read to its end. Closing it
/// with bytes unread makes the kernel send RST, which takes bytes from the client that it has
/// received but not read, and containerd fails the pull where it would resume after a FIN.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// Most bytes read from a client in that time; beyond, RST is what it deserves.
const LINGER_BYTES_MAX: u64 = 1024 * 1024;

/// Longest that a client may take no byte of a response. Too short breaks clients on slow
/// disks; too long lets clients that hang hold connections and pulls.
const WRITE_STALL_MAX: Duration = Duration::from_secs(120);

/// Serves `router` on `listener` until `shutdown`; then lets running requests end for up to
/// `drain_max`, and ends those that still run by FIN, within two seconds. Bodies that `kernel` can
/// move are left to it.
pub async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    kernel: Kernel,
    shutdown: CancellationToken,
    drain_max: Duration,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let cut_off = CancellationToken::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&mut listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, from, permit)) => {
                let ends = [shutdown.clone(), cut_off.clone()];
                let connection = converse(stream, from, router.clone(), kernel.clone(), ends);
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                debug!(%error, "connection could not be accepted");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if time::timeout(drain_max, all_ended).await.is_err() {
        debug!(running = connections.len(), "requests cut off by shutdown");
        cut_off.cancel();
        while connections.join_next().await.is_some() {}
    }
}

async fn accept<L: Listener>(
    listener: &mut L,
    permits: &Arc<Semaphore>,
) -> io::Result<(L::Stream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, from) = listener.accept().await?;
    Ok((stream, from, permit))
}

async fn converse<S: Stream>(
    stream: S,
    from: SocketAddr,
    router: Router,
    kernel: Kernel,
    [shutdown, cut_off]: [CancellationToken; 2],
) {
    let lane = Lane::new(kernel);
    let has_socket = stream.socket().is_some();
    let stream = ZeroCopy::new(stream, lane.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        if has_socket {
            request.extensions_mut().insert(lane.clone());
        }
        router.clone().call(request)
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_MAX)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        // A client may say that it has no more to ask and still wait for the answer. One that has gone
        // says the same; it is found out by the first write, for which no pull waits long.
        .half_close(true)
        .keep_alive(true)
        // What the kernel is to send must come to the stream as it left the body.
        .writev(true)
        .serve_connection(TokioIo::new(Patient::new(stream, WRITE_STALL_MAX)), service);
    let conversation = async {
        tokio::select! {
            biased;
            ended = &mut connection => ended,
            () = shutdown.cancelled() => {
                std::pin::Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        }
    };
    if let Some(Err(error)) = cut_off.run_until_cancelled(conversation).await {
        debug!(%error, "connection ended");
    }
    let mut stream = connection.into_parts().io.into_inner();
    // The errors of both are those of a connection that is gone, which is what is wanted.
    let _ = time::timeout(LINGER_MAX, async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await
    })
    .await;
}
