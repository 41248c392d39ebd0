mod busy;

use super::{
    attempts::LAUNCHES_MAX,
    flow::{REPORT_INTERVAL, SILENCE_MAX, STALL_MAX},
    pull::{
        ANSWER_DEADLINE, BLOB_ANSWER_DEADLINE, CATCH_UP, CHECKED_BYTES_MAX, FOUND_FRESH, RESUME_LOOKUP_MAX,
        RESUME_MAX, TIME_BACK_MAX,
    },
    verify::APPEARS_WITHIN,
    *,
};
use crate::{
    Notice,
    health::{Failure, HEDGE_MIN, Rank, THROUGHPUT_FLOOR},
    test_time,
};

const TICK: Duration = Duration::from_nanos(1);
const MS: Duration = Duration::from_millis(1);
const MIB: u64 = 1024 * 1024;
const BLOB: u64 = 1000 * MIB;

// --- before the first answer --------------------------------------------------------------------

#[test]
fn request_is_looked_up_first() {
    let mut node = Node::new();
    node.request(1, PullKind::Blob);
    assert_eq!(node.drain(), [Event::Lookup { pull: PullId(1), key: key() }]);
    assert_eq!(node.fetch.in_flight(), 1);
    node.request(1, PullKind::Blob);
    assert_eq!(node.drain(), [], "a pull is named once");
}

#[test]
fn nobody_having_it_is_told_from_nobody_knowing() {
    for (definitive, reason) in [(true, RefuseReason::NobodyHasIt), (false, RefuseReason::LookupUnanswered)] {
        let mut node = Node::new();
        node.request(1, PullKind::Blob);
        node.drain();
        node.fetch.on_holders(node.now, PullId(1), vec![], definitive, &mut node.health);
        assert_eq!(node.drain(), [refuse(1, reason, 0)]);
        assert_eq!((node.fetch.in_flight(), node.fetch.poll_timeout()), (0, None));
    }
}

#[test]
fn deadline_of_each_kind_is_kept_to_the_tick() {
    let cases = [
        (PullKind::Manifest, ANSWER_DEADLINE),
        (PullKind::Head, ANSWER_DEADLINE),
        (PullKind::Blob, BLOB_ANSWER_DEADLINE),
    ];
    for (kind, deadline) in cases {
        let mut node = Node::new();
        let start = node.now;
        node.request(1, kind);
        node.drain();
        node.advance_to(start + deadline - TICK);
        assert_eq!(node.drain(), []);
        node.advance_to(start + deadline);
        let lookup = Event::CancelLookup { pull: PullId(1) };
        assert_eq!(node.drain(), [lookup, refuse(1, RefuseReason::LookupUnanswered, 0)], "{kind:?}");

        node.now = start;
        node.health = Health::new(1);
        node.pull(2, kind, &[1]);
        node.drain();
        node.advance_to(start + deadline - TICK);
        assert_eq!(node.drain(), []);
        node.advance_to(start + deadline);
        let given_up = [cancel(2, 0), refuse(2, RefuseReason::DeadlineExceeded, 1)];
        assert_eq!(node.drain(), given_up, "{kind:?}");
        assert_eq!(node.rank(1), None, "a peer that never answers is shunned");
    }
}

#[test]
fn silent_holder_is_hedged_after_the_delay_and_the_first_answer_wins() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1, 2, 3]);
    let first = node.fetches()[0];
    let delay = node.health.hedge_delay();
    node.advance(delay - TICK);
    assert_eq!(node.drain(), []);
    node.advance(TICK);
    let second = node.fetches()[0];
    assert_ne!(first.peer, second.peer);
    node.answer(1, second.attempt, BLOB);
    assert_eq!(node.drain(), [cancel(1, first.attempt), forward(1, second.attempt)]);
    node.answer(1, first.attempt, BLOB);
    node.fail(1, first.attempt, FetchError::Connect);
    assert_eq!(node.drain(), [], "what was cancelled is over");
}

#[test]
fn each_failure_asks_the_next_at_once_until_the_retries_are_used_up() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1, 2, 3, 4, 5, 6]);
    let mut asked = BTreeSet::new();
    for attempt in 0..4 {
        let fetches = node.fetches();
        assert_eq!((fetches.len(), fetches[0].attempt), (1, attempt));
        assert!(asked.insert(fetches[0].peer), "each holder is asked once");
        node.fail(1, attempt, FetchError::NotFound);
    }
    assert_eq!(node.drain(), [refuse(1, RefuseReason::HoldersExhausted, 4)]);
}

#[test]
fn hedges_stop_with_the_retries_too() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1, 2, 3, 4, 5, 6]);
    node.advance(BLOB_ANSWER_DEADLINE - TICK);
    assert_eq!(node.fetches().len(), 4);
    node.advance(TICK);
    assert_eq!(node.drain().last(), Some(&refuse(1, RefuseReason::DeadlineExceeded, 4)));
}

#[test]
fn no_retries_means_one_attempt() {
    let mut node = Node::new();
    node.fetch = Fetch::new(1, own(), 0);
    node.pull(1, PullKind::Blob, &[1, 2]);
    assert_eq!(node.fetches().len(), 1);
    node.advance(Duration::from_secs(1));
    assert_eq!(node.drain(), []);
    node.fail(1, 0, FetchError::Connect);
    assert_eq!(node.drain(), [refuse(1, RefuseReason::HoldersExhausted, 1)]);
}

#[test]
fn connect_failure_tries_the_peers_next_address_before_blaming_it() {
    let mut node = Node::new();
    node.request(1, PullKind::Blob);
    let (v6, v4) = (SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 5000)), addr(1));
    node.holders(1, vec![Candidate { addrs: vec![v6, v4], ..candidate(1) }]);
    assert_eq!(node.fetches()[0].addr, v6);
    node.fail(1, 0, FetchError::Connect);
    assert_eq!(node.fetches()[0].addr, v4);
    assert!(node.rank(1).is_some());
    node.answer(1, 1, BLOB);
    node.complete(1, 1, BLOB);
    node.fetch.on_content_appeared(node.now, &digest(), &mut node.health);
    node.drain();

    node.request(2, PullKind::Blob);
    node.holders(2, vec![Candidate { addrs: vec![v6, v4], ..candidate(1) }]);
    assert_eq!(node.fetches()[0].addr, v4, "the address that worked comes first");
    node.fail(2, 0, FetchError::Connect);
    assert_eq!(node.fetches()[0].addr, v6);
    node.fail(2, 1, FetchError::Connect);
    assert_eq!(node.drain(), [refuse(2, RefuseReason::HoldersExhausted, 2)]);
    assert_eq!(node.rank(1), None);
}

