//! One pull, from the request to its one final answer. It is either searching (for holders, or
//! for one of them to answer) or flowing (bytes of one holder go to the client); a search in
//! mid-body is a resume.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Candidate, Context, Event,
    holder::Holder,
    rates::{Measured, Rates, WINDOW},
};
use crate::{
    AttemptId, FetchError, Key, Notice, Output, PeerId, PullId, PullKind, RefuseReason,
    health::{Failure, THROUGHPUT_FLOOR},
    oci::Digest,
    output::soonest,
};

/// How long a manifest, or the headers of anything, may take to begin, the lookup included.
/// Longer and a pull that ends up upstream was visibly slowed; shorter and a busy cluster gives
/// up on itself.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// The same for a blob: worth more waiting, for it saves more.
pub(crate) const BLOB_ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// How often progress is reported. Longer and stalls are noticed late by as much; shorter and
/// reports cost more than bytes.
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// How long a peer may send nothing in mid-body. Shorter and a garbage collection or a burst of
/// retransmissions looks like death; longer and the client waits for a dead peer.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(1);

/// How long another holder may take to go on in mid-body. With [`STALL_MAX`] and one report that
/// makes two seconds, the most that a pull with a second holder loses.
pub(crate) const RESUME_MAX: Duration = Duration::from_millis(900);

/// How much longer it may take if the holders known run out and the directory is asked for new
/// ones. With the above that makes less than three seconds until the body is ended and the
/// client goes upstream for the rest.
pub(crate) const RESUME_LOOKUP_MAX: Duration = Duration::from_millis(900);

/// How long the shell may report nothing at all of a flowing body before that is given up. It
/// promises a report each [`REPORT_INTERVAL`] even when the client is blocked; shorter and a
/// starved process abandons good transfers; longer and a lost task hangs its client.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);

/// A peer is left when another was lately this many times faster. Fewer and pulls run after
/// ordinary differences of load, paying a connection and a slow start each time; more and a
/// broken link is put up with.
pub(crate) const SLOWER_TIMES: u64 = 4;

/// A transfer that ends within this long is not moved any more: moving takes about as long.
pub(crate) const MOVE_WORTH: Duration = Duration::from_secs(1);

/// Bytes that a transfer shorter than the measuring window must have for its speed to tell
/// something; less is dominated by latency.
const RATE_SAMPLE_MIN: u64 = 1024 * 1024;

/// Most holders taken from one lookup. Fewer and a key with some dead holders looks like one that
/// nobody has; more than a pull can try is useless.
pub(crate) const CANDIDATES_MAX: usize = 16;

/// Most holders kept of one pull, whatever later lookups find. Fewer and a long layer runs out of
/// holders to go on with; more only costs memory.
pub(crate) const HOLDERS_MAX: usize = 32;

/// How long holders that the directory named may take to fail before it is asked for others, where
/// nothing of the body has come yet. Shorter and content that only the dead have goes upstream a
/// round trip later; longer and a holder's restart sends pulls upstream although its content has
/// been announced by another meanwhile.
pub(crate) const FOUND_FRESH: Duration = Duration::from_millis(50);

/// Most lookups in mid-body. Fewer and a layer of many gigabytes cannot outlive its first
/// holders; more and a pull that goes badly keeps the directory busy.
pub(crate) const LOOKUPS_AGAIN_MAX: u32 = 8;

/// Most attempts of one pull, whatever happens. Fewer and a long layer in a restarting cluster is
/// cut; it only exists so that nothing can make a pull go round for ever.
pub(crate) const LAUNCHES_MAX: u32 = 64;

/// Bodies up to this length are read and checked before any of it is forwarded: wrong bytes are
/// then the trouble of who sent them, not of the pull. containerd keeps what it was given and
/// offers it for commit again without asking anew, so that a wrong manifest would block its image.
/// Smaller and common manifests and configs pass unchecked; larger and each pull holds as much
/// memory, and its first byte waits for the last.
pub(crate) const CHECKED_BYTES_MAX: u64 = 128 * 1024;

