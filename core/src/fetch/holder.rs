//! A holder within one pull: its addresses, and what the pull has seen of it.

use std::{net::SocketAddr, time::Instant};

use super::{Candidate, verify::Verify};
use crate::{Member, PeerId, health::Health, rng::Rng};

#[derive(Debug)]
pub(super) struct Holder {
    pub(super) peer: PeerId,
    /// In the order they are tried.
    addrs: Vec<SocketAddr>,
    addrs_tried: usize,
    pub(super) same_zone: bool,
    /// Decides between equals, so that not every pull begins with the same peer.
    tie: u64,
    /// Not asked again for this pull.
    pub(super) failed: bool,
    /// Broke off in mid-body once; a second time is final.
    pub(super) interrupted: bool,
    /// Left for being slow once; not left for that again.
    pub(super) left_slow: bool,
    /// Bytes of it went to the client.
    pub(super) delivered: bool,
    /// How often it was asked in mid-body whether it is idle.
    pub(super) compared: u32,
}

impl Holder {
    /// `None` if it has no address.
    pub(super) fn new(candidate: Candidate, rng: &mut Rng) -> Option<Self> {
        let Candidate { peer, mut addrs, same_zone } = candidate;
        addrs.truncate(Member::ADDRS_MAX);
        (!addrs.is_empty()).then(|| Self {
            peer,
            addrs,
            addrs_tried: 0,
            same_zone,
            tie: rng.number(),
            failed: false,
            interrupted: false,
            left_slow: false,
            delivered: false,
            compared: 0,
        })
    }

    /// Tries its addresses from the beginning, with one that is known to work first.
    pub(super) fn start_over(&mut self, known: Option<SocketAddr>) {
        self.addrs_tried = 0;
        if let Some(position) = self.addrs.iter().position(|addr| Some(*addr) == known) {
            self.addrs[..=position].rotate_right(1);
        }
    }

    pub(super) fn has_next_addr(&self) -> bool {
        self.addrs_tried < self.addrs.len()
    }

    pub(super) fn next_addr(&mut self) -> Option<SocketAddr> {
        let addr = self.addrs.get(self.addrs_tried).copied();
        self.addrs_tried += usize::from(addr.is_some());
        addr
    }

    /// Whether it comes in question where another is only busy.
    pub(super) fn is_as_good_as(&self, other: &Self, now: Instant, health: &Health, verify: &Verify) -> bool {
        let wanting = self.interrupted || self.left_slow || verify.doubts(now, &self.peer) != 0;
        let ranked = health.rank(now, &self.peer, self.same_zone);
        !wanting && self.same_zone >= other.same_zone && ranked.is_some_and(|rank| !rank.probe && !rank.slow)
    }

    /// Who was already found wanting in this pull, or may have sent wrong content, comes after the
    /// others, but before a peer that is shunned and due for a probe.
    pub(super) fn rank(&self, now: Instant, health: &Health, verify: &Verify) -> Option<impl Ord + use<>> {
        let rank = health.rank(now, &self.peer, self.same_zone)?;
        let wanting = self.interrupted || self.left_slow;
        Some((rank.probe, wanting, verify.doubts(now, &self.peer), rank, self.tie))
    }
}