#[test]
fn peer_that_was_reached_is_not_tried_at_its_next_address() {
    use FetchError::{Interrupted, Malformed, NotFound, Refused, WrongContent};
    for cause in [NotFound, Refused { status: 500 }, Interrupted, Malformed, WrongContent] {
        let mut node = Node::new();
        node.request(1, PullKind::Blob);
        node.holders(1, vec![Candidate { addrs: vec![addr(1), addr(2)], ..candidate(1) }]);
        node.drain();
        node.fail(1, 0, cause);
        assert_eq!(node.drain(), [refuse(1, RefuseReason::HoldersExhausted, 1)], "{cause:?}");
    }
}

#[test]
fn only_holder_whose_first_address_swallows_packets_is_hedged_by_its_second() {
    let mut node = Node::new();
    node.request(1, PullKind::Blob);
    node.holders(1, vec![Candidate { addrs: vec![addr(1), addr(2)], ..candidate(1) }]);
    node.drain();
    node.advance(node.health.hedge_delay());
    assert_eq!(node.fetches()[0].addr, addr(2));
    node.fail(1, 0, FetchError::Connect);
    assert_eq!(node.drain(), [], "the other address is still being tried");
    assert!(node.rank(1).is_some());
    node.answer(1, 1, BLOB);
    assert_eq!(node.drain(), [forward(1, 1)]);
}

#[test]
fn shunned_holders_are_not_waited_for() {
    let mut node = Node::new();
    node.shun(1);
    node.pull(1, PullKind::Blob, &[1]);
    assert_eq!(node.drain(), [refuse(1, RefuseReason::HoldersExhausted, 0)]);
    node.pull(2, PullKind::Blob, &[1, 2]);
    assert_eq!(node.fetches().iter().map(|f| f.peer).collect::<Vec<_>>(), [peer(2)]);
    node.advance(Duration::from_secs(1));
    node.drain();
    node.pull(3, PullKind::Blob, &[1]);
    assert_eq!(node.fetches().len(), 1, "its time is up: one probe");
    node.pull(4, PullKind::Blob, &[1]);
    assert_eq!(node.drain(), [refuse(4, RefuseReason::HoldersExhausted, 0)], "and no second one");
}

#[test]
fn load_is_spread_over_equal_holders() {
    let mut node = Node::new();
    let mut asked = BTreeMap::<PeerId, u32>::new();
    for pull in 0..30 {
        node.pull(pull, PullKind::Blob, &[1, 2, 3]);
        let fetch = node.fetches()[0];
        node.answer(pull, fetch.attempt, BLOB);
        *asked.entry(fetch.peer).or_default() += 1;
    }
    assert_eq!(asked.into_values().collect::<Vec<_>>(), [10, 10, 10]);
}

#[test]
fn own_zone_is_asked_first() {
    let mut node = Node::new();
    for pull in 0..10 {
        node.request(pull, PullKind::Manifest);
        node.holders(pull, vec![Candidate { same_zone: false, ..candidate(1) }, candidate(2)]);
        assert_eq!(node.fetches()[0].peer, peer(2));
    }
}

#[test]
fn unusable_candidates_are_left_out() {
    let mut node = Node::new();
    node.request(1, PullKind::Blob);
    let own = Candidate { peer: own(), ..candidate(1) };
    node.holders(1, vec![own, Candidate { addrs: vec![], ..candidate(2) }]);
    assert_eq!(node.drain()[1..], [refuse(1, RefuseReason::HoldersExhausted, 0)]);
}

#[test]
fn holders_that_come_late_are_hedged_with() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1]);
    node.advance(Duration::from_millis(300));
    node.drain();
    node.holders(1, vec![candidate(1), candidate(2)]);
    assert_eq!(node.drain(), []);
    node.advance(node.health.hedge_delay());
    assert_eq!(node.fetches()[0].peer, peer(2));
}

#[test]
fn too_many_pulls_are_refused_at_once() {
    let mut node = Node::new();
    for pull in 0..PULLS_MAX as u64 {
        node.request(pull, PullKind::Blob);
    }
    node.drain();
    node.request(PULLS_MAX as u64, PullKind::Blob);
    assert_eq!(node.drain(), [refuse(PULLS_MAX as u64, RefuseReason::Overloaded, 0)]);
    node.fetch.on_abandoned(node.now, PullId(0), &mut node.health);
    assert_eq!(node.drain(), [Event::CancelLookup { pull: PullId(0) }]);
    node.request(PULLS_MAX as u64, PullKind::Blob);
    assert_eq!(node.drain(), [Event::Lookup { pull: PullId(PULLS_MAX as u64), key: key() }]);
}

#[test]
fn shutdown_refuses_new_pulls_and_lets_running_ones_go_on() {
    let mut node = Node::new();
    node.flow(1, &[1]);
    node.fetch.shutdown();
    node.request(2, PullKind::Blob);
    assert_eq!(node.drain(), [refuse(2, RefuseReason::ShuttingDown, 0)]);
    node.complete(1, 0, BLOB);
    assert_eq!((node.drain(), node.fetch.in_flight()), (vec![], 0));
}

#[test]
fn abandoned_pull_leaves_nothing_behind() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1, 2]);
    node.advance(node.health.hedge_delay());
    node.drain();
    node.fetch.on_abandoned(node.now, PullId(1), &mut node.health);
    assert_eq!(node.drain(), [cancel(1, 0), cancel(1, 1)]);
    node.flow(2, &[1, 2]);
    node.fetch.on_abandoned(node.now, PullId(2), &mut node.health);
    assert_eq!(node.drain(), [cancel(2, 0)]);
    node.fetch.on_abandoned(node.now, PullId(2), &mut node.health);
    assert_eq!((node.drain(), node.fetch.in_flight(), node.fetch.poll_timeout()), (vec![], 0, None));
    let idle = node.health.report(node.now).iter().all(|report| report.in_flight == 0);
    assert!(idle, "every launch is released");
}

