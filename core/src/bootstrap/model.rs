//! Random bootstrappers and dials beside a list of all that was learnt of each address: whom it may
//! dial, when it may ask, and what it must say.

use std::collections::BTreeSet;

use proptest::{
    collection::{btree_set, vec},
    prelude::{Just, Strategy, any, prop_oneof, proptest},
};

use super::*;

const ME: u8 = 0;
const ADDRS: u8 = 5;
const SECOND: Duration = Duration::from_secs(1);

/// Who is at an address when it is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Nobody,
    Itself,
    Other,
}

#[derive(Clone, Debug)]
enum Step {
    /// The bootstrapper answers, naming peers or not; an empty answer is a failure.
    Resolve {
        addrs: BTreeSet<u8>,
        names_peers: bool,
    },
    Fail,
    /// One of the dials that are out ends.
    Dial {
        nth: usize,
        there: There,
    },
    Members(usize),
    Wait {
        ms: u64,
    },
    /// Until something is due.
    WaitForNext,
}

fn step() -> impl Strategy<Value = Step> {
    let there = prop_oneof![Just(There::Nobody), Just(There::Itself), Just(There::Other)];
    prop_oneof![
        4 => (btree_set(0..ADDRS, 0..4), any::<bool>())
            .prop_map(|(addrs, names_peers)| Step::Resolve { addrs, names_peers }),
        1 => Just(Step::Fail),
        6 => (0..5_usize, there).prop_map(|(nth, there)| Step::Dial { nth, there }),
        1 => (0..3_usize).prop_map(Step::Members),
        2 => prop_oneof![0..300_u64, 0..10_000_u64, 0..500_000_u64].prop_map(|ms| Step::Wait { ms }),
        3 => Just(Step::WaitForNext),
    ]
}

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

/// The first is a port that nobody can listen at.
fn addr(number: u8) -> SocketAddr {
    ([10, 0, 0, number], if number == 1 { 0 } else { 5001 }).into()
}

/// The peer the bootstrapper says is at an address: at the second it is this node.
fn named(number: u8, names_peers: bool) -> Option<PeerId> {
    names_peers.then(|| peer(if number == 2 { ME } else { number + 100 }))
}

struct World {
    now: Instant,
    bootstrap: Bootstrap,
    members: usize,
    answer: BTreeMap<SocketAddr, Option<PeerId>>,
    /// What dials of each address came to.
    learnt: Vec<(Instant, SocketAddr, There)>,
    /// Where others were reached by the last attempt.
    reached: BTreeSet<SocketAddr>,
    /// Where others were reached who did not let this node in.
    shut_out: BTreeSet<SocketAddr>,
    /// When the question that is out was asked.
    asked_at: Option<Instant>,
    attempts: Vec<Instant>,
    dials: Vec<(Instant, SocketAddr)>,
    /// Joins and notices that must follow.
    expected: Vec<Event>,
    outage: bool,
}

impl World {
    fn last(&self, of: SocketAddr) -> Option<(Instant, There)> {
        self.learnt.iter().rfind(|(_, addr, _)| *addr == of).map(|(at, _, there)| (*at, *there))
    }

    /// It led here within ten minutes, and to nobody else since; failures in between say nothing.
    fn is_self(&self, of: SocketAddr) -> bool {
        let told = self.learnt.iter().rfind(|(_, addr, there)| *addr == of && *there != There::Nobody);
        told.is_some_and(|(at, _, there)| *there == There::Itself && self.now - *at < SECOND * 600)
    }

