//! Whether what a node announces is there: every announcement it sends is read, and compared with
//! its containerd.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use minicbor::Decoder;
use spegel_core::{Announce, Key, PeerId, Request};

use crate::containerd::Containerd;

/// How long an owner may be left in the belief that a node has what has gone. An owner that is
/// silent is told nothing more until five seconds have passed, and then again after up to ten.
const UNFOUNDED_MAX: Duration = Duration::from_secs(30);

/// The number of announcements among the kinds of requests, and the field of the kind.
const ANNOUNCE: u64 = 2;
const KIND: u64 = 1;

/// What a request announces, if that is what it is for. Most are gossip, which is long, so the kind
/// is looked at before all is read.
pub(super) fn announcement(message: &[u8]) -> Option<Announce> {
    let mut decoder = Decoder::new(message);
    for _ in 0..decoder.map().ok()?? {
        match decoder.u64().ok()? {
            KIND if decoder.u64().ok()? == ANNOUNCE => break,
            KIND => return None,
            _ => decoder.skip().ok()?,
        }
    }
    match Request::decode(message) {
        Ok(Request::Announce(announce)) => Some(announce),
        _ => None,
    }
}

/// What one node has told owners.
#[derive(Debug, Default)]
pub(super) struct Announced {
    /// The keys that each owner was told of and not told otherwise since.
    by_owner: BTreeMap<PeerId, BTreeSet<Key>>,
    /// How many owners that is for each key.
    told: BTreeMap<Key, usize>,
    /// Keys among these that its containerd does not have, and since when.
    unfounded: BTreeMap<Key, Duration>,
    /// What its containerd has, when it was looked at last.
    has: BTreeSet<Key>,
}

impl Announced {
    /// The node says this to an owner.
    pub(super) fn say(&mut self, at: Duration, owner: PeerId, announce: &Announce, containerd: &Containerd) {
        if announce.reset {
            self.forget(&owner);
        }
        for key in &announce.remove {
            if self.by_owner.get_mut(&owner).is_some_and(|keys| keys.remove(key)) {
                self.untell(key);
            }
        }
        for key in &announce.add {
            if self.by_owner.entry(owner).or_default().insert(*key) {
                *self.told.entry(*key).or_default() += 1;
            }
        }
        if announce.add.iter().any(|key| !self.has.contains(key)) || !self.unfounded.is_empty() {
            self.compare(at, containerd);
        }
    }

    /// The node takes an owner for dead: whatever it was told is forgotten with it.
    pub(super) fn forget(&mut self, owner: &PeerId) {
        for key in self.by_owner.remove(owner).unwrap_or_default() {
            self.untell(&key);
        }
    }

    fn untell(&mut self, key: &Key) {
        if let Some(owners) = self.told.get_mut(key) {
            *owners -= 1;
            if *owners == 0 {
                self.told.remove(key);
            }
        }
    }

    /// Looks which of what was told is not there.
    pub(super) fn compare(&mut self, at: Duration, containerd: &Containerd) {
        self.has = containerd.keys();
        let (told, has) = (&self.told, &self.has);
        self.unfounded.retain(|key, _| told.contains_key(key) && !has.contains(key));
        for key in told.keys().filter(|key| !has.contains(key)) {
            self.unfounded.entry(*key).or_insert(at);
        }
    }

    /// Whether there is something to wait for.
    pub(super) fn is_unfounded(&self) -> bool {
        !self.unfounded.is_empty()
    }

    /// What has been believed wrongly for too long; the node could not know before `excused_until`.
    pub(super) fn late(
        &mut self,
        at: Duration,
        excused_until: Duration,
        containerd: &Containerd,
    ) -> Option<String> {
        if !containerd.is_running() {
            // Nobody can say what has gone until it is back.
            self.unfounded.values_mut().for_each(|since| *since = at);
        }
        let is_late = |since: Duration| since.max(excused_until) + UNFOUNDED_MAX < at;
        if self.unfounded.values().any(|since| is_late(*since)) {
            self.compare(at, containerd);
        }
        let (key, since) = self.unfounded.iter().find(|(_, since)| is_late(**since))?;
        Some(format!("announces {key}, which is not there since {since:?}"))
    }
}