#[test]
fn bytes_before_the_client_left_clear_their_sender_of_earlier_failures() {
    for (sent, failures) in [(0, 1), (1, 0)] {
        let mut node = Node::new();
        node.health.on_failed(node.now, peer(1), Failure::Fetch(FetchError::Interrupted));
        node.flow(1, &[1]);
        node.progress(1, 0, sent, Duration::ZERO);
        node.fetch.on_abandoned(node.now, PullId(1), &mut node.health);
        assert_eq!(node.health.report(node.now)[0].failures, failures, "{sent} bytes");
    }
}

#[test]
fn unknown_pulls_and_attempts_are_ignored() {
    let mut node = Node::new();
    node.answer(9, 0, 1);
    node.fail(9, 0, FetchError::Connect);
    node.complete(9, 0, 1);
    node.holders(9, vec![candidate(1)]);
    node.flow(1, &[1]);
    for attempt in [1, 7] {
        node.answer(1, attempt, BLOB);
        node.fail(1, attempt, FetchError::Interrupted);
        node.progress(1, attempt, 5, Duration::ZERO);
        node.complete(1, attempt, 5);
    }
    node.answer(1, 0, BLOB);
    assert_eq!(node.drain(), []);
    assert_eq!(node.fetch.in_flight(), 1);
}

// --- in mid-body ----------------------------------------------------------------------------------

#[test]
fn interrupted_body_goes_on_at_another_holder_from_where_it_stopped() {
    let mut node = Node::new();
    let left = node.flow(1, &[1, 2]);
    node.progress(1, 0, 10 * MIB, Duration::ZERO);
    node.progress(1, 0, 5, Duration::ZERO);
    node.fail(1, 0, FetchError::Interrupted);
    let next = node.fetches()[0];
    assert_eq!((next.skip, next.attempt), (10 * MIB + 5, 1));
    assert_ne!(next.peer, left);
    node.answer(1, 1, BLOB - 10 * MIB - 5);
    assert_eq!(node.drain(), [forward(1, 1), resumed(1, left, "interrupted", 10 * MIB + 5)]);
    node.complete(1, 1, BLOB - 10 * MIB - 5);
    assert_eq!((node.drain(), node.fetch.in_flight()), (vec![], 0));
}

#[test]
fn resumed_answer_of_another_length_is_malformed() {
    for wrong in [0, BLOB, BLOB - MIB - 1, BLOB - MIB + 1] {
        let mut node = Node::new();
        node.flow(1, &[1, 2, 3]);
        node.progress(1, 0, MIB, Duration::ZERO);
        node.fail(1, 0, FetchError::Interrupted);
        let second = node.fetches()[0];
        node.answer(1, 1, wrong);
        assert_eq!(node.drain()[0], cancel(1, 1));
        assert!(node.rank_of(second.peer).is_some());
        node.answer(1, 2, BLOB - MIB);
        assert_eq!(node.drain()[0], forward(1, 2));
    }
}

#[test]
fn only_holder_is_tried_once_more_after_an_interruption_with_progress() {
    let mut node = Node::new();
    node.flow(1, &[1]);
    node.progress(1, 0, MIB, Duration::ZERO);
    node.fail(1, 0, FetchError::Interrupted);
    let again = node.fetches()[0];
    assert_eq!((again.peer, again.skip), (peer(1), MIB));
    node.answer(1, 1, BLOB - MIB);
    node.progress(1, 1, MIB, Duration::ZERO);
    node.drain();
    node.fail(1, 1, FetchError::Interrupted);
    assert_eq!(node.drain(), [Event::Lookup { pull: PullId(1), key: key() }], "not a third time");
    node.fetch.on_holders(node.now, PullId(1), vec![candidate(1)], true, &mut node.health);
    assert_eq!(node.drain(), [truncate(1, RefuseReason::HoldersExhausted, peer(1), "interrupted")]);
}

#[test]
fn interruption_before_any_progress_is_final_for_that_holder() {
    let mut node = Node::new();
    node.flow(1, &[1]);
    node.fail(1, 0, FetchError::Interrupted);
    assert_eq!(node.drain(), [Event::Lookup { pull: PullId(1), key: key() }]);
}

#[test]
fn body_that_stalls_is_left_after_exactly_the_time_waited_for_the_peer() {
    let mut node = Node::new();
    let left = node.flow(1, &[1, 2]);
    node.progress(1, 0, MIB, Duration::ZERO);
    let reports = u32::try_from(STALL_MAX.as_millis() / REPORT_INTERVAL.as_millis()).expect("a few");
    node.progress_for(1, 0, 0, REPORT_INTERVAL, reports - 1);
    node.progress_for(1, 0, 0, REPORT_INTERVAL - TICK, 1);
    assert_eq!(node.drain(), []);
    node.progress(1, 0, 0, TICK);
    let events = node.drain();
    assert_eq!(events[0], cancel(1, 0));
    assert!(matches!(events[1], Event::Output(Output::Fetch { skip: MIB, .. })), "{events:?}");
    assert_eq!(node.rank_of(left), None, "a stall opens the breaker");
    node.answer(1, 1, BLOB - MIB);
    assert_eq!(node.drain()[1], resumed(1, left, "stalled", MIB));
}

#[test]
fn any_byte_ends_a_stall() {
    let mut node = Node::new();
    node.flow(1, &[1, 2]);
    let nearly = u32::try_from(STALL_MAX.as_millis() / REPORT_INTERVAL.as_millis()).expect("a few") - 1;
    for bytes in [1, 0] {
        (0..nearly).for_each(|_| node.progress(1, 0, 0, REPORT_INTERVAL));
        node.progress(1, 0, bytes, MS);
    }
    assert_eq!(node.drain(), []);
}