    fn check_dial(&self, to: SocketAddr, named: Option<PeerId>, alone: bool) {
        assert_eq!(self.answer.get(&to), Some(&named), "it is of the last answer");
        assert_ne!(named, Some(peer(ME)), "known to be this node");
        assert_ne!(to.port(), 0);
        assert!(self.dials.iter().all(|(_, dialled)| *dialled != to), "one dial at a time");
        assert!(self.dials.len() < if alone { 5 } else { 2 }, "too many at a time");
        let is_other = |(addr, named): &(&SocketAddr, &Option<PeerId>)| {
            **named != Some(peer(ME)) && !self.is_self(**addr)
        };
        let others: Vec<_> = self.answer.iter().filter(is_other).map(|(addr, _)| *addr).collect();
        if self.is_self(to) {
            assert!(others.is_empty(), "there are others than itself: {others:?}");
            assert!(self.dials.is_empty(), "one look at itself is enough");
            return;
        }
        // One that failed within the shortest pause is a last resort, and only for who is alone.
        let failed = |addr| {
            self.last(addr).is_some_and(|(at, there)| there == There::Nobody && self.now - at < SECOND * 2)
        };
        if failed(to) {
            assert!(alone, "no need to try what has just failed");
            let untried = others.iter().find(|other| self.last(**other).is_none());
            assert_eq!(untried, None, "not tried, while what has just failed is");
        }
    }

    /// Whether enough addresses are being dialled after the bootstrapper has answered or failed.
    fn check_dials(&self) {
        let most = if self.members == 0 { 5 } else { 2 };
        let theirs: Vec<_> = self
            .answer
            .iter()
            .filter(|(_, named)| **named != Some(peer(ME)))
            .map(|(addr, _)| *addr)
            .collect();
        let others: Vec<_> = theirs.iter().filter(|addr| !self.is_self(**addr)).copied().collect();
        let failed = |addr: &&SocketAddr| {
            self.shut_out.contains(addr) || matches!(self.last(**addr), Some((_, There::Nobody)))
        };
        let good = others.iter().filter(|addr| !failed(addr)).count();
        assert!(
            self.dials.len() >= good.min(most),
            "{} of {good} that nothing speaks against",
            self.dials.len()
        );
        let must_try = if others.is_empty() { !theirs.is_empty() } else { self.members == 0 };
        assert!(!must_try || !self.dials.is_empty(), "it tries what there is: {theirs:?}");
    }

    fn drain(&mut self) {
        let alone = self.members == 0;
        while let Some(event) = self.bootstrap.poll_event() {
            match event {
                Event::Resolve => {
                    assert_eq!(self.asked_at.replace(self.now), None, "one question at a time");
                    assert_eq!(self.dials, [], "the attempt before has ended");
                    self.attempts.push(self.now);
                }
                Event::Dial { addr, peer, timeout } => {
                    assert_eq!(timeout, SECOND * 5);
                    assert_eq!(self.asked_at, None, "it waits for the answer");
                    self.check_dial(addr, peer, alone);
                    self.dials.push((self.now, addr));
                }
                Event::Join { .. } | Event::Notice(_) => {
                    let at = self.expected.iter().position(|expected| *expected == event);
                    let at = at.unwrap_or_else(|| panic!("{event:?} without a reason"));
                    self.expected.remove(at);
                }
            }
        }
        assert_eq!(self.expected, [], "not said");
    }

    fn question_failed(&mut self, cause: &str) {
        if !std::mem::replace(&mut self.outage, true) {
            let notice = Notice::BootstrapFailed { cause: cause.to_owned() };
            self.expected.push(Event::Notice(notice));
        }
    }

    /// The bootstrapper answered or failed: those reached before have let this node in or not.
    fn judge_reached(&mut self) {
        for addr in std::mem::take(&mut self.reached) {
            if self.members > 0 {
                self.shut_out.remove(&addr);
            } else if self.answer.contains_key(&addr) {
                self.shut_out.insert(addr);
            }
        }
    }

    fn dial_ended(&mut self, nth: usize, there: There) -> Option<SocketAddr> {
        let (_, addr) = (nth < self.dials.len()).then(|| self.dials.remove(nth))?;
        match there {
            There::Nobody => {}
            There::Other => {
                self.reached.insert(addr);
                self.expected.push(Event::Join { peer: peer(7), addr });
            }
            There::Itself if self.is_self(addr) => {}
            There::Itself => self.expected.push(Event::Notice(Notice::BootstrapIsSelf { addr })),
        }
        self.learnt.push((self.now, addr, there));
        Some(addr)
    }

