//! A node that is alone is ready: it has nobody to ask, and that is an answer.

#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::time::Duration;

use spegel_tests::{Bootstrap, Cluster, ClusterOptions, Generation, ImageSpec, Puller};

const READY_MAX: Duration = Duration::from_secs(2);

fn alone_is_ready(bootstrap: Bootstrap) {
    let mut options = ClusterOptions::new(1, Generation::V2_1);
    options.bootstrap = bootstrap;
    let cluster = Cluster::new(options);
    let node = &cluster.nodes[0];
    cluster.spawn_spegel(node);
    let took = cluster.expect("ready", node.wait_ready(Duration::from_secs(30)));
    println!("{bootstrap:?}: ready after {took:?}");
    assert!(took <= READY_MAX, "{bootstrap:?}: a lone node is ready after {took:?}, not {READY_MAX:?}");

    let image = cluster.image(&ImageSpec::new("alone", "1", &[1000]));
    cluster.expect("a pull goes to the registry", node.pull(Puller::Cri, &image.by_tag()));
    cluster.expect("and is served from here", node.wait_finds(&image, Duration::from_secs(1)));
}

#[test]
fn lone_node_with_dns_bootstrap_is_ready_in_two_seconds() {
    alone_is_ready(Bootstrap::Dns);
}

#[test]
fn lone_node_with_http_bootstrap_is_ready_in_two_seconds() {
    alone_is_ready(Bootstrap::Http);
}

#[test]
fn lone_node_with_static_bootstrap_is_ready_in_two_seconds() {
    alone_is_ready(Bootstrap::Static);
}

#[test]
fn lone_node_whose_bootstrap_name_does_not_exist_is_ready_in_two_seconds() {
    let cluster = Cluster::new(ClusterOptions::new(1, Generation::V2_1));
    cluster.set_bootstrap_addresses(&[]);
    cluster.spawn_spegel(&cluster.nodes[0]);
    let took = cluster.expect("ready", cluster.nodes[0].wait_ready(Duration::from_secs(30)));
    assert!(took <= READY_MAX, "ready after {took:?} without a bootstrap answer, not {READY_MAX:?}");
}