#[test]
fn pause_of_this_process_is_no_stall_of_its_peer() {
    let mut node = Node::new();
    let holder = node.flow(1, &[1, 2]);
    node.progress(1, 0, MIB, Duration::ZERO);
    // Longer than it may report nothing, too; the report comes right after that.
    let pause = SILENCE_MAX * 2;
    node.pause(pause);
    assert_eq!(node.drain(), []);
    node.progress(1, 0, 0, pause);
    assert_eq!(node.drain(), []);
    assert!(node.rank_of(holder).is_some());
    node.advance(SILENCE_MAX);
    assert_eq!(node.drain()[0], cancel(1, 0), "now it does say nothing");
}

#[test]
fn pull_that_was_due_in_a_pause_of_this_process_has_its_time_back_once() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1]);
    let asked = node.fetches()[0];
    node.pause(BLOB_ANSWER_DEADLINE * 3);
    assert_eq!(node.drain(), [], "the answer waits in a socket buffer");
    node.answer(1, asked.attempt, BLOB);
    assert_eq!(node.drain(), [forward(1, asked.attempt)]);

    // As often as it likes, but a client waits no longer for that than this.
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1]);
    let (begun, asked) = (node.now, node.fetches()[0]);
    while node.now < begun + BLOB_ANSWER_DEADLINE + TIME_BACK_MAX - MS * 100 {
        node.pause(MS * 100);
        assert_eq!(node.drain(), []);
    }
    node.pause(MS * 100);
    assert_eq!(node.drain(), [], "what has come is read");
    node.advance(CATCH_UP);
    assert_eq!(node.drain(), [cancel(1, asked.attempt), refuse(1, RefuseReason::DeadlineExceeded, 1)]);
}

#[test]
fn pause_keeps_a_client_waiting_for_as_long_as_it_lasted_and_to_read_what_came() {
    // The deadline is long after the pause, right after it, or in it.
    let pause = MS * 60;
    for (before, left) in [
        (CATCH_UP, BLOB_ANSWER_DEADLINE - CATCH_UP),
        (BLOB_ANSWER_DEADLINE - pause - TICK, CATCH_UP),
        (BLOB_ANSWER_DEADLINE - TICK, CATCH_UP),
    ] {
        let mut node = Node::new();
        node.pull(1, PullKind::Blob, &[1]);
        let asked = node.fetches()[0];
        node.now += before;
        node.pause(pause);
        node.advance(left - TICK);
        assert_eq!(node.drain(), []);
        node.advance(TICK);
        assert_eq!(node.drain(), [cancel(1, asked.attempt), refuse(1, RefuseReason::DeadlineExceeded, 1)]);
    }
}

#[test]
fn pause_of_this_process_is_no_slowness_of_whom_it_has_asked() {
    let ranks_after = |wait: fn(&mut Node)| {
        let mut node = Node::new();
        node.pull(1, PullKind::Blob, &[1, 2]);
        let first = node.fetches()[0];
        // Another is asked beside it.
        node.advance(node.health.hedge_delay());
        let second = node.fetches()[0];
        wait(&mut node);
        node.answer(1, first.attempt, BLOB);
        [first, second].map(|asked| node.rank_of(asked.peer))
    };
    let at_once = ranks_after(|_| ());
    assert_eq!(ranks_after(|node| node.pause(MS * 1500)), at_once);
    assert_ne!(ranks_after(|node| node.advance(MS * 1500)), at_once, "slowness is noticed");
}

#[test]
fn client_that_blocks_for_an_hour_is_no_stall() {
    let mut node = Node::new();
    node.flow(1, &[1, 2]);
    for _ in 0..36_000 {
        node.advance(REPORT_INTERVAL);
        node.progress(1, 0, 0, Duration::ZERO);
    }
    assert_eq!(node.drain(), []);
}

#[test]
fn shell_that_falls_silent_is_given_up_to_the_tick() {
    let mut node = Node::new();
    let left = node.flow(1, &[1, 2]);
    node.advance(SILENCE_MAX - TICK);
    assert_eq!(node.drain(), []);
    node.advance(TICK);
    assert_eq!(node.drain()[0], cancel(1, 0));
    assert!(node.rank_of(left).is_some(), "not the peer's fault");
}

#[test]
fn stalled_only_holder_ends_in_a_truncated_body_within_three_seconds() {
    // The lookup is answered with nobody else, or never.
    for answered in [true, false] {
        let mut node = Node::new();
        node.flow(1, &[1]);
        let stopped = node.now;
        while node.drain().is_empty() {
            node.advance(REPORT_INTERVAL);
            node.progress(1, 0, 0, REPORT_INTERVAL);
        }
        if answered {
            node.fetch.on_holders(node.now, PullId(1), vec![], true, &mut node.health);
            assert_eq!(node.drain(), [truncate(1, RefuseReason::HoldersExhausted, peer(1), "stalled")]);
        } else {
            let ends_at = node.now + RESUME_MAX + RESUME_LOOKUP_MAX;
            node.advance_to(ends_at - TICK);
            assert_eq!(node.drain(), []);
            node.advance_to(ends_at);
            let lookup = Event::CancelLookup { pull: PullId(1) };
            let end = truncate(1, RefuseReason::DeadlineExceeded, peer(1), "stalled");
            assert_eq!(node.drain(), [lookup, end]);
        }
        assert!(node.now - stopped <= Duration::from_secs(3));
    }
}

#[test]
fn stall_with_a_second_holder_costs_two_seconds_at_most_even_if_a_third_hangs() {
    let mut node = Node::new();
    node.flow(1, &[1, 2, 3]);
    let stopped = node.now;
    while node.drain().is_empty() {
        node.advance(REPORT_INTERVAL);
        node.progress(1, 0, 0, REPORT_INTERVAL);
    }
    node.advance(node.health.hedge_delay());
    assert_eq!(node.fetches()[0].attempt, 2, "the resume is hedged");
    node.answer(1, 2, BLOB);
    assert_eq!(node.drain()[..2], [cancel(1, 1), forward(1, 2)]);
    assert!(node.now - stopped <= Duration::from_secs(2));
    assert!(STALL_MAX + REPORT_INTERVAL * 2 + RESUME_MAX < Duration::from_millis(2200));
}

