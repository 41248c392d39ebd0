//! What a cluster of directories promises, in virtual time.

mod net;

use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use self::net::{Net, RESOLVE_TIMEOUT, key, millis, peer, secs};
use super::{owners::RECENT_DEPARTURE, *};

#[test]
fn what_one_node_holds_every_node_finds_at_once() {
    let mut net = Net::settled(10);
    net.hold(peer(3), key(1));
    net.run(millis(50));
    for number in (0..10).filter(|number| *number != 3) {
        let (holders, outcome, took) = net.find(peer(number), key(1));
        assert_eq!((holders, outcome), (vec![peer(3)], Outcome::Definitive));
        assert!(took <= millis(10), "{took:?}");
    }
    let (holders, outcome, _) = net.find(peer(3), key(1));
    assert_eq!((holders, outcome), (Vec::new(), Outcome::Definitive), "nobody else");
    net.with(peer(3), |directory, now| directory.release(now, key(1)));
    net.run(millis(50));
    assert_eq!(net.find(peer(1), key(1)).0, []);
}

#[test]
fn holders_of_the_askers_zone_are_named_first() {
    // Zones go by whether a node's number is even.
    let mut net = Net::settled(9);
    (0..9).for_each(|number| net.hold(peer(number), key(1)));
    net.run(millis(100));
    for number in 0..9 {
        let (holders, ..) = net.find(peer(number), key(1));
        let near: Vec<_> =
            holders.iter().map(|holder| (0..9).step_by(2).any(|even| peer(even) == *holder)).collect();
        assert_eq!(near.len(), 8, "{number} is told of all others");
        assert!(near.is_sorted_by_key(|is_even| *is_even != number.is_multiple_of(2)), "{number}: {near:?}");
    }
}

#[test]
fn nobody_is_said_definitively_in_one_round_trip() {
    let mut net = Net::settled(10);
    for number in 0..50 {
        let (holders, outcome, took) = net.find(peer(number % 10), key(number.into()));
        assert_eq!((holders, outcome), (Vec::new(), Outcome::Definitive));
        assert!(took <= millis(8), "{took:?}");
    }
}

#[test]
fn node_that_is_alone_finds_nobody_at_once() {
    let mut net = Net::settled(1);
    net.hold(peer(0), key(1));
    assert_eq!(net.find(peer(0), key(1)), (Vec::new(), Outcome::Definitive, Duration::ZERO));
    let mirror = &net.mirrors[&peer(0)];
    assert_eq!(mirror.directory.poll_timeout(), None, "nothing to wake up for");
    assert_eq!(net.requests_sent.len(), 0);
}

#[test]
fn dead_holder_is_not_found() {
    let mut net = Net::settled(8);
    for holder in [2, 5] {
        net.hold(peer(holder), key(1));
    }
    net.run(millis(100));
    net.kill(peer(2));
    net.run(millis(300));
    for name in net.names() {
        let (holders, ..) = net.find(name, key(1));
        assert!(!holders.contains(&peer(2)));
        assert!(name == peer(5) || holders == [peer(5)]);
    }
}

#[test]
fn death_of_all_owners_at_once_is_healed_by_the_holders() {
    let mut net = Net::settled(10);
    let holder =
        net.names().into_iter().find(|name| !net.owners(key(1)).contains(name)).expect("ten are more");
    net.hold(holder, key(1));
    net.run(millis(100));
    net.owners(key(1)).into_iter().for_each(|owner| net.kill(owner));
    net.run(secs(2));
    for name in net.names().into_iter().filter(|name| *name != holder) {
        assert_eq!(net.find(name, key(1)).0, [holder]);
    }
}

#[test]
fn heir_does_not_say_nobody_until_holders_had_time_to_tell_it() {
    let mut net = Net::settled(10);
    let before = net.owners(key(1));
    net.kill(before[0]);
    net.run(millis(250));
    let heir = *net.owners(key(1)).iter().find(|owner| !before.contains(owner)).expect("one inherits");
    assert!(!net.says_nobody(heir, key(1)));
    assert!(net.says_nobody(before[1], key(1)), "the others have known all along");
    net.run(RECENT_DEPARTURE);
    assert!(net.says_nobody(heir, key(1)));
}

