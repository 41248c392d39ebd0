//! Who has what: finds the holders of a key with one question to one of its owners, and keeps
//! the owners of what this node holds up to date.
//!
//! Each key is owned by a few live members, the same in every node's view ([`owners`]). Holders
//! announce what they have to the owners ([`announcer`], [`outbox`]), owners keep what they
//! were told ([`ledger`]), and whoever wants a key asks its owners ([`lookup`]). What a holder
//! announced dies with its membership; a lost message is found out by comparing fingerprints.
//!
//! An answer without holders is *definitive* only of an owner that can rule out any: it knows all
//! members, every live one has announced all it has to it, and it has been an owner of the key
//! for long enough that holders know it is to be told.
//!
//! Decides neither who is a member, nor what this node holds, nor what becomes of the holders
//! found: [`crate::Node`] tells it, sends what it says, and passes on answers.

mod announcer;
mod ledger;
mod lookup;
#[cfg(test)]
mod model;
mod outbox;
mod owners;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

pub(crate) use self::lookup::{LookupId, Outcome};
use self::{announcer::Announcer, ledger::Ledger, lookup::Lookups, lookup::Step, owners::Roster};
use crate::{
    Key, PeerId, Zone,
    message::{Announce, HOLDERS_PER_REPLY_MAX, Reply, Request},
    output::soonest,
    rng::Rng,
};

/// How long an owner may at least take to answer a lookup before the exchange is dropped. Longer
/// than most lookups wait, since a late answer still tells that the owner is alive; much longer
/// and exchanges with the dead pile up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an owner may take to apply an announcement. Shorter and a busy owner is sent the same
/// again; longer and a lost announcement is repeated later.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a farewell may take. Shorter and owners in other regions name this node after it has
/// gone; longer and it goes later.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// Most members that a leaving node says goodbye to itself; the others hear of it through
/// membership. Fewer and more pulls try it after it has gone; more and it goes later.
const GOODBYES_MAX: usize = 256;

/// What the directory wants done, or has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Send a request, and report its reply or failure under `exchange`.
    Send {
        /// Names the exchange, within the directory.
        exchange: u64,
        /// The receiver.
        to: PeerId,
        /// The request.
        request: Request,
        /// When to report a failure instead.
        timeout: Duration,
    },
    /// A lookup is over.
    Answered {
        /// The lookup.
        lookup: LookupId,
        /// Live members that have the content, the best to ask first; never this node.
        holders: Vec<PeerId>,
        /// Whether there may be others although `holders` is empty.
        outcome: Outcome,
    },
}

/// What the directory knows, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectoryReport {
    /// Live members, this node among them.
    pub members: usize,
    /// Keys this node holds.
    pub keys_held: usize,
    /// Other members that have not confirmed what they were told of these.
    pub owners_unsynced: usize,
    /// Keys this node, as an owner, knows a holder of.
    pub keys_owned: usize,
    /// Pairs of key and holder this node, as an owner, knows.
    pub entries_owned: usize,
    /// Members that have not told this node everything: while there are any, it cannot rule out
    /// holders.
    pub holders_incomplete: usize,
    /// Members that announced more than one may.
    pub holders_overflowing: usize,
    /// Lookups under way.
    pub lookups_in_flight: usize,
}

/// What the directory knows, key by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryContents {
    /// Keys this node holds, in order.
    pub held: Vec<Key>,
    /// Keys this node, as an owner, knows a holder of.
    pub owned: BTreeMap<Key, KnownHolders>,
}

/// Who holds one key, as far as an owner knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownHolders {
    /// Those it names to askers, a few at a time.
    pub kept: Vec<PeerId>,
    /// How many more there are.
    pub left_out: usize,
}

/// What an exchange is about.
#[derive(Clone, Copy, Debug)]
enum Exchange {
    Announce { owner: PeerId },
    Lookup { owner: PeerId, lookup: LookupId },
    Goodbye { to: PeerId },
}