#[test]
fn resume_that_nobody_answers_ends_at_its_deadline() {
    let mut node = Node::new();
    let left = node.flow(1, &[1, 2]);
    node.progress(1, 0, 5, Duration::ZERO);
    node.fail(1, 0, FetchError::Malformed);
    let end = truncate(1, RefuseReason::DeadlineExceeded, left, "interrupted");
    node.advance(RESUME_MAX - TICK);
    assert!(!node.drain().contains(&end));
    node.advance(TICK);
    assert_eq!(node.drain(), [cancel(1, 1), end]);
}

#[test]
fn holders_found_in_mid_body_carry_on() {
    let mut node = Node::new();
    node.flow(1, &[1]);
    node.progress(1, 0, 7, Duration::ZERO);
    node.fail(1, 0, FetchError::Malformed);
    node.drain();
    node.holders(1, vec![candidate(1), candidate(2)]);
    let next = node.fetches()[0];
    assert_eq!((next.peer, next.skip), (peer(2), 7));
}

#[test]
fn link_that_slows_down_in_mid_layer_is_left_within_three_seconds() {
    let mut node = Node::new();
    let left = node.flow(1, &[1, 2]);
    for _ in 0..20 {
        node.advance(REPORT_INTERVAL);
        node.progress(1, 0, 10 * MIB, MS);
    }
    let slowed = node.now;
    let mut given = 200 * MIB;
    // 1 Mbit/s.
    while node.events.is_empty() {
        node.advance(REPORT_INTERVAL);
        node.progress(1, 0, 12_500, REPORT_INTERVAL);
        given += 12_500;
        node.collect();
    }
    assert!(node.now - slowed <= Duration::from_secs(1), "{:?}", node.now - slowed);
    let events = node.drain();
    assert_eq!(events[0], cancel(1, 0), "cut before the rest is asked for: no byte twice");
    assert!(matches!(events[1], Event::Output(Output::Fetch { skip, .. }) if skip == given));
    node.answer(1, 1, BLOB - given);
    assert_eq!(node.drain()[1], resumed(1, left, "slow", given));
    for pull in 2..10 {
        node.pull(pull, PullKind::Manifest, &[1, 2]);
        assert_ne!(node.fetches()[0].peer, left, "the next pull does not begin there");
    }
}

#[test]
fn slow_holder_is_kept_where_leaving_makes_no_sense() {
    let slow = THROUGHPUT_FLOOR / 20;
    // No other holder.
    let mut node = Node::new();
    node.flow(1, &[1]);
    node.progress_for(1, 0, slow, REPORT_INTERVAL, 100);
    assert_eq!(node.drain(), []);
    // The other one is shunned.
    let mut node = Node::new();
    let current = node.flow(1, &[1, 2]);
    node.shun(if current == peer(1) { 2 } else { 1 });
    node.progress_for(1, 0, slow, REPORT_INTERVAL, 100);
    assert_eq!(node.drain(), []);
    // The other one is healthy, but does not have it.
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1, 2]);
    node.fail(1, 0, FetchError::NotFound);
    node.answer(1, 1, BLOB);
    node.drain();
    node.progress_for(1, 1, slow, REPORT_INTERVAL, 100);
    assert_eq!(node.drain(), []);
    // The client is slow, not the peer.
    let mut node = Node::new();
    node.flow(1, &[1, 2]);
    node.progress_for(1, 0, slow, REPORT_INTERVAL / 2, 100);
    assert_eq!(node.drain(), []);
    // It is nearly done.
    let mut node = Node::new();
    node.flow(1, &[1, 2]);
    node.progress(1, 0, BLOB - slow * 20, Duration::ZERO);
    node.progress_for(1, 0, slow, REPORT_INTERVAL, 19);
    assert_eq!(node.drain(), []);
}

#[test]
fn two_slow_holders_do_not_hand_a_pull_to_and_fro() {
    let mut node = Node::new();
    let slow = THROUGHPUT_FLOOR / 20;
    node.flow(1, &[1, 2]);
    node.progress_for(1, 0, slow, REPORT_INTERVAL, 10);
    assert_eq!(node.drain()[0], cancel(1, 0));
    node.answer(1, 1, BLOB - slow * 10);
    node.drain();
    node.progress_for(1, 1, slow, REPORT_INTERVAL, 300);
    assert_eq!(node.drain(), [], "the last one standing is kept");
    node.fail(1, 1, FetchError::Malformed);
    assert_eq!(node.fetches().len(), 1, "the one left for slowness is better than none");
}

#[test]
fn holder_is_left_for_slowness_only_once() {
    let mut node = Node::new();
    let slow = THROUGHPUT_FLOOR / 20;
    node.flow(1, &[1, 2]);
    node.progress_for(1, 0, slow, REPORT_INTERVAL, 10);
    node.fail(1, 1, FetchError::NotFound);
    node.drain();
    node.answer(1, 2, BLOB - slow * 10);
    node.holders(1, vec![candidate(3)]);
    node.drain();
    node.progress_for(1, 2, slow, REPORT_INTERVAL, 100);
    assert_eq!(node.drain(), []);
}

#[test]
fn holder_is_left_for_one_that_is_four_times_faster_not_for_less() {
    let rate = 10 * MIB;
    for (known, leaves) in [(4 * rate, false), (5 * rate, true)] {
        let mut node = Node::new();
        let current = node.flow(1, &[1, 2]);
        let other = if current == peer(1) { peer(2) } else { peer(1) };
        node.health.on_throughput(node.now, other, known, Duration::from_secs(1));
        node.progress_for(1, 0, rate / 10, REPORT_INTERVAL, 10);
        assert_eq!(!node.drain().is_empty(), leaves, "{known}");
    }
}

