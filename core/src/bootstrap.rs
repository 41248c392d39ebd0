//! Decides when to ask the bootstrapper where members may be found, and which of the addresses
//! to dial. Never resolves or dials itself, and never says who is a member: `node.rs` calls in,
//! performs the events and hands peers that were reached to membership.
//!
//! Being alone is a state, not an error: it is attempted to be ended quickly at first, then at
//! most once a minute for ever. Who has members looks for others too, soon at first and then every
//! few minutes. No more often than that, whatever the bootstrapper or membership do, because every
//! attempt takes a token from one [`Pacer`].

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    BootstrapAddr, PeerId,
    backoff::Backoff,
    output::{ANSWER_GRACE, CONNECT_TIMEOUT_MAX, Notice, soonest},
    pacer::Pacer,
    rng::Rng,
};

/// How many attempts may follow each other quickly, at start and whenever all members are lost.
/// Fewer and a node that starts a moment before its peers is alone for a minute; more is load on
/// the cluster's DNS when many nodes are alone.
const QUICK_ATTEMPTS: u32 = 10;

/// Pause after the first and at most after each of the quick attempts. Shorter spends them before
/// a peer that starts at the same time listens; longer delays the first pull that finds a peer.
const QUICK_FIRST: Duration = Duration::from_millis(250);
const QUICK_MAX: Duration = Duration::from_secs(5);

/// The pace of attempts beyond the quick ones: never more often, and up to half as long again so
/// that nodes that started together do not ask together. Shorter loads DNS and peers of a cluster
/// that cannot be joined; longer leaves a node alone after what kept it so has passed.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(60);

/// How soon a node that has found members looks whether there are others, and how rarely in the end; the pause
/// doubles, and is at least half of it. Nodes that start together where packets are lost may find each other in
/// groups; and a cluster may be split for longer than membership remembers. Shorter is load on DNS without a reason;
/// longer and the parts stay apart.
const RECHECK_FIRST: Duration = Duration::from_secs(30);
const RECHECK_INTERVAL: Duration = Duration::from_secs(400);

/// How long the bootstrapper may take. Shorter and a slow DNS server is never heard; longer and a
/// node that was started too early waits although the next attempt would succeed.
pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a dial may take: as long as a connection may take to come about.
const DIAL_TIMEOUT: Duration = CONNECT_TIMEOUT_MAX;

/// Most dials at a time by a node that is alone, and most other nodes that one attempt reaches.
/// Fewer and dead addresses hide living ones for several attempts; more is a herd when a whole
/// cluster starts.
const DIALS_MAX: usize = 5;

/// Most nodes reached by an attempt of a node that has members, to see whether the cluster is
/// whole. All nodes of both halves look, so one hit is enough; more is traffic without a reason.
const RECHECK_DIALS_MAX: usize = 2;

/// Most dials of one attempt, those that reach nobody among them. Fewer and the few true addresses
/// of a list that is mostly wrong are not found for hours; more is traffic at strangers' addresses.
const ATTEMPT_DIALS_MAX: usize = 30;

/// Most addresses kept of an answer. Fewer and large clusters are joined by the same nodes by all;
/// more is memory for nothing.
const ADDRS_MAX: usize = 1024;

/// How long an address that led back to this node is not dialled. Shorter and each node dials
/// itself without end where the bootstrapper lists all nodes; longer and an address that has moved
/// to another node is missed.
const SELF_MEMORY: Duration = Duration::from_secs(600);

/// Most addresses remembered as this node. Fewer and the oldest are dialled again, which wastes a
/// dial; a node has no more than a few.
const SELVES_MAX: usize = 256;

/// How long an address that could not be reached, or whose node did not let this one in, is a last
/// resort: doubles from the first to the most. Shorter and dead addresses keep living ones waiting;
/// longer and a peer that has come back is passed over while there are others.
const FAILURE_FIRST: Duration = Duration::from_secs(5);
const FAILURE_MAX: Duration = Duration::from_secs(300);

