//! Owners beside sorting all members by their scores, which are computed another way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{collection::vec, prelude::*};
use sha2::{Digest as _, Sha256};

use super::{
    super::owners::{OWNERS, RECENT_DEPARTURE, Roster},
    *,
};

const KEYS: u8 = 12;

/// splitmix64's finaliser, by remainders of numbers that are wide enough.
fn score(member: u8, key: &Key) -> u128 {
    let first_eight = |bytes: &[u8]| u64::from_be_bytes(bytes[..8].try_into().expect("eight"));
    let member = first_eight(&Sha256::digest([member; 32]));
    let mut mixed = u128::from(first_eight(key.as_bytes()) ^ member);
    for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)] {
        mixed = (mixed ^ (mixed / (1 << shift))) * factor % (1 << 64);
    }
    mixed ^ (mixed / (1 << 31))
}

fn owners_among(members: &BTreeSet<u8>, key: &Key) -> Vec<PeerId> {
    let mut ranked: Vec<_> = members.iter().map(|member| (score(*member, key), *member)).collect();
    ranked.sort_unstable_by(|one, other| other.cmp(one));
    ranked.into_iter().take(OWNERS).map(|(_, member)| peer(member)).collect()
}

fn owners(roster: &Roster, key: &Key) -> Vec<PeerId> {
    roster.owners(key).iter().collect()
}

proptest! {
    #[test]
    fn owners_are_the_live_members_with_the_highest_scores(
        steps in vec((0..10_u8, any::<bool>(), 0..6_000_u64), 1..60),
    ) {
        let mut now = crate::test_time::start();
        // Two nodes that hear the same, each of the other too.
        let mut rosters = [Roster::new(peer(0), None), Roster::new(peer(1), None)];
        rosters[0].up(peer(1), None);
        rosters[1].up(peer(0), None);
        let mut live = BTreeSet::from([0, 1]);
        let mut departed = BTreeMap::new();
        for (member, is_up, wait_ms) in steps {
            now += Duration::from_millis(wait_ms);
            let member = member + 2;
            let before: Vec<_> = (0..KEYS).map(|number| owners(&rosters[0], &key(number))).collect();
            let was_live = live.contains(&member);
            for roster in &mut rosters {
                if is_up {
                    prop_assert_eq!(roster.up(peer(member), None), !was_live);
                } else {
                    prop_assert_eq!(roster.down(now, peer(member)), was_live);
                }
            }
            if is_up {
                live.insert(member);
                departed.remove(&member);
            } else if live.remove(&member) {
                departed.insert(member, now);
            }
            for number in 0..KEYS {
                let key = key(number);
                let expected = owners_among(&live, &key);
                prop_assert_eq!(&owners(&rosters[0], &key), &expected);
                prop_assert_eq!(&owners(&rosters[1], &key), &expected, "every node's view is the same");
                // Nobody but the one that came or went gains or loses a place, except for one who
                // makes room or moves up.
                let before = &before[usize::from(number)];
                let gone = before.iter().filter(|owner| !expected.contains(owner)).count();
                let come = expected.iter().filter(|owner| !before.contains(owner)).count();
                let touched = before.contains(&peer(member)) || expected.contains(&peer(member));
                prop_assert!(touched && gone <= 1 && come <= 1 || gone + come == 0, "{before:?} {expected:?}");
                // Who went within the last ten seconds is still counted.
                let recent = departed.iter().filter(|(_, at)| now < **at + RECENT_DEPARTURE);
                let counted: BTreeSet<_> = live.iter().chain(recent.map(|(member, _)| member)).copied().collect();
                let owned_for_long = owners_among(&counted, &key).contains(&peer(0));
                prop_assert_eq!(rosters[0].owned_before_departures(now, &key), owned_for_long);
            }
        }
    }
}
