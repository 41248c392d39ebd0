//! What became of the last pulls, for people: the debug page shows it. Nothing that decides reads it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use spegel_core::{AttemptId, FetchError, PeerId, PullKind, RefuseReason};

/// Most pulls remembered; the oldest is forgotten. Fewer and the one that somebody asks about is gone before
/// they look, since an image is some ten of them; more costs some 500 bytes each.
pub(crate) const RECENT_PULLS_MAX: usize = 100;

/// Most attempts told of one pull; the later ones are counted only. Fewer and what went wrong first is not
/// all there is to see; more and a pull that was moved many times costs memory for nothing.
const ATTEMPTS_TOLD_MAX: usize = 8;

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullEnd {
    /// The client has all of it.
    Complete,
    /// The client was sent to the registry.
    Refused(RefuseReason),
    /// The body was ended early, and the client sent to the registry for the rest.
    Truncated(RefuseReason),
    /// The client went away.
    Abandoned,
}

/// What one attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttemptRecord {
    attempt: AttemptId,
    /// Who was asked.
    pub(crate) peer: PeerId,
    /// Where.
    pub(crate) addr: SocketAddr,
    /// What the client got of it.
    pub(crate) bytes: u64,
    /// Why it gave no more; nothing where the core just went on without it.
    pub(crate) failure: Option<Failure>,
}

/// Why an attempt gave no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It failed.
    Fetch(FetchError),
    /// The core moved the pull to another peer in mid-body, for the reason that its notice gives.
    Left(&'static str),
}

/// One pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PullRecord {
    /// What was asked for: `registry/repository`, and the tag or digest.
    pub(crate) name: String,
    pub(crate) kind: PullKind,
    /// When it was asked for.
    pub(crate) began_unix_ms: u64,
    /// Until its end.
    pub(crate) took: Duration,
    pub(crate) end: PullEnd,
    /// Those that are told.
    pub(crate) attempts: Vec<AttemptRecord>,
    /// All of them.
    pub(crate) attempts_made: u32,
    bytes: u64,
}

impl PullRecord {
    pub(crate) fn begun(name: String, kind: PullKind, began_unix_ms: u64) -> Self {
        let (attempts, attempts_made, bytes) = (Vec::new(), 0, 0);
        Self {
            name,
            kind,
            began_unix_ms,
            took: Duration::ZERO,
            end: PullEnd::Abandoned,
            attempts,
            attempts_made,
            bytes,
        }
    }

    /// A peer was asked.
    pub(crate) fn asked(&mut self, attempt: AttemptId, peer: PeerId, addr: SocketAddr) {
        self.attempts_made += 1;
        if self.attempts.len() >= ATTEMPTS_TOLD_MAX {
            // One that was asked in vain, and did nothing wrong, tells least.
            let is_idle = |record: &AttemptRecord| record.bytes == 0 && record.failure.is_none();
            let Some(idle) = self.attempts.iter().position(is_idle) else { return };
            self.attempts.remove(idle);
        }
        self.attempts.push(AttemptRecord { attempt, peer, addr, bytes: 0, failure: None });
    }

    /// Bytes of an attempt went to the client.
    pub(crate) fn gave(&mut self, attempt: AttemptId, bytes: u64) {
        self.bytes += bytes;
        if let Some(record) = self.attempts.iter_mut().find(|record| record.attempt == attempt) {
            record.bytes += bytes;
        }
    }

    /// An attempt failed.
    pub(crate) fn failed(&mut self, attempt: AttemptId, cause: FetchError) {
        if let Some(record) = self.attempts.iter_mut().find(|record| record.attempt == attempt) {
            record.failure = Some(Failure::Fetch(cause));
        }
    }

