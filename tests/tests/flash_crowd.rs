//! Within a second all other nodes begin to pull what one has: all are served without the registry, and those that
//! have got a layer relieve the first holder of it. Mirrors the simulated scenario `flash_crowd`, on as many nodes as a
//! machine with two cores bears.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Node, Puller, mib, percentile};

const NODES: u8 = 8;
const NODE_MBIT: u32 = 200;
const LAYERS: [u64; 12] = [mib(1); 12];
/// Between two pulls' beginnings.
const APART: Duration = Duration::from_millis(150);
/// What the first holder may send of all bytes: alone it would be 1000 of 1000.
const FIRST_HOLDER_PERMILLE_MAX: u64 = 750;

#[test]
fn crowd_is_served_by_many_and_not_by_the_registry() {
    let mut options = ClusterOptions::new(NODES, Generation::V2_1);
    options.node_mbit = Some(NODE_MBIT);
    let cluster = Cluster::with_spegel(options);
    let [holder, crowd @ ..] = cluster.nodes.as_slice() else { panic!("eight nodes") };
    let image = cluster.held_image(&ImageSpec::new("crowd", "1", &LAYERS).single(), &[holder], &crowd[0]);
    let connections = cluster.upstream.connections();
    let before = cluster.bytes_sent();
    let took: Vec<Duration> = thread::scope(|scope| {
        let pull = |n: u32, node: &Node| {
            thread::sleep(APART * n);
            let took = cluster.expect("pull", node.pull(Puller::Cri, &image.by_tag()));
            cluster.expect("content", node.verify(&image));
            took
        };
        let pulls: Vec<_> = (0..).zip(crowd).map(|(n, node)| scope.spawn(move || pull(n, node))).collect();
        pulls.into_iter().map(|pull| pull.join().expect("a pull goes well")).collect()
    });
    let sent: Vec<u64> =
        cluster.bytes_sent().iter().zip(&before).map(|(after, before)| after - before).collect();
    let all: u64 = sent.iter().sum();
    println!(
        "half within {:?}, longest {:?}; sent by each: {sent:?}",
        percentile(&took, 50),
        percentile(&took, 100)
    );
    let share = sent[0] * 1000 / all;
    println!("the first holder sent {share} of 1000 bytes");
    assert!(share <= FIRST_HOLDER_PERMILLE_MAX, "the first holder sent {share} of 1000 bytes: {sent:?}");
    assert_eq!(cluster.upstream.connections(), connections, "0 connections to the registry");
}
