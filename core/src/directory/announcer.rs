//! Decides what this node, as a holder, tells the owners of what it holds, and when: soon after
//! a change, at a bearable pace when the membership changes, and now and then to each in turn
//! to find out whether the owner still believes the same. Never decides what is held. The
//! directory calls it and sends what it says.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    outbox::{Outbox, Outboxes},
    owners::{Owners, Roster},
};
use crate::{Key, PeerId, message::Announce, output::soonest, pacer::Pacer, rng::Rng};

/// How long changes are gathered before they are announced. Shorter and each layer of an image
/// is an announcement of its own; longer and a layer that a node has just got is found later.
const BATCH_DELAY: Duration = Duration::from_millis(20);

/// How long changes are gathered that come from other members' coming and going. Shorter and one
/// restart of the `DaemonSet` makes several rounds of announcements; it must stay far below
/// [`super::owners::RECENT_DEPARTURE`], after which heirs rule out what they were not told.
const REBALANCE_DELAY: Duration = Duration::from_millis(500);

/// Pace of announcements altogether. Slower and content is found late after many changes at
/// once; faster and a node that has just started floods its links.
const ANNOUNCE_INTERVAL: Duration = Duration::from_millis(2);
const ANNOUNCE_BURST: u32 = 256;

/// Pace of first announcements to members that came up. Slower and it takes longer until owners
/// can rule out holders after a restart of the whole cluster; faster and every node opens
/// more connections at once.
const GREET_INTERVAL: Duration = Duration::from_millis(5);
const GREET_BURST: u32 = 64;

/// In clusters larger than [`GREET_BURST`] first announcements are spread by about this for each
/// member, so that not all nodes turn to a new one at the same moment. Smaller and it is
/// flooded; larger and it learns of holders later.
const GREET_SPREAD: Duration = Duration::from_millis(1);

/// How often one owner, each in turn, is asked whether it still believes the same. Announcements
/// are confirmed, so this only finds what should not happen. More often and idle clusters talk
/// more; less often and what got lost stays lost for longer.
pub(super) const RECONCILE_INTERVAL: Duration = Duration::from_secs(10);

/// What is held, who owns it, and what they were told.
#[derive(Debug)]
pub(super) struct Announcer {
    held: BTreeMap<Key, Owners>,
    /// One for each live member but this one.
    outboxes: Outboxes,
    pacer: Pacer,
    /// Members that came up and have not been spoken to, in order.
    greetings: VecDeque<PeerId>,
    greet_from: Option<Instant>,
    greet_pacer: Pacer,
    reconcile_at: Option<Instant>,
    reconciled_last: PeerId,
    /// Changes to what this node should know as an owner of what it holds itself.
    own: VecDeque<(Key, bool)>,
    /// Taken after each call.
    sends: VecDeque<(PeerId, Announce)>,
    rng: Rng,
}

impl Announcer {
    pub(super) fn new(me: PeerId, rng: Rng) -> Self {
        Self {
            held: BTreeMap::new(),
            outboxes: Outboxes::default(),
            pacer: Pacer::new(ANNOUNCE_INTERVAL, ANNOUNCE_BURST),
            greetings: VecDeque::new(),
            greet_from: None,
            greet_pacer: Pacer::new(GREET_INTERVAL, GREET_BURST),
            reconcile_at: None,
            // Every node begins its round elsewhere: with itself.
            reconciled_last: me,
            own: VecDeque::new(),
            sends: VecDeque::new(),
            rng,
        }
    }

    /// A member came up; the roster has it.
    pub(super) fn member_up(&mut self, now: Instant, roster: &Roster, peer: PeerId) {
        self.greet(now, roster, peer);
        let Some(candidate) = roster.candidate(peer) else { return };
        let mut moved = Vec::new();
        for (key, owners) in &mut self.held {
            let left_out = owners.offer(candidate.rank(key));
            if left_out != Some(peer) {
                moved.push((*key, left_out));
            }
        }
        for (key, left_out) in moved {
            self.tell(now, REBALANCE_DELAY, roster, peer, key, true);
            if let Some(left_out) = left_out {
                self.tell(now, REBALANCE_DELAY, roster, left_out, key, false);
            }
        }
    }