    /// The pull went on with another peer than the one that gave something of it last.
    pub(crate) fn left(&mut self, peer: PeerId, reason: &'static str) {
        let is_it = |record: &&mut AttemptRecord| record.peer == peer && record.failure.is_none();
        let mut its = self.attempts.iter_mut().rev().filter(is_it);
        if let Some(record) = its.find(|record| record.bytes > 0) {
            record.failure = Some(Failure::Left(reason));
        }
    }

    /// What the client got.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The last pulls; clones share them.
#[derive(Clone, Debug, Default)]
pub struct PullHistory(Arc<Mutex<VecDeque<PullRecord>>>);

impl PullHistory {
    /// A pull ended.
    pub(crate) fn add(&self, record: PullRecord) {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() >= RECENT_PULLS_MAX {
            records.pop_front();
        }
        records.push_back(record);
    }

    /// The pulls that ended, the last first.
    pub(crate) fn latest(&self) -> Vec<PullRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> PullRecord {
        PullRecord::begun(name.to_owned(), PullKind::Blob, 0)
    }

    #[test]
    fn oldest_pull_is_forgotten_first() {
        let history = PullHistory::default();
        for number in 0..=RECENT_PULLS_MAX {
            history.add(record(&number.to_string()));
        }
        let latest = history.latest();
        assert_eq!(latest.len(), RECENT_PULLS_MAX);
        assert_eq!(latest[0].name, RECENT_PULLS_MAX.to_string());
        assert_eq!(latest[RECENT_PULLS_MAX - 1].name, "1");
    }

    #[test]
    fn attempts_beyond_the_bound_are_counted() {
        let (mut record, peer) = (record("x"), PeerId::from_public_key([1; 32]));
        for number in 0..20 {
            record.asked(AttemptId(number), peer, "10.0.0.1:5000".parse().unwrap());
            record.gave(AttemptId(number), 10);
            record.failed(AttemptId(number), FetchError::Interrupted);
        }
        assert_eq!(
            (record.attempts.len(), record.attempts_made, record.bytes()),
            (ATTEMPTS_TOLD_MAX, 20, 200)
        );
        let expected = |record: &AttemptRecord| record.bytes == 10 && record.failure.is_some();
        assert!(record.attempts.iter().all(expected), "{record:?}");
    }

    #[test]
    fn attempt_that_was_asked_in_vain_makes_room_and_is_not_what_was_left() {
        let (mut record, addr) = (record("x"), "10.0.0.1:5000".parse().unwrap());
        let [first, second] = [1, 2].map(|number| PeerId::from_public_key([number; 32]));
        record.asked(AttemptId(0), first, addr);
        record.gave(AttemptId(0), 10);
        for number in 1..20 {
            record.asked(AttemptId(number), second, addr);
        }
        record.asked(AttemptId(20), first, addr);
        record.left(first, "busy");
        record.gave(AttemptId(20), 30);
        let told: Vec<_> = record.attempts.iter().map(|it| (it.attempt.0, it.bytes, it.failure)).collect();
        assert_eq!(told[0], (0, 10, Some(Failure::Left("busy"))));
        assert_eq!(told.last(), Some(&(20, 30, None)));
        assert_eq!((told.len(), record.attempts_made), (ATTEMPTS_TOLD_MAX, 21));
    }

    #[test]
    fn peer_that_was_left_is_told_from_one_that_failed() {
        let (mut record, addr) = (record("x"), "10.0.0.1:5000".parse().unwrap());
        let [slow, gone] = [1, 2].map(|number| PeerId::from_public_key([number; 32]));
        record.asked(AttemptId(0), slow, addr);
        record.gave(AttemptId(0), 10);
        record.asked(AttemptId(1), gone, addr);
        record.failed(AttemptId(1), FetchError::NotFound);
        record.left(slow, "slow");
        record.left(gone, "slow");
        let failures: Vec<_> = record.attempts.iter().map(|attempt| attempt.failure).collect();
        assert_eq!(failures, [Some(Failure::Left("slow")), Some(Failure::Fetch(FetchError::NotFound))]);
    }
}
