//! A bootstrap address that leads back to the node that dials it (a Service address, a hairpin) is noticed:
//! it is not dialled over and over, and the idle node stays idle.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Node};

/// The address every node finds itself behind.
const VIRTUAL: &str = "10.99.0.100";
/// Attempts that may come quickly, while the node does not know better.
const QUICK_ATTEMPTS_MAX: u64 = 10;
const SETTLE: Duration = Duration::from_secs(20);
const WATCH: Duration = Duration::from_secs(60);
/// A second attempt may fall on either edge of the minute.
const ATTEMPTS_A_MINUTE_MAX: u64 = 1;
const CPU_SHARE_MAX: f64 = 0.01;

fn lead_back(node: &Node) {
    let own = node.address();
    let rules = format!(
        "table ip selftest {{\n counter attempts {{ }}\n chain output {{\n  type nat hook output priority -100;\n  \
         ip daddr {VIRTUAL} counter name attempts dnat to {own}\n }}\n}}\n"
    );
    node.netns().nft(&rules).expect("nftables does NAT here");
}

/// Connections that were opened to the virtual address: NAT sees the first packet of each.
fn attempts(node: &Node) -> u64 {
    node.netns().counter("attempts")
}

fn stays_calm(nodes: u8) {
    let cluster = Cluster::new(ClusterOptions::new(nodes, Generation::V2_1));
    cluster.set_bootstrap_addresses(&[VIRTUAL.parse().expect("an address")]);
    cluster.nodes.iter().for_each(lead_back);
    cluster.start_spegel();
    thread::sleep(SETTLE);
    let before: Vec<(u64, f64)> =
        cluster.nodes.iter().map(|node| (attempts(node), node.spegel_cpu_seconds())).collect();
    thread::sleep(WATCH);
    for (node, (attempts_before, cpu_before)) in cluster.nodes.iter().zip(before) {
        println!("{}: {attempts_before} attempts at first", node.name);
        assert!(attempts_before > 0, "{}: the address was never dialled, so this shows nothing", node.name);
        let later = attempts(node).saturating_sub(attempts_before.max(QUICK_ATTEMPTS_MAX));
        assert!(
            later <= ATTEMPTS_A_MINUTE_MAX,
            "{}: {later} bootstrap attempts in a minute after the first {QUICK_ATTEMPTS_MAX} ({attempts_before} before), \
             not {ATTEMPTS_A_MINUTE_MAX}\n{}",
            node.name,
            node.logs()
        );
        let share = (node.spegel_cpu_seconds() - cpu_before) / WATCH.as_secs_f64();
        assert!(share <= CPU_SHARE_MAX, "{}: {:.1} % of a processor, not 1 %", node.name, share * 100.0);
        assert_eq!(node.spegel_exited(), None, "{} still runs", node.name);
    }
}

#[test]
fn bootstrap_address_that_leads_back_is_not_dialled_again_and_again() {
    stays_calm(2);
}