    /// A member that is there may have forgotten all it was told: tells it again.
    pub(super) fn member_restarted(&mut self, now: Instant, roster: &Roster, peer: PeerId) {
        self.greetings.retain(|greeted| *greeted != peer);
        self.greet(now, roster, peer);
        let owned = self.held.iter().filter(|(_, owners)| owners.contains(&peer)).map(|(key, _)| *key);
        for key in owned.collect::<Vec<_>>() {
            self.tell(now, REBALANCE_DELAY, roster, peer, key, true);
        }
    }

    fn greet(&mut self, now: Instant, roster: &Roster, peer: PeerId) {
        self.outboxes.open(peer);
        if self.greetings.is_empty() {
            let others = u32::try_from(roster.others()).unwrap_or(u32::MAX);
            let spread = if others > GREET_BURST { GREET_SPREAD * others } else { Duration::ZERO };
            self.greet_from = Some(now + self.rng.jittered(spread));
        }
        self.greetings.push_back(peer);
        if self.reconcile_at.is_none() {
            self.reconcile_at = Some(now + self.rng.jittered(RECONCILE_INTERVAL));
        }
    }

    /// A member is gone; the roster no longer has it.
    pub(super) fn member_down(&mut self, now: Instant, roster: &Roster, peer: PeerId) {
        self.outboxes.close(peer);
        self.greetings.retain(|greeted| *greeted != peer);
        if self.outboxes.is_empty() {
            self.reconcile_at = None;
        }
        let mut heirs = Vec::new();
        for (key, owners) in self.held.iter_mut().filter(|(_, owners)| owners.contains(&peer)) {
            let before = std::mem::replace(owners, roster.owners(key));
            heirs.extend(owners.iter().filter(|owner| !before.contains(owner)).map(|heir| (heir, *key)));
        }
        for (heir, key) in heirs {
            self.tell(now, REBALANCE_DELAY, roster, heir, key, true);
        }
    }

    /// This node can serve the key.
    pub(super) fn hold(&mut self, now: Instant, roster: &Roster, key: Key) {
        if self.held.contains_key(&key) {
            return;
        }
        let owners = roster.owners(&key);
        for owner in owners.iter() {
            self.tell(now, BATCH_DELAY, roster, owner, key, true);
        }
        self.held.insert(key, owners);
    }

    /// This node can no longer serve the key.
    pub(super) fn release(&mut self, now: Instant, roster: &Roster, key: Key) {
        let Some(owners) = self.held.remove(&key) else { return };
        for owner in owners.iter() {
            self.tell(now, BATCH_DELAY, roster, owner, key, false);
        }
    }

    fn tell(&mut self, now: Instant, delay: Duration, roster: &Roster, owner: PeerId, key: Key, held: bool) {
        if owner == roster.me() {
            self.own.push_back((key, held));
            return;
        }
        self.outboxes.change(owner, |outbox| {
            outbox.set(key, held);
            // What moves to a member that came up goes with the first announcement, at its pace.
            if !(outbox.greets() && delay == REBALANCE_DELAY) {
                outbox.want(now + delay);
            }
        });
    }

    /// An owner says that it has no complete set of this node.
    pub(super) fn wanted(&mut self, now: Instant, owner: PeerId) {
        self.outboxes.change(owner, |outbox| {
            // Otherwise it is about to be told anyway.
            if outbox.is_synced() {
                outbox.want(now + REBALANCE_DELAY);
            }
        });
    }

    /// An owner answered the announcement.
    pub(super) fn answered(&mut self, now: Instant, owner: PeerId, synced: bool) {
        self.outboxes.change(owner, |outbox| outbox.answered(now, synced, &mut self.rng));
    }

    /// An owner did not answer the announcement.
    pub(super) fn failed(&mut self, now: Instant, owner: PeerId) {
        self.outboxes.change(owner, |outbox| outbox.failed(now, &mut self.rng));
    }

