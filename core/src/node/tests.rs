//! Whole nodes in virtual time: what the machines promise together.

mod property;
mod world;

use self::world::{End, MB, World, digest, ms, peer};
use super::*;
use crate::{FetchError, ListedContent, ListedImage, Listing, PullKind, RefuseReason, oci, test_time};

const NOBODY: End = End::Refused(RefuseReason::NobodyHasIt, 0);

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn outputs(node: &mut Node) -> Vec<Output> {
    std::iter::from_fn(|| node.poll_output()).collect()
}

#[expect(clippy::disallowed_methods, reason = "measures the test itself")]
fn stopwatch() -> impl Fn() -> Duration {
    let began = Instant::now();
    move || began.elapsed()
}

fn alone() -> (Instant, Node) {
    let mut world = World::new(1, 1);
    world.run(secs(30));
    (world.now, world.hosts[0].node.take().expect("it is alive"))
}

#[test]
fn first_acts_are_to_watch_content_to_connect_to_containerd_and_to_ask_the_bootstrapper() {
    let mut world = World::empty(1, 1);
    world.trace = Some(Vec::new());
    world.start(0);
    let tells = |line: &str, output: &str| line.contains(&format!(" 0 {output}"));
    let trace = world.trace.clone().expect("set above");
    let first = ["WatchContent", "ConnectContainerd", "ResolveBootstrap"];
    assert!(trace.iter().zip(first).all(|(line, output)| tells(line, output)), "{trace:?}");
    world.run(secs(1));
    let trace = world.trace.clone().expect("set above");
    let at = |output| trace.iter().position(|line| tells(line, output)).expect("it was ordered");
    assert!(at("List") < at("SetReady { ready: true }"));
}

#[test]
fn ready_means_listed_and_nothing_else() {
    let mut world = World::empty(1, 2);
    world.cuts.insert((0, 1));
    world.start(0);
    assert!(!world.hosts[0].is_ready);
    world.run(ms(100));
    assert!(world.hosts[0].is_ready, "without any peer");
    world.node(0).handle(test_time::start(), Input::ContainerdDisconnected { cause: String::new() });
    world.run(ms(10));
    assert!(world.hosts[0].is_ready, "what was listed can still be served");
}

#[test]
fn node_alone_answers_nobody_at_once_when_it_has_looked_for_others() {
    let mut world = World::new(1, 1);
    let pull = world.pull(0, digest(1), PullKind::Blob);
    assert_eq!(world.end(0, pull), Some(End::Refused(RefuseReason::LookupUnanswered, 0)));
    world.run(secs(1));
    let pull = world.pull(0, digest(1), PullKind::Blob);
    assert_eq!(world.end(0, pull), Some(NOBODY));
}

#[test]
fn pull_that_is_given_up_ends_its_search_and_no_other() {
    let mut world = World::settled(1, 8);
    let searches = |world: &mut World| {
        let now = world.now;
        world.node(0).report(now).directory.lookups_in_flight
    };
    let pulls: Vec<_> = (0..4).map(|number| world.pull(0, digest(number), PullKind::Blob)).collect();
    // What this node owns itself it need not ask others for.
    let before = searches(&mut world);
    assert!(before >= 2, "{before} searches");
    let given_up = pulls.iter().find(|pull| world.end(0, **pull).is_none()).expect("one is searching");
    world.abandon(0, *given_up);
    assert_eq!(searches(&mut world), before - 1);
    world.run(secs(1));
    for pull in pulls.iter().filter(|pull| *pull != given_up) {
        assert_eq!(world.end(0, *pull), Some(NOBODY));
    }
}

fn tell(world: &mut World, host: usize, number: u64, key: Key) -> Vec<Output> {
    let now = world.now;
    world.input(host, Input::HoldersAsked { question: QuestionId(number), key });
    world.run(secs(1));
    assert!(world.now > now);
    std::mem::take(&mut world.hosts[host].told)
}

#[test]
fn person_who_asks_who_has_something_is_told_by_every_node() {
    let mut world = World::settled(1, 8);
    world.commit(2, digest(1), MB);
    world.commit(5, digest(1), MB);
    world.run(secs(1));
    for host in 0..8 {
        let told = tell(&mut world, host, 7, Key::of_digest(&digest(1)));
        let [Output::TellHolders { question: QuestionId(7), found }] = &told[..] else {
            panic!("one answer: {told:?}")
        };
        let mut others: Vec<PeerId> = [2, 5].into_iter().filter(|holder| *holder != host).map(peer).collect();
        let mut named = found.others.clone();
        others.sort_unstable();
        named.sort_unstable();
        assert_eq!(
            (named, found.is_held_here, found.is_certain),
            (others, host == 2 || host == 5, true),
            "{host}"
        );
        let told = tell(&mut world, host, 8, Key::of_digest(&digest(2)));
        let found = FoundHolders { is_held_here: false, others: Vec::new(), is_certain: true };
        assert_eq!(told, [Output::TellHolders { question: QuestionId(8), found }], "{host}");
    }
}

