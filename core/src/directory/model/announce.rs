//! A holder and its owners over a channel that loses, delays, repeats and reorders what is said.
//! Once the channel is good again, each owner believes exactly what is held and is its own to know.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use proptest::{
    collection::vec,
    prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
};

use super::{
    super::{
        announcer::{Announcer, RECONCILE_INTERVAL},
        ledger::Ledger,
        owners::Roster,
    },
    *,
};
use crate::{message::Announce, rng::Rng};

const ME: u8 = 0;
const OWNERS: u8 = 5;
const KEYS: u8 = 10;

#[derive(Clone, Debug)]
enum Step {
    Hold(u8),
    Release(u8),
    Up(u8),
    Down(u8),
    /// An owner forgets everything, and the holder hears of it or not.
    Restart {
        owner: u8,
        is_noticed: bool,
    },
    /// One of the messages under way arrives, and stays under way: it may arrive again.
    Arrive {
        nth: usize,
        is_answered: bool,
    },
    /// One of the messages under way never arrives.
    Vanish {
        nth: usize,
    },
    /// The holder waits no longer for an answer of this owner.
    GiveUp(u8),
    Wanted(u8),
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let owner = || 1..=OWNERS;
    prop_oneof![
        6 => (0..KEYS).prop_map(Step::Hold),
        4 => (0..KEYS).prop_map(Step::Release),
        2 => owner().prop_map(Step::Up),
        1 => owner().prop_map(Step::Down),
        1 => (owner(), any::<bool>()).prop_map(|(owner, is_noticed)| Step::Restart { owner, is_noticed }),
        8 => (0..8_usize, any::<bool>()).prop_map(|(nth, is_answered)| Step::Arrive { nth, is_answered }),
        2 => (0..8_usize).prop_map(|nth| Step::Vanish { nth }),
        3 => owner().prop_map(Step::GiveUp),
        1 => owner().prop_map(Step::Wanted),
        8 => prop_oneof![0..30_u64, 0..1_000_u64, 0..12_000_u64].prop_map(|ms| Step::Wait { ms }),
    ]
}

struct Owner {
    ledger: Ledger,
}

impl Owner {
    fn new(owner: u8) -> Self {
        let mut ledger = Ledger::new(peer(owner), None, Rng::new(owner.into(), "ledger"));
        ledger.member_up(peer(ME), None);
        Self { ledger }
    }
}

struct World {
    now: Instant,
    roster: Roster,
    announcer: Announcer,
    held: BTreeSet<u8>,
    /// What the holder knows as an owner itself.
    own: BTreeSet<Key>,
    owners: BTreeMap<u8, Owner>,
    /// Messages under way, in order of sending.
    wire: Vec<(u64, u8, Announce)>,
    /// The message whose answer the holder waits for.
    awaited: BTreeMap<u8, u64>,
    sent: u64,
}

impl World {
    fn drain(&mut self) {
        while let Some((key, held)) = self.announcer.poll_own() {
            if held {
                self.own.insert(key)
            } else {
                self.own.remove(&key)
            };
        }
        while let Some((to, announce)) = self.announcer.poll_send() {
            let owner = to.public_key()[0];
            assert!(self.owners.contains_key(&owner), "nothing is said to who is gone");
            self.sent += 1;
            assert_eq!(self.awaited.insert(owner, self.sent), None, "one message at a time for each owner");
            self.wire.push((self.sent, owner, announce));
        }
    }

    fn arrive(&mut self, nth: usize, is_answered: bool) {
        let Some((number, to, announce)) = self.wire.get(nth).cloned() else { return };
        let Some(owner) = self.owners.get_mut(&to) else { return };
        let synced = owner.ledger.apply(peer(ME), &announce);
        if is_answered && self.awaited.get(&to) == Some(&number) {
            self.awaited.remove(&to);
            self.announcer.answered(self.now, peer(to), synced);
        }
    }