#[derive(Debug)]
pub(super) struct Pull {
    id: PullId,
    key: Key,
    digest: Option<Digest>,
    /// Whether the delivery can be checked: all of something whose digest is known.
    verifiable: bool,
    phase: Phase,
    holders: Vec<Holder>,
    /// Those that have not answered.
    attempts: BTreeMap<AttemptId, Attempt>,
    launched: u32,
    lookups_again: u32,
    /// Length of the whole body; known once something was forwarded.
    total: Option<u64>,
    /// Bytes of it that the client has.
    given: u64,
    /// As entered in the table of timers.
    pub(super) timer: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    Searching(Search),
    Flowing(Flow),
    Over,
}

#[derive(Debug)]
struct Search {
    deadline: Instant,
    looking_up: bool,
    looked_up_again: bool,
    /// When the directory answered.
    found_at: Option<Instant>,
    hedge_at: Option<Instant>,
    /// Holders asked; further addresses of one holder do not count.
    asked: u32,
    /// In mid-body: whom the body came from before, and why it does no more.
    left: Option<(PeerId, &'static str)>,
}

#[derive(Debug)]
struct Flow {
    id: AttemptId,
    attempt: Attempt,
    given_before: u64,
    reported_at: Instant,
    /// Time spent waiting for the peer since its last byte.
    starved: Duration,
    rates: Rates,
    rate_noted_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    /// Index of the holder.
    holder: usize,
    addr: SocketAddr,
    launched_at: Instant,
    probe: bool,
}

impl Pull {
    pub(super) fn new(
        now: Instant,
        id: PullId,
        key: Key,
        digest: Option<Digest>,
        kind: PullKind,
        verifiable: bool,
    ) -> Self {
        let patience = match kind {
            PullKind::Manifest | PullKind::Head => ANSWER_DEADLINE,
            PullKind::Blob => BLOB_ANSWER_DEADLINE,
        };
        Self {
            id,
            key,
            digest,
            verifiable,
            phase: Phase::Searching(Search { looking_up: true, ..Search::new(now + patience, None) }),
            holders: Vec::new(),
            attempts: BTreeMap::new(),
            launched: 0,
            lookups_again: 0,
            total: None,
            given: 0,
            timer: None,
        }
    }

    pub(super) const fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    pub(super) fn knows(&self, peer: &PeerId) -> bool {
        self.holders.iter().any(|holder| holder.peer == *peer)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Searching(search) => soonest(Some(search.deadline), search.hedge_at),
            Phase::Flowing(flow) => Some(flow.reported_at + SILENCE_MAX),
            Phase::Over => None,
        }
    }

    // --- searching --------------------------------------------------------------------------

    pub(super) fn on_holders(&mut self, cx: &mut Context<'_>, candidates: Vec<Candidate>, definitive: bool) {
        let none = candidates.is_empty();
        self.merge(cx, candidates);
        let Phase::Searching(search) = &mut self.phase else { return };
        search.looking_up = false;
        search.found_at = Some(cx.now);
        if none && self.holders.is_empty() {
            let reason = if definitive { RefuseReason::NobodyHasIt } else { RefuseReason::LookupUnanswered };
            return self.end(cx, reason);
        }
        if self.attempts.is_empty() {
            self.pursue(cx, true);
        } else if search.hedge_at.is_none() && search.asked <= cx.retries {
            // Holders that come late may still be faster than the ones being waited for.
            search.hedge_at = Some(cx.now + cx.health.hedge_delay());
        }
    }

    fn merge(&mut self, cx: &mut Context<'_>, candidates: Vec<Candidate>) {
        for candidate in candidates.into_iter().take(CANDIDATES_MAX) {
            let peer = candidate.peer;
            let excluded = self.digest.is_some_and(|digest| cx.verify.is_excluded(cx.now, &digest, &peer));
            if excluded || peer == cx.own || self.knows(&peer) || self.holders.len() >= HOLDERS_MAX {
                continue;
            }
            self.holders.extend(Holder::new(candidate, cx.rng));
        }
    }