#[test]
fn owner_that_starts_does_not_say_nobody_until_all_have_told_it() {
    let mut net = Net::settled(5);
    let joins = peer(77);
    net.cut_off.insert(peer(2));
    net.start(joins);
    net.run(secs(3));
    let owned = (0..).map(key).find(|key| net.owners(*key).contains(&joins)).expect("it owns some");
    assert!(!net.says_nobody(joins, owned), "one has not told it");
    net.cut_off.clear();
    net.run(secs(12));
    assert!(net.says_nobody(joins, owned));
}

#[test]
fn dead_owner_delays_one_lookup_and_not_the_next_ones() {
    let mut net = Net::settled(10);
    let owners = net.owners(key(1));
    let asker = net.names().into_iter().find(|name| !owners.contains(name)).expect("ten are more");
    net.cut_off.insert(owners[0]);
    let (_, outcome, took) = net.find(asker, key(1));
    assert_eq!(outcome, Outcome::Definitive);
    assert!((RESOLVE_TIMEOUT..RESOLVE_TIMEOUT + millis(10)).contains(&took), "{took:?}");
    let (_, _, took) = net.find(asker, key(1));
    assert!(took <= millis(8), "{took:?}");
}

#[test]
fn death_of_a_member_disturbs_no_exchange_with_others() {
    let mut net = Net::settled(10);
    let owners = net.owners(key(1));
    let mut others = net.names().into_iter().filter(|name| !owners.contains(name));
    let (asker, dead) = (others.next().expect("ten are more"), others.next().expect("ten are more"));
    net.with(asker, |directory, now| {
        directory.lookup(now, key(1));
        let asked = std::iter::from_fn(|| directory.poll_event()).count();
        assert_eq!(asked, 1);
        directory.member_down(now, dead);
        assert_eq!(directory.poll_event(), None, "it waits for the owner it asked");
        directory.member_down(now, owners[0]);
        assert!(matches!(directory.poll_event(), Some(Event::Send { to, .. }) if to == owners[1]));
    });
}

#[test]
fn lookup_without_any_answer_ends_in_time() {
    let mut net = Net::settled(5);
    net.cut_off.insert(peer(0));
    let foreign = (0..).map(key).find(|key| !net.owners(*key).contains(&peer(0))).expect("it owns not all");
    let (holders, outcome, took) = net.find(peer(0), foreign);
    assert_eq!((holders, outcome), (Vec::new(), Outcome::Unanswered));
    assert!(took <= millis(102), "{took:?}");
}

#[test]
fn what_an_owner_forgot_is_found_out_by_reconciliation() {
    let mut net = Net::settled(5);
    net.hold(peer(1), key(1));
    net.run(millis(100));
    let owner = *net.owners(key(1)).iter().find(|owner| **owner != peer(1)).expect("three are more");
    net.with(owner, |directory, _| directory.ledger.set(peer(1), key(1), false));
    // The holder asks each of the four others in turn, one at least every ten seconds.
    net.run(secs(41));
    net.assert_agreed(&BTreeMap::from([(peer(1), BTreeSet::from([key(1)]))]));
}

/// One side of a pair saw the other go and come back; the other side saw nothing.
#[test]
fn owner_that_alone_saw_a_holder_flap_is_told_everything_again_soon() {
    let mut net = Net::settled(100);
    net.hold(peer(1), key(1));
    net.run(millis(100));
    let owner = *net.owners(key(1)).iter().find(|owner| **owner != peer(1)).expect("three are more");
    net.with(owner, |directory, now| {
        directory.member_down(now, peer(1));
        directory.member_up(now, peer(1), None);
    });
    net.run(secs(2));
    let mirror = &net.mirrors[&owner];
    assert_eq!(mirror.directory.ledger.keys_of(&peer(1)), [key(1)]);
    assert_eq!(mirror.directory.report().holders_incomplete, 0);
}

