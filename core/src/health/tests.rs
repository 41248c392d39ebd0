use super::{
    breaker::{OPEN_FIRST, OPEN_MAX, SAME_MOMENT, UNANSWERED_MAX, WRONG_AGAIN, WRONG_FIRST},
    *,
};
use crate::test_time;

const TICK: Duration = Duration::from_nanos(1);
const MS: Duration = Duration::from_millis(1);

#[test]
fn each_failure_opens_the_breaker_after_its_number() {
    let refused = |status| Failure::Fetch(FetchError::Refused { status });
    let cases = [
        (Failure::Fetch(FetchError::Connect), 1),
        (Failure::Stalled, 1),
        (refused(503), 1),
        (refused(429), 1),
        (Failure::Fetch(FetchError::Interrupted), 2),
        (refused(500), 3),
        (refused(401), 3),
        (Failure::Fetch(FetchError::Malformed), 3),
    ];
    for (failure, number) in cases {
        let mut now = test_time::start();
        let mut health = Health::new(1);
        for _ in 1..number {
            health.on_failed(now, peer(1), failure);
            assert!(health.rank(now, &peer(1), true).is_some(), "{failure:?}");
            assert_eq!(health.poll_event(), None);
            now += SAME_MOMENT;
        }
        health.on_failed(now, peer(1), failure);
        assert_eq!(health.rank(now, &peer(1), true), None, "{failure:?}");
        assert!(matches!(health.poll_event(), Some(Notice::PeerShunned { .. })), "{failure:?}");
        assert!(health.rank(now, &peer(2), true).is_some());
    }
}

#[test]
fn missing_content_and_slowness_never_open_the_breaker() {
    let mut now = test_time::start();
    let mut health = Health::new(1);
    for _ in 0..100 {
        health.on_failed(now, peer(1), Failure::Fetch(FetchError::NotFound));
        health.on_failed(now, peer(1), Failure::TooSlow);
        now += SAME_MOMENT;
    }
    assert!(health.rank(now, &peer(1), true).is_some());
    assert_eq!(health.poll_event(), None);
}

#[test]
fn streams_that_break_together_count_once() {
    let now = test_time::start();
    let mut health = Health::new(1);
    let interrupted = Failure::Fetch(FetchError::Interrupted);
    for _ in 0..3 {
        health.on_failed(now, peer(1), interrupted);
    }
    health.on_failed(now + SAME_MOMENT - TICK, peer(1), interrupted);
    assert!(health.rank(now, &peer(1), true).is_some());
    health.on_failed(now + SAME_MOMENT, peer(1), interrupted);
    assert_eq!(health.rank(now + SAME_MOMENT, &peer(1), true), None);
}

#[test]
fn complete_transfer_clears_earlier_failures() {
    let now = test_time::start();
    let mut health = Health::new(1);
    health.on_failed(now, peer(1), Failure::Fetch(FetchError::Interrupted));
    health.on_served(now, peer(1));
    health.on_failed(now + SAME_MOMENT, peer(1), Failure::Fetch(FetchError::Interrupted));
    assert!(health.rank(now + SAME_MOMENT, &peer(1), true).is_some());
}

#[test]
fn exactly_one_probe_is_let_through_when_the_time_is_up() {
    let now = test_time::start();
    let mut health = Health::new(1);
    let until = shun(&mut health, now);
    assert_eq!(health.rank(until - TICK, &peer(1), true), None);
    assert!(health.rank(until, &peer(1), true).is_some_and(|rank| rank.probe));
    assert_eq!(health.report(until)[0].state, BreakerState::HalfOpen);
    assert!(health.on_launched(until, peer(1)));
    assert_eq!(health.rank(until, &peer(1), true), None);
    assert_eq!(health.report(until)[0].state, BreakerState::HalfOpen);
    health.on_answered(until, peer(1), addr(1), MS);
    assert_eq!(health.poll_event(), Some(Notice::PeerTrusted { peer: peer(1) }));
    assert!(health.rank(until, &peer(1), true).is_some_and(|rank| !rank.probe));
    assert!(!health.on_launched(until, peer(1)));
}

#[test]
fn probe_without_outcome_is_followed_by_another_later() {
    let now = test_time::start();
    let mut health = Health::new(1);
    let until = shun(&mut health, now);
    let probe = health.on_launched(until, peer(1));
    health.on_released(until, peer(1), probe);
    assert_eq!(health.rank(until, &peer(1), true), None);
    assert!(health.rank(until + OPEN_FIRST, &peer(1), true).is_some_and(|rank| rank.probe));
}

#[test]
fn failed_probes_double_the_time_and_are_not_announced_again() {
    let mut now = test_time::start();
    let mut health = Health::new(1);
    let mut probes = 0;
    let end = now + Duration::from_secs(600);
    now = shun(&mut health, now);
    while now < end {
        let probe = health.on_launched(now, peer(1));
        assert!(probe);
        probes += 1;
        health.on_failed(now, peer(1), Failure::Fetch(FetchError::Connect));
        health.on_released(now, peer(1), probe);
        let BreakerState::Open { remaining } = health.report(now)[0].state else { panic!("not open") };
        assert!(remaining <= OPEN_MAX);
        now += remaining;
        assert_eq!(health.poll_event(), None);
    }
    assert!(probes <= 6 + 2 * 10, "a dead node is asked {probes} times in ten minutes");
}