#[test]
fn member_that_dies_is_left_at_once_but_only_for_another() {
    let mut node = Node::new();
    let left = node.flow(1, &[1, 2]);
    node.progress(1, 0, 9, Duration::ZERO);
    node.fetch.on_peer_down(node.now, &left, &mut node.health);
    let events = node.drain();
    assert_eq!(events[0], cancel(1, 0));
    assert!(matches!(events[1], Event::Output(Output::Fetch { skip: 9, .. })));
    node.answer(1, 1, BLOB - 9);
    assert_eq!(node.drain()[1], resumed(1, left, "peer_down", 9));

    let mut node = Node::new();
    node.flow(1, &[1]);
    node.fetch.on_peer_down(node.now, &peer(1), &mut node.health);
    assert_eq!(node.drain(), [], "bytes may flow on");
    node.progress(1, 0, 9, Duration::ZERO);
    node.fail(1, 0, FetchError::Interrupted);
    assert_eq!(node.drain(), [Event::Lookup { pull: PullId(1), key: key() }], "but it is not asked again");
}

#[test]
fn member_that_dies_before_it_answered_is_replaced() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1, 2]);
    let first = node.fetches()[0];
    node.fetch.on_peer_down(node.now, &first.peer, &mut node.health);
    let events = node.drain();
    assert_eq!(events[0], cancel(1, 0));
    assert!(matches!(events[1], Event::Output(Output::Fetch { peer, .. }) if peer != first.peer));
    node.fetch.on_peer_down(node.now, &first.peer, &mut node.health);
    assert_eq!(node.drain(), []);
}

#[test]
fn holders_that_fail_late_are_looked_for_once_more() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1]);
    node.drain();
    node.advance(FOUND_FRESH);
    node.fetch.on_peer_down(node.now, &peer(1), &mut node.health);
    assert_eq!(node.drain(), [cancel(1, 0), Event::Lookup { pull: PullId(1), key: key() }]);
    node.holders(1, vec![candidate(2)]);
    assert_eq!(node.fetches()[0].peer, peer(2));
    node.advance(FOUND_FRESH);
    node.fetch.on_peer_down(node.now, &peer(2), &mut node.health);
    assert_eq!(node.drain(), [cancel(1, 1), refuse(1, RefuseReason::HoldersExhausted, 2)]);
}

#[test]
fn holders_that_fail_at_once_are_not_looked_for_again() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1]);
    node.drain();
    node.advance(FOUND_FRESH - TICK);
    node.fetch.on_peer_down(node.now, &peer(1), &mut node.health);
    assert_eq!(node.drain(), [cancel(1, 0), refuse(1, RefuseReason::HoldersExhausted, 1)]);
}

#[test]
fn tag_that_breaks_off_is_not_pieced_together() {
    let mut node = Node::new();
    node.fetch.on_requested(node.now, PullId(1), key(), None, PullKind::Manifest, true, &mut node.health);
    node.holders(1, vec![candidate(1), candidate(2)]);
    let from = node.fetches()[0].peer;
    node.answer(1, 0, 500);
    node.drain();
    node.fail(1, 0, FetchError::Interrupted);
    assert_eq!(node.drain(), [truncate(1, RefuseReason::HoldersExhausted, from, "interrupted")]);
}

#[test]
fn body_that_breaks_off_after_its_last_byte_is_simply_ended() {
    for length in [0, 1, BLOB] {
        let mut node = Node::new();
        node.pull(1, PullKind::Blob, &[1, 2]);
        let from = node.fetches()[0].peer;
        node.answer(1, 0, length);
        node.drain();
        node.progress(1, 0, length, Duration::ZERO);
        node.fail(1, 0, FetchError::Interrupted);
        let end = truncate(1, RefuseReason::HoldersExhausted, from, "interrupted");
        assert_eq!(node.drain(), [end], "{length} bytes");
    }
}

#[test]
fn endless_breaking_off_comes_to_an_end() {
    let mut node = Node::new();
    node.flow(1, &[1]);
    let mut fetches = 0;
    let mut next = 2;
    let mut attempt = 0;
    while node.fetch.in_flight() > 0 {
        node.advance(Duration::from_secs(2));
        node.progress(1, attempt, 1, Duration::ZERO);
        node.fail(1, attempt, FetchError::Interrupted);
        node.holders(1, vec![candidate(next)]);
        next += 1;
        for fetch in node.fetches() {
            fetches += 1;
            attempt = fetch.attempt;
            node.answer(1, attempt, BLOB - fetch.skip);
        }
        assert!(fetches <= LAUNCHES_MAX);
    }
}

// --- wrong content --------------------------------------------------------------------------------

#[test]
fn content_asked_for_again_makes_its_only_sender_avoided() {
    let mut node = Node::new();
    node.flow(1, &[1]);
    node.complete(1, 0, BLOB);
    node.advance(Duration::from_secs(10));
    node.pull(2, PullKind::Blob, &[1, 2]);
    assert_eq!(node.fetches().iter().map(|f| f.peer).collect::<Vec<_>>(), [peer(2)]);
    assert_eq!(node.rank(1), None);
    assert!(matches!(node.health.poll_event(), Some(Notice::PeerShunned { reason: "wrong_content", .. })));
}

/// On containerd itself a second try of a pull failed again by other layers of the same peer.
#[test]
fn sender_of_content_that_does_not_appear_is_asked_last_for_other_content() {
    let other = Digest::sha256_of(b"another layer");
    let first_asked = |waited: Duration| {
        let mut asked = BTreeSet::new();
        for seed in 0..32 {
            let mut node = Node::new();
            node.fetch = Fetch::new(seed, own(), 3);
            node.flow(1, &[1]);
            node.complete(1, 0, BLOB);
            node.advance(waited);
            node.drain();
            let (pull, key) = (PullId(2), Key::of_digest(&other));
            node.fetch.on_requested(node.now, pull, key, Some(other), PullKind::Blob, true, &mut node.health);
            node.holders(2, vec![candidate(1), candidate(2)]);
            asked.insert(node.fetches()[0].peer);
            node.fail(2, 0, FetchError::Connect);
            assert_eq!(node.fetches().len(), 1, "a suspect is still asked for want of another");
        }
        asked
    };
    assert_eq!(first_asked(APPEARS_WITHIN - TICK), BTreeSet::from([peer(1), peer(2)]));
    assert_eq!(first_asked(APPEARS_WITHIN), BTreeSet::from([peer(2)]));
}