    /// Asks the next holder if it is time to, and gives up if there is nothing left to wait for.
    fn pursue(&mut self, cx: &mut Context<'_>, ask: bool) {
        let Phase::Searching(search) = &self.phase else { return };
        let asks_left = search.asked <= cx.retries;
        let next = if ask && asks_left && self.launched < LAUNCHES_MAX { self.next(cx) } else { None };
        if let Some(next) = next {
            self.ask(cx, next);
        } else if let Phase::Searching(search) = &mut self.phase
            && ask
        {
            search.hedge_at = None;
        }
        let Phase::Searching(search) = &mut self.phase else { return };
        if !self.attempts.is_empty() || search.looking_up {
            return;
        }
        let is_resume = search.left.is_some();
        let is_stale = |at: Instant| cx.now.saturating_duration_since(at) >= FOUND_FRESH;
        let is_worth = is_resume || (asks_left && search.found_at.is_some_and(is_stale));
        let may_look = is_worth && !search.looked_up_again;
        if may_look && self.lookups_again < LOOKUPS_AGAIN_MAX && self.launched < LAUNCHES_MAX {
            self.lookups_again += 1;
            search.looked_up_again = true;
            search.looking_up = true;
            if is_resume {
                search.asked = 0;
                search.deadline += RESUME_LOOKUP_MAX;
            }
            cx.events.push_back(Event::Lookup { pull: self.id, key: self.key });
        } else {
            self.end(cx, RefuseReason::HoldersExhausted);
        }
    }

    /// The holder to ask next: the best that is not being asked, or else a further address of
    /// one that is, in case packets to the first one vanish.
    fn next(&self, cx: &Context<'_>) -> Option<usize> {
        let asked = |index: usize| self.attempts.values().any(|attempt| attempt.holder == index);
        let usable = |(_, holder): &(usize, &Holder)| !holder.failed;
        let rank =
            |(index, holder): (usize, &Holder)| Some((holder.rank(cx.now, cx.health, cx.verify)?, index));
        let holders = self.holders.iter().enumerate().filter(usable);
        let best = holders.clone().filter(|(index, _)| !asked(*index)).filter_map(rank).min();
        let further =
            |(index, holder): (usize, &Holder)| (asked(index) && holder.has_next_addr()).then_some(index);
        best.map(|(_, index)| index).or_else(|| holders.clone().find_map(further))
    }

    fn ask(&mut self, cx: &mut Context<'_>, index: usize) {
        let Phase::Searching(search) = &mut self.phase else { return };
        search.asked += 1;
        search.hedge_at = (search.asked <= cx.retries).then(|| cx.now + cx.health.hedge_delay());
        let holder = &mut self.holders[index];
        if !self.attempts.values().any(|attempt| attempt.holder == index) {
            holder.start_over(cx.health.addr(&holder.peer));
        }
        let probe = cx.health.on_launched(cx.now, holder.peer);
        self.launch(cx, index, probe);
    }

    /// Asks the next address of a holder.
    fn launch(&mut self, cx: &mut Context<'_>, index: usize, probe: bool) {
        let holder = &mut self.holders[index];
        let Some(addr) = holder.next_addr() else { return };
        let id = AttemptId(self.launched);
        self.launched += 1;
        self.attempts.insert(id, Attempt { holder: index, addr, launched_at: cx.now, probe });
        let (pull, peer, skip) = (self.id, holder.peer, self.given);
        let check_bytes_max = if self.verifiable && skip == 0 { CHECKED_BYTES_MAX } else { 0 };
        cx.order(Output::Fetch { pull, attempt: id, peer, addr, skip, check_bytes_max });
    }

    pub(super) fn on_answered(&mut self, cx: &mut Context<'_>, id: AttemptId, body_bytes: u64) {
        let Phase::Searching(search) = &self.phase else { return };
        let (left, looking_up) = (search.left, search.looking_up);
        let Some(attempt) = self.attempts.get(&id).copied() else { return };
        let remaining = self.total.map(|total| total.saturating_sub(self.given));
        if remaining.is_some_and(|remaining| remaining != body_bytes) {
            cx.order(Output::CancelFetch { pull: self.id, attempt: id });
            return self.on_failed(cx, id, FetchError::Malformed);
        }
        self.attempts.remove(&id);
        let peer = self.holders[attempt.holder].peer;
        let waited = cx.now.saturating_duration_since(attempt.launched_at);
        cx.health.on_answered(cx.now, peer, attempt.addr, waited);
        self.cancel_attempts(cx);
        if looking_up {
            cx.events.push_back(Event::CancelLookup { pull: self.id });
        }
        self.total.get_or_insert(body_bytes);
        self.phase = Phase::Flowing(Flow {
            id,
            attempt,
            given_before: self.given,
            reported_at: cx.now,
            starved: Duration::ZERO,
            rates: Rates::default(),
            rate_noted_at: cx.now,
        });
        cx.order(Output::Forward { pull: self.id, attempt: id, report_interval: REPORT_INTERVAL });
        if let Some((from, reason)) = left {
            let notice = Notice::PullResumed { pull: self.id, from, reason, at_bytes: self.given };
            cx.order(Output::Notice(notice));
        }
    }

