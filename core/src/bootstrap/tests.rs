use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const TICK: Duration = Duration::from_nanos(1);

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

const ME: u8 = 0;

fn addr(number: u16) -> SocketAddr {
    ([10, 0, (number >> 8) as u8, number as u8], 5001).into()
}

fn answer(numbers: impl IntoIterator<Item = u16>) -> Vec<BootstrapAddr> {
    numbers.into_iter().map(|n| BootstrapAddr { addr: addr(n), peer: None }).collect()
}

/// A machine, its clock, and what it did.
struct World {
    bootstrap: Bootstrap,
    now: Instant,
    start: Instant,
    attempts: Vec<Duration>,
    dials: Vec<(Duration, SocketAddr)>,
    joins: Vec<PeerId>,
    notices: Vec<Notice>,
}

impl World {
    fn new(seed: u64) -> Self {
        let start = crate::test_time::start();
        Self {
            bootstrap: Bootstrap::new(peer(ME), seed),
            now: start,
            start,
            attempts: Vec::new(),
            dials: Vec::new(),
            joins: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// Runs for `time`; `resolve` answers questions, `dial` says who is at an address.
    fn run(
        &mut self,
        time: Duration,
        mut resolve: impl FnMut() -> Result<Vec<BootstrapAddr>, &'static str>,
        mut dial: impl FnMut(SocketAddr) -> Option<PeerId>,
    ) {
        let end = self.now + time;
        loop {
            let at = self.now - self.start;
            while let Some(event) = self.bootstrap.poll_event() {
                match event {
                    Event::Resolve => {
                        self.attempts.push(at);
                        match resolve() {
                            Ok(addrs) => self.bootstrap.on_resolved(self.now, addrs),
                            Err(cause) => self.bootstrap.on_failed(self.now, cause),
                        }
                    }
                    Event::Dial { addr, timeout, .. } => {
                        assert_eq!(timeout, DIAL_TIMEOUT);
                        self.dials.push((at, addr));
                        match dial(addr) {
                            Some(peer) => self.bootstrap.on_dialed(self.now, addr, peer),
                            None => self.bootstrap.on_dial_failed(self.now, addr),
                        }
                    }
                    Event::Join { peer, .. } => self.joins.push(peer),
                    Event::Notice(notice) => self.notices.push(notice),
                }
            }
            match self.bootstrap.poll_timeout().filter(|at| *at <= end) {
                Some(at) => self.now = self.now.max(at),
                None => break,
            }
            self.bootstrap.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn drain(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.bootstrap.poll_event()).collect()
    }
}

fn assert_paced(attempts: &[Duration]) {
    for (i, from) in attempts.iter().enumerate() {
        for (count, to) in attempts[i..].iter().enumerate() {
            let tokens = QUICK_ATTEMPTS as u64 + (*to - *from).as_secs() / ATTEMPT_INTERVAL.as_secs();
            assert!((count as u64) < tokens, "{count} attempts from {from:?} to {to:?}");
        }
    }
}

#[test]
fn nothing_happens_before_the_start_and_asking_begins_at_once() {
    let mut world = World::new(1);
    let now = world.now;
    world.bootstrap.handle_timeout(now);
    world.bootstrap.on_members(now, 0);
    world.bootstrap.on_members(now, 1);
    world.bootstrap.on_members(now, 0);
    assert_eq!(world.bootstrap.poll_timeout(), None);
    world.bootstrap.start(now);
    world.bootstrap.start(now);
    assert_eq!(world.drain(), [Event::Resolve]);
}

#[test]
fn virtual_address_that_always_leads_home_is_asked_for_within_the_pace() {
    for seed in 0..8 {
        let mut world = World::new(seed);
        world.bootstrap.start(world.now);
        world.run(HOUR, || Ok(answer([1])), |_| Some(peer(ME)));
        assert!(world.attempts.len() <= 70, "{}", world.attempts.len());
        assert!(world.attempts.len() >= 40, "{}", world.attempts.len());
        assert_paced(&world.attempts);
        assert_paced(&world.dials.iter().map(|(at, _)| *at).collect::<Vec<_>>());
        assert!(world.dials.len() >= 30, "{}", world.dials.len());
        assert_eq!(world.notices, [Notice::BootstrapIsSelf { addr: addr(1) }]);
        assert_eq!(world.joins, []);
    }
}

/// Whom a node has joined by a virtual address that led home five times before it led elsewhere.
fn joined_behind_home(time: Duration) -> Option<PeerId> {
    let mut world = World::new(1);
    let mut dials = 0;
    world.bootstrap.start(world.now);
    world.run(
        time,
        || Ok(answer([1])),
        |_| {
            dials += 1;
            Some(if dials < 6 { peer(ME) } else { peer(2) })
        },
    );
    world.joins.first().copied()
}

#[test]
fn virtual_address_that_sometimes_leads_home_is_joined_by() {
    assert_eq!(joined_behind_home(HOUR), Some(peer(2)));
}

#[test]
fn virtual_address_that_led_home_is_tried_again_quickly() {
    assert_eq!(joined_behind_home(ATTEMPT_INTERVAL), Some(peer(2)));
}

#[test]
fn half_of_a_cluster_looks_behind_the_virtual_address_that_led_home() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    world.run(Duration::from_secs(1), || Ok(answer([1])), |_| Some(peer(ME)));
    let dialled = world.dials.len();
    world.bootstrap.on_members(world.now, 1);
    world.run(RECHECK_INTERVAL, || Ok(answer([1])), |_| Some(peer(2)));
    assert!(world.dials.len() > dialled);
    assert!(!world.joins.is_empty());
}

#[test]
fn own_address_among_others_is_not_dialled_again_for_a_while() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    let own = addr(1);
    world.run(HOUR, || Ok(answer([1, 2])), |at| (at == own).then_some(peer(ME)));
    let own_dials: Vec<_> = world.dials.iter().filter(|(_, at)| *at == own).map(|(at, _)| *at).collect();
    assert!(own_dials.windows(2).all(|w| w[1] - w[0] >= SELF_MEMORY), "{own_dials:?}");
    assert!(own_dials.len() >= 4, "forgets in the end: {own_dials:?}");
    assert_eq!(world.notices.len(), own_dials.len());
}

#[test]
fn own_address_is_forgotten_exactly_at_the_end_of_its_memory() {
    let mut world = World::new(1);
    let found = world.now;
    world.bootstrap.remember_self(found, addr(1));
    world.bootstrap.answer = BTreeMap::from([(addr(1), None), (addr(2), None)]);
    world.bootstrap.begin_dials(found + SELF_MEMORY - TICK);
    assert!(!world.bootstrap.dials.contains_key(&addr(1)));
    world.bootstrap.begin_dials(found + SELF_MEMORY);
    assert!(world.bootstrap.dials.contains_key(&addr(1)));
}

#[test]
fn address_that_names_this_node_is_never_dialled() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    let own = BootstrapAddr { addr: addr(1), peer: Some(peer(ME)) };
    world.run(HOUR, || Ok(vec![own]), |_| Some(peer(ME)));
    assert_eq!(world.dials, []);
    assert!(world.attempts.len() <= 70);
}

