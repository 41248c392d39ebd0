//! Faults of the network between nodes, made where the nodes are joined: what is cut, lost or sent twice.
//!
//! The kernel need not have `netem`: nftables can do all of this. Delay and reordering come by themselves
//! where TCP must repeat what was lost.

use std::net::IpAddr;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::netns::NetNs;
use crate::node::Node;
use crate::wait_for;

/// What happens to packets on their way from one node to another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Noise {
    /// Of a hundred packets, so many are lost.
    pub lost_percent: u8,
    /// Of a hundred packets, so many arrive twice.
    pub doubled_percent: u8,
    /// Only what goes to or from this port.
    pub port: Option<u16>,
}

impl Cluster {
    fn switch(&self) -> NetNs {
        NetNs::open(&format!("{}-br", self.name))
    }

    /// Nothing passes between the two groups any more, silently. Undone by [`Self::heal`].
    pub fn cut(&self, left: &[&Node], right: &[&Node]) {
        let rules = format!(
            "table bridge cut {{\n chain forward {{\n  type filter hook forward priority 0\n  \
             iifname {left} oifname {right} drop\n  iifname {right} oifname {left} drop\n }}\n}}\n",
            left = ports(left),
            right = ports(right)
        );
        self.switch().nft(&rules).expect("the kernel filters bridges");
    }

    /// From now on the links between nodes are bad. Undone by [`Self::heal`].
    pub fn disturb(&self, noise: Noise) {
        let Noise { lost_percent: lost, doubled_percent: doubled, port } = noise;
        let matches = match port {
            Some(port) => vec![format!("tcp sport {port}"), format!("tcp dport {port}")],
            None => vec![String::new()],
        };
        let all: Vec<&Node> = self.nodes.iter().collect();
        let all = ports(&all);
        let mut rules = "table bridge noise {\n counter lost { }\n chain forward {\n  \
                         type filter hook forward priority 0\n"
            .to_owned();
        for what in &matches {
            rules.push_str(&format!(
                "  iifname {all} oifname {all} {what} numgen random mod 100 < {lost} counter name lost drop\n"
            ));
        }
        rules.push_str(" }\n}\ntable netdev noise {\n counter doubled { }\n");
        for Node { name, .. } in &self.nodes {
            rules.push_str(&format!(
                " chain to_{name} {{\n  type filter hook egress device \"{name}\" priority 0\n"
            ));
            for what in &matches {
                rules.push_str(&format!(
                    "  {what} numgen random mod 100 < {doubled} counter name doubled dup to \"{name}\"\n"
                ));
            }
            rules.push_str(" }\n");
        }
        rules.push_str("}\n");
        self.switch().nft(&rules).expect("the kernel filters bridges");
    }

    /// Packets lost and doubled since [`Self::disturb`].
    #[must_use]
    pub fn disturbed(&self) -> (u64, u64) {
        let switch = self.switch();
        (switch.counter("lost"), switch.counter("doubled"))
    }

    /// Undoes [`Self::cut`] and [`Self::disturb`].
    pub fn heal(&self) {
        let tables = ["bridge cut", "bridge noise", "netdev noise"];
        // Made first, so that the removal of what is not there is no error.
        let rules = tables.map(|table| format!("table {table}\ndelete table {table}\n")).concat();
        self.switch().nft(&rules).expect("what was made can be removed");
    }

    /// Waits until every node counts all nodes as members, and says how long that took.
    ///
    /// # Errors
    /// Naming one that does not.
    pub fn wait_whole(&self, within: Duration) -> Result<Duration, String> {
        self.nodes.iter().try_fold(Duration::ZERO, |elapsed, node| {
            let took = node.wait_members(self.nodes.len(), within.saturating_sub(elapsed))?;
            Ok(elapsed + took)
        })
    }
}

impl Node {
    /// Waits until this node counts so many members, itself among them, and says how long that took.
    ///
    /// # Errors
    /// With the number it has instead.
    pub fn wait_members(&self, count: usize, within: Duration) -> Result<Duration, String> {
        let wanted = u32::try_from(count).expect("a cluster is small");
        let look = || match self.metric("spegel_members", "")? {
            members if (members - f64::from(wanted)).abs() < 0.5 => Ok(()),
            members => Err(format!("{} counts {members} members, not {count}", self.name)),
        };
        wait_for("members", within, look).map(|((), elapsed)| elapsed)
    }

    /// Counts connections that this node opens to any of these addresses from now on; read by
    /// [`NetNs::counter`].
    pub fn count_connections(&self, counter: &str, addresses: &[IpAddr], port: u16) {
        let to: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        // NAT sees the first packet of each connection, and not those sent again because nobody answered; it is
        // the mention of `ct` that makes the kernel track connections.
        let rules = format!(
            "table ip count_{counter} {{\n counter {counter} {{ }}\n chain output {{\n  \
             type nat hook output priority -110\n  ct state new ip daddr {{ {} }} tcp dport {port} counter name {counter}\n }}\n}}\n",
            to.join(", ")
        );
        self.netns().nft(&rules).expect("the kernel has NAT");
    }
}

impl NetNs {
    /// Packets that a named counter of nftables has seen.
    ///
    /// # Panics
    /// If there is none of this name.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.run("nft", &["list", "counters"]).expect("nft lists counters");
        let start = format!("counter {name} {{");
        let packets = counters.split_once(&start).and_then(|(_, rest)| rest.split_whitespace().nth(1));
        packets.and_then(|packets| packets.parse().ok()).unwrap_or_else(|| panic!("no {name} in {counters}"))
    }

    /// Who connects from outside to `port` reaches `other` instead, until [`Self::undivert`].
    pub fn divert(&self, port: u16, other: u16) {
        let rules = format!(
            "table ip divert{port} {{\n chain prerouting {{\n  type nat hook prerouting priority -100\n  \
             iifname eth0 tcp dport {port} redirect to :{other}\n }}\n}}\n"
        );
        self.nft(&rules).expect("the kernel has NAT");
    }

    /// Undoes [`Self::divert`].
    pub fn undivert(&self, port: u16) {
        self.nft(&format!("delete table ip divert{port}\n")).expect("what was diverted can be undone");
    }
}

fn ports(nodes: &[&Node]) -> String {
    let names: Vec<String> = nodes.iter().map(|node| format!("\"{}\"", node.name)).collect();
    format!("{{ {} }}", names.join(", "))
}