#[test]
fn people_cannot_use_up_the_lookups_of_pulls() {
    let mut world = World::settled(1, 8);
    let now = world.now;
    let node = world.node(0);
    let mut unknown = 0;
    for number in 0..1000_u64 {
        let key = Key::of(&number.to_string());
        node.handle(now, Input::HoldersAsked { question: QuestionId(number), key });
        let nothing = Output::TellHolders { question: QuestionId(number), found: FoundHolders::default() };
        unknown += usize::from(outputs(node).contains(&nothing));
        assert!(node.lookups.len() <= QUESTIONS_MAX, "{}", node.lookups.len());
    }
    // What this node owns itself it can answer as long as there is room.
    assert!(unknown > 900, "{unknown} were told that nothing is known");
    let patience = now + secs(1);
    while let Some((due, _)) = node.poll_timeout().filter(|(due, _)| *due <= patience) {
        node.handle_timeout(due);
    }
    let told = outputs(node).iter().filter(|output| matches!(output, Output::TellHolders { .. })).count();
    assert_eq!((told, node.lookups.len()), (QUESTIONS_MAX, 0), "each is answered in time");
}

#[test]
fn two_nodes_share_soon_after_both_are_there() {
    for seed in 0..20 {
        let mut world = World::empty(seed, 2);
        world.hosts[0].contents.insert(digest(1), 5 * MB);
        world.start(0);
        world.run(secs(100));
        world.start(1);
        world.run(secs(2));
        let pull = world.pull(1, digest(1), PullKind::Blob);
        world.run(secs(1));
        assert_eq!(world.end(1, pull), Some(End::Completed), "seed {seed}");
        assert_eq!(world.ask([0], digest(2)), [NOBODY]);
    }
}

#[test]
fn new_layer_is_found_by_every_node_within_a_second() {
    for seed in 0..5 {
        let mut world = World::settled(seed, 12);
        for number in 0..10 {
            let holder = number as usize;
            world.commit(holder, digest(number), MB);
            world.run(secs(1));
            let others = (0..12).filter(|host| *host != holder);
            assert_eq!(world.ask(others, digest(number)), [End::Completed; 11], "seed {seed}");
        }
    }
}

#[test]
fn deleted_content_is_not_asked_for_two_seconds_later() {
    for seed in 0..5 {
        let mut world = World::settled(seed, 8);
        world.commit(3, digest(1), MB);
        world.run(secs(1));
        world.delete(3, digest(1));
        world.run(secs(2));
        assert_eq!(world.ask(0..8, digest(1)), [NOBODY; 8], "seed {seed}");
    }
}

#[test]
fn pull_goes_on_at_a_second_holder_when_the_first_dies() {
    for (seed, silent) in (0..10).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut world = World::settled(seed, 5);
        world.commit(0, digest(1), 30 * MB);
        world.commit(1, digest(1), 30 * MB);
        world.run(secs(1));
        let pull = world.pull(4, digest(1), PullKind::Blob);
        world.run(secs(1));
        let source = world.hosts[4].pulls[&pull].sources[0];
        world.kill(source, silent);
        world.run(secs(5));
        let done = &world.hosts[4].pulls[&pull];
        assert_eq!(done.end, Some(End::Completed), "seed {seed}");
        assert_eq!(done.sources, [source, 1 - source]);
        assert!(done.longest_wait <= secs(2), "{:?}", done.longest_wait);
    }
}

#[test]
fn restarted_node_is_known_by_its_new_generation_and_shares_again() {
    for seed in 0..10 {
        let mut world = World::settled(seed, 4);
        world.commit(0, digest(1), MB);
        world.run(secs(1));
        let before = world.node(0).membership.me().generation;
        // Sooner than anybody notices, or long after.
        world.kill(0, false);
        world.run(if seed % 2 == 0 { ms(200) } else { secs(10) });
        world.start(0);
        world.run(secs(3));
        let after = world.node(1).membership.member(&peer(0)).expect("it is back").generation;
        assert!(after > before);
        assert_eq!(world.ask(1..4, digest(1)), [End::Completed; 3], "seed {seed}");
        assert_eq!(world.ask([1], digest(2)), [NOBODY]);
    }
}

