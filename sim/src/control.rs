//! Control messages over turmoil's TCP: a connection for each exchange.
//!
//! libp2p cannot be replayed (its timers are a thread, its keys the OS's), so the simulator
//! carries the same messages over a plain framing. Who is at the other end is taken on trust
//! here; proving it is Noise's work.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use spegel_core::{ExchangeId, Input, MESSAGE_SIZE_MAX, Output, PeerId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    time::timeout,
};
use turmoil::net::{TcpListener, TcpStream};

/// Length of a public key, which opens each frame.
const PEER_BYTES: usize = 32;

/// The control endpoint of one node.
#[derive(Clone, Debug)]
pub struct Control {
    me: PeerId,
    inputs: mpsc::Sender<Input>,
    inbound: Arc<Mutex<Inbound>>,
}

#[derive(Debug, Default)]
struct Inbound {
    next: u64,
    waiting: BTreeMap<ExchangeId, oneshot::Sender<Vec<u8>>>,
}

impl Control {
    /// An endpoint of `me`.
    #[must_use]
    pub fn new(me: PeerId, inputs: mpsc::Sender<Input>) -> Self {
        Self { me, inputs, inbound: Arc::default() }
    }

    /// Accepts messages on `port` for ever.
    ///
    /// # Errors
    ///
    /// When the port cannot be bound.
    pub async fn listen(self, port: u16) -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let this = self.clone();
            tokio::spawn(async move {
                // A peer that goes away in mid-exchange is its own problem.
                let _ = this.receive(stream).await;
            });
        }
    }

    async fn receive(&self, mut stream: TcpStream) -> io::Result<()> {
        let (from, message) = read_frame(&mut stream).await?;
        if message.is_empty() {
            return write_frame(&mut stream, self.me, &[]).await;
        }
        let (sender, receiver) = oneshot::channel();
        let exchange = {
            let mut inbound = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
            let exchange = ExchangeId(inbound.next);
            inbound.next += 1;
            inbound.waiting.insert(exchange, sender);
            exchange
        };
        let input = Input::MessageReceived { from, exchange, message };
        self.inputs.send(input).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        let reply = receiver.await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        write_frame(&mut stream, self.me, &reply).await
    }

    /// Carries out what the core wants of the cluster; `false` if it wants something else.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the node routes every order; these four are ours")]
    pub fn perform(&self, output: &Output) -> bool {
        match output {
            Output::Reply { exchange, message } => {
                let waiting =
                    self.inbound.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(exchange);
                if let Some(waiting) = waiting {
                    // The asker has gone.
                    let _ = waiting.send(message.clone());
                }
            }
            Output::Dial { addr, timeout, .. } => {
                let (me, addr) = (self.me, *addr);
                self.report(
                    *timeout,
                    async move { exchange(me, addr, &[]).await },
                    move |result| match result {
                        Ok((peer, _)) => Input::Dialed { addr, peer },
                        Err(error) => Input::DialFailed { addr, cause: error.to_string() },
                    },
                );
            }
            Output::Send { to, addrs, exchange: id, message, timeout } => {
                let (me, to, id, message) = (self.me, *to, *id, message.clone());
                let addr = addrs.first().copied();
                let attempt = async move {
                    let addr = addr.ok_or(io::ErrorKind::AddrNotAvailable)?;
                    let (peer, reply) = exchange(me, addr, &message).await?;
                    if peer == to { Ok(reply) } else { Err(io::Error::other("another peer answered")) }
                };
                self.report(*timeout, attempt, move |result| match result {
                    Ok(message) => Input::ReplyReceived { exchange: id, message },
                    Err(error) => Input::SendFailed { exchange: id, cause: error.to_string() },
                });
            }
            // There is no connection that lasts.
            Output::Disconnect { .. } => {}
            _ => return false,
        }
        true
    }

    fn report<T: Send + 'static>(
        &self,
        limit: Duration,
        attempt: impl Future<Output = io::Result<T>> + Send + 'static,
        input: impl FnOnce(io::Result<T>) -> Input + Send + 'static,
    ) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let result = timeout(limit, pin!(attempt)).await;
            let result = result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            // The mirror has ended: nobody to tell.
            let _ = inputs.send(input(result)).await;
        });
    }
}

async fn exchange(me: PeerId, addr: SocketAddr, message: &[u8]) -> io::Result<(PeerId, Vec<u8>)> {
    let mut stream = TcpStream::connect(addr).await?;
    write_frame(&mut stream, me, message).await?;
    read_frame(&mut stream).await
}

async fn write_frame(stream: &mut TcpStream, me: PeerId, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = me.public_key().to_vec();
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
    stream.write_all(&frame).await
}

async fn read_frame(stream: &mut TcpStream) -> io::Result<(PeerId, Vec<u8>)> {
    let mut peer = [0; PEER_BYTES];
    stream.read_exact(&mut peer).await?;
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > MESSAGE_SIZE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok((PeerId::from_public_key(peer), message))
}
