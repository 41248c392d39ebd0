//! How often something may be done.

use std::time::{Duration, Instant};

/// A token bucket: `burst` at once, then one each `interval`.
#[derive(Clone, Debug)]
pub(crate) struct Pacer {
    interval: Duration,
    burst: u32,
    /// When the bucket is full again; every token taken moves it by one interval.
    full_at: Option<Instant>,
}

impl Pacer {
    /// A full bucket of `burst` tokens (at least one) that regains one each `interval`.
    pub(crate) fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst: burst.max(1), full_at: None }
    }

    /// When a token can be taken: now or later.
    pub(crate) fn ready_at(&self, now: Instant) -> Instant {
        // A token is there as long as the bucket lacks fewer than `burst` of them.
        let slack = self.interval * (self.burst - 1);
        self.full_at.map_or(now, |full_at| full_at.checked_sub(slack).unwrap_or(now).max(now))
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        if self.ready_at(now) > now {
            return false;
        }
        self.full_at = Some(self.full_at.map_or(now, |full_at| full_at.max(now)) + self.interval);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn burst_then_one_each_interval() {
        let start = crate::test_time::start();
        let mut pacer = Pacer::new(SECOND, 3);
        let taken = (0..10).filter(|_| pacer.take(start)).count();
        assert_eq!(taken, 3);
        assert_eq!(pacer.ready_at(start), start + SECOND);
        assert!(!pacer.take(start + SECOND - Duration::from_nanos(1)));
        assert!(pacer.take(start + SECOND));
        assert!(!pacer.take(start + SECOND));
    }

    #[test]
    fn a_long_rest_gives_back_no_more_than_the_burst() {
        let start = crate::test_time::start();
        let mut pacer = Pacer::new(SECOND, 2);
        assert!(pacer.take(start));
        let later = start + SECOND * 3600;
        let taken = (0..10).filter(|_| pacer.take(later)).count();
        assert_eq!(taken, 2);
    }
}
