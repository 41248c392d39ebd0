//! Holders that have much to send to others.

use super::*;
use crate::fetch::{
    pull::offer::{
        COMPARE_INTERVAL, COMPARE_MAX, COMPARE_WORTH, COMPARED_BYTES_MIN, COMPARISONS_MAX, IDLE_SLOWER_MAX,
    },
    rates::WINDOW,
};

/// A blob whose first holder has answered that it has so much to send to others.
fn busy(holders: &[u8], backlog: u64) -> (Node, Fetched) {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, holders);
    let first = node.fetches()[0];
    node.answer_with(1, first.attempt, BLOB, Some(backlog));
    (node, first)
}

#[test]
fn long_body_begins_at_the_holder_that_has_less_to_send() {
    for (others, moves) in
        [(BLOB, true), (BLOB + BLOB / 2 - 1, true), (BLOB + BLOB / 2, false), (3 * BLOB, false)]
    {
        let (mut node, first) = busy(&[1, 2, 3], 2 * BLOB);
        let [second] = node.fetches()[..] else { panic!("another is asked, and one alone") };
        assert_ne!(second.peer, first.peer);
        node.advance(COMPARE_MAX - TICK);
        assert_eq!(node.drain(), []);
        node.answer_with(1, second.attempt, BLOB, Some(others));
        let (taken, left) = if moves { (second, first) } else { (first, second) };
        let expected = [cancel(1, left.attempt), forward(1, taken.attempt)];
        assert_eq!(node.drain(), expected, "{others} bytes to send to others");
        node.complete(1, taken.attempt, BLOB);
        assert!(node.health.report(node.now).iter().all(|peer| peer.in_flight == 0), "all are released");
    }
}

#[test]
fn holder_that_is_not_busy_is_taken_at_once() {
    for (body, backlog) in [
        (BLOB, None),
        (BLOB, Some(0)),
        (BLOB, Some(BLOB / 2 - 1)),
        (COMPARED_BYTES_MIN - 1, Some(BLOB)),
        (COMPARED_BYTES_MIN, Some(COMPARED_BYTES_MIN - 1)),
    ] {
        let mut node = Node::new();
        node.pull(1, PullKind::Blob, &[1, 2]);
        node.drain();
        node.answer_with(1, 0, body, backlog);
        assert_eq!(node.drain(), [forward(1, 0)], "{body} {backlog:?}");
    }
}

#[test]
fn busy_holder_is_taken_if_there_is_none_to_compare_it_with() {
    let (mut node, first) = busy(&[1], BLOB);
    assert_eq!(node.drain(), [forward(1, first.attempt)], "the only one");
    let mut node = Node::new();
    node.shun(2);
    node.health.on_throughput(node.now, peer(3), THROUGHPUT_FLOOR / 2, Duration::from_secs(1));
    node.request(1, PullKind::Blob);
    node.holders(
        1,
        vec![candidate(1), candidate(2), candidate(3), Candidate { same_zone: false, ..candidate(4) }],
    );
    node.drain();
    node.answer_with(1, 0, BLOB, Some(BLOB));
    assert_eq!(node.drain(), [forward(1, 0)], "the others are shunned, slow or in another zone");
}

#[test]
fn holder_that_was_asked_to_compare_and_says_nothing_costs_little_and_is_not_blamed() {
    let (mut node, first) = busy(&[1, 2], BLOB);
    let second = node.fetches()[0];
    node.advance(COMPARE_MAX - TICK);
    assert_eq!(node.drain(), []);
    node.advance(TICK);
    assert_eq!(node.drain(), [cancel(1, second.attempt), forward(1, first.attempt)]);
    let report = node.health.report(node.now);
    assert!(report.iter().all(|peer| peer.failures == 0), "{report:?}");

    let (mut node, first) = busy(&[1, 2], BLOB);
    let second = node.fetches()[0];
    node.fail(1, second.attempt, FetchError::NotFound);
    assert_eq!(node.drain(), [forward(1, first.attempt)]);
    // One that does not say how busy it is.
    let (mut node, first) = busy(&[1, 2], BLOB);
    let second = node.fetches()[0];
    node.answer_with(1, second.attempt, BLOB, None);
    assert_eq!(node.drain(), [cancel(1, second.attempt), forward(1, first.attempt)]);
}

