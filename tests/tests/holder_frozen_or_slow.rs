//! A holder that stands still with its sockets open, or crawls, is left for a better one.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller, mib};

const NODE_MBIT: u32 = 100;
const SLOW_MBIT: u32 = 1;
const LAYER: u64 = mib(24);
const ADDED_MAX: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(20);

fn cluster() -> Cluster {
    let mut options = ClusterOptions::new(3, Generation::V2_1);
    options.node_mbit = Some(NODE_MBIT);
    Cluster::with_spegel(options)
}

fn hold(cluster: &Cluster, tag: &str) -> Image {
    let [first, second, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    cluster.held_image(&ImageSpec::new("slow", tag, &[LAYER]).single(), &[first, second], puller)
}

fn check(
    cluster: &Cluster,
    what: &str,
    undisturbed: Duration,
    disturb: impl FnOnce(&Cluster, &Image, &[u64]),
) {
    let puller = &cluster.nodes[2];
    let image = hold(cluster, "disturbed");
    let before = cluster.bytes_sent();
    thread::scope(|scope| {
        let pull = scope.spawn(|| puller.pull(Puller::Cri, &image.by_tag()));
        disturb(cluster, &image, &before);
        let took = cluster.expect("pull", pull.join().expect("the pull does not panic"));
        cluster.expect("content", puller.verify(&image));
        let added = took.saturating_sub(undisturbed);
        println!("{what}: {added:?} more than {undisturbed:?}");
        assert!(added <= ADDED_MAX, "{what} added {added:?} to {undisturbed:?}, not {ADDED_MAX:?}");
    });
}

fn undisturbed(cluster: &Cluster) -> Duration {
    let image = hold(cluster, "calm");
    cluster.upstream.cut();
    cluster.expect("pull", cluster.nodes[2].pull(Puller::Cri, &image.by_tag()))
}

fn serving<'a>(cluster: &'a Cluster, image: &Image, before: &[u64]) -> &'a Node {
    cluster.expect("under way", cluster.nodes[2].wait_ingest(&image.layers[0], LAYER / 3, PATIENCE));
    cluster.busiest_since(before)
}

#[test]
fn holder_that_freezes_in_mid_layer_is_left() {
    let cluster = cluster();
    let calm = undisturbed(&cluster);
    check(&cluster, "a holder that froze", calm, |cluster, image, before| {
        serving(cluster, image, before).freeze_spegel();
    });
}

#[test]
fn holder_that_is_frozen_from_the_start_is_left() {
    let cluster = cluster();
    let calm = undisturbed(&cluster);
    let image = hold(&cluster, "frozen");
    cluster.nodes[0].freeze_spegel();
    let took = cluster.expect("pull", cluster.nodes[2].pull(Puller::Cri, &image.by_tag()));
    let added = took.saturating_sub(calm);
    assert!(added <= ADDED_MAX, "a frozen holder added {added:?} to {calm:?}, not {ADDED_MAX:?}");
}

#[test]
fn holder_that_becomes_slow_in_mid_layer_is_left() {
    let cluster = cluster();
    let calm = undisturbed(&cluster);
    check(&cluster, "a holder that became slow", calm, |cluster, image, before| {
        serving(cluster, image, before).limit(Some(SLOW_MBIT));
    });
}

#[test]
fn holder_that_is_slow_from_the_start_is_left() {
    let cluster = cluster();
    let calm = undisturbed(&cluster);
    let image = hold(&cluster, "crawling");
    cluster.nodes[0].limit(Some(SLOW_MBIT));
    let took = cluster.expect("pull", cluster.nodes[2].pull(Puller::Cri, &image.by_tag()));
    let added = took.saturating_sub(calm);
    assert!(added <= ADDED_MAX, "a slow holder added {added:?} to {calm:?}, not {ADDED_MAX:?}");
}
