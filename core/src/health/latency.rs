//! A running estimate of how long answers take: mean and mean deviation, as TCP keeps of its
//! round trips (RFC 6298, section 2).

use std::time::Duration;

/// Longest sample taken in. Longer ones tell nothing more (every deadline is shorter) and would
/// take many ordinary samples to forget.
const SAMPLE_MAX: Duration = Duration::from_secs(2);

/// How long answers take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    estimate: Option<(Duration, Duration)>,
}

impl Latency {
    /// Learns from an answer that took `sample`.
    pub(super) fn answered(&mut self, sample: Duration) {
        let sample = sample.min(SAMPLE_MAX);
        self.estimate = Some(match self.estimate {
            None => (sample, sample / 2),
            Some((mean, deviation)) => ((mean * 7 + sample) / 8, (deviation * 3 + mean.abs_diff(sample)) / 4),
        });
    }

    /// Learns from an answer that had not come after `waited`: it would have taken that long or
    /// longer, which says something only if that is longer than expected. Without these samples
    /// an estimate made in good times would never learn of bad ones, since the answers that
    /// come too late to be counted are exactly the slow ones.
    pub(super) fn unanswered(&mut self, waited: Duration) {
        if self.mean().is_none_or(|mean| waited > mean) {
            self.answered(waited);
        }
    }

    /// The mean.
    pub(super) fn mean(&self) -> Option<Duration> {
        self.estimate.map(|(mean, _)| mean)
    }

    /// What nine answers in ten come within, about: 90 % of a normal distribution are within 1.28
    /// standard deviations, which are 1.6 mean deviations; rounded up, for answers have a long tail.
    pub(super) fn ninetieth(&self) -> Option<Duration> {
        self.estimate.map(|(mean, deviation)| mean + deviation * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn steady_answers_converge_to_their_latency() {
        let mut latency = Latency::default();
        assert_eq!(latency.ninetieth(), None);
        for _ in 0..100 {
            latency.answered(ms(8));
        }
        assert_eq!(latency.mean(), Some(ms(8)));
        assert!(latency.ninetieth() < Some(ms(9)));
    }

    #[test]
    fn answers_that_never_come_raise_the_estimate() {
        let mut latency = Latency::default();
        latency.answered(ms(5));
        for _ in 0..40 {
            latency.unanswered(ms(400));
        }
        assert!(latency.mean() > Some(ms(350)));
        let before = latency.mean();
        latency.unanswered(ms(10));
        assert_eq!(latency.mean(), before, "a short wait says nothing of slow answers");
        let before = latency.ninetieth();
        latency.unanswered(latency.mean().expect("known"));
        assert_eq!(latency.ninetieth(), before, "nor that answers are steady");
    }

    #[test]
    fn one_endless_wait_is_soon_forgotten() {
        let mut latency = Latency::default();
        latency.answered(Duration::MAX);
        assert_eq!(latency.mean(), Some(SAMPLE_MAX));
        for _ in 0..40 {
            latency.answered(ms(5));
        }
        assert!(latency.mean() < Some(ms(20)));
    }
}
