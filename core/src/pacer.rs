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
    use proptest::prelude::*;

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

    /// The bucket as one would draw it: a level that rises by a token each interval, and stops at
    /// the brim.
    struct Bucket {
        interval: u128,
        burst: u128,
        /// In intervals of nanoseconds, so that nothing is rounded.
        level: u128,
        at: Instant,
    }

    impl Bucket {
        fn rise_to(&mut self, now: Instant) {
            let risen = self.level + now.duration_since(self.at).as_nanos();
            self.level = risen.min(self.burst * self.interval);
            self.at = now;
        }

        fn lacks(&self) -> u128 {
            self.interval.saturating_sub(self.level)
        }
    }

    proptest! {
        #[test]
        fn tokens_come_as_from_a_bucket_that_fills_steadily(
            interval_ms in 1_u64..2_000,
            burst in 0_u32..6,
            steps in proptest::collection::vec((prop_oneof![Just(0), 0_u64..100, 0_u64..20_000], any::<bool>()), 1..60),
        ) {
            let mut now = crate::test_time::start();
            let interval = Duration::from_millis(interval_ms);
            let mut pacer = Pacer::new(interval, burst);
            let (interval, burst) = (interval.as_nanos(), u128::from(burst.max(1)));
            let mut bucket = Bucket { interval, burst, level: interval * burst, at: now };
            for (wait_ms, waits_until_ready) in steps {
                now += Duration::from_millis(wait_ms);
                if waits_until_ready {
                    now = pacer.ready_at(now);
                }
                bucket.rise_to(now);
                let wait = pacer.ready_at(now).duration_since(now);
                prop_assert_eq!(wait.as_nanos(), bucket.lacks(), "how long until there is a token");
                let taken = pacer.take(now);
                prop_assert_eq!(taken, bucket.lacks() == 0);
                if taken {
                    bucket.level -= interval;
                }
            }
        }
    }
}
