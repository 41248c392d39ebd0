//! Decides what a holder says to each owner next: which keys the owner should have, what it
//! has not been told yet, and when to speak. Never sends; the announcer asks it and tells it
//! what became of each announcement.
//!
//! State-based: it keeps what the owner should have and which keys may differ there, never a
//! list of past events. A lost announcement makes its keys differ again, and a mismatch that
//! the owner reports makes all of them differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::{Duration, Instant},
};

use crate::{
    Key, PeerId,
    backoff::Backoff,
    message::{Announce, Fingerprint, KEYS_PER_MESSAGE_MAX},
    rng::Rng,
};

/// First and longest wait after an announcement that failed or found the owner in
/// disagreement. The first must outlast most differences between two nodes' views of who is a
/// member; with a longer maximum an owner that was out of reach stays ignorant for longer, with
/// a shorter one unreachable owners cost more.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct InFlight {
    keys: Vec<Key>,
    reset: bool,
    complete: bool,
}

/// The owner's set and what is left to say about it.
#[derive(Debug)]
pub(super) struct Outbox {
    keys: BTreeSet<Key>,
    holds: Fingerprint,
    /// Keys about which the owner may believe otherwise.
    dirty: BTreeSet<Key>,
    /// The next announcement starts over.
    reset: bool,
    /// Nothing has been said since the owner came up.
    greets: bool,
    in_flight: Option<InFlight>,
    /// The owner has confirmed all that was to be said.
    synced: bool,
    wanted_at: Option<Instant>,
    not_before: Option<Instant>,
    backoff: Backoff,
}

impl Outbox {
    /// For an owner that has just come up and knows nothing.
    pub(super) fn new() -> Self {
        Self {
            keys: BTreeSet::new(),
            holds: Fingerprint::default(),
            dirty: BTreeSet::new(),
            reset: true,
            greets: true,
            in_flight: None,
            synced: false,
            wanted_at: None,
            not_before: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
        }
    }

    /// The owner should have the key, or not.
    pub(super) fn set(&mut self, key: Key, held: bool) {
        let changed = if held { self.keys.insert(key) } else { self.keys.remove(&key) };
        if !changed {
            return;
        }
        if held {
            self.holds.add(&key)
        } else {
            self.holds.remove(&key)
        }
        self.dirty.insert(key);
        self.synced = false;
    }

    /// Speak at `at` or sooner, whether or not there is something to say.
    pub(super) fn want(&mut self, at: Instant) {
        self.wanted_at = Some(self.wanted_at.map_or(at, |wanted| wanted.min(at)));
    }

    /// When to speak; nothing is said while an answer is outstanding.
    pub(super) fn due(&self) -> Option<Instant> {
        let wanted = self.wanted_at.filter(|_| self.in_flight.is_none())?;
        Some(self.not_before.map_or(wanted, |not_before| wanted.max(not_before)))
    }

    /// The next announcement; its answer is to be reported.
    pub(super) fn announce(&mut self) -> Announce {
        if self.reset {
            self.dirty = self.keys.clone();
        }
        let mut told: Vec<Key> = Vec::with_capacity(self.dirty.len().min(KEYS_PER_MESSAGE_MAX));
        while told.len() < KEYS_PER_MESSAGE_MAX
            && let Some(key) = self.dirty.pop_first()
        {
            told.push(key);
        }
        let (add, remove) = told.iter().copied().partition(|key| self.keys.contains(key));
        let reset = std::mem::take(&mut self.reset);
        let complete = self.dirty.is_empty();
        self.in_flight = Some(InFlight { keys: told, reset, complete });
        self.greets = false;
        self.wanted_at = None;
        self.not_before = None;
        Announce { reset, add, remove, complete, holds: self.holds, wants: false }
    }

