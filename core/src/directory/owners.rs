//! Decides which members own a key: the [`OWNERS`] live ones with the highest rendezvous
//! score. Pure arithmetic over the members known; sends nothing. Called by the other parts of
//! the directory.
//!
//! Every node must come to the same owners, in every release: the score is part of the
//! protocol, fixed by test vectors.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use sha2::{Digest as _, Sha256};

use crate::{Key, PeerId, Zone};

/// Owners of each key. Fewer and two deaths at once make it unknown who has what until holders
/// have announced again; more and every announcement is sent to more nodes.
pub(crate) const OWNERS: usize = 3;

/// How long a departed member still counts when an owner asks itself whether it has been one
/// for long enough to know of every holder. Shorter and a heir says "nobody" before the
/// holders have told it; longer and lookups of what nobody has take another round trip for
/// longer after each death.
pub(crate) const RECENT_DEPARTURE: Duration = Duration::from_secs(10);

/// Most recent departures remembered. Fewer and after a failure of more nodes than that at once
/// heirs may say "nobody" too soon; more only costs memory and time during such a failure.
const DEPARTED_MAX: usize = 4096;

/// What of a member enters its scores.
fn member_hash(peer: &PeerId) -> u64 {
    first_eight(Sha256::digest(peer.public_key()).as_slice())
}

/// How much a member is meant to own a key. The finaliser of splitmix64: keys and member
/// hashes are already uniform, all it must do is to put members in another order for each key.
fn score(member_hash: u64, key: &Key) -> u64 {
    let mut mixed = first_eight(key.as_bytes()) ^ member_hash;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn first_eight(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A member's claim to a key; the greater wins. Equal scores are told apart by identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    score: u64,
    peer: PeerId,
}

/// A member that may come to own keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    hash: u64,
    peer: PeerId,
}

impl Candidate {
    /// Its claim to a key.
    pub(super) fn rank(&self, key: &Key) -> Rank {
        Rank { score: score(self.hash, key), peer: self.peer }
    }
}

/// The owners of one key, best first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owners([Option<Rank>; OWNERS]);

impl Owners {
    /// Lets a member compete, and names whom there is no room for: a former owner, the
    /// member itself, or nobody.
    pub(super) fn offer(&mut self, rank: Rank) -> Option<PeerId> {
        // Most members are not among the owners of most keys.
        if Some(rank) < self.0[OWNERS - 1] {
            return Some(rank.peer);
        }
        let mut carried = Some(rank);
        for place in &mut self.0 {
            if carried > *place {
                std::mem::swap(place, &mut carried);
            }
        }
        carried.map(|rank| rank.peer)
    }

    fn may_have_room_for(&self, score: u64) -> bool {
        self.0[OWNERS - 1].is_none_or(|last| score >= last.score)
    }

    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.iter().any(|owner| owner == *peer)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.0.iter().flatten().map(|rank| rank.peer)
    }
}

#[derive(Debug)]
struct Departed {
    at: Instant,
    member: Candidate,
}

/// The live members as this node sees them, itself among them. Membership bounds how many.
#[derive(Debug)]
pub(super) struct Roster {
    me: PeerId,
    /// With their zones.
    live: BTreeMap<PeerId, Option<Zone>>,
    /// Their hashes, in any order, and whose they are: all are read for each key.
    hashes: Vec<u64>,
    peers: Vec<PeerId>,
    /// In order of departure.
    departed: VecDeque<Departed>,
}

impl Roster {
    pub(super) fn new(me: PeerId, zone: Option<Zone>) -> Self {
        let live = BTreeMap::from([(me, zone)]);
        Self { me, live, hashes: vec![member_hash(&me)], peers: vec![me], departed: VecDeque::new() }
    }

    pub(super) fn me(&self) -> PeerId {
        self.me
    }

    /// Takes in a member; `false` if it was there (its zone may have changed all the same).
    pub(super) fn up(&mut self, peer: PeerId, zone: Option<Zone>) -> bool {
        self.departed.retain(|departed| departed.member.peer != peer);
        let is_new = self.live.insert(peer, zone).is_none();
        if is_new {
            self.hashes.push(member_hash(&peer));
            self.peers.push(peer);
        }
        is_new
    }

