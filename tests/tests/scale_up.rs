//! When a new image is pulled on every node at once, the registry sends it about once, and the last node
//! has it about as soon as a lone node would.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "real parts run on the real clock, and report figures"
)]

use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Puller, mib};

const NODES: u8 = 6;
const UPSTREAM_MBIT: u32 = 200;
/// Times the image's size that may come from the registry: two nodes that ask in the same instant may both be
/// told to go upstream.
const COPIES_MAX: f64 = 1.5;
/// Times a lone node's pull that the slowest node may take.
const SLOWDOWN_MAX: f64 = 2.0;

fn registry_sends_it_once(generation: Generation) {
    let mut options = ClusterOptions::new(NODES, generation);
    options.upstream_mbit = Some(UPSTREAM_MBIT);
    let cluster = Cluster::with_spegel(options);
    let spec = |tag| ImageSpec::new("scale/app", tag, &[mib(12), mib(12), mib(12), mib(12)]);
    let lone = cluster.image(&spec("lone"));
    let alone = cluster.expect("a lone pull", cluster.nodes[0].pull(Puller::Cri, &lone.by_tag()));

    let image = cluster.image(&spec("crowd"));
    let before = cluster.upstream.link_bytes().sent;
    let start = Instant::now();
    let ends: Vec<Duration> = thread::scope(|scope| {
        let pull = |node| {
            let (cluster, image) = (&cluster, &image);
            scope.spawn(move || {
                let node: &spegel_tests::Node = node;
                cluster.expect("pull in the crowd", node.pull(Puller::Cri, &image.by_tag()));
                start.elapsed()
            })
        };
        let pulls: Vec<_> = cluster.nodes.iter().map(pull).collect();
        pulls.into_iter().map(|pull| pull.join().expect("the pull does not panic")).collect()
    });
    cluster.nodes.iter().for_each(|node| cluster.expect("content", node.verify(&image)));
    let copies = (cluster.upstream.link_bytes().sent - before) as f64 / image.size_bytes() as f64;
    let slowdown = ends.iter().max().expect("there are nodes").as_secs_f64() / alone.as_secs_f64();
    println!(
        "{generation:?}: {copies:.2} copies from the registry, {slowdown:.2} times a lone pull of {alone:?}"
    );
    assert!(copies <= COPIES_MAX, "{generation:?}: the registry sent {copies:.2} copies, not {COPIES_MAX}");
    assert!(
        slowdown <= SLOWDOWN_MAX,
        "{generation:?}: the slowest of {NODES} nodes took {slowdown:.2} times as long as one alone, not {SLOWDOWN_MAX}"
    );
}

#[test]
fn crowd_on_containerd_1_6_pulls_once_from_the_registry() {
    registry_sends_it_once(Generation::V1_6);
}

#[test]
fn crowd_on_containerd_1_7_pulls_once_from_the_registry() {
    registry_sends_it_once(Generation::V1_7);
}

#[test]
fn crowd_on_containerd_2_1_pulls_once_from_the_registry() {
    registry_sends_it_once(Generation::V2_1);
}
