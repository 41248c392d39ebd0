//! Decides how each pull is answered: whom to ask, when to ask a second one, when to leave a
//! holder in mid-body for another, when to give up. Never moves a byte and never finds holders:
//! it asks for a lookup and is told; the shell reports what became of each attempt.
//!
//! Every pull gets exactly one final answer: it is refused before anything was forwarded, its
//! forwarded body ends (completely or truncated), or the client leaves. Events of pulls and
//! attempts that are over are ignored, so the shell need not care about races.

mod attempts;
#[cfg(test)]
mod balance;
mod flow;
mod holder;
#[cfg(test)]
mod property;
mod pull;
mod rates;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use self::{pull::Pull, verify::Verify};
use crate::{
    AttemptId, FetchError, Key, Output, PeerId, PullId, PullKind, RefuseReason, health::Health, oci::Digest,
    rng::Rng,
};

/// Most pulls at a time; further ones are refused at once. Less than a node full of starting pods
/// asks for (three layers each, and manifests) and some go upstream for nothing; more and their
/// sockets exceed what the process may open.
pub(crate) const PULLS_MAX: usize = 4096;

/// Most retries that the configuration can ask for. More would flood holders for a single pull
/// and could not happen within its deadline anyway.
pub(crate) const RETRIES_MAX: u32 = 15;

/// A holder of what is pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Who.
    pub(crate) peer: PeerId,
    /// Addresses of its registry, of families that this node has, preferred first.
    pub(crate) addrs: Vec<SocketAddr>,
    /// Whether it stands in this node's zone.
    pub(crate) same_zone: bool,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Find out who has `key`; answer by [`Fetch::on_holders`].
    Lookup { pull: PullId, key: Key },
    /// The answer to the lookup is no longer wanted.
    CancelLookup { pull: PullId },
    /// For the shell.
    Output(Output),
}

/// All pulls of the node.
#[derive(Debug)]
pub(crate) struct Fetch {
    own: PeerId,
    rng: Rng,
    /// Attempts for one answer beyond the first.
    retries: u32,
    pulls: BTreeMap<PullId, Pull>,
    /// When each pull wants to be woken, soonest first.
    timers: BTreeSet<(Instant, PullId)>,
    verify: Verify,
    shutting_down: bool,
    /// A few for each input; drained after every call.
    events: VecDeque<Event>,
}

/// What a pull needs besides itself to take a decision.
struct Context<'a> {
    now: Instant,
    own: PeerId,
    retries: u32,
    rng: &'a mut Rng,
    verify: &'a mut Verify,
    health: &'a mut Health,
    events: &'a mut VecDeque<Event>,
}

impl Context<'_> {
    fn order(&mut self, output: Output) {
        self.events.push_back(Event::Output(output));
    }
}

impl Fetch {
    /// No pulls yet, at the node called `own`, which tries up to `retries` holders beyond the
    /// first for each answer.
    pub(crate) fn new(seed: u64, own: PeerId, retries: u32) -> Self {
        Self {
            own,
            rng: Rng::new(seed, "fetch"),
            retries: retries.min(RETRIES_MAX),
            pulls: BTreeMap::new(),
            timers: BTreeSet::new(),
            verify: Verify::default(),
            shutting_down: false,
            events: VecDeque::new(),
        }
    }

    /// A client asked for something; see [`crate::Input::PullRequested`].
    #[expect(clippy::too_many_arguments, reason = "the fields of one input")]
    pub(crate) fn on_requested(
        &mut self,
        now: Instant,
        pull: PullId,
        key: Key,
        digest: Option<Digest>,
        kind: PullKind,
        whole: bool,
        health: &mut Health,
    ) {
        if self.pulls.contains_key(&pull) {
            return;
        }
        let full = self.pulls.len() >= PULLS_MAX;
        if self.shutting_down || full {
            let reason = if full { RefuseReason::Overloaded } else { RefuseReason::ShuttingDown };
            self.events.push_back(Event::Output(Output::Refuse { pull, reason, attempts: 0 }));
            return;
        }
        // Only the whole of something can have been checked against its digest.
        let verifiable = digest.filter(|_| whole && kind != PullKind::Head);
        if let Some(digest) = verifiable {
            self.verify.on_requested(now, &digest);
            self.name_culprits(now, health);
        }
        self.pulls.insert(pull, Pull::new(now, pull, key, digest, kind, verifiable.is_some()));
        self.events.push_back(Event::Lookup { pull, key });
        self.settle(pull);
    }

    /// The lookup for `pull` was answered: `candidates` have it, and if there are none, nobody
    /// has it (`definitive`) or nobody could say.
    pub(crate) fn on_holders(
        &mut self,
        now: Instant,
        pull: PullId,
        candidates: Vec<Candidate>,
        definitive: bool,
        health: &mut Health,
    ) {
        self.with(now, pull, health, |pull, cx| pull.on_holders(cx, candidates, definitive));
    }

