//! Control messages over turmoil's TCP: a connection for each exchange.
//!
//! libp2p cannot be replayed (its timers are a thread, its keys the OS's), so the simulator
//! carries the same messages over a plain framing. Who is at the other end is taken on trust
//! here; proving it is Noise's work.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{SeedableRng as _, rngs::StdRng};
use spegel_core::{ExchangeId, Input, MESSAGE_SIZE_MAX, Output, PeerId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use turmoil::net::{TcpListener, TcpStream};

use crate::{
    fault::{Lossy, VIP},
    node::{Resolver, lock},
};

/// Length of a public key, which opens each frame.
const PEER_BYTES: usize = 32;

/// What carries messages between all nodes. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Wire(Arc<Mutex<(Lossy, StdRng)>>);

impl Wire {
    /// One that carries everything, until told otherwise.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new((Lossy::NONE, StdRng::seed_from_u64(seed)))))
    }

    /// How messages fare from now on.
    pub fn set_lossy(&self, lossy: Lossy) {
        lock(&self.0).0 = lossy;
    }

    fn travels(&self) -> Vec<Duration> {
        let mut state = lock(&self.0);
        let (lossy, rng) = &mut *state;
        lossy.travels(rng)
    }
}

/// The control endpoint of one node.
#[derive(Clone, Debug)]
pub struct Control {
    me: PeerId,
    home: IpAddr,
    dns: Resolver,
    wire: Wire,
    inputs: mpsc::Sender<Input>,
    inbound: Arc<Mutex<Inbound>>,
    /// Where a dial of an address that is no node's has led: the connection that it opened would
    /// carry further messages to that peer.
    connected: Arc<Mutex<BTreeMap<PeerId, SocketAddr>>>,
}

#[derive(Debug, Default)]
struct Inbound {
    next: u64,
    waiting: BTreeMap<ExchangeId, oneshot::Sender<Vec<u8>>>,
}

impl Control {
    /// The endpoint of `me`, whose address is `home`.
    #[must_use]
    pub fn new(me: PeerId, home: IpAddr, dns: Resolver, wire: Wire, inputs: mpsc::Sender<Input>) -> Self {
        Self { me, home, dns, wire, inputs, inbound: Arc::default(), connected: Arc::default() }
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
            let mut inbound = lock(&self.inbound);
            let exchange = ExchangeId(inbound.next);
            inbound.next += 1;
            inbound.waiting.insert(exchange, sender);
            exchange
        };
        let input = Input::MessageReceived { from, exchange, message };
        self.inputs.send(input).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        let reply = receiver.await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        // The asker takes one reply, so that a second would not be heard.
        let Some(lateness) = self.wire.travels().first().copied() else {
            // It waits in vain until it gives up.
            return stream.read_u8().await.map(drop);
        };
        sleep(lateness).await;
        write_frame(&mut stream, self.me, &reply).await
    }

    /// Carries out what the core wants of the cluster; `false` if it wants something else.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the node routes every order; these four are ours")]
    pub fn perform(&self, output: &Output) -> bool {
        match output {
            Output::Reply { exchange, message } => {
                let waiting = lock(&self.inbound).waiting.remove(exchange);
                if let Some(waiting) = waiting {
                    // The asker has gone.
                    let _ = waiting.send(message.clone());
                }
            }
            Output::Dial { addr, timeout, .. } => {
                let (me, addr, endpoint) = (self.me, *addr, self.dns.endpoint(self.home, *addr));
                let connected = Arc::clone(&self.connected);
                self.report(*timeout, async move { exchange(me, endpoint, &[]).await }, move |result| {
                    match result {
                        Ok((peer, _)) => {
                            if endpoint != addr {
                                lock(&connected).insert(peer, endpoint);
                            }
                            Input::Dialed { addr, peer }
                        }
                        Err(error) => Input::DialFailed { addr, cause: error.to_string() },
                    }
                });
            }
            Output::Send { to, addrs, exchange: id, message, timeout } => {
                let (me, to, id, message) = (self.me, *to, *id, message.clone());
                let over = |addr: &SocketAddr| {
                    if *addr == VIP { lock(&self.connected).get(&to).copied() } else { Some(*addr) }
                };
                let addr = addrs.first().and_then(over);
                let mut travels = self.wire.travels();
                let first = travels.pop();
                for lateness in travels {
                    let message = message.clone();
                    tokio::spawn(async move {
                        sleep(lateness).await;
                        // Whatever comes of a copy, nobody waits for it.
                        if let Some(addr) = addr {
                            let _ = exchange(me, addr, &message).await;
                        }
                    });
                }
                let attempt = async move {
                    match first {
                        Some(lateness) => sleep(lateness).await,
                        None => pending().await,
                    }
                    let addr = addr.ok_or(io::ErrorKind::AddrNotAvailable)?;
                    let (peer, reply) = exchange(me, addr, &message).await?;
                    if peer == to { Ok(reply) } else { Err(io::Error::other("another peer answered")) }
                };
                self.report(*timeout, attempt, move |result| match result {
                    Ok(message) => Input::ReplyReceived { exchange: id, message },
                    Err(error) => Input::SendFailed { exchange: id, cause: error.to_string() },
                });
            }
            Output::Disconnect { peer } => {
                lock(&self.connected).remove(peer);
            }
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