#[test]
fn holder_that_goes_while_it_is_compared_is_done_without() {
    let (mut node, first) = busy(&[1, 2], BLOB);
    let second = node.fetches()[0];
    node.fetch.on_peer_down(node.now, &first.peer, &mut node.health);
    assert_eq!(node.drain(), [cancel(1, first.attempt)]);
    node.answer_with(1, second.attempt, BLOB, Some(2 * BLOB));
    assert_eq!(node.drain(), [forward(1, second.attempt)]);

    let (mut node, first) = busy(&[1, 2], BLOB);
    let second = node.fetches()[0];
    node.fail(1, first.attempt, FetchError::Interrupted);
    assert_eq!(node.drain(), [], "what has failed is not cancelled as well");
    node.answer_with(1, second.attempt, BLOB, Some(2 * BLOB));
    assert_eq!(node.drain(), [forward(1, second.attempt)]);

    let (mut node, first) = busy(&[1, 2], BLOB);
    let second = node.fetches()[0];
    node.fetch.on_abandoned(node.now, PullId(1), &mut node.health);
    assert_eq!(node.drain(), [cancel(1, second.attempt), cancel(1, first.attempt)]);
    assert!(node.health.report(node.now).iter().all(|peer| peer.in_flight == 0), "all are released");
}

#[test]
fn body_that_is_resumed_goes_on_wherever_it_can() {
    let mut node = Node::new();
    node.flow(1, &[1, 2, 3]);
    node.progress(1, 0, MIB, Duration::ZERO);
    node.fail(1, 0, FetchError::Interrupted);
    let fetch = node.fetches()[0];
    node.answer_with(1, fetch.attempt, BLOB - MIB, Some(5 * BLOB));
    assert_eq!(node.drain()[0], forward(1, fetch.attempt), "the client waits");
}

// --- in mid-body ----------------------------------------------------------------------------------

/// Bytes in each report of a transfer that takes minutes.
const SLOWLY: u64 = MIB;

/// A body that comes slowly of a holder with so much to send to others; says whose, and the other holder's
/// attempt to which it was compared.
fn sharing(backlog: u64) -> (Node, Fetched, Fetched) {
    sharing_of(BLOB, &[1, 2], backlog)
}

fn sharing_of(body: u64, holders: &[u8], backlog: u64) -> (Node, Fetched, Fetched) {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, holders);
    let first = node.fetches()[0];
    node.answer_with(1, first.attempt, body, Some(backlog));
    let second = node.fetches()[0];
    node.answer_with(1, second.attempt, body, Some(backlog));
    assert_eq!(node.drain(), [cancel(1, second.attempt), forward(1, first.attempt)]);
    (node, first, second)
}

/// Reports come until another holder is asked.
fn until_asked(node: &mut Node, attempt: u32) -> Fetched {
    for _ in 0..reports(COMPARE_INTERVAL) {
        node.progress_for(1, attempt, SLOWLY, REPORT_INTERVAL, 1);
        if let [asked] = node.fetches()[..] {
            return asked;
        }
    }
    panic!("nobody is asked");
}

fn reports(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / REPORT_INTERVAL.as_millis()).expect("a few")
}

#[test]
fn body_that_others_wait_for_goes_on_at_a_holder_that_has_become_idle() {
    let (mut node, first, second) = sharing(BLOB);
    // What it was able to send while it was busy tells nothing.
    node.health.on_throughput(node.now, second.peer, 2 * THROUGHPUT_FLOOR, Duration::from_secs(1));
    let asked = until_asked(&mut node, first.attempt);
    let given = SLOWLY * u64::from(reports(COMPARE_INTERVAL));
    assert_eq!((asked.peer, asked.skip), (second.peer, given));
    // Bytes flow on until it has answered.
    node.progress(1, first.attempt, SLOWLY, Duration::ZERO);
    node.answer_with(1, asked.attempt, BLOB - given, Some(COMPARED_BYTES_MIN - 1));
    let left = resumed(1, first.peer, "busy", given);
    assert_eq!(node.drain(), [cancel(1, first.attempt), forward(1, asked.attempt), left]);
    // What came meanwhile is counted again, and not more than the body has.
    node.complete(1, asked.attempt, BLOB - given);
    assert_eq!((node.drain(), node.fetch.in_flight()), (vec![], 0));
    let report = node.health.report(node.now);
    assert!(report.iter().all(|peer| (peer.in_flight, peer.failures) == (0, 0)), "{report:?}");
}

#[test]
fn holder_that_is_busy_too_is_asked_again_later_but_not_for_ever() {
    let (mut node, first, _) = sharing(BLOB);
    for _ in 0..COMPARISONS_MAX {
        let asked = until_asked(&mut node, first.attempt);
        node.answer_with(1, asked.attempt, BLOB - asked.skip, Some(COMPARED_BYTES_MIN));
        assert_eq!(node.drain(), [cancel(1, asked.attempt)]);
    }
    node.progress_for(1, first.attempt, SLOWLY, REPORT_INTERVAL, 2 * reports(COMPARE_INTERVAL));
    assert_eq!(node.drain(), []);
}

