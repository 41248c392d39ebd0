//! A cluster of machines in memory: virtual time, latency, and links that can be cut.

mod model;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use minicbor::Encoder;
use proptest::prelude::*;

use super::{codec::ANNOUNCE, view::CATCH_UP_MAX, *};
use crate::{
    Reply, Request, Zone,
    message::{Compared, Fingerprint},
    rng::Rng,
};

const LATENCY: Duration = Duration::from_millis(2);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn peer(number: usize) -> PeerId {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key[31] = 1;
    PeerId::from_public_key(key)
}

fn member(number: usize, generation: u64) -> Member {
    Member {
        peer: peer(number),
        generation,
        addrs: [IpAddr::from([10, 0, (number >> 8) as u8, number as u8])].into(),
        router_port: 5001,
        registry_port: 5000,
        zone: Zone::new("zone-a"),
    }
}

enum Parcel {
    Message { from: usize, packet: Vec<u8> },
    Reply { from: usize, packet: Vec<u8> },
    Compare { from: usize, view: Fingerprint, after: Option<PeerId> },
    Compared { from: usize, compared: Compared },
}

struct Cluster {
    now: Instant,
    nodes: Vec<Option<Membership>>,
    /// Frozen nodes get packets and timers when they thaw.
    frozen: BTreeSet<usize>,
    /// Nodes in different groups cannot reach each other.
    group: Vec<usize>,
    numbers: BTreeMap<PeerId, usize>,
    wire: BTreeMap<(Instant, u64), (usize, Parcel)>,
    /// When each node wants to be called, and the same by time.
    wakes: Vec<Option<Instant>>,
    wake_queue: BTreeSet<(Instant, usize)>,
    sent: u64,
    sent_bytes: u64,
    log: Vec<(Instant, usize, Event)>,
}

const GENERATION: u64 = 1_700_000_000_000;

impl Cluster {
    fn new(count: usize, seed: u64) -> Self {
        let node = |i| Some(Membership::new(member(i, GENERATION), seed.wrapping_mul(1000) + i as u64));
        Self {
            now: crate::test_time::start(),
            nodes: (0..count).map(node).collect(),
            frozen: BTreeSet::new(),
            group: vec![0; count],
            numbers: (0..count).map(|i| (peer(i), i)).collect(),
            wire: BTreeMap::new(),
            wakes: vec![None; count],
            wake_queue: BTreeSet::new(),
            sent: 0,
            sent_bytes: 0,
            log: Vec::new(),
        }
    }

    /// A cluster whose nodes all joined by node 0 and know each other.
    fn formed(count: usize, seed: u64) -> Self {
        let mut cluster = Self::new(count, seed);
        (1..count).for_each(|i| cluster.join(i, 0));
        assert!(cluster.run_until(secs(60), Self::complete), "not formed");
        cluster.run(secs(5));
        cluster.log.clear();
        cluster
    }

    fn node(&mut self, i: usize) -> &mut Membership {
        self.nodes[i].as_mut().expect("is alive")
    }

    fn join(&mut self, i: usize, by: usize) {
        let now = self.now;
        self.node(i).join(now, peer(by), member(by, 0).router_addrs()[0]);
        self.drain(i);
    }

    fn kill(&mut self, i: usize) {
        self.nodes[i] = None;
        self.drain(i);
    }

    fn restart(&mut self, i: usize, generation: u64, by: usize) {
        self.nodes[i] = Some(Membership::new(member(i, generation), generation ^ i as u64));
        self.join(i, by);
    }

    fn drain(&mut self, i: usize) {
        while let Some(event) = self.nodes[i].as_mut().and_then(Membership::poll_event) {
            match event {
                Event::Send { to, packet, .. } => {
                    self.post(i, self.numbers[&to], Parcel::Message { from: i, packet });
                }
                Event::Compare { to, view, after, .. } => {
                    self.post(i, self.numbers[&to], Parcel::Compare { from: i, view, after });
                }
                event @ (Event::Up(_) | Event::Changed(_) | Event::Down(_)) => {
                    self.log.push((self.now, i, event));
                }
            }
        }
        let wake = self.nodes[i].as_ref().and_then(Membership::poll_timeout);
        if let Some(at) = std::mem::replace(&mut self.wakes[i], wake) {
            self.wake_queue.remove(&(at, i));
        }
        self.wake_queue.extend(wake.map(|at| (at, i)));
    }

    fn post(&mut self, from: usize, to: usize, parcel: Parcel) {
        let size = match &parcel {
            Parcel::Message { packet, .. } | Parcel::Reply { packet, .. } => packet.len(),
            Parcel::Compare { view, after, .. } => {
                Request::Compare { view: *view, after: *after }.encode().len()
            }
            Parcel::Compared { compared, .. } => Reply::Compared(compared.clone()).encode().len(),
        };
        assert!(size <= PACKET_SIZE_MAX);
        self.sent += 1;
        self.sent_bytes += size as u64;
        if self.group[from] == self.group[to] {
            self.wire.insert((self.now + LATENCY, self.sent), (to, parcel));
        }
    }