#[test]
fn failing_bootstrapper_is_told_once_per_outage_and_asked_within_the_pace() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    world.run(HOUR, || Err("no such host"), |_| None);
    assert!(world.attempts.len() <= 70, "{}", world.attempts.len());
    assert_paced(&world.attempts);
    let told = Notice::BootstrapFailed { cause: "no such host".to_owned() };
    assert_eq!(world.notices, std::slice::from_ref(&told));
    world.run(HOUR, || Ok(answer([1])), |_| None);
    assert_eq!(world.notices.len(), 1);
    world.run(HOUR, || Err("no such host"), |_| None);
    assert_eq!(world.notices, [told.clone(), told]);
}

#[test]
fn answer_without_addresses_is_a_failure() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    let useless = ["0.0.0.0:5001", "224.0.0.1:5001", "10.0.0.1:0"];
    let useless = useless.map(|text| BootstrapAddr { addr: text.parse().expect("is one"), peer: None });
    world.run(HOUR, || Ok(useless.to_vec()), |_| None);
    assert_eq!(world.dials, []);
    assert!(matches!(world.notices[..], [Notice::BootstrapFailed { .. }]));
}

#[test]
fn last_good_answer_is_used_while_the_bootstrapper_fails() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    let mut asked = 0;
    world.run(
        HOUR,
        || {
            asked += 1;
            if asked == 1 { Ok(answer([1])) } else { Err("no such host") }
        },
        |_| None,
    );
    assert_eq!(world.dials.len(), world.attempts.len());
}

