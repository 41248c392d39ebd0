//! Fifty pulls at once while mirrors are killed and restarted at random: every one succeeds, with the right bytes.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller};

/// Fifty different images; every other one is on another node already, so that mirrors serve while they are killed.
const PULLS: usize = 50;
const BETWEEN_KILLS: Duration = Duration::from_millis(250);

fn every_pull_succeeds(generation: Generation, gently: bool) {
    let mut options = ClusterOptions::new(3, generation);
    // So that the pulls last for a dozen kills.
    options.upstream_mbit = Some(100);
    options.node_mbit = Some(100);
    let cluster = Cluster::with_spegel(options);
    let spec = |n: usize| ImageSpec::new(&format!("chaos/{n}"), "1", &[700_000, 300_000, 1000]);
    let images: Vec<Image> = (0..PULLS).map(|n| cluster.image(&spec(n))).collect();
    for (n, image) in images.iter().enumerate().step_by(2) {
        cluster.expect("import", cluster.nodes[(n + 1) % 3].import(image));
    }
    let done = AtomicBool::new(false);
    let failures: Vec<String> = thread::scope(|scope| {
        let killer = scope.spawn(|| kill_at_random(&cluster, &done, gently));
        let pull = |n: usize| {
            let (node, image): (&Node, &Image) = (&cluster.nodes[n % 3], &images[n]);
            scope.spawn(move || {
                let pulled = node.pull(Puller::Cri, &image.by_tag()).and_then(|_| node.verify(image));
                pulled.err().map(|error| format!("{} of {}: {error}", node.name, image.by_tag()))
            })
        };
        let pulls: Vec<_> = (0..PULLS).map(pull).collect();
        let failures =
            pulls.into_iter().filter_map(|pull| pull.join().expect("a pull does not panic")).collect();
        done.store(true, Ordering::Relaxed);
        let kills = killer.join().expect("the killer does not panic");
        println!("{generation:?}: {kills} kills during {PULLS} pulls");
        failures
    });
    assert!(
        failures.is_empty(),
        "{generation:?}: {} of {PULLS} pulls failed:\n{}\n{}",
        failures.len(),
        failures.join("\n"),
        cluster.logs()
    );
    for node in &cluster.nodes {
        cluster.expect("the mirrors are well afterwards", node.wait_ready(Duration::from_secs(20)));
    }
}

fn kill_at_random(cluster: &Cluster, done: &AtomicBool, gently: bool) -> u32 {
    let mut seed = 0x5DEE_CE66_u64;
    let mut kills = 0;
    while !done.load(Ordering::Relaxed) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let victim = &cluster.nodes[usize::try_from((seed >> 33) % 3).expect("under three")];
        if gently {
            let stopped = victim.stop_spegel(Duration::from_secs(60));
            cluster.expect("the mirror stops", stopped);
        } else {
            victim.kill_spegel();
        }
        thread::sleep(BETWEEN_KILLS / 4);
        victim.spawn_spegel();
        kills += 1;
        thread::sleep(BETWEEN_KILLS);
    }
    kills
}

#[test]
fn pulls_of_containerd_1_6_survive_killed_mirrors() {
    every_pull_succeeds(Generation::V1_6, false);
}

#[test]
fn pulls_of_containerd_1_7_survive_killed_mirrors() {
    every_pull_succeeds(Generation::V1_7, false);
}

#[test]
fn pulls_of_containerd_2_1_survive_killed_mirrors() {
    every_pull_succeeds(Generation::V2_1, false);
}

#[test]
fn pulls_of_containerd_2_1_survive_restarted_mirrors() {
    every_pull_succeeds(Generation::V2_1, true);
}
