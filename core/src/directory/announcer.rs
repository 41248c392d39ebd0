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

/// How often one owner, each in turn, is asked whether it still believes the same. More often and
/// idle clusters talk more; less often and what got lost stays lost for longer.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);

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
        let mut moved = Vec::new();
        for (key, owners) in &mut self.held {
            let Some(rank) = roster.rank(peer, key) else { continue };
            let left_out = owners.offer(rank);
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

    /// A member is gone; the roster no longer has it.
    pub(super) fn member_down(&mut self, now: Instant, roster: &Roster, peer: PeerId) {
        self.outboxes.close(peer);
        self.greetings.retain(|greeted| *greeted != peer);
        self.sends.retain(|(to, _)| *to != peer);
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
        self.sends.clear();
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

    /// Keys this node holds.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Owners that have not confirmed what they were told last.
    pub(super) fn unsynced(&self) -> usize {
        self.outboxes.iter().filter(|(_, outbox)| !outbox.is_synced()).count()
    }
}
