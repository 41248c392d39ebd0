//! The harness itself: clusters of each generation come up, pull, break and leave nothing behind.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "real parts run on the real clock, and report figures"
)]

use std::time::{Duration, Instant};

use spegel_tests::{
    BodyEnd, Cluster, ClusterOptions, Generation, ImageSpec, IpFamily, Puller, leftovers, mib,
};

fn pulls_until_the_registry_is_cut(generation: Generation) {
    let start = Instant::now();
    let cluster = Cluster::new(ClusterOptions::new(1, generation));
    println!("{generation:?}: cluster up in {:?}", start.elapsed());
    let node = &cluster.nodes[0];
    for puller in Puller::ALL {
        let before = cluster.upstream.link_bytes().sent;
        let image = cluster.image(&ImageSpec::new("app", &format!("{puller:?}"), &[mib(5), mib(3), mib(2)]));
        let took = cluster.expect("pull", node.pull(puller, &image.by_tag()));
        cluster.expect("content", node.verify(&image));
        let sent = cluster.upstream.link_bytes().sent - before;
        println!("{generation:?}: {puller:?} pulled 10 MiB in {took:?}");
        assert!((mib(10)..mib(12)).contains(&sent), "the registry sent {sent} bytes for 10 MiB");
    }
    let imported = cluster.unpublished_image(&ImageSpec::new("imported", "1", &[mib(1)]));
    cluster.expect("import", node.import(&imported));
    cluster.expect("content", node.verify(&imported));
    assert!(
        cluster.expect("list", node.images()).contains(&imported.by_tag()),
        "the imported image has its name"
    );
    let staged = cluster.unpublished_image(&ImageSpec::new("staged", "1", &[mib(1)]));
    cluster.expect("ingest", node.ingest(&staged, &staged.layers[0]));
    assert!(node.has(&staged.layers[0]), "the ingested blob is content");

    let unreachable = cluster.image(&ImageSpec::new("app", "unreachable", &[1000]).single());
    let fetched = cluster.image(&ImageSpec::new("app", "fetched", &[1000]).single());
    cluster.expect("fetch", node.fetch(&fetched.by_tag()));
    cluster.expect("content", node.verify(&fetched));
    cluster.upstream.cut();
    // A pull of something else would wait for half a minute; a connection shows it in a second.
    let registry = "10.99.0.250:80".parse().expect("an address");
    assert!(node.connect(registry).is_err(), "the registry is gone");
    cluster.upstream.restore();
    cluster.expect("pull after the cut", node.pull(Puller::Cri, &unreachable.by_digest()));
    cluster.expect("remove", node.remove_image(&unreachable.by_digest()));
    assert!(!node.has(&unreachable.layers[0]), "removed content is collected before the answer");

    let many: Vec<_> =
        (0..20).map(|n| cluster.unpublished_image(&ImageSpec::new("many", &n.to_string(), &[100]))).collect();
    cluster.expect("store", node.store(&many));
    many.iter().for_each(|image| cluster.expect("content", node.verify(image)));

    let name = cluster.name.clone();
    drop(cluster);
    let left: Vec<String> = leftovers().into_iter().filter(|left| left.starts_with(&name)).collect();
    assert_eq!(left, Vec::<String>::new(), "nothing is left behind");
}

#[test]
fn containerd_1_6_pulls_until_the_registry_is_cut() {
    pulls_until_the_registry_is_cut(Generation::V1_6);
}

#[test]
fn containerd_1_7_pulls_until_the_registry_is_cut() {
    pulls_until_the_registry_is_cut(Generation::V1_7);
}

#[test]
fn containerd_2_1_pulls_until_the_registry_is_cut() {
    pulls_until_the_registry_is_cut(Generation::V2_1);
}

#[test]
fn four_nodes_on_two_families_reach_each_other_and_can_be_limited() {
    let mut options = ClusterOptions::new(4, Generation::V2_1);
    options.family = IpFamily::Dual;
    options.upstream_mbit = Some(80);
    options.in_memory = true;
    let start = Instant::now();
    let cluster = Cluster::new(options);
    println!("4 nodes up in {:?}", start.elapsed());
    let image = cluster.image(&ImageSpec::new("app", "1", &[mib(5)]));
    let took = cluster.expect("pull", cluster.nodes[3].pull(Puller::Cri, &image.by_tag()));
    assert!(took > Duration::from_millis(350), "5 MiB at 80 Mbit/s take half a second, not {took:?}");
    let address = "[fd99::fa]:80".parse().expect("an address");
    let mut client = cluster.expect("IPv6", cluster.nodes[0].connect(address));
    let path = format!("/v2/{}/blobs/{}", image.repository, image.layers[0].digest);
    let answer = cluster.expect("GET", client.get(&path, &[("Range", "bytes=0-9")]));
    assert_eq!((answer.status, answer.body.len(), answer.end), (206, 10, BodyEnd::Complete));

    cluster.nodes[1].link_down();
    let start = Instant::now();
    let refused = cluster.nodes[1].connect(address);
    assert!(
        refused.is_err() && start.elapsed() > Duration::from_secs(1),
        "a node without a link hears nothing"
    );
    cluster.nodes[1].link_up();
    cluster.expect("IPv6 after the link is back", cluster.nodes[1].connect(address));
}
