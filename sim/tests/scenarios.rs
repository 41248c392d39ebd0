//! Scenarios beyond the incidents, over many seeds, each of them twice. What they are about is
//! told in `sim/src/scenarios.rs`.

use spegel_sim::{scenario::Outcome, scenarios};

const SEEDS: u64 = 16;

#[test]
fn partition_and_merge() {
    scenarios::partition_and_merge().run_seeds(1..=SEEDS);
}

#[test]
fn rolling_restart() {
    scenarios::rolling_restart().run_seeds(1..=SEEDS);
    scenarios::rolling_restart_with_http().run_seeds(1..=SEEDS);
}

#[test]
fn update_behind_node_ports() {
    scenarios::update_behind_node_ports().run_seeds(1..=SEEDS);
}

#[test]
fn frozen_process() {
    scenarios::frozen_process().run_seeds(1..=SEEDS);
}

#[test]
fn holder_falls_silent() {
    scenarios::holder_falls_silent().run_seeds(1..=SEEDS);
}

#[test]
fn holders_share_the_work() {
    scenarios::holders_share_the_work().run_seeds(1..=SEEDS);
}

#[test]
fn busy_holder_dies() {
    scenarios::busy_holder_dies().run_seeds(1..=SEEDS);
}

#[test]
fn slow_peer() {
    scenarios::slow_peer().run_seeds(1..=SEEDS);
}

#[test]
fn corrupting_peer() {
    scenarios::corrupting_peer().run_seeds(1..=SEEDS);
}

#[test]
fn lossy_control() {
    scenarios::lossy_control().run_seeds(1..=SEEDS);
    scenarios::lossy_control_with_http().run_seeds(1..=SEEDS);
}

#[test]
fn lost_control() {
    scenarios::lost_control().run_seeds(1..=SEEDS);
}

#[test]
fn doubled_control() {
    scenarios::doubled_control().run_seeds(1..=SEEDS);
}

#[test]
fn late_control() {
    scenarios::late_control().run_seeds(1..=SEEDS);
}

#[test]
fn late_goodbyes() {
    scenarios::late_goodbyes().run_seeds(1..=SEEDS);
}

#[test]
fn owner_restarts_empty() {
    scenarios::owner_restarts_empty().run_seeds(1..=SEEDS);
}

#[test]
fn owners_restart_in_turn() {
    scenarios::owners_restart_in_turn().run_seeds(1..=SEEDS);
}

#[test]
fn pauses_of_who_asks() {
    scenarios::pauses_of_who_asks().run_seeds(1..=SEEDS);
}

#[test]
fn containerd_flaps() {
    scenarios::containerd_flaps().run_seeds(1..=SEEDS);
}

#[test]
fn containerd_hangs() {
    scenarios::containerd_hangs().run_seeds(1..=SEEDS);
}

#[test]
fn garbage_collection() {
    scenarios::garbage_collection().run_seeds(1..=SEEDS);
}

#[test]
fn upstream_down() {
    scenarios::upstream_down().run_seeds(1..=SEEDS);
}

#[test]
fn upstream_throttles() {
    scenarios::upstream_throttles().run_seeds(1..=SEEDS);
    scenarios::upstream_throttles_with_http().run_seeds(1..=SEEDS);
}

/// Neither for the registry nor for who waits longest, nor in how often the kubelet tries.
#[test]
fn throttling_registry_is_no_worse_with_a_mirror() {
    for seed in 1..=SEEDS {
        let with = scenarios::upstream_throttles().run(seed);
        let without = scenarios::upstream_throttles_without_mirror().run(seed);
        let figures = |outcome: &Outcome| {
            let tries: u32 = outcome.pulls.iter().map(|pull| pull.tries).sum();
            (scenarios::last_pull_ended_at(outcome), tries, outcome.upstream.requests)
        };
        let (with, without) = (figures(&with), figures(&without));
        let is_no_worse = with.0 <= without.0 && with.1 <= without.1 && with.2 <= without.2;
        assert!(
            is_no_worse,
            "seed {seed}: end, tries, requests: {with:?} with, {without:?} without a mirror"
        );
    }
}

#[test]
fn flash_crowd() {
    scenarios::flash_crowd().run_seeds(1..=SEEDS);
}

#[test]
fn idle_cluster() {
    scenarios::idle_cluster().run_seeds(1..=SEEDS);
}

/// Each run is three hundred nodes that greet each other: few seeds.
#[test]
fn newcomers_to_three_hundred() {
    scenarios::newcomers_to_three_hundred().run_seeds(1..=2);
}