    pub(super) fn on_failed(&mut self, cx: &mut Context<'_>, id: AttemptId, cause: FetchError) {
        match &self.phase {
            Phase::Searching(_) => self.on_attempt_failed(cx, id, cause),
            Phase::Flowing(flow) if flow.id == id => {
                let progress = self.given > flow.given_before;
                let holder = &mut self.holders[flow.attempt.holder];
                // Connections do break; but who breaks off again, or before the first byte, would
                // do so for ever.
                let chance = cause == FetchError::Interrupted && progress && !holder.interrupted;
                holder.interrupted = true;
                holder.failed |= !chance;
                self.leave(cx, Some(Failure::Fetch(cause)), "interrupted");
            }
            Phase::Flowing(_) | Phase::Over => {}
        }
    }

    fn on_attempt_failed(&mut self, cx: &mut Context<'_>, id: AttemptId, cause: FetchError) {
        let Some(attempt) = self.attempts.remove(&id) else { return };
        let index = attempt.holder;
        let elsewhere = self.attempts.values().any(|other| other.holder == index);
        let holder = &mut self.holders[index];
        let connect = cause == FetchError::Connect;
        if connect && !holder.failed && holder.has_next_addr() && self.launched < LAUNCHES_MAX {
            return self.launch(cx, index, attempt.probe);
        }
        match (cause, self.digest) {
            (FetchError::WrongContent, Some(digest)) => {
                holder.failed = true;
                cx.health.on_wrong_content(cx.now, holder.peer, digest);
                cx.verify.exclude(cx.now, digest, holder.peer);
            }
            (FetchError::Connect, _) if elsewhere => {}
            _ => {
                holder.failed = true;
                cx.health.on_failed(cx.now, holder.peer, Failure::Fetch(cause));
            }
        }
        cx.health.on_released(cx.now, holder.peer, attempt.probe);
        self.pursue(cx, true);
    }

    // --- flowing ----------------------------------------------------------------------------

    pub(super) fn on_progressed(
        &mut self,
        cx: &mut Context<'_>,
        id: AttemptId,
        bytes: u64,
        starved: Duration,
    ) {
        if !self.count(cx, id, bytes, starved) {
            return;
        }
        let Phase::Flowing(flow) = &mut self.phase else { return };
        let index = flow.attempt.holder;
        if flow.starved >= STALL_MAX {
            self.holders[index].failed = true;
            cx.order(Output::CancelFetch { pull: self.id, attempt: id });
            return self.leave(cx, Some(Failure::Stalled), "stalled");
        }
        let Some(measured) = flow.rates.measured() else { return };
        let rate = measured.rate();
        let peer = self.holders[index].peer;
        if cx.now.saturating_duration_since(flow.rate_noted_at) >= WINDOW {
            flow.rate_noted_at = cx.now;
            note_rate(cx, peer, measured);
        }
        let remaining = self.total.map_or(0, |total| total.saturating_sub(self.given));
        let worth = remaining > rate.saturating_mul(MOVE_WORTH.as_secs());
        if measured.peer_bound && worth && !self.holders[index].left_slow && self.has_faster(cx, index, rate)
        {
            self.holders[index].left_slow = true;
            // So that the next pull does not begin there.
            note_rate(cx, peer, measured);
            cx.order(Output::CancelFetch { pull: self.id, attempt: id });
            self.leave(cx, Some(Failure::TooSlow), "slow");
        }
    }