    /// Does the next thing; false if there is none until `end`.
    fn step(&mut self, end: Instant) -> bool {
        let timer = self.wake_queue.iter().find(|(_, i)| !self.frozen.contains(i)).copied();
        let parcel = self.wire.keys().next().copied();
        let at = timer.map(|(at, _)| at).into_iter().chain(parcel.map(|(at, _)| at)).min();
        let Some(at) = at.filter(|at| *at <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(at);
        let now = self.now;
        if let Some(key) = parcel.filter(|(parcel_at, _)| *parcel_at == at) {
            let (to, parcel) = self.wire.remove(&key).expect("is its key");
            if self.frozen.contains(&to) {
                let later = now + millis(100);
                self.wire.insert((later, key.1), (to, parcel));
                return true;
            }
            let Some(node) = self.nodes[to].as_mut() else { return true };
            match parcel {
                Parcel::Message { from, packet } => {
                    let reply = node.on_message(now, peer(from), &packet).expect("is well formed");
                    if let Some(packet) = reply {
                        self.post(to, from, Parcel::Reply { from: to, packet });
                    }
                }
                Parcel::Reply { from, packet } => {
                    node.on_reply(now, peer(from), &packet).expect("is well formed");
                }
                Parcel::Compare { from, view, after } => {
                    let compared = node.on_compare(now, peer(from), view, after);
                    self.post(to, from, Parcel::Compared { from: to, compared });
                }
                Parcel::Compared { from, compared } => {
                    node.on_compared(now, peer(from), &compared).expect("is well formed");
                }
            }
            self.drain(to);
        } else if let Some((_, i)) = timer {
            self.node(i).handle_timeout(now);
            self.drain(i);
        }
        true
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }

    fn run_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + time;
        loop {
            // Looking at all members of all nodes after every packet would take most of the time.
            let pause = (self.now + millis(20)).min(end);
            while self.step(pause) {}
            if done(self) {
                return true;
            }
            if self.now >= end {
                return false;
            }
        }
    }

    /// Whether all nodes alive know exactly each other.
    fn complete(&self) -> bool {
        let alive: BTreeSet<_> =
            (0..self.nodes.len()).filter(|i| self.nodes[*i].is_some()).map(peer).collect();
        self.nodes.iter().flatten().all(|node| {
            node.len() + 1 == alive.len() && node.members().all(|known| alive.contains(&known.peer))
        })
    }

    fn downs(&self) -> Vec<(usize, usize)> {
        let down = |(_, i, event): &(Instant, usize, Event)| match event {
            Event::Down(peer) => Some((*i, self.numbers[peer])),
            Event::Send { .. } | Event::Compare { .. } | Event::Up(_) | Event::Changed(_) => None,
        };
        self.log.iter().filter_map(down).collect()
    }
}

#[test]
fn cluster_forms_from_one_seed() {
    for (count, bound) in [(2, millis(100)), (4, secs(1)), (5, secs(1)), (50, secs(4))] {
        for seed in 0..4 {
            let mut cluster = Cluster::new(count, seed);
            (1..count).for_each(|i| cluster.join(i, 0));
            assert!(cluster.run_until(bound, Cluster::complete), "{count} nodes, seed {seed}");
            cluster.run(secs(20));
            assert!(cluster.complete());
            assert_eq!(cluster.downs(), [], "{count} nodes, seed {seed}");
        }
    }
}

#[test]
fn nobody_knows_a_node_before_it_knows_its_own_addresses() {
    let mut cluster = Cluster::formed(3, 1);
    let nowhere = Member { addrs: [].into(), ..member(3, GENERATION) };
    cluster.nodes.push(Some(Membership::new(nowhere, 3)));
    cluster.group.push(0);
    cluster.wakes.push(None);
    cluster.numbers.insert(peer(3), 3);
    let started = cluster.now;
    cluster.node(3).wait_for_addrs(started);
    cluster.join(3, 0);
    cluster.run(millis(50));
    assert_eq!(cluster.log, []);
    let now = cluster.now;
    cluster.node(3).set_addrs(now, member(3, 0).addrs.to_vec());
    cluster.drain(3);
    assert!(cluster.run_until(secs(1), Cluster::complete), "{:?}", cluster.log);
    let known = cluster.log.iter().filter_map(|(_, _, event)| match event {
        Event::Up(member) | Event::Changed(member) => Some(member),
        Event::Send { .. } | Event::Compare { .. } | Event::Down(_) => None,
    });
    let nameless: Vec<_> = known.filter(|member| member.addrs.is_empty()).collect();
    assert!(nameless.is_empty(), "{nameless:?}");
}

#[test]
fn node_that_never_learns_its_addresses_joins_all_the_same() {
    let start = crate::test_time::start();
    let mut node = Membership::new(Member { addrs: [].into(), ..member(1, GENERATION) }, 1);
    node.wait_for_addrs(start);
    node.join(start, peer(2), member(2, 0).router_addrs()[0]);
    assert_eq!((node.poll_event(), node.poll_timeout()), (None, Some(start + ADDRS_WAIT)));
    node.handle_timeout(start + ADDRS_WAIT);
    assert!(matches!(node.poll_event(), Some(Event::Send { to, .. }) if to == peer(2)));
}

#[test]
fn newcomer_is_known_to_all_within_two_seconds() {
    let mut cluster = Cluster::new(4, 3);
    cluster.join(1, 0);
    cluster.join(2, 1);
    cluster.run(secs(10));
    cluster.join(3, 2);
    assert!(cluster.run_until(secs(2), Cluster::complete));
    assert_eq!(cluster.node(1).member(&peer(3)), Some(&member(3, GENERATION)));
}

