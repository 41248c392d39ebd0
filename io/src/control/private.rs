//! libp2p's private network (`/key/swarm/psk/1.0.0`, specs/pnet): both ends send a nonce, and all
//! that follows is encrypted with a key that only the nodes of the cluster have. Who lacks it gets
//! no further than that: nothing it sends is understood, and nothing it is sent can be read.
//!
//! Written out here because libp2p's own takes one key. Two must do while a secret is replaced, and
//! a connection does not say which it was made with. It need not: the dialer speaks first, and
//! always begins with the same words, so that the listener sees which key makes sense of them.
//!
//! The cipher keeps strangers out and nothing more: Noise, inside of it, tells who is there and
//! notices every change.

use std::{
    future::Future,
    io::{self, ErrorKind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{Multiaddr, core::ConnectedPoint};
use salsa20::{
    XSalsa20,
    cipher::{KeyIvInit as _, StreamCipher as _},
};
use spegel_core::ClusterSecrets;
use tokio::sync::watch;

use crate::trust::Refusals;

/// What every dialer says first (multistream-select): 19 bytes follow.
const HELLO: &[u8; 20] = b"\x13/multistream/1.0.0\n";

/// Most bytes encrypted ahead of the socket. Fewer costs system calls; more is held by every
/// connection whose peer is slow.
const WRITE_BYTES_MAX: usize = 8 * 1024;

type Key = [u8; 32];
type Nonce = [u8; 24];

/// The network of those that have one of the secrets.
#[derive(Clone, Debug)]
pub(super) struct PrivateNetwork {
    secrets: watch::Receiver<ClusterSecrets>,
    refusals: Refusals,
}

impl PrivateNetwork {
    pub(super) const fn new(secrets: watch::Receiver<ClusterSecrets>, refusals: Refusals) -> Self {
        Self { secrets, refusals }
    }

    /// Makes a connection private. Has no time limit of its own.
    pub(super) async fn enter<S>(self, mut stream: S, endpoint: ConnectedPoint) -> io::Result<Private<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let dialed = dialed(&endpoint, &self.refusals);
        let mut nonce: Nonce = [0; 24];
        // A nonce that comes twice gives away what was said: no seed will do.
        rand::fill(&mut nonce);
        stream.write_all(&nonce).await?;
        stream.flush().await?;
        let mut theirs: Nonce = [0; 24];
        stream.read_exact(&mut theirs).await.map_err(|error| match &dialed {
            Some(dialed) => dialed.explain(error),
            None => error,
        })?;
        let keys: Vec<Key> = self.secrets.borrow().router_keys().collect();
        let (key, read, ahead) = match &endpoint {
            ConnectedPoint::Dialer { .. } => {
                let key = keys.first().copied().ok_or(ErrorKind::PermissionDenied)?;
                (key, cipher(&key, &theirs), Vec::new())
            }
            ConnectedPoint::Listener { send_back_addr, .. } => {
                let mut hello = [0; HELLO.len()];
                stream.read_exact(&mut hello).await?;
                let understood = keys.into_iter().find_map(|key| {
                    let (mut read, mut hello) = (cipher(&key, &theirs), hello);
                    read.apply_keystream(&mut hello);
                    (hello == *HELLO).then_some((key, read, hello.to_vec()))
                });
                understood.ok_or_else(|| {
                    self.refusals.count_connection(send_back_addr);
                    io::Error::new(ErrorKind::PermissionDenied, "not made with the cluster secret")
                })?
            }
        };
        Ok(Private {
            stream,
            read,
            write: cipher(&key, &nonce),
            ahead,
            encrypted: Vec::new(),
            silent: dialed,
            revoked: Box::pin(revoked(self.secrets, key)),
        })
    }
}

fn cipher(key: &Key, nonce: &Nonce) -> XSalsa20 {
    XSalsa20::new(key.into(), nonce.into())
}

/// A node that was dialled, to tell what may be wrong if it does not say a word.
struct Dialed {
    addr: Multiaddr,
    refusals: Refusals,
}

fn dialed(endpoint: &ConnectedPoint, refusals: &Refusals) -> Option<Dialed> {
    match endpoint {
        ConnectedPoint::Dialer { address, .. } => {
            Some(Dialed { addr: address.clone(), refusals: refusals.clone() })
        }
        ConnectedPoint::Listener { .. } => None,
    }
}

impl Dialed {
    fn explain(&self, error: io::Error) -> io::Error {
        let kinds = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        if !kinds.contains(&error.kind()) {
            return error;
        }
        self.refusals.mention_hang_up(&self.addr);
        io::Error::new(
            ErrorKind::PermissionDenied,
            "it hung up at once: does it have the same cluster secret?",
        )
    }
}

/// Completes when the secret of a key is withdrawn.
async fn revoked(mut secrets: watch::Receiver<ClusterSecrets>, key: Key) {
    let withdrawn = |secrets: &ClusterSecrets| !secrets.router_keys().any(|other| other == key);
    if secrets.wait_for(withdrawn).await.is_err() {
        // Nobody replaces secrets any more: the process ends.
        std::future::pending().await
    }
}

/// A connection of the private network. Ends when its secret is withdrawn, so that who must not
/// stay does not.
pub(super) struct Private<S> {
    stream: S,
    read: XSalsa20,
    write: XSalsa20,
    /// What was read already.
    ahead: Vec<u8>,
    /// What was encrypted and not yet written.
    encrypted: Vec<u8>,
    /// Who was dialled and has not said anything yet.
    silent: Option<Dialed>,
    revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Private<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.revoked.as_mut().poll(cx).is_ready() {
            let cause = "its cluster secret was withdrawn";
            return Poll::Ready(Err(io::Error::new(ErrorKind::PermissionDenied, cause)));
        }
        if !this.ahead.is_empty() {
            let length = buf.len().min(this.ahead.len());
            buf[..length].copy_from_slice(&this.ahead[..length]);
            this.ahead.drain(..length);
            return Poll::Ready(Ok(length));
        }
        let read = ready!(Pin::new(&mut this.stream).poll_read(cx, buf));
        let length = match (read, &this.silent) {
            (Ok(0), Some(dialed)) if !buf.is_empty() => Err(dialed.explain(ErrorKind::UnexpectedEof.into())),
            (Err(error), Some(dialed)) => Err(dialed.explain(error)),
            (read, _) => read,
        }?;
        this.silent = None;
        this.read.apply_keystream(&mut buf[..length]);
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncWrite + Unpin> Private<S> {
    /// Writes what was encrypted.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.encrypted.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.encrypted))?;
            if written == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            self.encrypted.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Private<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let taken = &buf[..buf.len().min(WRITE_BYTES_MAX)];
        self.encrypted.extend_from_slice(taken);
        let this = &mut *self;
        this.write.apply_keystream(&mut this.encrypted);
        // Encrypted once and for all, so that it counts as written whether or not it goes out at once.
        match self.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::{join, try_join};
    use libp2p::tcp::tokio::TcpStream;
    use libp2p::{
        core::{Endpoint, transport::PortUse},
        pnet::{PnetConfig, PreSharedKey},
    };
    use socket2::SockRef;
    use tokio::{net, time::timeout};

    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210";
    /// No step of a test takes longer, even on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// More than the wire holds.
    const LENGTH: usize = 256 * 1024;

    fn secrets(lines: &[&str]) -> ClusterSecrets {
        ClusterSecrets::parse(lines.join("\n").as_bytes()).unwrap()
    }

    fn dialer() -> ConnectedPoint {
        let (role_override, port_use) = (Endpoint::Dialer, PortUse::New);
        ConnectedPoint::Dialer { address: Multiaddr::empty(), role_override, port_use }
    }

    fn listener() -> ConnectedPoint {
        ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: Multiaddr::empty() }
    }

    async fn wire() -> (TcpStream, TcpStream) {
        let listener = net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) =
            join(net::TcpStream::connect(listener.local_addr().unwrap()), listener.accept()).await;
        let narrow = |stream: net::TcpStream| {
            SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
            TcpStream(stream)
        };
        (narrow(one.unwrap()), narrow(other.unwrap().0))
    }

    async fn enter<S>(lines: &[&str], stream: S, endpoint: ConnectedPoint) -> io::Result<Private<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (_sender, receiver) = watch::channel(secrets(lines));
        PrivateNetwork::new(receiver, Refusals::default()).enter(stream, endpoint).await
    }

    /// The first words, then more than the wire holds, there and back.
    async fn talk(
        mut dialer: impl AsyncRead + AsyncWrite + Unpin,
        mut listener: impl AsyncRead + AsyncWrite + Unpin,
    ) {
        let (there, back) = (vec![7; LENGTH], vec![8; LENGTH]);
        let (mut arrived, mut returned) = (vec![0; LENGTH], vec![0; LENGTH]);
        let mut hello = [0; 20];
        listener.read_exact(&mut hello).await.unwrap();
        assert_eq!(hello, *HELLO);
        let there_and_back = try_join(
            async {
                dialer.write_all(&there).await?;
                dialer.flush().await?;
                dialer.read_exact(&mut returned).await
            },
            async {
                listener.read_exact(&mut arrived).await?;
                listener.write_all(&back).await?;
                listener.flush().await
            },
        );
        timeout(PATIENCE, there_and_back).await.expect("bytes arrive").unwrap();
        assert_eq!((arrived, returned), (there, back));
    }

    async fn say_hello<S: AsyncWrite + Unpin>(mut stream: S) -> S {
        stream.write_all(HELLO).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }

    #[tokio::test]
    async fn listener_finds_out_which_of_two_secrets_was_used() {
        for (dialing, listening) in
            [(&[A][..], &[A][..]), (&[A], &[A, B]), (&[A], &[B, A]), (&[B, A], &[A, B]), (&[B], &[A, B])]
        {
            let (one, other) = wire().await;
            let dial = async { say_hello(enter(dialing, one, dialer()).await.unwrap()).await };
            let (dialing, listening) = join(dial, enter(listening, other, listener())).await;
            talk(dialing, listening.unwrap()).await;
        }
    }

    /// What goes over the wire is libp2p's own protocol.
    #[tokio::test]
    async fn protocol_is_that_of_libp2p() {
        let theirs = || PnetConfig::new(PreSharedKey::new(secrets(&[A]).router_keys().next().unwrap()));
        let (one, other) = wire().await;
        let dial = async { say_hello(theirs().handshake(one).await.unwrap()).await };
        let (dialing, listening) = join(dial, enter(&[B, A], other, listener())).await;
        talk(dialing, listening.unwrap()).await;
        let (one, other) = wire().await;
        let dial = async { say_hello(enter(&[A, B], one, dialer()).await.unwrap()).await };
        let (dialing, listening) = join(dial, theirs().handshake(other)).await;
        talk(dialing, listening.unwrap()).await;
    }

    #[tokio::test]
    async fn stranger_is_refused_and_told_what_may_be_wrong() {
        let (one, other) = wire().await;
        let dial = async {
            let mut dialing = say_hello(enter(&[B], one, dialer()).await.unwrap()).await;
            dialing.read_exact(&mut [0]).await
        };
        let listen = async { enter(&[A], other, listener()).await.map(drop) };
        let (dialed, listened) = timeout(PATIENCE, join(dial, listen)).await.expect("both end");
        assert_eq!(listened.unwrap_err().to_string(), "not made with the cluster secret");
        let told = dialed.unwrap_err().to_string();
        assert_eq!(told, "it hung up at once: does it have the same cluster secret?");
    }

    #[tokio::test]
    async fn connection_ends_when_its_secret_is_withdrawn_and_not_before() {
        let (one, other) = wire().await;
        let (sender, receiver) = watch::channel(secrets(&[A]));
        let listen = PrivateNetwork::new(receiver, Refusals::default()).enter(other, listener());
        let dial = async { say_hello(enter(&[A], one, dialer()).await.unwrap()).await };
        let (_dialing, listening) = join(dial, listen).await;
        let mut listening = listening.unwrap();
        listening.read_exact(&mut [0; 20]).await.unwrap();
        let mut more = [0];
        let mut waiting = Box::pin(listening.read_exact(&mut more));
        for steps in [&[A, B][..], &[B, A]] {
            sender.send_replace(secrets(steps));
            assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_err(), "{steps:?}: it goes on");
        }
        sender.send_replace(secrets(&[B]));
        let ended = timeout(PATIENCE, waiting).await.expect("it ends").unwrap_err();
        assert_eq!(ended.to_string(), "its cluster secret was withdrawn");
    }
}
