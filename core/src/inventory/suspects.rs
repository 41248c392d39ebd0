//! Decides for how long content that could not be read is not served. Never looks at the content;
//! the inventory calls it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{backoff::Backoff, oci::Digest, rng::Rng};

/// First and longest time that unreadable content is not served although containerd has it.
/// Shorter and peers are sent to a broken disk again and again; longer and content that was
/// repaired is not shared.
const QUARANTINE_BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// How long content must be served without complaint before its past is forgotten. Shorter and
/// quarantine never grows; longer only costs memory.
const PROBATION: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct Suspect {
    backoff: Backoff,
    is_blocked: bool,
    /// End of the quarantine, else of the probation.
    until: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Suspects {
    suspects: BTreeMap<Digest, Suspect>,
    timers: BTreeSet<(Instant, Digest)>,
}

impl Suspects {
    /// `digest` could not be read. Returns whether that is news.
    pub(super) fn accuse(&mut self, now: Instant, digest: &Digest, rng: &mut Rng) -> bool {
        let suspect = self.suspects.entry(*digest).or_insert_with(|| Suspect {
            backoff: Backoff::new(QUARANTINE_BACKOFF.0, QUARANTINE_BACKOFF.1),
            is_blocked: false,
            until: now,
        });
        if suspect.is_blocked {
            return false;
        }
        self.timers.remove(&(suspect.until, *digest));
        suspect.is_blocked = true;
        suspect.until = now + suspect.backoff.next_delay(rng);
        self.timers.insert((suspect.until, *digest));
        true
    }

    pub(super) fn is_blocked(&self, digest: &Digest) -> bool {
        self.suspects.get(digest).is_some_and(|suspect| suspect.is_blocked)
    }

    pub(super) fn blocked_count(&self) -> usize {
        self.suspects.values().filter(|suspect| suspect.is_blocked).count()
    }

    /// containerd says that it has `digest`: ends a quarantine that is over.
    pub(super) fn confirm(&mut self, now: Instant, digest: &Digest) {
        if let Some(suspect) = self.suspects.get_mut(digest)
            && suspect.is_blocked
            && suspect.until <= now
        {
            self.timers.remove(&(suspect.until, *digest));
            suspect.is_blocked = false;
            suspect.until = now + PROBATION;
            self.timers.insert((suspect.until, *digest));
        }
    }

    /// The file is gone or another one.
    pub(super) fn forget(&mut self, digest: &Digest) {
        if let Some(suspect) = self.suspects.remove(digest) {
            self.timers.remove(&(suspect.until, *digest));
        }
    }

    /// Forgets whose probation is over; returns whose quarantine is.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<Digest> {
        let mut over = Vec::new();
        while let Some((_, digest)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.pop_first();
            if self.is_blocked(&digest) {
                over.push(digest);
            } else {
                self.suspects.remove(&digest);
            }
        }
        over
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time;

    #[test]
    fn quarantine_grows_until_probation_is_passed() {
        let (mut now, mut rng) = (test_time::start(), Rng::new(1, "suspects"));
        let digest = Digest::sha256_of(b"a");
        let mut suspects = Suspects::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert!(suspects.accuse(now, &digest, &mut rng));
            assert!(!suspects.accuse(now, &digest, &mut rng), "the same trouble twice");
            suspects.confirm(now, &digest);
            assert!(suspects.is_blocked(&digest));
            assert_eq!(suspects.blocked_count(), 1);
            let until = suspects.poll_timeout().expect("an end");
            assert!(suspects.handle_timeout(until - Duration::from_nanos(1)).is_empty());
            waits.push(until - now);
            now = until;
            assert_eq!(suspects.handle_timeout(now), [digest]);
            assert_eq!(suspects.handle_timeout(now), []);
            suspects.confirm(now, &digest);
            assert!(!suspects.is_blocked(&digest));
            assert_eq!(suspects.blocked_count(), 0);
            assert_eq!(suspects.poll_timeout(), Some(now + PROBATION));
        }
        assert!(waits[0] <= QUARANTINE_BACKOFF.0 && waits[8] >= QUARANTINE_BACKOFF.1 / 2);
        now += PROBATION;
        assert_eq!(suspects.handle_timeout(now), []);
        assert_eq!(suspects.poll_timeout(), None);
        assert!(suspects.suspects.is_empty());
    }
}