#[test]
fn lost_answers_count_as_failed_at_their_deadline() {
    let mut world = World::new(1);
    let start = world.now;
    world.bootstrap.start(start);
    world.drain();
    assert_eq!(world.bootstrap.poll_timeout(), Some(start + RESOLVE_TIMEOUT + ANSWER_GRACE));
    world.bootstrap.handle_timeout(start + RESOLVE_TIMEOUT + ANSWER_GRACE - TICK);
    assert_eq!(world.drain(), []);
    let now = start + RESOLVE_TIMEOUT + ANSWER_GRACE;
    world.bootstrap.handle_timeout(now);
    assert!(matches!(world.drain()[..], [Event::Notice(Notice::BootstrapFailed { .. })]));
    world.bootstrap.on_resolved(now, answer([1]));
    assert_eq!(world.drain(), [], "too late");
    let now = world.bootstrap.poll_timeout().expect("goes on");
    assert!(now <= start + RESOLVE_TIMEOUT + ANSWER_GRACE + QUICK_FIRST);
    world.bootstrap.handle_timeout(now);
    world.bootstrap.on_resolved(now, answer([1]));
    assert_eq!(world.drain().len(), 2);
    let lost_at = world.bootstrap.poll_timeout().expect("a dial is out");
    assert_eq!(lost_at, now + DIAL_TIMEOUT + ANSWER_GRACE);
    world.bootstrap.handle_timeout(lost_at);
    world.bootstrap.on_dialed(lost_at, addr(1), peer(2));
    assert_eq!(world.drain(), [], "too late");
    assert!(world.bootstrap.poll_timeout().is_some_and(|at| at > lost_at));
}

#[test]
fn answers_that_nobody_asked_for_are_ignored() {
    let mut world = World::new(1);
    let now = world.now;
    world.bootstrap.on_resolved(now, answer([1]));
    world.bootstrap.on_failed(now, "?");
    world.bootstrap.on_dialed(now, addr(1), peer(1));
    world.bootstrap.on_dialed(now, addr(1), peer(ME));
    world.bootstrap.on_dial_failed(now, addr(1));
    assert_eq!(world.drain(), []);
    assert_eq!(world.bootstrap.poll_timeout(), None);
}

#[test]
fn nodes_of_a_cluster_dial_different_addresses() {
    let mut dialled = BTreeSet::new();
    for seed in 0..50 {
        let mut world = World::new(seed);
        world.bootstrap.start(world.now);
        world.run(Duration::ZERO, || Ok(answer(0..200)), |_| Some(peer(9)));
        assert_eq!(world.dials.len(), DIALS_MAX);
        dialled.extend(world.dials.iter().map(|(_, addr)| *addr));
    }
    assert!(dialled.len() > 100, "{}", dialled.len());
}

#[test]
fn addresses_that_failed_are_tried_after_those_that_did_not() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    world.run(Duration::from_secs(2), || Ok(answer(0..12)), |_| None);
    assert!(world.attempts.len() >= 3);
    let first: BTreeSet<_> = world.dials.iter().take(12).map(|(_, addr)| *addr).collect();
    assert_eq!(first.len(), 12);
    assert!(world.dials.len() > 12, "a last resort is better than none");
}

