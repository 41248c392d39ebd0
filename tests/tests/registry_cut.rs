//! With the registry gone, a node pulls whatever another node has: by tag and by digest, through the kubelet's
//! API and by `ctr`, a multi-architecture image and a lone manifest, on every generation of containerd.

use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, Puller, mib};

struct Case {
    puller: Puller,
    by_tag: bool,
    image: Image,
}

fn cases(cluster: &Cluster) -> Vec<Case> {
    let mut cases = Vec::new();
    for puller in Puller::ALL {
        for by_tag in [true, false] {
            for index in [true, false] {
                let repository = format!("cut/{puller:?}-{by_tag}-{index}").to_lowercase();
                let spec = ImageSpec::new(&repository, "1.0", &[mib(2), mib(1), 1000]);
                let image = cluster.image(&if index { spec } else { spec.single() });
                cases.push(Case { puller, by_tag, image });
            }
        }
    }
    cases
}

fn every_pull_succeeds_without_the_registry(generation: Generation) {
    let cluster = Cluster::with_spegel(ClusterOptions::new(2, generation));
    let [holder, puller] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let cases = cases(&cluster);
    for case in &cases {
        // By the same way: `ctr` of 2.1 wants the other architecture's manifest too, which the kubelet's pull
        // does not fetch and so nobody would have.
        cluster.expect("pull from the registry", holder.pull(case.puller, &case.image.by_tag()));
    }
    for case in &cases {
        cluster.expect("the image is shared", puller.wait_finds(&case.image, Duration::from_secs(5)));
    }

    let (connections, sent) = (cluster.upstream.connections(), cluster.upstream.link_bytes().sent);
    cluster.upstream.cut();
    for Case { puller: by, by_tag, image } in &cases {
        let name = if *by_tag { image.by_tag() } else { image.by_digest() };
        cluster.expect(&format!("{by:?} pulls {name} without the registry"), puller.pull(*by, &name));
        cluster.expect("content", puller.verify(image));
    }
    assert_eq!(cluster.upstream.connections(), connections, "0 connections to the registry");
    assert_eq!(cluster.upstream.link_bytes().sent, sent, "0 bytes from the registry");
}

#[test]
fn containerd_1_6_pulls_without_the_registry() {
    every_pull_succeeds_without_the_registry(Generation::V1_6);
}

#[test]
fn containerd_1_7_pulls_without_the_registry() {
    every_pull_succeeds_without_the_registry(Generation::V1_7);
}

#[test]
fn containerd_2_1_pulls_without_the_registry() {
    every_pull_succeeds_without_the_registry(Generation::V2_1);
}
