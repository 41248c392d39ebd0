//! The incidents, over many seeds, each of them twice.

use std::time::Duration;

use spegel_sim::{
    incidents::{SCALED_UP, scale_up_from_one_node},
    scenario::Outcome,
};

const SEEDS: u64 = 16;

/// A node that was alone had to be restarted before those that joined it could use it ("leader is
/// self, skipping"), and a containerd that came up late kept the mirror from ever starting
/// ("connection refused"). Here the first node is ready as soon as its containerd is there, and
/// every node that joins is served by the others without anything being restarted.
#[test]
fn scale_up_from_one_node_needs_no_restart() {
    scale_up_from_one_node().run_seeds(1..=SEEDS, |outcome: &Outcome| {
        let (first, ready_at) = outcome.ready.first().ok_or("no node ever became ready")?;
        if first != "n1" || *ready_at > Duration::from_secs(7) {
            return Err(format!("alone, {first} was ready after {ready_at:?}, not 2 s after its containerd"));
        }
        if outcome.ready.len() != SCALED_UP {
            return Err(format!("only {} of {SCALED_UP} nodes became ready", outcome.ready.len()));
        }
        if let Some(failed) = outcome.pulls.iter().find(|pull| pull.error.is_some()) {
            return Err(format!("a pull failed: {failed:?}"));
        }
        if outcome.pulls.len() != SCALED_UP {
            return Err(format!("only {} of {SCALED_UP} pulls ended", outcome.pulls.len()));
        }
        // Manifest, config and three layers, once, by the first node.
        if outcome.upstream_requests != 5 {
            return Err(format!("the registry was asked {} times, not 5", outcome.upstream_requests));
        }
        Ok(())
    });
}
