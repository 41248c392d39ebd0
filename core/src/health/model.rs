//! Random experiences with two peers beside a naive reading of the rules: a peer's history is kept
//! as plain numbers and lists, and averages are computed anew from every sample.

use std::ops::RangeInclusive;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::test_time;

const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
enum Step {
    Launch,
    /// The oldest request under way is over.
    Release,
    Answer {
        after_ms: u64,
    },
    Unanswered {
        after_ms: u64,
    },
    Fail(Failure),
    Throughput {
        bytes: u64,
        elapsed_ms: u64,
    },
    Serve,
    Verify,
    WrongContent(u8),
    Down,
    Wait {
        ms: u64,
    },
    /// Until a shunned peer may be probed.
    WaitForProbe,
}

fn failure() -> impl Strategy<Value = Failure> {
    let status = proptest::sample::select(&[429_u16, 503, 500, 401]);
    prop_oneof![
        2 => Just(Failure::Stalled),
        1 => Just(Failure::TooSlow),
        2 => Just(Failure::Fetch(FetchError::Connect)),
        1 => Just(Failure::Fetch(FetchError::NotFound)),
        3 => status.prop_map(|status| Failure::Fetch(FetchError::Refused { status })),
        3 => Just(Failure::Fetch(FetchError::Interrupted)),
        2 => Just(Failure::Fetch(FetchError::Malformed)),
        1 => Just(Failure::Fetch(FetchError::WrongContent)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let latency_ms = || prop_oneof![0_u64..10, 0_u64..250, 0_u64..3_000];
    prop_oneof![
        6 => Just(Step::Launch),
        4 => Just(Step::Release),
        4 => latency_ms().prop_map(|after_ms| Step::Answer { after_ms }),
        3 => latency_ms().prop_map(|after_ms| Step::Unanswered { after_ms }),
        8 => failure().prop_map(Step::Fail),
        3 => (prop_oneof![Just(0_u64), 0_u64..1_000_000, any::<u64>()], 0_u64..3_000)
            .prop_map(|(bytes, elapsed_ms)| Step::Throughput { bytes, elapsed_ms }),
        2 => Just(Step::Serve),
        1 => Just(Step::Verify),
        2 => (0..3_u8).prop_map(Step::WrongContent),
        1 => Just(Step::Down),
        6 => prop_oneof![0_u64..100, Just(100), 0_u64..2_000, 0_u64..100_000].prop_map(|ms| Step::Wait { ms }),
        4 => Just(Step::WaitForProbe),
    ]
}

/// Mean and mean deviation of RFC 6298, of all samples from the first.
#[derive(Clone, Default)]
struct Samples(Vec<f64>);

impl Samples {
    fn add(&mut self, sample: Duration) {
        self.0.push(sample.as_secs_f64().min(2.0));
    }

    /// Waiting in vain says something only if it was longer than usual.
    fn add_vain(&mut self, waited: Duration) {
        if self.estimate().is_none_or(|(mean, _)| waited.as_secs_f64() > mean + 1e-8) {
            self.add(waited);
        }
    }

    fn estimate(&self) -> Option<(f64, f64)> {
        let (first, rest) = self.0.split_first()?;
        Some(rest.iter().fold((*first, first / 2.0), |(mean, deviation), sample| {
            (0.875 * mean + 0.125 * sample, 0.75 * deviation + 0.25 * (mean - sample).abs())
        }))
    }

    fn hedge_delay(&self) -> f64 {
        self.estimate().map_or(0.05, |(mean, deviation)| (2.0 * (mean + 2.0 * deviation)).clamp(0.02, 0.2))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trust {
    Trusted,
    ShunnedUntil(Instant),
    Probed,
}

struct Known {
    trust: Trust,
    /// Failures that count since the last complete transfer: 6 of a kind that tells for sure, 3 and
    /// 2 of lesser kinds.
    weights: Vec<u32>,
    counted_at: Option<Instant>,
    failures: u32,
    /// Times shunned for failures since the last complete transfer.
    times_shunned: u32,
    wrong: Vec<u8>,
    told: bool,
    launched: Vec<bool>,
    latency: Samples,
    measured_at: Instant,
    answered_in: Duration,
    throughput: Option<(Instant, u64)>,
}

impl Known {
    fn new(now: Instant) -> Self {
        Self {
            trust: Trust::Trusted,
            weights: Vec::new(),
            counted_at: None,
            failures: 0,
            times_shunned: 0,
            wrong: Vec::new(),
            told: false,
            launched: Vec::new(),
            latency: Samples::default(),
            measured_at: now,
            answered_in: Duration::ZERO,
            throughput: None,
        }
    }

    /// How long a failure of this weight makes the peer be shunned, if it does.
    fn fail(&mut self, now: Instant, weight: u32) -> Option<RangeInclusive<Duration>> {
        self.failures += 1;
        match self.trust {
            Trust::ShunnedUntil(_) => return None,
            Trust::Probed => {}
            Trust::Trusted => {
                let one_event = self.counted_at.is_some_and(|at| now - at < MS * 100);
                if one_event && weight < 6 {
                    return None;
                }
                self.counted_at = Some(now);
                self.weights.push(weight);
                if self.weights.iter().sum::<u32>() < 6 {
                    return None;
                }
            }
        }
        let doubled = (0..self.times_shunned).fold(1_u64, |secs, _| (secs * 2).min(60));
        self.times_shunned += 1;
        let longest = Duration::from_secs(doubled);
        Some(longest / 2..=longest)
    }

    fn answered(&mut self) -> bool {
        let recovers = self.trust == Trust::Probed;
        if recovers {
            self.trust = Trust::Trusted;
        }
        recovers && std::mem::take(&mut self.told)
    }
}

struct World {
    now: Instant,
    health: Health,
    all: Samples,
    known: BTreeMap<u8, Known>,
}

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

fn addr(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 5000))
}

impl World {
    fn known(&mut self, number: u8) -> &mut Known {
        self.known.entry(number).or_insert_with(|| Known::new(self.now))
    }

    /// The peer was to be shunned for a time within `expected`, or not; the rest is by chance.
    fn shunned(&mut self, number: u8, expected: Option<RangeInclusive<Duration>>, reason: &str) {
        let notices: Vec<_> = std::iter::from_fn(|| self.health.poll_event()).collect();
        let now = self.now;
        let state = self.health.report(now).into_iter().find(|report| report.peer == peer(number));
        let known = self.known(number);
        let Some(expected) = expected else { return assert_eq!(notices, []) };
        let Some(BreakerState::Open { remaining }) = state.map(|report| report.state) else {
            panic!("not shunned although it {reason}")
        };
        let before = match known.trust {
            Trust::ShunnedUntil(until) => until.saturating_duration_since(now),
            Trust::Trusted | Trust::Probed => Duration::ZERO,
        };
        let is_right = expected.contains(&remaining) || remaining == before && before > *expected.start();
        assert!(is_right, "shunned for {remaining:?}, not {expected:?}");
        known.trust = Trust::ShunnedUntil(now + remaining);
        if std::mem::replace(&mut known.told, true) {
            assert_eq!(notices, [], "said twice");
        } else {
            let [Notice::PeerShunned { peer: of, reason: said, duration }] = notices.as_slice() else {
                panic!("{notices:?}")
            };
            assert_eq!((*of, *said), (peer(number), reason));
            assert!(expected.contains(duration), "said {duration:?}, not {expected:?}");
        }
    }

    fn trusted_again(&mut self, number: u8) {
        let notices: Vec<_> = std::iter::from_fn(|| self.health.poll_event()).collect();
        let expected = self.known(number).answered().then_some(Notice::PeerTrusted { peer: peer(number) });
        assert_eq!(notices, Vec::from_iter(expected));
    }

    fn apply(&mut self, number: u8, step: Step) {
        let now = self.now;
        match step {
            Step::Launch => {
                let known = self.known(number);
                let is_due = matches!(known.trust, Trust::ShunnedUntil(until) if until <= now);
                if is_due {
                    known.trust = Trust::Probed;
                }
                known.launched.push(is_due);
                assert_eq!(self.health.on_launched(now, peer(number)), is_due, "is it the probe?");
            }
            Step::Release => {
                let known = self.known(number);
                if known.launched.is_empty() {
                    return;
                }
                let probe = known.launched.remove(0);
                let expected = probe && known.trust == Trust::Probed;
                self.health.on_released(now, peer(number), probe);
                if expected {
                    // The probe told nothing: another one, in a while, and no word about it.
                    let report =
                        self.health.report(now).into_iter().find(|report| report.peer == peer(number));
                    let Some(BreakerState::Open { remaining }) = report.map(|report| report.state) else {
                        panic!("it must not be probed again at once")
                    };
                    assert!((MS * 500..=MS * 1000).contains(&remaining), "{remaining:?}");
                    self.known(number).trust = Trust::ShunnedUntil(now + remaining);
                }
                assert_eq!(self.health.poll_event(), None);
            }
            Step::Answer { after_ms } => {
                let after = MS * u32::try_from(after_ms).expect("fits");
                self.health.on_answered(now, peer(number), addr(number), after);
                self.all.add(after);
                let known = self.known(number);
                known.latency.add(after);
                (known.measured_at, known.answered_in) = (now, after);
                self.trusted_again(number);
                assert_eq!(self.health.addr(&peer(number)), Some(addr(number)));
            }
            Step::Unanswered { after_ms } => {
                let waited = MS * u32::try_from(after_ms).expect("fits");
                let patience = self.all.hedge_delay();
                if (waited.as_secs_f64() - patience).abs() < 1e-6 {
                    // Rounded otherwise there and here.
                    return;
                }
                self.health.on_unanswered(now, peer(number), waited);
                if waited.as_secs_f64() < patience {
                    return self.shunned_if_known(number);
                }
                self.all.add_vain(waited);
                let known = self.known(number);
                known.latency.add_vain(waited);
                known.measured_at = now;
                // Who is merely slower than others has not failed.
                let expected = if waited >= MS * 500 {
                    known.fail(now, 6)
                } else if waited >= known.answered_in * 4 {
                    known.fail(now, 2)
                } else {
                    None
                };
                self.shunned(number, expected, "unanswered");
            }
            Step::Fail(failure) => {
                self.health.on_failed(now, peer(number), failure);
                let (weight, reason) = match failure {
                    Failure::TooSlow | Failure::Fetch(FetchError::NotFound) => {
                        return self.trusted_again(number);
                    }
                    Failure::Stalled => (6, "stalled"),
                    Failure::Fetch(FetchError::Connect) => (6, "connect"),
                    Failure::Fetch(FetchError::Refused { status: 429 | 503 }) => (6, "overloaded"),
                    Failure::Fetch(FetchError::Interrupted) => (3, "interrupted"),
                    Failure::Fetch(FetchError::Refused { .. }) => (2, "refused"),
                    Failure::Fetch(FetchError::Malformed | FetchError::WrongContent) => (2, "malformed"),
                };
                let expected = self.known(number).fail(now, weight);
                self.shunned(number, expected, reason);
            }
            Step::Throughput { bytes, elapsed_ms } => {
                let elapsed = MS * u32::try_from(elapsed_ms).expect("fits");
                self.health.on_throughput(now, peer(number), bytes, elapsed);
                let rate = u128::from(bytes) * 1_000_000_000 / elapsed.as_nanos().max(1);
                let rate = rate.min(u128::from(u64::MAX)) as u64;
                let known = self.known(number);
                let past = known.throughput.filter(|(at, _)| now - *at < Duration::from_secs(60));
                let rate = match past {
                    Some((_, past)) if rate >= past / 4 => past / 2 + rate / 2,
                    Some(_) | None => rate,
                };
                known.throughput = Some((now, rate));
            }
            Step::Serve => {
                self.health.on_served(now, peer(number));
                let known = self.known(number);
                known.weights.clear();
                (known.failures, known.times_shunned) = (0, 0);
            }
            Step::Verify => {
                self.health.on_verified(now, peer(number));
                self.known(number).wrong.clear();
            }
            Step::WrongContent(content) => {
                self.health.on_wrong_content(now, peer(number), Digest::sha256_of(&[content]));
                let known = self.known(number);
                known.failures += 1;
                if known.wrong.last() != Some(&content) {
                    known.wrong.push(content);
                    known.told = false;
                }
                let duration = match known.wrong.len() {
                    1 => Duration::from_secs(60),
                    more => (2..more).fold(Duration::from_secs(600), |time, _| time * 2),
                };
                let duration = duration.min(Duration::from_secs(6 * 3600));
                self.shunned(number, Some(duration..=duration), "wrong_content");
            }
            Step::Down => {
                self.health.on_member_down(&peer(number));
                let known = self.known(number);
                if known.wrong.is_empty() {
                    let launched = std::mem::take(&mut known.launched);
                    self.known.remove(&number);
                    if !launched.is_empty() {
                        self.known.insert(number, Known { launched, ..Known::new(now) });
                    }
                }
            }
            Step::Wait { ms } => self.now += Duration::from_millis(ms),
            Step::WaitForProbe => {
                if let Trust::ShunnedUntil(until) = self.known(number).trust {
                    self.now = self.now.max(until);
                }
            }
        }
    }

    fn shunned_if_known(&mut self, number: u8) {
        if self.known.contains_key(&number) {
            self.shunned(number, None, "nothing");
        }
    }

    fn check(&self) {
        let now = self.now;
        let hedge_delay = self.health.hedge_delay().as_secs_f64();
        assert!((hedge_delay - self.all.hedge_delay()).abs() < 1e-6, "hedge after {hedge_delay}");
        for (number, known) in &self.known {
            let rank = self.health.rank(now, &peer(*number), true);
            let probe = match known.trust {
                Trust::Trusted => Some(false),
                Trust::ShunnedUntil(until) if until <= now => Some(true),
                Trust::ShunnedUntil(_) | Trust::Probed => None,
            };
            assert_eq!(rank.map(|rank| rank.probe), probe, "{:?}", known.trust);
            let throughput =
                known.throughput.filter(|(at, _)| now - *at < Duration::from_secs(60)).map(|(_, rate)| rate);
            assert_eq!(self.health.throughput(now, &peer(*number)), throughput);
            let Some(rank) = rank else { continue };
            assert_eq!(rank.in_flight as usize, known.launched.len());
            assert_eq!(rank.slow, throughput.is_some_and(|rate| rate < 256 * 1024));
            assert_eq!(rank, Rank { other_zone: false, ..rank });
            let is_fresh = now - known.measured_at < Duration::from_secs(60);
            let mean_ms = known.latency.estimate().filter(|_| is_fresh).map_or(0.0, |(mean, _)| mean * 1e3);
            let classes = std::iter::successors(Some(5.0), |bound| Some(bound * 2.0 + 5.0));
            // At a bound, rounding decides.
            let class = |mean_ms: f64| classes.clone().take_while(|bound| mean_ms >= *bound).count();
            let around = class(mean_ms - 1e-3)..=class(mean_ms + 1e-3);
            assert!(around.contains(&(rank.latency_class as usize)), "{mean_ms} ms, {rank:?}");
        }
        let failures = |report: PeerReport| (report.peer, report.failures);
        let failures: Vec<_> = self.health.report(now).into_iter().map(failures).collect();
        let expected: Vec<_> =
            self.known.iter().map(|(number, known)| (peer(*number), known.failures)).collect();
        assert_eq!(failures, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn peers_are_trusted_and_ranked_by_what_was_seen_of_them(
        seed in any::<u64>(),
        steps in vec((prop_oneof![4 => Just(1_u8), 1 => Just(2_u8)], step()), 1..150),
    ) {
        let mut world = World {
            now: test_time::start(),
            health: Health::new(seed),
            all: Samples::default(),
            known: BTreeMap::new(),
        };
        for (number, step) in steps {
            // Every one of these lets the machine remember the peer.
            if !world.known.contains_key(&number) {
                world.apply(number, Step::Serve);
            }
            world.apply(number, step);
            world.check();
        }
    }
}
