//! Scenarios beyond the incidents, over many seeds, each of them twice. What they are about is
//! told in `sim/src/scenarios.rs`.

use spegel_sim::scenarios;

const SEEDS: u64 = 16;

#[test]
fn partition_and_merge() {
    scenarios::partition_and_merge().run_seeds(1..=SEEDS);
}

#[test]
fn rolling_restart() {
    scenarios::rolling_restart().run_seeds(1..=SEEDS);
}

#[test]
fn frozen_process() {
    scenarios::frozen_process().run_seeds(1..=SEEDS);
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
}

#[test]
fn owner_restarts_empty() {
    scenarios::owner_restarts_empty().run_seeds(1..=SEEDS);
}

#[test]
fn containerd_flaps() {
    scenarios::containerd_flaps().run_seeds(1..=SEEDS);
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
fn flash_crowd() {
    scenarios::flash_crowd().run_seeds(1..=SEEDS);
}

#[test]
fn idle_cluster() {
    scenarios::idle_cluster().run_seeds(1..=SEEDS);
}
