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
    let image = cluster.image(&ImageSpec::new("family", "1", &[mib(1), 1000]));
    cluster.upstream.cut();
    // The first node is the one the others bootstrapped from, so it is neither holder nor puller.
    cluster.expect("import", second.import(&image));
    cluster.expect("shared", third.wait_finds(&image, PATIENCE));
    cluster.expect(
        &format!("{family:?}, {bootstrap:?}: a pull from a peer"),
        third.pull(Puller::Cri, &image.by_tag()),
    );
    cluster.expect("content", third.verify(&image));
    cluster.expect("shared", first.wait_finds(&image, PATIENCE));
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