#[test]
fn small_body_that_was_checked_is_never_suspected() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1]);
    node.answer(1, 0, CHECKED_BYTES_MAX);
    node.complete(1, 0, CHECKED_BYTES_MAX);
    node.advance(Duration::from_secs(1));
    node.drain();
    node.pull(2, PullKind::Blob, &[1]);
    assert_eq!(
        node.fetches().iter().map(|f| f.peer).collect::<Vec<_>>(),
        [peer(1)],
        "asked twice, still trusted"
    );
    // One byte more goes to the client unread.
    node.answer(2, 0, CHECKED_BYTES_MAX + 1);
    node.complete(2, 0, CHECKED_BYTES_MAX + 1);
    node.pull(3, PullKind::Blob, &[1]);
    assert!(node.fetches().is_empty(), "asked again in vain");
}

#[test]
fn wrong_body_that_was_read_ahead_makes_its_sender_avoided_and_another_is_asked() {
    let mut node = Node::new();
    node.pull(1, PullKind::Manifest, &[1, 2]);
    let liar = node.fetches()[0].peer;
    node.fail(1, 0, FetchError::WrongContent);
    let next = node.fetches();
    assert!(next.len() == 1 && next[0].peer != liar, "the other one is asked");
    assert_eq!(node.rank_of(liar), None);
    assert!(matches!(node.health.poll_event(), Some(Notice::PeerShunned { reason: "wrong_content", .. })));
    node.answer(1, 1, 500);
    assert!(node.drain().contains(&forward(1, 1)));
}

#[test]
fn only_the_whole_of_a_known_digest_is_checked() {
    let checked = |digest, whole, kind| {
        let mut node = Node::new();
        node.fetch.on_requested(node.now, PullId(1), key(), digest, kind, whole, &mut node.health);
        node.holders(1, vec![candidate(1)]);
        node.drain().iter().find_map(|event| match event {
            Event::Output(Output::Fetch { check_bytes_max, .. }) => Some(*check_bytes_max),
            Event::Lookup { .. } | Event::CancelLookup { .. } | Event::Output(_) => None,
        })
    };
    assert_eq!(checked(Some(digest()), true, PullKind::Blob), Some(CHECKED_BYTES_MAX));
    assert_eq!(checked(Some(digest()), false, PullKind::Blob), Some(0));
    assert_eq!(checked(None, true, PullKind::Manifest), Some(0));
    assert_eq!(checked(Some(digest()), true, PullKind::Head), Some(0));
}

#[test]
fn of_several_senders_each_is_kept_from_that_digest_only() {
    let mut node = Node::new();
    node.flow(1, &[1, 2]);
    node.progress(1, 0, 5, Duration::ZERO);
    node.fail(1, 0, FetchError::Interrupted);
    node.answer(1, 1, BLOB - 5);
    node.complete(1, 1, BLOB - 5);
    node.drain();
    node.pull(2, PullKind::Blob, &[1, 2, 3]);
    assert_eq!(node.fetches().iter().map(|f| f.peer).collect::<Vec<_>>(), [peer(3)]);
    assert!(node.rank(1).is_some() && node.rank(2).is_some());
}

#[test]
fn peer_that_sent_no_byte_of_it_is_not_suspected() {
    let mut node = Node::new();
    let idle = node.flow(1, &[1, 2]);
    node.progress(1, 0, 0, MS);
    node.fail(1, 0, FetchError::Interrupted);
    let sender = node.fetches()[0].peer;
    node.answer(1, 1, BLOB);
    node.complete(1, 1, BLOB);
    node.request(2, PullKind::Blob);
    assert!(node.rank_of(idle).is_some());
    assert_eq!(node.rank_of(sender), None, "the only sender of what is asked for again");
}

#[test]
fn content_that_appeared_or_was_not_wholly_delivered_raises_no_suspicion() {
    let mut node = Node::new();
    node.flow(1, &[1]);
    node.complete(1, 0, BLOB);
    node.fetch.on_content_appeared(node.now, &digest(), &mut node.health);
    node.request(2, PullKind::Blob);
    assert!(node.rank(1).is_some());

    let mut node = Node::new();
    node.flow(1, &[1]);
    node.complete(1, 0, BLOB - 1);
    node.request(2, PullKind::Blob);
    assert!(node.rank(1).is_some(), "too short");

    let mut node = Node::new();
    let ranged = |node: &mut Node, pull, whole, kind| {
        let (now, pull) = (node.now, PullId(pull));
        node.fetch.on_requested(now, pull, key(), Some(digest()), kind, whole, &mut node.health);
    };
    ranged(&mut node, 1, false, PullKind::Blob);
    node.holders(1, vec![candidate(1)]);
    node.answer(1, 0, 10);
    node.complete(1, 0, 10);
    node.request(2, PullKind::Blob);
    assert!(node.rank(1).is_some(), "a range");

    let mut node = Node::new();
    node.flow(1, &[1]);
    node.complete(1, 0, BLOB);
    ranged(&mut node, 2, true, PullKind::Head);
    ranged(&mut node, 3, false, PullKind::Blob);
    assert!(node.rank(1).is_some(), "only the whole asked for again tells");
}

