//! Decides whom to ask who holds a key, when to ask somebody else too, and when to give up.
//! Never knows what is held where: owners do, and the directory passes on what they answer.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{Key, PeerId, output::soonest};

/// Most lookups at once. Fewer and a burst of pulls is sent upstream for no reason; more and a
/// node that nobody answers holds more memory and asks ever more.
pub(crate) const LOOKUPS_IN_FLIGHT_MAX: usize = 1024;

/// How long an owner that let a lookup wait, or failed it, is asked last. Shorter and until
/// membership notices its death more pulls pay for it; longer and a hiccup moves load for longer.
const SLOW_MEMORY: Duration = Duration::from_secs(2);

/// A lookup is given up after three times the time that one owner may take, and this. Less and
/// answers on their way are thrown away; more and a pull waits longer to go upstream.
const DEADLINE_SLACK: Duration = Duration::from_millis(20);

/// A lookup is never given up sooner than this. Less and a pause of a few milliseconds makes
/// pulls go upstream; more than a registry's own answer takes and the mirror costs time.
const DEADLINE_MIN: Duration = Duration::from_millis(100);

/// Longest time that one owner may take, whatever is configured. Shorter overrules sensible
/// configurations; longer keeps a pull waiting that nobody waits for any more.
const RESOLVE_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Names a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LookupId(u64);

/// How much an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Owners have said so: these holders, or nobody.
    Definitive,
    /// No owner could say; there may be holders. Only without any.
    Unanswered,
}

/// What the directory is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask an owner, or report that it failed.
    Ask { lookup: LookupId, owner: PeerId, key: Key },
    /// The lookup is over.
    Answered { lookup: LookupId, holders: Vec<PeerId>, outcome: Outcome },
}

#[derive(Debug)]
struct Lookup {
    key: Key,
    /// Owners to ask, in order.
    waiting: VecDeque<PeerId>,
    /// Owners that have not answered.
    asked: Vec<PeerId>,
    /// Named by owners that could not rule out others.
    holders: Vec<PeerId>,
    hedge_at: Instant,
    deadline: Instant,
    /// Whether it was given time anew after a pause: once, lest pauses make it last for ever.
    is_reprieved: bool,
}

/// All lookups that are under way.
#[derive(Debug)]
pub(super) struct Lookups {
    resolve_timeout: Duration,
    next: u64,
    active: BTreeMap<LookupId, Lookup>,
    /// Owners to ask last, and until when. One at most for each member.
    slow: BTreeMap<PeerId, Instant>,
    steps: VecDeque<Step>,
}

impl Lookups {
    /// `resolve_timeout` is how long one owner may take before another is asked too.
    pub(super) fn new(resolve_timeout: Duration) -> Self {
        Self {
            resolve_timeout: resolve_timeout.min(RESOLVE_TIMEOUT_MAX),
            next: 0,
            active: BTreeMap::new(),
            slow: BTreeMap::new(),
            steps: VecDeque::new(),
        }
    }

    /// How long a lookup lasts at most.
    pub(super) fn patience(&self) -> Duration {
        (self.resolve_timeout * 3 + DEADLINE_SLACK).max(DEADLINE_MIN)
    }

    /// A lookup whose answer is known without asking.
    pub(super) fn answer_at_once(&mut self, holders: Vec<PeerId>, outcome: Outcome) -> LookupId {
        let lookup = self.id();
        self.steps.push_back(Step::Answered { lookup, holders, outcome });
        lookup
    }