/// Others go on asking it as an owner, and it believes to be alone.
#[test]
fn node_that_has_just_restarted_does_not_rule_out_holders_it_was_not_told_of() {
    for seed in 0..4 {
        let mut world = World::settled(seed, 8);
        (0..20).for_each(|number| world.commit(0, digest(number), MB));
        world.run(secs(1));
        world.kill(7, false);
        world.start(7);
        let mut asked = Vec::new();
        for _ in 0..10 {
            asked.extend((0..20).map(|number| world.pull(5, digest(number), PullKind::Head)));
            world.run(ms(2));
        }
        world.run(secs(1));
        for pull in asked {
            assert_eq!(world.end(5, pull), Some(End::Completed), "seed {seed}");
        }
    }
}

#[test]
fn node_that_left_in_good_order_and_came_back_shares_again() {
    for seed in 0..10 {
        let mut world = World::settled(seed, 4);
        world.commit(0, digest(1), MB);
        world.run(secs(1));
        world.shutdown(0);
        world.run(ms(100));
        world.kill(0, false);
        world.start(0);
        world.run(secs(2));
        assert_eq!(world.ask(1..4, digest(1)), [End::Completed; 3], "seed {seed}");
    }
}

#[test]
fn leaving_node_is_named_no_more_and_finishes_what_it_sends() {
    for seed in 0..10 {
        let mut world = World::settled(seed, 6);
        world.commit(0, digest(1), 30 * MB);
        world.run(secs(1));
        let pull = world.pull(5, digest(1), PullKind::Blob);
        world.run(ms(500));
        let leaves_at = world.now;
        world.shutdown(0);
        world.shutdown(0);
        assert!(!world.hosts[0].is_ready);
        let refused = world.pull(0, digest(9), PullKind::Blob);
        assert_eq!(world.end(0, refused), Some(End::Refused(RefuseReason::ShuttingDown, 0)));
        world.run(ms(500));
        assert_eq!(world.ask(1..5, digest(1)), [NOBODY; 4], "seed {seed}");
        world.run(secs(3));
        assert_eq!(world.end(5, pull), Some(End::Completed));
        assert_eq!(world.hosts[5].pulls[&pull].sources, [0]);
        world.run(secs(60));
        let [left_at] = world.hosts[0].left_at[..] else { panic!("said once") };
        assert!(left_at - leaves_at <= ms(100), "{:?}", left_at - leaves_at);
    }
}

#[test]
fn node_that_delays_its_end_asks_and_is_asked_as_before_until_then() {
    let mut world = World::empty(1, 3);
    world.shutdown_delay = secs(5);
    (0..3).for_each(|host| world.start(host));
    world.run(secs(5));
    world.commit(0, digest(1), MB);
    world.commit(0, digest(3), MB);
    world.commit(1, digest(2), MB);
    world.run(secs(1));
    let told_at = world.now;
    world.shutdown(0);
    assert!(!world.hosts[0].is_ready, "others are led elsewhere from here on");
    world.run(secs(4));
    world.shutdown(0);
    let asked = world.pull(1, digest(1), PullKind::Blob);
    let asks = world.pull(0, digest(2), PullKind::Blob);
    world.run(ms(900));
    assert_eq!(world.end(1, asked), Some(End::Completed));
    assert_eq!(world.end(0, asks), Some(End::Completed));
    assert_eq!(world.hosts[0].left_at, []);
    world.run(secs(1));
    let [left_at] = world.hosts[0].left_at[..] else { panic!("said once") };
    assert!((secs(5)..secs(5) + ms(100)).contains(&(left_at - told_at)), "{:?}", left_at - told_at);
    assert_eq!(world.ask([2], digest(3)), [NOBODY], "it has taken leave");
}

#[test]
fn leaving_takes_no_longer_than_a_second_when_all_others_are_dead() {
    for silent in [false, true] {
        let mut world = World::settled(1, 4);
        world.commit(0, digest(1), MB);
        world.run(secs(1));
        (1..4).for_each(|host| world.kill(host, silent));
        let leaves_at = world.now;
        world.shutdown(0);
        world.run(secs(10));
        let [left_at] = world.hosts[0].left_at[..] else { panic!("said once") };
        assert!(left_at - leaves_at <= FAREWELL_MAX, "{:?}", left_at - leaves_at);
    }
    let mut world = World::settled(1, 1);
    world.shutdown(0);
    assert_eq!(world.hosts[0].left_at, [world.now], "nobody to wait for");
}

