//! Nodes in virtual time with all that a shell promises them: a network that loses, parts and
//! delays, a containerd that tells the truth, transfers that report. After every step it
//! checks what must hold whatever happens.

mod shell;

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::super::*;
use crate::{
    AttemptId, BootstrapAddr, FetchError, Filters, Inspection, Key, ListedContent, ListedImage, Listing,
    ManifestRead, PullKind, RefuseReason, Zone, oci::Digest, rng::Rng, test_time,
};

pub(super) const MB: u64 = 1_000_000;

/// What a source sends in one report's time: 10 MB/s.
const BYTES_PER_TICK: u64 = MB;
const TICK: Duration = Duration::from_millis(100);

/// How long a client may wait for a blob to begin, and in mid-body without a byte. Both are
/// promises of `fetch`, with a report and a timer that may be late, and the time to catch up with a pause.
const BEGIN_MAX: Duration = Duration::from_millis(2_130);
const SILENT_MAX: Duration = Duration::from_millis(3_230);

/// More rounds of timeouts at one moment mean that a shell would spin.
const ROUNDS_MAX: usize = 10;

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn digest(number: u32) -> Digest {
    Digest::sha256_of(&number.to_be_bytes())
}

/// Every byte differs from one host to another, as public keys do: lives are told apart by half of
/// the key.
pub(super) fn peer(host: usize) -> PeerId {
    PeerId::from_public_key([u8::try_from(host + 1).expect("few hosts"); 32])
}

#[derive(Debug)]
enum Event {
    Input(Input),
    /// Another node's message.
    Request {
        from: (usize, u32),
        exchange: ExchangeId,
        message: Vec<u8>,
    },
    Reply {
        exchange: ExchangeId,
        message: Option<Vec<u8>>,
    },
    /// Another node asks the registry.
    Get {
        from: (usize, u32),
        pull: PullId,
        attempt: AttemptId,
        digest: Digest,
        skip: u64,
    },
    Answer {
        pull: PullId,
        attempt: AttemptId,
        outcome: Result<u64, FetchError>,
    },
    Tick {
        pull: PullId,
        attempt: AttemptId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    Refused(RefuseReason, u32),
    Truncated(RefuseReason),
    Abandoned,
}

#[derive(Debug)]
pub(super) struct Pull {
    digest: Digest,
    kind: PullKind,
    /// When it was asked for, or had its last byte.
    waiting_since: Instant,
    /// Attempts and whom they ask: host and life.
    live: BTreeMap<AttemptId, (usize, u32)>,
    flowing: Option<AttemptId>,
    begun: bool,
    rest: u64,
    given: u64,
    pub(super) longest_wait: Duration,
    pub(super) sources: Vec<usize>,
    pub(super) end: Option<End>,
}

#[derive(Default)]
pub(super) struct Host {
    pub(super) node: Option<Node>,
    pub(super) life: u32,
    pub(super) ip: u8,
    /// Dead without a trace, rather than refusing connections.
    silent: bool,
    thaws_at: Option<Instant>,
    wake_at: Option<Instant>,
    pub(super) contents: BTreeMap<Digest, u64>,
    serving: BTreeMap<Digest, u64>,
    pub(super) is_ready: bool,
    pub(super) left_at: Vec<Instant>,
    sends: BTreeSet<ExchangeId>,
    pub(super) pulls: BTreeMap<PullId, Pull>,
    pub(super) notices: Vec<Notice>,
    /// What people were told.
    pub(super) told: Vec<Output>,
    pub(super) wakes: usize,
    pub(super) idle_wakes: usize,
}

pub(super) struct World {
    pub(super) start: Instant,
    pub(super) now: Instant,
    rng: Rng,
    seed: u64,
    pub(super) hosts: Vec<Host>,
    queue: BTreeMap<(Instant, u64), (usize, u32, Event)>,
    queued: u64,
    pulled: u64,
    answering: Option<((usize, u32), ExchangeId)>,
    pub(super) cuts: BTreeSet<(usize, usize)>,
    pub(super) loss_percent: usize,
    /// Of hosts that start from here on.
    pub(super) shutdown_delay: Duration,
    /// Timers fire late, early, and more than once.
    pub(super) meddles: bool,
    pub(super) trace: Option<Vec<String>>,
}

impl World {
    /// Hosts that all start at once.
    pub(super) fn new(seed: u64, hosts: usize) -> Self {
        let mut world = Self::empty(seed, hosts);
        (0..hosts).for_each(|host| world.start(host));
        world
    }

