//! Notices wrong content: blobs that were sent completely and yet never became local content.
//!
//! Only containerd checks digests, and it says nothing when one does not match; it asks again.
//! So what was delivered is kept in mind until the inventory gains it. If it is asked for anew
//! before that, those who sent it are not asked for that digest again for a while. Never judges
//! a peer as a whole: [`crate::health`] does.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{PeerId, oci::Digest};

/// Most deliveries kept in mind; beyond, the oldest is forgotten. Fewer and a node that pulls
/// many images at once forgets whom a bad layer came from; more costs memory only.
pub(crate) const PENDING_MAX: usize = 1024;

/// How long a delivery is kept in mind. Shorter and kubelet's next try (10 s, 20 s, 40 s …)
/// finds it forgotten; longer and a pull that was cancelled for other reasons is held against
/// the peer.
pub(crate) const PENDING_TTL: Duration = Duration::from_secs(60);

/// How soon a delivery should be local content. From then on those who sent it are asked last for
/// anything else: containerd fetches several layers at once and asks again in any order, so that a
/// pull tried again would meet other layers of the same hostile peer before it proves it wrong.
/// Shorter and a node whose disk is busy passes over good peers; as long as kubelet's pause before
/// its next try (10 s) and that fails, too.
pub(crate) const APPEARS_WITHIN: Duration = Duration::from_secs(5);

/// Most pairs of digest and peer kept apart; beyond, the oldest is forgotten. Fewer and a peer
/// with many bad blobs is asked for them again; more costs memory only.
pub(crate) const EXCLUDED_MAX: usize = 1024;

/// How long a peer is not asked for a digest that it may have sent wrongly. Shorter and the
/// retries of one pod hit it again; longer and an unjust suspicion costs a holder for that long.
pub(crate) const EXCLUDED_TTL: Duration = Duration::from_secs(600);

/// What was delivered and what became of it.
#[derive(Debug, Default)]
pub(super) struct Verify {
    pending: BTreeMap<Digest, Delivery>,
    /// Until when.
    excluded: BTreeMap<(Digest, PeerId), Instant>,
}

#[derive(Debug)]
struct Delivery {
    at: Instant,
    from: BTreeSet<PeerId>,
}

impl Verify {
    /// All of `digest` went to the client, out of the hands of `from`.
    pub(super) fn on_delivered(&mut self, now: Instant, digest: Digest, from: BTreeSet<PeerId>) {
        self.pending.retain(|_, delivery| now.saturating_duration_since(delivery.at) < PENDING_TTL);
        if self.pending.len() >= PENDING_MAX && !self.pending.contains_key(&digest) {
            let oldest = self.pending.iter().min_by_key(|(_, delivery)| delivery.at);
            if let Some(oldest) = oldest.map(|(digest, _)| *digest) {
                self.pending.remove(&oldest);
            }
        }
        self.pending.insert(digest, Delivery { at: now, from });
    }

    /// `digest` became local content. Says who delivered it.
    pub(super) fn on_appeared(&mut self, digest: &Digest) -> BTreeSet<PeerId> {
        self.pending.remove(digest).map(|delivery| delivery.from).unwrap_or_default()
    }

    /// All of `digest` is asked for (again). Says who delivered it in vain.
    pub(super) fn on_requested(&mut self, now: Instant, digest: &Digest) -> BTreeSet<PeerId> {
        let delivery = self.pending.remove(digest);
        let recent = delivery.filter(|delivery| now.saturating_duration_since(delivery.at) < PENDING_TTL);
        let suspects = recent.map(|delivery| delivery.from).unwrap_or_default();
        for peer in &suspects {
            self.exclude(now, *digest, *peer);
        }
        suspects
    }

    /// Whether something `peer` delivered should be local content for a while, and is not. It need
    /// not be wrong: a client may have thrown it away.
    pub(super) fn is_suspect(&self, now: Instant, peer: &PeerId) -> bool {
        let is_late = |delivery: &&Delivery| {
            let age = now.saturating_duration_since(delivery.at);
            (APPEARS_WITHIN..PENDING_TTL).contains(&age)
        };
        self.pending.values().filter(is_late).any(|delivery| delivery.from.contains(peer))
    }