    /// The owner answered the announcement.
    pub(super) fn answered(&mut self, now: Instant, synced: bool, rng: &mut Rng) {
        let Some(told) = self.in_flight.take() else { return };
        if !synced {
            self.reset = true;
            self.retry(now, rng);
        } else if told.complete {
            self.backoff.reset();
            self.synced = self.dirty.is_empty();
        } else {
            self.want(now);
        }
    }

    /// The announcement was not answered; it may have been applied all the same.
    pub(super) fn failed(&mut self, now: Instant, rng: &mut Rng) {
        let Some(told) = self.in_flight.take() else { return };
        self.reset |= told.reset;
        self.dirty.extend(told.keys);
        self.retry(now, rng);
    }

    fn retry(&mut self, now: Instant, rng: &mut Rng) {
        self.synced = false;
        self.not_before = Some(now + self.backoff.next_delay(rng));
        self.want(now);
    }

    pub(super) fn greets(&self) -> bool {
        self.greets
    }

    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Nothing is outstanding or about to be said.
    fn is_idle(&self) -> bool {
        self.synced && self.in_flight.is_none() && self.wanted_at.is_none()
    }

    /// Keys the owner should have.
    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }
}

/// One outbox for each owner, and when each is due.
#[derive(Debug, Default)]
pub(super) struct Outboxes {
    table: BTreeMap<PeerId, Outbox>,
    due: BTreeSet<(Instant, PeerId)>,
}

impl Outboxes {
    pub(super) fn open(&mut self, owner: PeerId) {
        self.close(owner);
        self.table.insert(owner, Outbox::new());
    }