    pub(super) fn empty(seed: u64, hosts: usize) -> Self {
        let start = test_time::start();
        let host = |ip| Host { ip: u8::try_from(ip + 1).expect("few hosts"), ..Host::default() };
        Self {
            start,
            now: start,
            rng: Rng::new(seed, "world"),
            seed,
            hosts: (0..hosts).map(host).collect(),
            queue: BTreeMap::new(),
            queued: 0,
            pulled: 0,
            answering: None,
            cuts: BTreeSet::new(),
            loss_percent: 0,
            shutdown_delay: Duration::ZERO,
            meddles: false,
            trace: None,
        }
    }

    /// A cluster that has found itself and been listed.
    pub(super) fn settled(seed: u64, hosts: usize) -> Self {
        let mut world = Self::new(seed, hosts);
        world.run(Duration::from_secs(5));
        world
    }

    // --- what happens to hosts ---------------------------------------------------------------

    pub(super) fn start(&mut self, host: usize) {
        let unix_ms = 1_800_000_000_000 + u64::try_from((self.now - self.start).as_millis()).expect("fits");
        let config = Config {
            peer: peer(host),
            started_at_unix_ms: unix_ms,
            router_port: 5001,
            registry_port: 5000,
            zone: Zone::new(["a", "b"][host % 2]),
            filters: Filters::default(),
            resolve_timeout: ms(20),
            resolve_retries: 3,
            shutdown_delay: self.shutdown_delay,
        };
        let it = &mut self.hosts[host];
        let (life, contents, ip) = (it.life + 1, std::mem::take(&mut it.contents), it.ip);
        *it = Host { life, contents, ip, ..Host::default() };
        it.node = Some(Node::new(self.now, config, self.seed + host as u64 * 1000 + u64::from(life)));
        self.drain(host);
        self.set_ip(host, ip);
    }

    pub(super) fn set_ip(&mut self, host: usize, ip: u8) {
        self.hosts[host].ip = ip;
        self.input(host, Input::ListenAddrsChanged { addrs: vec![addr(ip, 0).ip()] });
    }

    /// Ends the process; its transfers and exchanges end with it.
    pub(super) fn kill(&mut self, host: usize, silent: bool) {
        let it = &mut self.hosts[host];
        (it.node, it.wake_at, it.thaws_at, it.silent) = (None, None, None, silent);
        it.pulls.retain(|_, pull| pull.end.is_some());
    }

    pub(super) fn freeze(&mut self, host: usize, time: Duration) {
        let it = &mut self.hosts[host];
        if it.node.is_some() && it.thaws_at.is_none() {
            it.thaws_at = Some(self.now + time);
            it.pulls.values_mut().for_each(|pull| pull.waiting_since += time);
        }
    }

    pub(super) fn is_frozen(&self, host: usize) -> bool {
        self.hosts[host].thaws_at.is_some_and(|at| self.now < at)
    }

    pub(super) fn shutdown(&mut self, host: usize) {
        self.input(host, Input::ShutdownRequested);
    }

    pub(super) fn commit(&mut self, host: usize, digest: Digest, size: u64) {
        self.hosts[host].contents.insert(digest, size);
        self.later(host, Event::Input(Input::BlobCommitted { digest }));
    }

    pub(super) fn delete(&mut self, host: usize, digest: Digest) {
        if self.hosts[host].contents.remove(&digest).is_some() {
            self.later(host, Event::Input(Input::BlobRemoved { digest }));
        }
    }