    /// Whether `peer` must not be asked for `digest`.
    pub(super) fn is_excluded(&self, now: Instant, digest: &Digest, peer: &PeerId) -> bool {
        self.excluded.get(&(*digest, *peer)).is_some_and(|until| *until > now)
    }

    /// Keeps `peer` from being asked for `digest` for a while.
    pub(super) fn exclude(&mut self, now: Instant, digest: Digest, peer: PeerId) {
        self.excluded.retain(|_, until| *until > now);
        if self.excluded.len() >= EXCLUDED_MAX {
            let oldest = self.excluded.iter().min_by_key(|(_, until)| **until).map(|(pair, _)| *pair);
            if let Some(oldest) = oldest {
                self.excluded.remove(&oldest);
            }
        }
        self.excluded.insert((digest, peer), now + EXCLUDED_TTL);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::test_time;

    const TICK: Duration = Duration::from_nanos(1);

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn digest(number: u32) -> Digest {
        Digest::sha256_of(&number.to_be_bytes())
    }

    #[test]
    fn asking_again_makes_suspects_of_those_who_delivered() {
        let now = test_time::start();
        let mut verify = Verify::default();
        assert!(verify.on_requested(now, &digest(1)).is_empty());
        let from = BTreeSet::from([peer(1), peer(2)]);
        verify.on_delivered(now, digest(1), from.clone());
        assert!(verify.on_requested(now, &digest(2)).is_empty());
        assert_eq!(verify.on_requested(now + PENDING_TTL - TICK, &digest(1)), from);
        assert!(verify.on_requested(now + PENDING_TTL - TICK, &digest(1)).is_empty(), "said once");
        let until = now + PENDING_TTL - TICK + EXCLUDED_TTL;
        assert!(verify.is_excluded(until - TICK, &digest(1), &peer(1)));
        assert!(!verify.is_excluded(until, &digest(1), &peer(1)));
        assert!(!verify.is_excluded(now, &digest(2), &peer(1)));
    }

    #[test]
    fn content_that_appeared_or_is_long_ago_raises_no_suspicion() {
        let now = test_time::start();
        let mut verify = Verify::default();
        verify.on_delivered(now, digest(1), BTreeSet::from([peer(1)]));
        assert_eq!(verify.on_appeared(&digest(1)), BTreeSet::from([peer(1)]));
        assert!(verify.on_requested(now, &digest(1)).is_empty());
        verify.on_delivered(now, digest(1), BTreeSet::from([peer(1)]));
        assert!(verify.on_requested(now + PENDING_TTL, &digest(1)).is_empty());
        assert!(!verify.is_excluded(now, &digest(1), &peer(1)));
    }

    #[test]
    fn delivery_that_does_not_appear_in_time_makes_suspects_until_it_does_or_is_forgotten() {
        let now = test_time::start();
        let mut verify = Verify::default();
        verify.on_delivered(now, digest(1), BTreeSet::from([peer(1), peer(2)]));
        assert!(!verify.is_suspect(now + APPEARS_WITHIN - TICK, &peer(1)));
        assert!(verify.is_suspect(now + APPEARS_WITHIN, &peer(1)));
        assert!(verify.is_suspect(now + PENDING_TTL - TICK, &peer(2)));
        assert!(!verify.is_suspect(now + PENDING_TTL, &peer(1)));
        assert!(!verify.is_suspect(now + APPEARS_WITHIN, &peer(3)));
        verify.on_appeared(&digest(1));
        assert!(!verify.is_suspect(now + APPEARS_WITHIN, &peer(1)));
    }

    #[test]
    fn tables_forget_the_oldest_when_full() {
        let now = test_time::start();
        let mut verify = Verify::default();
        let count = u32::try_from(PENDING_MAX).expect("fits") + 1;
        for number in 0..count {
            verify.on_delivered(now + TICK * number, digest(number), BTreeSet::from([peer(1)]));
        }
        assert_eq!(verify.pending.len(), PENDING_MAX);
        let later = now + TICK * count;
        assert!(verify.on_requested(later, &digest(0)).is_empty());
        for number in 1..count {
            assert_eq!(verify.on_requested(later, &digest(number)).len(), 1);
            verify.on_delivered(later, digest(number), BTreeSet::from([peer(2)]));
            assert_eq!(verify.on_requested(later + TICK * number, &digest(number)).len(), 1);
        }
        assert_eq!(verify.excluded.len(), EXCLUDED_MAX);
        assert!(!verify.is_excluded(later, &digest(1), &peer(1)));
        assert!(verify.is_excluded(later, &digest(count - 1), &peer(2)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Deliver(u32, BTreeSet<u8>),
        Appear(u32),
        Request(u32),
        Exclude(u32, u8),
        Wait(Duration),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (digests, peers) = (0..4_u32, 0..4_u8);
        let wait = prop_oneof![
            3 => (0..40_u64).prop_map(Duration::from_secs),
            1 => (0..700_u64).prop_map(Duration::from_secs),
            1 => Just(PENDING_TTL),
            1 => Just(EXCLUDED_TTL - TICK),
        ];
        prop_oneof![
            4 => (digests.clone(), proptest::collection::btree_set(peers.clone(), 0..3))
                .prop_map(|(digest, from)| Step::Deliver(digest, from)),
            2 => digests.clone().prop_map(Step::Appear),
            4 => digests.clone().prop_map(Step::Request),
            1 => (digests, peers).prop_map(|(digest, peer)| Step::Exclude(digest, peer)),
            4 => wait.prop_map(Step::Wait),
        ]
    }

    fn peers(numbers: &BTreeSet<u8>) -> BTreeSet<PeerId> {
        numbers.iter().map(|number| peer(*number)).collect()
    }

    proptest! {
        /// Beside a list of all that was delivered and a list of all suspicions, never tidied.
        #[test]
        fn suspects_are_those_whose_last_delivery_came_to_nothing(steps in vec(step(), 1..80)) {
            let mut now = test_time::start();
            let mut verify = Verify::default();
            // The last delivery of a digest that has neither appeared nor been asked for again.
            let mut open: Vec<(u32, Instant, BTreeSet<u8>)> = Vec::new();
            let mut suspicions: Vec<(u32, u8, Instant)> = Vec::new();
            for step in steps {
                match step {
                    Step::Deliver(of, from) => {
                        verify.on_delivered(now, digest(of), peers(&from));
                        open.retain(|(digest, ..)| *digest != of);
                        open.push((of, now, from));
                    }
                    Step::Appear(of) => {
                        let said = verify.on_appeared(&digest(of));
                        let last = open.extract_if(.., |(digest, ..)| *digest == of).last();
                        // Whoever delivered it long ago need not be praised for it.
                        if let Some((_, at, from)) = last && (now - at < PENDING_TTL || !said.is_empty()) {
                            prop_assert_eq!(said, peers(&from));
                        }
                    }
                    Step::Request(of) => {
                        let last = open.extract_if(.., |(digest, ..)| *digest == of).last();
                        let from = last.filter(|(_, at, _)| now - *at < PENDING_TTL).map(|(.., from)| from);
                        let from = from.unwrap_or_default();
                        prop_assert_eq!(verify.on_requested(now, &digest(of)), peers(&from));
                        suspicions.extend(from.iter().map(|peer| (of, *peer, now)));
                    }
                    Step::Exclude(of, who) => {
                        verify.exclude(now, digest(of), peer(who));
                        suspicions.push((of, who, now));
                    }
                    Step::Wait(time) => now += time,
                }
                for (of, who) in (0..4).flat_map(|of| (0..4).map(move |who| (of, who))) {
                    let suspected = suspicions
                        .iter()
                        .any(|(digest, peer, at)| (*digest, *peer) == (of, who) && now - *at < EXCLUDED_TTL);
                    prop_assert_eq!(verify.is_excluded(now, &digest(of), &peer(who)), suspected, "{} of {}", of, who);
                }
            }
        }
    }
}