    /// Takes out a member; `false` if it was not there.
    pub(super) fn down(&mut self, now: Instant, peer: PeerId) -> bool {
        let Some(place) = self.peers.iter().position(|live| *live == peer) else { return false };
        self.live.remove(&peer);
        self.peers.swap_remove(place);
        let hash = self.hashes.swap_remove(place);
        self.departed.retain(|departed| is_recent(departed, now));
        if self.departed.len() == DEPARTED_MAX {
            self.departed.pop_front();
        }
        self.departed.push_back(Departed { at: now, member: Candidate { hash, peer } });
        true
    }

    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.live.contains_key(peer)
    }

    /// Live members other than this node.
    pub(super) fn others(&self) -> usize {
        self.live.len() - 1
    }

    pub(super) fn zone(&self, peer: &PeerId) -> Option<&Zone> {
        self.live.get(peer).and_then(Option::as_ref)
    }

    /// A live member, to be ranked for many keys.
    pub(super) fn candidate(&self, peer: PeerId) -> Option<Candidate> {
        self.contains(&peer).then(|| Candidate { hash: member_hash(&peer), peer })
    }

    pub(super) fn owners(&self, key: &Key) -> Owners {
        let mut owners = Owners::default();
        for (hash, peer) in self.hashes.iter().zip(&self.peers) {
            // Whose it is matters only for the few that come close.
            let score = score(*hash, key);
            if owners.may_have_room_for(score) {
                let _left_out = owners.offer(Rank { score, peer: *peer });
            }
        }
        owners
    }

    /// Whether this node would own the key even if those that departed of late were here:
    /// holders have long known that this node is to be told.
    pub(super) fn owned_before_departures(&self, now: Instant, key: &Key) -> bool {
        let mut owners = self.owners(key);
        for departed in self.departed.iter().filter(|departed| is_recent(departed, now)) {
            let _left_out = owners.offer(departed.member.rank(key));
        }
        owners.contains(&self.me)
    }
}

