//! A third of the nodes vanishes at once while the others pull from them: nobody waits for long, the dead are
//! asked a few times and then left alone. Mirrors the simulated incidents `dead_node` and `dead_nodes_of_sixty`.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, MIRROR_PORT, Node, Puller, wait_for};

const LAYERS: [u64; 3] = [100_000, 100_000, 100_000];
const PATIENCE: Duration = Duration::from_secs(20);
const ADDED_MAX: Duration = Duration::from_secs(2);
/// Pulls after the death, by when; the last when every death must be known.
const ROUNDS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(2), DEATH_KNOWN_MAX];
const FIRST_CHECK_MAX: Duration = Duration::from_secs(30);
const DEATH_KNOWN_MAX: Duration = Duration::from_secs(12);
/// How often three nodes that pull three times each before the death is known ask two dead ones in all: a pull
/// has four requests out at a time, the third that waits in vain makes a dead node shunned, and then it is probed.
const ASKED_MAX: u64 = 3 * 2 * 6;
const COUNTER: &str = "dead_asked";

#[test]
fn pulls_go_round_a_third_that_vanished() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(6, Generation::V2_1));
    cluster.expect("the cluster forms", cluster.wait_whole(PATIENCE));
    let [holder, dying @ .., first, second, third] = cluster.nodes.as_slice() else { panic!("six nodes") };
    let [one, two] = dying else { panic!("two that die") };
    let pullers = [first, second, third];
    let tags = ["calm", "0", "1", "2", "3"];
    let specs = tags.map(|tag| ImageSpec::new("dead", tag, &LAYERS));
    let images = cluster.held_images(&specs, &[holder, one, two], third);
    cluster.upstream.cut();
    // The first check of a mirror's own connects to all others; the next one comes a minute later.
    for puller in pullers {
        let checked = || match puller.metrics()?.contains("spegel_check{") {
            true => Ok(()),
            false => Err("no check yet".to_owned()),
        };
        cluster.expect("the first check", wait_for("the first check", FIRST_CHECK_MAX, checked));
    }
    let dead = [one.address(), two.address()];
    pullers.iter().for_each(|puller| puller.count_connections(COUNTER, &dead, MIRROR_PORT));
    let asked = || pullers.iter().map(|puller| puller.netns().counter(COUNTER)).sum::<u64>();

    let pull_at_once = |image: usize| -> Duration {
        let pull = |puller: &Node| {
            let took = cluster.expect("pull", puller.pull(Puller::Cri, &images[image].by_tag()));
            cluster.expect("content", puller.verify(&images[image]));
            took
        };
        thread::scope(|scope| {
            let pulls = pullers.map(|puller| scope.spawn(move || pull(puller)));
            pulls.into_iter().map(|pull| pull.join().expect("a pull goes well")).max().expect("three pulls")
        })
    };
    let calm = pull_at_once(0);
    let asked_alive = asked();
    assert!(asked_alive > 0, "nobody asked those who are going to die, so this shows nothing");
    println!("alive, they were asked {asked_alive} times");
    dying.iter().for_each(Node::link_down);
    let mut since = Duration::ZERO;
    let mut asked_before = asked_alive;
    for (n, at) in ROUNDS.into_iter().enumerate() {
        thread::sleep(at.saturating_sub(since));
        let took = pull_at_once(n + 1);
        since = since.max(at) + took;
        let now = asked();
        let added = took.saturating_sub(calm);
        println!(
            "{at:?} after the death: {added:?} more than {calm:?}, the dead asked {} times",
            now - asked_before
        );
        assert!(added <= ADDED_MAX, "{at:?} after the death a pull took {added:?} more than {calm:?}");
        assert!(at < DEATH_KNOWN_MAX || now == asked_before, "the dead are asked long after their death");
        asked_before = now;
    }
    let in_vain = asked_before - asked_alive;
    assert!(in_vain <= ASKED_MAX, "the dead were asked {in_vain} times, not {ASKED_MAX}");
    let alive = cluster.nodes.len() - dying.len();
    for node in pullers.into_iter().chain([holder]) {
        cluster.expect("the dead are no members", node.wait_members(alive, Duration::from_secs(1)));
    }

    dying.iter().for_each(Node::link_up);
    let back =
        cluster.expect("who comes back is a member again", cluster.wait_whole(Duration::from_secs(60)));
    println!("all are members {back:?} after the links came back");
}