    pub(super) fn on_completed(&mut self, cx: &mut Context<'_>, id: AttemptId, bytes: u64) {
        if !self.count(cx, id, bytes, Duration::ZERO) {
            return;
        }
        let Phase::Flowing(flow) = std::mem::replace(&mut self.phase, Phase::Over) else { return };
        let holder = &mut self.holders[flow.attempt.holder];
        // Even if it sent nothing: an empty body can be wrong, too.
        holder.delivered = true;
        let peer = holder.peer;
        let sent = flow.rates.so_far();
        if sent.bytes >= RATE_SAMPLE_MIN {
            note_rate(cx, peer, sent);
        }
        cx.health.on_served(cx.now, peer);
        cx.health.on_released(cx.now, peer, flow.attempt.probe);
        // What was checked before it was forwarded needs no proof that containerd took it.
        let complete = self.given > CHECKED_BYTES_MAX && self.total == Some(self.given);
        if let Some(digest) = self.digest.filter(|_| self.verifiable && complete) {
            let delivered = self.holders.iter().filter(|holder| holder.delivered);
            let from: BTreeSet<_> = delivered.map(|holder| holder.peer).collect();
            cx.verify.on_delivered(cx.now, digest, from);
        }
    }

    /// Takes a report of the flowing attempt in; false if it is not of that.
    fn count(&mut self, cx: &Context<'_>, id: AttemptId, bytes: u64, starved: Duration) -> bool {
        let Phase::Flowing(flow) = &mut self.phase else { return false };
        if flow.id != id {
            return false;
        }
        let elapsed = cx.now.saturating_duration_since(flow.reported_at);
        flow.reported_at = cx.now.max(flow.reported_at);
        flow.rates.push(elapsed, bytes, starved);
        flow.starved = if bytes > 0 { Duration::ZERO } else { flow.starved.saturating_add(starved) };
        self.given = self.given.saturating_add(bytes).min(self.total.unwrap_or(u64::MAX));
        self.holders[flow.attempt.holder].delivered |= bytes > 0;
        true
    }

    /// Whether there is someone to go on with who is likely faster than `rate`. Who was left for
    /// slowness is not: two slow holders must not hand a pull to and fro.
    fn has_faster(&self, cx: &Context<'_>, current: usize, rate: u64) -> bool {
        let mut others = self.holders.iter().enumerate().filter(|(index, _)| *index != current);
        others.any(|(_, other)| {
            let ready = cx.health.rank(cx.now, &other.peer, other.same_zone).is_some_and(|rank| !rank.probe);
            let known = cx.health.throughput(cx.now, &other.peer);
            let faster = match known {
                None => rate < THROUGHPUT_FLOOR,
                Some(known) => rate < known && rate < THROUGHPUT_FLOOR.max(known / SLOWER_TIMES),
            };
            ready && !other.failed && !other.left_slow && faster
        })
    }

    /// Goes on with another holder in mid-body.
    fn leave(&mut self, cx: &mut Context<'_>, failure: Option<Failure>, reason: &'static str) {
        let Phase::Flowing(flow) = std::mem::replace(&mut self.phase, Phase::Over) else { return };
        let peer = self.holders[flow.attempt.holder].peer;
        if let Some(failure) = failure {
            cx.health.on_failed(cx.now, peer, failure);
        }
        cx.health.on_released(cx.now, peer, flow.attempt.probe);
        let search = Search::new(cx.now + RESUME_MAX, Some((peer, reason)));
        self.phase = Phase::Searching(search);
        // What a tag names may differ between holders, so that halves would not fit together.
        // And of a body that is all there, nothing is left to ask for.
        let whole = self.total == Some(self.given);
        if self.digest.is_none() || whole {
            return self.end(cx, RefuseReason::HoldersExhausted);
        }
        self.pursue(cx, true);
    }

    // --- either -----------------------------------------------------------------------------

