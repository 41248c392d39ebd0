//! A holder that has answered, and is busy with others. No node knows what others want of a holder:
//! left to chance, three nodes that pull an image of two holders ask one for seven of twelve layers, and
//! wait for it alone in the end. So holders say with each answer how much they have to send. Before a long
//! body is begun at one that has much, another is asked; and again in mid-body, in case it has become idle.

use std::time::Duration;

use super::{Phase, Pull};
use crate::{
    AttemptId,
    fetch::{Context, attempts::Attempt, holder::Holder},
};

/// Shortest body, and least that its holder has to send to others, for which another holder is asked.
/// Less and many requests are sent twice for what is over soon; more and holders of ordinary layers stay
/// unevenly busy.
pub(crate) const COMPARED_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// How long another holder may take to answer then. Shorter than what the queue of a full link holds
/// back, and who has less to send is not heard; longer and the first byte waits for a holder that is dead.
pub(crate) const COMPARE_MAX: Duration = Duration::from_millis(200);

/// How long until another holder is asked in mid-body whether it has become idle, at least. Shorter and
/// the holders of an image are asked more than they send; longer and one is idle for as long while others
/// wait for the rest.
pub(crate) const COMPARE_INTERVAL: Duration = Duration::from_secs(1);

/// Longest such wait. Shorter and a thousand nodes that pull one large layer ask its holders hundreds of
/// times a second; longer and nobody ever asks again.
pub(crate) const COMPARE_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Bytes per second of the fastest link that a holder may have, 10 Gbit/s: no sooner than by that is it idle.
/// Less and holders with fast links are found idle late; more and busy ones are asked for nothing.
const LINK_BYTES_MAX: u64 = 1_250_000_000;

/// What must be left of a transfer, at its present speed, for another holder to be asked. Less and changing
/// takes as long as it saves; more and the last bodies of a large image come from one holder alone.
pub(crate) const COMPARE_WORTH: Duration = Duration::from_secs(1);

/// How often one pull does that. Less and a layer of many gigabytes stays with its holder though another has
/// long been idle; more leaves no attempts for when its holder fails.
pub(crate) const COMPARISONS_MAX: u32 = 32;

/// An idle holder that turns out slower than the busy one by this factor is left again. What it was known to
/// send before tells nothing: that may have been its share among many. Fewer and the ups and downs of TCP look
/// like a slow link; more and a body goes on where it takes longer.
pub(super) const IDLE_SLOWER_TIMES: u64 = 2;

/// How often that may happen to one pull. Fewer and chance keeps a body from holders that are idle; more and
/// it tries every slow link of the cluster for a second.
pub(crate) const IDLE_SLOWER_MAX: u32 = 2;

#[derive(Clone, Copy, Debug)]
pub(in crate::fetch) struct Offer {
    pub(in crate::fetch) id: AttemptId,
    pub(in crate::fetch) attempt: Attempt,
    pub(in crate::fetch) body_bytes: u64,
    /// What the holder had to send to others; `None` if it does not say.
    pub(in crate::fetch) backlog_bytes: Option<u64>,
}

impl Offer {
    /// Whether it is worth waiting for what another holder says.
    pub(super) fn is_doubtful(&self) -> bool {
        let worth = COMPARED_BYTES_MIN.max(self.margin());
        self.body_bytes >= COMPARED_BYTES_MIN && self.backlog_bytes.is_some_and(|backlog| backlog >= worth)
    }

    /// Whether its holder said that it has next to nothing to send.
    pub(super) fn is_of_idle(&self) -> bool {
        self.backlog_bytes.is_some_and(|backlog| backlog < COMPARED_BYTES_MIN)
    }

    /// How long its holder cannot be idle.
    fn busy_for(&self) -> Duration {
        let seconds = self.backlog_bytes.unwrap_or_default() / LINK_BYTES_MAX;
        Duration::from_secs(seconds).clamp(COMPARE_INTERVAL, COMPARE_INTERVAL_MAX)
    }

    pub(super) fn is_better_than(&self, other: &Self) -> bool {
        let both = self.backlog_bytes.zip(other.backlog_bytes);
        both.is_some_and(|(own, others)| own.saturating_add(self.margin()) < others)
    }

    /// By how much less a holder must have to send than the one that was preferred. That one was chosen
    /// because this node wants least of it; and some of what holders say is asked of two, and will be
    /// taken from the other.
    const fn margin(&self) -> u64 {
        self.body_bytes / 2
    }
}

impl Pull {
    pub(super) const fn offer(&self) -> Option<Offer> {
        match &self.phase {
            Phase::Searching(search) => search.offer,
            Phase::Flowing(_) | Phase::Over => None,
        }
    }