#[test]
fn member_that_moved_is_named_all_the_while() {
    let mut net = Net::settled(8);
    net.hold(peer(1), key(1));
    net.run(millis(100));
    let others: Vec<_> = net.names().into_iter().filter(|name| *name != peer(1)).collect();
    for name in &others {
        net.with(*name, |directory, now| directory.member_changed(now, peer(1), None));
    }
    for name in others {
        let (holders, outcome, _) = net.find(name, key(1));
        assert_eq!((holders, outcome), (vec![peer(1)], Outcome::Definitive));
        assert_eq!(net.find(name, key(2)).1, Outcome::Definitive);
    }
}

#[test]
fn owner_that_restarted_unseen_is_told_everything_again() {
    let mut net = Net::settled(8);
    let owned = (0..).map(key).find(|key| net.owners(*key).contains(&peer(1))).expect("one of them is");
    net.hold(peer(2), owned);
    net.run(millis(100));
    net.with(peer(1), |directory, _| {
        directory.ledger.member_down(peer(2));
        directory.ledger.member_up(peer(2), None);
    });
    net.with(peer(2), |directory, now| directory.member_changed(now, peer(1), None));
    net.run(millis(50));
    assert_eq!(net.mirrors[&peer(1)].directory.ledger.keys_of(&peer(2)), [owned]);
}

#[test]
fn leaving_node_is_not_named_and_announces_nothing_more() {
    let mut net = Net::settled(6);
    (0..20).for_each(|number| net.hold(peer(1), key(number)));
    net.run(millis(100));
    net.with(peer(1), |directory, now| {
        directory.leave(now, 1);
        directory.leave(now, 1);
        directory.hold(now, key(99));
        directory.member_up(now, peer(50), None);
        assert!(directory.goodbyes_in_flight() > 0);
    });
    net.run(millis(20));
    assert_eq!(net.mirrors[&peer(1)].directory.goodbyes_in_flight(), 0);
    for name in net.names().into_iter().filter(|name| *name != peer(1)) {
        for number in 0..20 {
            assert_eq!(net.find(name, key(number)).0, []);
        }
    }
    let sent = net.requests_sent[&peer(1)];
    net.run(secs(30));
    assert_eq!(net.requests_sent[&peer(1)], sent);
}

#[test]
fn idle_node_sends_the_same_in_small_and_large_clusters() {
    let sent_in_a_minute = |count| {
        let mut net = Net::settled(count);
        net.requests_sent.clear();
        net.run(secs(60));
        (net.requests_sent.values().copied().min(), net.requests_sent.values().copied().max())
    };
    for count in [10, 100] {
        let (least, most) = sent_in_a_minute(count);
        assert!(least >= Some(6) && most <= Some(12), "{count}: {least:?} to {most:?}");
    }
}

#[test]
fn cluster_that_starts_all_at_once_is_paced_and_soon_knows_all() {
    let mut net = Net::new(1);
    for number in 0..100 {
        net.start(peer(number));
        for item in 0..20 {
            net.hold(peer(number), key(usize::from(number) * 7 + item));
        }
    }
    net.run(secs(4));
    for (name, mirror) in &net.mirrors {
        let report = mirror.directory.report();
        assert_eq!((report.holders_incomplete, report.owners_unsynced), (0, 0), "{name}: {report:?}");
    }
    assert!(net.requests_sent.values().all(|sent| *sent < 400), "{:?}", net.requests_sent.values().max());
}

#[test]
fn thousand_members_and_ten_thousand_keys_are_fine() {
    let start = crate::test_time::start();
    let mut directory = Directory::new(peer(0), None, 1, RESOLVE_TIMEOUT);
    directory.set_view_complete(true);
    for number in 0..10_000 {
        directory.hold(start, key(number));
    }
    for number in 1..1000 {
        directory.member_up(start, peer(number), None);
    }
    // Nothing is sent faster than it should be, and each owner is greeted once.
    let (mut now, mut sent, mut keys) = (start, 0, 0);
    while let Some(at) = directory.poll_timeout().filter(|at| *at < start + secs(30)) {
        now = now.max(at);
        directory.handle_timeout(now);
        while let Some(event) = directory.poll_event() {
            let Event::Send { exchange, request: Request::Announce(announce), .. } = event else { continue };
            sent += 1;
            keys += announce.add.len();
            directory.on_reply(now, exchange, Reply::Announced { synced: true });
        }
        assert!(sent <= 64 + (now - start).as_millis() / 5 + 2 * (now - start).as_millis() / 1000 + 2);
    }
    assert!(sent >= 999, "{sent}");
    let own = directory.report().entries_owned;
    assert_eq!(keys + own, 30_000);
    // One death moves no more than what the dead owned.
    directory.member_down(now, peer(500));
    keys = 0;
    while let Some(at) = directory.poll_timeout().filter(|at| *at < now + secs(2)) {
        directory.handle_timeout(at);
        while let Some(event) = directory.poll_event() {
            let Event::Send { exchange, request: Request::Announce(announce), .. } = event else { continue };
            keys += announce.add.len() + announce.remove.len();
            directory.on_reply(at, exchange, Reply::Announced { synced: true });
        }
    }
    assert!((5..80).contains(&keys), "{keys}");
}

