//! Random pulls at random holders, beside a naive model of the shell that checks every order.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use super::{
    attempts::LAUNCHES_MAX,
    flow::SILENCE_MAX,
    pull::{BLOB_ANSWER_DEADLINE, offer::COMPARED_BYTES_MIN},
    *,
};
use crate::{Notice, test_time};

#[derive(Clone, Debug)]
enum Step {
    Request {
        tagged: bool,
        kind: PullKind,
        whole: bool,
    },
    Holders {
        peers: Vec<u8>,
        definitive: bool,
    },
    Answer {
        right: bool,
        backlog: Option<u64>,
    },
    Fail(FetchError),
    Progress {
        bytes: u64,
        starved_ms: u64,
    },
    Complete,
    Abandon,
    PeerDown {
        number: u8,
        forgotten: bool,
    },
    Appeared,
    /// This process.
    Pause {
        ms: u64,
    },
}

/// What the shell knows of a pull that has not had its final answer.
#[derive(Debug, Default)]
struct Shell {
    /// Those without an answer, and the one forwarded.
    live: BTreeMap<AttemptId, u64>,
    forwarded: Option<AttemptId>,
    begun: bool,
    given: u64,
    launches: u32,
}

/// So long that it matters how busy its holder is.
const BODY: u64 = 2 * COMPARED_BYTES_MIN;

struct World {
    now: Instant,
    fetch: Fetch,
    health: Health,
    pulls: BTreeMap<PullId, Shell>,
    next: u64,
    trace: Vec<String>,
}

impl World {
    fn apply(&mut self, step: Step, pick: usize) {
        let (now, health) = (self.now, &mut self.health);
        // A pull that exists, or one that never did.
        let ids: Vec<_> = self.pulls.keys().copied().collect();
        let id = ids.get(pick % (ids.len() + 1)).copied().unwrap_or(PullId(u64::MAX));
        let attempts: Vec<_> =
            self.pulls.get(&id).map(|shell| shell.live.keys().copied().collect()).unwrap_or_default();
        let attempt = attempts.get(pick / 7 % (attempts.len() + 1)).copied().unwrap_or(AttemptId(u32::MAX));
        let shell = self.pulls.get_mut(&id);
        match step {
            Step::Request { tagged, kind, whole } => {
                let (id, digest) = (PullId(self.next), Digest::sha256_of(b"x"));
                self.next += 1;
                self.pulls.insert(id, Shell::default());
                let digest = (!tagged).then_some(digest);
                self.fetch.on_requested(now, id, Key::of("x"), digest, kind, whole, health);
            }
            Step::Holders { peers, definitive } => {
                let candidate = |number| Candidate {
                    peer: peer(number),
                    addrs: (0..number % 3)
                        .map(|port| SocketAddr::from(([10, 0, 0, number], port.into())))
                        .collect(),
                    same_zone: number % 2 == 0,
                };
                self.fetch.on_holders(
                    now,
                    id,
                    peers.into_iter().map(candidate).collect(),
                    definitive,
                    health,
                );
            }
            Step::Answer { right, backlog } => {
                // The shell answers each attempt once.
                if shell.is_some_and(|shell| shell.forwarded != Some(attempt)) {
                    let skip = self.pulls[&id].live.get(&attempt).copied().unwrap_or(0);
                    let bytes = if right { BODY - skip } else { 7 };
                    self.fetch.on_answered(now, id, attempt, bytes, backlog, health);
                }
            }
            Step::Fail(cause) => {
                if let Some(shell) = shell {
                    shell.live.remove(&attempt);
                    shell.forwarded = shell.forwarded.filter(|forwarded| *forwarded != attempt);
                }
                self.fetch.on_failed(now, id, attempt, cause, health);
            }
            Step::Progress { bytes, starved_ms } => {
                let bytes = shell.map_or(0, |shell| shell.take(attempt, bytes));
                let starved = Duration::from_millis(starved_ms);
                self.fetch.on_progressed(now, id, attempt, bytes, starved, health);
            }
            Step::Complete => {
                if let Some(shell) = shell
                    && shell.forwarded == Some(attempt)
                {
                    let rest = shell.take(attempt, u64::MAX);
                    self.pulls.remove(&id);
                    self.fetch.on_completed(now, id, attempt, rest, health);
                }
            }
            Step::Abandon => {
                if let Some(shell) = shell {
                    shell.begun = true;
                    self.fetch.on_abandoned(now, id, health);
                    self.check();
                    self.pulls.remove(&id);
                }
            }
            Step::PeerDown { number, forgotten } => {
                self.fetch.on_peer_down(now, &peer(number), health);
                if forgotten {
                    health.on_member_down(&peer(number));
                }
            }
            Step::Appeared => self.fetch.on_content_appeared(now, &Digest::sha256_of(b"x"), health),
            Step::Pause { ms } => {
                let lasted = Duration::from_millis(ms);
                self.now += lasted;
                self.fetch.on_paused(self.now, lasted, health);
                self.fetch.handle_timeout(self.now, health);
            }
        }
        self.check();
    }

