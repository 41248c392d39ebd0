//! How fast bytes lately came, and whether that was the peer's doing or the client's.

use std::{collections::VecDeque, time::Duration};

/// How far back the measurement reaches. Shorter and the bursts of TCP look like a broken link;
/// longer and a link that breaks in mid-layer is found out that much later.
pub(crate) const WINDOW: Duration = Duration::from_secs(1);

/// Reports closer together than this are merged, so that a shell that reports more often than
/// asked cannot make the window hold more than some fifty of them.
const MERGE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sample {
    elapsed: Duration,
    bytes: u64,
    starved: Duration,
}

/// A measurement over the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) bytes: u64,
    pub(super) elapsed: Duration,
    /// Whether more than half of the time was spent waiting for the peer: a slow client is no
    /// reason to leave a peer.
    pub(super) peer_bound: bool,
}

impl Measured {
    /// Bytes per second.
    pub(super) fn rate(&self) -> u64 {
        let nanos = self.elapsed.as_nanos().max(1);
        u64::try_from(u128::from(self.bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
    }
}

/// A sliding window of progress reports.
#[derive(Debug, Default)]
pub(super) struct Rates {
    samples: VecDeque<Sample>,
    sum: Sample,
}

impl Rates {
    pub(super) fn push(&mut self, elapsed: Duration, bytes: u64, starved: Duration) {
        // No one can have waited longer than time passed.
        let added = Sample { elapsed, bytes, starved: starved.min(elapsed) };
        match self.samples.back_mut() {
            Some(last) if last.elapsed < MERGE => *last = last.plus(added),
            Some(_) | None => self.samples.push_back(added),
        }
        self.sum = self.sum.plus(added);
        while let Some(first) = self.samples.front()
            && self.sum.elapsed.saturating_sub(first.elapsed) >= WINDOW
        {
            self.sum = self.sum.minus(*first);
            self.samples.pop_front();
        }
    }

    /// What came within the window; `None` until one has passed.
    pub(super) fn measured(&self) -> Option<Measured> {
        (self.sum.elapsed >= WINDOW).then(|| self.so_far())
    }

    /// What came so far, however short.
    pub(super) fn so_far(&self) -> Measured {
        let Sample { elapsed, bytes, starved } = self.sum;
        Measured { bytes, elapsed, peer_bound: starved > elapsed / 2 }
    }
}

impl Sample {
    fn plus(self, other: Self) -> Self {
        Self {
            elapsed: self.elapsed.saturating_add(other.elapsed),
            bytes: self.bytes.saturating_add(other.bytes),
            starved: self.starved.saturating_add(other.starved),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            elapsed: self.elapsed.saturating_sub(other.elapsed),
            bytes: self.bytes.saturating_sub(other.bytes),
            starved: self.starved.saturating_sub(other.starved),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn nothing_is_measured_before_a_whole_window() {
        let mut rates = Rates::default();
        rates.push(ms(999), 1000, ms(999));
        assert_eq!(rates.measured(), None);
        rates.push(ms(1), 0, ms(1));
        assert_eq!(rates.measured().map(|m| (m.rate(), m.peer_bound)), Some((1000, true)));
    }

    #[test]
    fn a_link_that_breaks_shows_after_one_window() {
        let mut rates = Rates::default();
        for _ in 0..50 {
            rates.push(ms(100), 10_000_000, ms(10));
        }
        for _ in 0..10 {
            rates.push(ms(100), 12_500, ms(95));
        }
        assert_eq!(rates.measured().map(|m| (m.rate(), m.peer_bound)), Some((125_000, true)));
    }

    #[test]
    fn waiting_for_the_client_is_not_the_peers_fault() {
        let mut rates = Rates::default();
        rates.push(ms(1000), 10, ms(500));
        assert_eq!(rates.measured().map(|m| m.peer_bound), Some(false), "exactly half");
        rates.push(ms(1000), 10, Duration::MAX);
        assert_eq!(rates.measured().map(|m| m.peer_bound), Some(true));
    }

    #[test]
    fn frequent_and_endless_reports_stay_bounded() {
        let mut rates = Rates::default();
        for _ in 0..10_000 {
            rates.push(Duration::from_micros(50), 1, Duration::ZERO);
            assert!(rates.samples.len() <= 60);
        }
        rates.push(Duration::MAX, u64::MAX, Duration::MAX);
        rates.push(Duration::MAX, u64::MAX, Duration::MAX);
        assert!(rates.samples.len() <= 60);
    }

    proptest! {
        /// Beside all reports: what is measured is the sum of the last ones, as many as make a window.
        #[test]
        fn a_measurement_is_of_the_last_reports_that_make_a_window(
            reports in vec((prop_oneof![0_u64..5, 0_u64..60, 0_u64..1500], 0_u64..1_000_000, 0_u64..2000), 1..120),
        ) {
            let mut rates = Rates::default();
            let mut all = Vec::new();
            for (elapsed_ms, bytes, starved_ms) in reports {
                rates.push(ms(elapsed_ms), bytes, ms(starved_ms));
                all.push((ms(elapsed_ms), bytes, ms(starved_ms.min(elapsed_ms))));
                // What came since each of the reports, the whole first.
                let since = (0..all.len()).map(|from| {
                    let last = &all[from..];
                    let elapsed: Duration = last.iter().map(|(elapsed, ..)| *elapsed).sum();
                    let starved: Duration = last.iter().map(|(.., starved)| *starved).sum();
                    let bytes: u64 = last.iter().map(|(_, bytes, _)| *bytes).sum();
                    Measured { elapsed, bytes, peer_bound: starved > elapsed / 2 }
                });
                let since: Vec<_> = since.collect();
                let whole = since[0];
                let measured = rates.so_far();
                prop_assert!(since.contains(&measured), "{measured:?} is not what the last reports say");
                prop_assert_eq!(rates.measured(), (whole.elapsed >= WINDOW).then_some(measured));
                // No older than need be, but for what was merged.
                let shortest = since.iter().rfind(|last| last.elapsed >= WINDOW).copied().unwrap_or(whole);
                prop_assert!(measured.elapsed >= shortest.elapsed, "{measured:?} is no window");
                prop_assert!(measured.elapsed < shortest.elapsed + MERGE, "{measured:?}, {shortest:?} is enough");
                let rate = u128::from(measured.bytes) * 1_000_000_000 / measured.elapsed.as_nanos().max(1);
                prop_assert_eq!(u128::from(measured.rate()), rate);
            }
        }
    }
}
