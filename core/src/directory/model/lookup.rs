//! Lookups beside a reference that reads the rules off lists of all that happened.

use std::time::{Duration, Instant};

use proptest::{
    prelude::{BoxedStrategy, Just, ProptestConfig, Strategy, any, prop_oneof},
    sample::select,
};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::{
    super::lookup::{LookupId, Lookups, Outcome, Step},
    *,
};

const OWNERS: u8 = 5;
/// How long one owner may take before another is asked.
const RESOLVE_MS: u64 = 40;
/// How long a lookup may take: thrice that and a little.
const PATIENCE_MS: u64 = 140;
/// How long an owner that did not answer is asked last.
const SLOW_MS: u64 = 2_000;

#[derive(Clone, Debug)]
enum Transition {
    Begin {
        owners: Vec<u8>,
    },
    Found {
        lookup: usize,
        owner: u8,
        holders: Vec<u8>,
        knows: bool,
    },
    Failed {
        lookup: usize,
        owner: u8,
    },
    Cancel {
        lookup: usize,
    },
    Down(u8),
    AskLast(u8),
    /// The clock is read as often as it should.
    Wait {
        ms: u64,
    },
    /// It is not, for a while.
    Oversleep {
        ms: u64,
    },
}

/// What is decided, by the lookup's place in the order of beginning.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Ask(usize, u8),
    Answer(usize, Vec<u8>, Outcome),
}

#[derive(Clone, Debug)]
struct Lookup {
    began_ms: u64,
    /// Owners not asked, best first.
    left: Vec<u8>,
    /// Owners asked, and when.
    asked: Vec<(u64, u8)>,
    /// Those asked who have neither answered nor failed.
    silent: Vec<u8>,
    /// Named so far, and when the first of them was.
    named: Vec<u8>,
    named_ms: Option<u64>,
    is_over: bool,
}

/// Whether an owner is likely to answer, as somebody saw at a time.
type Seen = (u64, u8, bool);

#[derive(Clone, Debug, Default)]
struct Reference {
    now_ms: u64,
    lookups: Vec<Lookup>,
    seen: Vec<Seen>,
    /// What the last transition must lead to.
    said: Vec<Said>,
}

impl Reference {
    fn is_slow(&self, owner: u8) -> bool {
        let last = self.seen.iter().rfind(|(_, seen, _)| *seen == owner);
        last.is_some_and(|(at, _, answers)| !answers && self.now_ms < at + SLOW_MS)
    }

    fn ask_next(&mut self, at: usize) {
        let lookup = &mut self.lookups[at];
        if lookup.is_over {
        } else if !lookup.left.is_empty() {
            let owner = lookup.left.remove(0);
            lookup.asked.push((self.now_ms, owner));
            lookup.silent.push(owner);
            self.said.push(Said::Ask(at, owner));
        } else if lookup.silent.is_empty() {
            self.answer(at, false);
        }
    }

    fn answer(&mut self, at: usize, is_all: bool) {
        let lookup = &mut self.lookups[at];
        if !std::mem::replace(&mut lookup.is_over, true) {
            let tells = is_all || !lookup.named.is_empty();
            let outcome = if tells { Outcome::Definitive } else { Outcome::Unanswered };
            self.said.push(Said::Answer(at, lookup.named.clone(), outcome));
        }
    }

    fn deadline(lookup: &Lookup) -> u64 {
        let all = lookup.began_ms + PATIENCE_MS;
        lookup.named_ms.map_or(all, |named| all.min(named + RESOLVE_MS))
    }

    /// Whether somebody else must be asked, or it is given up; and when that is.
    fn wakes_at(lookup: &Lookup) -> Option<u64> {
        let hedge = lookup.asked.last().filter(|_| !lookup.left.is_empty()).map(|(at, _)| at + RESOLVE_MS);
        let deadline = Self::deadline(lookup);
        (!lookup.is_over).then(|| hedge.map_or(deadline, |hedge| hedge.min(deadline)))
    }

    fn next_wake(&self) -> Option<u64> {
        self.lookups.iter().filter_map(Self::wakes_at).min()
    }