#[test]
fn equal_seeds_decide_equally() {
    let run = |seed| {
        let mut node = Node::new();
        node.fetch = Fetch::new(seed, own(), 3);
        for pull in 0..20 {
            node.pull(pull, PullKind::Blob, &[1, 2, 3, 4, 5]);
        }
        node.drain()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn bounds_fit_together() {
    assert!(HEDGE_MIN > Duration::ZERO);
    let resumed = STALL_MAX + REPORT_INTERVAL + RESUME_MAX;
    assert!(resumed <= Duration::from_secs(2));
    assert!(resumed + RESUME_LOOKUP_MAX <= Duration::from_secs(3));
}

// --- helpers --------------------------------------------------------------------------------------

struct Node {
    now: Instant,
    fetch: Fetch,
    health: Health,
    events: Vec<Event>,
}

#[derive(Clone, Copy)]
struct Fetched {
    attempt: u32,
    peer: PeerId,
    addr: SocketAddr,
    skip: u64,
}

/// The attempts that were ordered.
fn fetched(events: &[Event]) -> Vec<Fetched> {
    let fetched = |event: &Event| match *event {
        Event::Output(Output::Fetch { attempt, peer, addr, skip, .. }) => {
            Some(Fetched { attempt: attempt.0, peer, addr, skip })
        }
        Event::Lookup { .. } | Event::CancelLookup { .. } | Event::Output(_) => None,
    };
    events.iter().filter_map(fetched).collect()
}

impl Node {
    fn new() -> Self {
        let (fetch, health) = (Fetch::new(1, own(), 3), Health::new(1));
        Self { now: test_time::start(), fetch, health, events: Vec::new() }
    }

    fn request(&mut self, pull: u64, kind: PullKind) {
        let digest = Some(digest());
        self.fetch.on_requested(self.now, PullId(pull), key(), digest, kind, true, &mut self.health);
    }

    fn holders(&mut self, pull: u64, candidates: Vec<Candidate>) {
        self.fetch.on_holders(self.now, PullId(pull), candidates, true, &mut self.health);
    }

    /// Requests and looks up.
    fn pull(&mut self, pull: u64, kind: PullKind, holders: &[u8]) {
        self.request(pull, kind);
        let lookup = Event::Lookup { pull: PullId(pull), key: key() };
        self.collect();
        assert_eq!(self.events.pop(), Some(lookup));
        self.holders(pull, holders.iter().map(|holder| candidate(*holder)).collect());
    }

    /// Starts a blob's body; says whose.
    fn flow(&mut self, pull: u64, holders: &[u8]) -> PeerId {
        self.pull(pull, PullKind::Blob, holders);
        let fetch = self.fetches()[0];
        self.answer(pull, fetch.attempt, BLOB);
        assert_eq!(self.drain(), [forward(pull, fetch.attempt)]);
        fetch.peer
    }

    fn answer(&mut self, pull: u64, attempt: u32, bytes: u64) {
        self.answer_with(pull, attempt, bytes, None);
    }

    fn answer_with(&mut self, pull: u64, attempt: u32, bytes: u64, backlog: Option<u64>) {
        let attempt = AttemptId(attempt);
        self.fetch.on_answered(self.now, PullId(pull), attempt, bytes, backlog, &mut self.health);
    }

    fn fail(&mut self, pull: u64, attempt: u32, cause: FetchError) {
        self.fetch.on_failed(self.now, PullId(pull), AttemptId(attempt), cause, &mut self.health);
    }

    fn progress(&mut self, pull: u64, attempt: u32, bytes: u64, starved: Duration) {
        let (pull, attempt) = (PullId(pull), AttemptId(attempt));
        self.fetch.on_progressed(self.now, pull, attempt, bytes, starved, &mut self.health);
    }

    fn progress_for(&mut self, pull: u64, attempt: u32, bytes: u64, starved: Duration, times: u32) {
        for _ in 0..times {
            self.advance(REPORT_INTERVAL);
            self.progress(pull, attempt, bytes, starved);
        }
    }

    fn complete(&mut self, pull: u64, attempt: u32, bytes: u64) {
        self.fetch.on_completed(self.now, PullId(pull), AttemptId(attempt), bytes, &mut self.health);
    }

    /// This process is paused.
    fn pause(&mut self, by: Duration) {
        self.now += by;
        self.fetch.on_paused(self.now, by, &mut self.health);
        self.fetch.handle_timeout(self.now, &mut self.health);
    }

    fn advance(&mut self, by: Duration) {
        self.advance_to(self.now + by);
    }

    /// Fires the timeouts on the way, as a shell would.
    fn advance_to(&mut self, to: Instant) {
        while let Some(at) = self.fetch.poll_timeout()
            && at <= to
        {
            self.now = self.now.max(at);
            self.fetch.handle_timeout(self.now, &mut self.health);
            assert!(self.fetch.poll_timeout().is_none_or(|next| next > at), "a timeout that does not pass");
        }
        self.now = to;
        self.fetch.handle_timeout(to, &mut self.health);
    }

    fn collect(&mut self) {
        self.events.extend(std::iter::from_fn(|| self.fetch.poll_event()));
    }

    fn drain(&mut self) -> Vec<Event> {
        self.collect();
        std::mem::take(&mut self.events)
    }

    /// The fetches among the events; drops the others.
    fn fetches(&mut self) -> Vec<Fetched> {
        fetched(&self.drain())
    }

    fn shun(&mut self, number: u8) {
        self.health.on_failed(self.now, peer(number), Failure::Stalled);
    }

    fn rank(&self, number: u8) -> Option<Rank> {
        self.rank_of(peer(number))
    }

    fn rank_of(&self, peer: PeerId) -> Option<Rank> {
        self.health.rank(self.now, &peer, true)
    }
}

fn own() -> PeerId {
    peer(255)
}

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

fn addr(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 5000))
}

fn candidate(number: u8) -> Candidate {
    Candidate { peer: peer(number), addrs: vec![addr(number)], same_zone: true }
}

fn digest() -> Digest {
    Digest::sha256_of(b"layer")
}

fn key() -> Key {
    Key::of_digest(&digest())
}

fn refuse(pull: u64, reason: RefuseReason, attempts: u32) -> Event {
    Event::Output(Output::Refuse { pull: PullId(pull), reason, attempts })
}

fn truncate(pull: u64, reason: RefuseReason, from: PeerId, why: &'static str) -> Event {
    Event::Output(Output::Truncate { pull: PullId(pull), reason, left: Some((from, why)) })
}

fn cancel(pull: u64, attempt: u32) -> Event {
    Event::Output(Output::CancelFetch { pull: PullId(pull), attempt: AttemptId(attempt) })
}

fn forward(pull: u64, attempt: u32) -> Event {
    let (pull, attempt) = (PullId(pull), AttemptId(attempt));
    Event::Output(Output::Forward { pull, attempt, report_interval: REPORT_INTERVAL })
}

fn resumed(pull: u64, from: PeerId, reason: &'static str, at_bytes: u64) -> Event {
    Event::Output(Output::Notice(Notice::PullResumed { pull: PullId(pull), from, reason, at_bytes }))
}