#[test]
fn shell_that_never_reports_does_not_keep_the_node_from_leaving() {
    let mut world = World::settled(1, 2);
    world.commit(0, digest(1), MB);
    world.run(secs(1));
    let now = world.now;
    let node = world.node(0);
    node.handle(now, Input::ShutdownRequested);
    assert!(!outputs(node).contains(&Output::ShutdownComplete));
    assert_eq!(node.poll_timeout(), Some((now + FAREWELL_MAX, Wake::Shutdown)));
    node.handle_timeout(now + FAREWELL_MAX - Duration::from_nanos(1));
    assert_eq!(outputs(node), []);
    node.handle_timeout(now + FAREWELL_MAX);
    assert_eq!(outputs(node), [Output::ShutdownComplete]);
    node.handle_timeout(now + FAREWELL_MAX);
    assert_eq!(outputs(node), []);
}

#[test]
fn nonsense_is_answered_each_time_and_mentioned_once_a_minute() {
    let (now, mut node) = alone();
    let mut say = |at: Instant, from: usize, number: u64| {
        let exchange = ExchangeId(number);
        node.handle(at, Input::MessageReceived { from: peer(from), exchange, message: vec![0xff] });
        let outputs = outputs(&mut node);
        let unsupported = Output::Reply { exchange, message: Reply::Unsupported.encode() };
        assert_eq!(outputs.iter().filter(|output| **output == unsupported).count(), 1);
        outputs.len() == 2
    };
    assert!(say(now, 1, 1));
    assert!(!say(now, 1, 2));
    assert!(say(now, 2, 3), "another peer");
    let later = now + MALFORMED_NOTICE_INTERVAL;
    assert!(!say(later - Duration::from_nanos(1), 1, 4));
    assert!(say(later, 1, 5));
    for number in 0..MALFORMED_PEERS_MAX * 2 {
        let from = PeerId::from_public_key([u8::try_from(number % 256).expect("fits"); 32]);
        let exchange = ExchangeId(number as u64);
        node.handle(later, Input::MessageReceived { from, exchange, message: Vec::new() });
    }
    assert!(node.malformed.len() <= MALFORMED_PEERS_MAX);
}

#[test]
fn request_of_a_later_release_is_answered_and_not_called_nonsense() {
    let (now, mut node) = alone();
    let exchange = ExchangeId(1);
    // Kind 77 of this version, and kind 1 of version 2.
    for message in [vec![0xa3, 0, 1, 1, 0x18, 77, 2, 0x41, 0xa0], vec![0xa3, 0, 2, 1, 1, 2, 0x41, 0xa0]] {
        node.handle(now, Input::MessageReceived { from: peer(1), exchange, message });
        assert_eq!(outputs(&mut node), [Output::Reply { exchange, message: Reply::Unsupported.encode() }]);
    }
}

#[test]
fn with_too_many_messages_unanswered_further_ones_fail_at_once() {
    let mut world = World::settled(1, 8);
    let now = world.now;
    let node = world.node(0);
    let exchanges = (0..EXCHANGES_MAX as u64).map(|number| ExchangeId(u64::MAX - number));
    node.exchanges = exchanges.map(|exchange| (exchange, Exchange::Swim(peer(1)))).collect();
    for number in 0..20 {
        let (pull, key) = (PullId(u64::from(number)), Key::of_digest(&digest(number)));
        let digest = Some(digest(number));
        node.handle(now, Input::PullRequested { pull, key, digest, kind: PullKind::Blob, whole: true });
        let [Output::Refuse { pull: refused, reason, attempts: 0 }] = outputs(node)[..] else {
            panic!("refused at once");
        };
        let reasons = [RefuseReason::LookupUnanswered, RefuseReason::NobodyHasIt];
        assert!(refused == pull && reasons.contains(&reason), "{reason}");
    }
    assert_eq!((node.exchanges.len(), node.lookups.len()), (EXCHANGES_MAX, 0));
    // The place of one that ends is taken by the next.
    node.handle(now, Input::SendFailed { exchange: ExchangeId(u64::MAX), cause: String::new() });
    assert_eq!(node.exchanges.len(), EXCHANGES_MAX - 1);
}

#[test]
fn answers_to_what_was_never_asked_change_nothing() {
    let (now, mut node) = alone();
    let (pull, attempt, exchange) = (PullId(7), crate::AttemptId(7), ExchangeId(777_777));
    for input in [
        Input::ReplyReceived { exchange, message: Reply::Ack.encode() },
        Input::SendFailed { exchange, cause: String::new() },
        Input::FetchAnswered { pull, attempt, body_bytes: 1, backlog_bytes: None },
        Input::FetchFailed { pull, attempt, cause: FetchError::Connect },
        Input::FetchProgressed { pull, attempt, bytes: 1, starved: secs(9) },
        Input::FetchCompleted { pull, attempt, bytes: 1 },
        Input::PullAbandoned { pull },
    ] {
        let before = node.poll_timeout();
        node.handle(now, input);
        assert_eq!((outputs(&mut node), node.poll_timeout()), (Vec::new(), before));
    }
}