/// Who has what, as far as this node holds, owns, or asks.
#[derive(Debug)]
pub(crate) struct Directory {
    roster: Roster,
    ledger: Ledger,
    announcer: Announcer,
    lookups: Lookups,
    /// At most one announcement for each member, and three for each lookup of the last second.
    exchanges: BTreeMap<u64, Exchange>,
    next_exchange: u64,
    events: VecDeque<Event>,
    /// Whether this node knows all members; one that does not rules out nothing.
    is_view_complete: bool,
    leaving: bool,
}

impl Directory {
    /// A directory of `me` alone. `resolve_timeout` is how long one owner may take to answer
    /// before another is asked too.
    pub(crate) fn new(me: PeerId, zone: Option<Zone>, seed: u64, resolve_timeout: Duration) -> Self {
        Self {
            roster: Roster::new(me, zone.clone()),
            ledger: Ledger::new(me, zone, Rng::new(seed, "directory/ledger")),
            announcer: Announcer::new(me, Rng::new(seed, "directory/announcer")),
            lookups: Lookups::new(resolve_timeout),
            exchanges: BTreeMap::new(),
            next_exchange: 0,
            events: VecDeque::new(),
            is_view_complete: false,
            leaving: false,
        }
    }

    /// Whether the members told are all there are, as far as can be known.
    pub(crate) fn set_view_complete(&mut self, is_complete: bool) {
        self.is_view_complete = is_complete;
    }

    pub(crate) const fn is_view_complete(&self) -> bool {
        self.is_view_complete
    }

    /// A member joined or came back.
    pub(crate) fn member_up(&mut self, now: Instant, peer: PeerId, zone: Option<Zone>) {
        if peer == self.roster.me() {
            return;
        }
        self.ledger.member_up(peer, zone.clone());
        if self.roster.up(peer, zone) && !self.leaving {
            self.announcer.member_up(now, &self.roster, peer);
        }
        self.pump();
    }

    /// A member has a later generation: it moved, or it restarted and has forgotten what it was
    /// told. What it announced stays until it announces anew: it holds most of that still, and
    /// one that only moved does not know that there is something to repeat.
    pub(crate) fn member_changed(&mut self, now: Instant, peer: PeerId, zone: Option<Zone>) {
        if peer == self.roster.me() || !self.roster.contains(&peer) {
            return self.member_up(now, peer, zone);
        }
        self.ledger.member_up(peer, zone.clone());
        self.roster.up(peer, zone);
        // An answer of the former life says nothing about this one.
        let tells_it =
            |exchange: &Exchange| matches!(exchange, Exchange::Announce { owner } if *owner == peer);
        self.exchanges.retain(|_, exchange| !tells_it(exchange));
        if !self.leaving {
            self.announcer.member_restarted(now, &self.roster, peer);
        }
        self.pump();
    }

    /// A member left or failed.
    pub(crate) fn member_down(&mut self, now: Instant, peer: PeerId) {
        if peer == self.roster.me() || !self.roster.down(now, peer) {
            return;
        }
        self.ledger.member_down(peer);
        self.announcer.member_down(now, &self.roster, peer);
        self.lookups.member_down(peer);
        let is_with = |exchange: &Exchange| match exchange {
            Exchange::Announce { owner } | Exchange::Lookup { owner, .. } => *owner == peer,
            Exchange::Goodbye { to } => *to == peer,
        };
        let over: Vec<_> =
            self.exchanges.iter().filter(|(_, exchange)| is_with(exchange)).map(|(id, _)| *id).collect();
        for exchange in over {
            self.on_failed(now, exchange);
        }
        self.pump();
    }

    /// This node can serve the key.
    pub(crate) fn hold(&mut self, now: Instant, key: Key) {
        if !self.leaving {
            self.announcer.hold(now, &self.roster, key);
            self.pump();
        }
    }

    /// This node can no longer serve the key.
    pub(crate) fn release(&mut self, now: Instant, key: Key) {
        self.announcer.release(now, &self.roster, key);
        self.pump();
    }

    /// A peer announced what it holds.
    pub(crate) fn on_announce(&mut self, now: Instant, from: PeerId, announce: &Announce) -> Reply {
        // The views of who is a member differ for a moment: it will announce again. This node
        // itself only comes this way by a connection that leads back to it.
        if !self.roster.contains(&from) || from == self.roster.me() {
            return Reply::Announced { synced: false };
        }
        let synced = self.ledger.apply(from, announce);
        if announce.wants {
            self.announcer.wanted(now, from);
        }
        Reply::Announced { synced }
    }