    /// Lets time pass, with every timeout on the way.
    fn advance(&mut self, to: Instant) {
        while let Some(at) = self.fetch.poll_timeout()
            && at <= to
        {
            self.now = self.now.max(at);
            self.fetch.handle_timeout(self.now, &mut self.health);
            assert!(self.fetch.poll_timeout().is_none_or(|next| next > at), "a timeout that does not pass");
            self.check();
        }
        self.now = to;
    }

    fn check(&mut self) {
        while let Some(event) = self.fetch.poll_event() {
            self.trace.push(format!("{event:?}"));
            self.check_event(event);
        }
        while let Some(notice) = self.health.poll_event() {
            self.trace.push(format!("{notice:?}"));
        }
        assert_eq!(self.fetch.in_flight(), self.fetch.pulls.len());
        assert!(self.fetch.in_flight() <= self.pulls.len(), "a pull outlived its answer");
    }

    fn check_event(&mut self, event: Event) {
        match event {
            Event::Lookup { pull, .. } | Event::CancelLookup { pull } => {
                assert!(self.pulls.contains_key(&pull));
            }
            Event::Output(Output::Fetch { pull, attempt, peer, skip, .. }) => {
                let shell = self.pulls.get_mut(&pull).expect("no fetch after the final answer");
                assert_ne!(peer, self.fetch.own, "never from itself");
                assert_eq!(skip, shell.given, "skip is what the client has");
                let is_one_more = shell.forwarded.is_none() || shell.live.len() == 1;
                assert!(is_one_more, "one more is asked at most while bytes flow");
                assert!(shell.live.insert(attempt, skip).is_none(), "attempts are named once");
                shell.launches += 1;
                assert!(shell.launches <= LAUNCHES_MAX);
                assert!(shell.begun || shell.launches <= 4 * 8, "first answer: retries times addresses");
            }
            Event::Output(Output::CancelFetch { pull, attempt }) => {
                let shell = self.pulls.get_mut(&pull).expect("no cancel after the final answer");
                assert!(shell.live.remove(&attempt).is_some(), "only live attempts are cancelled");
                shell.forwarded = shell.forwarded.filter(|forwarded| *forwarded != attempt);
            }
            Event::Output(Output::Forward { pull, attempt, .. }) => {
                let shell = self.pulls.get_mut(&pull).expect("no forward after the final answer");
                assert_eq!(shell.forwarded.replace(attempt), None, "one body at a time");
                let skip = shell.live[&attempt];
                assert!(skip <= shell.given, "no byte is left out");
                // What the client was given since is counted again.
                shell.given = skip;
                assert_eq!(shell.live.keys().collect::<Vec<_>>(), [&attempt], "the others are cancelled");
                shell.begun = true;
            }
            Event::Output(Output::Refuse { pull, attempts, .. }) => {
                let shell = self.pulls.remove(&pull).expect("one final answer");
                assert!(!shell.begun && shell.live.is_empty(), "refused before anything was forwarded");
                assert_eq!(shell.launches, attempts);
            }
            Event::Output(Output::Truncate { pull, .. }) => {
                let shell = self.pulls.remove(&pull).expect("one final answer");
                assert!(shell.begun && shell.live.is_empty(), "only what has begun is truncated");
            }
            Event::Output(Output::Notice(Notice::PullResumed { pull, at_bytes, .. })) => {
                assert_eq!(self.pulls[&pull].given, at_bytes);
            }
            Event::Output(other) => panic!("not this machine's: {other:?}"),
        }
    }
}

