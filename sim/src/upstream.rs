//! The registry that images come from, as all nodes of a scenario see it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long it takes to answer.
pub(crate) const LATENCY: Duration = Duration::from_millis(50);

/// How often containerd (1.6 to 2.1) sends a request that is answered 429, without any pause,
/// before the pull fails.
pub(crate) const THROTTLED_TRIES_MAX: u32 = 6;

/// The stretch of time in which a registry that throttles counts.
const SECOND: Duration = Duration::from_secs(1);

/// The registry. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Upstream(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_cut: bool,
    requests_per_second: Option<usize>,
    /// When it answered those of the last second that it did not throttle.
    answered: VecDeque<Duration>,
    counts: UpstreamCounts,
}

/// What reached the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// Requests, also those that failed.
    pub requests: u64,
    /// Those of them that were answered 429.
    pub throttled: u64,
}

/// What one request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// What was asked for.
    Given,
    /// 429, without a word on when to come again.
    Throttled,
    /// Nothing.
    Unreachable,
}

impl Upstream {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it away, so that every request fails, or gives it back.
    pub fn set_cut(&self, is_cut: bool) {
        self.state().is_cut = is_cut;
    }

    /// Makes it answer 429 to all but so many requests a second.
    pub fn throttle(&self, requests_per_second: Option<usize>) {
        self.state().requests_per_second = requests_per_second;
    }

    /// What reached it so far.
    #[must_use]
    pub fn counts(&self) -> UpstreamCounts {
        self.state().counts
    }

    /// A request arrives.
    pub(crate) fn answer(&self, now: Duration) -> Answer {
        let mut state = self.state();
        state.counts.requests += 1;
        if state.is_cut {
            return Answer::Unreachable;
        }
        while state.answered.pop_front_if(|at| *at + SECOND <= now).is_some() {}
        if state.requests_per_second.is_some_and(|most| state.answered.len() >= most) {
            state.counts.throttled += 1;
            return Answer::Throttled;
        }
        state.answered.push_back(now);
        Answer::Given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_too_much_in_a_second_is_throttled() {
        let (upstream, start) = (Upstream::default(), Duration::from_secs(10));
        upstream.throttle(Some(2));
        let answers =
            [0, 10, 20, 999, 1000, 1001, 1010].map(|ms| upstream.answer(start + Duration::from_millis(ms)));
        let is_given = answers.map(|answer| answer == Answer::Given);
        assert_eq!(is_given, [true, true, false, false, true, false, true]);
        assert_eq!(upstream.counts(), UpstreamCounts { requests: 7, throttled: 3 });
        upstream.throttle(None);
        assert_eq!(upstream.answer(start), Answer::Given);
    }
}
