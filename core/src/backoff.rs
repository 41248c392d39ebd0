//! How long to wait before trying something again.

use std::time::Duration;

use crate::rng::Rng;

/// Exponential back-off with jitter: each delay is drawn between half and all of a step that
/// doubles from `first` to `max`.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// A back-off whose steps grow from `first` to `max`.
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, failures: 0 }
    }

    /// Counts a failure and says how long to wait after it.
    pub(crate) fn next_delay(&mut self, rng: &mut Rng) -> Duration {
        let step = self.first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        rng.jittered(step.min(self.max))
    }

    /// Forgets the failures: what was tried succeeded.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub(crate) const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let mut rng = Rng::new(1, "backoff");
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        for step in [1, 2, 4, 8, 10, 10] {
            let step = Duration::from_secs(step);
            let delay = backoff.next_delay(&mut rng);
            assert!(step / 2 <= delay && delay <= step, "{delay:?} of {step:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay(&mut rng) <= Duration::from_secs(1));
    }

    #[test]
    fn endless_failures_stay_at_the_maximum() {
        let mut rng = Rng::new(1, "backoff");
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        backoff.failures = u32::MAX;
        assert!(backoff.next_delay(&mut rng) >= Duration::from_secs(5));
        assert_eq!(backoff.failures(), u32::MAX);
    }

    proptest! {
        /// Beside a step that is doubled by hand.
        #[test]
        fn delays_are_of_a_step_that_doubles_and_starts_over_after_a_success(
            seed in any::<u64>(),
            first_ms in 1_u64..10_000,
            max_ms in 1_u64..3_600_000,
            succeeds in proptest::collection::vec(proptest::bool::weighted(0.05), 0..80),
        ) {
            let mut rng = Rng::new(seed, "backoff");
            let (first, max) = (Duration::from_millis(first_ms), Duration::from_millis(max_ms));
            let mut backoff = Backoff::new(first, max);
            let (mut step, mut failures) = (first, 0);
            for succeeds in succeeds {
                if succeeds {
                    backoff.reset();
                    (step, failures) = (first, 0);
                }
                let delay = backoff.next_delay(&mut rng);
                let whole = step.min(max);
                prop_assert!(whole / 2 <= delay && delay <= whole, "{delay:?} of {whole:?} after {failures}");
                step = whole * 2;
                failures += 1;
                prop_assert_eq!(backoff.failures(), failures);
            }
        }
    }
}
