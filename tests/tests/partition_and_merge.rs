//! The network between two halves of the cluster is cut: each goes on sharing what it has, and when the network
//! is whole again so is the cluster, without a restart. Mirrors the simulated scenario `partition_and_merge`.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller};

const LAYERS: [u64; 2] = [100_000, 100_000];
const PATIENCE: Duration = Duration::from_secs(20);
/// Until when each half knows that the other is out of reach.
const APART_MAX: Duration = Duration::from_secs(12);
/// From the end of the cut until all count each other, and until all is found, as in the simulator.
const MERGED_MAX: Duration = Duration::from_secs(60);
const FOUND_MAX: Duration = Duration::from_secs(5);
const PULL_MAX: Duration = Duration::from_secs(2);

fn pull(cluster: &Cluster, what: &str, puller: &Node, image: &Image) {
    let took = cluster.expect(what, puller.pull(Puller::Cri, &image.by_tag()));
    cluster.expect("content", puller.verify(image));
    println!("{what}: {took:?}");
    assert!(took <= PULL_MAX, "{what}: {} pulled in {took:?}, not {PULL_MAX:?}", puller.name);
}

#[test]
fn halves_share_their_own_and_the_whole_shares_all_again() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(6, Generation::V2_1));
    cluster.expect("the cluster forms", cluster.wait_whole(PATIENCE));
    let [a, b, c, d, e, f] = cluster.nodes.as_slice() else { panic!("six nodes") };
    let (left, right) = ([a, b, c], [d, e, f]);
    let specs = ["before", "during"].map(|tag| ImageSpec::new("partition", tag, &LAYERS));
    let [before, during] = specs.map(|spec| cluster.image(&spec));
    for holder in [a, d] {
        cluster.expect("import", holder.import(&before));
    }
    cluster.expect("shared", f.wait_finds(&before, PATIENCE));
    cluster.upstream.cut();

    cluster.cut(&left, &right);
    for node in left.iter().chain(&right) {
        let apart = cluster.expect("the other half is given up", node.wait_members(3, APART_MAX));
        println!("{} counts its own half after another {apart:?}", node.name);
    }
    pull(&cluster, "left of the cut", b, &before);
    pull(&cluster, "right of the cut", e, &before);
    cluster.expect("import on the left", a.import(&during));
    cluster.expect("shared on the left", c.wait_finds(&during, PATIENCE));
    assert!(f.finds(&during.tag_path()).is_err(), "nothing passes the cut");

    cluster.heal();
    let merged = cluster.expect("the halves merge", cluster.wait_whole(MERGED_MAX));
    let found = cluster.expect("what came during the cut is found", f.wait_finds(&during, PATIENCE));
    println!("merged {merged:?} after the network, content of the other half found {found:?} later");
    assert!(found <= FOUND_MAX, "found {found:?} after the halves had merged, not {FOUND_MAX:?}");
    pull(&cluster, "from the other half", e, &during);
    pull(&cluster, "from either half", c, &before);
}
