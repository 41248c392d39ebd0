//! Decides what this node, as an owner, believes about who holds what: applies announcements,
//! bounds what they may cost, and chooses which holders to name. Never asks anybody; whether
//! what it believes is all there is to know is for the directory to say, which calls it.

use std::collections::BTreeMap;

use crate::{
    Key, PeerId, Zone,
    message::{Announce, Fingerprint, HOLDERS_PER_REPLY_MAX},
    rng::Rng,
};

/// Most holders kept of one key to be named to askers. Fewer and popular content has its load on
/// few nodes; more costs memory on the owners of what every node has, for no better answer.
pub(crate) const HOLDERS_PER_KEY_MAX: usize = 64;

/// When fewer than this many holders of a key are kept, more are taken from those left out
/// before. Lower and an answer may run dry before that; higher and deaths cause more searching.
const HOLDERS_PER_KEY_MIN: usize = 16;

/// Most keys that one holder may have here. Fewer and a node with very many images in a small
/// cluster is not fully known; more and a hostile peer can make an owner hold more memory.
pub(crate) const ENTRIES_PER_HOLDER_MAX: usize = 200_000;

/// When all holders together have this many keys here, each may have its even share of them and
/// no more, so a few hostile peers cannot push out the others; see also
/// [`ENTRIES_PER_HOLDER_MAX`] (about 100 bytes each).
pub(crate) const ENTRIES_MAX: usize = 1_000_000;

/// Most holders from the asker's own zone in an answer that could also name others. Lower and
/// more bytes cross zones; higher and a zone in trouble leaves the asker few to turn to.
const SAME_ZONE_PER_REPLY_MAX: usize = HOLDERS_PER_REPLY_MAX / 4 * 3;

#[derive(Clone, Copy, Debug)]
struct Limits {
    per_holder: usize,
    total: usize,
}

/// What one member has announced here.
#[derive(Debug, Default)]
struct Holder {
    zone: Option<Zone>,
    /// Each key with the round in which it was last announced.
    keys: BTreeMap<Key, u32>,
    /// Begins anew with each reset; keys of earlier rounds are named until the reset is
    /// complete, and dropped then, so that a resend never makes content vanish for a moment.
    round: u32,
    resetting: bool,
    /// Of the keys of this round.
    fingerprint: Fingerprint,
    /// Has said that it has announced everything, and it fitted.
    complete: bool,
    /// Has more than it may have here.
    overflowing: bool,
    /// Has said goodbye: what still arrives of it is late.
    gone: bool,
}

/// Who is known to hold one key.
#[derive(Debug, Default)]
struct Holders {
    kept: Vec<PeerId>,
    /// Those left out of `kept`.
    dropped: usize,
}

/// What an owner knows.
#[derive(Debug)]
pub(super) struct Ledger {
    holders: BTreeMap<PeerId, Holder>,
    keys: BTreeMap<Key, Holders>,
    entries: usize,
    /// Holders that have not announced everything.
    incomplete: usize,
    /// Whether any holder has ever been in a zone: else there is nothing to spread over.
    has_zones: bool,
    limits: Limits,
    rng: Rng,
}

impl Ledger {
    /// An empty ledger of the owner `me`, which is a holder like others.
    pub(super) fn new(me: PeerId, zone: Option<Zone>, rng: Rng) -> Self {
        let has_zones = zone.is_some();
        let holder = Holder { zone, complete: true, ..Holder::default() };
        Self {
            holders: BTreeMap::from([(me, holder)]),
            keys: BTreeMap::new(),
            entries: 0,
            incomplete: 0,
            has_zones,
            limits: Limits { per_holder: ENTRIES_PER_HOLDER_MAX, total: ENTRIES_MAX },
            rng,
        }
    }

    /// A member is there; what it holds is not known yet.
    pub(super) fn member_up(&mut self, peer: PeerId, zone: Option<Zone>) {
        self.has_zones |= zone.is_some();
        let before = self.is_incomplete(&peer);
        self.holders.entry(peer).or_default().zone = zone;
        self.count(&peer, before);
    }

    /// A member is gone, and with it all it announced.
    pub(super) fn member_down(&mut self, peer: PeerId) {
        let Some(holder) = self.holders.remove(&peer) else { return };
        self.incomplete -= usize::from(!holder.complete);
        self.entries -= holder.keys.len();
        for key in holder.keys.keys() {
            self.unlink(key, peer);
        }
    }