#[test]
fn islands_of_a_cold_start_merge() {
    // Three seeds that do not know each other at first, each with a third of the cluster.
    let mut cluster = Cluster::new(60, 5);
    (3..60).for_each(|i| cluster.join(i, i % 3));
    cluster.run(secs(10));
    assert_eq!(cluster.node(0).len(), 19);
    cluster.join(1, 0);
    cluster.join(2, 0);
    assert!(cluster.run_until(secs(4), Cluster::complete));
    assert_eq!(cluster.downs(), []);
}

#[test]
fn probe_that_is_answered_in_time_needs_no_second_call() {
    let mut cluster = Cluster::formed(2, 1);
    let mut answers: Vec<Vec<u8>> = Vec::new();
    while answers.len() < 2 {
        let now = cluster.node(0).poll_timeout().expect("probes go on");
        cluster.node(0).handle_timeout(now);
        let Some(Event::Send { packet, .. }) = cluster.node(0).poll_event() else { continue };
        let answer = cluster.node(1).on_message(now, peer(0), &packet).expect("is well formed");
        let waits = |node: &Membership| node.poll_timeout().is_some_and(|at| at <= now + PROBE_RTT);
        assert!(waits(cluster.node(0)), "others are asked if there is no answer");
        if let Some(earlier) = answers.last() {
            cluster.node(0).on_reply(now, peer(1), earlier).expect("is well formed");
            assert!(waits(cluster.node(0)), "that was the answer to the probe before");
        }
        answers.extend(answer);
        cluster.node(0).on_reply(now, peer(1), &answers[answers.len() - 1]).expect("is well formed");
        assert!(!waits(cluster.node(0)), "nobody else has to be asked");
    }
}

#[test]
fn page_of_a_view_tells_of_a_later_life_and_of_no_earlier_one() {
    let mut cluster = Cluster::formed(3, 1);
    let now = cluster.now;
    for (told, known) in [(5, 5), (1, 5), (5, 5), (6, 6)] {
        let life = foca::Member::new(Id::new(member(2, GENERATION + told)), 0, State::Alive);
        let page = codec::encode_record(&life);
        let compared = Compared { agrees: false, complete: true, more: false, page };
        cluster.node(0).on_compared(now, peer(1), &compared).expect("is well formed");
        let generation = cluster.node(0).member(&peer(2)).expect("is a member").generation;
        assert_eq!(generation, GENERATION + known, "told of {told}");
    }
}

#[test]
fn suspect_of_a_large_cluster_has_longer_to_object() {
    let mut cluster = Cluster::formed(101, 1);
    cluster.kill(1);
    let died = cluster.now;
    assert!(cluster.run_until(secs(60), |cluster| !cluster.downs().is_empty()));
    assert!(cluster.now - died >= 2 * SUSPECT_TIME, "declared down {:?} after its death", cluster.now - died);
}

#[test]
fn silent_death_is_noticed_once_by_each() {
    // Mostly about four seconds; the bound is for the dead node nobody happens to probe at first.
    for (count, bound) in [(2, secs(5)), (5, secs(8)), (50, secs(9))] {
        for seed in 0..4 {
            let mut cluster = Cluster::formed(count, seed);
            // Until each has probed all once, all probe them in the order in which they joined.
            cluster.run(secs(count as u64));
            cluster.kill(1);
            let died = cluster.now;
            assert!(cluster.run_until(bound, Cluster::complete), "{count} nodes, seed {seed}");
            assert!(cluster.now - died > secs(2), "declared down without time to object");
            cluster.run(secs(30));
            let mut downs = cluster.downs();
            downs.sort_unstable();
            let expected: Vec<_> = (0..count).filter(|i| *i != 1).map(|i| (i, 1)).collect();
            assert_eq!(downs, expected, "{count} nodes, seed {seed}");
        }
    }
}

#[test]
fn silent_member_is_suspected_before_it_is_given_up() {
    let mut cluster = Cluster::formed(3, 1);
    let suspects = |cluster: &Cluster| {
        let node = cluster.nodes[0].as_ref().expect("it is alive");
        (node.suspected().collect::<Vec<_>>(), node.len())
    };
    assert_eq!(suspects(&cluster), (vec![], 2));
    cluster.kill(1);
    let one = |cluster: &Cluster| suspects(cluster) == (vec![peer(1)], 2);
    assert!(cluster.run_until(secs(8), one), "it is never suspected while it counts as alive");
    assert!(cluster.run_until(secs(8), Cluster::complete), "it is never given up");
    assert_eq!(suspects(&cluster), (vec![], 1));
}

#[test]
fn leave_is_known_to_all_within_two_seconds() {
    for count in [2, 5, 50] {
        let mut cluster = Cluster::formed(count, 7);
        let now = cluster.now;
        cluster.node(1).leave(now);
        cluster.node(1).leave(now);
        cluster.drain(1);
        cluster.run(millis(50));
        assert_eq!(cluster.node(1).poll_timeout(), None);
        cluster.kill(1);
        assert!(cluster.run_until(secs(2), Cluster::complete), "{count} nodes");
        assert_eq!(cluster.downs().len(), count - 1);
    }
}