/// What the bootstrapper machine wants done, or tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Ask the bootstrapper; answer by [`Bootstrap::on_resolved`] or [`Bootstrap::on_failed`].
    Resolve,
    /// Dial; answer by [`Bootstrap::on_dialed`] or [`Bootstrap::on_dial_failed`].
    Dial {
        /// The address.
        addr: SocketAddr,
        /// Who should be there, where known.
        peer: Option<PeerId>,
        /// Report failure after this long.
        timeout: Duration,
    },
    /// Another node was reached: membership should join by it.
    Join {
        /// Who it is.
        peer: PeerId,
        /// Where.
        addr: SocketAddr,
    },
    /// Something the operator should know.
    Notice(Notice),
}

/// An address that could not be reached.
#[derive(Debug)]
struct Failure {
    backoff: Backoff,
    /// From when on it is as good as any other.
    retry_at: Instant,
}

/// When to bootstrap, and by whom.
#[derive(Debug)]
pub(crate) struct Bootstrap {
    me: PeerId,
    rng: Rng,
    started: bool,
    /// Live members other than this node.
    members: usize,
    /// Whether the last attempt that ended reached nobody else.
    found_nobody: bool,
    /// Bounds attempts whatever happens.
    pacer: Pacer,
    quick: Backoff,
    recheck: Backoff,
    /// When the next attempt begins; none during one.
    attempt_at: Option<Instant>,
    /// When the question that is out counts as failed.
    resolve_deadline: Option<Instant>,
    /// What this attempt has still to dial, at most [`ATTEMPT_DIALS_MAX`].
    to_dial: VecDeque<(SocketAddr, Option<PeerId>)>,
    /// Where this attempt, or the last, reached other nodes.
    reached: BTreeSet<SocketAddr>,
    /// Dials that are out, and when they count as failed.
    dials: BTreeMap<SocketAddr, Instant>,
    /// The last good answer, at most [`ADDRS_MAX`].
    answer: BTreeMap<SocketAddr, Option<PeerId>>,
    /// Addresses of it that the one before had as well.
    repeated: BTreeSet<SocketAddr>,
    /// Addresses that led back to this node, and until when that is believed.
    selves: BTreeMap<SocketAddr, Instant>,
    /// Addresses of the answer that could not be reached.
    failures: BTreeMap<SocketAddr, Failure>,
    /// Whether the present outage of the bootstrapper was told.
    outage_told: bool,
    /// At most one attempt's dials and what their answers cause wait here.
    events: VecDeque<Event>,
}

impl Bootstrap {
    /// A machine that does nothing before [`Bootstrap::start`].
    pub(crate) fn new(me: PeerId, seed: u64) -> Self {
        Self {
            me,
            rng: Rng::new(seed, "bootstrap"),
            started: false,
            members: 0,
            found_nobody: false,
            pacer: Pacer::new(ATTEMPT_INTERVAL, QUICK_ATTEMPTS),
            quick: Backoff::new(QUICK_FIRST, QUICK_MAX),
            recheck: Backoff::new(RECHECK_FIRST, RECHECK_INTERVAL),
            attempt_at: None,
            resolve_deadline: None,
            to_dial: VecDeque::new(),
            reached: BTreeSet::new(),
            dials: BTreeMap::new(),
            answer: BTreeMap::new(),
            repeated: BTreeSet::new(),
            selves: BTreeMap::new(),
            failures: BTreeMap::new(),
            outage_told: false,
            events: VecDeque::new(),
        }
    }

    /// Begins the first attempt at once.
    pub(crate) fn start(&mut self, now: Instant) {
        if !self.started {
            self.started = true;
            self.begin_attempt(now);
        }
    }

