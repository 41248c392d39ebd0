//! The registry refuses connections, or answers 429: a pull of what a node has goes well; one of what nobody has
//! ends as it would without the mirror, as soon and with as few requests, and goes well once the registry does.
//! Mirrors the simulated scenarios `upstream_down` and the one of a registry that limits its clients.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use spegel_tests::{
    Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller, StandIn, answer_status,
};

const LAYERS: [u64; 2] = [100_000, 100_000];
const REGISTRY_PORT: u16 = 80;
/// Where requests to the registry go instead.
const TROUBLE_PORT: u16 = 8080;
/// What the mirror may add to a pull that it cannot help.
const ADDED_MAX: Duration = Duration::from_secs(2);
const PULL_MAX: Duration = Duration::from_secs(3);

/// What the pull of an image that cannot be had ends with, and after how long.
fn fail(node: &Node, image: &Image) -> (String, Duration) {
    let start = Instant::now();
    let error = node.pull(Puller::Cri, &image.by_tag()).err();
    (error.unwrap_or_else(|| panic!("{}: nobody has {}", node.name, image.by_tag())), start.elapsed())
}

/// `reasons`: what the error says without the mirror, and what it may say with it.
fn is_no_worse_than_without_the_mirror(cluster: &Cluster, reasons: (&str, &str), requests: impl Fn() -> u32) {
    let [holder, near, far, bare] = cluster.nodes.as_slice() else { panic!("four nodes") };
    bare.bypass_mirror();
    let held = cluster.held_image(&ImageSpec::new("trouble", "held", &LAYERS), &[holder], far);
    let wanted = cluster.image(&ImageSpec::new("trouble", "wanted", &LAYERS));
    let registry = cluster.upstream.netns();
    registry.divert(REGISTRY_PORT, TROUBLE_PORT);

    let took = cluster.expect("pull of what a node has", near.pull(Puller::Cri, &held.by_tag()));
    cluster.expect("content", near.verify(&held));
    let (reason_without, reason_with) = reasons;
    println!("{reason_without}: what a node has is pulled in {took:?}");
    assert!(took <= PULL_MAX, "pulled in {took:?}, not {PULL_MAX:?}");
    assert_eq!(requests(), 0, "what a node has needs no registry");

    let (error_without, without) = fail(bare, &wanted);
    let requests_without = requests();
    let (error, with) = fail(near, &wanted);
    let requests_with = requests() - requests_without;
    println!(
        "{reason_without}: given up after {with:?} and {requests_with} requests, without the mirror after {without:?} \
         and {requests_without}: {error}"
    );
    assert!(error_without.contains(reason_without), "without the mirror: {error_without}");
    assert!(error.contains(reason_with), "with the mirror: {error}");
    let added = with.saturating_sub(without);
    assert!(added <= ADDED_MAX, "the mirror made it {added:?} longer, not {ADDED_MAX:?}");
    assert!(
        requests_with <= requests_without,
        "{requests_with} requests to a registry in trouble, without the mirror {requests_without}"
    );

    registry.undivert(REGISTRY_PORT);
    for node in [near, far] {
        let took =
            cluster.expect("pull from a registry that is well", node.pull(Puller::Cri, &wanted.by_tag()));
        cluster.expect("content", node.verify(&wanted));
        assert!(took <= PULL_MAX, "{} pulled in {took:?}, not {PULL_MAX:?}", node.name);
    }
}

#[test]
fn registry_that_refuses_connections_is_not_made_worse() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(4, Generation::V2_1));
    // containerd prefers the mirror's 404 to an error that is no answer when it says why.
    is_no_worse_than_without_the_mirror(&cluster, ("connection refused", "not found"), || 0);
}

#[test]
fn registry_that_limits_its_clients_is_not_made_worse() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(4, Generation::V2_1));
    let address = SocketAddr::from(([0, 0, 0, 0], TROUBLE_PORT));
    let limiting = StandIn::start(cluster.upstream.netns(), address, |mut stream| {
        answer_status(&mut stream, "429 Too Many Requests");
    });
    is_no_worse_than_without_the_mirror(&cluster, ("429", "429"), || limiting.asked());
}