    /// A peer asked who holds a key.
    pub(crate) fn on_lookup(&mut self, now: Instant, from: PeerId, key: Key) -> Reply {
        let holders = self.ledger.choose(&key, from, self.roster.zone(&from));
        // Who asks takes this node for a member; if it is not one here, this node has just started
        // and knows only a part of the cluster yet.
        let knows = self.roster.contains(&from) && self.knows(now, &key);
        Reply::Found { holders, knows }
    }

    /// A peer is about to stop.
    pub(crate) fn on_goodbye(&mut self, now: Instant, peer: PeerId) {
        if self.roster.contains(&peer) && peer != self.roster.me() {
            self.ledger.goodbye(peer);
            self.lookups.ask_last(now, peer);
        }
    }

    /// The reply to [`Event::Send`].
    pub(crate) fn on_reply(&mut self, now: Instant, exchange: u64, reply: Reply) {
        match (self.exchanges.get(&exchange).copied(), reply) {
            (Some(Exchange::Announce { owner }), Reply::Announced { synced }) => {
                self.exchanges.remove(&exchange);
                self.announcer.answered(now, owner, synced);
            }
            (Some(Exchange::Lookup { owner, lookup }), Reply::Found { holders, knows }) => {
                self.exchanges.remove(&exchange);
                let told = holders.len();
                let usable = self.usable(holders);
                // Holders that are strangers here, but perhaps not for long, are no "nobody".
                let knows = knows && (told == 0 || !usable.is_empty());
                self.lookups.found(now, lookup, owner, usable, knows);
            }
            (Some(Exchange::Goodbye { .. }), _) => drop(self.exchanges.remove(&exchange)),
            // A release that answers something else cannot be helped.
            (Some(Exchange::Announce { .. } | Exchange::Lookup { .. }), _) => self.on_failed(now, exchange),
            // Of a member that has gone since.
            (None, _) => {}
        }
        self.pump();
    }

    /// [`Event::Send`] got no reply in time, or none that makes sense.
    pub(crate) fn on_failed(&mut self, now: Instant, exchange: u64) {
        match self.exchanges.remove(&exchange) {
            Some(Exchange::Announce { owner }) => self.announcer.failed(now, owner),
            Some(Exchange::Lookup { owner, lookup }) => self.lookups.failed(now, lookup, owner),
            Some(Exchange::Goodbye { .. }) | None => {}
        }
        self.pump();
    }

    /// Finds out who holds a key; exactly one [`Event::Answered`] follows, perhaps at once.
    pub(crate) fn lookup(&mut self, now: Instant, key: Key) -> LookupId {
        let id = self.begin_lookup(now, key);
        self.pump();
        id
    }

    /// Whether this node holds a key, and says so.
    pub(crate) fn holds(&self, key: &Key) -> bool {
        self.announcer.holds(key)
    }

    fn begin_lookup(&mut self, now: Instant, key: Key) -> LookupId {
        let me = self.roster.me();
        if self.roster.others() == 0 {
            let outcome = if self.is_view_complete { Outcome::Definitive } else { Outcome::Unanswered };
            return self.lookups.answer_at_once(Vec::new(), outcome);
        }
        let owners = self.roster.owners(&key);
        let mut holders = Vec::new();
        if owners.contains(&me) {
            holders = self.ledger.choose(&key, me, self.roster.zone(&me));
            if self.knows(now, &key) {
                return self.lookups.answer_at_once(holders, Outcome::Definitive);
            }
        }
        self.lookups.begin(now, key, holders, owners.iter().filter(|owner| *owner != me))
    }

    /// Nobody waits for the answer any more: no [`Event::Answered`] follows, unless it was
    /// already decided.
    pub(crate) fn cancel_lookup(&mut self, lookup: LookupId) {
        self.lookups.cancel(lookup);
    }

