//! What the swarm is made of, and its bounds. Built once, by [`super::spawn`].

use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    Swarm, Transport,
    connection_limits::{self, ConnectionLimits},
    core::{muxing::StreamMuxerBox, transport::Boxed, upgrade::Version},
    identify,
    identity::Keypair,
    noise,
    request_response::{self, ProtocolSupport},
    swarm::{self, NetworkBehaviour},
    tcp, yamux,
};
use socket2::{SockRef, TcpKeepalive};
use spegel_core::{CONNECT_TIMEOUT_MAX, EXCHANGE_TIMEOUT_MAX};
use tokio::net::TcpStream;

use super::{
    ControlError,
    codec::{Codec, PROTOCOL},
    private::PrivateNetwork,
};

/// Streams open at once on one connection, both directions together. Fewer and a burst of lookups
/// to one owner fails; more and one peer makes this node hold more unread messages.
const STREAMS_MAX: usize = 256;

/// How long a connection without streams is kept. Shorter and lookups pay for a handshake; longer
/// and a large cluster keeps connections nobody uses.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Connections accepted and kept. Fewer and a cluster of some thousand nodes churns; more and
/// strangers can use up file descriptors.
const INCOMING_MAX: u32 = 2048;

/// Connections opened and kept; as [`INCOMING_MAX`].
const OUTGOING_MAX: u32 = 2048;

/// Connections to one peer: one each way, and one each way more while old ones die. Fewer and a
/// peer that came back is locked out by its own dead connections.
const PER_PEER_MAX: u32 = 4;

/// Handshakes under way each way. Fewer and the restart of a whole cluster is slow; more and
/// strangers can keep this node busy with key exchanges.
const PENDING_MAX: u32 = 256;

/// Unacknowledged data or keep-alives for this long end a connection: the peer's machine is gone.
/// Shorter and a lossy minute costs every connection; longer and requests go on being sent into a
/// dead connection although the peer has opened another.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// Silence after which the kernel asks whether the peer's machine is still there. Shorter and idle
/// connections cost packets; longer and a peer that restarted elsewhere is found out later.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);

/// Between two keep-alives that go unanswered.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// The protocols spoken on every connection. The limits come first: request-response counts a
/// connection as open as soon as it is asked, so nobody may refuse one after it.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(super) exchange: request_response::Behaviour<Codec>,
    identify: identify::Behaviour,
}

pub(super) fn swarm(
    keypair: &Keypair,
    private: Option<PrivateNetwork>,
) -> Result<Swarm<Behaviour>, ControlError> {
    let limits = ConnectionLimits::default()
        .with_max_established_incoming(Some(INCOMING_MAX))
        .with_max_established_outgoing(Some(OUTGOING_MAX))
        .with_max_established_per_peer(Some(PER_PEER_MAX))
        .with_max_pending_incoming(Some(PENDING_MAX))
        .with_max_pending_outgoing(Some(PENDING_MAX));
    let exchange = request_response::Config::default()
        .with_request_timeout(EXCHANGE_TIMEOUT_MAX)
        .with_max_concurrent_streams(STREAMS_MAX);
    let identify = identify::Config::new("spegel/0.1.0".into(), keypair.public())
        .with_agent_version(concat!("spegel-rs/", env!("CARGO_PKG_VERSION")).into())
        // Who is where is for the core's membership to say; nothing heard here is kept.
        .with_cache_size(0);
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        exchange: request_response::Behaviour::new([(PROTOCOL, ProtocolSupport::Full)], exchange),
        identify: identify::Behaviour::new(identify),
    };
    let config = swarm::Config::with_tokio_executor()
        // The first bytes of a stream carry the message: there is one protocol to agree on, and a
        // round trip to agree on it would double the time of a lookup.
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_idle_connection_timeout(IDLE_TIMEOUT)
        .with_max_negotiating_inbound_streams(STREAMS_MAX);
    Ok(Swarm::new(transport(keypair, private)?, behaviour, keypair.public().to_peer_id(), config))
}

type Secured = Boxed<(libp2p::PeerId, StreamMuxerBox)>;

fn transport(keypair: &Keypair, private: Option<PrivateNetwork>) -> Result<Secured, ControlError> {
    let noise =
        noise::Config::new(keypair).map_err(|error| ControlError::Key { cause: error.to_string() })?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::new()).map(|stream, _| {
        tune(&stream.0);
        stream
    });
    Ok(match private {
        None => secure(tcp, noise),
        Some(private) => {
            secure(tcp.and_then(move |stream, endpoint| private.clone().enter(stream, endpoint)), noise)
        }
    })
}

fn secure<T>(transport: T, noise: noise::Config) -> Secured
where
    T: Transport + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    T::Error: Send + Sync + 'static,
    T::Dial: Send,
    T::ListenerUpgrade: Send,
{
    transport
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(CONNECT_TIMEOUT_MAX)
        .boxed()
}

/// A peer whose machine or network is gone says nothing; left to its defaults the kernel would
/// keep resending for a quarter of an hour. Best effort: the core's own deadlines stand above it.
fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL);
    let set = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_user_timeout(Some(DEAD_AFTER)))
        .and_then(|()| socket.set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!(%error, "connection keeps the kernel's timeouts");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dead_connections_are_given_up_by_the_kernel() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&stream);
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(DEAD_AFTER));
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    }
}
