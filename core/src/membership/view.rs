//! Decides when to compare this node's view of who is alive with another's, and from when on it
//! is as complete as any: what gossip missed is made up for, and a newcomer to a large cluster
//! soon knows all of it.
//!
//! A comparison is a fingerprint, so that equal views cost the same however many they show. Where
//! they differ, the one who asked is told the other's in pages.

use std::time::{Duration, Instant};

use foca::State;

use super::{
    Event, HEARSAY_LEAD_MAX, Malformed, Member, Membership, PACKET_SIZE_MAX, PeerId,
    codec::{decode_records, encode_record},
};
use crate::{
    message::{Compared, Fingerprint},
    output::soonest,
    pacer::Pacer,
};

/// How often a random member's view is compared with this node's, at least half of it. Rarer and
/// what gossip missed stays unknown for longer; more often are messages without news.
pub(super) const COMPARE_INTERVAL: Duration = Duration::from_secs(30);

/// How soon another member's view is compared while this node's may not be complete. Shorter asks
/// before the last answer has come; longer and a newcomer knows few for longer.
pub(super) const CATCH_UP_INTERVAL: Duration = Duration::from_millis(500);

/// How long after its first member a node takes its view for complete although no member has the
/// same, and none with a complete one has shown it. Shorter than a whole cluster's start and nodes
/// of it rule out holders that they have not heard of; longer and a new cluster rules out nothing
/// for longer.
pub(super) const CATCH_UP_MAX: Duration = Duration::from_secs(10);

/// Most bytes of records in a page, of about 70 each. Fewer and a newcomer needs more questions;
/// more than fit into a packet are never sent.
const PAGE_SIZE_MAX: usize = PACKET_SIZE_MAX - 1024;

/// Pages told in a burst, and then one each interval, whoever asks. Fewer and a cluster that
/// starts all at once is slow to know itself; more and peers that keep asking make this node say
/// far more than they do.
const PAGES_BURST: u32 = 64;
const PAGE_INTERVAL: Duration = Duration::from_millis(50);

/// How complete the view is.
#[derive(Debug)]
pub(super) struct View {
    complete: bool,
    /// From when on it counts as complete whatever others say.
    complete_at: Option<Instant>,
    /// When to compare next.
    compare_at: Option<Instant>,
    /// Bounds what others are told.
    pages: Pacer,
}

impl Default for View {
    fn default() -> Self {
        let pages = Pacer::new(PAGE_INTERVAL, PAGES_BURST);
        Self { complete: false, complete_at: None, compare_at: None, pages }
    }
}

impl View {
    /// This node has members, or is alone.
    pub(super) fn on_members(&mut self, now: Instant, count: usize) {
        if count == 0 {
            (self.complete, self.complete_at, self.compare_at) = (false, None, None);
        } else if self.compare_at.is_none() {
            (self.complete_at, self.compare_at) = (Some(now + CATCH_UP_MAX), Some(now));
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        soonest(self.complete_at, self.compare_at)
    }

    fn completed(&mut self) {
        self.complete = true;
        self.complete_at = None;
    }
}

impl Membership {
    /// Whether this node knows all members, as far as can be told.
    pub(crate) fn is_complete(&self) -> bool {
        self.view.is_complete()
    }

    pub(super) fn compare_if_due(&mut self, now: Instant) {
        if self.view.complete_at.is_some_and(|at| at <= now) {
            self.view.completed();
        }
        if self.left || self.view.compare_at.is_none_or(|at| at > now) {
            return;
        }
        let chosen = self.rng.below(self.members.len());
        let Some(peer) = self.members.keys().nth(chosen).copied() else { return };
        let interval =
            if self.view.complete { self.rng.jittered(COMPARE_INTERVAL) } else { CATCH_UP_INTERVAL };
        self.view.compare_at = Some(now + interval);
        self.ask(peer, None);
    }

