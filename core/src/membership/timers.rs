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
            Timer::ChangeSuspectToDown { member_id, .. } => Slot::Suspect(member_id.0.peer),
            Timer::RemoveDown(id) => Slot::Forget(id.0.peer),
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

    /// When the first is due.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.due.keys().next().map(|(at, _)| *at)
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
        for (at, _) in self.slots.values_mut() {
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
