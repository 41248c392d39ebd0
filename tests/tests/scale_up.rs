//! A cluster grows from one node. The first is ready alone, and neither it nor any other is restarted so that
//! those that join later can share with all the rest.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, Puller, mib};

const NODES: u8 = 4;
const READY_MAX: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);
/// A node that joins asks the bootstrapper at once; the rest is a round trip or two.
const FOUND_MAX: Duration = Duration::from_secs(5);

fn nodes_that_join_one_by_one_share(generation: Generation) {
    let cluster = Cluster::new(ClusterOptions::new(NODES, generation));
    let first = &cluster.nodes[0];
    // As in Kubernetes, the name leads to the nodes that are there, the asker among them.
    cluster.set_bootstrap_addresses(&[first.address()]);
    cluster.spawn_spegel(first);
    let alone = cluster.expect("ready alone", first.wait_ready(PATIENCE));
    println!("{generation:?}: alone, the first node is ready after {alone:?}");
    assert!(alone <= READY_MAX, "{generation:?}: alone, ready after {alone:?}, not {READY_MAX:?}");

    let mut images: Vec<Image> = Vec::new();
    for (n, node) in cluster.nodes.iter().enumerate() {
        if n > 0 {
            let addresses: Vec<_> = cluster.nodes[..=n].iter().map(|node| node.address()).collect();
            cluster.set_bootstrap_addresses(&addresses);
            cluster.spawn_spegel(node);
            let ready = cluster.expect("ready", node.wait_ready(PATIENCE));
            assert!(ready <= READY_MAX, "{generation:?}: {} is ready after {ready:?}", node.name);
        }
        let image = cluster.image(&ImageSpec::new(&format!("join/{n}"), "1", &[mib(1), 1000]));
        cluster.expect("pull from the registry", node.pull(Puller::Cri, &image.by_tag()));
        images.push(image);
        // Whoever is there finds what any of them has: the new node the old content, the old nodes the new.
        for reader in &cluster.nodes[..=n] {
            for image in &images {
                let found = cluster.expect("found", reader.wait_finds(image, PATIENCE));
                assert!(found <= FOUND_MAX, "{generation:?}: {} finds it after {found:?}", reader.name);
            }
        }
    }

    cluster.upstream.cut();
    for (n, node) in cluster.nodes.iter().enumerate() {
        for image in images.iter().enumerate().filter_map(|(of, image)| (of != n).then_some(image)) {
            cluster.expect("pull from another node", node.pull(Puller::Cri, &image.by_tag()));
            cluster.expect("content", node.verify(image));
        }
        assert_eq!(node.spegel_exited(), None, "{} runs as it was started", node.name);
    }
}

#[test]
fn nodes_with_containerd_1_6_that_join_one_by_one_share() {
    nodes_that_join_one_by_one_share(Generation::V1_6);
}

#[test]
fn nodes_with_containerd_1_7_that_join_one_by_one_share() {
    nodes_that_join_one_by_one_share(Generation::V1_7);
}

#[test]
fn nodes_with_containerd_2_1_that_join_one_by_one_share() {
    nodes_that_join_one_by_one_share(Generation::V2_1);
}