    pub(super) fn pull(&mut self, host: usize, digest: Digest, kind: PullKind) -> PullId {
        self.pulled += 1;
        let (id, now) = (PullId(self.pulled), self.now);
        let whole = kind != PullKind::Head;
        let pull = Pull {
            digest,
            kind,
            waiting_since: now,
            live: BTreeMap::new(),
            flowing: None,
            begun: false,
            rest: 0,
            given: 0,
            longest_wait: Duration::ZERO,
            sources: Vec::new(),
            end: None,
        };
        self.hosts[host].pulls.insert(id, pull);
        let key = Key::of_digest(&digest);
        self.input(host, Input::PullRequested { pull: id, key, digest: Some(digest), kind, whole });
        id
    }

    pub(super) fn abandon(&mut self, host: usize, pull: PullId) {
        let it = self.hosts[host].pulls.get_mut(&pull).expect("it was requested");
        if it.end.is_none() {
            it.end = Some(End::Abandoned);
            self.input(host, Input::PullAbandoned { pull });
        }
    }

    /// How each of these hosts is answered when it asks for the headers of something.
    pub(super) fn ask(&mut self, hosts: impl IntoIterator<Item = usize>, digest: Digest) -> Vec<End> {
        let pulls: Vec<_> =
            hosts.into_iter().map(|host| (host, self.pull(host, digest, PullKind::Head))).collect();
        self.run(ms(1_010));
        pulls.iter().map(|(host, pull)| self.end(*host, *pull).expect("answered in time")).collect()
    }

    pub(super) fn end(&self, host: usize, pull: PullId) -> Option<End> {
        self.hosts[host].pulls[&pull].end
    }

    pub(super) fn node(&mut self, host: usize) -> &mut Node {
        self.hosts[host].node.as_mut().expect("it is alive")
    }

    // --- time --------------------------------------------------------------------------------

    pub(super) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    fn step(&mut self, until: Instant) -> bool {
        let wake_up = |(index, host): (usize, &Host)| {
            let at = host.wake_at?;
            Some((host.thaws_at.map_or(at, |thaws_at| at.max(thaws_at)), index))
        };
        let wakes = self.hosts.iter().enumerate().filter_map(wake_up).min();
        let next = self.queue.keys().next().copied();
        match (next, wakes) {
            (Some(key), woken) if key.0 <= until && woken.is_none_or(|(at, _)| key.0 <= at) => {
                let (host, life, event) = self.queue.remove(&key).expect("just seen");
                self.now = self.now.max(key.0);
                self.happen(host, life, event);
            }
            (_, Some((at, host))) if at <= until => {
                self.now = self.now.max(at);
                self.wake(host);
            }
            (Some(_) | None, Some(_) | None) => return false,
        }
        for host in self.hosts.iter_mut().filter(|host| host.node.is_some()) {
            for pull in host.pulls.values_mut().filter(|pull| pull.end.is_none()) {
                let waited = self.now.saturating_duration_since(pull.waiting_since);
                pull.longest_wait = pull.longest_wait.max(waited);
                assert!(waited <= if pull.begun { SILENT_MAX } else { BEGIN_MAX }, "waits: {pull:?}");
            }
        }
        true
    }

