//! What holders were asked of one pull, and have not answered.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::AttemptId;

/// Most attempts of one pull, whatever happens. Fewer and a long layer in a restarting cluster is
/// cut; it only exists so that nothing can make a pull go round for ever.
pub(crate) const LAUNCHES_MAX: u32 = 64;

#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// Index of the holder.
    pub(super) holder: usize,
    pub(super) addr: SocketAddr,
    /// Where in the body it begins.
    pub(super) skip: u64,
    pub(super) launched_at: Instant,
    pub(super) probe: bool,
}

impl Attempt {
    pub(super) fn on_paused(&mut self, now: Instant, lasted: Duration) {
        self.launched_at = (self.launched_at + lasted).min(now);
    }
}

#[derive(Debug, Default)]
pub(super) struct Attempts {
    waiting: BTreeMap<AttemptId, Attempt>,
    launched: u32,
}

impl Attempts {
    pub(super) const fn launched(&self) -> u32 {
        self.launched
    }

    pub(super) const fn may_launch(&self) -> bool {
        self.launched < LAUNCHES_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a holder is being asked, at any of its addresses.
    pub(super) fn has(&self, holder: usize) -> bool {
        self.holders().any(|asked| asked == holder)
    }

    /// The holders that are being asked.
    pub(super) fn holders(&self) -> impl Iterator<Item = usize> {
        self.waiting.values().map(|attempt| attempt.holder)
    }

    pub(super) fn launch(&mut self, attempt: Attempt) -> AttemptId {
        let id = AttemptId(self.launched);
        self.launched += 1;
        self.waiting.insert(id, attempt);
        id
    }

    pub(super) fn get(&self, id: AttemptId) -> Option<Attempt> {
        self.waiting.get(&id).copied()
    }

    pub(super) fn remove(&mut self, id: AttemptId) -> Option<Attempt> {
        self.waiting.remove(&id)
    }

    /// Nothing could be heard of them for so long until now: that is no slowness of theirs.
    pub(super) fn on_paused(&mut self, now: Instant, lasted: Duration) {
        self.waiting.values_mut().for_each(|attempt| attempt.on_paused(now, lasted));
    }

    /// Takes those of one holder out.
    pub(super) fn take_of(&mut self, holder: usize) -> Vec<(AttemptId, Attempt)> {
        self.waiting.extract_if(.., |_, attempt| attempt.holder == holder).collect()
    }

    /// Takes all of them out.
    pub(super) fn take(&mut self) -> BTreeMap<AttemptId, Attempt> {
        std::mem::take(&mut self.waiting)
    }
}