#[test]
fn strangers_and_nonsense_change_nothing() {
    let mut net = Net::settled(3);
    net.with(peer(0), |directory, now| {
        directory.hold(now, key(2));
        let mut announce = Announce { add: vec![key(1)], complete: true, ..Announce::default() };
        announce.holds.add(&key(1));
        let reply = directory.on_announce(now, peer(99), &announce);
        assert_eq!(reply, Reply::Announced { synced: false });
        directory.on_goodbye(now, peer(99));
        directory.on_goodbye(now, peer(0));
        directory.member_down(now, peer(99));
        directory.member_down(now, peer(0));
        directory.member_up(now, peer(0), None);
        directory.on_reply(now, 123_456, Reply::Ack);
        directory.on_failed(now, 123_456);
        let done = directory.lookup(now, key(5));
        directory.cancel_lookup(done);
        directory.cancel_lookup(done);
        assert_eq!(directory.report().members, 3);
        assert_eq!(directory.report().entries_owned, 1, "what it holds itself");
    });
}

#[test]
fn reply_that_does_not_fit_is_a_failure_and_useless_holders_are_dropped() {
    let start = crate::test_time::start();
    let mut directory = Directory::new(peer(0), None, 1, RESOLVE_TIMEOUT);
    directory.set_view_complete(true);
    (1..6).for_each(|number| directory.member_up(start, peer(number), None));
    let foreign =
        (0..).map(key).find(|key| !directory.roster.owners(key).contains(&peer(0))).expect("it owns not all");
    let ask = |directory: &mut Directory| {
        directory.lookup(start, foreign);
        let event = directory.poll_event();
        let Some(Event::Send { exchange, .. }) = event else { panic!("{event:?}") };
        exchange
    };
    let exchange = ask(&mut directory);
    directory.on_reply(start, exchange, Reply::Unsupported);
    let next = directory.poll_event();
    assert!(matches!(next, Some(Event::Send { request: Request::Lookup { .. }, .. })), "{next:?}");

    let exchange = ask(&mut directory);
    let holders = vec![peer(0), peer(77), peer(3), peer(3), peer(4)];
    directory.on_reply(start, exchange, Reply::Found { holders, knows: true });
    let answer = directory.poll_event();
    let Some(Event::Answered { holders, outcome, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!((holders, outcome), (vec![peer(3), peer(4)], Outcome::Definitive));

    // Only strangers: not "nobody", so the next owner is asked.
    let exchange = ask(&mut directory);
    directory.on_reply(start, exchange, Reply::Found { holders: vec![peer(77)], knows: true });
    let next = directory.poll_event();
    assert!(matches!(next, Some(Event::Send { .. })), "{next:?}");
}

#[derive(Clone, Debug)]
enum Op {
    Hold(u16, usize),
    Release(u16, usize),
    Kill(u16),
    Start(u16),
    Loss(usize),
    CutOff(u16),
    Find(u16, usize),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let (node, item) = (0_u16..7, 0_usize..25);
    prop_oneof![
        6 => (node.clone(), item.clone()).prop_map(|(node, item)| Op::Hold(node, item)),
        3 => (node.clone(), item.clone()).prop_map(|(node, item)| Op::Release(node, item)),
        1 => node.clone().prop_map(Op::Kill),
        2 => node.clone().prop_map(Op::Start),
        1 => (0_usize..60).prop_map(Op::Loss),
        1 => node.clone().prop_map(Op::CutOff),
        2 => (node, item).prop_map(|(node, item)| Op::Find(node, item)),
        4 => (1_u64..3000).prop_map(Op::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever happens, once it has stopped happening owners believe what is held, and nothing else.
    #[test]
    fn owners_believe_what_is_held_after_any_churn(seed in any::<u64>(), ops in proptest::collection::vec(op(), 1..80)) {
        let mut net = Net::new(seed);
        net.lag_ms = 1500;
        let mut held: BTreeMap<PeerId, BTreeSet<Key>> = BTreeMap::new();
        for number in 0..4 {
            net.start(peer(number));
            held.insert(peer(number), BTreeSet::new());
        }
        for op in ops {
            match op {
                Op::Hold(node, item) => {
                    if let Some(held) = held.get_mut(&peer(node)) {
                        held.insert(key(item));
                        net.hold(peer(node), key(item));
                    }
                }
                Op::Release(node, item) => {
                    if let Some(held) = held.get_mut(&peer(node)) {
                        held.remove(&key(item));
                        net.with(peer(node), |directory, now| directory.release(now, key(item)));
                    }
                }
                Op::Kill(node) => {
                    held.remove(&peer(node));
                    net.kill(peer(node));
                }
                Op::Start(node) => {
                    // A restart, if it lives: what it held is held no more.
                    held.insert(peer(node), BTreeSet::new());
                    net.start(peer(node));
                }
                Op::Loss(percent) => net.loss_percent = percent,
                Op::CutOff(node) => drop(net.cut_off.insert(peer(node))),
                Op::Find(node, item) => drop(net.with(peer(node), |directory, now| directory.lookup(now, key(item)))),
                Op::Wait(duration) => net.run(millis(duration)),
            }
        }
        net.loss_percent = 0;
        net.cut_off.clear();
        net.run(secs(60));
        net.assert_agreed(&held);
        for mirror in net.mirrors.values() {
            prop_assert_eq!(mirror.directory.report().lookups_in_flight, 0);
            prop_assert!(mirror.directory.exchanges.len() <= 7);
        }
        // And everybody finds exactly the others that have it.
        for name in net.names() {
            for item in 0..25 {
                let (mut found, outcome, _) = net.find(name, key(item));
                found.sort();
                let expected: Vec<_> =
                    held.iter().filter(|(holder, held)| **holder != name && held.contains(&key(item))).map(|(holder, _)| *holder).collect();
                prop_assert_eq!(found, expected);
                prop_assert_eq!(outcome, Outcome::Definitive);
            }
        }
    }

    #[test]
    fn same_seed_same_messages(seed in any::<u64>()) {
        let run = || {
            let mut net = Net::new(seed);
            net.loss_percent = 20;
            for number in 0..5 {
                net.start(peer(number));
                net.hold(peer(number), key(number.into()));
            }
            net.run(secs(10));
            (net.requests_sent, net.sequence)
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn node_that_does_not_know_all_members_rules_out_nobody() {
    let now = crate::test_time::start();
    let mut directory = Directory::new(peer(0), None, 1, RESOLVE_TIMEOUT);
    let answer = |directory: &mut Directory| {
        directory.lookup(now, Key::of("nobody has it"));
        let answers = std::iter::from_fn(|| directory.poll_event());
        let mut outcomes = answers.filter_map(|event| match event {
            Event::Answered { outcome, .. } => Some(outcome),
            Event::Send { .. } => None,
        });
        outcomes.next()
    };
    assert_eq!(answer(&mut directory), Some(Outcome::Unanswered));
    directory.set_view_complete(true);
    assert_eq!(answer(&mut directory), Some(Outcome::Definitive));
    directory.member_up(now, peer(1), None);
    let complete = Announce { reset: true, complete: true, ..Announce::default() };
    directory.on_announce(now, peer(1), &complete);
    assert_eq!(answer(&mut directory), Some(Outcome::Definitive), "of two, both own everything");
    directory.set_view_complete(false);
    assert_ne!(answer(&mut directory), Some(Outcome::Definitive));
    let reply = directory.on_lookup(now, peer(1), Key::of("nobody has it"));
    assert_eq!(reply, Reply::Found { holders: Vec::new(), knows: false });
}