fn is_recent(departed: &Departed, now: Instant) -> bool {
    now < departed.at + RECENT_DEPARTURE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        PeerId::from_public_key(key)
    }

    fn key(number: usize) -> Key {
        Key::of(&number.to_string())
    }

    fn roster(members: u16) -> Roster {
        let mut roster = Roster::new(peer(0), None);
        for number in 1..members {
            assert!(roster.up(peer(number), None));
        }
        roster
    }

    fn owners(roster: &Roster, key: &Key) -> Vec<PeerId> {
        roster.owners(key).iter().collect()
    }

    /// Nodes of other releases compute these too: a change here breaks rolling updates.
    #[test]
    fn scores_and_owners_are_these() {
        assert_eq!(member_hash(&peer(0)), 0x6668_7aad_f862_bd77);
        let zeros = Key::from_bytes([0; 32]);
        assert_eq!(score(0, &zeros), 0);
        // The first outputs of splitmix64 seeded with 0 are the finaliser of these states.
        assert_eq!(score(0x9e37_79b9_7f4a_7c15, &zeros), 0xe220_a839_7b1d_cdaf);
        assert_eq!(score(0x3c6e_f372_fe94_f82a, &zeros), 0x6e78_9e6a_a1b9_65f4);

        let roster = roster(10);
        let numbers = |text| {
            let owned = roster.owners(&Key::of(text));
            owned.iter().map(|owner| owner.public_key()[1]).collect::<Vec<_>>()
        };
        // Computed by another program.
        assert_eq!(numbers("foobar"), [0, 7, 8]);
        assert_eq!(numbers("registry.test/app:1"), [4, 5, 0]);
    }

    #[test]
    fn few_members_all_own_everything() {
        assert_eq!(owners(&roster(1), &key(1)), [peer(0)]);
        for members in 2..=3 {
            assert_eq!(owners(&roster(members), &key(1)).len(), usize::from(members));
        }
        assert_eq!(owners(&roster(4), &key(1)).len(), OWNERS);
    }

    #[test]
    fn every_node_comes_to_the_same_owners() {
        let mut other = Roster::new(peer(7), None);
        for number in (0..20).rev().filter(|number| *number != 7) {
            other.up(peer(number), None);
        }
        for number in 0..100 {
            assert_eq!(owners(&roster(20), &key(number)), owners(&other, &key(number)));
        }
    }

    #[test]
    fn a_death_moves_only_what_the_dead_owned() {
        let before = roster(50);
        let mut after = roster(50);
        after.down(crate::test_time::start(), peer(13));
        let mut moved = 0;
        for number in 0..2000 {
            let (old, new) = (owners(&before, &key(number)), owners(&after, &key(number)));
            if old.contains(&peer(13)) {
                moved += 1;
                let kept: Vec<_> = old.iter().filter(|owner| **owner != peer(13)).copied().collect();
                assert_eq!(new.iter().filter(|owner| old.contains(owner)).copied().collect::<Vec<_>>(), kept);
                assert_eq!(new.len(), OWNERS);
            } else {
                assert_eq!(old, new);
            }
        }
        assert!((60..180).contains(&moved), "about 3/50 of 2000: {moved}");
    }

    #[test]
    fn offering_a_member_gives_what_ranking_all_gives() {
        let mut roster = roster(1);
        let mut kept: Vec<Owners> = (0..200).map(|number| roster.owners(&key(number))).collect();
        for number in 1..40 {
            roster.up(peer(number), None);
            let candidate = roster.candidate(peer(number)).expect("it is live");
            for (at, kept) in kept.iter_mut().enumerate() {
                let before = kept.clone();
                let left_out = kept.offer(candidate.rank(&key(at)));
                assert_eq!(*kept, roster.owners(&key(at)));
                match left_out {
                    None => assert!(before.iter().count() < OWNERS),
                    Some(left_out) => {
                        assert!(!kept.contains(&left_out));
                        assert!(before.contains(&left_out) || left_out == peer(number));
                    }
                }
            }
        }
    }

    #[test]
    fn keys_are_spread_evenly() {
        let roster = roster(100);
        let mut owned = BTreeMap::new();
        for number in 0..10_000 {
            for owner in roster.owners(&key(number)).iter() {
                *owned.entry(owner).or_insert(0) += 1;
            }
        }
        assert_eq!(owned.len(), 100);
        // 300 expected, standard deviation about 17.
        assert!(owned.values().all(|count| (200..400).contains(count)), "{owned:?}");
    }

    #[test]
    fn heir_counts_the_departed_until_they_are_long_gone() {
        let start = crate::test_time::start();
        let mut roster = roster(10);
        let heired = (0..1000)
            .map(key)
            .find(|key| {
                let four: Vec<_> = {
                    let mut without = self::roster(10);
                    let dead = owners(&without, key)[0];
                    without.down(start, dead);
                    owners(&without, key)
                };
                four.contains(&peer(0)) && !owners(&roster, key).contains(&peer(0))
            })
            .expect("some key is inherited");
        let dead = owners(&roster, &heired)[0];
        assert!(!roster.owned_before_departures(start, &heired), "not an owner at all");
        assert!(roster.down(start, dead));
        assert!(!roster.down(start, dead), "already gone");
        assert!(roster.owners(&heired).contains(&peer(0)));
        let tick = Duration::from_nanos(1);
        assert!(!roster.owned_before_departures(start + RECENT_DEPARTURE - tick, &heired));
        assert!(roster.owned_before_departures(start + RECENT_DEPARTURE, &heired));
        // Back again: no longer counted twice, and an owner once more.
        assert!(roster.up(dead, None));
        assert!(!roster.owned_before_departures(start, &heired));
    }

    #[test]
    fn departures_remembered_are_bounded() {
        let start = crate::test_time::start();
        let mut roster = roster(1);
        for number in 1..=u16::try_from(DEPARTED_MAX).expect("fits") + 5 {
            roster.up(peer(number), None);
            roster.down(start, peer(number));
        }
        assert_eq!(roster.departed.len(), DEPARTED_MAX);
        roster.up(peer(60_000), None);
        roster.down(start + RECENT_DEPARTURE, peer(60_000));
        assert_eq!(roster.departed.len(), 1);
    }
}
