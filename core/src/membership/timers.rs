//! The timers foca asked for, at most one for each purpose, so that their number is bounded by
//! the number of members whatever arrives.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use foca::Timer;

use super::codec::Id;
use crate::PeerId;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Probe,
    IndirectProbe,
    Announce,
    AnnounceDown,
    Gossip,
    Suspect(PeerId),
    Forget(PeerId),
}

/// Timers by when they are due, then by when they were asked for.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeMap<(Instant, u64), (Slot, Timer<Id>)>,
    slots: BTreeMap<Slot, (Instant, u64)>,
    asked: u64,
    /// A timer that has to fire in its turn, but is worth no call of its own.
    idle: Option<(Instant, u64)>,
}

impl Timers {
    /// Adds a timer. One that was there for the same purpose is replaced: it carries a token,
    /// identity or incarnation that has passed, and foca would ignore it.
    pub(super) fn add(&mut self, at: Instant, timer: Timer<Id>) {
        let slot = match &timer {
            Timer::ProbeRandomMember(_) => Slot::Probe,
            Timer::SendIndirectProbe { .. } => Slot::IndirectProbe,
            Timer::PeriodicAnnounce(_) => Slot::Announce,
            Timer::PeriodicAnnounceDown(_) => Slot::AnnounceDown,
            Timer::PeriodicGossip(_) => Slot::Gossip,
            Timer::ChangeSuspectToDown { member_id, .. } => Slot::Suspect(member_id.member().peer),
            Timer::RemoveDown(id) => Slot::Forget(id.member().peer),
        };
        if let Some(key) = self.slots.get(&slot) {
            // A suspect that is probed again must not gain time by it.
            let same = self.due.get(key).is_some_and(|(_, known)| *known == timer);
            if same && matches!(slot, Slot::Suspect(_)) {
                return;
            }
            self.due.remove(key);
        }
        let key = (at, self.asked);
        self.asked += 1;
        self.slots.insert(slot, key);
        self.due.insert(key, (slot, timer));
    }

    /// The probe under way was answered: foca wants to be told that the time for it is over, but
    /// only before the next one begins.
    pub(super) fn idle_indirect_probe(&mut self) {
        self.idle = self.slots.get(&Slot::IndirectProbe).copied();
    }

    /// When the first is due that is worth a call.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.due.keys().find(|key| self.idle != Some(**key)).map(|(at, _)| *at)
    }

    /// Takes the first that is due at `now`.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Timer<Id>> {
        let entry = self.due.first_entry().filter(|entry| entry.key().0 <= now)?;
        let (slot, timer) = entry.remove();
        self.slots.remove(&slot);
        Some(timer)
    }

    /// Moves all of them.
    pub(super) fn postpone(&mut self, by: Duration) {
        let due = std::mem::take(&mut self.due);
        self.due = due.into_iter().map(|((at, asked), timer)| ((at + by, asked), timer)).collect();
        for (at, _) in self.slots.values_mut().chain(&mut self.idle) {
            *at += by;
        }
    }

    pub(super) fn clear(&mut self) {
        self.due.clear();
        self.slots.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Member, test_time};

    const SECOND: Duration = Duration::from_secs(1);

    fn suspect(incarnation: u16) -> Timer<Id> {
        Timer::ChangeSuspectToDown { member_id: id(), incarnation, token: 0 }
    }

    fn id() -> Id {
        let peer = PeerId::from_public_key([1; 32]);
        Id::new(Member {
            peer,
            generation: 1,
            addrs: [].into(),
            router_port: 1,
            registry_port: 1,
            zone: None,
        })
    }

    #[test]
    fn later_timer_for_a_purpose_counts_unless_it_is_the_same_suspicion_again() {
        for (first, second, delayed) in [
            (suspect(1), suspect(1), false),
            (suspect(1), suspect(2), true),
            (Timer::RemoveDown(id()), Timer::RemoveDown(id()), true),
            (Timer::PeriodicGossip(1), Timer::PeriodicGossip(1), true),
            (Timer::PeriodicGossip(1), Timer::PeriodicGossip(2), true),
        ] {
            let (now, mut timers) = (test_time::start(), Timers::default());
            timers.add(now, first.clone());
            timers.add(now + SECOND, second.clone());
            assert_eq!(timers.len(), 1);
            let due = if delayed { now + SECOND } else { now };
            assert_eq!(timers.next_at(), Some(due), "{second:?} after {first:?}");
            assert_eq!(timers.pop(due), Some(second));
        }
    }

    #[test]
    fn idle_indirect_probe_fires_before_what_is_due_next_and_is_not_waited_for() {
        let (now, mut timers) = (test_time::start(), Timers::default());
        let indirect = Timer::SendIndirectProbe { probed_id: id(), token: 0 };
        timers.add(now + SECOND, indirect.clone());
        timers.add(now + SECOND * 3, Timer::ProbeRandomMember(0));
        timers.idle_indirect_probe();
        timers.postpone(SECOND);
        assert_eq!(timers.next_at(), Some(now + SECOND * 4));
        assert_eq!(timers.pop(now + SECOND * 4), Some(indirect.clone()));
        assert_eq!(timers.pop(now + SECOND * 4), Some(Timer::ProbeRandomMember(0)));
        timers.add(now + SECOND * 5, indirect);
        assert_eq!(timers.next_at(), Some(now + SECOND * 5), "the next one is waited for again");
    }

    #[test]
    fn postponed_timers_are_due_later_in_the_same_order_and_can_still_be_replaced() {
        let (now, mut timers) = (test_time::start(), Timers::default());
        timers.add(now + SECOND, Timer::PeriodicGossip(1));
        timers.add(now, Timer::PeriodicAnnounce(1));
        timers.add(now, suspect(1));
        timers.postpone(SECOND);
        timers.add(now + SECOND * 3, Timer::PeriodicAnnounce(2));
        assert_eq!(timers.pop(now + SECOND - Duration::from_nanos(1)), None);
        let order = [(1, suspect(1)), (2, Timer::PeriodicGossip(1)), (3, Timer::PeriodicAnnounce(2))];
        for (due, timer) in order {
            assert_eq!(timers.next_at(), Some(now + SECOND * due));
            assert_eq!(timers.pop(now + SECOND * due), Some(timer));
        }
    }
}