    /// Says nothing more, and names the members that were told something, most first.
    pub(super) fn leave(&mut self) -> Vec<PeerId> {
        let outboxes = std::mem::take(&mut self.outboxes);
        let mut told: Vec<_> = outboxes
            .iter()
            .filter(|(_, outbox)| outbox.keys() > 0)
            .map(|(peer, outbox)| (outbox.keys(), *peer))
            .collect();
        told.sort_unstable_by(|one, other| other.cmp(one));
        self.greetings.clear();
        self.reconcile_at = None;
        told.into_iter().map(|(_, peer)| peer).collect()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while self.greet_from.is_some_and(|from| from <= now)
            && let Some(peer) = self.greetings.front().copied()
        {
            // It may have been spoken to already, about something that could not wait.
            let greets = self.outboxes.greets(&peer);
            if greets && !self.greet_pacer.take(now) {
                break;
            }
            self.greetings.pop_front();
            if greets {
                self.outboxes.change(peer, |outbox| outbox.want(now));
            }
        }
        if self.reconcile_at.is_some_and(|at| at <= now) {
            self.reconcile(now);
        }
        while let Some((at, peer)) = self.outboxes.first_due()
            && at <= now
            && self.pacer.take(now)
        {
            let announce = self.outboxes.change(peer, Outbox::announce);
            self.sends.extend(announce.map(|announce| (peer, announce)));
        }
    }

    /// Checks with the next owner in turn that has nothing else to be told.
    fn reconcile(&mut self, now: Instant) {
        self.reconcile_at = Some(now + self.rng.jittered(RECONCILE_INTERVAL));
        if let Some(owner) = self.outboxes.next_idle(self.reconciled_last) {
            self.reconciled_last = owner;
            self.outboxes.change(owner, |outbox| outbox.want(now));
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.outboxes.first_due().map(|(at, _)| self.pacer.ready_at(at));
        let greeting = self
            .greet_from
            .filter(|_| !self.greetings.is_empty())
            .map(|from| self.greet_pacer.ready_at(from));
        soonest(soonest(due, greeting), self.reconcile_at)
    }

    /// The next announcement to send; its answer or failure is to be reported.
    pub(super) fn poll_send(&mut self) -> Option<(PeerId, Announce)> {
        self.sends.pop_front()
    }

    /// The next change to what this node knows as an owner.
    pub(super) fn poll_own(&mut self) -> Option<(Key, bool)> {
        self.own.pop_front()
    }

    /// Keys this node holds, in order.
    pub(super) fn held_keys(&self) -> impl Iterator<Item = &Key> {
        self.held.keys()
    }

    /// Whether this node holds a key.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.held.contains_key(key)
    }