    pub(super) fn on_peer_down(&mut self, cx: &mut Context<'_>, peer: &PeerId) {
        let Some(index) = self.holders.iter().position(|holder| holder.peer == *peer) else { return };
        self.holders[index].failed = true;
        match &self.phase {
            Phase::Searching(_) => {
                let of_peer = |(id, attempt): (&AttemptId, &Attempt)| {
                    (attempt.holder == index).then_some((*id, attempt.probe))
                };
                let gone: Vec<_> = self.attempts.iter().filter_map(of_peer).collect();
                for (id, probe) in &gone {
                    self.attempts.remove(id);
                    cx.order(Output::CancelFetch { pull: self.id, attempt: *id });
                    cx.health.on_released(cx.now, *peer, *probe);
                }
                self.pursue(cx, !gone.is_empty());
            }
            // Membership can be wrong, or the node may be leaving in good order: bytes that flow
            // are only left for a holder that can go on. If they stop, that shows soon enough.
            Phase::Flowing(flow) => {
                let (id, current) = (flow.id, flow.attempt.holder == index);
                if current && self.digest.is_some() && self.next(cx).is_some() {
                    cx.order(Output::CancelFetch { pull: self.id, attempt: id });
                    self.leave(cx, None, "peer_down");
                }
            }
            Phase::Over => {}
        }
    }

    pub(super) fn on_abandoned(&mut self, cx: &mut Context<'_>) {
        self.cancel_attempts(cx);
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Searching(search) if search.looking_up => {
                cx.events.push_back(Event::CancelLookup { pull: self.id });
            }
            Phase::Searching(_) | Phase::Over => {}
            Phase::Flowing(flow) => {
                cx.order(Output::CancelFetch { pull: self.id, attempt: flow.id });
                let peer = self.holders[flow.attempt.holder].peer;
                if self.given > flow.given_before {
                    cx.health.on_served(cx.now, peer);
                }
                cx.health.on_released(cx.now, peer, flow.attempt.probe);
            }
        }
    }

    pub(super) fn on_timeout(&mut self, cx: &mut Context<'_>) {
        match &self.phase {
            Phase::Searching(search) if search.deadline <= cx.now => {
                let waiting = search.looking_up && self.total.is_none();
                let reason =
                    if waiting { RefuseReason::LookupUnanswered } else { RefuseReason::DeadlineExceeded };
                self.end(cx, reason);
            }
            Phase::Searching(search) => {
                let hedge = search.hedge_at.is_some_and(|at| at <= cx.now);
                self.pursue(cx, hedge);
            }
            Phase::Flowing(flow) if flow.reported_at + SILENCE_MAX <= cx.now => {
                // This node's own fault, not the peer's; but going on with it would be as silent.
                let (id, index) = (flow.id, flow.attempt.holder);
                self.holders[index].failed = true;
                cx.order(Output::CancelFetch { pull: self.id, attempt: id });
                self.leave(cx, None, "silent");
            }
            Phase::Flowing(_) | Phase::Over => {}
        }
    }

    /// Drops all attempts that have not answered.
    fn cancel_attempts(&mut self, cx: &mut Context<'_>) {
        for (id, attempt) in std::mem::take(&mut self.attempts) {
            cx.order(Output::CancelFetch { pull: self.id, attempt: id });
            let peer = self.holders[attempt.holder].peer;
            let waited = cx.now.saturating_duration_since(attempt.launched_at);
            cx.health.on_unanswered(cx.now, peer, waited);
            cx.health.on_released(cx.now, peer, attempt.probe);
        }
    }

    /// The final answer, other than a complete body.
    fn end(&mut self, cx: &mut Context<'_>, reason: RefuseReason) {
        self.cancel_attempts(cx);
        if let Phase::Searching(Search { looking_up: true, .. }) = self.phase {
            cx.events.push_back(Event::CancelLookup { pull: self.id });
        }
        self.phase = Phase::Over;
        cx.order(match self.total {
            None => Output::Refuse { pull: self.id, reason, attempts: self.launched },
            Some(_) => Output::Truncate { pull: self.id, reason },
        });
    }
}

impl Search {
    const fn new(deadline: Instant, left: Option<(PeerId, &'static str)>) -> Self {
        let (looking_up, looked_up_again, found_at, hedge_at) = (false, false, None, None);
        Self { deadline, looking_up, looked_up_again, found_at, hedge_at, asked: 0, left }
    }
}

/// Tells what a peer's speed was; if the client was the slower side, that is only a lower bound.
fn note_rate(cx: &mut Context<'_>, peer: PeerId, measured: Measured) {
    let known = cx.health.throughput(cx.now, &peer);
    if measured.peer_bound || known.is_none_or(|known| measured.rate() > known) {
        cx.health.on_throughput(cx.now, peer, measured.bytes, measured.elapsed);
    }
}