    pub(super) fn ask(&mut self, to: PeerId, after: Option<PeerId>) {
        let Some(addrs) = self.members.get(&to).map(|member| member.router_addrs()) else { return };
        self.events.push_back(Event::Compare { to, addrs, view: self.fingerprint(), after });
    }

    /// A peer compares its view with this node's; gives the answer.
    pub(crate) fn on_compare(
        &mut self,
        now: Instant,
        from: PeerId,
        view: Fingerprint,
        after: Option<PeerId>,
    ) -> Compared {
        let agrees = self.fingerprint() == view;
        let tells = !agrees && self.view.pages.take(now);
        let (page, more) = if tells { self.page(from, after) } else { (Vec::new(), false) };
        // Whoever is told nothing has to ask again.
        let complete = self.view.is_complete() && (agrees || tells);
        Compared { agrees, complete, more, page }
    }

    /// The answer to [`Event::Compare`] arrived: takes in whom this node did not know, and asks
    /// for the rest.
    ///
    /// # Errors
    ///
    /// [`Malformed`] when its records make no sense.
    pub(crate) fn on_compared(
        &mut self,
        now: Instant,
        from: PeerId,
        compared: &Compared,
    ) -> Result<(), Malformed> {
        if self.left || !self.members.contains_key(&from) {
            return Ok(());
        }
        if !compared.agrees {
            let records = decode_records(&compared.page).map_err(|_| Malformed)?;
            // In order, so that asking for the rest comes to an end.
            if !records.is_sorted_by_key(|record| record.id().member().peer) {
                return Err(Malformed);
            }
            let last = records.last().map(|record| record.id().member().peer);
            self.take_in(now, records);
            if compared.more
                && let Some(last) = last
            {
                self.ask(from, Some(last));
                return Ok(());
            }
        }
        // Two with the same view have each looked for themselves; one that is complete has told all.
        if compared.agrees || compared.complete {
            self.view.completed();
        }
        Ok(())
    }

    fn take_in(&mut self, now: Instant, mut records: Vec<foca::Member<super::Id>>) {
        let hearsay_max = self.born_as.saturating_add(HEARSAY_LEAD_MAX);
        let room = self.members_max.saturating_sub(self.foca.iter_membership_state().len());
        // Who is known is left to gossip, which has the later news.
        records.retain(|record| {
            let Member { peer, generation, .. } = record.id().member().as_ref();
            let is_news = self.members.get(peer).is_none_or(|known| known.generation < *generation);
            is_news && *generation <= hearsay_max && *peer != self.me().peer && record.state() == State::Alive
        });
        records.truncate(room);
        if records.is_empty() {
            return;
        }
        // What a newcomer has just been told is known to all; else it is news to others as well.
        let spreads = self.view.is_complete();
        let _ = self.foca.apply_many(records.into_iter(), spreads, &mut self.runtime);
        self.tell_changes(now);
    }

    /// Records of live members after one, as many as one packet holds, and whether there are
    /// more.
    fn page(&self, asker: PeerId, after: Option<PeerId>) -> (Vec<u8>, bool) {
        let is_wanted = |peer: &PeerId| Some(*peer) > after && *peer != asker;
        let live = self.foca.iter_members().filter(|member| is_wanted(&member.id().member().peer));
        let mut live: Vec<_> = live.collect();
        live.sort_unstable_by_key(|member| member.id().member().peer);
        let mut page = Vec::with_capacity(PAGE_SIZE_MAX.min(live.len() * 128));
        for member in live {
            let record = encode_record(member);
            if page.len() + record.len() > PAGE_SIZE_MAX {
                return (page, true);
            }
            page.extend(record);
        }
        (page, false)
    }

    /// Live members, this node among them: how many, and which lives of whom.
    fn fingerprint(&self) -> Fingerprint {
        debug_assert_eq!(self.lives, self.members().collect());
        self.lives.fingerprint_with(self.me())
    }
}