/// Of a thousand addresses ten are of nodes of the cluster.
#[test]
fn few_true_addresses_among_many_dead_ones_are_found() {
    for seed in 0..16 {
        let mut world = World::new(seed);
        world.bootstrap.start(world.now);
        let is_true = |at: SocketAddr| (0..10).any(|n| at == addr(n * 100));
        let first_join = |world: &World| world.joins.first().copied();
        let mut minutes = 0;
        while first_join(&world).is_none() {
            minutes += 1;
            assert!(minutes <= 20, "not found after {minutes} min, seed {seed}");
            world.run(Duration::from_secs(60), || Ok(answer(0..1000)), |at| is_true(at).then_some(peer(1)));
        }
    }
}

/// Strangers answer, but never let this node in; they must not keep it from those who would.
#[test]
fn nodes_that_do_not_let_this_one_in_are_tried_after_others() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    world.run(
        QUICK_FIRST * 8,
        || Ok(answer(0..12)),
        |at| Some(if at == addr(11) { peer(2) } else { peer(1) }),
    );
    let first: BTreeSet<_> = world.dials.iter().take(12).map(|(_, addr)| *addr).collect();
    assert_eq!(first.len(), 12, "{:?}", world.dials);
}

#[test]
fn dials_are_bounded_whatever_the_list_says() {
    for members in [0, 5] {
        let mut world = World::new(1);
        world.bootstrap.start(world.now);
        world.bootstrap.on_members(world.now, members);
        let mut asked = 0;
        // Another thousand addresses in each answer.
        let resolve = || {
            asked += 1;
            Ok(answer((0..1000).map(|n| n + asked * 1000)))
        };
        world.run(HOUR, resolve, |_| None);
        let (attempts, dials) = (world.attempts.len(), world.dials.len());
        assert!(dials <= attempts * ATTEMPT_DIALS_MAX, "{dials} dials in {attempts} attempts");
        assert!(attempts <= if members > 0 { 19 } else { 70 }, "{attempts}");
    }
}

#[test]
fn address_under_two_names_is_dialled_for_whoever_is_there() {
    let mut world = World::new(1);
    let now = world.now;
    world.bootstrap.start(now);
    world.drain();
    let named = |number, name| BootstrapAddr { addr: addr(number), peer: Some(peer(name)) };
    world.bootstrap.on_resolved(now, vec![named(1, 7), named(1, ME), named(2, 8), named(2, 8)]);
    let dials = world.drain().into_iter().filter_map(|event| match event {
        Event::Dial { addr, peer, .. } => Some((addr, peer)),
        Event::Resolve | Event::Join { .. } | Event::Notice(_) => None,
    });
    assert_eq!(
        dials.collect::<BTreeMap<_, _>>(),
        BTreeMap::from([(addr(1), None), (addr(2), Some(peer(8)))])
    );
}

#[test]
fn answer_and_memories_are_bounded() {
    let mut world = World::new(1);
    let now = world.now;
    world.bootstrap.start(now);
    world.run(Duration::ZERO, || Ok(answer(0..5000)), |_| None);
    assert_eq!(world.bootstrap.answer.len(), ADDRS_MAX);
    assert!(world.bootstrap.answer.keys().any(|kept| *kept > addr(4000)), "not the first ones");
    for number in 0..2 * SELVES_MAX as u16 {
        world.bootstrap.remember_self(now + TICK * u32::from(number), addr(number));
    }
    assert_eq!(world.bootstrap.selves.len(), SELVES_MAX);
    assert!(!world.bootstrap.selves.contains_key(&addr(0)));
}