#[test]
fn goodbye_is_believed_at_once_and_passed_on() {
    let mut cluster = Cluster::formed(5, 7);
    cluster.kill(1);
    let now = cluster.now;
    cluster.node(0).on_goodbye(now, peer(1), None);
    cluster.node(0).on_goodbye(now, peer(1), None);
    cluster.node(0).on_goodbye(now, peer(77), None);
    cluster.node(0).on_goodbye(now, peer(0), None);
    assert_eq!(cluster.node(0).member(&peer(1)), None);
    cluster.drain(0);
    assert!(cluster.run_until(secs(2), Cluster::complete));
    cluster.run(secs(10));
    assert_eq!(cluster.downs().len(), 4);
}

#[test]
fn goodbye_of_an_earlier_life_is_no_news() {
    for (said, is_news) in [(Some(GENERATION - 1), false), (Some(GENERATION), true), (None, true)] {
        let mut cluster = Cluster::formed(3, 7);
        let now = cluster.now;
        assert_eq!(cluster.node(0).on_goodbye(now, peer(1), said), is_news, "{said:?}");
        assert_eq!(cluster.node(0).member(&peer(1)).is_none(), is_news, "{said:?}");
        assert!(!cluster.node(0).on_goodbye(now, peer(77), said), "a stranger");
    }
}

#[test]
fn peer_that_said_goodbye_but_stays_comes_back() {
    let mut cluster = Cluster::formed(5, 7);
    let now = cluster.now;
    cluster.node(0).on_goodbye(now, peer(1), None);
    cluster.drain(0);
    cluster.run(secs(1));
    assert!(cluster.run_until(secs(10), Cluster::complete));
    assert!(cluster.node(0).member(&peer(1)).is_some_and(|m| m.generation > GENERATION));
}

#[test]
fn partition_heals() {
    for (count, cut) in [(5, 1), (5, 2), (20, 10)] {
        for seed in 0..3 {
            let mut cluster = Cluster::formed(count, seed);
            (0..cut).for_each(|i| cluster.group[i] = 1);
            cluster.run(secs(60));
            for i in 0..count {
                let expected = if i < cut { cut - 1 } else { count - cut - 1 };
                assert_eq!(cluster.node(i).len(), expected, "node {i} of {count}, seed {seed}");
            }
            cluster.group.fill(0);
            assert!(cluster.run_until(secs(60), Cluster::complete), "{count} nodes, seed {seed}");
            cluster.run(secs(30));
            assert!(cluster.complete(), "{count} nodes, seed {seed}: does not stay together");
        }
    }
}

#[test]
fn two_nodes_that_lost_each_other_rejoin_by_the_bootstrapper() {
    let mut cluster = Cluster::formed(2, 1);
    cluster.group[1] = 1;
    cluster.run(secs(30));
    cluster.group[1] = 0;
    cluster.join(1, 0);
    assert!(cluster.run_until(secs(2), Cluster::complete));
    cluster.run(secs(30));
    assert!(cluster.complete());
}

#[test]
fn restarted_node_replaces_its_earlier_life() {
    let mut cluster = Cluster::formed(5, 1);
    cluster.restart(1, GENERATION + 5000, 0);
    let known = |node: &Membership| node.member(&peer(1)).is_some_and(|m| m.generation == GENERATION + 5000);
    let all_know =
        |c: &Cluster| c.complete() && [0, 2, 3, 4].iter().all(|i| c.nodes[*i].as_ref().is_some_and(known));
    assert!(cluster.run_until(secs(2), all_know));
    cluster.run(secs(30));
    assert_eq!(cluster.downs(), []);
}

#[test]
fn restart_with_the_clock_set_back_rejoins() {
    for dead_time in [secs(0), secs(30)] {
        let mut cluster = Cluster::formed(5, 1);
        cluster.kill(1);
        cluster.run(dead_time);
        cluster.restart(1, GENERATION - 3_600_000, 0);
        assert!(cluster.run_until(secs(5), Cluster::complete), "dead for {dead_time:?}");
        cluster.run(secs(30));
        assert!(cluster.complete());
        assert!(cluster.node(1).me().generation > GENERATION);
    }
}

#[test]
fn frozen_node_rejoins_when_it_thaws() {
    for count in [3, 20] {
        let mut cluster = Cluster::formed(count, 2);
        cluster.frozen.insert(1);
        cluster.run(secs(20));
        assert!((0..count).filter(|i| *i != 1).all(|i| cluster.node(i).member(&peer(1)).is_none()));
        cluster.log.clear();
        cluster.frozen.clear();
        assert!(cluster.run_until(secs(15), Cluster::complete), "{count} nodes");
        cluster.run(secs(30));
        assert!(cluster.complete());
        assert!(cluster.node(1).me().generation > GENERATION);
        assert_eq!(cluster.downs(), [], "a thawed node blamed its peers");
    }
}

#[test]
fn other_addresses_are_told_to_all_without_a_gap() {
    let mut cluster = Cluster::formed(5, 9);
    let (now, addr) = (cluster.now, IpAddr::from([192, 168, 1, 1]));
    let loopback = IpAddr::from([127, 0, 0, 1]);
    cluster.node(1).set_addrs(now, vec![loopback, addr, addr]);
    cluster.drain(1);
    assert_eq!(*cluster.node(1).me().addrs, [addr]);
    assert_eq!(cluster.node(1).me().generation, GENERATION + 1);
    cluster.node(1).set_addrs(now, vec![addr]);
    assert_eq!(cluster.node(1).me().generation, GENERATION + 1, "same addresses");
    cluster.run(secs(2));
    for i in [0, 2, 3, 4] {
        assert_eq!(
            cluster.node(i).member(&peer(1)).map(Member::router_addrs),
            Some(vec![(addr, 5001).into()])
        );
    }
    cluster.run(secs(30));
    assert_eq!(cluster.downs(), []);
    assert!(cluster.log.iter().all(|(_, _, event)| matches!(event, Event::Changed(_))));
}

