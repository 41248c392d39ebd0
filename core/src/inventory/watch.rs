//! Decides when the content directory is watched again. Never watches it, nor knows what
//! changes there; the inventory calls it and lists containerd upon what it says.

use std::time::{Duration, Instant};

/// How long after the watch was lost, or could not be had, it is tried again. Longer and the node
/// is blind for that long after the directory was replaced, or was made by the first pull of a
/// fresh node; much shorter and a directory that stays away costs CPU.
const REARM_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug)]
enum State {
    /// Ordered, and not heard of yet.
    Arming,
    Watching,
    Waiting {
        at: Instant,
    },
}

#[derive(Debug)]
pub(super) struct Watch {
    state: State,
    /// Whether changes have been missed since the last time that it was heard of.
    is_blind: bool,
}

impl Watch {
    /// A watch that has just been ordered.
    pub(super) const fn new() -> Self {
        Self { state: State::Arming, is_blind: false }
    }

    /// Returns whether changes were missed before.
    pub(super) const fn on_watched(&mut self) -> bool {
        self.state = State::Watching;
        std::mem::replace(&mut self.is_blind, false)
    }

    /// Returns whether this is the begin of an outage.
    pub(super) fn on_lost(&mut self, now: Instant) -> bool {
        if !matches!(self.state, State::Waiting { .. }) {
            self.state = State::Waiting { at: now + REARM_INTERVAL };
        }
        !std::mem::replace(&mut self.is_blind, true)
    }

    /// Returns whether the directory is to be watched.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let is_due = self.poll_timeout().is_some_and(|at| at <= now);
        if is_due {
            self.state = State::Arming;
        }
        is_due
    }

    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { at } => Some(at),
            State::Arming | State::Watching => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time;

    const TICK: Duration = Duration::from_nanos(1);

    #[test]
    fn lost_watch_is_tried_for_again_and_again() {
        let mut watch = Watch::new();
        let mut now = test_time::start();
        assert!(!watch.handle_timeout(now), "it is ordered by whoever made it");
        let mut outages = 0;
        for _ in 0..5 {
            outages += u32::from(watch.on_lost(now));
            outages += u32::from(watch.on_lost(now + TICK));
            assert!(!watch.handle_timeout(now + REARM_INTERVAL - TICK));
            now += REARM_INTERVAL;
            assert!(watch.handle_timeout(now));
            assert!(!watch.handle_timeout(now), "one order at a time");
            assert_eq!(watch.poll_timeout(), None);
        }
        assert_eq!(outages, 1, "a directory that stays away is said once");
        assert!(watch.on_watched(), "changes were missed");
        assert!(!watch.on_watched());
        assert!(watch.on_lost(now), "another outage");
    }
}
