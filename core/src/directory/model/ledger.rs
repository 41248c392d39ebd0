//! What an owner believes beside two plain sets for each holder: what it said in this round, and
//! what it said before a reset that it has not completed.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    collection::{btree_set, vec},
    prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest},
};

use super::{super::ledger::Ledger, *};
use crate::{
    message::{Announce, Fingerprint},
    rng::Rng,
};

const PEERS: u8 = 6;
const KEYS: u8 = 6;
const ME: u8 = 99;

#[derive(Clone, Debug)]
enum Step {
    Up(u8),
    Down(u8),
    Goodbye(u8),
    Own { key: u8, held: bool },
    Announce(u8, Said),
}

#[derive(Clone, Debug)]
struct Said {
    reset: bool,
    add: BTreeSet<u8>,
    remove: BTreeSet<u8>,
    complete: bool,
    holds: Holds,
}

#[derive(Clone, Debug)]
enum Holds {
    /// What the owner should have if nothing got lost.
    Truth,
    Other(BTreeSet<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let keys = || btree_set(0..KEYS, 0..4);
    let holds = prop_oneof![3 => Just(Holds::Truth), 1 => keys().prop_map(Holds::Other)];
    let said = (proptest::bool::weighted(0.3), keys(), keys(), proptest::bool::weighted(0.7), holds);
    let said = said.prop_map(|(reset, add, remove, complete, holds)| Said {
        reset,
        remove: &remove - &add,
        add,
        complete,
        holds,
    });
    prop_oneof![
        2 => (0..PEERS).prop_map(Step::Up),
        1 => (0..PEERS).prop_map(Step::Down),
        1 => (0..PEERS).prop_map(Step::Goodbye),
        1 => (0..KEYS, any::<bool>()).prop_map(|(key, held)| Step::Own { key, held }),
        8 => (0..PEERS, said).prop_map(|(peer, said)| Step::Announce(peer, said)),
    ]
}

#[derive(Default)]
struct Holder {
    said: BTreeSet<u8>,
    said_before: BTreeSet<u8>,
    resets: bool,
    is_complete: bool,
    is_gone: bool,
}

impl Holder {
    fn named(&self) -> BTreeSet<u8> {
        &self.said | &self.said_before
    }

    fn hears(&mut self, said: &Said) -> bool {
        if self.is_gone {
            return true;
        }
        if said.reset {
            // A reset that was never completed is void.
            let unfinished = std::mem::replace(&mut self.resets, true);
            let named = std::mem::take(&mut self.said);
            self.said_before = if unfinished { named } else { &self.said_before | &named };
            self.is_complete = false;
        }
        for key in said.remove.iter().chain(&said.add) {
            self.said.remove(key);
            self.said_before.remove(key);
        }
        self.said.extend(&said.add);
        if said.complete {
            self.said_before.clear();
            self.resets = false;
            self.is_complete = match &said.holds {
                Holds::Truth => true,
                Holds::Other(holds) => *holds == self.said,
            };
        }
        !said.complete || self.is_complete
    }
}

proptest! {
    #[test]
    fn owner_believes_what_it_was_told(steps in vec(step(), 1..80), seed in any::<u64>()) {
        let mut ledger = Ledger::new(peer(ME), None, Rng::new(seed, "ledger"));
        let mut holders = BTreeMap::from([(ME, Holder { is_complete: true, ..Holder::default() })]);
        for step in steps {
            match step {
                Step::Up(number) => {
                    ledger.member_up(peer(number), zone(number));
                    holders.entry(number).or_default();
                }
                Step::Down(number) => {
                    ledger.member_down(peer(number));
                    holders.remove(&number);
                }
                Step::Goodbye(number) => {
                    ledger.goodbye(peer(number));
                    if let Some(holder) = holders.get_mut(&number) {
                        *holder = Holder { is_complete: true, is_gone: true, ..Holder::default() };
                    }
                }
                Step::Own { key: number, held } => {
                    ledger.set(peer(ME), key(number), held);
                    let own = &mut holders.get_mut(&ME).expect("itself").said;
                    if held { own.insert(number) } else { own.remove(&number) };
                }
                Step::Announce(number, said) => {
                    let holder = holders.get_mut(&number);
                    let is_known = holder.is_some();
                    let expected = holder.is_some_and(|holder| holder.hears(&said));
                    let truth = holders.get(&number).map(|holder| holder.said.clone()).unwrap_or_default();
                    let mut holds = Fingerprint::default();
                    let claimed = match &said.holds {
                        Holds::Truth => &truth,
                        Holds::Other(claimed) => claimed,
                    };
                    claimed.iter().for_each(|number| holds.add(&key(*number)));
                    let announce = Announce {
                        reset: said.reset,
                        add: said.add.iter().map(|number| key(*number)).collect(),
                        remove: said.remove.iter().map(|number| key(*number)).collect(),
                        complete: said.complete,
                        holds,
                        wants: false,
                    };
                    prop_assert_eq!(ledger.apply(peer(number), &announce), is_known && expected, "{:?}", said);
                }
            }
            for (number, holder) in &holders {
                let believed: BTreeSet<_> = ledger.keys_of(&peer(*number)).into_iter().collect();
                prop_assert_eq!(believed, holder.named().iter().map(|number| key(*number)).collect());
                prop_assert_eq!(ledger.is_complete(&peer(*number)), holder.is_complete);
            }
            prop_assert_eq!(ledger.incomplete(), holders.values().filter(|holder| !holder.is_complete).count());
            prop_assert_eq!(ledger.entries(), holders.values().map(|holder| holder.named().len()).sum::<usize>());
            let keys: BTreeSet<_> = holders.values().flat_map(Holder::named).collect();
            prop_assert_eq!(ledger.keys(), keys.len());
            for number in 0..KEYS {
                // So few that all are named: its own zone first, and never the asker itself.
                let asker = number % PEERS;
                let named = ledger.choose(&key(number), peer(asker), zone(asker).as_ref());
                let have = holders.iter().filter(|(holder, has)| **holder != asker && has.named().contains(&number));
                let have: BTreeSet<_> = have.map(|(holder, _)| peer(*holder)).collect();
                prop_assert_eq!(named.iter().copied().collect::<BTreeSet<_>>(), have);
                let is_far = |named: &PeerId| {
                    let number = named.public_key()[0];
                    zone(asker).is_some() && (number == ME || zone(number) != zone(asker))
                };
                prop_assert!(named.is_sorted_by_key(is_far), "{named:?}");
            }
        }
    }
}