    fn wake(&mut self) {
        let due = |lookup: &Lookup| Self::wakes_at(lookup).is_some_and(|at| at <= self.now_ms);
        let due: Vec<_> = (0..self.lookups.len()).filter(|at| due(&self.lookups[*at])).collect();
        for at in due {
            let silent = self.lookups[at].silent.clone();
            self.seen.extend(silent.iter().map(|owner| (self.now_ms, *owner, false)));
            if Self::deadline(&self.lookups[at]) <= self.now_ms {
                self.answer(at, false);
            } else {
                self.ask_next(at);
            }
        }
    }
}

struct LookupsReference;

impl ReferenceStateMachine for LookupsReference {
    type State = Reference;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<Reference> {
        Just(Reference::default()).boxed()
    }

    fn transitions(state: &Reference) -> BoxedStrategy<Transition> {
        let begin = Just((0..OWNERS).collect::<Vec<_>>()).prop_shuffle().prop_flat_map(|owners| {
            (0..=3_usize).prop_map(move |count| Transition::Begin { owners: owners[..count].to_vec() })
        });
        let wait = || prop_oneof![0..10_u64, Just(RESOLVE_MS), Just(PATIENCE_MS), 0..300_u64, 0..3_000_u64];
        let anytime = prop_oneof![
            6 => begin,
            1 => (0..OWNERS).prop_map(Transition::Down),
            1 => (0..OWNERS).prop_map(Transition::AskLast),
            4 => wait().prop_map(|ms| Transition::Wait { ms }),
            1 => wait().prop_map(|ms| Transition::Oversleep { ms }),
        ];
        // Whoever was asked may answer at any time, even when nobody waits for it any more.
        let exchanges: Vec<_> = (state.lookups.iter().enumerate())
            .flat_map(|(at, lookup)| lookup.asked.iter().map(move |(_, owner)| (at, *owner)))
            .collect();
        if exchanges.is_empty() {
            return anytime.boxed();
        }
        let latest = exchanges.len().saturating_sub(6);
        let exchange = select(exchanges[latest..].to_vec());
        let holders = proptest::collection::vec(0..20_u8, 0..2);
        prop_oneof![
            2 => anytime,
            1 => (exchange.clone(), holders, any::<bool>()).prop_map(|((lookup, owner), holders, knows)| {
                Transition::Found { lookup, owner, holders, knows }
            }),
            1 => exchange.clone().prop_map(|(lookup, owner)| Transition::Failed { lookup, owner }),
            1 => exchange.prop_map(|(lookup, _)| Transition::Cancel { lookup }),
        ]
        .boxed()
    }

    fn preconditions(state: &Reference, transition: &Transition) -> bool {
        // Holds by construction; shrinking removes what was built upon.
        match transition {
            Transition::Found { lookup, owner, .. } | Transition::Failed { lookup, owner } => state
                .lookups
                .get(*lookup)
                .is_some_and(|lookup| lookup.asked.iter().any(|(_, asked)| asked == owner)),
            Transition::Cancel { lookup } => *lookup < state.lookups.len(),
            Transition::Begin { .. }
            | Transition::Down(_)
            | Transition::AskLast(_)
            | Transition::Wait { .. }
            | Transition::Oversleep { .. } => true,
        }
    }

    fn apply(mut state: Reference, transition: &Transition) -> Reference {
        state.said.clear();
        match transition.clone() {
            Transition::Begin { mut owners } => {
                owners.sort_by_key(|owner| state.is_slow(*owner));
                let (asked, silent) = (Vec::new(), Vec::new());
                let (named, named_ms, began_ms) = (Vec::new(), None, state.now_ms);
                let lookup =
                    Lookup { began_ms, left: owners, asked, silent, named, named_ms, is_over: false };
                state.lookups.push(lookup);
                state.ask_next(state.lookups.len() - 1);
            }
            Transition::Found { lookup, owner, holders, knows } => {
                state.seen.push((state.now_ms, owner, true));
                let told = &mut state.lookups[lookup];
                told.silent.retain(|silent| *silent != owner);
                let news: Vec<_> =
                    holders.into_iter().filter(|holder| !told.named.contains(holder)).collect();
                told.named.extend(news);
                if !told.named.is_empty() && !told.is_over {
                    told.named_ms.get_or_insert(state.now_ms);
                }
                if knows {
                    state.answer(lookup, true);
                } else {
                    state.ask_next(lookup);
                }
            }
            Transition::Failed { lookup, owner } => {
                state.seen.push((state.now_ms, owner, false));
                state.lookups[lookup].silent.retain(|silent| *silent != owner);
                state.ask_next(lookup);
            }
            Transition::Cancel { lookup } => state.lookups[lookup].is_over = true,
            Transition::Down(owner) => {
                state.seen.push((state.now_ms, owner, true));
                state.lookups.iter_mut().for_each(|lookup| lookup.left.retain(|left| *left != owner));
            }
            Transition::AskLast(owner) => state.seen.push((state.now_ms, owner, false)),
            Transition::Wait { ms } => {
                let end = state.now_ms + ms;
                while let Some(at) = state.next_wake().filter(|at| *at <= end) {
                    state.now_ms = state.now_ms.max(at);
                    state.wake();
                }
                state.now_ms = end;
            }
            Transition::Oversleep { ms } => {
                state.now_ms += ms;
                state.wake();
            }
        }
        state
    }
}