#[test]
fn other_addresses_survive_losing_every_packet_about_them() {
    let mut cluster = Cluster::formed(5, 9);
    let now = cluster.now;
    cluster.group[1] = 1;
    cluster.node(1).set_addrs(now, vec![IpAddr::from([192, 168, 1, 1])]);
    cluster.drain(1);
    cluster.run(millis(900));
    cluster.group[1] = 0;
    cluster.run(secs(30));
    assert!(cluster.complete());
    assert_eq!(cluster.node(0).member(&peer(1)).map(|m| m.generation), Some(GENERATION + 1));
}

#[test]
fn idle_traffic_does_not_grow_with_the_cluster() {
    for count in [2, 10, 100] {
        let mut cluster = Cluster::formed(count, 1);
        cluster.run(secs(20));
        (cluster.sent, cluster.sent_bytes) = (0, 0);
        cluster.run(secs(30));
        let packets = cluster.sent as f64 / 30.0 / count as f64;
        let bytes = cluster.sent_bytes as f64 / 30.0 / count as f64;
        // A ping, an ack, and twice each half minute an announcement or its answer.
        assert!(packets < 2.2, "{count} nodes: {packets} packets per second and node");
        assert!(bytes < 700.0, "{count} nodes: {bytes} bytes per second and node");
    }
}

