//! The task that owns the swarm: orders in, inputs out. See [`super`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use futures::StreamExt;
use libp2p::{
    Swarm,
    core::ConnectedPoint,
    request_response::{Event, InboundFailure, Message, OutboundFailure, OutboundRequestId, ResponseChannel},
    swarm::{ConnectionId, DialError, SwarmEvent, dial_opts::DialOpts},
};
use spegel_core::{EXCHANGE_TIMEOUT_MAX, ExchangeId, Input, Output, PeerId};
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};
use tracing::{debug, warn};

use super::{
    addr::{to_core_peer, to_libp2p_peer, to_multiaddr, to_socket_addr},
    codec::{MESSAGE_SIZE_MAX, Request},
    transport::{Behaviour, BehaviourEvent},
};
use crate::clock;

/// Inputs that wait for room in the core's channel before the network is no longer read. Fewer
/// and a short burst stalls every peer; more and a core that is stuck makes memory grow.
const WAITING_INPUTS_MAX: usize = 256;

/// Messages of peers that wait for the core's reply. The core replies at once, so that this only
/// fills while it is stuck: then more are dropped, and the peers ask elsewhere.
const UNANSWERED_MAX: usize = 4096;

/// How long changes of addresses are collected before they are reported. Shorter and a start or an
/// interface coming up gives several reports, each a new record to gossip; longer delays joining.
const ADDRS_SETTLE: Duration = Duration::from_millis(50);

/// What is said of a message that was sent in vain.
const NO_REPLY: &str = "no reply in time";

/// When something is due; the number tells apart what is due at the same time.
type Timer = (Instant, u64);

enum Due {
    /// The reply to a message sent.
    Reply(ExchangeId),
    /// The answer of an address, for one who asked.
    Dial(SocketAddr, u64),
    /// The core's reply to a message received.
    Answer(ExchangeId),
    /// The report of changed addresses.
    Addrs,
}

struct Sent {
    request: OutboundRequestId,
    timer: Timer,
}

struct Received {
    channel: ResponseChannel<Vec<u8>>,
    timer: Timer,
}

/// One order to dial; several for the same address share a connection attempt.
struct Waiter {
    id: u64,
    expected: Option<PeerId>,
    timer: Timer,
}

struct Dial {
    connection: ConnectionId,
    waiters: Vec<Waiter>,
}

pub(super) struct Worker {
    swarm: Swarm<Behaviour>,
    own: PeerId,
    listen: Vec<SocketAddr>,
    inputs: mpsc::Sender<Input>,
    orders: mpsc::UnboundedReceiver<Output>,
    watch: watch::Sender<Vec<SocketAddr>>,
    /// Inputs that found the core's channel full.
    waiting: VecDeque<Input>,
    timers: BTreeMap<Timer, Due>,
    next_id: u64,
    sent: BTreeMap<ExchangeId, Sent>,
    exchanges: BTreeMap<OutboundRequestId, ExchangeId>,
    received: BTreeMap<ExchangeId, Received>,
    dials: BTreeMap<SocketAddr, Dial>,
    dialing: BTreeMap<ConnectionId, SocketAddr>,
    /// Connections this node opened, by where to.
    opened: BTreeMap<SocketAddr, BTreeMap<ConnectionId, PeerId>>,
    listening: BTreeSet<SocketAddr>,
    reported: Option<Vec<SocketAddr>>,
    addrs_timer: Option<Timer>,
}

