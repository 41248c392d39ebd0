//! One pull, from the request to its one final answer. It is either searching (for holders, or
//! for one of them to answer) or flowing (bytes of one holder go to the client); a search in
//! mid-body is a resume.

pub(crate) mod offer;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use self::offer::{COMPARE_WORTH, Offer};
use super::{
    Candidate, Context, Event,
    attempts::{Attempt, Attempts},
    flow::{Flow, REPORT_INTERVAL, note_rate},
    holder::Holder,
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

/// How long another holder may take to go on in mid-body. With [`STALL_MAX`](super::flow::STALL_MAX) and one report that
/// makes two seconds, the most that a pull with a second holder loses.
pub(crate) const RESUME_MAX: Duration = Duration::from_millis(900);

/// How much longer it may take if the holders known run out and the directory is asked for new
/// ones. With the above that makes less than three seconds until the body is ended and the
/// client goes upstream for the rest.
pub(crate) const RESUME_LOOKUP_MAX: Duration = Duration::from_millis(900);

/// A peer is left when another was lately this many times faster, unless others wait for it as well. Fewer and pulls
/// run after ordinary differences of load, paying a connection and a slow start each time; more and a
/// broken link is put up with.
pub(crate) const SLOWER_TIMES: u64 = 4;

/// A transfer that ends within this long is not moved any more: moving takes about as long.
pub(crate) const MOVE_WORTH: Duration = Duration::from_secs(1);

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

/// Most time that a search is given back for pauses of this process. Less and a pull that was paused twice gives up on
/// holders that had no time to answer; more and a process that is paused all the time keeps its clients waiting.
pub(crate) const TIME_BACK_MAX: Duration = Duration::from_secs(1);

/// How long answers that came in a pause may take to be read, once for each search. Shorter and it gives up on what it
/// has; longer and a client waits that had better gone upstream.
pub(crate) const CATCH_UP: Duration = Duration::from_millis(100);

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
    attempts: Attempts,
    lookups_again: u32,
    comparisons: u32,
    moved_in_vain: u32,
    /// Length of the whole body; known once something was forwarded.
    total: Option<u64>,
    /// Bytes of it that the client has, counted from where the present holder began.
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
    /// How much of what pauses took it may still be given back.
    time_back: Duration,
    /// Whether it was given [`CATCH_UP`] after a pause.
    has_caught_up: bool,
    looking_up: bool,
    looked_up_again: bool,
    /// When the directory answered.
    found_at: Option<Instant>,
    hedge_at: Option<Instant>,
    /// Holders asked; further addresses of one holder do not count.
    asked: u32,
    /// A busy holder that has answered, while another is asked.
    offer: Option<Offer>,
    /// In mid-body: whom the body came from before, and why it does no more.
    left: Option<(PeerId, &'static str)>,
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
            attempts: Attempts::default(),
            lookups_again: 0,
            comparisons: 0,
            moved_in_vain: 0,
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
            Phase::Flowing(flow) => Some(flow.silent_at()),
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
        if let Some(offer) = search.offer {
            return if self.attempts.is_empty() {
                self.take(cx, offer)
            };
        }
        let asks_left = search.asked <= cx.retries;
        let next = if ask && asks_left && self.attempts.may_launch() { self.next(cx) } else { None };
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
        if may_look && self.lookups_again < LOOKUPS_AGAIN_MAX && self.attempts.may_launch() {
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
        let offered = self.offer().map(|offer| offer.attempt.holder);
        let asked = |index: usize| offered == Some(index) || self.attempts.has(index);
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
        self.ask_first_addr(cx, index);
    }

    fn ask_first_addr(&mut self, cx: &mut Context<'_>, index: usize) {
        let holder = &mut self.holders[index];
        if !self.attempts.has(index) {
            holder.start_over(cx.health.addr(&holder.peer));
        }
        let probe = cx.health.on_launched(cx.now, holder.peer);
        self.launch(cx, index, probe);
    }

    /// Asks the next address of a holder.
    fn launch(&mut self, cx: &mut Context<'_>, index: usize, probe: bool) {
        let holder = &mut self.holders[index];
        let Some(addr) = holder.next_addr() else { return };
        let skip = self.given;
        let id = self.attempts.launch(Attempt { holder: index, addr, skip, launched_at: cx.now, probe });
        let (pull, peer) = (self.id, holder.peer);
        let check_bytes_max = if self.verifiable && skip == 0 { CHECKED_BYTES_MAX } else { 0 };
        cx.order(Output::Fetch { pull, attempt: id, peer, addr, skip, check_bytes_max });
    }

    pub(super) fn on_answered(
        &mut self,
        cx: &mut Context<'_>,
        id: AttemptId,
        body_bytes: u64,
        backlog_bytes: Option<u64>,
    ) {
        let Some(attempt) = self.attempts.get(id) else { return };
        let remaining = self.total.map(|total| total.saturating_sub(attempt.skip));
        if remaining.is_some_and(|remaining| remaining != body_bytes) {
            cx.order(Output::CancelFetch { pull: self.id, attempt: id });
            return self.on_failed(cx, id, FetchError::Malformed);
        }
        self.attempts.remove(id);
        let peer = self.holders[attempt.holder].peer;
        let waited = cx.now.saturating_duration_since(attempt.launched_at);
        cx.health.on_answered(cx.now, peer, attempt.addr, waited);
        let offer = Offer { id, attempt, body_bytes, backlog_bytes };
        let Phase::Searching(search) = &self.phase else { return self.on_compared(cx, offer) };
        let is_resume = search.left.is_some();
        match search.offer {
            Some(earlier)
                if offer.is_better_than(&earlier) && self.is_comparable(cx, attempt.holder, &earlier) =>
            {
                self.decline(cx);
                self.take(cx, offer);
            }
            Some(earlier) => {
                self.release(cx, id, attempt);
                self.take(cx, earlier);
            }
            None if !is_resume && offer.is_doubtful() => self.compare(cx, offer),
            None => self.take(cx, offer),
        }
    }

    /// Ends a transfer through no fault of its holder.
    fn dismiss(&self, cx: &mut Context<'_>, id: AttemptId, attempt: Attempt) {
        if self.given > attempt.skip {
            cx.health.on_served(cx.now, self.holders[attempt.holder].peer);
        }
        self.release(cx, id, attempt);
    }

    /// Ends an attempt that is not needed.
    fn release(&self, cx: &mut Context<'_>, id: AttemptId, attempt: Attempt) {
        cx.order(Output::CancelFetch { pull: self.id, attempt: id });
        cx.health.on_released(cx.now, self.holders[attempt.holder].peer, attempt.probe);
    }

    /// Forwards what a holder offers.
    fn take(&mut self, cx: &mut Context<'_>, offer: Offer) {
        let Phase::Searching(search) = &mut self.phase else { return };
        let (left, looking_up) = (search.left, search.looking_up);
        let was_held_back = search.offer.take().is_some();
        // What was only asked to compare tells nothing by its silence.
        let since = offer.attempt.launched_at;
        self.cancel_attempts(cx, |attempt| !was_held_back || attempt.launched_at < since);
        if looking_up {
            cx.events.push_back(Event::CancelLookup { pull: self.id });
        }
        self.begin(cx, &offer, left);
    }

    fn begin(&mut self, cx: &mut Context<'_>, offer: &Offer, left: Option<(PeerId, &'static str)>) {
        self.total.get_or_insert(offer.body_bytes);
        // The client may have been given more since it was asked for: that is not given again, but counted.
        self.given = offer.attempt.skip;
        self.phase = Phase::Flowing(Flow::new(cx.now, offer));
        cx.order(Output::Forward { pull: self.id, attempt: offer.id, report_interval: REPORT_INTERVAL });
        if let Some((from, reason)) = left {
            let notice = Notice::PullResumed { pull: self.id, from, reason, at_bytes: self.given };
            cx.order(Output::Notice(notice));
        }
    }

    pub(super) fn on_failed(&mut self, cx: &mut Context<'_>, id: AttemptId, cause: FetchError) {
        match &self.phase {
            Phase::Searching(_) => self.on_attempt_failed(cx, id, cause),
            Phase::Flowing(flow) if flow.id == id => {
                let progress = self.given > flow.attempt.skip;
                let holder = &mut self.holders[flow.attempt.holder];
                // Connections do break; but who breaks off again, or before the first byte, would
                // do so for ever.
                let chance = cause == FetchError::Interrupted && progress && !holder.interrupted;
                holder.interrupted = true;
                holder.failed |= !chance;
                self.leave(cx, Some(Failure::Fetch(cause)), "interrupted");
            }
            Phase::Flowing(_) => self.on_attempt_failed(cx, id, cause),
            Phase::Over => {}
        }
    }

    fn on_attempt_failed(&mut self, cx: &mut Context<'_>, id: AttemptId, cause: FetchError) {
        let Some(attempt) = self.attempts.remove(id).or_else(|| self.withdrawn(id)) else { return };
        let index = attempt.holder;
        let elsewhere = self.attempts.has(index);
        let holder = &mut self.holders[index];
        let connect = cause == FetchError::Connect;
        if connect && !holder.failed && holder.has_next_addr() && self.attempts.may_launch() {
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
        if flow.is_stalled() {
            self.holders[index].failed = true;
            cx.order(Output::CancelFetch { pull: self.id, attempt: id });
            return self.leave(cx, Some(Failure::Stalled), "stalled");
        }
        let peer = self.holders[index].peer;
        let Some(measured) = flow.measured(cx, peer) else { return };
        let rate = measured.rate();
        let is_shared = flow.is_shared(cx.health.in_flight(&peer));
        let remaining = self.total.map_or(0, |total| total.saturating_sub(self.given));
        let worth = remaining > rate.saturating_mul(MOVE_WORTH.as_secs());
        // Who was idle turns out to be slower than who was busy: no fault, but no gain.
        let is_loss = flow.left_rate.take().is_some_and(|left| rate < left / offer::IDLE_SLOWER_TIMES);
        if measured.peer_bound && worth && is_loss {
            self.moved_in_vain += 1;
            self.holders[index].left_slow = true;
            cx.order(Output::CancelFetch { pull: self.id, attempt: id });
            return self.leave(cx, None, "slow");
        }
        let is_left = self.holders[index].left_slow;
        if measured.peer_bound && worth && !is_left && self.has_faster(cx, index, rate, is_shared) {
            self.holders[index].left_slow = true;
            // So that the next pull does not begin there.
            note_rate(cx, peer, measured);
            cx.order(Output::CancelFetch { pull: self.id, attempt: id });
            return self.leave(cx, Some(Failure::TooSlow), "slow");
        }
        let lasts = remaining > rate.saturating_mul(COMPARE_WORTH.as_secs());
        self.compare_again(cx, rate, measured.peer_bound && lasts);
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
        flow.note_last_rate(cx, peer);
        cx.health.on_served(cx.now, peer);
        cx.health.on_released(cx.now, peer, flow.attempt.probe);
        for attempt in self.attempts.take().values() {
            cx.health.on_released(cx.now, self.holders[attempt.holder].peer, attempt.probe);
        }
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
        flow.on_reported(cx.now, bytes, starved);
        self.given = self.given.saturating_add(bytes).min(self.total.unwrap_or(u64::MAX));
        self.holders[flow.attempt.holder].delivered |= bytes > 0;
        true
    }

    /// Whether there is someone to go on with who is likely faster than `rate`. Who was left for
    /// slowness is not: two slow holders must not hand a pull to and fro. Where several bodies share the present
    /// holder's link, TCP gives one of them a quarter of another's: that is left for a holder that is idle (see
    /// [`offer`]), or if it comes so slowly that the link must be broken.
    fn has_faster(&self, cx: &Context<'_>, current: usize, rate: u64, is_shared: bool) -> bool {
        let mut others = self.holders.iter().enumerate().filter(|(index, _)| *index != current);
        others.any(|(_, other)| {
            let ready = cx.health.rank(cx.now, &other.peer, other.same_zone).is_some_and(|rank| !rank.probe);
            let known = cx.health.throughput(cx.now, &other.peer);
            let faster = match known {
                None => rate < THROUGHPUT_FLOOR,
                Some(known) if is_shared => rate < known.min(THROUGHPUT_FLOOR),
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
        let gone = self.attempts.take_of(index);
        for (id, attempt) in &gone {
            self.release(cx, *id, *attempt);
        }
        match &self.phase {
            Phase::Searching(search) => {
                let is_offered = search.offer.is_some_and(|offer| offer.attempt.holder == index);
                if is_offered {
                    self.decline(cx);
                }
                self.pursue(cx, is_offered || !gone.is_empty());
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
        self.cancel_attempts(cx, |_| true);
        self.decline(cx);
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Searching(search) if search.looking_up => {
                cx.events.push_back(Event::CancelLookup { pull: self.id });
            }
            Phase::Searching(_) | Phase::Over => {}
            Phase::Flowing(flow) => self.dismiss(cx, flow.id, flow.attempt),
        }
    }

    /// This process was paused until now, and at least for so long, in which no answer could be read.
    pub(super) fn on_paused(&mut self, cx: &mut Context<'_>, lasted: Duration) {
        self.attempts.on_paused(cx.now, lasted);
        match &mut self.phase {
            Phase::Searching(search) => {
                search.on_paused(cx.now, lasted);
                search.hedge_at = search.hedge_at.map(|at| at.max(cx.now + cx.health.hedge_delay()));
            }
            Phase::Flowing(flow) if flow.silent_at() <= cx.now => flow.on_paused(cx.now),
            Phase::Flowing(_) | Phase::Over => {}
        }
    }

    pub(super) fn on_timeout(&mut self, cx: &mut Context<'_>) {
        match &self.phase {
            Phase::Searching(Search { offer: Some(offer), deadline, hedge_at, .. })
                if *deadline <= cx.now || hedge_at.is_some_and(|at| at <= cx.now) =>
            {
                let offer = *offer;
                self.take(cx, offer);
            }
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
            Phase::Flowing(flow) if flow.silent_at() <= cx.now => {
                // This node's own fault, not the peer's; but going on with it would be as silent.
                let (id, index) = (flow.id, flow.attempt.holder);
                self.holders[index].failed = true;
                cx.order(Output::CancelFetch { pull: self.id, attempt: id });
                self.leave(cx, None, "silent");
            }
            Phase::Flowing(_) | Phase::Over => {}
        }
    }

    /// Drops all attempts that have not answered, which tells something of them if one was needed.
    fn cancel_attempts(&mut self, cx: &mut Context<'_>, is_needed: impl Fn(&Attempt) -> bool) {
        for (id, attempt) in self.attempts.take() {
            if is_needed(&attempt) {
                let waited = cx.now.saturating_duration_since(attempt.launched_at);
                cx.health.on_unanswered(cx.now, self.holders[attempt.holder].peer, waited);
            }
            self.release(cx, id, attempt);
        }
    }

    /// The final answer, other than a complete body.
    fn end(&mut self, cx: &mut Context<'_>, reason: RefuseReason) {
        self.cancel_attempts(cx, |_| true);
        self.decline(cx);
        let mut left = None;
        if let Phase::Searching(search) = std::mem::replace(&mut self.phase, Phase::Over) {
            left = search.left;
            if search.looking_up {
                cx.events.push_back(Event::CancelLookup { pull: self.id });
            }
        }
        cx.order(match self.total {
            None => Output::Refuse { pull: self.id, reason, attempts: self.attempts.launched() },
            Some(_) => Output::Truncate { pull: self.id, reason, left },
        });
    }
}

impl Search {
    const fn new(deadline: Instant, left: Option<(PeerId, &'static str)>) -> Self {
        Self {
            deadline,
            time_back: TIME_BACK_MAX,
            has_caught_up: false,
            looking_up: false,
            looked_up_again: false,
            found_at: None,
            hedge_at: None,
            asked: 0,
            offer: None,
            left,
        }
    }

    fn on_paused(&mut self, now: Instant, lasted: Duration) {
        let back = lasted.min(self.time_back);
        self.time_back -= back;
        self.deadline += back;
        if self.deadline < now + CATCH_UP && !std::mem::replace(&mut self.has_caught_up, true) {
            self.deadline = now + CATCH_UP;
        }
        if let Some(offer) = &mut self.offer {
            offer.attempt.on_paused(now, lasted);
        }
    }
}