    /// See [`crate::Input::FetchAnswered`].
    pub(crate) fn on_answered(
        &mut self,
        now: Instant,
        pull: PullId,
        attempt: AttemptId,
        body_bytes: u64,
        backlog_bytes: Option<u64>,
        health: &mut Health,
    ) {
        self.with(now, pull, health, |pull, cx| pull.on_answered(cx, attempt, body_bytes, backlog_bytes));
    }

    /// See [`crate::Input::FetchFailed`].
    pub(crate) fn on_failed(
        &mut self,
        now: Instant,
        pull: PullId,
        attempt: AttemptId,
        cause: FetchError,
        health: &mut Health,
    ) {
        self.with(now, pull, health, |pull, cx| pull.on_failed(cx, attempt, cause));
    }

    /// See [`crate::Input::FetchProgressed`].
    pub(crate) fn on_progressed(
        &mut self,
        now: Instant,
        pull: PullId,
        attempt: AttemptId,
        bytes: u64,
        starved: Duration,
        health: &mut Health,
    ) {
        self.with(now, pull, health, |pull, cx| pull.on_progressed(cx, attempt, bytes, starved));
    }

    /// See [`crate::Input::FetchCompleted`].
    pub(crate) fn on_completed(
        &mut self,
        now: Instant,
        pull: PullId,
        attempt: AttemptId,
        bytes: u64,
        health: &mut Health,
    ) {
        self.with(now, pull, health, |pull, cx| pull.on_completed(cx, attempt, bytes));
    }

    /// See [`crate::Input::PullAbandoned`].
    pub(crate) fn on_abandoned(&mut self, now: Instant, pull: PullId, health: &mut Health) {
        self.with(now, pull, health, Pull::on_abandoned);
    }

    /// The inventory gained `digest`: whoever delivered it did so rightly.
    pub(crate) fn on_content_appeared(&mut self, now: Instant, digest: &Digest, health: &mut Health) {
        for peer in self.verify.on_appeared(digest) {
            health.on_verified(now, peer);
        }
        self.name_culprits(now, health);
    }

    fn name_culprits(&mut self, now: Instant, health: &mut Health) {
        while let Some((digest, peer)) = self.verify.next_culprit(now) {
            health.on_wrong_content(now, peer, digest);
        }
    }

    /// A member left or failed: nothing more is expected of it.
    pub(crate) fn on_peer_down(&mut self, now: Instant, peer: &PeerId, health: &mut Health) {
        let concerned = self.pulls.iter().filter(|(_, pull)| pull.knows(peer)).map(|(id, _)| *id);
        for id in concerned.collect::<Vec<_>>() {
            self.with(now, id, health, |pull, cx| pull.on_peer_down(cx, peer));
        }
    }

    /// The process is ending: no more pulls are taken on, those under way go on.
    pub(crate) const fn shutdown(&mut self) {
        self.shutting_down = true;
    }

    /// Pulls under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.pulls.len()
    }

    /// This process was paused until now, for so long at least: time in which nothing could be received proves nothing.
    pub(crate) fn on_paused(&mut self, now: Instant, lasted: Duration, health: &mut Health) {
        for pull in self.pulls.keys().copied().collect::<Vec<_>>() {
            self.with(now, pull, health, |pull, cx| pull.on_paused(cx, lasted));
        }
    }

    /// Fires everything due at `now`. Early, late and repeated calls are harmless.
    pub(crate) fn handle_timeout(&mut self, now: Instant, health: &mut Health) {
        while let Some((at, pull)) = self.timers.first().copied()
            && at <= now
        {
            self.with(now, pull, health, Pull::on_timeout);
        }
    }

    /// When to call [`Fetch::handle_timeout`] next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Next action in order of decision.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn with(
        &mut self,
        now: Instant,
        id: PullId,
        health: &mut Health,
        decide: impl FnOnce(&mut Pull, &mut Context<'_>),
    ) {
        let Some(pull) = self.pulls.get_mut(&id) else { return };
        let mut context = Context {
            now,
            own: self.own,
            retries: self.retries,
            rng: &mut self.rng,
            verify: &mut self.verify,
            health,
            events: &mut self.events,
        };
        decide(pull, &mut context);
        self.settle(id);
    }

    /// Keeps the timer of a pull true, or drops the pull if it is over.
    fn settle(&mut self, id: PullId) {
        let Some(pull) = self.pulls.get_mut(&id) else { return };
        let due = pull.due();
        if pull.timer != due {
            if let Some(at) = pull.timer {
                self.timers.remove(&(at, id));
            }
            if let Some(at) = due {
                self.timers.insert((at, id));
            }
            pull.timer = due;
        }
        if pull.is_over() {
            self.pulls.remove(&id);
        }
    }
}