struct LookupsTest {
    start: Instant,
    now: Instant,
    lookups: Lookups,
    ids: Vec<LookupId>,
}

impl LookupsTest {
    fn number(&self, id: LookupId) -> usize {
        self.ids.iter().position(|known| *known == id).expect("it was begun")
    }

    fn said(&mut self) -> Vec<Said> {
        let steps: Vec<_> = std::iter::from_fn(|| self.lookups.poll_step()).collect();
        let said = |step| match step {
            Step::Ask { lookup, owner, key: asked } => {
                let lookup = self.number(lookup);
                assert_eq!(asked, key(lookup as u8), "each owner is asked for the lookup's key");
                Said::Ask(lookup, owner.public_key()[0])
            }
            Step::Answered { lookup, holders, outcome } => {
                let holders = holders.iter().map(|holder| holder.public_key()[0]).collect();
                Said::Answer(self.number(lookup), holders, outcome)
            }
        };
        steps.into_iter().map(said).collect()
    }
}

impl StateMachineTest for LookupsTest {
    type SystemUnderTest = Self;
    type Reference = LookupsReference;

    fn init_test(_: &Reference) -> Self {
        let start = crate::test_time::start();
        let lookups = Lookups::new(Duration::from_millis(RESOLVE_MS));
        Self { start, now: start, lookups, ids: Vec::new() }
    }

    fn apply(mut test: Self, reference: &Reference, transition: Transition) -> Self {
        let now = test.now;
        match transition {
            Transition::Begin { owners } => {
                let key = key(test.ids.len() as u8);
                let id = test.lookups.begin(now, key, Vec::new(), owners.into_iter().map(peer));
                test.ids.push(id);
            }
            Transition::Found { lookup, owner, holders, knows } => {
                let holders = holders.into_iter().map(peer).collect();
                test.lookups.found(now, test.ids[lookup], peer(owner), holders, knows);
            }
            Transition::Failed { lookup, owner } => {
                test.lookups.failed(now, test.ids[lookup], peer(owner));
            }
            Transition::Cancel { lookup } => test.lookups.cancel(test.ids[lookup]),
            Transition::Down(owner) => test.lookups.member_down(peer(owner)),
            Transition::AskLast(owner) => test.lookups.ask_last(now, peer(owner)),
            Transition::Wait { ms } => {
                let end = now + Duration::from_millis(ms);
                while let Some(at) = test.lookups.poll_timeout().filter(|at| *at <= end) {
                    test.now = test.now.max(at);
                    test.lookups.handle_timeout(test.now);
                }
                test.now = end;
            }
            Transition::Oversleep { ms } => {
                test.now += Duration::from_millis(ms);
                test.lookups.handle_timeout(test.now);
            }
        }
        assert_eq!(test.said(), reference.said, "at {:?}", test.now - test.start);
        test
    }

    fn check_invariants(test: &Self, reference: &Reference) {
        let wakes = test.lookups.poll_timeout().map(|at| (at - test.start).as_millis() as u64);
        assert_eq!(wakes, reference.next_wake(), "when to come back");
        let active = reference.lookups.iter().filter(|lookup| !lookup.is_over).count();
        assert_eq!(test.lookups.in_flight(), active);
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn owners_are_asked_in_turn_until_one_knows_or_time_is_up(sequential 1..60 => LookupsTest);
}
