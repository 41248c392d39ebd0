//! What the bootstrapper names are mostly lies: addresses of nobody, an HTTP server, a port that accepts and says
//! nothing, the node itself. The cluster forms by the one address that is right, and nobody is kept busy by the
//! rest. Mirrors the simulated scenario of a member list that lies.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use spegel_tests::{
    Cluster, ClusterOptions, Generation, ImageSpec, Node, ROUTER_PORT, StandIn, answer_status, stay_silent,
};

const NOBODY: [&str; 8] = [
    "10.99.0.230",
    "10.99.0.231",
    "10.99.0.232",
    "10.99.0.233",
    "10.99.0.234",
    "10.99.0.235",
    "10.99.0.236",
    "10.99.0.237",
];
const WEB_SERVER: &str = "10.99.0.251";
const SILENT: &str = "10.99.0.252";
/// Five addresses are dialled at a time for up to five seconds, and eleven are named.
const FORMED_MAX: Duration = Duration::from_secs(30);
const WATCH: Duration = Duration::from_secs(8);
const CPU_SHARE_MAX: f64 = 0.02;
/// Each of four nodes may dial it in each of the quick attempts.
const DIALS_MAX: u32 = 4 * 10;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn cluster_forms_by_the_one_address_that_is_right() {
    let cluster = Cluster::new(ClusterOptions::new(4, Generation::V2_1));
    let registry = cluster.upstream.netns();
    for liar in [WEB_SERVER, SILENT] {
        let added = registry.run("ip", &["addr", "add", &format!("{liar}/24"), "dev", "eth0"]);
        cluster.expect("another address", added);
    }
    let at = |liar| SocketAddr::new(address(liar), ROUTER_PORT);
    let web_server = StandIn::start(registry, at(WEB_SERVER), |mut stream| {
        answer_status(&mut stream, "400 Bad Request");
    });
    let silent = StandIn::start(registry, at(SILENT), |mut stream| stay_silent(&mut stream));
    let right = cluster.nodes[0].address();
    let named: Vec<IpAddr> =
        NOBODY.into_iter().chain([WEB_SERVER, SILENT]).map(address).chain([right]).collect();
    cluster.set_bootstrap_addresses(&named);

    cluster.start_spegel();
    let formed = cluster.expect("the cluster forms", cluster.wait_whole(FORMED_MAX));
    println!("formed {formed:?} after the mirrors were ready");
    let [_, holder, .., last] = cluster.nodes.as_slice() else { panic!("four nodes") };
    let _image = cluster.held_image(&ImageSpec::new("lies", "1", &[1000]), &[holder], last);

    let cpu: Vec<f64> = cluster.nodes.iter().map(Node::spegel_cpu_seconds).collect();
    thread::sleep(WATCH);
    for (node, before) in cluster.nodes.iter().zip(cpu) {
        let share = (node.spegel_cpu_seconds() - before) / WATCH.as_secs_f64();
        println!("{}: {:.2} % of a processor", node.name, share * 100.0);
        assert!(share <= CPU_SHARE_MAX, "{}: {:.1} % of a processor, not 2 %", node.name, share * 100.0);
        assert_eq!(node.spegel_exited(), None, "{} still runs", node.name);
    }
    let dials = [web_server.asked(), silent.asked()];
    println!("the HTTP server and the silent one were dialled {dials:?} times");
    assert!(dials.iter().all(|dials| (1..=DIALS_MAX).contains(dials)), "dialled {dials:?} times");
}