impl Shell {
    fn take(&mut self, attempt: AttemptId, bytes: u64) -> u64 {
        if self.forwarded != Some(attempt) {
            return 0;
        }
        let bytes = bytes.min(BODY - self.given);
        self.given += bytes;
        bytes
    }
}

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(PullKind::Manifest), Just(PullKind::Blob), Just(PullKind::Head)];
    let cause = prop_oneof![
        3 => Just(FetchError::Connect),
        1 => Just(FetchError::NotFound),
        1 => Just(FetchError::Refused { status: 503 }),
        1 => Just(FetchError::Malformed),
        4 => Just(FetchError::Interrupted),
    ];
    let request = (proptest::bool::weighted(0.1), kind, any::<bool>());
    prop_oneof![
        3 => request.prop_map(|(tagged, kind, whole)| Step::Request { tagged, kind, whole }),
        4 => (vec(0..12_u8, 0..6), any::<bool>())
            .prop_map(|(peers, definitive)| Step::Holders { peers, definitive }),
        6 => (proptest::bool::weighted(0.9), prop_oneof![Just(None), (0..3 * BODY).prop_map(Some)])
            .prop_map(|(right, backlog)| Step::Answer { right, backlog }),
        3 => cause.prop_map(Step::Fail),
        6 => (prop_oneof![Just(0), 0..10_000_000_u64], 0..700_u64)
            .prop_map(|(bytes, starved_ms)| Step::Progress { bytes, starved_ms }),
        1 => Just(Step::Complete),
        1 => Just(Step::Abandon),
        1 => (0..12_u8, any::<bool>()).prop_map(|(number, forgotten)| Step::PeerDown { number, forgotten }),
        1 => Just(Step::Appeared),
        1 => (0..12_000_u64).prop_map(|ms| Step::Pause { ms }),
    ]
}

fn run(seed: u64, steps: &[(u64, usize, Step)]) -> Vec<String> {
    let mut world = World {
        now: test_time::start(),
        fetch: Fetch::new(seed, peer(0), 3),
        health: Health::new(seed),
        pulls: BTreeMap::new(),
        next: 0,
        trace: Vec::new(),
    };
    for (after_ms, pick, step) in steps {
        let to = world.now + Duration::from_millis(*after_ms);
        world.advance(to);
        world.apply(step.clone(), *pick);
    }
    // From here on the world is silent: every pull still ends, and soon.
    let end = world.now + SILENCE_MAX + BLOB_ANSWER_DEADLINE;
    world.advance(end);
    assert!(world.pulls.is_empty(), "unanswered: {:?}", world.pulls);
    assert_eq!((world.fetch.in_flight(), world.fetch.poll_timeout()), (0, None));
    world.fetch.handle_timeout(end, &mut world.health);
    assert_eq!(world.fetch.poll_event(), None);
    let later = end + Duration::from_secs(24 * 3600);
    for report in world.health.report(later) {
        assert_eq!(report.in_flight, 0, "every launch is released");
        assert!(world.health.rank(later, &report.peer, true).is_some(), "nobody is shunned for ever");
    }
    world.trace
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_pull_gets_exactly_one_answer_whatever_happens(
        seed in any::<u64>(),
        steps in vec((prop_oneof![Just(0), 0..20_u64, 0..1500_u64], any::<usize>(), step()), 1..120),
    ) {
        prop_assert_eq!(run(seed, &steps), run(seed, &steps), "equal seeds, equal outputs");
    }
}