#[test]
fn requests_under_way_when_it_opens_do_not_lengthen_the_outage() {
    let now = test_time::start();
    let mut health = Health::new(1);
    let until = shun(&mut health, now);
    for _ in 0..50 {
        health.on_failed(now + MS, peer(1), Failure::Fetch(FetchError::Connect));
    }
    assert!(health.rank(until, &peer(1), true).is_some());
    health.on_answered(now + MS, peer(1), addr(1), MS);
    assert_eq!(health.rank(until - TICK, &peer(1), true), None, "an old answer is no probe");
}

#[test]
fn answer_without_complete_transfer_keeps_the_peer_on_probation() {
    let now = test_time::start();
    let mut health = Health::new(1);
    let until = shun(&mut health, now);
    health.on_launched(until, peer(1));
    health.on_answered(until, peer(1), addr(1), MS);
    health.on_failed(until + SAME_MOMENT, peer(1), Failure::Fetch(FetchError::Interrupted));
    assert_eq!(health.rank(until + SAME_MOMENT, &peer(1), true), None);
}

#[test]
fn unanswered_requests_open_the_breaker_at_once_if_long_and_by_number_if_short() {
    let now = test_time::start();
    let mut health = Health::new(1);
    health.on_unanswered(now, peer(1), UNANSWERED_MAX);
    assert_eq!(health.rank(now, &peer(1), true), None);
    let mut health = Health::new(1);
    let mut at = now;
    for _ in 0..2 {
        health.on_unanswered(at, peer(1), HEDGE_MAX);
        assert!(health.rank(at, &peer(1), true).is_some());
        at += SAME_MOMENT;
    }
    health.on_unanswered(at, peer(1), UNANSWERED_MAX - TICK);
    assert_eq!(health.rank(at, &peer(1), true), None);
    let mut health = Health::new(1);
    for number in 0..100 {
        let patience = health.hedge_delay();
        health.on_unanswered(now + SAME_MOMENT * number, peer(1), patience - TICK);
    }
    assert!(health.rank(now, &peer(1), true).is_some(), "a lost race is no failure");
}

#[test]
fn peer_that_is_only_slower_than_others_is_not_shunned_for_losing_races() {
    let now = test_time::start();
    let mut health = Health::new(1);
    for _ in 0..100 {
        health.on_answered(now, peer(2), addr(2), MS);
    }
    health.on_answered(now, peer(1), addr(1), MS * 30);
    let mut at = now;
    for _ in 0..50 {
        health.on_unanswered(at, peer(1), MS * 119);
        at += SAME_MOMENT;
    }
    assert!(health.rank(at, &peer(1), true).is_some());
    for _ in 0..3 {
        health.on_unanswered(at, peer(1), HEDGE_MAX);
        at += SAME_MOMENT;
    }
    assert_eq!(health.rank(at, &peer(1), true), None);
}

#[test]
fn wrong_content_shuns_for_long_and_longer_the_second_time() {
    let now = test_time::start();
    let mut health = Health::new(1);
    let digest = |n: u8| Digest::sha256_of(&[n]);
    health.on_wrong_content(now, peer(1), digest(1));
    health.on_wrong_content(now, peer(1), digest(1));
    assert_eq!(health.rank(now + WRONG_FIRST - TICK, &peer(1), true), None);
    assert!(health.rank(now + WRONG_FIRST, &peer(1), true).is_some());
    health.on_wrong_content(now, peer(1), digest(2));
    assert_eq!(health.rank(now + WRONG_AGAIN - TICK, &peer(1), true), None);
    health.on_wrong_content(now, peer(1), digest(3));
    assert_eq!(health.rank(now + WRONG_AGAIN * 2 - TICK, &peer(1), true), None);
    let notices = std::iter::from_fn(|| health.poll_event()).count();
    assert_eq!(notices, 3);
    for number in 4..250 {
        health.on_wrong_content(now, peer(1), digest(number));
    }
    health.on_member_down(&peer(1));
    assert_eq!(health.rank(now, &peer(1), true), None, "a restart does not clear it");
    health.on_verified(now, peer(1));
    health.on_member_down(&peer(1));
    assert!(health.rank(now, &peer(1), true).is_some());
}

#[test]
fn transfers_from_a_peer_declared_down_still_count() {
    let now = test_time::start();
    let mut health = Health::new(1);
    let in_flight = |health: &Health| health.report(now).first().map(|known| known.in_flight);
    health.on_launched(now, peer(1));
    health.on_launched(now, peer(1));
    health.on_failed(now, peer(1), Failure::Stalled);
    health.on_member_down(&peer(1));
    assert_eq!(in_flight(&health), Some(2));
    assert!(health.rank(now, &peer(1), true).is_some(), "all else is forgotten");
    health.on_launched(now, peer(1));
    for left in [2, 1, 0] {
        health.on_released(now, peer(1), false);
        assert_eq!(in_flight(&health), Some(left));
    }
    health.on_member_down(&peer(1));
    assert_eq!(in_flight(&health), None);
}

