//! Decides when containerd is asked about single digests: at once, many in parallel, and again
//! when the answer came too early. Never judges the answers; the inventory does.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{backoff::Backoff, oci::Digest, output::ANSWER_GRACE, rng::Rng};

/// Most digests asked about at a time. Lower and a burst of commits is announced late; higher
/// and containerd serves us rather than the pull.
pub(super) const INSPECTIONS_IN_FLIGHT_MAX: usize = 64;

/// Most digests being or waiting to be asked about. Lower and every larger pull ends in a
/// listing; higher and listing would be cheaper.
pub(super) const INSPECTIONS_MAX: usize = 4096;

/// How long an answer may take, which containerd has in its database; the wait for those asked
/// before included. Shorter and a busy containerd is asked twice; longer and lost answers keep
/// their places.
pub(crate) const INSPECT_TIMEOUT: Duration = Duration::from_secs(10);

/// First and longest pause before asking again about a blob whose metadata is not there yet.
/// Shorter and we ask in vain; longer and it is announced late.
const EARLY_BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How often a blob is found without metadata before it is taken to be of another containerd
/// namespace: 0.7 to 1.3 s in all. Lower and slow disks make us miss blobs until the next
/// resync; higher and other namespaces' pulls cost us more.
pub(super) const EARLY_TRIES_MAX: u32 = 6;

/// First and longest pause after a failure.
const FAILURE_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How often asking fails before it is left to a listing. Lower and short trouble causes
/// listings; higher and hopeless questions keep their places.
const FAILURES_MAX: u32 = 6;

/// Why containerd is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A blob appeared; what containerd says of it may be a moment late.
    Committed,
    /// What is known is in doubt.
    Check,
}

/// What was taken in by an answer.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) purpose: Purpose,
    /// The blob was removed since the question: the answer is void.
    pub(super) is_void: bool,
    rerun: Option<Purpose>,
    /// Rerun even if the answer is good.
    recheck: bool,
    early: Backoff,
    failures: Backoff,
}

#[derive(Debug)]
enum State {
    Queued,
    InFlight { deadline: Instant },
    Waiting { at: Instant },
}

#[derive(Debug)]
struct Entry {
    state: State,
    inspected: Inspected,
}

#[derive(Debug, Default)]
pub(super) struct Inspections {
    entries: BTreeMap<Digest, Entry>,
    /// Entries in [`State::Queued`]; may name ones that have left it.
    queue: VecDeque<Digest>,
    /// Deadlines and ends of waiting; may name ones that have passed otherwise.
    timers: BTreeSet<(Instant, Digest)>,
    in_flight: usize,
}

impl Inspections {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Wants `digest` asked about. Returns whether there is room.
    pub(super) fn want(&mut self, digest: &Digest, purpose: Purpose) -> bool {
        if let Some(entry) = self.entries.get_mut(digest) {
            match entry.state {
                State::InFlight { .. } => {
                    if purpose == Purpose::Committed || entry.inspected.rerun.is_none() {
                        entry.inspected.rerun = Some(purpose);
                    }
                }
                State::Queued | State::Waiting { .. } => {
                    if purpose == Purpose::Committed {
                        entry.inspected = Inspected::new(purpose);
                    }
                    if matches!(entry.state, State::Waiting { .. }) {
                        entry.state = State::Queued;
                        self.queue.push_back(*digest);
                    }
                }
            }
            return true;
        }
        if self.entries.len() >= INSPECTIONS_MAX {
            return false;
        }
        self.entries.insert(*digest, Entry { state: State::Queued, inspected: Inspected::new(purpose) });
        self.queue.push_back(*digest);
        true
    }

    /// The blob was removed: nothing to ask, and an answer under way is void.
    pub(super) fn forget(&mut self, digest: &Digest) {
        let Some(entry) = self.entries.get_mut(digest) else { return };
        match entry.state {
            State::InFlight { .. } => {
                entry.inspected.is_void = true;
                entry.inspected.rerun = None;
            }
            State::Queued | State::Waiting { .. } => {
                self.entries.remove(digest);
            }
        }
    }

    /// Answers under way may be older than a listing: asks once more about each.
    /// Returns whose they are.
    pub(super) fn recheck_in_flight(&mut self) -> BTreeSet<Digest> {
        let in_flight = |entry: &Entry| matches!(entry.state, State::InFlight { .. });
        let mut digests = BTreeSet::new();
        for (digest, entry) in self.entries.iter_mut().filter(|(_, entry)| in_flight(entry)) {
            entry.inspected.rerun.get_or_insert(Purpose::Check);
            entry.inspected.recheck = true;
            digests.insert(*digest);
        }
        digests
    }

