//! A large image comes as fast as the links of those who have it can send it. Downloading is what is timed, into
//! memory: the one disk of the machine is no part of any node.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Node};

const NODE_MBIT: u32 = 400;
const LAYERS: [u64; 4] = [250_000_000; 4];
/// The headers of packets are 5 of 100 bytes.
const ONE_LINK_RATIO_MAX: f64 = 1.1;
/// Six of the twelve layers from each holder take 1.05 to 1.07 of the ideal; seven from one would take 1.23.
const TWO_LINKS_RATIO_MAX: f64 = 1.15;
/// Two cores run all nodes, and others may want them, too: the better of so many times counts.
const TRIES: usize = 2;

fn cluster(nodes: u8) -> Cluster {
    let mut options = ClusterOptions::new(nodes, Generation::V2_1);
    options.node_mbit = Some(NODE_MBIT);
    options.log_level = "INFO";
    options.in_memory = true;
    Cluster::with_spegel(options)
}

/// How long so many links need for so many bytes, as if there were no headers.
fn ideal(bytes: u64, links: u32) -> Duration {
    Duration::from_secs_f64(bytes as f64 * 8.0 / (f64::from(NODE_MBIT * links) * 1e6))
}

/// How long three nodes take to pull what two others hold, as a multiple of what their links allow.
fn of_three() -> f64 {
    let cluster = cluster(5);
    let [first, second, pullers @ ..] = cluster.nodes.as_slice() else { panic!("five nodes") };
    let image =
        cluster.held_image(&ImageSpec::new("makespan", "1", &LAYERS).single(), &[first, second], &pullers[0]);
    cluster.upstream.cut();
    let before = cluster.bytes_sent();
    let took: Vec<Duration> = thread::scope(|scope| {
        let pull = |node: &Node| cluster.expect("pull", node.fetch(&image.by_tag()));
        let pulls: Vec<_> = pullers.iter().map(|node| scope.spawn(move || pull(node))).collect();
        pulls.into_iter().map(|pull| pull.join().expect("a pull goes well")).collect()
    });
    let sent: Vec<u64> =
        cluster.bytes_sent().iter().zip(&before).map(|(after, before)| after - before).collect();
    let makespan = took.iter().max().copied().unwrap_or_default();
    let best = ideal(image.size_bytes() * 3, 2);
    let ratio = makespan.as_secs_f64() / best.as_secs_f64();
    println!("{took:?}: {ratio:.2} x {best:?}; sent by each: {sent:?}");
    for node in pullers {
        cluster.expect("content", node.verify(&image));
    }
    let (more, less) = (sent[0].max(sent[1]), sent[0].min(sent[1]));
    assert!(more * 2 <= less * 3, "one holder sent {more} bytes and the other {less}");
    ratio
}

/// How long one node takes to pull what one other holds, as a multiple of what the link allows.
fn of_one() -> f64 {
    let cluster = cluster(2);
    let [holder, puller] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let image = cluster.held_image(&ImageSpec::new("makespan", "1", &LAYERS).single(), &[holder], puller);
    cluster.upstream.cut();
    let took = cluster.expect("pull", puller.fetch(&image.by_tag()));
    let best = ideal(image.size_bytes(), 1);
    let ratio = took.as_secs_f64() / best.as_secs_f64();
    println!("{took:?}: {ratio:.2} x {best:?}");
    cluster.expect("content", puller.verify(&image));
    ratio
}

fn assert_within(bound: f64, measure: impl Fn() -> f64) {
    let mut ratios = Vec::new();
    while ratios.len() < TRIES {
        ratios.push(measure());
        if ratios.iter().any(|ratio| *ratio <= bound) {
            return;
        }
    }
    panic!("{ratios:.2?} times what the links allow, never {bound}");
}

#[test]
fn three_nodes_share_the_links_of_two_holders() {
    assert_within(TWO_LINKS_RATIO_MAX, of_three);
}

#[test]
fn one_node_fills_the_link_of_one_holder() {
    assert_within(ONE_LINK_RATIO_MAX, of_one);
}