    /// The bootstrapper answered.
    pub(crate) fn on_resolved(&mut self, now: Instant, addrs: Vec<BootstrapAddr>) {
        if self.resolve_deadline.take().is_none() {
            return;
        }
        let mut addrs: Vec<_> = addrs.into_iter().filter(|at| is_usable(at.addr)).collect();
        if addrs.is_empty() {
            self.end_failed_question(now, "the bootstrapper gave no addresses");
            return;
        }
        // Chance decides which are kept, lest all nodes of a large cluster keep the same.
        if addrs.len() > ADDRS_MAX {
            self.rng.shuffle(&mut addrs);
            addrs.truncate(ADDRS_MAX);
        }
        let before = std::mem::take(&mut self.answer);
        for BootstrapAddr { addr, peer } in addrs {
            let known = self.answer.entry(addr).or_insert(peer);
            // Two answers to who is there: whoever it is will say so.
            if *known != peer {
                *known = None;
            }
        }
        self.repeated = before.into_keys().filter(|addr| self.answer.contains_key(addr)).collect();
        self.failures.retain(|addr, _| self.answer.contains_key(addr));
        self.outage_told = false;
        self.begin_dials(now);
        self.end_attempt_if_done(now);
    }

    /// The bootstrapper could not be asked.
    pub(crate) fn on_failed(&mut self, now: Instant, cause: &str) {
        if self.resolve_deadline.take().is_some() {
            self.end_failed_question(now, cause);
        }
    }

    /// A dial reached `peer`.
    pub(crate) fn on_dialed(&mut self, now: Instant, addr: SocketAddr, peer: PeerId) {
        if self.dials.remove(&addr).is_none() {
            return;
        }
        if peer == self.me {
            self.failures.remove(&addr);
            self.remember_self(now, addr);
        } else {
            // A virtual address may lead to this node at one time and to others at another.
            self.selves.remove(&addr);
            self.reached.insert(addr);
            self.events.push_back(Event::Join { peer, addr });
        }
        self.dial(now);
        self.end_attempt_if_done(now);
    }

    /// A dial reached nobody.
    pub(crate) fn on_dial_failed(&mut self, now: Instant, addr: SocketAddr) {
        if self.dials.remove(&addr).is_some() {
            self.remember_failure(now, addr);
            self.dial(now);
            self.end_attempt_if_done(now);
        }
    }

    /// Whether nobody else was there when this node last looked.
    pub(crate) fn found_nobody(&self) -> bool {
        self.found_nobody
    }

    /// There are `count` live members besides this node.
    pub(crate) fn on_members(&mut self, now: Instant, count: usize) {
        let before = std::mem::replace(&mut self.members, count);
        if (before == 0) == (count == 0) {
            return;
        }
        self.quick.reset();
        self.recheck.reset();
        // What is left was chosen for another state.
        self.to_dial.clear();
        // An attempt that is running plans the next when it ends.
        if self.attempt_at.is_some() {
            self.plan(now);
        }
    }