    /// A member says that it is about to go: nothing of it is named any more.
    pub(super) fn goodbye(&mut self, peer: PeerId) {
        let Some(zone) = self.holders.get(&peer).map(|holder| holder.zone.clone()) else { return };
        self.member_down(peer);
        self.holders.insert(peer, Holder { zone, complete: true, gone: true, ..Holder::default() });
    }

    /// Applies an announcement and says whether the holder may take it that this owner has
    /// what it said.
    pub(super) fn apply(&mut self, peer: PeerId, announce: &Announce) -> bool {
        let before = self.is_incomplete(&peer);
        let synced = self.take_in(peer, announce);
        self.count(&peer, before);
        synced
    }

    fn take_in(&mut self, peer: PeerId, announce: &Announce) -> bool {
        let Some(holder) = self.holders.get_mut(&peer) else { return false };
        if holder.gone {
            return true;
        }
        if announce.reset {
            let unfinished = holder.resetting;
            if unfinished {
                // Else endless resets, none completed, would pile up keys.
                self.drop_earlier_rounds(peer);
            }
            self.begin_round(peer);
        }
        for key in &announce.remove {
            self.remove(peer, key);
        }
        for key in &announce.add {
            self.add(peer, *key);
        }
        if !announce.complete {
            return true;
        }
        self.drop_earlier_rounds(peer);
        let limit = self.limit();
        let Some(holder) = self.holders.get_mut(&peer) else { return false };
        holder.resetting = false;
        if holder.overflowing && holder.keys.len() < limit / 4 * 3 {
            // There is room again: let it send what was refused.
            holder.overflowing = false;
            holder.complete = false;
            return false;
        }
        // One that overflows is not asked to send everything again and again, and does not keep
        // this owner from ruling out others: it would only harm the rest of the cluster.
        holder.complete = holder.overflowing || holder.fingerprint == announce.holds;
        holder.complete
    }

    /// Takes in what this node itself holds, or no longer holds.
    pub(super) fn set(&mut self, peer: PeerId, key: Key, held: bool) {
        if held { self.add(peer, key) } else { self.remove(peer, &key) }
    }

    /// Whether a member has announced everything it has for this owner.
    pub(super) fn is_complete(&self, peer: &PeerId) -> bool {
        self.holders.get(peer).is_some_and(|holder| holder.complete)
    }

    /// Members that have not announced everything they have for this owner.
    pub(super) fn incomplete(&self) -> usize {
        debug_assert_eq!(self.incomplete, self.holders.values().filter(|holder| !holder.complete).count());
        self.incomplete
    }

    fn is_incomplete(&self, peer: &PeerId) -> bool {
        self.holders.get(peer).is_some_and(|holder| !holder.complete)
    }

    /// Counts a member that may have announced everything, or no longer so, since `before`.
    fn count(&mut self, peer: &PeerId, before: bool) {
        self.incomplete += usize::from(self.is_incomplete(peer));
        self.incomplete -= usize::from(before);
    }

    /// Holders that have more than they may have here.
    pub(super) fn overflowing(&self) -> usize {
        self.holders.values().filter(|holder| holder.overflowing).count()
    }

