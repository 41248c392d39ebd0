//! Scenarios in which what a node is told is not so, over many seeds, each of them twice. What they
//! are about is told in `sim/src/untruths.rs`.

use spegel_sim::untruths;

const SEEDS: u64 = 16;

#[test]
fn clocks_step() {
    untruths::clocks_step().run_seeds(1..=SEEDS);
}

#[test]
fn member_list_is_a_lie() {
    untruths::member_list_is_a_lie().run_seeds(1..=SEEDS);
}

#[test]
fn two_releases_side_by_side() {
    untruths::two_releases_side_by_side().run_seeds(1..=SEEDS);
}