    /// Fires everything due at `now`. Early, late and repeated calls are harmless.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.resolve_deadline.is_some_and(|at| at <= now) {
            self.on_failed(now, "the bootstrapper did not answer");
        }
        let lost: Vec<_> = self.dials.iter().filter(|(_, at)| **at <= now).map(|(addr, _)| *addr).collect();
        for addr in lost {
            self.on_dial_failed(now, addr);
        }
        if self.attempt_at.is_some_and(|at| at <= now) {
            self.begin_attempt(now);
        }
    }

    /// When to call [`Bootstrap::handle_timeout`] next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let dials = self.dials.values().min().copied();
        soonest(soonest(self.attempt_at, self.resolve_deadline), dials)
    }

    /// The next event; drain to `None` after every call.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn begin_attempt(&mut self, now: Instant) {
        if !self.pacer.take(now) {
            self.plan(now);
            return;
        }
        self.attempt_at = None;
        self.resolve_deadline = Some(now + RESOLVE_TIMEOUT + ANSWER_GRACE);
        self.events.push_back(Event::Resolve);
    }

    fn end_failed_question(&mut self, now: Instant, cause: &str) {
        if !self.outage_told {
            self.outage_told = true;
            self.events.push_back(Event::Notice(Notice::BootstrapFailed { cause: cause.to_owned() }));
        }
        // Where members were found last is likely where some still are.
        self.begin_dials(now);
        self.end_attempt_if_done(now);
    }

    fn end_attempt_if_done(&mut self, now: Instant) {
        if self.attempt_at.is_none() && self.resolve_deadline.is_none() && self.dials.is_empty() {
            self.found_nobody = self.reached.is_empty();
            self.plan(now);
        }
    }

    fn plan(&mut self, now: Instant) {
        let delay = if self.members > 0 {
            self.recheck.next_delay(&mut self.rng)
        } else if self.quick.failures() < QUICK_ATTEMPTS {
            self.quick.next_delay(&mut self.rng)
        } else {
            ATTEMPT_INTERVAL / 2 + self.rng.jittered(ATTEMPT_INTERVAL)
        };
        let ready_at = self.pacer.ready_at(now);
        self.attempt_at = Some(if ready_at <= now + delay {
            now + delay
        } else {
            // Tokens come back at the same moment in all nodes that started together.
            ready_at + ATTEMPT_INTERVAL / 2 - self.rng.jittered(ATTEMPT_INTERVAL / 2)
        });
    }

    /// Chooses what this attempt dials, and begins.
    fn begin_dials(&mut self, now: Instant) {
        let alone = self.members == 0;
        for addr in std::mem::take(&mut self.reached) {
            if !alone {
                self.failures.remove(&addr);
            } else if self.answer.contains_key(&addr) {
                // Whoever is there did not let this node in.
                self.remember_failure(now, addr);
            }
        }
        self.selves.retain(|_, until| *until > now);
        let others = self.answer.iter().filter(|(_, peer)| **peer != Some(self.me));
        let (selves, others): (Vec<_>, Vec<_>) =
            others.map(|(addr, peer)| (*addr, *peer)).partition(|(addr, _)| self.selves.contains_key(addr));
        let (mut last_resort, mut fresh): (Vec<_>, Vec<_>) = others
            .iter()
            .filter(|(addr, _)| !self.dials.contains_key(addr))
            .partition(|(addr, _)| self.failures.get(addr).is_some_and(|failure| failure.retry_at > now));
        self.rng.shuffle(&mut fresh);
        self.rng.shuffle(&mut last_resort);
        // Of a list that changes, what it says again is likelier to be true.
        let (mut chosen, said_once): (Vec<_>, Vec<_>) =
            fresh.into_iter().partition(|(addr, _)| self.repeated.contains(addr));
        chosen.extend(said_once);
        if alone && chosen.is_empty() {
            chosen = last_resort;
        }
        // Every address leads home: a virtual one may lead elsewhere next time. One dial for each
        // attempt, so that attempts bound it.
        if others.is_empty() && !selves.is_empty() {
            chosen = vec![selves[self.rng.below(selves.len())]];
        }
        chosen.truncate(ATTEMPT_DIALS_MAX);
        self.to_dial = chosen.into();
        self.dial(now);
    }

    /// Dials on until enough were reached: a dial that reached nobody is followed by another.
    fn dial(&mut self, now: Instant) {
        let enough = if self.members == 0 { DIALS_MAX } else { RECHECK_DIALS_MAX };
        while self.dials.len() + self.reached.len() < enough
            && let Some((addr, peer)) = self.to_dial.pop_front()
        {
            self.dials.insert(addr, now + DIAL_TIMEOUT + ANSWER_GRACE);
            self.events.push_back(Event::Dial { addr, peer, timeout: DIAL_TIMEOUT });
        }
    }

    fn remember_self(&mut self, now: Instant, addr: SocketAddr) {
        if self.selves.insert(addr, now + SELF_MEMORY).is_none_or(|until| until <= now) {
            self.events.push_back(Event::Notice(Notice::BootstrapIsSelf { addr }));
        }
        if self.selves.len() > SELVES_MAX
            && let Some(oldest) = self.selves.iter().min_by_key(|(_, until)| **until).map(|(addr, _)| *addr)
        {
            self.selves.remove(&oldest);
        }
    }

    fn remember_failure(&mut self, now: Instant, addr: SocketAddr) {
        let failure = self
            .failures
            .entry(addr)
            .or_insert_with(|| Failure { backoff: Backoff::new(FAILURE_FIRST, FAILURE_MAX), retry_at: now });
        failure.retry_at = now + failure.backoff.next_delay(&mut self.rng);
    }
}

fn is_usable(addr: SocketAddr) -> bool {
    let ip = addr.ip();
    addr.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}