    fn apply(&mut self, step: Step) {
        let now = self.now;
        let had_asked = self.asked_at.is_some();
        match step.clone() {
            Step::Resolve { addrs, names_peers } => {
                let answer =
                    |number: &u8| BootstrapAddr { addr: addr(*number), peer: named(*number, names_peers) };
                let answer: Vec<_> = addrs.iter().map(answer).collect();
                if self.asked_at.take().is_some() {
                    let usable = answer.iter().filter(|at| at.addr.port() != 0);
                    let usable: BTreeMap<_, _> = usable.map(|at| (at.addr, at.peer)).collect();
                    if usable.is_empty() {
                        self.question_failed("the bootstrapper gave no addresses");
                    } else {
                        // What is no longer listed starts afresh if it is listed again.
                        let dropped = |addr: &SocketAddr, there: &There| {
                            !usable.contains_key(addr) && *there == There::Nobody
                        };
                        self.learnt.retain(|(_, addr, there)| !dropped(addr, there));
                        (self.answer, self.outage) = (usable, false);
                        let answer = &self.answer;
                        self.shut_out.retain(|addr| answer.contains_key(addr));
                    }
                    self.judge_reached();
                }
                self.bootstrap.on_resolved(now, answer);
            }
            Step::Fail => {
                if self.asked_at.take().is_some() {
                    self.question_failed("no");
                    self.judge_reached();
                }
                self.bootstrap.on_failed(now, "no");
            }
            Step::Dial { nth, there } => {
                let Some(addr) = self.dial_ended(nth, there) else { return };
                match there {
                    There::Nobody => self.bootstrap.on_dial_failed(now, addr),
                    There::Itself => self.bootstrap.on_dialed(now, addr, peer(ME)),
                    There::Other => self.bootstrap.on_dialed(now, addr, peer(7)),
                }
            }
            Step::Members(count) => {
                self.members = count;
                self.bootstrap.on_members(now, count);
            }
            Step::Wait { .. } | Step::WaitForNext => {
                let due = self.bootstrap.poll_timeout().unwrap_or(now);
                let end = if let Step::Wait { ms } = step { now + Duration::from_millis(ms) } else { due };
                while let Some(at) = self.bootstrap.poll_timeout().filter(|at| *at <= end) {
                    assert!(at >= self.now, "it is never late by itself");
                    self.now = at;
                    if self.asked_at.take_if(|asked| at - *asked >= SECOND * 11).is_some() {
                        self.question_failed("the bootstrapper did not answer");
                        self.judge_reached();
                    }
                    while let Some(nth) =
                        self.dials.iter().position(|(dialled, _)| at - *dialled >= SECOND * 6)
                    {
                        self.dial_ended(nth, There::Nobody);
                    }
                    self.bootstrap.handle_timeout(at);
                    self.drain();
                }
                self.now = end;
            }
        }
        let answered = matches!(step, Step::Resolve { .. } | Step::Fail);
        self.drain();
        if had_asked && answered {
            self.check_dials();
        }
        assert!(self.bootstrap.poll_timeout().is_some(), "it never stops looking");
    }
}

proptest! {
    #[test]
    fn addresses_are_dialled_as_what_is_known_of_them_allows(
        seed in any::<u64>(),
        steps in vec(step(), 1..120),
    ) {
        let now = crate::test_time::start();
        let mut world = World {
            now,
            bootstrap: Bootstrap::new(peer(ME), seed),
            members: 0,
            answer: BTreeMap::new(),
            learnt: Vec::new(),
            reached: BTreeSet::new(),
            shut_out: BTreeSet::new(),
            asked_at: None,
            attempts: Vec::new(),
            dials: Vec::new(),
            expected: Vec::new(),
            outage: false,
        };
        world.bootstrap.start(now);
        world.drain();
        for step in steps {
            world.apply(step);
        }
        // Ten at once, then one a minute: no stretch of time has more.
        for (first, from) in world.attempts.iter().enumerate() {
            for (count, to) in world.attempts[first..].iter().enumerate() {
                let allowed = 10 + (*to - *from).as_secs() / 60;
                assert!((count as u64) < allowed, "{count} more attempts within {:?}", *to - *from);
            }
        }
    }
}