#[test]
fn peers_are_ranked_by_trust_speed_zone_load_then_latency() {
    let now = test_time::start();
    let mut health = Health::new(1);
    let (near, far, busy, late, slow, probe) = (peer(1), peer(2), peer(3), peer(4), peer(5), peer(6));
    health.on_launched(now, busy);
    for _ in 0..10 {
        health.on_answered(now, late, addr(4), MS * 100);
    }
    health.on_throughput(now, slow, THROUGHPUT_FLOOR - 1, Duration::from_secs(1));
    health.on_failed(now, probe, Failure::Stalled);
    let at = now + OPEN_FIRST;
    let mut order = [(probe, true), (slow, true), (far, false), (busy, true), (late, true), (near, true)];
    order.sort_by_key(|(peer, same_zone)| health.rank(at, peer, *same_zone));
    assert_eq!(order.map(|(peer, _)| peer), [near, late, busy, far, slow, probe]);
    let later = now + MEASURE_TTL;
    assert_eq!(health.rank(later, &slow, true), health.rank(later, &near, true), "the past is forgotten");
    assert_eq!(health.rank(later, &late, true), health.rank(later, &near, true));
}

#[test]
fn hedge_delay_follows_latency_within_its_bounds() {
    let now = test_time::start();
    let mut health = Health::new(1);
    assert_eq!(health.hedge_delay(), HEDGE_INITIAL);
    for _ in 0..100 {
        health.on_answered(now, peer(1), addr(1), MS);
    }
    assert_eq!(health.hedge_delay(), HEDGE_MIN);
    for _ in 0..100 {
        health.on_unanswered(now, peer(1), Duration::from_secs(1));
    }
    assert_eq!(health.hedge_delay(), HEDGE_MAX);
}

#[test]
fn throughput_follows_a_broken_link_quickly() {
    let now = test_time::start();
    let mut health = Health::new(1);
    let second = Duration::from_secs(1);
    assert_eq!(health.throughput(now, &peer(1)), None);
    health.on_throughput(now, peer(1), 1000, second);
    health.on_throughput(now, peer(1), 250, second);
    assert_eq!(health.throughput(now, &peer(1)), Some(625));
    health.on_throughput(now, peer(1), 100, second);
    assert_eq!(health.throughput(now, &peer(1)), Some(100));
    health.on_throughput(now, peer(1), u64::MAX, Duration::ZERO);
    assert!(health.throughput(now, &peer(1)) > Some(u64::MAX / 4));
    assert_eq!(health.throughput(now + MEASURE_TTL, &peer(1)), None);
}

#[test]
fn the_least_recently_used_peer_without_transfers_is_forgotten() {
    let now = test_time::start();
    let mut health = Health::new(1);
    health.on_launched(now, peer(0));
    for number in 1..PEERS_MAX {
        health.on_served(now + TICK * u32::try_from(number).expect("fits"), peer(number));
    }
    assert_eq!(health.report(now).len(), PEERS_MAX);
    health.on_served(now + MS, peer(PEERS_MAX));
    let known: Vec<_> = health.report(now).into_iter().map(|report| report.peer).collect();
    assert_eq!(known.len(), PEERS_MAX);
    assert!(known.contains(&peer(0)) && !known.contains(&peer(1)) && known.contains(&peer(2)));
}

/// Opens the breaker of the first peer; says until when.
fn shun(health: &mut Health, now: Instant) -> Instant {
    health.on_failed(now, peer(1), Failure::Stalled);
    let Some(Notice::PeerShunned { peer: shunned, reason: "stalled", duration }) = health.poll_event() else {
        panic!("not announced")
    };
    assert_eq!(shunned, peer(1));
    assert!(OPEN_FIRST / 2 <= duration && duration <= OPEN_FIRST);
    now + duration
}

fn peer(number: usize) -> PeerId {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.to_be_bytes());
    PeerId::from_public_key(key)
}

fn addr(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 5000))
}

#[test]
fn peer_is_slow_below_the_floor_and_late_from_four_times_its_last_answer_on() {
    let now = test_time::start();
    for (rate, slow) in [(THROUGHPUT_FLOOR - 1, true), (THROUGHPUT_FLOOR, false)] {
        let mut health = Health::new(1);
        health.on_throughput(now, peer(1), rate, Duration::from_secs(1));
        let differs = health.rank(now, &peer(1), true) > health.rank(now, &peer(2), true);
        assert_eq!(differs, slow, "{rate} bytes per second");
    }
    let answer = MS * 100;
    for (waited, failures) in [(answer * LATE_TIMES - TICK, 0), (answer * LATE_TIMES, 1)] {
        let mut health = Health::new(1);
        health.on_answered(now, peer(1), addr(1), answer);
        health.on_unanswered(now, peer(1), waited);
        assert_eq!(health.report(now)[0].failures, failures, "{waited:?}");
    }
}
