//! Nodes find each other and share over IPv4, over IPv6 alone and with both, by each way of bootstrap.

use std::time::Duration;

use spegel_tests::{Bootstrap, Cluster, ClusterOptions, Generation, ImageSpec, IpFamily, Puller, mib};

const PATIENCE: Duration = Duration::from_secs(10);

fn nodes_share(family: IpFamily, bootstrap: Bootstrap) {
    let mut options = ClusterOptions::new(3, Generation::V2_1);
    options.family = family;
    options.bootstrap = bootstrap;
    let cluster = Cluster::with_spegel(options);
    let [first, second, third] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let index = ImageSpec::new("family/index", "1", &[mib(1), 1000]);
    let lone = ImageSpec::new("family/lone", "1", &[mib(1), 1000]).single();
    let images = [&index, &lone].map(|spec| cluster.image(spec));
    let connections = cluster.upstream.connections();
    cluster.upstream.cut();
    let what = format!("{family:?}, {bootstrap:?}: a pull from a peer");
    for (image, by, name) in
        [(&images[0], Puller::Cri, images[0].by_tag()), (&images[1], Puller::Ctr, images[1].by_digest())]
    {
        // The first node is the one the others bootstrapped from, so it is neither holder nor puller.
        cluster.expect("import", second.import(image));
        cluster.expect("shared", third.wait_finds(image, PATIENCE));
        cluster.expect(&what, third.pull(by, &name));
        cluster.expect("content", third.verify(image));
        cluster.expect("shared", first.wait_finds(image, PATIENCE));
    }
    assert_eq!(cluster.upstream.connections(), connections, "{what}: 0 connections to the registry");
}

#[test]
fn ipv6_only_nodes_share_after_dns_bootstrap() {
    nodes_share(IpFamily::V6, Bootstrap::Dns);
}

#[test]
fn ipv6_only_nodes_share_after_http_bootstrap() {
    nodes_share(IpFamily::V6, Bootstrap::Http);
}

#[test]
fn ipv6_only_nodes_share_after_static_bootstrap() {
    nodes_share(IpFamily::V6, Bootstrap::Static);
}

#[test]
fn dual_stack_nodes_share_after_dns_bootstrap() {
    nodes_share(IpFamily::Dual, Bootstrap::Dns);
}

#[test]
fn dual_stack_nodes_share_after_http_bootstrap() {
    nodes_share(IpFamily::Dual, Bootstrap::Http);
}

#[test]
fn dual_stack_nodes_share_after_static_bootstrap() {
    nodes_share(IpFamily::Dual, Bootstrap::Static);
}

#[test]
fn ipv4_nodes_share_after_http_bootstrap() {
    nodes_share(IpFamily::V4, Bootstrap::Http);
}

#[test]
fn ipv4_nodes_share_after_static_bootstrap() {
    nodes_share(IpFamily::V4, Bootstrap::Static);
}