    pub(super) fn close(&mut self, owner: PeerId) {
        if let Some(due) = self.table.remove(&owner).and_then(|outbox| outbox.due()) {
            self.due.remove(&(due, owner));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Outbox)> {
        self.table.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether the owner came up and has not been spoken to.
    pub(super) fn greets(&self, owner: &PeerId) -> bool {
        self.table.get(owner).is_some_and(|outbox| outbox.greets)
    }

    /// The outbox due first.
    pub(super) fn first_due(&self) -> Option<(Instant, PeerId)> {
        self.due.first().copied()
    }

    /// The next owner in turn after `last` that is told nothing at the moment.
    pub(super) fn next_idle(&self, last: PeerId) -> Option<PeerId> {
        let after = self.table.range((Bound::Excluded(last), Bound::Unbounded));
        let mut round = after.chain(self.table.range(..=last));
        round.find(|(_, outbox)| outbox.is_idle()).map(|(owner, _)| *owner)
    }

    /// Does something to an outbox and keeps in mind when it is due; nothing if there is none.
    pub(super) fn change<T>(&mut self, owner: PeerId, change: impl FnOnce(&mut Outbox) -> T) -> Option<T> {
        let outbox = self.table.get_mut(&owner)?;
        let before = outbox.due();
        let result = change(outbox);
        let after = outbox.due();
        if before != after {
            before.map(|at| self.due.remove(&(at, owner)));
            after.map(|at| self.due.insert((at, owner)));
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        Key::of(&number.to_string())
    }

    fn rng() -> Rng {
        Rng::new(1, "outbox")
    }

    fn synced(now: Instant) -> Outbox {
        let mut outbox = Outbox::new();
        outbox.announce();
        outbox.answered(now, true, &mut rng());
        assert!(outbox.is_idle());
        outbox
    }

    #[test]
    fn owner_that_came_up_is_told_even_that_there_is_nothing() {
        let now = crate::test_time::start();
        let mut outbox = Outbox::new();
        assert!(outbox.greets());
        assert_eq!(outbox.due(), None);
        outbox.want(now);
        assert_eq!(outbox.due(), Some(now));
        assert_eq!(outbox.announce(), Announce { reset: true, complete: true, ..Announce::default() });
        assert_eq!(outbox.due(), None);
        outbox.answered(now, true, &mut rng());
        assert!(outbox.is_synced() && !outbox.greets());
        assert_eq!(outbox.due(), None);
    }

    #[test]
    fn change_and_its_opposite_say_what_is_true_last() {
        let now = crate::test_time::start();
        let mut outbox = synced(now);
        outbox.set(key(1), true);
        outbox.set(key(2), true);
        outbox.set(key(1), false);
        outbox.set(key(9), false);
        let announce = outbox.announce();
        assert_eq!((announce.add, announce.remove), (vec![key(2)], vec![key(1)]));
        assert_eq!(announce.holds.count, 1);
    }

    #[test]
    fn lost_announcement_is_said_again_with_what_changed_since() {
        let now = crate::test_time::start();
        let mut outbox = synced(now);
        outbox.set(key(1), true);
        outbox.set(key(3), true);
        outbox.want(now);
        outbox.announce();
        outbox.set(key(1), false);
        outbox.set(key(2), true);
        outbox.failed(now, &mut rng());
        let due = outbox.due().expect("retried");
        assert!(due >= now + RETRY_FIRST / 2 && due <= now + RETRY_FIRST);
        let again = outbox.announce();
        let told: BTreeSet<_> = again.add.into_iter().collect();
        assert_eq!(told, BTreeSet::from([key(2), key(3)]));
        assert_eq!((again.remove, again.reset), (vec![key(1)], false));
        outbox.answered(now, true, &mut rng());
        assert!(outbox.is_synced());
        // An answer that nobody waits for any more changes nothing.
        outbox.answered(now, false, &mut rng());
        outbox.failed(now, &mut rng());
        assert!(outbox.is_idle());
    }

    #[test]
    fn lost_reset_is_a_reset_again() {
        let now = crate::test_time::start();
        let mut outbox = Outbox::new();
        outbox.set(key(1), true);
        assert!(outbox.announce().reset);
        outbox.failed(now, &mut rng());
        let again = outbox.announce();
        assert!(again.reset && again.add == [key(1)]);
    }

    #[test]
    fn disagreement_makes_everything_be_sent_with_growing_waits() {
        let now = crate::test_time::start();
        let mut outbox = synced(now);
        let mut waits = Vec::new();
        outbox.set(key(1), true);
        for _ in 0..10 {
            outbox.announce();
            outbox.answered(now, false, &mut rng());
            waits.push(outbox.due().expect("retried") - now);
        }
        assert!(waits[9] > waits[0] * 8 && waits[9] <= RETRY_MAX, "{waits:?}");
        let all = outbox.announce();
        assert!(all.reset && all.complete && all.add == [key(1)]);
    }

    #[test]
    fn change_during_back_off_does_not_shorten_it() {
        let now = crate::test_time::start();
        let mut outbox = synced(now);
        outbox.want(now);
        outbox.announce();
        outbox.failed(now, &mut rng());
        let due = outbox.due();
        outbox.set(key(1), true);
        outbox.want(now);
        assert_eq!(outbox.due(), due);
    }

    #[test]
    fn large_set_is_sent_in_parts_of_which_the_last_is_complete() {
        let now = crate::test_time::start();
        for (count, parts) in [
            (KEYS_PER_MESSAGE_MAX, 1),
            (KEYS_PER_MESSAGE_MAX + 1, 2),
            (KEYS_PER_MESSAGE_MAX * 2, 2),
            (KEYS_PER_MESSAGE_MAX * 2 + 1, 3),
        ] {
            let mut outbox = Outbox::new();
            (0..count).for_each(|number| outbox.set(key(number), true));
            let mut sent = 0;
            for part in 1..=parts {
                outbox.want(now);
                assert_eq!(outbox.due(), Some(now));
                let announce = outbox.announce();
                sent += announce.add.len();
                assert!(announce.add.len() <= KEYS_PER_MESSAGE_MAX);
                assert_eq!(announce.reset, part == 1);
                assert_eq!(announce.complete, part == parts);
                outbox.answered(now, true, &mut rng());
                assert_eq!(outbox.is_synced(), part == parts);
            }
            assert_eq!(sent, count);
        }
    }
}
