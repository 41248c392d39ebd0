//! Control messages and dials between cores.

use std::{net::SocketAddr, time::Duration};

use spegel_core::{ExchangeId, Input, MessageError, PeerId, Reply};

use super::{Event, Index, Reach, World, later, machine::Arrival, names::Target};

/// Why a dial failed whose address is another's.
const ANOTHER_PEER: &str = "another peer answered";

/// Of a hundred requests of a later release so many are followed by one of a kind that this one
/// does not know, and of a hundred replies so many are replaced by one.
const UNKNOWN_PERCENT: u8 = 3;

/// How long before the end of a scenario the last reply is of an unknown kind.
const UNKNOWN_REPLIES_END: Duration = Duration::from_secs(15);

/// Exchanges of requests of unknown kinds have numbers that no core has got to.
const UNKNOWN_EXCHANGES: u64 = 1 << 63;

impl World<'_> {
    pub(super) fn dial(
        &mut self,
        node: Index,
        addr: SocketAddr,
        expected: Option<PeerId>,
        timeout: Duration,
    ) {
        let life = self.machines[node].life;
        let latency = self.latency();
        let failed = |cause: &str| Input::DialFailed { addr, cause: cause.to_owned() };
        let (delay, input) = match self.target(node, addr) {
            Target::Node(target) if !matches!(self.reach(node, target), Reach::Silent) => {
                return self.after(latency, Event::Dial { node, life, addr, expected, target });
            }
            Target::Stranger(peer) if expected.is_none_or(|expected| expected == peer) => {
                (latency * 2, Input::Dialed { addr, peer })
            }
            Target::Stranger(_) => (latency * 2, failed(ANOTHER_PEER)),
            Target::Refuses => (latency * 2, failed("connection refused")),
            Target::Node(_) | Target::Nobody => (timeout, failed("timed out")),
        };
        self.after(delay, Event::Input { node, life, input });
    }

    pub(super) fn arrive_dial(
        &mut self,
        node: Index,
        life: u64,
        addr: SocketAddr,
        expected: Option<PeerId>,
        target: Index,
    ) {
        let latency = self.latency();
        let failed = |cause: &str| Input::DialFailed { addr, cause: cause.to_owned() };
        let peer = self.machines[target].peer;
        let input = match self.reach(node, target) {
            Reach::Open if expected.is_none_or(|expected| expected == peer) => Input::Dialed { addr, peer },
            Reach::Open => failed(ANOTHER_PEER),
            // The dialler gives up first: its core counts the dial as lost.
            Reach::Later(_) | Reach::Silent => return,
            Reach::Refused => failed("connection refused"),
        };
        self.after(latency, Event::Input { node, life, input });
    }

    pub(super) fn send(
        &mut self,
        node: Index,
        to: &PeerId,
        addrs: &[SocketAddr],
        exchange: ExchangeId,
        message: Vec<u8>,
        timeout: Duration,
    ) {
        if let Some(meter) = &mut self.meter {
            meter.sent(node, message.len());
        }
        let life = self.machines[node].life;
        if let Some(process) = &mut self.machines[node].process {
            process.wait_for(exchange, self.now + timeout);
        }
        let Some(to) = self.by_peer.get(to).copied().filter(|_| !addrs.is_empty()) else { return };
        let mut message = message;
        if self.machines[node].is_later {
            message = later::request(&message, &mut self.rng);
            if self.percent(UNKNOWN_PERCENT) {
                let message = later::unknown(&mut self.rng);
                let exchange = ExchangeId(UNKNOWN_EXCHANGES | exchange.0);
                let delay = self.latency();
                self.after(delay, Event::Request { from: node, life, to, exchange, message });
            }
        }
        for delay in self.travels() {
            let message = message.clone();
            self.after(delay, Event::Request { from: node, life, to, exchange, message });
        }
    }

    /// When a message arrives: once, never, or twice.
    fn travels(&mut self) -> Vec<Duration> {
        let lateness = self.lossy.travels(&mut self.rng);
        lateness.into_iter().map(|late| late + self.latency()).collect()
    }

    pub(super) fn reply(&mut self, node: Index, exchange: ExchangeId, message: Vec<u8>) {
        if let Some(meter) = &mut self.meter {
            meter.sent(node, message.len());
        }
        let process = self.machines[node].process.as_mut();
        let Some((to, life, exchange)) = process.and_then(|process| process.inbound.remove(&exchange)) else {
            return;
        };
        let mut message = message;
        if self.machines[node].is_later {
            // What got no answer is said again soon: time for that must be left at the end.
            let may_be_unknown = self.now + UNKNOWN_REPLIES_END < self.plan.ends_at;
            message = if may_be_unknown && self.percent(UNKNOWN_PERCENT) {
                later::unknown(&mut self.rng)
            } else {
                later::reply(&message, &mut self.rng)
            };
        }
        for delay in self.travels() {
            let message = message.clone();
            self.after(delay, Event::Reply { from: node, to, life, exchange, message });
        }
    }

    /// What comes of an event for one process, and for which.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are not for one process alone")]
    pub(super) fn arrival(&mut self, event: Event) -> Option<(Index, Arrival)> {
        match event {
            Event::Input { node, life, input } => {
                (self.machines[node].life == life).then_some((node, Arrival::Input(input)))
            }
            Event::Request { from, life, to, exchange, message } => match self.reach(from, to) {
                Reach::Open => {
                    let sender = self.machines[from].peer;
                    Some((to, Arrival::Request { from, life, sender, exchange, message }))
                }
                Reach::Refused if self.machines[from].life == life => {
                    Some((from, Arrival::Failure { exchange, cause: "connection refused" }))
                }
                Reach::Refused | Reach::Silent => None,
                Reach::Later(at) => {
                    self.at(at, Event::Request { from, life, to, exchange, message });
                    None
                }
            },
            Event::Reply { from, to, life, exchange, message } => {
                if self.machines[to].life != life || matches!(self.reach(from, to), Reach::Silent) {
                    return None;
                }
                if exchange.0 & UNKNOWN_EXCHANGES != 0 {
                    self.judge_unsupported(from, &message);
                    return None;
                }
                Some((to, Arrival::Reply { exchange, message }))
            }
            _ => unreachable!("it is for one process"),
        }
    }

    pub(super) fn deliver(&mut self, to: Index, arrival: Arrival) {
        let process = self.machines[to].process.as_mut();
        if let Some(input) = process.and_then(|process| process.receive(arrival)) {
            self.give(to, input);
        }
    }

    /// The answer to a request of a kind that the receiver cannot know.
    fn judge_unsupported(&mut self, from: Index, reply: &[u8]) {
        match Reply::decode(reply) {
            Ok(Reply::Unsupported) => self.outcome.unsupported += 1,
            // The receiver is of a later release itself, and answers in its own way.
            Err(MessageError::Unsupported { .. }) => {}
            other => {
                let name = &self.machines[from].name;
                self.watch.broken(format!("{name} answers a request of tomorrow by {other:?}"));
            }
        }
    }
}