#[test]
fn same_seed_same_trace() {
    let run = |seed| {
        let mut cluster = Cluster::new(10, seed);
        let start = cluster.now;
        (1..10).for_each(|i| cluster.join(i, 0));
        cluster.run(secs(5));
        cluster.kill(3);
        cluster.run(secs(10));
        let log: Vec<_> = cluster.log.iter().map(|(at, i, event)| (*at - start, *i, event.clone())).collect();
        (log, cluster.sent, cluster.sent_bytes)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn lossy_links_make_no_flapping() {
    // Every tenth packet is lost; indirect probes and objections make up for it.
    let mut cluster = Cluster::formed(10, 4);
    let mut rng = Rng::new(4, "loss");
    let end = cluster.now + secs(120);
    let mut seen = cluster.sent;
    while cluster.step(end) {
        let sent = cluster.sent;
        let lost: BTreeSet<u64> = (seen + 1..=sent).filter(|_| rng.below(10) == 0).collect();
        cluster.wire.retain(|(_, number), _| !lost.contains(number));
        seen = sent;
    }
    assert!(cluster.downs().len() <= 9, "{:?}", cluster.downs());
    cluster.run(secs(30));
    assert!(cluster.complete());
}

fn packet(from: Member, to: Member, message: Message<Id>, updates: Vec<foca::Member<Id>>) -> Vec<u8> {
    let header = foca::Header { src: Id::new(from), src_incarnation: 0, dst: Id::new(to), message };
    Packet { header, updates, had_more: false }.encode().expect("fits")
}

#[test]
fn packet_in_the_name_of_another_is_refused() {
    let now = crate::test_time::start();
    let mut node = Membership::new(member(0, 5), 1);
    let announce = |from, to| packet(from, to, Message::Announce, vec![]);
    let good = announce(member(1, 5), member(0, 5));
    assert_eq!(node.on_message(now, peer(2), &good), Err(Malformed));
    assert_eq!(node.on_message(now, peer(0), &announce(member(0, 4), member(0, 5))), Err(Malformed));
    assert_eq!(node.on_message(now, peer(1), &announce(member(1, 5), member(3, 5))), Err(Malformed));
    assert_eq!(node.len(), 0);
    assert!(node.on_message(now, peer(1), &good).is_ok_and(|reply| reply.is_some()));
    assert_eq!(node.len(), 1);
    assert_eq!(node.poll_event(), Some(Event::Up(member(1, 5))));
}

#[test]
fn joining_oneself_is_ignored() {
    let mut node = Membership::new(member(0, 5), 1);
    node.join(crate::test_time::start(), peer(0), ([10, 0, 0, 9], 5001).into());
    assert_eq!(node.poll_event(), None);
}

#[test]
fn packet_beyond_the_maximum_is_refused() {
    let now = crate::test_time::start();
    let mut node = Membership::new(member(0, 5), 1);
    let updates = (1..400).map(|i| foca::Member::alive(Id::new(member(i, 5)))).collect();
    let bytes = packet(member(1, 5), member(0, 5), Message::Gossip, updates);
    assert!(bytes.len() > PACKET_SIZE_MAX);
    assert_eq!(node.on_message(now, peer(1), &bytes), Err(Malformed));
}

#[test]
fn newcomer_to_a_large_cluster_knows_all_of_it_at_once() {
    // Far more than one packet holds.
    let mut cluster = Cluster::formed(700, 3);
    cluster.run(CATCH_UP_MAX);
    cluster.nodes.push(Some(Membership::new(member(700, GENERATION), 77)));
    cluster.frozen.clear();
    cluster.group.push(0);
    cluster.numbers.insert(peer(700), 700);
    cluster.wakes.push(None);
    cluster.join(700, 5);
    cluster.run(millis(100));
    let newcomer = cluster.node(700);
    assert_eq!((newcomer.len(), newcomer.is_complete()), (700, true));
}

#[test]
fn view_is_complete_when_another_is_the_same() {
    let mut cluster = Cluster::new(3, 1);
    cluster.join(1, 0);
    cluster.run(millis(20));
    assert!(cluster.node(0).is_complete() && cluster.node(1).is_complete());
    assert!(!cluster.node(2).is_complete(), "alone, it knows of nobody who could tell");
}

#[test]
fn view_that_nobody_confirms_is_taken_for_complete_after_a_while() {
    let now = crate::test_time::start();
    let mut node = Membership::new(member(0, 5), 1);
    let feed = packet(member(1, 5), member(0, 5), Message::Feed, vec![]);
    node.on_reply(now, peer(1), &feed).expect("is well formed");
    node.handle_timeout(now + CATCH_UP_MAX - millis(1));
    assert!(node.len() == 1 && !node.is_complete());
    node.handle_timeout(now + CATCH_UP_MAX);
    assert!(node.is_complete());
}

#[test]
fn equal_views_are_compared_without_telling_them() {
    let mut small = Cluster::formed(20, 1);
    let mut large = Cluster::formed(300, 1);
    let idle = |cluster: &mut Cluster| {
        cluster.run(secs(30));
        let before = cluster.sent_bytes;
        cluster.run(secs(120));
        (cluster.sent_bytes - before) as f64 / cluster.nodes.len() as f64
    };
    let (small, large) = (idle(&mut small), idle(&mut large));
    assert!(large < small * 1.1, "an idle node sends {small} bytes among 20, {large} among 300");
}

#[test]
fn peer_that_keeps_asking_for_pages_is_told_few() {
    let now = crate::test_time::start();
    let mut cluster = Cluster::formed(40, 1);
    let mut bytes_in = |after: u64| -> usize {
        let now = now + millis(after);
        let asked = (0..1000).map(|_| cluster.node(0).on_compare(now, peer(1), Fingerprint::default(), None));
        asked.map(|compared| compared.page.len()).sum()
    };
    let (burst, later) = (bytes_in(3_600_000), bytes_in(3_600_100));
    assert!(burst > 100_000 && burst < 350_000, "{burst} bytes in a burst: is the pacer asked?");
    assert!(later < 60_000, "{later} bytes in a tenth of a second");
}

#[test]
fn comparison_that_goes_backwards_is_refused() {
    let now = crate::test_time::start();
    let mut cluster = Cluster::formed(2, 1);
    let mut page = Vec::new();
    let mut records: Vec<_> = (5..8).map(|i| foca::Member::alive(Id::new(member(i, GENERATION)))).collect();
    records.sort_by_key(|record| std::cmp::Reverse(record.id().member().peer));
    records.iter().for_each(|record| page.extend(codec::encode_record(record)));
    let backwards = Compared { page, more: true, ..Compared::default() };
    assert_eq!(cluster.node(0).on_compared(now, peer(1), &backwards), Err(Malformed));
    let garbage = Compared { page: vec![0xff; 9], ..Compared::default() };
    assert_eq!(cluster.node(0).on_compared(now, peer(1), &garbage), Err(Malformed));
}

#[test]
fn node_that_was_frozen_listens_for_a_round_trip_before_it_judges() {
    let mut cluster = Cluster::formed(3, 1);
    let node = cluster.node(1);
    let thawed = node.poll_timeout().expect("probes go on") + secs(20);
    node.handle_timeout(thawed);
    assert_eq!(node.poll_event(), None);
    let next = node.poll_timeout().expect("probes go on");
    assert_eq!(next, thawed + PROBE_RTT);
}

#[test]
fn invented_members_and_flapping_stay_within_bounds() {
    const MAX: usize = 1000;
    let now = crate::test_time::start();
    let mut node = Membership::new(member(0, 5), 1);
    node.members_max = MAX;
    for batch in 0..(MAX / 150 + 150) {
        let (first, count) = if batch < MAX / 150 { (2 + batch * 150, 150) } else { (500_000 + batch, 1) };
        let updates = (first..first + count).map(|i| foca::Member::down(Id::new(member(i, 5)))).collect();
        let bytes = packet(member(1, 5), member(0, 5), Message::Gossip, updates);
        node.on_message(now, peer(1), &bytes).expect("is well formed");
        while node.poll_event().is_some() {}
    }
    let known = node.foca.iter_membership_state().len();
    assert!((MAX - 1..=MAX).contains(&known), "{known}");
    // What is known still changes; who is not known stays out.
    let updates = [member(2, 6), member(900_000, 6)].map(|m| foca::Member::alive(Id::new(m))).into();
    let bytes = packet(member(1, 5), member(0, 5), Message::Gossip, updates);
    node.on_message(now, peer(1), &bytes).expect("is well formed");
    assert!(node.member(&peer(2)).is_some());
    assert!(node.member(&peer(900_000)).is_none());
    let newcomer = packet(member(900_001, 5), member(0, 5), Message::Announce, vec![]);
    assert!(node.on_message(now, peer(900_001), &newcomer).is_ok_and(|reply| reply.is_some()));
    assert_eq!(node.foca.iter_membership_state().len(), MAX);
    let newcomer = packet(member(900_002, 5), member(0, 5), Message::Announce, vec![]);
    assert_eq!(node.on_message(now, peer(900_002), &newcomer), Ok(None));
    for generation in 7..300 {
        let flap = [foca::Member::down(Id::new(member(2, generation)))].into();
        let bytes = packet(member(1, 5), member(0, 5), Message::Gossip, flap);
        node.on_message(now, peer(1), &bytes).expect("is well formed");
    }
    assert!(node.timers.len() <= MAX + 10, "{}", node.timers.len());
}

#[test]
fn unusable_addresses_are_left_out() {
    let now = crate::test_time::start();
    let mut node = Membership::new(member(0, 5), 1);
    let usable: Vec<IpAddr> = (1..=20).map(|i| IpAddr::from([10, 9, 0, i])).collect();
    let unusable = ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:127.0.0.1"];
    let unusable = unusable.map(|text| text.parse::<IpAddr>().expect("is an address"));
    let addrs: Vec<IpAddr> = unusable.into_iter().chain(usable.iter().copied()).collect();
    let from = Member { addrs: addrs.into(), ..member(1, 5) };
    let bytes = packet(from, member(0, 5), Message::Announce, vec![]);
    node.on_message(now, peer(1), &bytes).expect("is well formed");
    let known = node.member(&peer(1)).map(|m| m.addrs.to_vec());
    assert_eq!(known, Some(usable[..Member::ADDRS_MAX].to_vec()));
}

#[test]
fn made_up_generation_of_this_node_is_outdone_up_to_a_bound() {
    let now = crate::test_time::start();
    let mut node = Membership::new(member(0, 5), 1);
    let claim = |node: &mut Membership, generation| {
        let bytes = packet(member(1, 5), member(0, generation), Message::Announce, vec![]);
        node.on_message(now, peer(1), &bytes).expect("is well formed");
    };
    claim(&mut node, u64::MAX);
    assert_eq!(node.me().generation, 5);
    claim(&mut node, 100);
    assert_eq!(node.me().generation, 100 + OUTDO_STEP, "beyond what that life can have come to");
    claim(&mut node, GENERATION_LEAD_MAX);
    assert_eq!(node.me().generation, GENERATION_LEAD_MAX + 5);
    for lead in [5, 6, 7, u64::MAX] {
        claim(&mut node, GENERATION_LEAD_MAX.saturating_add(lead));
    }
    assert_eq!(node.me().generation, GENERATION_LEAD_MAX + 5, "pushed on by several claims");
}

#[test]
fn generation_that_its_owner_could_not_outdo_is_not_believed() {
    let now = crate::test_time::start();
    let mut node = Membership::new(member(0, GENERATION), 1);
    let most = GENERATION + HEARSAY_LEAD_MAX;
    let told = [member(2, most + 1), member(3, most), member(4, u64::MAX)];
    let updates = told.map(|m| foca::Member::alive(Id::new(m))).into();
    let bytes = packet(member(1, 5), member(0, GENERATION), Message::Gossip, updates);
    node.on_message(now, peer(1), &bytes).expect("is well formed");
    let known: BTreeSet<_> = node.members().map(|known| known.peer).collect();
    assert_eq!(known, BTreeSet::from([peer(1), peer(3)]));
    // An owner that had to outdo that is believed what it says itself.
    let outdone = packet(member(3, most + 1), member(0, GENERATION), Message::Gossip, vec![]);
    node.on_message(now, peer(3), &outdone).expect("is well formed");
    assert_eq!(node.member(&peer(3)).map(|known| known.generation), Some(most + 1));
    let beyond = GENERATION + GENERATION_LEAD_MAX + 1;
    let beyond = packet(member(5, beyond), member(0, GENERATION), Message::Announce, vec![]);
    assert_eq!(node.on_message(now, peer(5), &beyond), Err(Malformed));
}

/// Each answered the other's correction by one of its own, as fast as the network went.
#[test]
fn peers_that_cannot_agree_on_a_generation_are_corrected_once_a_second() {
    let now = crate::test_time::start();
    let mut node = Membership::new(member(0, 5), 1);
    let greet = |generation, to| packet(member(1, generation), member(0, to), Message::Announce, vec![]);
    node.on_message(now, peer(1), &greet(100, 5)).expect("is well formed");
    let mut corrections = 0;
    for tenth in 0..100 {
        for _ in 0..10 {
            let reply = node.on_reply(now + millis(100 * tenth), peer(1), &greet(7, u64::MAX));
            reply.expect("is well formed");
        }
        let sent = std::iter::from_fn(|| node.poll_event());
        corrections += sent.filter(|event| matches!(event, Event::Send { .. })).count();
    }
    assert_eq!(corrections, 10);
}

/// An announcement as a later release may send it: more fields, and addresses of other kinds.
#[test]
fn unknown_fields_are_tolerated() {
    let mut bytes = Vec::new();
    let mut e = Encoder::new(&mut bytes);
    let encoded = (|| {
        e.map(7)?;
        e.u8(9)?.map(1)?.u8(1)?.array(2)?.str("later")?.null()?;
        e.u8(0)?.begin_map()?;
        e.u8(0)?.bytes(peer(1).public_key())?;
        e.u8(1)?.u64(5)?;
        e.u8(2)?.array(2)?.bytes(&[1; 6])?.bytes(&[10, 0, 0, 1])?;
        e.u8(3)?.u16(5001)?;
        e.u8(77)?.bool(true)?;
        e.u8(5)?.str(&"z".repeat(500))?.end()?;
        e.u8(2)?.map(3)?.u8(0)?.bytes(peer(0).public_key())?.u8(1)?.u64(0)?.u8(9)?.f64(0.5)?;
        e.u8(3)?.u8(ANNOUNCE)?;
        e.u8(200)?.undefined()?;
        e.u8(201)?.begin_array()?.u8(1)?.end()?;
        e.u8(4)?.u8(0)?;
        Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
    })();
    encoded.expect("writes to memory");
    let mut node = Membership::new(member(0, 5), 1);
    let reply = node.on_message(crate::test_time::start(), peer(1), &bytes).expect("is well formed");
    assert!(reply.is_some());
    let known = node.member(&peer(1)).cloned().expect("is a member");
    assert_eq!(*known.addrs, [IpAddr::from([10, 0, 0, 1])]);
    assert_eq!((known.router_port, known.registry_port), (5001, 0));
    assert_eq!(known.zone.map(|zone| zone.as_str().len()), Some(Zone::LENGTH_MAX));
}

/// What a later release adds around what is known: a record in an unknown state, bytes after the
/// records, records to an introduction, a kind of packet.
#[test]
fn what_is_unknown_in_a_packet_does_not_spoil_the_rest() {
    let now = crate::test_time::start();
    let record = |number, state: u8| {
        let mut bytes = Vec::new();
        let mut e = Encoder::new(&mut bytes);
        let encoded = (|| {
            e.map(2)?.u8(0)?.map(2)?.u8(0)?.bytes(peer(number).public_key())?.u8(1)?.u64(5)?;
            e.u8(2)?.u8(state)?;
            Ok::<_, minicbor::encode::Error<std::convert::Infallible>>(())
        })();
        encoded.expect("writes to memory");
        bytes
    };
    let with = |message, records: &[Vec<u8>], after: &[u8]| {
        let mut bytes = packet(member(1, 5), member(0, 5), message, vec![]);
        bytes.extend((records.len() as u16).to_be_bytes());
        bytes.extend(records.concat());
        bytes.extend(after);
        bytes
    };
    let mut node = Membership::new(member(0, 5), 1);
    let bytes = with(Message::Gossip, &[record(2, 1), record(3, 9), record(4, 1)], b"tomorrow");
    node.on_message(now, peer(1), &bytes).expect("is well formed");
    let known: BTreeSet<_> = node.members().map(|known| known.peer).collect();
    assert_eq!(known, BTreeSet::from([peer(1), peer(2), peer(4)]));

    let mut node = Membership::new(member(0, 5), 1);
    let bytes = with(Message::Announce, &[record(2, 1)], b"");
    assert!(node.on_message(now, peer(1), &bytes).is_ok_and(|reply| reply.is_some()));
    assert_eq!(node.len(), 1);

    let mut node = Membership::new(member(0, 5), 1);
    let mut bytes = packet(member(1, 5), member(0, 5), Message::Gossip, vec![]);
    // The kind is the last but two of the header: its probe number is 0.
    let kind = bytes.iter().rposition(|byte| *byte == 9).expect("gossip is of kind 9");
    bytes[kind] = 19;
    assert_eq!(node.on_message(now, peer(1), &bytes), Ok(None));
    assert_eq!(node.len(), 0);
    bytes.truncate(bytes.len() - 1);
    assert_eq!(node.on_message(now, peer(1), &bytes), Err(Malformed), "cut off is not newer");
}

#[test]
fn every_message_round_trips() {
    let other = || Id::new(member(7, 9));
    let messages = [
        Message::Ping(1),
        Message::Ack(255),
        Message::PingReq { target: other(), probe_number: 3 },
        Message::IndirectPing { origin: other(), probe_number: 4 },
        Message::IndirectAck { target: other(), probe_number: 5 },
        Message::ForwardedAck { origin: other(), probe_number: 6 },
        Message::Announce,
        Message::Feed,
        Message::Gossip,
        Message::Broadcast,
        Message::TurnUndead,
    ];
    for message in messages {
        let states = [State::Alive, State::Suspect, State::Down];
        let updates: Vec<_> = states.map(|state| foca::Member::new(Id::new(member(3, 4)), 2, state)).into();
        let bytes = packet(member(1, 5), member(0, 5), message.clone(), updates.clone());
        let decoded = Packet::decode(&bytes).expect("is well formed");
        assert_eq!(decoded.header.message, message);
        assert_eq!(**decoded.header.src.member(), member(1, 5));
        assert_eq!(decoded.header.dst, Id::new(member(0, 5)));
        assert_eq!(decoded.updates, updates);
        assert_eq!(**decoded.updates[0].id().member(), member(3, 4));
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        flip in any::<u8>(),
    ) {
        let now = crate::test_time::start();
        let mut node = Membership::new(member(0, 5), 1);
        let _ = node.on_message(now, peer(1), &bytes);
        let updates = vec![foca::Member::alive(Id::new(member(2, 5))), foca::Member::down(Id::new(member(0, 9)))];
        let mut near = packet(member(1, 5), member(0, 5), Message::Gossip, updates);
        let position = at.index(near.len());
        near[position] ^= flip;
        let _ = node.on_message(now, peer(1), &near);
        near.truncate(cut.index(near.len()));
        let _ = node.on_reply(now, peer(1), &near);
        near.extend_from_slice(&bytes);
        let _ = node.on_reply(now, peer(1), &near);
        node.handle_timeout(now + secs(1));
        node.handle_timeout(now + secs(100));
        node.handle_timeout(now + secs(200));
    }
}
