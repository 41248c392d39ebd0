//! Random faults at a few nodes. What must hold after every step is checked by [`World`].

use proptest::{collection::vec, prelude::*};

use super::{
    NOBODY,
    world::{End, MB, World, digest, ms},
};
use crate::{PullKind, RefuseReason};

const HOSTS: usize = 4;
const DIGESTS: u32 = 3;
const SIZE: u64 = 25 * MB;

#[derive(Clone, Debug)]
enum Fault {
    Start,
    Kill { silent: bool },
    Shutdown,
    Freeze { time_ms: u64 },
    Cut { other: usize },
    Mend,
    Lose { percent: usize },
    Move { ip: u8 },
    Commit(u32),
    Delete(u32),
    Pull(u32, bool),
    Abandon,
}

fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::Start),
        1 => any::<bool>().prop_map(|silent| Fault::Kill { silent }),
        1 => Just(Fault::Shutdown),
        1 => (1_u64..8_000).prop_map(|time_ms| Fault::Freeze { time_ms }),
        1 => (0..HOSTS).prop_map(|other| Fault::Cut { other }),
        1 => Just(Fault::Mend),
        1 => (0_usize..30).prop_map(|percent| Fault::Lose { percent }),
        1 => (100_u8..104).prop_map(|ip| Fault::Move { ip }),
        4 => (0..DIGESTS).prop_map(Fault::Commit),
        1 => (0..DIGESTS).prop_map(Fault::Delete),
        8 => (0..DIGESTS, proptest::bool::weighted(0.2)).prop_map(|(number, head)| Fault::Pull(number, head)),
        1 => Just(Fault::Abandon),
    ]
}

impl World {
    fn strike(&mut self, host: usize, fault: Fault) {
        let alive = self.hosts[host].node.is_some();
        let outside = matches!(fault, Fault::Mend | Fault::Lose { .. } | Fault::Cut { .. });
        let starts = matches!(fault, Fault::Start);
        if starts == alive && !outside || self.is_frozen(host) {
            return;
        }
        match fault {
            Fault::Start => self.start(host),
            Fault::Mend => {
                self.cuts.clear();
                self.loss_percent = 0;
            }
            Fault::Lose { percent } => self.loss_percent = percent,
            Fault::Cut { other } => drop(self.cuts.insert((host.min(other), host.max(other)))),
            Fault::Commit(number) => self.commit(host, digest(number), SIZE),
            Fault::Delete(number) => self.delete(host, digest(number)),
            Fault::Kill { silent } => self.kill(host, silent),
            Fault::Shutdown => self.shutdown(host),
            Fault::Freeze { time_ms } => self.freeze(host, ms(time_ms)),
            Fault::Move { ip } => {
                if self.hosts.iter().all(|other| other.ip != ip) {
                    self.set_ip(host, ip);
                }
            }
            Fault::Pull(number, head) => {
                if !self.hosts[host].contents.contains_key(&digest(number)) {
                    self.pull(host, digest(number), if head { PullKind::Head } else { PullKind::Blob });
                }
            }
            Fault::Abandon => {
                let open = self.hosts[host].pulls.iter().find(|(_, pull)| pull.end.is_none());
                if let Some(pull) = open.map(|(pull, _)| *pull) {
                    self.abandon(host, pull);
                }
            }
        }
    }
}

#[test]
fn pauses_of_who_asks_make_its_client_wait_for_no_longer_than_they_last() {
    for pause in [60, 150, 400, 1_000, 2_500] {
        for asked_before in [1, 40, 400, 1_700, 1_990] {
            let mut world = World::empty(1, HOSTS);
            world.hosts[0].contents.insert(digest(0), SIZE);
            (0..HOSTS).for_each(|host| world.start(host));
            world.run(ms(30_000));
            world.kill(0, true);
            let pull = world.pull(1, digest(0), PullKind::Blob);
            world.run(ms(asked_before));
            world.freeze(1, ms(pause));
            world.run(ms(10_000));
            assert!(matches!(world.end(1, pull), Some(End::Refused(..))), "{:?}", world.end(1, pull));
        }
    }
}

#[test]
fn groups_that_could_not_see_each_other_at_first_are_one_cluster_within_minutes() {
    for seed in 0..20 {
        let mut world = World::empty(seed, HOSTS);
        world.cuts = [(0, 2), (0, 3), (1, 2), (1, 3)].into();
        (0..HOSTS).for_each(|host| world.start(host));
        world.run(ms(10_000));
        assert_eq!(world.node(0).membership.len(), 1, "two and two");
        world.cuts.clear();
        world.run(ms(120_000));
        for host in 0..HOSTS {
            assert_eq!(world.node(host).membership.len(), HOSTS - 1, "of {host}, seed {seed}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_pulls_are_answered_and_the_cluster_heals(
        seed in any::<u64>(),
        meddles in any::<bool>(),
        steps in vec((0..HOSTS, 0_u64..1_500, faults()), 1..60),
    ) {
        let mut world = World::empty(seed % 1_000_000, HOSTS);
        world.meddles = meddles;
        for host in 0..HOSTS {
            world.hosts[host].contents.insert(digest(u32::try_from(host % 2).expect("fits")), SIZE);
            world.start(host);
        }
        for (host, wait_ms, fault) in steps {
            world.strike(host, fault);
            world.run(ms(wait_ms));
        }
        // Once all is well again they find each other, and no answer is wrong.
        world.cuts.clear();
        world.loss_percent = 0;
        world.run(ms(10_000));
        for host in 0..HOSTS {
            if world.hosts[host].node.is_none() || !world.hosts[host].left_at.is_empty() {
                world.kill(host, false);
                world.start(host);
            }
        }
        world.run(ms(150_000));
        for host in 0..HOSTS {
            prop_assert_eq!(world.node(host).membership.len(), HOSTS - 1);
        }
        for number in 0..DIGESTS {
            let has = |host: &usize| world.hosts[*host].contents.contains_key(&digest(number));
            let (holders, others): (Vec<_>, Vec<_>) = (0..HOSTS).partition(has);
            for end in world.ask(others, digest(number)) {
                // Whoever delivered what was deleted before it was seen is suspected of wrong bytes.
                let suspected = matches!(end, End::Refused(RefuseReason::HoldersExhausted, _));
                let right = if holders.is_empty() { end == NOBODY } else { end == End::Completed || suspected };
                prop_assert!(right, "{:?} of {:?}", end, holders);
            }
        }
    }
}