    /// Pairs of key and holder.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Keys with at least one holder.
    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Each key with the holders that are named and how many others there are.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &[PeerId], usize)> {
        self.keys.iter().map(|(key, known)| (key, known.kept.as_slice(), known.dropped))
    }

    /// Holders of a key to name to `asker`, a few of those known: its own zone first but not
    /// alone, otherwise by chance.
    pub(super) fn choose(&mut self, key: &Key, asker: PeerId, zone: Option<&Zone>) -> Vec<PeerId> {
        let Some(known) = self.keys.get(key) else { return Vec::new() };
        let mut chosen: Vec<_> = known.kept.iter().filter(|holder| **holder != asker).copied().collect();
        self.rng.shuffle(&mut chosen);
        if let Some(zone) = zone {
            let is_near = |peer: &PeerId| {
                self.holders.get(peer).is_some_and(|holder| holder.zone.as_ref() == Some(zone))
            };
            let (near, far): (Vec<_>, Vec<_>) = chosen.into_iter().partition(is_near);
            let first = near.len().min(SAME_ZONE_PER_REPLY_MAX);
            chosen = near[..first].iter().chain(&far).chain(&near[first..]).copied().collect();
        }
        chosen.truncate(HOLDERS_PER_REPLY_MAX);
        chosen
    }

    fn limit(&self) -> usize {
        let share = self.limits.total / self.holders.len().max(1);
        if self.entries < self.limits.total {
            self.limits.per_holder
        } else {
            self.limits.per_holder.min(share)
        }
    }

    fn begin_round(&mut self, peer: PeerId) {
        let Some(holder) = self.holders.get_mut(&peer) else { return };
        holder.round = holder.round.wrapping_add(1);
        holder.resetting = true;
        holder.complete = false;
        holder.overflowing = false;
        holder.fingerprint = Fingerprint::default();
    }

    fn drop_earlier_rounds(&mut self, peer: PeerId) {
        let Some(holder) = self.holders.get_mut(&peer).filter(|holder| holder.resetting) else { return };
        let round = holder.round;
        let mut stale = Vec::new();
        holder.keys.retain(|key, announced| {
            let current = *announced == round;
            if !current {
                stale.push(*key);
            }
            current
        });
        self.entries -= stale.len();
        for key in &stale {
            self.unlink(key, peer);
        }
    }

    fn add(&mut self, peer: PeerId, key: Key) {
        let limit = self.limit();
        let Some(holder) = self.holders.get_mut(&peer) else { return };
        let round = holder.round;
        match holder.keys.get_mut(&key) {
            Some(announced) if *announced == round => {}
            Some(announced) => {
                *announced = round;
                holder.fingerprint.add(&key);
            }
            None if holder.fingerprint.count >= limit as u64 => holder.overflowing = true,
            None => {
                holder.keys.insert(key, round);
                holder.fingerprint.add(&key);
                self.entries += 1;
                self.link(&key, peer);
            }
        }
    }

    fn remove(&mut self, peer: PeerId, key: &Key) {
        let Some(holder) = self.holders.get_mut(&peer) else { return };
        let Some(announced) = holder.keys.remove(key) else { return };
        if announced == holder.round {
            holder.fingerprint.remove(key);
        }
        self.entries -= 1;
        self.unlink(key, peer);
    }

    /// Makes a holder one that can be named, if there is room or if it adds to the spread over
    /// zones.
    fn link(&mut self, key: &Key, peer: PeerId) {
        let known = self.keys.entry(*key).or_default();
        if known.kept.len() < HOLDERS_PER_KEY_MAX {
            known.kept.push(peer);
            return;
        }
        known.dropped += 1;
        if !self.has_zones {
            return;
        }
        let zone_of = |peer: &PeerId| self.holders.get(peer).and_then(|holder| holder.zone.as_ref());
        let mut zones: BTreeMap<Option<&Zone>, Vec<usize>> = BTreeMap::new();
        for (at, kept) in known.kept.iter().enumerate() {
            zones.entry(zone_of(kept)).or_default().push(at);
        }
        let own = zones.get(&zone_of(&peer)).map_or(0, Vec::len);
        if let Some(fullest) = zones.values().max_by_key(|places| places.len())
            && own + 1 < fullest.len()
        {
            let place = fullest[self.rng.below(fullest.len())];
            known.kept[place] = peer;
        }
    }

    /// Undoes [`Self::link`]; the holder no longer has the key in `holders`.
    fn unlink(&mut self, key: &Key, peer: PeerId) {
        let Some(known) = self.keys.get_mut(key) else { return };
        match known.kept.iter().position(|kept| *kept == peer) {
            Some(at) => drop(known.kept.swap_remove(at)),
            None => known.dropped = known.dropped.saturating_sub(1),
        }
        if known.kept.is_empty() && known.dropped == 0 {
            self.keys.remove(key);
        } else if known.kept.len() < HOLDERS_PER_KEY_MIN && known.dropped > 0 {
            self.refill(key);
        }
    }

    /// Takes up holders that were left out while there were enough others.
    fn refill(&mut self, key: &Key) {
        let Some(known) = self.keys.get_mut(key) else { return };
        known.dropped = 0;
        let has_key = |(peer, holder): (&PeerId, &Holder)| {
            (holder.keys.contains_key(key) && !known.kept.contains(peer)).then_some(*peer)
        };
        let mut left_out: Vec<_> = self.holders.iter().filter_map(has_key).collect();
        self.rng.shuffle(&mut left_out);
        for peer in left_out {
            self.link(key, peer);
        }
    }
}

