//! What DNS answers, and where the addresses lead that it gives.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};
use spegel_core::{BootstrapAddr, Input, PeerId};

use super::{Dns, Index, World, machine::index_of};
use crate::{
    fault::{VIP, endpoint},
    node::{ROUTER_PORT, peer_of},
};

/// Networks of addresses where nobody is, where something is that is no mirror, and where others
/// answer who have never heard of this cluster.
const NOBODYS: [u8; 2] = [10, 1];
const CLOSED: [u8; 2] = [10, 2];
const STRANGERS: [u8; 2] = [10, 3];

/// Of a hundred answers of a list that is a lie, so many are empty.
const EMPTY_PERCENT: u8 = 25;

/// Whom an address leads to.
pub(super) enum Target {
    Node(Index),
    /// Something that takes the connection for a mistake.
    Refuses,
    /// Somebody who answers a dial, and nothing else.
    Stranger(PeerId),
    Nobody,
}

impl World<'_> {
    pub(super) fn target(&mut self, node: Index, addr: SocketAddr) -> Target {
        if let (Dns::Vip { self_percent }, true) = (self.plan.dns, addr == VIP) {
            let others: Vec<_> =
                self.listed.iter().map(|(_, listed)| *listed).filter(|listed| *listed != node).collect();
            return Target::Node(endpoint(self_percent, node, &others, &mut self.rng));
        }
        match index_of(addr.ip()).filter(|index| *index < self.machines.len()) {
            Some(_) if addr.port() != ROUTER_PORT => Target::Refuses,
            Some(index) => Target::Node(index),
            None if is_of(addr, CLOSED) => Target::Refuses,
            None if is_of(addr, STRANGERS) => Target::Stranger(stranger(addr)),
            None => Target::Nobody,
        }
    }

    /// What DNS answers a node.
    pub(super) fn resolve(&mut self, node: Index) -> Input {
        let (now, plan) = (self.now, self.plan);
        let listed_for = |age| self.listed.iter().filter(move |(since, _)| *since + age <= now);
        let router = |node: Index| SocketAddr::new(self.machines[node].ip, ROUTER_PORT);
        let addrs = match plan.dns {
            Dns::List { stale } => {
                let addrs = listed_for(stale).map(|(_, node)| router(*node));
                addrs.map(|addr| BootstrapAddr { addr, peer: None }).collect()
            }
            Dns::Vip { .. } => vec![BootstrapAddr { addr: VIP, peer: None }],
            Dns::Lie { empty_for, .. } if now < empty_for => Vec::new(),
            Dns::Lie { .. } if self.percent(EMPTY_PERCENT) => {
                return Input::BootstrapResolved { addrs: Vec::new() };
            }
            Dns::Lie { entries_max, .. } => self.lies(node, entries_max),
        };
        if addrs.is_empty() {
            Input::BootstrapFailed { cause: "no such host".to_owned() }
        } else {
            Input::BootstrapResolved { addrs }
        }
    }

    /// About half of the nodes there are, among so many addresses that lead elsewhere or have
    /// another's name; others each time.
    fn lies(&mut self, node: Index, entries_max: usize) -> Vec<BootstrapAddr> {
        let router =
            |machines: &[super::Machine], node: Index| SocketAddr::new(machines[node].ip, ROUTER_PORT);
        let mut addrs = Vec::new();
        for (_, listed) in &self.listed {
            if self.rng.random_bool(0.5) {
                let peer = self.rng.random_bool(0.5).then(|| self.machines[*listed].peer);
                addrs.push(BootstrapAddr { addr: router(&self.machines, *listed), peer });
            }
        }
        let count = self.rng.random_range(0..entries_max);
        while addrs.len() < count {
            let rng = &mut self.rng;
            let (of, me) = (rng.random_range(0..self.machines.len()), self.machines[node].peer);
            let machine = &self.machines[of];
            let (addr, peer) = match rng.random_range(0..100) {
                0..70 => (elsewhere(rng, NOBODYS), None),
                70..80 => (elsewhere(rng, CLOSED), None),
                80..88 => (elsewhere(rng, STRANGERS), None),
                88..90 => (elsewhere(rng, STRANGERS), Some(machine.peer)),
                90..92 => (router(&self.machines, of), Some(stranger(elsewhere(rng, STRANGERS)))),
                92..94 => (router(&self.machines, of), Some(me)),
                94..96 => (router(&self.machines, node), Some(machine.peer)),
                96..98 => (router(&self.machines, node), None),
                98 => (SocketAddr::new(self.machines[node].ip, rng.random_range(1..ROUTER_PORT)), None),
                _ => (SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), ROUTER_PORT), None),
            };
            addrs.push(BootstrapAddr { addr, peer });
        }
        addrs.shuffle(&mut self.rng);
        addrs
    }
}

fn elsewhere(rng: &mut StdRng, [a, b]: [u8; 2]) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(a, b, rng.random(), rng.random()).into(), ROUTER_PORT)
}

fn is_of(addr: SocketAddr, [a, b]: [u8; 2]) -> bool {
    matches!(addr.ip(), IpAddr::V4(ip) if ip.octets().starts_with(&[a, b]))
}

/// Who is at an address of strangers.
fn stranger(addr: SocketAddr) -> PeerId {
    peer_of(&addr.to_string())
}