    /// This node is about to stop: says goodbye to those that name it as a holder, and announces
    /// nothing more. It still answers. `generation` is that of the life which ends.
    pub(crate) fn leave(&mut self, _now: Instant, generation: u64) {
        if std::mem::replace(&mut self.leaving, true) {
            return;
        }
        self.ledger.goodbye(self.roster.me());
        for to in self.announcer.leave().into_iter().take(GOODBYES_MAX) {
            let request = Request::Goodbye { generation: Some(generation) };
            self.send(Exchange::Goodbye { to }, to, request, GOODBYE_TIMEOUT);
        }
        self.pump();
    }

    /// Farewells that have neither been answered nor failed.
    pub(crate) fn goodbyes_in_flight(&self) -> usize {
        self.exchanges.values().filter(|exchange| matches!(exchange, Exchange::Goodbye { .. })).count()
    }

    /// This process was paused until now: time in which nothing could be received proves nothing.
    pub(crate) fn on_paused(&mut self, now: Instant) {
        self.lookups.on_paused(now);
    }

    /// Does everything that is due. Early, late and repeated calls are harmless.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.announcer.handle_timeout(now);
        self.lookups.handle_timeout(now);
        self.pump();
    }

    /// When to call [`Self::handle_timeout`] next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        soonest(self.announcer.poll_timeout(), self.lookups.poll_timeout())
    }

    /// The next thing to do; drain after each call.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What is known, in numbers.
    pub(crate) fn report(&self) -> DirectoryReport {
        DirectoryReport {
            members: self.roster.others() + 1,
            keys_held: self.announcer.held(),
            owners_unsynced: self.announcer.unsynced(),
            keys_owned: self.ledger.keys(),
            entries_owned: self.ledger.entries(),
            holders_incomplete: self.ledger.incomplete(),
            holders_overflowing: self.ledger.overflowing(),
            lookups_in_flight: self.lookups.in_flight(),
        }
    }

    /// What is known, key by key.
    pub(crate) fn contents(&self) -> DirectoryContents {
        let known = |(key, kept, left_out): (&Key, &[PeerId], usize)| {
            (*key, KnownHolders { kept: kept.to_vec(), left_out })
        };
        DirectoryContents {
            held: self.announcer.held_keys().copied().collect(),
            owned: self.ledger.iter().map(known).collect(),
        }
    }

    /// Whether this node can rule out holders of the key that it does not know.
    fn knows(&self, now: Instant, key: &Key) -> bool {
        self.is_view_complete
            && self.ledger.incomplete() == 0
            && self.roster.owned_before_departures(now, key)
    }

    /// Of holders that an owner named, those this node can turn to.
    fn usable(&self, holders: Vec<PeerId>) -> Vec<PeerId> {
        let mut seen = BTreeSet::from([self.roster.me()]);
        let named = holders.into_iter().take(HOLDERS_PER_REPLY_MAX);
        named.filter(|holder| self.roster.contains(holder) && seen.insert(*holder)).collect()
    }

    /// Carries what the parts have decided from one to the other, and out.
    fn pump(&mut self) {
        let me = self.roster.me();
        while let Some((key, held)) = self.announcer.poll_own() {
            self.ledger.set(me, key, held);
        }
        while let Some((owner, mut announce)) = self.announcer.poll_send() {
            announce.wants = !self.ledger.is_complete(&owner);
            self.send(Exchange::Announce { owner }, owner, Request::Announce(announce), ANNOUNCE_TIMEOUT);
        }
        while let Some(step) = self.lookups.poll_step() {
            match step {
                Step::Ask { lookup, owner, key } => {
                    let about = Exchange::Lookup { owner, lookup };
                    let timeout = self.lookups.patience().max(LOOKUP_TIMEOUT);
                    self.send(about, owner, Request::Lookup { key }, timeout);
                }
                Step::Answered { lookup, holders, outcome } => {
                    self.events.push_back(Event::Answered { lookup, holders, outcome });
                }
            }
        }
    }

    fn send(&mut self, about: Exchange, to: PeerId, request: Request, timeout: Duration) {
        self.next_exchange += 1;
        let exchange = self.next_exchange;
        self.exchanges.insert(exchange, about);
        self.events.push_back(Event::Send { exchange, to, request, timeout });
    }
}
