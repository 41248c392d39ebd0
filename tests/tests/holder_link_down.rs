//! The node that a layer comes from vanishes in the middle without a word. With another holder the pull goes on
//! from there; with none it is handed back to containerd in a way that it survives.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{
    BodyEnd, Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller, mib, wait_for,
};

/// A layer takes some three seconds, so that there is a middle.
const NODE_MBIT: u32 = 100;
const LAYER: u64 = mib(36);
const ADDED_MAX: Duration = Duration::from_secs(2);
const GIVEN_UP_MAX: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(20);

fn cluster(nodes: u8, generation: Generation) -> Cluster {
    let mut options = ClusterOptions::new(nodes, generation);
    options.node_mbit = Some(NODE_MBIT);
    Cluster::with_spegel(options)
}

fn hold(cluster: &Cluster, tag: &str, holders: &[&Node], puller: &Node) -> Image {
    cluster.held_image(&ImageSpec::new("vanish", tag, &[LAYER]).single(), holders, puller)
}

#[test]
fn layer_goes_on_from_a_second_holder() {
    let cluster = cluster(3, Generation::V2_1);
    let [first, second, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let calm = hold(&cluster, "calm", &[first, second], puller);
    let image = hold(&cluster, "disturbed", &[first, second], puller);
    cluster.upstream.cut();
    let undisturbed = cluster.expect("pull", puller.pull(Puller::Cri, &calm.by_tag()));

    let before = cluster.bytes_sent();
    thread::scope(|scope| {
        let pull = scope.spawn(|| puller.pull(Puller::Cri, &image.by_tag()));
        cluster.expect("under way", puller.wait_ingest(&image.layers[0], LAYER / 3, PATIENCE));
        cluster.busiest_since(&before).link_down();
        let took =
            cluster.expect("pull from the second holder", pull.join().expect("the pull does not panic"));
        cluster.expect("content", puller.verify(&image));
        let added = took.saturating_sub(undisturbed);
        println!("{added:?} more than {undisturbed:?}");
        assert!(
            added <= ADDED_MAX,
            "a vanished holder added {added:?} to {undisturbed:?}, not {ADDED_MAX:?}"
        );
    });
}

fn body_is_closed_cleanly_without_a_second_holder(generation: Generation) {
    let cluster = cluster(2, generation);
    let [holder, puller] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let image = hold(&cluster, "lone", &[holder], puller);
    cluster.upstream.cut();
    let resets = puller.resets_sent();
    let mut client = cluster.expect("connect", puller.client());
    cluster.expect("GET", client.send("GET", &image.blob_path(&image.layers[0]), &[]));
    thread::scope(|scope| {
        let body = scope.spawn(move || client.receive(false));
        // A third of the layer is under way by then.
        thread::sleep(Duration::from_secs(1));
        holder.link_down();
        let ((), took) = cluster.expect(
            "the body ends",
            wait_for("the end", PATIENCE, || {
                if body.is_finished() { Ok(()) } else { Err("still open".to_owned()) }
            }),
        );
        let answer = cluster.expect("headers", body.join().expect("reading does not panic"));
        assert_eq!(answer.status, 200);
        assert!((answer.body.len() as u64) < LAYER, "the link went down in the middle");
        assert_eq!(answer.end, BodyEnd::Short, "{generation:?}: a body that can't be finished ends by FIN");
        assert_eq!(puller.resets_sent(), resets, "{generation:?}: 0 RSTs");
        assert!(took <= GIVEN_UP_MAX, "{generation:?}: given up after {took:?}, not {GIVEN_UP_MAX:?}");
    });
}

fn pull_completes_from_the_registry(generation: Generation) {
    let cluster = cluster(2, generation);
    let [holder, puller] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let image = hold(&cluster, "resumed", &[holder], puller);
    let resets = puller.resets_sent();
    let before = cluster.upstream.link_bytes().sent;
    thread::scope(|scope| {
        let pull = scope.spawn(|| puller.pull(Puller::Cri, &image.by_tag()));
        cluster.expect("under way", puller.wait_ingest(&image.layers[0], LAYER / 3, PATIENCE));
        holder.link_down();
        let took = cluster.expect("the same pull completes", pull.join().expect("the pull does not panic"));
        cluster.expect("content", puller.verify(&image));
        let sent = cluster.upstream.link_bytes().sent - before;
        println!("{generation:?}: {took:?}, {sent} bytes from the registry");
        assert!(sent < LAYER, "{generation:?}: the registry sent only the rest, not {sent} bytes");
        assert_eq!(puller.resets_sent(), resets, "{generation:?}: 0 RSTs");
    });
}

#[test]
fn body_without_a_second_holder_is_closed_cleanly_in_three_seconds() {
    body_is_closed_cleanly_without_a_second_holder(Generation::V2_1);
}

#[test]
fn pull_of_containerd_1_6_completes_from_the_registry() {
    pull_completes_from_the_registry(Generation::V1_6);
}

#[test]
fn pull_of_containerd_1_7_completes_from_the_registry() {
    pull_completes_from_the_registry(Generation::V1_7);
}

#[test]
fn pull_of_containerd_2_1_completes_from_the_registry() {
    pull_completes_from_the_registry(Generation::V2_1);
}