#[test]
fn holder_that_says_nothing_in_mid_body_is_not_waited_for_nor_blamed() {
    let (mut node, first, _) = sharing(BLOB);
    let asked = until_asked(&mut node, first.attempt);
    node.progress_for(1, first.attempt, SLOWLY, REPORT_INTERVAL, reports(COMPARE_MAX) - 1);
    assert_eq!(node.drain(), []);
    node.progress_for(1, first.attempt, SLOWLY, REPORT_INTERVAL, 1);
    assert_eq!(node.drain(), [cancel(1, asked.attempt)]);
    let report = node.health.report(node.now);
    assert!(report.iter().all(|peer| peer.failures == 0), "{report:?}");

    // One that has lost it is not asked again.
    let asked = until_asked(&mut node, first.attempt);
    node.fail(1, asked.attempt, FetchError::NotFound);
    node.progress_for(1, first.attempt, SLOWLY, REPORT_INTERVAL, 2 * reports(COMPARE_INTERVAL));
    assert_eq!(node.drain(), []);
}

#[test]
fn holder_that_is_asked_in_mid_body_carries_on_if_the_other_breaks_off() {
    let (mut node, first, _) = sharing(BLOB);
    let asked = until_asked(&mut node, first.attempt);
    node.progress(1, first.attempt, SLOWLY, Duration::ZERO);
    node.fail(1, first.attempt, FetchError::Malformed);
    assert_eq!(node.drain(), []);
    node.answer_with(1, asked.attempt, BLOB - asked.skip, Some(BLOB));
    let left = resumed(1, first.peer, "interrupted", asked.skip);
    assert_eq!(node.drain(), [forward(1, asked.attempt), left]);
}

#[test]
fn everything_asked_in_mid_body_ends_with_the_pull() {
    let (mut node, first, _) = sharing(BLOB);
    let asked = until_asked(&mut node, first.attempt);
    node.fetch.on_peer_down(node.now, &asked.peer, &mut node.health);
    assert_eq!(node.drain(), [cancel(1, asked.attempt)]);

    let (mut node, first, _) = sharing(BLOB);
    let asked = until_asked(&mut node, first.attempt);
    node.complete(1, first.attempt, BLOB - asked.skip);
    assert_eq!(node.drain(), []);
    assert!(node.health.report(node.now).iter().all(|peer| peer.in_flight == 0), "all are released");
}

#[test]
fn nobody_is_asked_in_mid_body_where_it_makes_no_sense() {
    let long = 2 * reports(COMPARE_INTERVAL);
    let quiet = |node: &mut Node, attempt, starved| {
        node.progress_for(1, attempt, SLOWLY, starved, long);
        assert_eq!(node.drain(), []);
    };
    // The holder has nothing else to send.
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1, 2]);
    node.drain();
    node.answer_with(1, 0, BLOB, Some(COMPARED_BYTES_MIN - 1));
    node.drain();
    quiet(&mut node, 0, REPORT_INTERVAL);
    // The client is slow.
    let (mut node, first, _) = sharing(BLOB);
    quiet(&mut node, first.attempt, REPORT_INTERVAL / 2);
    // It is nearly done.
    let rest = SLOWLY * u64::from(reports(COMPARE_INTERVAL) + reports(COMPARE_WORTH));
    let (mut short, first, _) = sharing_of(rest, &[1, 2], BLOB);
    short.progress_for(1, first.attempt, SLOWLY, REPORT_INTERVAL, reports(COMPARE_INTERVAL));
    assert_eq!(short.drain(), []);
    let (mut long, first, _) = sharing_of(rest + SLOWLY, &[1, 2], BLOB);
    assert_eq!(until_asked(&mut long, first.attempt).skip, SLOWLY * u64::from(reports(COMPARE_INTERVAL)));
    // This node has something else of the other holder.
    let (mut node, first, second) = sharing(BLOB);
    node.health.on_launched(node.now, second.peer);
    quiet(&mut node, first.attempt, REPORT_INTERVAL);
    // The other holder is shunned.
    let (mut node, first, second) = sharing(BLOB);
    node.health.on_failed(node.now, second.peer, Failure::Stalled);
    quiet(&mut node, first.attempt, REPORT_INTERVAL);
}

#[test]
fn transfer_is_moved_to_an_idle_holder_if_this_node_has_another_of_the_same() {
    let mut node = Node::new();
    node.pull(1, PullKind::Blob, &[1, 2]);
    let first = node.fetches()[0];
    node.answer_with(1, first.attempt, BLOB, Some(0));
    node.health.on_launched(node.now, first.peer);
    node.drain();
    let asked = until_asked(&mut node, first.attempt);
    assert_ne!(asked.peer, first.peer);
}

