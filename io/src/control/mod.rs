//! Carries control messages between mirror nodes over libp2p: TCP, a pre-shared key if there is a
//! cluster secret, Noise, Yamux, identify, and one request-response protocol. Decides nothing: whom to dial, what to say and how long to wait are
//! orders of the core ([`Output::Dial`], [`Output::Send`], [`Output::Reply`],
//! [`Output::Disconnect`]), and what comes of them goes back as inputs. The shell calls it.
//!
//! One task owns the swarm. Orders reach it through a channel without a bound, so that the core
//! never waits for the network while the network waits for the core; what keeps that channel short
//! is the core's own bound on exchanges and dials under way, each of which ends in exactly one
//! input. Inputs go through the core's bounded channel; while that is full the task stops reading
//! the network, which TCP passes on to the peers.

mod addr;
mod codec;
mod private;
#[cfg(test)]
mod tests;
mod transport;
mod worker;

use std::{io, net::SocketAddr};

use libp2p::identity::Keypair;
use spegel_core::{ClusterSecrets, Input, Output};
use tokio::sync::{mpsc, watch};

pub(crate) use addr::{parse_bootstrap_addr, to_multiaddr};

use crate::{listen, trust::Refusals};
use private::PrivateNetwork;
use worker::Worker;

/// What the adapter must be told before it starts.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// Who this node is.
    pub keypair: Keypair,
    /// Where to listen; see [`listen::parse`]. Of an unspecified address all of the host's
    /// addresses are reported, except loopback and link-local ones; an explicit address is
    /// reported as it is.
    pub listen: Vec<SocketAddr>,
    /// Only those that have one of these are talked to, if there are any.
    pub secrets: Option<watch::Receiver<ClusterSecrets>>,
    /// Where those are counted that have none.
    pub refusals: Refusals,
}

/// Why the adapter did not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process listens there.
    #[error(
        "router address {addr} is in use by another process: is a second spegel running on this node? Stop it or choose another --router-addr"
    )]
    InUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on router address {addr}: {source}; choose another --router-addr")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The key cannot be used.
    #[error("the node's key cannot be used for Noise: {cause}")]
    Key {
        /// What is wrong with it.
        cause: String,
    },
}

/// The shell's end of the adapter. The adapter ends, closing all connections, when the last
/// handle is dropped.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    orders: mpsc::UnboundedSender<Output>,
    listening: watch::Receiver<Vec<SocketAddr>>,
}

impl ControlHandle {
    /// Carries out an order without waiting; what comes of it is an input. Orders that are not
    /// this adapter's are handed back.
    #[must_use = "what is handed back is for another adapter"]
    pub fn perform(&self, order: Output) -> Option<Output> {
        let ours = matches!(
            order,
            Output::Dial { .. } | Output::Send { .. } | Output::Reply { .. } | Output::Disconnect { .. }
        );
        if !ours {
            return Some(order);
        }
        // The task ends before its handles only when the core does; then nobody waits.
        let _ended = self.orders.send(order);
        None
    }

    /// The addresses other nodes can reach this node at, as they change. The HTTP bootstrap
    /// answers from this.
    #[must_use]
    pub fn listening(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.listening.clone()
    }

    /// Waits for the adapter to end, which it does only when the core's channel is closed.
    pub async fn ended(&self) {
        self.orders.closed().await;
    }
}

/// Listens, and starts the task that owns the swarm. Needs a tokio runtime around it.
///
/// # Errors
///
/// When an address cannot be listened on. A host without one of the two address families is
/// content with the other.
pub fn spawn(settings: ControlSettings, inputs: mpsc::Sender<Input>) -> Result<ControlHandle, ControlError> {
    let ControlSettings { keypair, listen, secrets, refusals } = settings;
    let private = secrets.map(|secrets| PrivateNetwork::new(secrets, refusals));
    let mut swarm = transport::swarm(&keypair, private)?;
    let mut lacking = None;
    let mut sockets = 0;
    for addr in &listen {
        let bound = probe(*addr).and_then(|()| {
            swarm.listen_on(to_multiaddr(*addr)).map(drop).map_err(|error| match error {
                libp2p::TransportError::Other(error) => innermost(error),
                libp2p::TransportError::MultiaddrNotSupported(_) => io::ErrorKind::Unsupported.into(),
            })
        });
        match bound {
            Ok(()) => sockets += 1,
            Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                return Err(ControlError::InUse { addr: *addr });
            }
            Err(source) if listen::lacks_family(*addr, &source) => lacking = Some((*addr, source)),
            Err(source) => return Err(ControlError::Listen { addr: *addr, source }),
        }
    }
    if let (0, Some((addr, source))) = (sockets, lacking) {
        return Err(ControlError::Listen { addr, source });
    }

    let (orders, receiver) = mpsc::unbounded_channel();
    let (watch, listening) = watch::channel(Vec::new());
    tokio::spawn(Worker::new(swarm, listen, inputs, receiver, watch).run());
    Ok(ControlHandle { orders, listening })
}

/// Finds out whether another process listens. libp2p lets listeners share a port, so without this
/// a second process would start, and take half of the first one's connections.
fn probe(addr: SocketAddr) -> io::Result<()> {
    if addr.port() == 0 {
        return Ok(());
    }
    listen::socket(addr).map(drop)
}

/// libp2p wraps the system's errors several times over; the kind is that of the innermost.
fn innermost(error: io::Error) -> io::Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(code) = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(code);
        }
        source = cause.source();
    }
    error
}