    fn wait(&mut self, time: Duration, mut then: impl FnMut(&mut Self)) {
        let end = self.now + time;
        while let Some(at) = self.announcer.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.announcer.handle_timeout(self.now);
            self.drain();
            then(self);
        }
        self.now = end;
    }

    fn apply(&mut self, step: Step) {
        let (now, roster) = (self.now, &mut self.roster);
        match step {
            Step::Hold(number) => {
                self.held.insert(number);
                self.announcer.hold(now, roster, key(number));
            }
            Step::Release(number) => {
                self.held.remove(&number);
                self.announcer.release(now, roster, key(number));
            }
            Step::Up(owner) => {
                if roster.up(peer(owner), None) {
                    self.owners.insert(owner, Owner::new(owner));
                    self.announcer.member_up(now, roster, peer(owner));
                }
            }
            Step::Down(owner) => {
                if roster.down(now, peer(owner)) {
                    self.owners.remove(&owner);
                    self.awaited.remove(&owner);
                    self.announcer.member_down(now, roster, peer(owner));
                }
            }
            Step::Restart { owner, is_noticed } => {
                if !self.owners.contains_key(&owner) {
                    return;
                }
                self.owners.insert(owner, Owner::new(owner));
                if is_noticed {
                    self.awaited.remove(&owner);
                    self.announcer.member_restarted(now, roster, peer(owner));
                }
            }
            Step::Arrive { nth, is_answered } => self.arrive(nth, is_answered),
            Step::Vanish { nth } => {
                if nth < self.wire.len() {
                    self.wire.remove(nth);
                }
            }
            Step::GiveUp(owner) => {
                if self.awaited.remove(&owner).is_some() {
                    self.announcer.failed(now, peer(owner));
                }
            }
            Step::Wanted(owner) => self.announcer.wanted(now, peer(owner)),
            Step::Wait { ms } => self.wait(Duration::from_millis(ms), |_| ()),
        }
        self.drain();
    }

    /// Whatever is sent arrives and is answered at once; what is old never arrives.
    fn recover(&mut self) {
        self.wire.clear();
        for owner in std::mem::take(&mut self.awaited).into_keys() {
            self.announcer.failed(self.now, peer(owner));
        }
        // The longest pause after a failure, and a check with each owner in turn.
        self.wait(Duration::from_secs(30) + RECONCILE_INTERVAL * OWNERS.into(), |world| {
            while !world.wire.is_empty() {
                world.arrive(0, true);
                world.wire.remove(0);
                world.drain();
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]

    #[test]
    fn what_owners_believe_is_what_is_held_however_it_was_told(
        seed in any::<u64>(),
        steps in vec(step(), 1..120),
    ) {
        let mut world = World {
            now: crate::test_time::start(),
            roster: Roster::new(peer(ME), None),
            announcer: Announcer::new(peer(ME), Rng::new(seed, "announcer")),
            held: BTreeSet::new(),
            own: BTreeSet::new(),
            owners: BTreeMap::new(),
            wire: Vec::new(),
            awaited: BTreeMap::new(),
            sent: 0,
        };
        for owner in 1..=3 {
            world.apply(Step::Up(owner));
        }
        for step in steps {
            world.apply(step);
        }
        world.recover();
        let owned_by = |owner: u8| -> BTreeSet<Key> {
            let keys = world.held.iter().map(|number| key(*number));
            keys.filter(|key| world.roster.owners(key).contains(&peer(owner))).collect()
        };
        prop_assert_eq!(&world.own, &owned_by(ME));
        for (number, owner) in &world.owners {
            let believed: BTreeSet<_> = owner.ledger.keys_of(&peer(ME)).into_iter().collect();
            prop_assert_eq!(believed, owned_by(*number), "owner {}", number);
            prop_assert!(owner.ledger.is_complete(&peer(ME)), "owner {number} cannot rule out holders");
        }
        prop_assert_eq!(world.announcer.unsynced(), 0);
        prop_assert_eq!(world.announcer.held(), world.held.len());
        // From here on the holder only checks with one owner after the other, and says nothing anew.
        let sent = world.sent;
        world.wait(Duration::from_secs(60), |world| {
            while let Some((_, _, announce)) = world.wire.first() {
                assert!(!announce.reset && announce.add.is_empty() && announce.remove.is_empty());
                world.arrive(0, true);
                world.wire.remove(0);
            }
        });
        prop_assert!(world.sent - sent <= 13, "{} checks a minute", world.sent - sent);
    }
}
