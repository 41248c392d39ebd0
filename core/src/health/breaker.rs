//! Decides whether one peer is asked at all: a circuit breaker that opens on failures, lets one
//! probe through when its time is up, and closes on an answer. Never decides whom to ask instead.

use std::time::{Duration, Instant};

use super::Failure;
use crate::{FetchError, backoff::Backoff, oci::Digest, rng::Rng};

/// How long a failing peer is left alone at first. Shorter and a dead node is asked several times
/// before membership notices; longer and a node that restarted, or was only busy, is missed.
pub(crate) const OPEN_FIRST: Duration = Duration::from_secs(1);

/// How long it is left alone at most. Together with the doubling that bounds what a dead node
/// costs: some six requests in its first minute, one or two a minute from then on, until
/// membership drops it. Longer and a node that came back is missed for that long.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(60);

/// How long a peer is left alone after one digest that containerd did not accept. Long enough
/// for the retried pull to go elsewhere with all of its layers; not longer, for a client other
/// than containerd that asks twice looks the same.
pub(crate) const WRONG_FIRST: Duration = Duration::from_secs(60);

/// The same after a second digest, which is no coincidence any more; doubles with each further one.
pub(crate) const WRONG_AGAIN: Duration = Duration::from_secs(600);

/// The most that doubling leads to.
const WRONG_MAX: Duration = Duration::from_secs(6 * 3600);

/// An answer outstanding for this long is a failure by itself; shorter ones only add up. Much
/// shorter and a cold disk looks like a dead node; longer than a pull's deadline and a hanging
/// node is never noticed.
pub(crate) const UNANSWERED_MAX: Duration = Duration::from_millis(500);

/// Lesser failures this close together count once: the streams of three layers that break at the
/// same moment are one event. Longer and a peer that breaks off again and again gets away with it.
pub(crate) const SAME_MOMENT: Duration = Duration::from_millis(100);

/// Weight at which the breaker opens.
const OPEN_AT: u32 = 6;
/// The peer is dead, hangs or asks to be left alone: nothing else will go better.
const FATAL: u32 = OPEN_AT;
/// May be chance once, is not twice: one reset must not ban the only holder.
const SERIOUS: u32 = OPEN_AT / 2;
/// May concern a single digest, or a moment.
const MINOR: u32 = OPEN_AT / 3;

/// Whether a peer may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Trusted,
    /// By one request, to see whether it has recovered.
    Probe,
    Shunned,
}

/// What an operator should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Shunned { reason: &'static str, duration: Duration },
    Trusted,
}

/// Whether a peer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It is.
    Closed,
    /// Not until this much time has passed.
    Open {
        /// The time left.
        remaining: Duration,
    },
    /// By one request at a time, to see whether it has recovered.
    HalfOpen,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    /// The probe is on its way.
    HalfOpen,
}

/// The circuit breaker of one peer.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    backoff: Backoff,
    /// Weight of the failures since the last complete transfer.
    weight: u32,
    failures: u32,
    failed_at: Option<Instant>,
    /// Digests not accepted since the last one that was.
    wrong: u32,
    wrong_last: Option<Digest>,
    /// Whether the operator was told that the peer is shunned.
    told: bool,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed,
            backoff: Backoff::new(OPEN_FIRST, OPEN_MAX),
            weight: 0,
            failures: 0,
            failed_at: None,
            wrong: 0,
            wrong_last: None,
            told: false,
        }
    }
}

impl Breaker {
    pub(super) fn standing(&self, now: Instant) -> Standing {
        match self.state {
            State::Closed => Standing::Trusted,
            State::Open { until } if until <= now => Standing::Probe,
            State::Open { .. } | State::HalfOpen => Standing::Shunned,
        }
    }