#[cfg(test)]
impl Ledger {
    /// What a holder is believed to have.
    pub(super) fn keys_of(&self, peer: &PeerId) -> Vec<Key> {
        self.holders.get(peer).map(|holder| holder.keys.keys().copied().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: PeerId = PeerId::from_public_key([0xff; 32]);

    fn peer(number: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        PeerId::from_public_key(key)
    }

    fn key(number: usize) -> Key {
        Key::of(&number.to_string())
    }

    fn keys(numbers: impl IntoIterator<Item = usize>) -> Vec<Key> {
        numbers.into_iter().map(key).collect()
    }

    fn zone(name: &str) -> Option<Zone> {
        Zone::new(name)
    }

    fn ledger() -> Ledger {
        Ledger::new(ME, None, Rng::new(1, "ledger"))
    }

    fn holds(numbers: impl IntoIterator<Item = usize>) -> Fingerprint {
        let mut holds = Fingerprint::default();
        numbers.into_iter().for_each(|number| holds.add(&key(number)));
        holds
    }

    /// The whole set of a holder in one message.
    fn everything(numbers: impl IntoIterator<Item = usize> + Clone) -> Announce {
        Announce {
            reset: true,
            add: keys(numbers.clone()),
            complete: true,
            holds: holds(numbers),
            ..Announce::default()
        }
    }

    /// The invariants between the tables.
    fn assert_consistent(ledger: &Ledger) {
        let entries: usize = ledger.holders.values().map(|holder| holder.keys.len()).sum();
        assert_eq!(ledger.entries, entries);
        for (key, known) in &ledger.keys {
            let total = ledger.holders.values().filter(|holder| holder.keys.contains_key(key)).count();
            assert_eq!(known.kept.len() + known.dropped, total, "{key}");
            assert!(known.kept.len() >= HOLDERS_PER_KEY_MIN.min(total));
            assert!(known.kept.len() <= HOLDERS_PER_KEY_MAX);
            for kept in &known.kept {
                assert!(ledger.holders[kept].keys.contains_key(key));
            }
        }
    }

    #[test]
    fn announced_holder_is_named_until_it_withdraws() {
        let mut ledger = ledger();
        ledger.member_up(peer(1), None);
        assert!(!ledger.is_complete(&peer(1)));
        assert!(ledger.apply(peer(1), &everything([1, 2])));
        assert!(ledger.is_complete(&peer(1)));
        assert_eq!(ledger.choose(&key(1), peer(9), None), [peer(1)]);
        assert_eq!(ledger.choose(&key(1), peer(1), None), [], "never the asker itself");
        let withdraw =
            Announce { remove: keys([1, 77]), complete: true, holds: holds([2]), ..Announce::default() };
        assert!(ledger.apply(peer(1), &withdraw));
        assert!(ledger.apply(peer(1), &withdraw), "twice is harmless");
        assert_eq!(ledger.choose(&key(1), peer(9), None), []);
        assert_eq!((ledger.entries(), ledger.keys()), (1, 1));
        assert_consistent(&ledger);
    }

    #[test]
    fn only_members_are_listened_to() {
        let mut ledger = ledger();
        assert!(!ledger.apply(peer(1), &everything([1])));
        assert_eq!(ledger.entries(), 0);
    }

    #[test]
    fn missed_message_is_noticed_and_healed_by_a_resend() {
        let mut ledger = ledger();
        ledger.member_up(peer(1), None);
        ledger.apply(peer(1), &everything([1]));
        // The message that added 2 was lost.
        let check = Announce { complete: true, holds: holds([1, 2]), ..Announce::default() };
        assert!(!ledger.apply(peer(1), &check));
        assert!(!ledger.is_complete(&peer(1)));
        assert_eq!(ledger.choose(&key(1), peer(9), None), [peer(1)], "what is known is still named");
        assert!(ledger.apply(peer(1), &everything([1, 2])));
        assert!(ledger.apply(peer(1), &check));
        assert_consistent(&ledger);
    }

    #[test]
    fn content_does_not_vanish_during_a_resend_in_parts() {
        let mut ledger = ledger();
        ledger.member_up(peer(1), None);
        ledger.apply(peer(1), &everything([1, 2, 3]));
        let first = Announce { reset: true, add: keys([4]), ..Announce::default() };
        assert!(ledger.apply(peer(1), &first));
        assert!(!ledger.is_complete(&peer(1)));
        for number in 1..=4 {
            assert_eq!(ledger.choose(&key(number), peer(9), None), [peer(1)]);
        }
        let last = Announce {
            add: keys([1]),
            remove: keys([3]),
            complete: true,
            holds: holds([1, 4]),
            ..Announce::default()
        };
        assert!(ledger.apply(peer(1), &last));
        assert_eq!(ledger.choose(&key(2), peer(9), None), [], "not announced again");
        assert_eq!(ledger.keys_of(&peer(1)).len(), 2);
        assert_consistent(&ledger);
    }

    #[test]
    fn endless_unfinished_resends_do_not_pile_up() {
        let mut ledger = ledger();
        ledger.member_up(peer(1), None);
        for round in 0..50 {
            let part =
                Announce { reset: true, add: keys(round * 10..round * 10 + 10), ..Announce::default() };
            ledger.apply(peer(1), &part);
        }
        assert!(ledger.entries() <= 20, "{}", ledger.entries());
        assert_consistent(&ledger);
    }

    #[test]
    fn dead_or_leaving_holder_is_named_no_more() {
        let mut ledger = ledger();
        for number in 1..=3 {
            ledger.member_up(peer(number), None);
            ledger.apply(peer(number), &everything([1]));
        }
        ledger.member_down(peer(1));
        ledger.member_down(peer(1));
        ledger.goodbye(peer(2));
        ledger.goodbye(peer(99));
        assert_eq!(ledger.choose(&key(1), peer(9), None), [peer(3)]);
        // A late announcement of the one that said goodbye changes nothing and is not repeated.
        assert!(ledger.apply(peer(2), &everything([1])));
        assert_eq!(ledger.choose(&key(1), peer(9), None), [peer(3)]);
        assert_eq!(ledger.incomplete(), 0);
        // It comes back.
        ledger.member_down(peer(2));
        ledger.member_up(peer(2), None);
        assert_eq!(ledger.incomplete(), 1);
        assert!(ledger.apply(peer(2), &everything([1])));
        assert_eq!(ledger.choose(&key(1), peer(9), None).len(), 2);
        assert_consistent(&ledger);
    }

    #[test]
    fn popular_key_keeps_few_holders_of_all_zones_and_survives_their_death() {
        let mut ledger = ledger();
        for number in 0..200 {
            // Most are in one zone and announce first.
            let name = if number < 180 { "big" } else { "small" };
            ledger.member_up(peer(number), zone(name));
            assert!(ledger.apply(peer(number), &everything([1])));
        }
        assert_consistent(&ledger);
        let kept = ledger.keys[&key(1)].kept.clone();
        assert_eq!(kept.len(), HOLDERS_PER_KEY_MAX);
        let small = kept.iter().filter(|peer| ledger.holders[peer].zone == zone("small")).count();
        assert!(small >= 20, "{small}");
        for dead in kept {
            ledger.member_down(dead);
            assert_consistent(&ledger);
            assert!(ledger.choose(&key(1), ME, None).len() >= HOLDERS_PER_KEY_MIN);
        }
        for number in 0..200 {
            ledger.member_down(peer(number));
        }
        assert_eq!((ledger.entries(), ledger.keys()), (0, 0));
    }

    #[test]
    fn holder_that_adds_nothing_to_the_spread_over_zones_replaces_nobody() {
        let mut ledger = ledger();
        // One more of the first zone than of the others.
        let most = u16::try_from(HOLDERS_PER_KEY_MAX).expect("fits");
        let mut come_up = |number: u16| {
            ledger.member_up(peer(number), zone(["a", "b", "c"][usize::from(number % 3)]));
            ledger.apply(peer(number), &everything([1]));
            ledger.keys[&key(1)].kept.clone()
        };
        assert_eq!(most % 3, 1);
        let kept = (0..most).map(&mut come_up).last();
        assert_eq!((most..2 * most).map(come_up).last(), kept);
    }

    #[test]
    fn askers_zone_comes_first_but_not_alone() {
        let mut ledger = ledger();
        for number in 0..40 {
            ledger.member_up(peer(number), zone(if number < 20 { "near" } else { "far" }));
            ledger.apply(peer(number), &everything([1, 100 + usize::from(number)]));
        }
        let near = zone("near");
        let chosen = ledger.choose(&key(1), ME, near.as_ref());
        assert_eq!(chosen.len(), HOLDERS_PER_REPLY_MAX);
        assert!(chosen[..SAME_ZONE_PER_REPLY_MAX].iter().all(|peer| ledger.holders[peer].zone == near));
        assert!(chosen[SAME_ZONE_PER_REPLY_MAX..].iter().all(|peer| ledger.holders[peer].zone != near));
        assert_ne!(chosen, ledger.choose(&key(1), ME, near.as_ref()), "load is spread");
        // All are in the asker's zone: it gets as many as fit all the same.
        for number in 20..40 {
            ledger.member_down(peer(number));
        }
        assert_eq!(ledger.choose(&key(1), ME, near.as_ref()).len(), HOLDERS_PER_REPLY_MAX);
    }

    #[test]
    fn hostile_holder_is_refused_beyond_its_limit_and_others_are_not() {
        let mut ledger = ledger();
        ledger.limits = Limits { per_holder: 10, total: 24 };
        for number in 1..=3 {
            ledger.member_up(peer(number), None);
        }
        assert!(ledger.apply(peer(1), &everything(0..10)), "as many as it may have");
        assert_eq!(ledger.overflowing(), 0);
        assert!(ledger.apply(peer(1), &everything(0..11)), "not asked to send all that again");
        assert_eq!((ledger.overflowing(), ledger.incomplete()), (1, 2));
        assert_eq!(ledger.entries(), 10);
        assert!(ledger.apply(peer(2), &everything(100..120)));
        // All four (this node is one) have their share of what is nearly full.
        assert!(ledger.apply(peer(3), &everything(200..205)));
        assert_eq!(ledger.keys_of(&peer(3)).len(), 5);
        ledger.member_up(peer(4), None);
        assert!(ledger.apply(peer(4), &everything(300..304)));
        assert_eq!(ledger.keys_of(&peer(4)).len(), 4, "beyond the total, but within its share");
        assert_consistent(&ledger);
    }

    #[test]
    fn holder_that_shrinks_is_asked_for_what_was_refused() {
        let mut ledger = ledger();
        ledger.limits = Limits { per_holder: 8, total: 100 };
        ledger.member_up(peer(1), None);
        assert!(ledger.apply(peer(1), &everything(0..10)));
        let fewer =
            Announce { remove: keys(0..3), complete: true, holds: holds(3..10), ..Announce::default() };
        assert!(!ledger.apply(peer(1), &fewer));
        assert!(ledger.apply(peer(1), &everything(3..10)));
        assert_eq!(ledger.keys_of(&peer(1)).len(), 7);
        assert_eq!(ledger.overflowing(), 0);
        assert_consistent(&ledger);
    }

    #[test]
    fn own_content_is_named_to_others() {
        let mut ledger = ledger();
        ledger.set(ME, key(1), true);
        assert_eq!(ledger.choose(&key(1), peer(1), None), [ME]);
        ledger.set(ME, key(1), false);
        assert_eq!(ledger.choose(&key(1), peer(1), None), []);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

        /// Whatever peers send, in any order, the tables agree and stay within their bounds.
        #[test]
        fn any_announcements_leave_it_consistent(
            ops in proptest::collection::vec(
                (0_u8..12, 0_u16..90, proptest::collection::vec(0_usize..12, 0..8), 0_usize..8, proptest::bool::ANY),
                1..300,
            ),
        ) {
            let mut ledger = ledger();
            ledger.limits = Limits { per_holder: 6, total: 200 };
            for (op, number, numbers, split, complete) in ops {
                match op {
                    0 => ledger.member_down(peer(number)),
                    1 => ledger.goodbye(peer(number)),
                    2 => ledger.set(ME, key(usize::from(number) % 6), complete),
                    _ => {
                        ledger.member_up(peer(number), zone(["a", "b", "c"][usize::from(number) % 3]));
                        let (add, remove) = numbers.split_at(split.min(numbers.len()));
                        let announce = Announce {
                            reset: op < 8,
                            add: keys(add.iter().copied()),
                            remove: keys(remove.iter().copied()),
                            complete,
                            ..Announce::default()
                        };
                        ledger.apply(peer(number), &announce);
                    }
                }
                assert_consistent(&ledger);
                proptest::prop_assert!(ledger.entries() <= 200 + 2 * 6 * ledger.holders.len());
                for number in 0..12 {
                    let chosen = ledger.choose(&key(number), peer(1), zone("a").as_ref());
                    proptest::prop_assert!(chosen.len() <= HOLDERS_PER_REPLY_MAX && !chosen.contains(&peer(1)));
                }
            }
        }
    }
}
