//! What nobody has costs nothing: the mirror says so in a millisecond, and containerd goes to the registry.

#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, REGISTRY, digest_of, percentile};

const P50_MAX: Duration = Duration::from_millis(1);
/// The aim is 3 ms, and `make bench` holds the mirror to it in a process of its own on an idle machine
/// (docs/performance.md: 0.58 ms in the middle round, 0.63 ms in the worst). What is more here is for machines on which
/// compilers or other tests run as well: four mirrors and four times containerd share few cores then, and one miss in a
/// hundred waits for its turn.
const P99_MAX: Duration = Duration::from_millis(5);
const ASKED: usize = 500;
/// The first requests open connections between the mirrors; every later pull profits from that.
const WARM_UP: usize = 50;

#[test]
fn layer_that_nobody_has_is_refused_in_a_millisecond() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(4, Generation::V2_1));
    for (n, node) in cluster.nodes.iter().enumerate() {
        let mut client = cluster.expect("connect", node.client());
        let mut ask = |i: usize| {
            let digest = digest_of(format!("nobody has {n} {i}").as_bytes());
            let path = format!("/v2/miss/blobs/{digest}?ns={REGISTRY}");
            let answer = cluster.expect("GET", client.get(&path, &[]));
            assert_eq!(answer.status, 404, "{}: {}", node.name, answer.text());
            answer.elapsed
        };
        for i in 0..WARM_UP {
            let _warm = ask(i);
        }
        let samples: Vec<Duration> = (WARM_UP..WARM_UP + ASKED).map(&mut ask).collect();
        let (p50, p99) = (percentile(&samples, 50), percentile(&samples, 99));
        println!("{}: {p50:?} (p50), {p99:?} (p99)", node.name);
        assert!(p50 <= P50_MAX, "{}: half of the misses take over {p50:?}, not {P50_MAX:?}", node.name);
        assert!(p99 <= P99_MAX, "{}: one miss in a hundred takes over {p99:?}, not {P99_MAX:?}", node.name);
    }
}

#[test]
fn tag_that_nobody_has_is_refused_in_a_millisecond() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(4, Generation::V2_1));
    let mut client = cluster.expect("connect", cluster.nodes[1].client());
    let mut ask = |i: usize| {
        let path = format!("/v2/miss/manifests/v{i}?ns={REGISTRY}");
        let answer = cluster.expect("HEAD", client.request("HEAD", &path, &[]));
        assert_eq!(answer.status, 404);
        answer.elapsed
    };
    for i in 0..WARM_UP {
        let _warm = ask(i);
    }
    let samples: Vec<Duration> = (WARM_UP..WARM_UP + ASKED).map(&mut ask).collect();
    let (p50, p99) = (percentile(&samples, 50), percentile(&samples, 99));
    println!("tags: {p50:?} (p50), {p99:?} (p99)");
    assert!(
        p50 <= P50_MAX && p99 <= P99_MAX,
        "misses take {p50:?} (p50) and {p99:?} (p99), not {P50_MAX:?} and {P99_MAX:?}"
    );
}