    pub(super) fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until } if until > now => BreakerState::Open { remaining: until - now },
            State::Open { .. } | State::HalfOpen => BreakerState::HalfOpen,
        }
    }

    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) const fn remembers_wrong_content(&self) -> bool {
        self.wrong > 0
    }

    /// True if the request is the probe.
    pub(super) fn on_launched(&mut self, now: Instant) -> bool {
        let probe = self.standing(now) == Standing::Probe;
        if probe {
            self.state = State::HalfOpen;
        }
        probe
    }

    /// The probe ended; unless it told something, another may follow, though not at once: a dead
    /// node that is always outrun by another would be asked by every pull.
    pub(super) fn on_probe_inconclusive(&mut self, now: Instant, rng: &mut Rng) {
        if matches!(self.state, State::HalfOpen) {
            self.state = State::Open { until: now + rng.jittered(OPEN_FIRST) };
        }
    }

    /// An answer closes the breaker, but the failures are kept until a transfer is complete: a
    /// peer that answers and then always breaks off must not look healthy in between.
    pub(super) fn on_answered(&mut self) -> Option<Change> {
        match self.state {
            // Of a request older than the failure.
            State::Closed | State::Open { .. } => None,
            State::HalfOpen => {
                self.state = State::Closed;
                std::mem::take(&mut self.told).then_some(Change::Trusted)
            }
        }
    }

    pub(super) const fn on_served(&mut self) {
        self.weight = 0;
        self.failures = 0;
        self.backoff.reset();
    }

    pub(super) const fn on_verified(&mut self) {
        self.wrong = 0;
        self.wrong_last = None;
    }

    pub(super) fn on_unanswered(&mut self, now: Instant, waited: Duration, rng: &mut Rng) -> Option<Change> {
        let weight = if waited >= UNANSWERED_MAX { FATAL } else { MINOR };
        self.fail(now, weight, "unanswered", rng)
    }

    pub(super) fn on_failed(&mut self, now: Instant, failure: Failure, rng: &mut Rng) -> Option<Change> {
        let (weight, reason) = match failure {
            // It is alive and says what it knows. Slowness is remembered as throughput.
            Failure::Fetch(FetchError::NotFound) | Failure::TooSlow => return self.on_answered(),
            Failure::Fetch(FetchError::Connect) => (FATAL, "connect"),
            Failure::Stalled => (FATAL, "stalled"),
            Failure::Fetch(FetchError::Refused { status: 429 | 503 }) => (FATAL, "overloaded"),
            Failure::Fetch(FetchError::Interrupted) => (SERIOUS, "interrupted"),
            Failure::Fetch(FetchError::Refused { .. }) => (MINOR, "refused"),
            Failure::Fetch(FetchError::Malformed | FetchError::WrongContent) => (MINOR, "malformed"),
        };
        self.fail(now, weight, reason, rng)
    }

    pub(super) fn on_wrong_content(&mut self, now: Instant, digest: Digest) -> Option<Change> {
        if self.wrong_last != Some(digest) {
            self.wrong = self.wrong.saturating_add(1);
            self.wrong_last = Some(digest);
            // Worth a word even if the peer is shunned for something lesser already.
            self.told = false;
        }
        let duration = match self.wrong {
            0 | 1 => WRONG_FIRST,
            more => {
                WRONG_AGAIN.saturating_mul(1_u32.checked_shl(more - 2).unwrap_or(u32::MAX)).min(WRONG_MAX)
            }
        };
        self.failures = self.failures.saturating_add(1);
        self.open(now, duration, "wrong_content")
    }

    fn fail(&mut self, now: Instant, weight: u32, reason: &'static str, rng: &mut Rng) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        let again = self.failed_at.is_some_and(|at| now.saturating_duration_since(at) < SAME_MOMENT);
        match self.state {
            // Requests that were under way when it opened: the same outage, not a longer one.
            State::Open { .. } => return None,
            State::HalfOpen => {}
            State::Closed if again && weight < FATAL => return None,
            State::Closed => {
                self.failed_at = Some(now);
                self.weight = self.weight.saturating_add(weight);
                if self.weight < OPEN_AT {
                    return None;
                }
            }
        }
        let delay = self.backoff.next_delay(rng);
        self.open(now, delay, reason)
    }

    fn open(&mut self, now: Instant, duration: Duration, reason: &'static str) -> Option<Change> {
        let until = match self.state {
            State::Open { until } => until.max(now + duration),
            State::Closed | State::HalfOpen => now + duration,
        };
        self.state = State::Open { until };
        let first = !std::mem::replace(&mut self.told, true);
        first.then_some(Change::Shunned { reason, duration })
    }
}