    /// Asks `owners`, given best first. `holders` are known to this node, but maybe not all.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        key: Key,
        holders: Vec<PeerId>,
        owners: impl IntoIterator<Item = PeerId>,
    ) -> LookupId {
        if self.active.len() >= LOOKUPS_IN_FLIGHT_MAX {
            let outcome = Outcome::of(&holders);
            return self.answer_at_once(holders, outcome);
        }
        let id = self.id();
        self.slow.retain(|_, until| now < *until);
        let (slow, mut waiting): (VecDeque<_>, VecDeque<_>) =
            owners.into_iter().partition(|owner| self.slow.contains_key(owner));
        waiting.extend(slow);
        let patience = if holders.is_empty() { self.patience() } else { self.resolve_timeout };
        let deadline = now + patience;
        let (asked, is_reprieved) = (Vec::new(), false);
        self.active
            .insert(id, Lookup { key, waiting, asked, holders, hedge_at: now, deadline, is_reprieved });
        self.ask_next(now, id);
        id
    }

    /// Nobody waits for the answer any more.
    pub(super) fn cancel(&mut self, id: LookupId) {
        self.active.remove(&id);
    }

    /// An owner answered; `holders` are usable, and `knows` rules out others. If it does not,
    /// those named may be the very ones that have just let go, and the next owner is asked too,
    /// though not for longer than one owner may take.
    pub(super) fn found(
        &mut self,
        now: Instant,
        id: LookupId,
        owner: PeerId,
        holders: Vec<PeerId>,
        knows: bool,
    ) {
        self.slow.remove(&owner);
        let Some(lookup) = self.active.get_mut(&id) else { return };
        lookup.asked.retain(|asked| *asked != owner);
        for holder in holders {
            if !lookup.holders.contains(&holder) {
                lookup.holders.push(holder);
            }
        }
        if knows {
            return self.finish(id, Outcome::Definitive);
        }
        if !lookup.holders.is_empty() {
            lookup.deadline = lookup.deadline.min(now + self.resolve_timeout);
        }
        self.ask_next(now, id);
    }

    /// An owner did not answer.
    pub(super) fn failed(&mut self, now: Instant, id: LookupId, owner: PeerId) {
        self.ask_last(now, owner);
        let Some(lookup) = self.active.get_mut(&id) else { return };
        lookup.asked.retain(|asked| *asked != owner);
        self.ask_next(now, id);
    }

    /// A member is gone: it is not asked by lookups under way.
    pub(super) fn member_down(&mut self, peer: PeerId) {
        self.slow.remove(&peer);
        for lookup in self.active.values_mut() {
            lookup.waiting.retain(|owner| *owner != peer);
        }
    }

    /// The owner is unlikely to answer for a while.
    pub(super) fn ask_last(&mut self, now: Instant, owner: PeerId) {
        self.slow.insert(owner, now + SLOW_MEMORY);
    }

    /// This process was paused until now: each lookup has its time anew, for answers wait in socket buffers.
    pub(super) fn on_paused(&mut self, now: Instant) {
        let patience = self.patience();
        for lookup in self.active.values_mut().filter(|lookup| !lookup.is_reprieved) {
            lookup.is_reprieved = true;
            lookup.hedge_at = now + self.resolve_timeout;
            lookup.deadline = now + if lookup.holders.is_empty() { patience } else { self.resolve_timeout };
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let is_due = |lookup: &Lookup| lookup.wakes_at().is_some_and(|at| at <= now);
        let due: Vec<_> =
            self.active.iter().filter(|(_, lookup)| is_due(lookup)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(lookup) = self.active.get(&id) else { continue };
            let gives_up = lookup.deadline <= now;
            for owner in lookup.asked.clone() {
                self.ask_last(now, owner);
            }
            if gives_up {
                self.give_up(id);
            } else {
                self.ask_next(now, id);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.active.values().fold(None, |at, lookup| soonest(at, lookup.wakes_at()))
    }

    pub(super) fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.active.len()
    }

    fn id(&mut self) -> LookupId {
        self.next += 1;
        LookupId(self.next)
    }

    /// Asks the next owner; with none left and none to wait for, gives up.
    fn ask_next(&mut self, now: Instant, id: LookupId) {
        let Some(lookup) = self.active.get_mut(&id) else { return };
        if let Some(owner) = lookup.waiting.pop_front() {
            lookup.asked.push(owner);
            lookup.hedge_at = now + self.resolve_timeout;
            self.steps.push_back(Step::Ask { lookup: id, owner, key: lookup.key });
        } else if lookup.asked.is_empty() {
            self.give_up(id);
        }
    }

    fn give_up(&mut self, id: LookupId) {
        if let Some(lookup) = self.active.get(&id) {
            self.finish(id, Outcome::of(&lookup.holders));
        }
    }

    fn finish(&mut self, lookup: LookupId, outcome: Outcome) {
        if let Some(Lookup { holders, .. }) = self.active.remove(&lookup) {
            self.steps.push_back(Step::Answered { lookup, holders, outcome });
        }
    }
}

impl Outcome {
    /// When owners that cannot rule out others have named these.
    const fn of(holders: &[PeerId]) -> Self {
        if holders.is_empty() { Self::Unanswered } else { Self::Definitive }
    }
}

impl Lookup {
    fn wakes_at(&self) -> Option<Instant> {
        let hedge = (!self.waiting.is_empty()).then_some(self.hedge_at);
        soonest(hedge, Some(self.deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(20);
    const TICK: Duration = Duration::from_nanos(1);

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn owners() -> [PeerId; 3] {
        [peer(1), peer(2), peer(3)]
    }

    fn key() -> Key {
        Key::of("key")
    }

    fn start() -> (Instant, Lookups) {
        (crate::test_time::start(), Lookups::new(PATIENCE))
    }

    fn steps(lookups: &mut Lookups) -> Vec<Step> {
        std::iter::from_fn(|| lookups.poll_step()).collect()
    }

    fn asks(lookup: LookupId, number: u8) -> [Step; 1] {
        [Step::Ask { lookup, owner: peer(number), key: key() }]
    }

    fn answers(lookup: LookupId, holders: &[PeerId], outcome: Outcome) -> [Step; 1] {
        [Step::Answered { lookup, holders: holders.to_vec(), outcome }]
    }

    #[test]
    fn first_answer_that_rules_out_others_wins_and_later_ones_are_ignored() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), owners());
        assert_eq!(steps(&mut lookups), asks(id, 1));
        lookups.handle_timeout(now + PATIENCE);
        assert_eq!(steps(&mut lookups), asks(id, 2));
        lookups.found(now + PATIENCE, id, peer(2), vec![peer(9)], true);
        assert_eq!(steps(&mut lookups), answers(id, &[peer(9)], Outcome::Definitive));
        lookups.found(now + PATIENCE, id, peer(1), vec![peer(8)], true);
        lookups.failed(now + PATIENCE, id, peer(1));
        lookups.handle_timeout(now + PATIENCE * 100);
        assert_eq!(steps(&mut lookups), []);
        assert_eq!(lookups.poll_timeout(), None);
    }

    #[test]
    fn holders_named_by_owners_that_may_not_know_all_are_gathered() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), owners());
        steps(&mut lookups);
        // An owner for a moment only, which was told by one that has let go since.
        lookups.found(now, id, peer(1), vec![peer(8)], false);
        assert_eq!(steps(&mut lookups), asks(id, 2));
        lookups.found(now, id, peer(2), vec![peer(9), peer(8)], true);
        assert_eq!(steps(&mut lookups), answers(id, &[peer(8), peer(9)], Outcome::Definitive));
        // This node is such an owner itself.
        let id = lookups.begin(now, key(), vec![peer(7)], [peer(2)]);
        assert_eq!(steps(&mut lookups), asks(id, 2));
        lookups.failed(now, id, peer(2));
        assert_eq!(steps(&mut lookups), answers(id, &[peer(7)], Outcome::Definitive));
    }

    #[test]
    fn holders_already_named_wait_for_one_more_owner_at_most() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), owners());
        lookups.found(now, id, peer(1), vec![peer(9)], false);
        steps(&mut lookups);
        lookups.handle_timeout(now + PATIENCE - TICK);
        assert_eq!(steps(&mut lookups), []);
        lookups.handle_timeout(now + PATIENCE);
        assert_eq!(steps(&mut lookups), answers(id, &[peer(9)], Outcome::Definitive));
    }

    #[test]
    fn owner_that_knows_of_nobody_ends_it() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), owners());
        steps(&mut lookups);
        lookups.found(now, id, peer(1), Vec::new(), true);
        assert_eq!(steps(&mut lookups), answers(id, &[], Outcome::Definitive));
    }

    #[test]
    fn owner_that_does_not_know_or_fails_makes_the_next_be_asked_at_once() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), owners());
        steps(&mut lookups);
        lookups.found(now, id, peer(1), Vec::new(), false);
        assert_eq!(steps(&mut lookups), asks(id, 2));
        lookups.failed(now, id, peer(2));
        assert_eq!(steps(&mut lookups), asks(id, 3));
        lookups.found(now, id, peer(3), Vec::new(), false);
        assert_eq!(steps(&mut lookups), answers(id, &[], Outcome::Unanswered));
        assert_eq!(lookups.in_flight(), 0);
    }

    #[test]
    fn silent_owners_are_hedged_and_given_up_exactly_at_the_deadline() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), owners());
        assert_eq!(lookups.poll_timeout(), Some(now + PATIENCE));
        steps(&mut lookups);
        lookups.handle_timeout(now + PATIENCE - TICK);
        assert_eq!(steps(&mut lookups), []);
        for number in [2, 3] {
            lookups.handle_timeout(lookups.poll_timeout().expect("hedge"));
            assert_eq!(steps(&mut lookups), asks(id, number));
        }
        let deadline = now + DEADLINE_MIN;
        assert_eq!(lookups.poll_timeout(), Some(deadline));
        lookups.handle_timeout(deadline - TICK);
        assert_eq!(steps(&mut lookups), []);
        lookups.handle_timeout(deadline);
        assert_eq!(steps(&mut lookups), answers(id, &[], Outcome::Unanswered));
    }

    #[test]
    fn lookup_has_its_time_anew_after_a_pause_of_this_process_once() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), owners());
        assert_eq!(steps(&mut lookups), asks(id, 1));
        let woken = now + DEADLINE_MIN * 5;
        lookups.on_paused(woken);
        lookups.handle_timeout(woken);
        assert_eq!(steps(&mut lookups), []);
        let other = lookups.begin(woken, key(), Vec::new(), owners());
        assert_eq!(steps(&mut lookups), asks(other, 1), "the owner is not taken for slow");
        lookups.cancel(other);
        assert_eq!(lookups.poll_timeout(), Some(woken + PATIENCE));
        lookups.handle_timeout(woken + PATIENCE);
        assert_eq!(steps(&mut lookups), asks(id, 2));
        let paused_again = woken + DEADLINE_MIN;
        lookups.on_paused(paused_again);
        lookups.handle_timeout(paused_again);
        assert_eq!(steps(&mut lookups), answers(id, &[], Outcome::Unanswered));
    }

    #[test]
    fn lookup_that_is_due_right_after_a_pause_has_its_time_anew_too() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), [peer(1)]);
        steps(&mut lookups);
        let woken = now + DEADLINE_MIN - TICK;
        lookups.on_paused(woken);
        lookups.handle_timeout(woken + DEADLINE_MIN - TICK);
        assert_eq!(steps(&mut lookups), []);
        lookups.handle_timeout(woken + DEADLINE_MIN);
        assert_eq!(steps(&mut lookups), answers(id, &[], Outcome::Unanswered));
    }

    #[test]
    fn lookup_with_holders_waits_for_one_more_owner_after_a_pause() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), vec![peer(7)], [peer(2)]);
        steps(&mut lookups);
        let woken = now + DEADLINE_MIN * 5;
        lookups.on_paused(woken);
        lookups.handle_timeout(woken + PATIENCE - TICK);
        assert_eq!(steps(&mut lookups), []);
        lookups.handle_timeout(woken + PATIENCE);
        assert_eq!(steps(&mut lookups), answers(id, &[peer(7)], Outcome::Definitive));
    }

    #[test]
    fn patient_configuration_has_a_later_deadline() {
        let now = crate::test_time::start();
        let mut lookups = Lookups::new(Duration::from_secs(1));
        lookups.begin(now, key(), Vec::new(), [peer(1)]);
        assert_eq!(lookups.poll_timeout(), Some(now + Duration::from_secs(3) + DEADLINE_SLACK));
        let mut forever = Lookups::new(Duration::MAX);
        forever.begin(now, key(), Vec::new(), [peer(1)]);
        assert_eq!(forever.poll_timeout(), Some(now + RESOLVE_TIMEOUT_MAX * 3 + DEADLINE_SLACK));
        let mut hasty = Lookups::new(Duration::ZERO);
        hasty.begin(now, key(), Vec::new(), owners());
        assert_eq!(hasty.poll_timeout(), Some(now));
    }

    #[test]
    fn owner_that_let_one_wait_is_asked_last_for_a_while() {
        let (now, mut lookups) = start();
        lookups.begin(now, key(), Vec::new(), owners());
        lookups.handle_timeout(now + PATIENCE);
        steps(&mut lookups);
        let slow_until = now + PATIENCE + SLOW_MEMORY;
        let second = lookups.begin(slow_until - TICK, key(), Vec::new(), owners());
        assert_eq!(steps(&mut lookups), asks(second, 2));
        let third = lookups.begin(slow_until, key(), Vec::new(), owners());
        assert_eq!(steps(&mut lookups), asks(third, 1));
        // It answers, late: it is back at once.
        lookups.failed(slow_until, third, peer(1));
        steps(&mut lookups);
        lookups.found(slow_until, third, peer(1), Vec::new(), false);
        steps(&mut lookups);
        let fourth = lookups.begin(slow_until, key(), Vec::new(), owners());
        assert_eq!(steps(&mut lookups), asks(fourth, 1));
    }

    #[test]
    fn nobody_to_ask_is_unanswered_and_cancelled_says_nothing() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), []);
        assert_eq!(steps(&mut lookups), answers(id, &[], Outcome::Unanswered));
        let id = lookups.begin(now, key(), Vec::new(), owners());
        steps(&mut lookups);
        lookups.cancel(id);
        lookups.found(now, id, peer(1), vec![peer(9)], true);
        assert_eq!(steps(&mut lookups), []);
        assert_eq!(lookups.poll_timeout(), None);
    }

    #[test]
    fn lookups_in_flight_are_bounded() {
        let (now, mut lookups) = start();
        for _ in 0..LOOKUPS_IN_FLIGHT_MAX {
            lookups.begin(now, key(), Vec::new(), owners());
        }
        steps(&mut lookups);
        let id = lookups.begin(now, key(), Vec::new(), owners());
        assert_eq!(steps(&mut lookups), answers(id, &[], Outcome::Unanswered));
        assert_eq!(lookups.in_flight(), LOOKUPS_IN_FLIGHT_MAX);
    }

    #[test]
    fn departed_owner_is_not_asked() {
        let (now, mut lookups) = start();
        let id = lookups.begin(now, key(), Vec::new(), owners());
        steps(&mut lookups);
        lookups.member_down(peer(2));
        lookups.failed(now, id, peer(1));
        assert_eq!(steps(&mut lookups), asks(id, 3));
    }
}
