//! A short swarm of fixed seeds, so that what makes, runs, judges and counts them stays alive.
//! `make soak` runs it for as long as one likes.

use std::time::Duration;

use spegel_sim::soak::Swarm;

const RUNS: u64 = 24;

#[test]
fn short_swarm_finds_nothing() {
    let swarm = Swarm { first_seed: 1, runs_max: RUNS, time_max: Duration::MAX, folder: None };
    let totals = swarm.run(|line| println!("{line}"));
    assert!(totals.failures.is_empty(), "{totals}\nshrink one: make soak MINUTES=1 SEED=...");
    assert_eq!(totals.runs(), RUNS);
    assert!(totals.whole_runs > 0 && totals.light_runs > 0, "both drivers ran: {totals}");
    assert!(totals.repeated > 0 && totals.pulls > 0 && totals.faults.len() > 10, "{totals}");
}