#[test]
fn node_with_members_looks_again_now_and_then() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    world.run(Duration::ZERO, || Ok(answer(0..50)), |_| Some(peer(9)));
    world.bootstrap.on_members(world.now, 1);
    world.bootstrap.on_members(world.now, 49);
    world.dials.clear();
    world.run(HOUR, || Ok(answer(0..50)), |_| Some(peer(9)));
    let rechecks = world.attempts.len() - 1;
    // Half a minute, one, two and four; then six and a half; half of these at least.
    assert!((11..=25).contains(&rechecks), "{rechecks}");
    let soon = world.attempts.iter().filter(|at| **at <= world.attempts[0] + RECHECK_FIRST * 7).count() - 1;
    assert_eq!(soon, 3, "{:?}", world.attempts);
    assert!(world.dials.len() <= rechecks * RECHECK_DIALS_MAX);
    assert!(world.dials.len() >= rechecks);
}

#[test]
fn what_a_changing_list_says_again_is_dialled_first() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    let mut lies = 10..;
    let mut list = || {
        let entries: Vec<_> = lies.by_ref().take(100).collect();
        Ok(answer([1].into_iter().chain(entries)))
    };
    world.run(HOUR, &mut list, |_| None);
    let of_attempt = |at: Duration| -> Vec<_> {
        world.dials.iter().filter(|(dialled_at, _)| *dialled_at == at).map(|(_, addr)| *addr).collect()
    };
    let (first, second) = (of_attempt(world.attempts[0]), of_attempt(world.attempts[1]));
    assert_eq!(first.len(), ATTEMPT_DIALS_MAX);
    assert!(!first.contains(&addr(1)), "this seed dials it at once: take another");
    assert_eq!(second[0], addr(1), "{second:?}");
}

#[test]
fn node_that_lost_all_members_asks_again_soon() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    world.run(Duration::ZERO, || Ok(answer([1])), |_| Some(peer(1)));
    world.bootstrap.on_members(world.now, 1);
    world.run(HOUR, || Ok(answer([1])), |_| Some(peer(1)));
    let before = world.attempts.len();
    world.bootstrap.on_members(world.now, 0);
    world.run(QUICK_FIRST, || Ok(answer([1])), |_| None);
    assert_eq!(world.attempts.len(), before + 1);
}

#[test]
fn membership_that_flaps_does_not_quicken_the_pace() {
    let mut world = World::new(1);
    world.bootstrap.start(world.now);
    for round in 0..3600 {
        world.bootstrap.on_members(world.now, round % 2);
        world.run(Duration::from_secs(1), || Ok(answer([1])), |_| Some(peer(1)));
    }
    assert!(world.attempts.len() <= 70, "{}", world.attempts.len());
    assert_paced(&world.attempts);
}

#[test]
fn same_seed_same_attempts() {
    let run = |seed| {
        let mut world = World::new(seed);
        world.bootstrap.start(world.now);
        world.run(HOUR, || Ok(answer(0..20)), |_| None);
        (world.attempts, world.dials)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

proptest! {
    #[test]
    fn pace_and_bounds_hold_whatever_happens(
        steps in proptest::collection::vec((0_u64..40_000, 0_u8..7, 0_u16..12), 1..200)
    ) {
        let mut world = World::new(1);
        world.bootstrap.start(world.now);
        for (wait_ms, what, number) in steps {
            world.now += Duration::from_millis(wait_ms);
            let now = world.now;
            let machine = &mut world.bootstrap;
            match what {
                0 => machine.on_resolved(now, answer(0..number)),
                1 => machine.on_failed(now, "no"),
                2 => machine.on_dialed(now, addr(number), peer(ME)),
                3 => machine.on_dialed(now, addr(number), peer(1)),
                4 => machine.on_dial_failed(now, addr(number)),
                5 => machine.on_members(now, usize::from(number) / 6),
                _ => machine.start(now),
            }
            machine.handle_timeout(now);
            prop_assert!(machine.poll_timeout().is_some_and(|at| at > now), "never idle, never busy");
            prop_assert!(machine.dials.len() <= DIALS_MAX);
            for event in world.drain() {
                if event == Event::Resolve {
                    world.attempts.push(now - world.start);
                }
            }
        }
        assert_paced(&world.attempts);
    }
}
