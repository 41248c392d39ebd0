//! Random deaths, restarts, partitions, pauses and moves beside plain lists: what each node was told
//! adds up to what it says, and once all is well again everybody knows everybody as they are.

use proptest::{collection::vec, prelude::*};

use super::*;

const NODES: usize = 5;

#[derive(Clone, Debug)]
enum Step {
    Kill(usize),
    /// With a later clock than the life before, or an earlier one.
    Restart {
        node: usize,
        is_later: bool,
    },
    Leave(usize),
    Goodbye {
        by: usize,
        node: usize,
    },
    /// Nodes of one side do not reach those of the other.
    Cut {
        sides: u8,
    },
    Mend,
    Freeze(usize),
    Thaw(usize),
    Move {
        node: usize,
        ip: u8,
    },
    Join {
        node: usize,
        by: usize,
    },
    Run {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        2 => node().prop_map(Step::Kill),
        3 => (node(), prop::bool::weighted(0.8)).prop_map(|(node, is_later)| Step::Restart { node, is_later }),
        1 => node().prop_map(Step::Leave),
        1 => (node(), node()).prop_map(|(by, node)| Step::Goodbye { by, node }),
        2 => any::<u8>().prop_map(|sides| Step::Cut { sides }),
        2 => Just(Step::Mend),
        1 => node().prop_map(Step::Freeze),
        2 => node().prop_map(Step::Thaw),
        1 => (node(), 1..5_u8).prop_map(|(node, ip)| Step::Move { node, ip }),
        1 => (node(), node()).prop_map(|(node, by)| Step::Join { node, by }),
        6 => prop_oneof![0..500_u64, 0..12_000_u64].prop_map(|ms| Step::Run { ms }),
    ]
}

struct Model {
    cluster: Cluster,
    lives: u64,
    /// What each node was told since it started, added up.
    told: Vec<BTreeMap<PeerId, Member>>,
    seen: usize,
}

impl Model {
    fn is_up(&self, node: usize) -> bool {
        self.cluster.nodes[node].is_some()
    }

    fn start(&mut self, node: usize, generation: u64) {
        self.cluster.frozen.remove(&node);
        self.told[node].clear();
        let other =
            (0..NODES).find(|other| *other != node && self.is_up(*other)).unwrap_or((node + 1) % NODES);
        self.cluster.restart(node, generation, other);
    }

    fn end(&mut self, node: usize) {
        self.cluster.frozen.remove(&node);
        self.cluster.kill(node);
        self.told[node].clear();
    }

    fn apply(&mut self, step: Step) {
        let now = self.cluster.now;
        match step {
            Step::Kill(node) => self.end(node),
            Step::Restart { node, is_later } => {
                self.lives += 1;
                let age = self.lives * 5000;
                self.start(node, if is_later { GENERATION + age } else { GENERATION - age });
            }
            Step::Leave(node) if self.is_up(node) => {
                self.cluster.node(node).leave(now);
                self.cluster.drain(node);
                self.check();
                self.end(node);
            }
            Step::Goodbye { by, node } if self.is_up(by) => {
                self.cluster.node(by).on_goodbye(now, peer(node), None);
                self.cluster.drain(by);
            }
            Step::Cut { sides } => {
                (0..NODES).for_each(|node| self.cluster.group[node] = usize::from(sides >> node & 1));
            }
            Step::Mend => self.cluster.group.fill(0),
            Step::Freeze(node) if self.is_up(node) => drop(self.cluster.frozen.insert(node)),
            Step::Thaw(node) => drop(self.cluster.frozen.remove(&node)),
            Step::Move { node, ip } if self.is_up(node) => {
                self.cluster.node(node).set_addrs(now, vec![IpAddr::from([10, 1, node as u8, ip])]);
                self.cluster.drain(node);
            }
            Step::Join { node, by } if self.is_up(node) && by != node => self.cluster.join(node, by),
            Step::Run { ms } => self.cluster.run(millis(ms)),
            Step::Leave(_)
            | Step::Goodbye { .. }
            | Step::Freeze(_)
            | Step::Move { .. }
            | Step::Join { .. } => {}
        }
        self.check();
    }

    /// Nobody comes who is there, changes or goes who is not, or is older than was told.
    fn check(&mut self) {
        for (_, node, event) in &self.cluster.log[self.seen..] {
            let told = &mut self.told[*node];
            match event {
                Event::Up(member) => {
                    assert_ne!(member.peer, peer(*node), "it is told of itself");
                    assert_eq!(told.insert(member.peer, member.clone()), None, "it was up already");
                }
                Event::Changed(member) => {
                    let before = told.insert(member.peer, member.clone()).expect("who changes is there");
                    assert!(before.generation < member.generation, "{before:?} became {member:?}");
                }
                Event::Down(peer) => assert!(told.remove(peer).is_some(), "it was down already"),
                Event::Send { .. } | Event::Compare { .. } => {}
            }
        }
        self.seen = self.cluster.log.len();
        for (node, told) in self.cluster.nodes.iter().zip(&self.told) {
            let said: Vec<_> = node.iter().flat_map(Membership::members).collect();
            if node.is_some() {
                assert_eq!(said, told.values().collect::<Vec<_>>(), "what it says is what it told");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn everybody_knows_everybody_once_all_is_well_again(
        seed in 0..1000_u64,
        steps in vec(step(), 1..40),
    ) {
        let mut model = Model {
            cluster: Cluster::formed(NODES, seed),
            lives: 0,
            told: vec![BTreeMap::new(); NODES],
            seen: 0,
        };
        for node in 0..NODES {
            let members = model.cluster.node(node).members().cloned();
            model.told[node] = members.map(|member| (member.peer, member)).collect();
        }
        for step in steps {
            model.apply(step);
        }
        model.cluster.group.fill(0);
        model.cluster.frozen.clear();
        for node in 0..NODES {
            if !model.is_up(node) {
                model.apply(Step::Restart { node, is_later: true });
            }
        }
        // As the bootstrapper does: again, for who is asked may be known by a life that has just ended.
        let complete = (0..3).any(|_| {
            for node in 1..NODES {
                model.apply(Step::Join { node, by: node - 1 });
            }
            model.cluster.run_until(secs(30), Cluster::complete)
        });
        prop_assert!(complete, "they do not find each other");
        model.cluster.run(secs(40));
        model.check();
        prop_assert!(model.cluster.complete(), "they do not stay together");
        for (node, told) in model.told.iter().enumerate() {
            for other in (0..NODES).filter(|other| *other != node) {
                let itself = model.cluster.nodes[other].as_ref().map(Membership::me);
                prop_assert_eq!(told.get(&peer(other)), itself, "node {} knows {} otherwise", node, other);
            }
        }
    }
}
