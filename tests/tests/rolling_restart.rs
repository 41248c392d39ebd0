//! Every mirror is stopped and started again, one after the other, while pods start: no pull fails or waits, and
//! afterwards all is found. Mirrors the simulated scenario `rolling_restart`.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller, percentile};

const LAYERS: [u64; 2] = [100_000, 100_000];
const PATIENCE: Duration = Duration::from_secs(20);
const PULL_MAX: Duration = Duration::from_secs(2);
const FOUND_MAX: Duration = Duration::from_secs(5);
/// As the `DaemonSet` does it: away for a moment, and the next only when the kubelet has seen that
/// this one is ready. It looks once a second at most.
const AWAY: Duration = Duration::from_millis(500);
const PROBE_PERIOD: Duration = Duration::from_secs(1);
const BETWEEN_PULLS: Duration = Duration::from_millis(200);

#[test]
fn no_pull_fails_while_every_mirror_is_restarted() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(5, Generation::V2_1));
    cluster.expect("the cluster forms", cluster.wait_whole(PATIENCE));
    let [first, second, .., last] = cluster.nodes.as_slice() else { panic!("five nodes") };
    let specs: Vec<ImageSpec> = (0..4).map(|n| ImageSpec::new("rolling", &n.to_string(), &LAYERS)).collect();
    let images = cluster.held_images(&specs, &[first, second], last);
    cluster.upstream.cut();

    let pullers = &cluster.nodes[2..];
    // A node whose mirror is away goes to the registry, which is not there.
    let turns: Vec<Mutex<()>> = cluster.nodes.iter().map(|_| Mutex::new(())).collect();
    let turn = |n: usize| turns[n].lock().unwrap_or_else(PoisonError::into_inner);
    let done = AtomicBool::new(false);
    let pulls_of = |n: usize, node: &Node| {
        let mut took = Vec::new();
        for image in images.iter().cycle() {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let _mine = turn(n);
            took.push(pull_anew(&cluster, node, image));
            drop(_mine);
            thread::sleep(BETWEEN_PULLS);
        }
        took
    };
    let took: Vec<Duration> = thread::scope(|scope| {
        let pulls: Vec<_> = pullers
            .iter()
            .enumerate()
            .map(|(n, node)| {
                let pulls_of = &pulls_of;
                scope.spawn(move || pulls_of(n + 2, node))
            })
            .collect();
        for (n, node) in cluster.nodes.iter().enumerate() {
            let _mine = turn(n);
            let status = cluster.expect("the mirror ends", node.stop_spegel(PATIENCE));
            assert!(status.success(), "{}: {status}", node.name);
            thread::sleep(AWAY);
            node.spawn_spegel();
            let ready = cluster.expect("ready", node.wait_ready(PATIENCE));
            println!("{}: ready again after {ready:?}", node.name);
            cluster.expect("a member", node.wait_members(cluster.nodes.len(), PATIENCE));
            thread::sleep(PROBE_PERIOD);
        }
        done.store(true, Ordering::Relaxed);
        pulls.into_iter().flat_map(|pulls| pulls.join().expect("pulls go well")).collect()
    });
    let longest = percentile(&took, 100);
    println!("{} pulls, half within {:?}, longest {longest:?}", took.len(), percentile(&took, 50));
    assert!(longest <= PULL_MAX, "a pull took {longest:?}, not {PULL_MAX:?}");
    for node in &cluster.nodes {
        for image in &images {
            let found = cluster.expect("found afterwards", node.wait_finds(image, PATIENCE));
            assert!(found <= FOUND_MAX, "{} finds {} after {found:?}", node.name, image.by_tag());
        }
    }
}

/// Pulls what another node has, and forgets it, so that it can be pulled again.
fn pull_anew(cluster: &Cluster, node: &Node, image: &Image) -> Duration {
    let took = cluster.expect("pull", node.pull(Puller::Cri, &image.by_tag()));
    cluster.expect("content", node.verify(image));
    cluster.expect("remove", node.remove_image(&image.by_tag()));
    took
}