    /// How many keys this node holds.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Owners that have not confirmed what they were told last.
    pub(super) fn unsynced(&self) -> usize {
        self.outboxes.iter().filter(|(_, outbox)| !outbox.is_synced()).count()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn peer(number: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        PeerId::from_public_key(key)
    }

    fn key(number: usize) -> Key {
        Key::of(&number.to_string())
    }

    /// A node and members that it has greeted.
    fn greeted(others: u16) -> (Instant, Roster, Announcer) {
        let (mut now, mut roster, mut announcer) = fresh();
        for number in 1..=others {
            come_up(now, &mut roster, &mut announcer, number);
        }
        while announcer.unsynced() > 0 {
            now = now.max(announcer.poll_timeout().expect("something is left to say"));
            confirm(now, &mut announcer);
        }
        (now, roster, announcer)
    }

    fn fresh() -> (Instant, Roster, Announcer) {
        let me = peer(0);
        (crate::test_time::start(), Roster::new(me, None), Announcer::new(me, Rng::new(1, "announcer")))
    }

    fn come_up(now: Instant, roster: &mut Roster, announcer: &mut Announcer, number: u16) {
        assert!(roster.up(peer(number), None));
        announcer.member_up(now, roster, peer(number));
    }

    fn sends(now: Instant, announcer: &mut Announcer) -> Vec<(PeerId, Announce)> {
        announcer.handle_timeout(now);
        std::iter::from_fn(|| announcer.poll_send()).collect()
    }

    fn confirm(now: Instant, announcer: &mut Announcer) -> Vec<(PeerId, Announce)> {
        let sent = sends(now, announcer);
        sent.iter().for_each(|(owner, _)| announcer.answered(now, *owner, true));
        sent
    }

    /// No check of what an owner believes falls into the test.
    fn without_reconciliation(announcer: &mut Announcer) {
        announcer.reconcile_at = None;
    }

    #[test]
    fn changes_of_a_moment_are_one_announcement_for_each_owner() {
        let (now, roster, mut announcer) = greeted(3);
        without_reconciliation(&mut announcer);
        for number in 0..100 {
            announcer.hold(now, &roster, key(number));
            announcer.hold(now, &roster, key(0));
        }
        let due = now + BATCH_DELAY;
        announcer.hold(due - Duration::from_nanos(1), &roster, key(100));
        assert_eq!(announcer.poll_timeout(), Some(due));
        assert_eq!(sends(due - Duration::from_nanos(1), &mut announcer), []);
        let sent = sends(due, &mut announcer);
        let owners: BTreeSet<_> = sent.iter().map(|(owner, _)| *owner).collect();
        assert_eq!((sent.len(), owners.len()), (3, 3));
        let told: usize = sent.iter().map(|(_, announce)| announce.add.len()).sum();
        let own = std::iter::from_fn(|| announcer.poll_own()).count();
        assert_eq!(told + own, 101 * 3);
        assert!(sent.iter().all(|(_, announce)| announce.complete && !announce.reset));
    }

    #[test]
    fn nothing_more_is_said_until_the_owner_has_answered() {
        let (now, roster, mut announcer) = greeted(1);
        without_reconciliation(&mut announcer);
        announcer.hold(now, &roster, key(1));
        assert_eq!(sends(now + BATCH_DELAY, &mut announcer).len(), 1);
        announcer.release(now + BATCH_DELAY, &roster, key(1));
        assert_eq!(announcer.poll_timeout(), None);
        assert_eq!(sends(now + BATCH_DELAY * 10, &mut announcer), []);
        announcer.answered(now + BATCH_DELAY * 10, peer(1), true);
        let sent = sends(now + BATCH_DELAY * 10, &mut announcer);
        assert_eq!(sent[0].1.remove, [key(1)]);
    }

    #[test]
    fn few_members_are_greeted_at_once() {
        let (now, mut roster, mut announcer) = fresh();
        assert_eq!(announcer.poll_timeout(), None);
        announcer.hold(now, &roster, key(1));
        for number in 1..=3 {
            come_up(now, &mut roster, &mut announcer, number);
        }
        assert_eq!(announcer.poll_timeout(), Some(now));
        let sent = sends(now, &mut announcer);
        assert_eq!(sent.len(), 3);
        assert!(sent.iter().all(|(_, announce)| announce.reset && announce.complete));
    }

    #[test]
    fn nodes_of_large_clusters_do_not_turn_to_a_new_member_all_at_once() {
        let greet_burst = u16::try_from(GREET_BURST).expect("fits");
        for (others, at_once) in [(greet_burst, true), (greet_burst + 1, false), (500, false)] {
            let (now, mut roster, mut announcer) = greeted(others - 1);
            without_reconciliation(&mut announcer);
            come_up(now, &mut roster, &mut announcer, others);
            let greeted = sends(now, &mut announcer).iter().any(|(to, _)| *to == peer(others));
            assert_eq!(greeted, at_once, "one of {others} other members");
        }
    }

    #[test]
    fn many_members_are_greeted_at_a_pace_but_what_is_new_does_not_wait() {
        let (now, mut roster, mut announcer) = fresh();
        for number in 1..=500 {
            come_up(now, &mut roster, &mut announcer, number);
        }
        without_reconciliation(&mut announcer);
        announcer.greet_from = Some(now);
        assert_eq!(confirm(now, &mut announcer).len(), GREET_BURST as usize);
        assert_eq!(confirm(now, &mut announcer), []);
        announcer.hold(now, &roster, key(1));
        let sent = confirm(now + BATCH_DELAY, &mut announcer);
        let about_it = sent.iter().filter(|(_, announce)| announce.add == [key(1)]).count();
        assert_eq!(about_it, 3);
        assert!(sent.len() <= 3 + 4, "{}", sent.len());
        let (mut at, mut count) = (now + BATCH_DELAY, GREET_BURST as usize + sent.len());
        while announcer.unsynced() > 0 {
            at = announcer.poll_timeout().expect("something is left to say");
            count += confirm(at, &mut announcer).len();
        }
        assert!((500..=503).contains(&count), "each once: {count}");
        assert!(at - now > Duration::from_secs(2) && at - now < Duration::from_secs(3));
    }

    #[test]
    fn owners_are_checked_one_after_the_other() {
        let (_, _, mut announcer) = greeted(5);
        let mut checked = Vec::new();
        for _ in 0..10 {
            let now = announcer.poll_timeout().expect("there is always one more");
            let sent = confirm(now, &mut announcer);
            assert_eq!(sent.len(), 1);
            assert_eq!(sent[0].1, Announce { complete: true, ..Announce::default() });
            checked.push(sent[0].0);
        }
        assert_eq!(checked[..5].iter().collect::<BTreeSet<_>>().len(), 5);
        assert_eq!(checked[..5], checked[5..]);
    }

    #[test]
    fn only_what_changes_owner_moves() {
        let (now, mut roster, mut announcer) = greeted(20);
        without_reconciliation(&mut announcer);
        (0..200).for_each(|number| announcer.hold(now, &roster, key(number)));
        confirm(now + BATCH_DELAY, &mut announcer);
        come_up(now + BATCH_DELAY, &mut roster, &mut announcer, 21);
        without_reconciliation(&mut announcer);
        let owned = (0..200).filter(|number| roster.owners(&key(*number)).contains(&peer(21))).count();
        let greeting = confirm(now + BATCH_DELAY, &mut announcer);
        assert_eq!(greeting.len(), 1);
        assert_eq!(greeting[0].1.add.len(), owned);
        let own = std::iter::from_fn(|| announcer.poll_own()).filter(|(_, held)| !held).count();
        let moved = confirm(now + BATCH_DELAY + REBALANCE_DELAY, &mut announcer);
        assert!(moved.iter().all(|(_, announce)| announce.add.is_empty() && announce.complete));
        assert_eq!(moved.iter().map(|(_, announce)| announce.remove.len()).sum::<usize>() + own, owned);
        // It goes again: all comes back to where it was.
        let later = now + Duration::from_secs(5);
        roster.down(later, peer(21));
        announcer.member_down(later, &roster, peer(21));
        let back = confirm(later + REBALANCE_DELAY, &mut announcer);
        let own = std::iter::from_fn(|| announcer.poll_own()).filter(|(_, held)| *held).count();
        assert_eq!(back.iter().map(|(_, announce)| announce.add.len()).sum::<usize>() + own, owned);
        assert!(back.iter().all(|(owner, announce)| *owner != peer(21) && announce.remove.is_empty()));
    }

    #[test]
    fn unreachable_owner_is_tried_for_ever_ever_more_slowly() {
        let (mut now, roster, mut announcer) = greeted(1);
        announcer.hold(now, &roster, key(1));
        without_reconciliation(&mut announcer);
        let began = now;
        for _ in 0..30 {
            now = announcer.poll_timeout().expect("retried");
            assert_eq!(sends(now, &mut announcer).len(), 1);
            announcer.failed(now, peer(1));
        }
        assert!(now - began > Duration::from_secs(100));
        assert_eq!(announcer.unsynced(), 1);
        now = announcer.poll_timeout().expect("retried");
        confirm(now, &mut announcer);
        assert_eq!(announcer.unsynced(), 0);
    }

    #[test]
    fn leaving_names_who_was_told_most_first() {
        let (now, roster, mut announcer) = greeted(30);
        assert_eq!(announcer.leave(), []);
        let (_, _, mut announcer) = greeted(30);
        (0..40).for_each(|number| announcer.hold(now, &roster, key(number)));
        let counts =
            |owner: &PeerId| (0..40).filter(|number| roster.owners(&key(*number)).contains(owner)).count();
        let told = announcer.leave();
        assert!(told.is_sorted_by_key(|owner| std::cmp::Reverse(counts(owner))));
        assert!(told.iter().all(|owner| counts(owner) > 0));
        assert_eq!(announcer.poll_timeout(), None);
    }
}
