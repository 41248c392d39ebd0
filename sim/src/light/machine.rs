//! A machine of the cluster, and the process of a mirror on it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use spegel_core::{ExchangeId, Input, Node, PeerId, PullId, oci::Digest};

use super::{
    Index,
    pull::{BYTES_PER_SECOND, Pull},
};
use crate::{containerd::Containerd, node::peer_of};

/// A machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) peer: PeerId,
    pub(super) ip: IpAddr,
    pub(super) containerd: Containerd,
    pub(super) containerd_hangs_until: Duration,
    pub(super) powered: bool,
    /// Counts processes, so that what was meant for an earlier one is not taken for this one's.
    pub(super) life: u64,
    pub(super) process: Option<Box<Process>>,
    pub(super) frozen_until: Duration,
    /// The machine sleeps until then.
    pub(super) asleep_until: Duration,
    /// How long it has slept in all: its monotonic clock is behind by so much.
    pub(super) slept: Duration,
    /// Whether its mirror, and the next one that starts, is of a later release.
    pub(super) is_later: bool,
    pub(super) is_upgraded: bool,
    /// How far its wall clock is ahead.
    pub(super) ahead_seconds: i64,
    pub(super) stopping: bool,
    /// Whether a process starts as soon as the one that is stopping has ended.
    pub(super) start_again: bool,
    pub(super) corrupt: bool,
    pub(super) bytes_per_second: u64,
    pub(super) was_ready: bool,
}

impl Machine {
    /// What its monotonic clock says.
    pub(super) fn clock(&self, base: Instant, now: Duration) -> Instant {
        base + now.saturating_sub(self.slept)
    }
}

/// A mirror's process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) node: Node,
    pub(super) sizes: BTreeMap<Digest, u64>,
    pub(super) tags: BTreeMap<String, Digest>,
    /// Until when it waits for which reply.
    pub(super) waiting: BTreeMap<ExchangeId, Duration>,
    /// No wait ends sooner.
    pub(super) timeout_at: Option<Duration>,
    pub(super) inbound: BTreeMap<ExchangeId, (Index, u64, ExchangeId)>,
    pub(super) next_inbound: u64,
    pub(super) pulls: BTreeMap<PullId, Pull>,
    pub(super) next_pull: u64,
}

/// Something that comes for a process.
#[derive(Debug)]
pub(super) enum Arrival {
    Input(Input),
    Request {
        from: Index,
        life: u64,
        sender: PeerId,
        exchange: ExchangeId,
        message: Vec<u8>,
    },
    Reply {
        exchange: ExchangeId,
        message: Vec<u8>,
    },
    /// There will be no reply.
    Failure {
        exchange: ExchangeId,
        cause: &'static str,
    },
}

impl Process {
    pub(super) fn new(node: Node) -> Self {
        Self {
            node,
            sizes: BTreeMap::new(),
            tags: BTreeMap::new(),
            waiting: BTreeMap::new(),
            timeout_at: None,
            inbound: BTreeMap::new(),
            next_inbound: 0,
            pulls: BTreeMap::new(),
            next_pull: 0,
        }
    }

    /// A message was sent, whose reply counts until then.
    pub(super) fn wait_for(&mut self, exchange: ExchangeId, until: Duration) {
        self.waiting.insert(exchange, until);
        self.timeout_at = Some(self.timeout_at.map_or(until, |at| at.min(until)));
    }

    /// When to look after it next: its core wants to be called, or has waited long enough for a
    /// reply. `base` is when all clocks began, `slept` how far behind the machine's is.
    pub(super) fn wakes_at(&self, base: Instant, slept: Duration) -> Option<Duration> {
        let core = self.node.poll_timeout().map(|(at, _)| at.saturating_duration_since(base) + slept);
        core.into_iter().chain(self.timeout_at).min()
    }

    /// That the replies which should be here by now have not come.
    pub(super) fn late(&mut self, now: Duration) -> Vec<Input> {
        if self.timeout_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let late = self.waiting.iter().filter(|(_, until)| **until <= now);
        let mut late: Vec<_> = late.map(|(exchange, until)| (*until, *exchange)).collect();
        late.sort_unstable();
        self.waiting.retain(|_, until| *until > now);
        self.timeout_at = self.waiting.values().min().copied();
        let failed = |exchange| Input::SendFailed { exchange, cause: "timed out".to_owned() };
        late.into_iter().map(|(_, exchange)| failed(exchange)).collect()
    }

    /// Whether its core wants to be called.
    pub(super) fn is_due(&self, clock: Instant) -> bool {
        self.node.poll_timeout().is_some_and(|(at, _)| at <= clock)
    }

    /// What an arrival is to the core; nothing if it comes too late.
    pub(super) fn receive(&mut self, arrival: Arrival) -> Option<Input> {
        match arrival {
            Arrival::Input(input) => Some(input),
            Arrival::Request { from, life, sender, exchange, message } => {
                let inbound = ExchangeId(self.next_inbound);
                self.next_inbound += 1;
                self.inbound.insert(inbound, (from, life, exchange));
                Some(Input::MessageReceived { from: sender, exchange: inbound, message })
            }
            Arrival::Reply { exchange, message } => {
                let is_waited_for = self.waiting.remove(&exchange);
                is_waited_for.map(|_| Input::ReplyReceived { exchange, message })
            }
            Arrival::Failure { exchange, cause } => {
                let is_waited_for = self.waiting.remove(&exchange);
                is_waited_for.map(|_| Input::SendFailed { exchange, cause: cause.to_owned() })
            }
        }
    }
}

/// The address of a machine.
fn ip_of(index: Index) -> IpAddr {
    let number = u16::try_from(index + 1).expect("fewer nodes than a subnet has addresses");
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(192, 168, high, low).into()
}

/// The machine that an address belongs to, if there are so many.
pub(super) fn index_of(ip: IpAddr) -> Option<Index> {
    let IpAddr::V4(ip) = ip else { return None };
    let [192, 168, high, low] = ip.octets() else { return None };
    usize::from(u16::from_be_bytes([high, low])).checked_sub(1)
}

/// A machine that has power, and nothing on it.
pub(super) fn machine(index: Index, name: &str) -> Machine {
    Machine {
        name: name.to_owned(),
        peer: peer_of(name),
        ip: ip_of(index),
        containerd: Containerd::default(),
        containerd_hangs_until: Duration::ZERO,
        powered: true,
        life: 0,
        process: None,
        frozen_until: Duration::ZERO,
        asleep_until: Duration::ZERO,
        slept: Duration::ZERO,
        is_later: false,
        is_upgraded: false,
        ahead_seconds: 0,
        stopping: false,
        start_again: false,
        corrupt: false,
        bytes_per_second: BYTES_PER_SECOND,
        was_ready: false,
    }
}