    fn wake(&mut self, host: usize) {
        self.thaw(host);
        let (now, late) = (self.now, self.meddles && self.rng.below(4) == 0);
        if late && self.hosts[host].wake_at <= Some(now) {
            self.hosts[host].wake_at = Some(now + ms(3));
            return;
        }
        self.hosts[host].wakes += 1;
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "spins on {:?}", self.node(host).poll_timeout());
            self.node(host).handle_timeout(now);
            if self.drain(host) == 0 && round == 0 {
                self.hosts[host].idle_wakes += 1;
            }
            if self.hosts[host].wake_at.is_none_or(|at| now < at) {
                break;
            }
        }
    }

    fn thaw(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        if it.thaws_at.is_some_and(|at| at <= self.now) {
            it.thaws_at = None;
        }
    }

    fn happen(&mut self, host: usize, life: u32, event: Event) {
        self.thaw(host);
        let it = &mut self.hosts[host];
        if it.node.is_none() || it.life != life {
            return;
        }
        if let Some(at) = it.thaws_at {
            return self.at(at, host, event);
        }
        if self.meddles && self.rng.below(4) == 0 {
            let now = self.now;
            (0..2).for_each(|_| self.node(host).handle_timeout(now));
            self.drain(host);
        }
        match event {
            Event::Input(input) => self.input(host, input),
            Event::Request { from, exchange, message } => {
                self.answering = Some((from, exchange));
                let inbound = ExchangeId(u64::MAX);
                self.input(host, Input::MessageReceived { from: peer(from.0), exchange: inbound, message });
                assert!(self.answering.is_none(), "no reply to a message");
            }
            Event::Reply { exchange, message } => {
                if self.hosts[host].sends.remove(&exchange) {
                    let lost = || Input::SendFailed { exchange, cause: "lost".to_owned() };
                    let input = message.map(|message| Input::ReplyReceived { exchange, message });
                    self.input(host, input.unwrap_or_else(lost));
                }
            }
            Event::Get { from, pull, attempt, digest, skip } => {
                let size = self.hosts[host].serving.get(&digest).copied();
                let outcome = size.map(|size| size - skip).ok_or(FetchError::NotFound);
                if self.path(host, from.0).is_ok() {
                    self.later_in(from, Event::Answer { pull, attempt, outcome });
                }
            }
            Event::Answer { pull, attempt, outcome } => self.hear(host, pull, attempt, outcome),
            Event::Tick { pull, attempt } => self.tick(host, pull, attempt),
        }
    }

    pub(super) fn input(&mut self, host: usize, input: Input) {
        let now = self.now;
        if let Some(node) = self.hosts[host].node.as_mut() {
            node.handle(now, input);
            self.drain(host);
        }
    }

    /// Carries out all outputs, and says how many there were.
    fn drain(&mut self, host: usize) -> usize {
        let mut count = 0;
        while let Some(output) = self.node(host).poll_output() {
            count += 1;
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{:?} {host} {output:?}", self.now - self.start));
            }
            self.perform(host, output);
        }
        let it = &mut self.hosts[host];
        let node = it.node.as_ref().expect("it is alive");
        it.wake_at = node.poll_timeout().map(|(at, _)| at);
        assert!(node.exchanges.keys().eq(&it.sends), "exchanges leak");
        let of_pulls = node.lookups.values().filter(|asker| matches!(asker, Asker::Pull(_))).count();
        assert!(of_pulls <= node.fetch.in_flight(), "lookups leak");
        let open = it.pulls.iter().filter(|(_, pull)| pull.end.is_none()).count();
        assert!(node.fetch.in_flight() <= open + 1, "pulls leak");
        count
    }

    // --- the shell ---------------------------------------------------------------------------

    fn at(&mut self, at: Instant, host: usize, event: Event) {
        self.queued += 1;
        self.queue.insert((at, self.queued), (host, self.hosts[host].life, event));
    }

    fn later(&mut self, host: usize, event: Event) {
        let delay = Duration::from_micros(500 + self.rng.below(2_000) as u64);
        self.at(self.now + delay, host, event);
    }

    /// Unless that process is no more.
    fn later_in(&mut self, (host, life): (usize, u32), event: Event) {
        if self.hosts[host].life == life {
            self.later(host, event);
        }
    }

    /// Whether packets get from one host to another; if not, whether that is noticed.
    fn path(&mut self, from: usize, to: usize) -> Result<(), bool> {
        let cut = self.cuts.contains(&(from.min(to), from.max(to)));
        let it = &self.hosts[to];
        if cut || it.node.is_none() && it.silent || self.rng.below(100) < self.loss_percent {
            return Err(false);
        }
        if it.node.is_none() { Err(true) } else { Ok(()) }
    }

    fn host_at(&self, at: &SocketAddr) -> Option<usize> {
        self.hosts.iter().position(|host| addr(host.ip, 0).ip() == at.ip())
    }
}

fn addr(ip: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, ip), port).into()
}

fn listed((digest, size): (&Digest, &u64)) -> ListedContent {
    ListedContent { digest: *digest, size: *size, sources: Vec::new() }
}
