//! Notices wrong content: blobs that were sent completely and yet never became local content.
//!
//! Only containerd checks digests, and it says nothing when one does not match; it asks again.
//! So what was delivered is kept in mind until the inventory gains it. If it is asked for anew
//! before that, those who sent it are not asked for that digest again for a while.
//!
//! But containerd gives up all layers of a pull when one of them is wrong, also those that good
//! peers have just delivered. As long as deliveries of several peers are missing it is only
//! doubted who sent the wrong one, and who is doubted more is asked later. When what the others
//! deliver does become local content, the one that is left is named. Never judges a peer as a
//! whole: [`crate::health`] does.

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

/// How soon a delivery should be local content. From then on those who sent it are doubted:
/// containerd fetches several layers at once and asks again in any order, so that a pull tried
/// again would meet other layers of the same hostile peer before it proves it wrong. Shorter and a
/// node whose disk is busy passes over good peers; as long as kubelet's pause before its next try
/// (10 s) and that fails, too.
pub(crate) const APPEARS_WITHIN: Duration = Duration::from_secs(5);

/// Most pairs of digest and peer kept apart; beyond, the oldest is forgotten. Fewer and a peer
/// with many bad blobs is asked for them again; more costs memory only.
pub(crate) const EXCLUDED_MAX: usize = 1024;

/// How long a peer is not asked for a digest that it may have sent wrongly. Shorter and the
/// retries of one pod hit it again; longer and an unjust suspicion costs a holder for that long.
pub(crate) const EXCLUDED_TTL: Duration = Duration::from_secs(600);

/// How long a peer is doubted for a delivery that was asked for again while those of other peers
/// were missing, too. Shorter and kubelet's next tries find it forgotten; longer and a peer whose
/// deliveries were thrown away with a cancelled pull is passed over for that long.
pub(crate) const DOUBT_TTL: Duration = Duration::from_secs(60);

/// Most doubts kept; beyond, the oldest is forgotten. Fewer and one of many bad layers goes
/// unpunished; more costs memory only.
pub(crate) const DOUBTS_MAX: usize = 1024;

/// What was delivered and what became of it.
#[derive(Debug, Default)]
pub(super) struct Verify {
    pending: BTreeMap<Digest, Delivery>,
    /// Delivered, and asked for again while others were not proven right: until when.
    doubts: BTreeMap<(Digest, PeerId), Instant>,
    /// The same of what several delivered together: until when each is doubted for it.
    shared_doubts: BTreeMap<(Digest, PeerId), Instant>,
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
        self.pending.retain(|_, delivery| is_recent(now, delivery));
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
        let from = self.pending.remove(digest).map(|delivery| delivery.from).unwrap_or_default();
        for peer in &from {
            self.doubts.remove(&(*digest, *peer));
        }
        from
    }

    /// All of `digest` is asked for (again): those who delivered it are kept from it if they must
    /// have done so wrongly, or doubted. [`Verify::next_culprit`] may know more from now on.
    pub(super) fn on_requested(&mut self, now: Instant, digest: &Digest) {
        let delivery = self.pending.remove(digest);
        let recent = delivery.filter(|delivery| is_recent(now, delivery));
        let suspects = recent.map(|delivery| delivery.from).unwrap_or_default();
        if let (1, Some(peer)) = (suspects.len(), suspects.first()) {
            insert_bounded(&mut self.doubts, now, (*digest, *peer), now + DOUBT_TTL, DOUBTS_MAX);
            return;
        }
        // Who of several sent the wrong part is anyone's guess: they are kept from this digest,
        // but not judged.
        for peer in suspects {
            insert_bounded(&mut self.shared_doubts, now, (*digest, peer), now + DOUBT_TTL, DOUBTS_MAX);
            self.exclude(now, *digest, peer);
        }
    }

    /// The next digest that `peer` must have delivered wrongly, because nobody else is missing
    /// anything. It is not asked for that digest again for a while.
    pub(super) fn next_culprit(&mut self, now: Instant) -> Option<(Digest, PeerId)> {
        self.doubts.retain(|_, until| *until > now);
        let (digest, peer) = *self.doubts.keys().next()?;
        let recent = self.pending.values().filter(|delivery| is_recent(now, delivery));
        let mut missing =
            self.doubts.keys().map(|(_, doubted)| doubted).chain(recent.flat_map(|it| &it.from));
        if missing.any(|other| *other != peer) {
            return None;
        }
        self.doubts.remove(&(digest, peer));
        self.exclude(now, digest, peer);
        Some((digest, peer))
    }

    /// How many deliveries of `peer` should be local content and are not, with those that it shared with
    /// others. They need not be wrong: a client may have thrown them away. But who spoils what others begin
    /// is in all of them.
    pub(super) fn doubts(&self, now: Instant, peer: &PeerId) -> usize {
        let late = self.pending.values().filter(|delivery| {
            let is_late = now.saturating_duration_since(delivery.at) >= APPEARS_WITHIN;
            is_late && is_recent(now, delivery) && delivery.from.contains(peer)
        });
        let doubts = self.doubts.iter().chain(&self.shared_doubts);
        let doubted = doubts.filter(|((_, doubted), until)| doubted == peer && **until > now);
        late.count() + doubted.count()
    }

    /// Whether `peer` must not be asked for `digest`.
    pub(super) fn is_excluded(&self, now: Instant, digest: &Digest, peer: &PeerId) -> bool {
        self.excluded.get(&(*digest, *peer)).is_some_and(|until| *until > now)
    }

    /// Keeps `peer` from being asked for `digest` for a while.
    pub(super) fn exclude(&mut self, now: Instant, digest: Digest, peer: PeerId) {
        insert_bounded(&mut self.excluded, now, (digest, peer), now + EXCLUDED_TTL, EXCLUDED_MAX);
    }
}

