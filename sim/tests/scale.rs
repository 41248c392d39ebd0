//! What a node costs does not depend on how large its cluster is. `make sim-scale` compares
//! larger ones.

use spegel_sim::scale::{self, Size};

/// How much more an idle node may say in the large cluster: chance, not growth.
const IDLE_GROWTH_MAX: f64 = 1.1;

#[test]
fn idle_nodes_of_a_larger_cluster_do_not_say_more() {
    let [small, large] = [50, 200].map(|nodes| {
        let costs = scale::run(Size { nodes, quarters: 1, seed: 1 }, 2, |_| 0);
        assert_eq!(costs.error, None, "{nodes} nodes");
        assert_eq!((costs.pulls_failed, costs.pulls > nodes), (0, true), "{costs:?}");
        costs.idle
    });
    let (few, many) = (small.messages.mean, large.messages.mean);
    assert!(few > 1.0 && many < few * IDLE_GROWTH_MAX, "messages/s: {few} among 50, {many} among 200");
    let (few, many) = (small.bytes.mean, large.bytes.mean);
    assert!(many < few * IDLE_GROWTH_MAX, "bytes/s: {few} among 50, {many} among 200");
}