    /// Holds an offer back until another holder has answered, if there is one that is as good.
    pub(super) fn compare(&mut self, cx: &mut Context<'_>, offer: Offer) {
        let Phase::Searching(search) = &mut self.phase else { return };
        search.offer = Some(offer);
        let asks_left = search.asked <= cx.retries && self.attempts.may_launch();
        if self.attempts.is_empty()
            && asks_left
            && let Some(next) = self.next(cx)
            && self.is_comparable(cx, next, &offer)
        {
            self.ask(cx, next);
        }
        if !self.attempts.holders().any(|other| self.is_comparable(cx, other, &offer)) {
            return self.take(cx, offer);
        }
        let Phase::Searching(search) = &mut self.phase else { return };
        search.hedge_at = Some(cx.now + COMPARE_MAX);
    }

    /// Whether a holder may be preferred to one that offers, if it is less busy.
    pub(super) fn is_comparable(&self, cx: &Context<'_>, index: usize, offer: &Offer) -> bool {
        let own = &self.holders[offer.attempt.holder];
        index != offer.attempt.holder && self.holders[index].is_as_good_as(own, cx.now, cx.health, cx.verify)
    }

    /// The attempt whose offer is held back, if it is this one: it has come to nothing.
    pub(super) fn withdrawn(&mut self, id: AttemptId) -> Option<Attempt> {
        let Phase::Searching(search) = &mut self.phase else { return None };
        search.offer.take_if(|offer| offer.id == id).map(|offer| offer.attempt)
    }

    /// Does without the offer that is held back.
    pub(super) fn decline(&mut self, cx: &mut Context<'_>) {
        let Phase::Searching(search) = &mut self.phase else { return };
        if let Some(Offer { id, attempt, .. }) = search.offer.take() {
            self.release(cx, id, attempt);
        }
    }

    // --- in mid-body ------------------------------------------------------------------------

    /// Asks in mid-body whether another holder has become idle, while others wait for the one that sends, at
    /// `rate` and for long enough.
    pub(super) fn compare_again(&mut self, cx: &mut Context<'_>, rate: u64, lasts: bool) {
        let Phase::Flowing(flow) = &mut self.phase else { return };
        let waited = cx.now.saturating_duration_since(flow.compared_at);
        if !self.attempts.is_empty() {
            if waited >= COMPARE_MAX {
                self.cancel_attempts(cx, |_| false);
            }
            return;
        }
        let own = &self.holders[flow.attempt.holder];
        let is_shared = flow.is_shared(cx.health.in_flight(&own.peer));
        let may_ask = self.comparisons < COMPARISONS_MAX
            && self.moved_in_vain < IDLE_SLOWER_MAX
            && self.attempts.may_launch();
        if !lasts || !is_shared || !may_ask || waited < flow.compare_wait || self.digest.is_none() {
            return;
        }
        flow.compared_at = cx.now;
        flow.compare_wait = COMPARE_INTERVAL;
        flow.compared_rate = rate;
        let is_free = |(index, other): &(usize, &Holder)| {
            *index != flow.attempt.holder
                && !other.failed
                && cx.health.in_flight(&other.peer) == 0
                && other.is_as_good_as(own, cx.now, cx.health, cx.verify)
        };
        // Who was asked least comes first, or one that is always busy, or mute, would hide the others.
        let ranked = |(index, other): (usize, &Holder)| {
            Some((other.compared, other.rank(cx.now, cx.health, cx.verify)?, index))
        };
        let holders = self.holders.iter().enumerate();
        if let Some((_, _, index)) = holders.filter(is_free).filter_map(ranked).min() {
            self.comparisons += 1;
            self.holders[index].compared += 1;
            self.ask_first_addr(cx, index);
        }
    }

    /// What another holder says in mid-body: it sends the rest if it has nothing else to send.
    pub(super) fn on_compared(&mut self, cx: &mut Context<'_>, offer: Offer) {
        let Phase::Flowing(flow) = &mut self.phase else { return };
        if !offer.is_of_idle() {
            flow.compare_wait = offer.busy_for();
            return self.release(cx, offer.id, offer.attempt);
        }
        let (id, attempt, rate) = (flow.id, flow.attempt, flow.compared_rate);
        let from = self.holders[attempt.holder].peer;
        self.dismiss(cx, id, attempt);
        self.begin(cx, &offer, Some((from, "busy")));
        if let Phase::Flowing(flow) = &mut self.phase {
            flow.left_rate = Some(rate);
        }
    }
}