impl Worker {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        listen: Vec<SocketAddr>,
        inputs: mpsc::Sender<Input>,
        orders: mpsc::UnboundedReceiver<Output>,
        watch: watch::Sender<Vec<SocketAddr>>,
    ) -> Self {
        let own = to_core_peer(swarm.local_peer_id()).expect("the node's own key is an Ed25519 key");
        Self {
            swarm,
            own,
            listen,
            inputs,
            orders,
            watch,
            waiting: VecDeque::new(),
            timers: BTreeMap::new(),
            next_id: 0,
            sent: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            received: BTreeMap::new(),
            dials: BTreeMap::new(),
            dialing: BTreeMap::new(),
            opened: BTreeMap::new(),
            listening: BTreeSet::new(),
            reported: None,
            addrs_timer: None,
        }
    }

    /// Works until the shell's handles or the core's channel are gone.
    pub(super) async fn run(mut self) {
        let inputs = self.inputs.clone();
        loop {
            let next = self.timers.first_key_value().map(|((at, _), _)| *at);
            tokio::select! {
                permit = inputs.reserve(), if !self.waiting.is_empty() => match (permit, self.waiting.pop_front()) {
                    (Ok(permit), Some(input)) => permit.send(input),
                    (Ok(_), None) => {}
                    (Err(_), _) => return,
                },
                order = self.orders.recv() => match order {
                    Some(order) => self.perform(order),
                    None => return,
                },
                event = self.swarm.select_next_some(), if self.waiting.len() < WAITING_INPUTS_MAX => self.on_event(event),
                () = sleep_until(next.unwrap_or_else(clock::now).into()), if next.is_some() => self.on_timers(),
            }
        }
    }

    fn perform(&mut self, order: Output) {
        if let Output::Dial { addr, peer, timeout } = order {
            self.dial(addr, peer, timeout);
        } else if let Output::Send { to, addrs, exchange, message, timeout } = order {
            self.send(to, &addrs, exchange, message, timeout);
        } else if let Output::Reply { exchange, message } = order {
            self.reply(exchange, message);
        } else if let Output::Disconnect { peer } = order {
            self.disconnect(peer);
        }
    }

    fn disconnect(&mut self, peer: PeerId) {
        // Closing takes its time; until then the connection answers for no address.
        self.opened.retain(|_, all| {
            all.retain(|_, other| *other != peer);
            !all.is_empty()
        });
        // Without a connection there is nothing to close.
        let _not_connected = self.swarm.disconnect_peer_id(to_libp2p_peer(peer));
    }

    // --- messages of this node --------------------------------------------------------------

    fn send(
        &mut self,
        to: PeerId,
        addrs: &[SocketAddr],
        exchange: ExchangeId,
        message: Vec<u8>,
        timeout: Duration,
    ) {
        if let Err(cause) = self.connect(to, addrs, &message) {
            self.push(Input::SendFailed { exchange, cause });
            return;
        }
        let deadline = clock::now() + timeout;
        let request = Request { message, deadline: Some(deadline.into()) };
        let request = self.swarm.behaviour_mut().exchange.send_request(&to_libp2p_peer(to), request);
        let timer = self.arm(deadline, Due::Reply(exchange));
        self.sent.insert(exchange, Sent { request, timer });
        self.exchanges.insert(request, exchange);
    }

    /// Makes sure that a connection is open or being opened. Dials here and not by
    /// request-response's own hand, which would dial from the listening port: two nodes that do
    /// so to each other at once open one TCP connection that both think they have opened.
    fn connect(&mut self, to: PeerId, addrs: &[SocketAddr], message: &[u8]) -> Result<(), String> {
        if message.len() > MESSAGE_SIZE_MAX {
            return Err(format!("message of {} bytes is larger than {MESSAGE_SIZE_MAX}", message.len()));
        }
        if to == self.own {
            return Err("the receiver is this node".into());
        }
        let peer = to_libp2p_peer(to);
        if self.swarm.behaviour().exchange.is_connected(&peer) {
            return Ok(());
        }
        if addrs.is_empty() {
            return Err("not connected, and no address to dial".into());
        }
        let addrs = addrs.iter().copied().map(to_multiaddr).collect();
        match self.swarm.dial(DialOpts::peer_id(peer).addresses(addrs).allocate_new_port().build()) {
            // With a dial under way the message joins those that wait for it.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => Ok(()),
            Err(error) => Err(dial_cause(&error)),
        }
    }

    /// Ends an exchange; `None` if it has ended already.
    fn end_exchange(&mut self, request: OutboundRequestId) -> Option<ExchangeId> {
        let exchange = self.exchanges.remove(&request)?;
        if let Some(sent) = self.sent.remove(&exchange) {
            self.timers.remove(&sent.timer);
        }
        Some(exchange)
    }

    // --- messages of peers --------------------------------------------------------------------

    fn receive(&mut self, from: &libp2p::PeerId, message: Vec<u8>, channel: ResponseChannel<Vec<u8>>) {
        // Dropping the channel ends the stream without a reply.
        let Some(from) = to_core_peer(from) else { return };
        if self.received.len() >= UNANSWERED_MAX {
            debug!(peer = %from, "message dropped: too many are unanswered");
            return;
        }
        let exchange = ExchangeId(self.number());
        let timer = self.arm(clock::now() + EXCHANGE_TIMEOUT_MAX, Due::Answer(exchange));
        self.received.insert(exchange, Received { channel, timer });
        self.push(Input::MessageReceived { from, exchange, message });
    }

    fn reply(&mut self, exchange: ExchangeId, message: Vec<u8>) {
        let Some(received) = self.received.remove(&exchange) else { return };
        self.timers.remove(&received.timer);
        if message.len() > MESSAGE_SIZE_MAX {
            warn!(bytes = message.len(), "reply dropped: larger than a message may be");
            return;
        }
        // The peer may be gone; its exchange ended with the connection.
        let _gone = self.swarm.behaviour_mut().exchange.send_response(received.channel, message);
    }

    // --- dials --------------------------------------------------------------------------------

    fn dial(&mut self, addr: SocketAddr, expected: Option<PeerId>, timeout: Duration) {
        let open = self.opened.get(&addr).and_then(|all| all.values().next().copied());
        if let Some(peer) = open {
            self.push(answered(addr, expected, self.own, peer));
            return;
        }
        let id = self.number();
        if !self.dials.contains_key(&addr) {
            let opts = DialOpts::unknown_peer_id().address(to_multiaddr(addr)).allocate_new_port().build();
            let connection = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => {}
                // The swarm passes over addresses it listens on itself.
                Err(DialError::NoAddresses) => {
                    self.push(answered(addr, expected, self.own, self.own));
                    return;
                }
                Err(error) => {
                    self.push(Input::DialFailed { addr, cause: dial_cause(&error) });
                    return;
                }
            }
            self.dials.insert(addr, Dial { connection, waiters: Vec::new() });
            self.dialing.insert(connection, addr);
        }
        let timer = self.arm(clock::now() + timeout, Due::Dial(addr, id));
        if let Some(dial) = self.dials.get_mut(&addr) {
            dial.waiters.push(Waiter { id, expected, timer });
        }
    }

    /// Ends a dial and answers everybody who waits for it. True if the connection is of use.
    fn end_dial(&mut self, connection: ConnectionId, outcome: &Result<PeerId, String>) -> bool {
        let Some(addr) = self.dialing.remove(&connection) else { return true };
        let Some(dial) = self.dials.remove(&addr) else { return true };
        debug_assert!(dial.connection == connection, "an address is dialled once at a time");
        let mut of_use = dial.waiters.is_empty();
        for waiter in dial.waiters {
            self.timers.remove(&waiter.timer);
            match outcome {
                Ok(peer) => {
                    of_use |= waiter.expected.is_none_or(|expected| expected == *peer);
                    self.push(answered(addr, waiter.expected, self.own, *peer));
                }
                Err(cause) => self.push(Input::DialFailed { addr, cause: cause.clone() }),
            }
        }
        of_use
    }

    // --- what happens -------------------------------------------------------------------------

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "libp2p's enum grows; what is not named is of no concern"
    )]
    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Exchange(event)) => self.on_exchange(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(&peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, endpoint, cause, .. } => {
                debug!(peer = %peer_id, cause = cause.map(tracing::field::display), "connection closed");
                if let Some(addr) = opened_addr(&endpoint)
                    && let Some(all) = self.opened.get_mut(&addr)
                {
                    all.remove(&connection_id);
                    if all.is_empty() {
                        self.opened.remove(&addr);
                    }
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                let outcome = match (&error, peer_id.as_ref().and_then(to_core_peer)) {
                    (DialError::LocalPeerId { .. }, _) => Ok(self.own),
                    // Refused by this node's own limits, after the peer had said who it is.
                    (DialError::Denied { .. }, Some(peer)) => Ok(peer),
                    (error, _) => Err(dial_cause(error)),
                };
                self.end_dial(connection_id, &outcome);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                debug!(from = %send_back_addr, cause = cause_of(&error), "connection not accepted");
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                if let Some(addr) = to_socket_addr(&address) {
                    self.listening.insert(addr);
                    self.settle_addrs();
                }
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                if let Some(addr) = to_socket_addr(&address) {
                    self.listening.remove(&addr);
                    self.settle_addrs();
                }
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                warn!(reason = reason.err().map(tracing::field::display), "router socket closed");
                for addr in addresses.iter().filter_map(to_socket_addr) {
                    self.listening.remove(&addr);
                }
                self.settle_addrs();
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "router socket failed to accept"),
            // What identify hears and what the swarm tells of its own work changes nothing here.
            _ => {}
        }
    }

    fn on_exchange(&mut self, event: Event<Request, Vec<u8>>) {
        match event {
            Event::Message { peer, message, .. } => match message {
                Message::Request { request, channel, .. } => self.receive(&peer, request.message, channel),
                Message::Response { request_id, response } => {
                    if let Some(exchange) = self.end_exchange(request_id) {
                        self.push(Input::ReplyReceived { exchange, message: response });
                    }
                }
            },
            Event::OutboundFailure { request_id, error, .. } => {
                if let Some(exchange) = self.end_exchange(request_id) {
                    self.push(Input::SendFailed { exchange, cause: send_cause(&error) });
                }
            }
            Event::InboundFailure { peer, error, .. } => {
                // Dropped without a reply: already said where it was dropped.
                if !matches!(error, InboundFailure::ResponseOmission) {
                    debug!(%peer, %error, "exchange of a peer failed");
                }
            }
            Event::ResponseSent { .. } => {}
        }
    }

    fn on_connected(
        &mut self,
        peer_id: &libp2p::PeerId,
        connection: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        let Some(peer) = to_core_peer(peer_id) else {
            debug!(peer = %peer_id, "connection closed: the peer's key is not an Ed25519 key");
            self.swarm.close_connection(connection);
            self.end_dial(connection, &Err(format!("{peer_id} answered, whose key is not an Ed25519 key")));
            return;
        };
        debug!(%peer, outgoing = endpoint.is_dialer(), "connection opened");
        if !self.end_dial(connection, &Ok(peer)) {
            self.swarm.close_connection(connection);
        } else if let Some(addr) = opened_addr(endpoint) {
            self.opened.entry(addr).or_default().insert(connection, peer);
        }
    }

    fn on_timers(&mut self) {
        let now = clock::now();
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                return;
            }
            match entry.remove() {
                Due::Reply(exchange) => {
                    if let Some(sent) = self.sent.remove(&exchange) {
                        self.exchanges.remove(&sent.request);
                        self.push(Input::SendFailed { exchange, cause: NO_REPLY.into() });
                    }
                }
                Due::Dial(addr, id) => {
                    // The attempt goes on until libp2p gives it up; who asks next joins it.
                    if let Some(dial) = self.dials.get_mut(&addr) {
                        dial.waiters.retain(|waiter| waiter.id != id);
                        self.push(Input::DialFailed { addr, cause: "no answer in time".into() });
                    }
                }
                Due::Answer(exchange) => drop(self.received.remove(&exchange)),
                Due::Addrs => self.report_addrs(),
            }
        }
    }

    // --- addresses ----------------------------------------------------------------------------

    fn settle_addrs(&mut self) {
        if self.addrs_timer.is_none() {
            self.addrs_timer = Some(self.arm(clock::now() + ADDRS_SETTLE, Due::Addrs));
        }
    }

    fn report_addrs(&mut self) {
        self.addrs_timer = None;
        let addrs = reachable(&self.listening, &self.listen);
        if self.reported.as_ref() == Some(&addrs) {
            return;
        }
        let mut ips: Vec<IpAddr> = addrs.iter().map(SocketAddr::ip).collect();
        ips.dedup();
        self.push(Input::ListenAddrsChanged { addrs: ips });
        self.watch.send_replace(addrs.clone());
        self.reported = Some(addrs);
    }

    // --- helpers ------------------------------------------------------------------------------

    fn push(&mut self, input: Input) {
        if !self.waiting.is_empty() {
            self.waiting.push_back(input);
            return;
        }
        match self.inputs.try_send(input) {
            // A closed channel ends `run` when it next asks for room.
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(input) | mpsc::error::TrySendError::Closed(input)) => {
                self.waiting.push_back(input);
            }
        }
    }

    fn arm(&mut self, at: Instant, due: Due) -> Timer {
        let timer = (at, self.number());
        self.timers.insert(timer, due);
        timer
    }

    fn number(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// The input that ends one dial.
fn answered(addr: SocketAddr, expected: Option<PeerId>, own: PeerId, peer: PeerId) -> Input {
    match expected {
        // An address that leads back to this node is worth knowing whoever was expected there.
        Some(expected) if expected != peer && peer != own => {
            Input::DialFailed { addr, cause: format!("{peer} answered where {expected} was expected") }
        }
        Some(_) | None => Input::Dialed { addr, peer },
    }
}

/// What other nodes can reach: of a socket bound to all addresses those that mean the same to
/// everybody, IPv6 first.
fn reachable(listening: &BTreeSet<SocketAddr>, listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let explicit = |ip: IpAddr| listen.iter().any(|addr| addr.ip() == ip);
    let (v6, v4): (Vec<_>, Vec<_>) = listening
        .iter()
        .copied()
        .filter(|addr| explicit(addr.ip()) || is_global(addr.ip()))
        .partition(SocketAddr::is_ipv6);
    v6.into_iter().chain(v4).collect()
}

fn is_global(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// Where a connection was opened to, if this node opened it.
fn opened_addr(endpoint: &ConnectedPoint) -> Option<SocketAddr> {
    match endpoint {
        ConnectedPoint::Dialer { address, .. } => to_socket_addr(address),
        ConnectedPoint::Listener { .. } => None,
    }
}

fn send_cause(error: &OutboundFailure) -> String {
    match error {
        OutboundFailure::DialFailure => "no connection".into(),
        OutboundFailure::Timeout => NO_REPLY.into(),
        OutboundFailure::Io(error) if error.kind() == io::ErrorKind::TimedOut => NO_REPLY.into(),
        OutboundFailure::ConnectionClosed => "connection lost".into(),
        OutboundFailure::UnsupportedProtocols => {
            "the peer is no mirror node that this release can talk to".into()
        }
        OutboundFailure::Io(error) => cause_of(error),
    }
}

fn dial_cause(error: &DialError) -> String {
    match error {
        DialError::Transport(attempts) => {
            let attempts: Vec<String> =
                attempts.iter().map(|(addr, error)| format!("{addr}: {}", cause_of(error))).collect();
            attempts.join(", ")
        }
        DialError::WrongPeerId { obtained, .. } => format!("{obtained} answered"),
        DialError::LocalPeerId { .. } => "the address leads back to this node".into(),
        DialError::Denied { cause } => cause_of(cause),
        DialError::NoAddresses => "no address to dial but this node's own".into(),
        DialError::Aborted => "given up".into(),
        DialError::DialPeerConditionFalse(_) => "dialled already".into(),
    }
}

/// libp2p's errors wrap each other and most say no more than that; the innermost is what happened.
fn cause_of(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