    /// The next digest to ask about.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Digest> {
        while self.in_flight < INSPECTIONS_IN_FLIGHT_MAX {
            let digest = self.queue.pop_front()?;
            let Some(entry) = self.entries.get_mut(&digest) else { continue };
            if !matches!(entry.state, State::Queued) {
                continue;
            }
            let deadline = now + INSPECT_TIMEOUT + ANSWER_GRACE;
            entry.state = State::InFlight { deadline };
            self.timers.insert((deadline, digest));
            self.in_flight += 1;
            return Some(digest);
        }
        None
    }

    /// Takes in an answer; `None` if nothing was asked.
    pub(super) fn on_inspected(&mut self, digest: &Digest) -> Option<Inspected> {
        match self.entries.get(digest)?.state {
            State::InFlight { deadline } => {
                self.timers.remove(&(deadline, *digest));
                self.in_flight -= 1;
                self.entries.remove(digest).map(|entry| entry.inspected)
            }
            State::Queued | State::Waiting { .. } => None,
        }
    }

    /// Asks again if something happened since the question that `was_answered` does not settle.
    /// Returns whether it does ask again.
    pub(super) fn rerun(&mut self, digest: &Digest, inspected: &Inspected, was_answered: bool) -> bool {
        let Some(mut purpose) = inspected.rerun else { return false };
        if inspected.purpose == Purpose::Committed && !inspected.is_void {
            // The metadata may still be on its way.
            purpose = Purpose::Committed;
        }
        let is_settled = was_answered && !inspected.is_void && !inspected.recheck;
        !is_settled && self.want(digest, purpose)
    }

    /// The answer came too early: asks again in a moment, unless it did too often.
    pub(super) fn retry_early(
        &mut self,
        now: Instant,
        digest: &Digest,
        mut inspected: Inspected,
        rng: &mut Rng,
    ) -> bool {
        if inspected.purpose == Purpose::Check || inspected.early.failures() >= EARLY_TRIES_MAX {
            return false;
        }
        let at = now + inspected.early.next_delay(rng);
        self.wait(digest, at, inspected);
        true
    }

    /// There was no answer: asks again later, unless that is hopeless.
    pub(super) fn retry_failed(
        &mut self,
        now: Instant,
        digest: &Digest,
        mut inspected: Inspected,
        rng: &mut Rng,
    ) -> bool {
        if inspected.failures.failures() >= FAILURES_MAX {
            return false;
        }
        let at = now + inspected.failures.next_delay(rng);
        self.wait(digest, at, inspected);
        true
    }

    fn wait(&mut self, digest: &Digest, at: Instant, inspected: Inspected) {
        self.timers.insert((at, *digest));
        let inspected = Inspected { rerun: None, recheck: false, ..inspected };
        self.entries.insert(*digest, Entry { state: State::Waiting { at }, inspected });
    }

    /// Ends waits that are over; returns the questions that were never answered.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<(Digest, Inspected)> {
        let mut unanswered = Vec::new();
        while let Some((at, digest)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.pop_first();
            let Some(entry) = self.entries.get_mut(&digest) else { continue };
            match entry.state {
                State::Waiting { at: until } if until == at => {
                    entry.state = State::Queued;
                    self.queue.push_back(digest);
                }
                State::InFlight { deadline } if deadline == at => {
                    unanswered.extend(self.on_inspected(&digest).map(|inspected| (digest, inspected)));
                }
                State::Waiting { .. } | State::InFlight { .. } | State::Queued => {}
            }
        }
        unanswered
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }
}