fn is_recent(now: Instant, delivery: &Delivery) -> bool {
    now.saturating_duration_since(delivery.at) < PENDING_TTL
}

/// Drops what has expired, and then the oldest, to make room.
fn insert_bounded(
    table: &mut BTreeMap<(Digest, PeerId), Instant>,
    now: Instant,
    key: (Digest, PeerId),
    until: Instant,
    most: usize,
) {
    table.retain(|_, until| *until > now);
    if table.len() >= most {
        let oldest = table.iter().min_by_key(|(_, until)| **until).map(|(key, _)| *key);
        if let Some(oldest) = oldest {
            table.remove(&oldest);
        }
    }
    table.insert(key, until);
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

    fn culprits(verify: &mut Verify, now: Instant) -> Vec<(Digest, PeerId)> {
        std::iter::from_fn(|| verify.next_culprit(now)).collect()
    }

    #[test]
    fn asking_again_makes_a_culprit_of_who_delivered() {
        let now = test_time::start();
        let mut verify = Verify::default();
        verify.on_requested(now, &digest(1));
        verify.on_delivered(now, digest(1), BTreeSet::from([peer(1)]));
        verify.on_requested(now, &digest(2));
        assert!(culprits(&mut verify, now).is_empty());
        let asked_again = now + PENDING_TTL - TICK;
        verify.on_requested(asked_again, &digest(1));
        assert_eq!(culprits(&mut verify, asked_again), [(digest(1), peer(1))]);
        verify.on_requested(asked_again, &digest(1));
        assert!(culprits(&mut verify, asked_again).is_empty(), "said once");
        let until = asked_again + EXCLUDED_TTL;
        assert!(verify.is_excluded(until - TICK, &digest(1), &peer(1)));
        assert!(!verify.is_excluded(until, &digest(1), &peer(1)));
        assert!(!verify.is_excluded(now, &digest(2), &peer(1)));
    }

    #[test]
    fn who_is_among_those_of_every_failure_is_doubted_most() {
        let now = test_time::start();
        let mut verify = Verify::default();
        for number in 1..=3 {
            verify.on_delivered(now, digest(number), BTreeSet::from([peer(number as u8), peer(9)]));
            verify.on_requested(now, &digest(number));
        }
        assert_eq!([1, 2, 3, 9].map(|number| verify.doubts(now, &peer(number))), [1, 1, 1, 3]);
        assert_eq!(verify.doubts(now + DOUBT_TTL, &peer(9)), 0);
    }

    #[test]
    fn several_who_delivered_one_digest_are_kept_from_it_and_not_named() {
        let now = test_time::start();
        let mut verify = Verify::default();
        verify.on_delivered(now, digest(1), BTreeSet::from([peer(1), peer(2)]));
        verify.on_requested(now, &digest(1));
        assert!(culprits(&mut verify, now).is_empty());
        assert!([1, 2].into_iter().all(|number| verify.is_excluded(now, &digest(1), &peer(number))));
    }

    #[test]
    fn culprit_is_named_once_what_the_others_delivered_has_appeared() {
        let now = test_time::start();
        let mut verify = Verify::default();
        for (number, from) in [(1, 1), (2, 1), (3, 2)] {
            verify.on_delivered(now, digest(number), BTreeSet::from([peer(from)]));
        }
        let retry = now + APPEARS_WITHIN;
        for number in [3, 1, 2] {
            verify.on_requested(retry, &digest(number));
            assert!(culprits(&mut verify, retry).is_empty(), "either peer may have sent the wrong one");
        }
        assert_eq!((verify.doubts(retry, &peer(1)), verify.doubts(retry, &peer(2))), (2, 1));
        for number in [1, 2, 3] {
            assert!(culprits(&mut verify, retry).is_empty());
            verify.on_delivered(retry, digest(number), BTreeSet::from([peer(2)]));
            assert_eq!(verify.on_appeared(&digest(number)), BTreeSet::from([peer(2)]));
        }
        let named: BTreeSet<_> = culprits(&mut verify, retry).into_iter().collect();
        assert_eq!(named, BTreeSet::from([(digest(1), peer(1)), (digest(2), peer(1))]));
        assert_eq!(verify.doubts(retry, &peer(1)), 0, "named, it is no longer doubted");
    }

    #[test]
    fn doubts_that_are_never_settled_are_forgotten() {
        let now = test_time::start();
        let mut verify = Verify::default();
        for number in [1, 2] {
            verify.on_delivered(now, digest(number.into()), BTreeSet::from([peer(number)]));
            verify.on_requested(now, &digest(number.into()));
        }
        let until = now + DOUBT_TTL;
        assert_eq!(verify.doubts(until - TICK, &peer(1)), 1);
        assert_eq!(verify.doubts(until, &peer(1)), 0);
        assert!(culprits(&mut verify, until).is_empty());
        assert!(!verify.is_excluded(until, &digest(1), &peer(1)));
    }

    #[test]
    fn content_that_appeared_or_is_long_ago_raises_no_suspicion() {
        let now = test_time::start();
        let mut verify = Verify::default();
        verify.on_delivered(now, digest(1), BTreeSet::from([peer(1)]));
        assert_eq!(verify.on_appeared(&digest(1)), BTreeSet::from([peer(1)]));
        verify.on_requested(now, &digest(1));
        assert!(culprits(&mut verify, now).is_empty());
        verify.on_delivered(now, digest(1), BTreeSet::from([peer(1)]));
        verify.on_requested(now + PENDING_TTL, &digest(1));
        assert!(culprits(&mut verify, now + PENDING_TTL).is_empty());
        assert!(!verify.is_excluded(now, &digest(1), &peer(1)));
    }

    #[test]
    fn delivery_that_does_not_appear_in_time_is_doubted_until_it_does_or_is_forgotten() {
        let now = test_time::start();
        let mut verify = Verify::default();
        verify.on_delivered(now, digest(1), BTreeSet::from([peer(1), peer(2)]));
        assert_eq!(verify.doubts(now + APPEARS_WITHIN - TICK, &peer(1)), 0);
        assert_eq!(verify.doubts(now + APPEARS_WITHIN, &peer(1)), 1);
        assert_eq!(verify.doubts(now + PENDING_TTL - TICK, &peer(2)), 1);
        assert_eq!(verify.doubts(now + PENDING_TTL, &peer(1)), 0);
        assert_eq!(verify.doubts(now + APPEARS_WITHIN, &peer(3)), 0);
        verify.on_appeared(&digest(1));
        assert_eq!(verify.doubts(now + APPEARS_WITHIN, &peer(1)), 0);
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
        verify.on_requested(later, &digest(0));
        assert!(culprits(&mut verify, later).is_empty());
        for number in 1..count {
            verify.on_requested(later, &digest(number));
            verify.on_delivered(later, digest(number), BTreeSet::from([peer(2)]));
            verify.on_requested(later + TICK * number, &digest(number));
            assert!(verify.doubts.len() <= DOUBTS_MAX);
        }
        assert_eq!(verify.doubts.len(), DOUBTS_MAX);
        for number in 0..count {
            verify.exclude(later + TICK * number, digest(number), peer(2));
        }
        assert_eq!(verify.excluded.len(), EXCLUDED_MAX);
        assert!(!verify.is_excluded(later, &digest(0), &peer(2)));
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
        /// Beside lists of all that was delivered, of all doubts and of all suspicions, never tidied.
        #[test]
        fn suspects_are_those_whose_last_delivery_came_to_nothing(steps in vec(step(), 1..80)) {
            let mut now = test_time::start();
            let mut verify = Verify::default();
            // The last delivery of a digest that has neither appeared nor been asked for again.
            let mut open: Vec<(u32, Instant, BTreeSet<u8>)> = Vec::new();
            // Lone senders of what was asked for again, and neither proven right nor wrong.
            let mut doubted: Vec<(u32, u8, Instant)> = Vec::new();
            let mut shared: Vec<(u32, u8, Instant)> = Vec::new();
            let mut suspicions: Vec<(u32, u8, Instant)> = Vec::new();
            for step in steps {
                let settles = matches!(step, Step::Appear(_) | Step::Request(_));
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
                            doubted.retain(|(digest, who, _)| *digest != of || !from.contains(who));
                        }
                    }
                    Step::Request(of) => {
                        verify.on_requested(now, &digest(of));
                        let last = open.extract_if(.., |(digest, ..)| *digest == of).last();
                        let from = last.filter(|(_, at, _)| now - *at < PENDING_TTL).map(|(.., from)| from);
                        let from = from.unwrap_or_default();
                        if from.len() > 1 {
                            shared.extend(from.iter().map(|peer| (of, *peer, now)));
                        }
                        let blamed = if from.len() == 1 { &mut doubted } else { &mut suspicions };
                        blamed.extend(from.iter().map(|peer| (of, *peer, now)));
                    }
                    Step::Exclude(of, who) => {
                        verify.exclude(now, digest(of), peer(who));
                        suspicions.push((of, who, now));
                    }
                    Step::Wait(time) => now += time,
                }
                doubted.retain(|(.., at)| now - *at < DOUBT_TTL);
                shared.retain(|(.., at)| now - *at < DOUBT_TTL);
                let recent = open.iter().filter(|(_, at, _)| now - *at < PENDING_TTL);
                let doubts: BTreeSet<_> = doubted.iter().map(|(of, who, _)| (*of, *who)).collect();
                if settles {
                    let missing = recent.flat_map(|(.., from)| from).chain(doubts.iter().map(|(_, who)| who));
                    let missing: BTreeSet<_> = missing.copied().collect();
                    let mut named = BTreeSet::new();
                    if missing.len() == 1 {
                        named = doubts;
                        suspicions.extend(doubted.drain(..).map(|(of, who, _)| (of, who, now)));
                    }
                    let named: BTreeSet<_> = named.into_iter().map(|(of, who)| (digest(of), peer(who))).collect();
                    prop_assert_eq!(culprits(&mut verify, now).into_iter().collect::<BTreeSet<_>>(), named);
                }
                for who in 0..4 {
                    let is_late = |at: Instant| (APPEARS_WITHIN..PENDING_TTL).contains(&(now - at));
                    let late = open.iter().filter(|(_, at, from)| is_late(*at) && from.contains(&who)).count();
                    let doubts: BTreeSet<_> = doubted.iter().filter(|it| it.1 == who).map(|it| it.0).collect();
                    let shared: BTreeSet<_> = shared.iter().filter(|it| it.1 == who).map(|it| it.0).collect();
                    let expected = late + doubts.len() + shared.len();
                    prop_assert_eq!(verify.doubts(now, &peer(who)), expected, "doubts of {}", who);
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