#[test]
fn holder_that_is_always_busy_or_mute_hides_no_other() {
    for backlog in [Some(BLOB), None] {
        let (mut node, first, _) = sharing_of(BLOB, &[1, 2, 3], BLOB);
        let mut asked = Vec::new();
        for _ in 0..2 {
            let fetch = until_asked(&mut node, first.attempt);
            node.answer_with(1, fetch.attempt, BLOB - fetch.skip, backlog);
            asked.push(fetch.peer);
        }
        assert_ne!(asked[0], asked[1], "{backlog:?}");
    }
}

#[test]
fn holder_with_very_much_to_send_is_not_asked_again_soon() {
    let (mut node, first, _) = sharing(BLOB);
    let asked = until_asked(&mut node, first.attempt);
    // A thousand others wait for as much.
    node.answer_with(1, asked.attempt, BLOB - asked.skip, Some(1000 * BLOB));
    node.drain();
    node.progress_for(1, first.attempt, SLOWLY, REPORT_INTERVAL, 590);
    assert_eq!(node.drain(), []);
    until_asked(&mut node, first.attempt);
}

/// An idle holder takes over and is slower, until it is left again, before anybody else is asked; says for whom.
fn move_in_vain(node: &mut Node, attempt: u32) -> Fetched {
    let asked = until_asked(node, attempt);
    node.answer_with(1, asked.attempt, BLOB - asked.skip, Some(0));
    node.drain();
    for _ in 0..2 * reports(WINDOW) {
        node.progress_for(1, asked.attempt, SLOWLY / 3, REPORT_INTERVAL, 1);
        let events = node.drain();
        if let [next] = fetched(&events)[..] {
            assert_eq!(events[0], cancel(1, asked.attempt), "what is left is ended first");
            return next;
        }
    }
    panic!("it is never left");
}

#[test]
fn idle_holder_that_turns_out_slower_is_left_again_but_not_blamed() {
    let (mut node, first, second) = sharing(BLOB);
    assert_eq!(move_in_vain(&mut node, first.attempt).peer, first.peer, "the one that was faster");
    let report = node.health.report(node.now);
    let slower = report.iter().find(|peer| peer.peer == second.peer);
    assert_eq!(slower.map(|peer| peer.failures), Some(0));
}

#[test]
fn body_that_was_moved_in_vain_does_not_try_every_idle_holder() {
    let (mut node, mut flowing, _) = sharing_of(BLOB, &[1, 2, 3, 4, 5], BLOB);
    for _ in 0..IDLE_SLOWER_MAX {
        flowing = move_in_vain(&mut node, flowing.attempt);
        node.answer_with(1, flowing.attempt, BLOB - flowing.skip, Some(BLOB));
        node.drain();
    }
    node.progress_for(1, flowing.attempt, SLOWLY, REPORT_INTERVAL, 2 * reports(COMPARE_INTERVAL));
    assert_eq!(node.drain(), []);
}

#[test]
fn small_share_of_a_busy_holder_is_no_slow_link_but_next_to_nothing_is() {
    // A second is measured. Each comparison finds the other as busy.
    let run = |bytes_per_second: u64| {
        let (mut node, first, second) = sharing(BLOB);
        node.health.on_throughput(node.now, second.peer, 100 * THROUGHPUT_FLOOR, Duration::from_secs(1));
        let each = bytes_per_second / u64::from(reports(Duration::from_secs(1)));
        let mut events = Vec::new();
        for _ in 0..3 * reports(WINDOW) {
            node.progress_for(1, first.attempt, each, REPORT_INTERVAL, 1);
            let came = node.drain();
            for asked in fetched(&came) {
                node.answer_with(1, asked.attempt, BLOB - asked.skip, Some(BLOB));
            }
            events.extend(came);
        }
        events.contains(&cancel(1, first.attempt))
    };
    assert!(!run(2 * THROUGHPUT_FLOOR), "a fiftieth of what the other lately sent");
    assert!(run(THROUGHPUT_FLOOR / 2));
}

#[test]
fn hedge_to_another_zone_gets_nothing_because_the_own_zone_is_busy() {
    let mut node = Node::new();
    node.request(1, PullKind::Blob);
    node.holders(1, vec![candidate(1), Candidate { same_zone: false, ..candidate(2) }]);
    node.drain();
    node.advance(Duration::from_millis(60));
    assert_eq!(node.fetches().len(), 1, "the hedge");
    node.answer_with(1, 0, BLOB, Some(BLOB));
    assert_eq!(node.drain(), [cancel(1, 1), forward(1, 0)]);
}