impl Inspected {
    const fn new(purpose: Purpose) -> Self {
        Self {
            purpose,
            is_void: false,
            rerun: None,
            recheck: false,
            early: Backoff::new(EARLY_BACKOFF.0, EARLY_BACKOFF.1),
            failures: Backoff::new(FAILURE_BACKOFF.0, FAILURE_BACKOFF.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time;

    const TICK: Duration = Duration::from_nanos(1);

    fn digest(n: usize) -> Digest {
        Digest::sha256_of(&n.to_be_bytes())
    }

    #[test]
    fn asks_in_order_and_only_so_many_at_a_time() {
        let now = test_time::start();
        let mut inspections = Inspections::default();
        for n in 0..=INSPECTIONS_IN_FLIGHT_MAX {
            assert!(inspections.want(&digest(n), Purpose::Committed));
        }
        for n in 0..INSPECTIONS_IN_FLIGHT_MAX {
            assert_eq!(inspections.poll(now), Some(digest(n)));
        }
        assert_eq!(inspections.poll(now), None);
        assert!(inspections.on_inspected(&digest(7)).is_some());
        assert!(inspections.on_inspected(&digest(7)).is_none(), "duplicate answer");
        assert_eq!(inspections.poll(now), Some(digest(INSPECTIONS_IN_FLIGHT_MAX)));
        assert_eq!(inspections.poll(now), None);
    }

    #[test]
    fn room_is_bounded() {
        let mut inspections = Inspections::default();
        for n in 0..INSPECTIONS_MAX {
            assert!(inspections.want(&digest(n), Purpose::Check));
        }
        assert!(!inspections.want(&digest(INSPECTIONS_MAX), Purpose::Committed));
        assert!(inspections.want(&digest(0), Purpose::Committed), "already in");
        inspections.forget(&digest(0));
        assert!(inspections.want(&digest(INSPECTIONS_MAX), Purpose::Committed));
    }

    #[test]
    fn early_answers_are_retried_a_few_times_within_a_second_or_so() {
        let (start, mut rng) = (test_time::start(), Rng::new(1, "inspections"));
        let mut now = start;
        let mut inspections = Inspections::default();
        inspections.want(&digest(0), Purpose::Committed);
        let mut asked = 0;
        loop {
            assert_eq!(inspections.poll(now), Some(digest(0)));
            asked += 1;
            let inspected = inspections.on_inspected(&digest(0)).expect("asked");
            if !inspections.retry_early(now, &digest(0), inspected, &mut rng) {
                break;
            }
            let at = inspections.poll_timeout().expect("a retry");
            inspections.handle_timeout(at - TICK);
            assert_eq!(inspections.poll(at - TICK), None);
            now = at;
            inspections.handle_timeout(now);
        }
        assert_eq!(asked, EARLY_TRIES_MAX + 1);
        assert!(now - start >= Duration::from_millis(600) && now - start <= Duration::from_millis(1300));
        assert_eq!((inspections.len(), inspections.poll_timeout()), (0, None));
    }

    #[test]
    fn unanswered_questions_time_out() {
        let (now, given_up) = (test_time::start(), INSPECT_TIMEOUT + ANSWER_GRACE);
        let mut inspections = Inspections::default();
        inspections.want(&digest(0), Purpose::Check);
        assert_eq!(inspections.poll(now), Some(digest(0)));
        assert!(inspections.handle_timeout(now + given_up - TICK).is_empty());
        assert_eq!(inspections.handle_timeout(now + given_up).len(), 1);
        assert!(inspections.handle_timeout(now + given_up).is_empty());
        assert!(inspections.on_inspected(&digest(0)).is_none(), "too late");
    }

    #[test]
    fn removal_voids_the_answer_under_way_and_a_commit_asks_again() {
        let now = test_time::start();
        let mut inspections = Inspections::default();
        inspections.want(&digest(0), Purpose::Committed);
        assert_eq!(inspections.poll(now), Some(digest(0)));
        inspections.forget(&digest(0));
        inspections.want(&digest(0), Purpose::Committed);
        let inspected = inspections.on_inspected(&digest(0)).expect("asked");
        assert!(inspected.is_void);
        assert!(inspections.rerun(&digest(0), &inspected, true));
        assert_eq!(inspections.poll(now), Some(digest(0)));
    }

    #[test]
    fn second_signal_of_one_commit_asks_no_second_time() {
        let now = test_time::start();
        let mut inspections = Inspections::default();
        inspections.want(&digest(0), Purpose::Committed);
        assert_eq!(inspections.poll(now), Some(digest(0)));
        inspections.want(&digest(0), Purpose::Committed);
        let inspected = inspections.on_inspected(&digest(0)).expect("asked");
        assert!(!inspections.rerun(&digest(0), &inspected, true));
        assert_eq!(inspections.poll(now), None);
    }

    #[test]
    fn doubt_during_a_question_asks_again_if_there_is_no_answer_and_a_commit_with_patience() {
        use Purpose::{Check, Committed};
        for (meanwhile, purpose) in [
            (&[Check][..], Check),
            (&[Committed], Committed),
            (&[Check, Committed], Committed),
            (&[Committed, Check], Committed),
        ] {
            let now = test_time::start();
            let mut inspections = Inspections::default();
            inspections.want(&digest(0), Check);
            assert_eq!(inspections.poll(now), Some(digest(0)));
            meanwhile.iter().for_each(|purpose| assert!(inspections.want(&digest(0), *purpose)));
            let inspected = inspections.on_inspected(&digest(0)).expect("asked");
            assert!(inspections.rerun(&digest(0), &inspected, false), "{meanwhile:?}");
            assert_eq!(inspections.poll(now), Some(digest(0)));
            let again = inspections.on_inspected(&digest(0)).expect("asked");
            assert_eq!(again.purpose, purpose, "{meanwhile:?}");
        }
    }

    /// A listing in the middle made the inventory give up on a blob whose metadata was late.
    #[test]
    fn recheck_keeps_the_patience_of_a_commit() {
        let (now, mut rng) = (test_time::start(), Rng::new(1, "inspections"));
        let mut inspections = Inspections::default();
        inspections.want(&digest(0), Purpose::Committed);
        assert_eq!(inspections.poll(now), Some(digest(0)));
        assert_eq!(inspections.recheck_in_flight(), BTreeSet::from([digest(0)]));
        let inspected = inspections.on_inspected(&digest(0)).expect("asked");
        assert!(inspections.rerun(&digest(0), &inspected, false));
        assert_eq!(inspections.poll(now), Some(digest(0)));
        let inspected = inspections.on_inspected(&digest(0)).expect("asked");
        assert!(inspections.retry_early(now, &digest(0), inspected, &mut rng));
    }
}