#[test]
fn timers_that_are_early_late_or_repeated_do_no_harm() {
    for seed in 0..10 {
        let mut world = World::empty(seed, 4);
        world.meddles = true;
        world.hosts[0].contents.insert(digest(1), 5 * MB);
        (0..4).for_each(|host| world.start(host));
        world.run(secs(5));
        assert_eq!(world.ask(1..4, digest(1)), [End::Completed; 3], "seed {seed}");
        assert_eq!(world.ask(0..4, digest(2)), [NOBODY; 4], "seed {seed}");
    }
}

#[test]
fn same_seed_gives_the_same_outputs() {
    let trace = |seed| {
        let mut world = World::empty(seed, 4);
        world.trace = Some(Vec::new());
        world.loss_percent = 5;
        (0..4).for_each(|host| world.start(host));
        world.run(secs(10));
        world.commit(0, digest(1), 5 * MB);
        world.run(secs(1));
        for host in 1..4 {
            world.pull(host, digest(1), PullKind::Blob);
        }
        world.run(secs(10));
        world.trace.expect("set above")
    };
    assert!(trace(7) == trace(7));
    assert!(trace(7) != trace(8));
}

#[test]
fn address_change_of_a_member_does_not_hide_what_it_holds() {
    for seed in 0..3 {
        let mut world = World::settled(seed, 12);
        (0..8).for_each(|number| world.commit(0, digest(number), MB));
        world.run(secs(1));
        world.set_ip(0, 200);
        for _ in 0..20 {
            world.run(ms(50));
            let asked: Vec<_> = (0..16).map(|number| world.pull(3, digest(number), PullKind::Head)).collect();
            world.run(ms(200));
            for (number, pull) in asked.into_iter().enumerate() {
                let expected = if number < 8 { End::Completed } else { NOBODY };
                assert_eq!(world.end(3, pull), Some(expected), "seed {seed} {:?}", world.now - world.start);
            }
        }
    }
}

#[test]
fn idle_cluster_wakes_a_few_times_a_second() {
    for hosts in [1, 4, 100] {
        let mut world = World::settled(1, hosts);
        world.run(secs(30));
        world.hosts.iter_mut().for_each(|host| (host.wakes, host.idle_wakes) = (0, 0));
        world.run(secs(20));
        let per_second = |count: fn(&world::Host) -> usize| {
            world.hosts.iter().map(count).sum::<usize>() as f64 / hosts as f64 / 20.0
        };
        let (wakes, idle) = (per_second(|host| host.wakes), per_second(|host| host.idle_wakes));
        println!("{hosts} idle nodes: {wakes:.1} timeouts a second each, {idle:.1} of them without output");
        assert!(wakes <= 15.0, "{wakes}");
    }
}

#[test]
fn listing_of_many_contents_is_taken_in_quickly() {
    let mut world = World::settled(1, 8);
    let content = |number| ListedContent { digest: digest(number), size: 1, sources: Vec::new() };
    let contents = (0..12_000).map(content).collect();
    let now = world.now;
    let node = world.node(0);
    node.handle(now, Input::ContainerdConnected { version: String::new() });
    while node.poll_output().is_some() {}
    let began = stopwatch();
    node.handle(now, Input::Listed(Listing { images: Vec::new(), contents }));
    let took = began();
    println!("12000 contents of 8 nodes: {took:?} in handle");
    assert_eq!(node.directory.report().keys_held, 12_000);
    assert!(took < secs(5), "{took:?}");
}

/// More events than the machines may pass between them in one go.
#[test]
fn node_with_very_many_tags_does_not_panic_when_it_is_listed() {
    let (now, mut node) = alone();
    let target = oci::Descriptor { media_type: "a/b".to_owned(), digest: digest(1), size: 1 };
    let image = |number| ListedImage { name: format!("a.test/b:{number}"), target: Some(target.clone()) };
    let images: Vec<_> = (0..50_000).map(image).collect();
    let contents = vec![ListedContent { digest: digest(1), size: 1, sources: Vec::new() }];
    node.handle(now, Input::ContainerdConnected { version: String::new() });
    node.handle(now, Input::Listed(Listing { images, contents }));
    let served = outputs(&mut node).iter().filter(|output| matches!(output, Output::ServeTag { .. })).count();
    assert_eq!(served, 50_000);
}
