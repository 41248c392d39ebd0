//! One node and what its shell knows: carries out nothing, but remembers what was ordered, and
//! checks each order against what the core promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use spegel_core::{
    AttemptId, Config, EXCHANGE_TIMEOUT_MAX, ExchangeId, Filters, Input, MESSAGE_SIZE_MAX, Node, Output,
    PeerId, PullId, QuestionId, Reply, Request, oci::Digest,
};

use super::vocabulary;

/// Most calls of `handle_timeout` at one instant. The node gives its next timeout before it has
/// done everything due only a few times; more and the shell would spin.
const CALLS_PER_INSTANT_MAX: usize = 64;

/// Bytes of any content that is pulled.
pub(super) const BODY: u64 = 1 << 22;

/// A pull without its final answer.
#[derive(Debug, Default)]
pub(super) struct Pull {
    /// Those that may be heard of, and whether they have answered.
    pub(super) attempts: BTreeMap<AttemptId, bool>,
    pub(super) forwarded: Option<AttemptId>,
    pub(super) given: u64,
    launched: BTreeSet<AttemptId>,
    begun: bool,
    abandoned: bool,
}

pub(super) struct Shell {
    node: Node,
    peer: PeerId,
    /// Sent, and neither answered nor failed.
    pub(super) exchanges: BTreeMap<ExchangeId, (PeerId, Vec<u8>)>,
    exchange_next: u64,
    pub(super) dials: BTreeSet<SocketAddr>,
    pub(super) inspections: Vec<Digest>,
    pub(super) reads: Vec<Digest>,
    pub(super) pulls: BTreeMap<PullId, Pull>,
    pub(super) pull_next: u64,
    /// Asked by people, and not answered.
    pub(super) questions: BTreeSet<QuestionId>,
    pub(super) question_next: u64,
    replied: Option<Vec<u8>>,
    contents: BTreeSet<Digest>,
    tags: BTreeMap<String, Digest>,
    ready: bool,
    is_shutdown_complete: bool,
    /// Of everything ordered, for comparing runs, if that is wanted: it takes longer than the rest.
    fingerprint: Option<u64>,
}

impl Shell {
    pub(super) fn new(now: Instant, number: usize, is_compared: bool) -> Self {
        let filters = match number {
            0 => Filters::default(),
            _ => Filters::new(&["https://registry.test".to_owned()], &["excluded".to_owned()])
                .expect("filters that make sense"),
        };
        let (router_port, registry_port) = vocabulary::ports();
        let peer = vocabulary::peer(number);
        let config = Config {
            peer,
            started_at_unix_ms: 1_000_000,
            router_port,
            registry_port,
            zone: None,
            filters,
            resolve_timeout: Duration::from_millis(20),
            resolve_retries: 3,
            shutdown_delay: [Duration::ZERO, Duration::from_secs(3)][number % 2],
        };
        let mut shell = Self {
            node: Node::new(now, config, u64::try_from(number).unwrap_or_default()),
            peer,
            exchanges: BTreeMap::new(),
            exchange_next: 0,
            dials: BTreeSet::new(),
            inspections: Vec::new(),
            reads: Vec::new(),
            pulls: BTreeMap::new(),
            pull_next: 0,
            questions: BTreeSet::new(),
            question_next: 0,
            replied: None,
            contents: BTreeSet::new(),
            tags: BTreeMap::new(),
            ready: false,
            is_shutdown_complete: false,
            fingerprint: is_compared.then_some(0xcbf2_9ce4_8422_2325),
        };
        shell.drain();
        shell
    }

    pub(super) const fn peer(&self) -> PeerId {
        self.peer
    }

    pub(super) const fn fingerprint(&self) -> Option<u64> {
        self.fingerprint
    }

    /// Anything but a message: no reply may follow.
    pub(super) fn handle(&mut self, now: Instant, input: Input) {
        self.node.handle(now, input);
        self.drain();
        assert_eq!(self.replied, None, "a reply to nothing");
    }

    pub(super) fn receive(&mut self, now: Instant, from: PeerId, message: Vec<u8>) -> Vec<u8> {
        // The core only hands the number back.
        self.node.handle(now, Input::MessageReceived { from, exchange: ExchangeId(u64::MAX), message });
        self.drain();
        self.replied.take().expect("each message has a reply at once")
    }

    /// Time went by; the shell calls at each timeout, or once, late, when it was frozen.
    pub(super) fn advance(&mut self, from: Instant, to: Instant, is_frozen: bool) {
        let mut now = if is_frozen { to } else { from };
        let mut calls = 0;
        while let Some((at, wake)) = self.node.poll_timeout()
            && at <= to
        {
            calls = if at <= now { calls + 1 } else { 0 };
            assert!(calls < CALLS_PER_INSTANT_MAX, "the node never wants to be called later: {wake:?}");
            now = now.max(at);
            self.node.handle_timeout(now);
            self.drain();
        }
        // Early or repeated: nothing is due.
        self.node.handle_timeout(to);
        self.drain();
        assert_eq!(self.replied, None, "a reply to nothing");
    }

    /// What must hold when nothing was heard of for long enough.
    pub(super) fn check_silence(&self, now: Instant) {
        assert!(self.pulls.is_empty(), "pulls without an answer: {:?}", self.pulls);
        assert!(self.questions.is_empty(), "questions without an answer: {:?}", self.questions);
        let report = self.node.report(now);
        assert_eq!(report.pulls, 0, "a pull outlived its answer");
        assert_eq!(report.ready, self.ready);
        assert!(report.members.iter().all(|member| member.peer != self.peer), "a member of itself");
    }

    fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            if let Some(fingerprint) = &mut self.fingerprint {
                for byte in format!("{output:?}").bytes() {
                    *fingerprint = (*fingerprint ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
            }
            self.check(output);
        }
    }

    fn pull(&mut self, pull: PullId) -> &mut Pull {
        self.pulls.get_mut(&pull).expect("nothing is ordered for a pull after its final answer")
    }

    fn check(&mut self, output: Output) {
        match output {
            Output::WatchContent { .. } | Output::Notice(_) => {}
            Output::ConnectContainerd { timeout }
            | Output::ProbeContainerd { timeout }
            | Output::List { timeout }
            | Output::ResolveBootstrap { timeout } => assert!(timeout > Duration::ZERO),
            Output::Inspect { digest, timeout } => {
                assert!(timeout > Duration::ZERO);
                self.inspections.push(digest);
            }
            Output::ReadManifest { digest, timeout } => {
                assert!(timeout > Duration::ZERO);
                self.reads.push(digest);
            }
            Output::ServeContent { digest, .. } => drop(self.contents.insert(digest)),
            Output::StopServingContent { digest } => {
                assert!(self.contents.remove(&digest), "{digest} is not served");
                assert!(!self.tags.values().any(|named| *named == digest), "a tag outlives {digest}");
            }
            Output::ServeTag { name, digest } => {
                assert!(self.contents.contains(&digest), "{name} names what is not served");
                self.tags.insert(name, digest);
            }
            Output::StopServingTag { name } => {
                assert!(self.tags.remove(&name).is_some(), "{name:?} is not served");
            }
            Output::Dial { addr, timeout, .. } => {
                assert!(timeout > Duration::ZERO);
                self.dials.insert(addr);
            }
            Output::Send { to, exchange, message, timeout, .. } => {
                assert_ne!(to, self.peer, "a message to itself");
                assert!(timeout > Duration::ZERO && timeout <= EXCHANGE_TIMEOUT_MAX);
                assert!(message.len() <= MESSAGE_SIZE_MAX);
                Request::decode(&message).expect("what is sent makes sense");
                assert!(exchange.0 >= self.exchange_next, "an exchange named twice");
                self.exchange_next = exchange.0 + 1;
                self.exchanges.insert(exchange, (to, message));
            }
            Output::Reply { message, .. } => {
                Reply::decode(&message).expect("what is replied makes sense");
                assert_eq!(self.replied.replace(message), None, "two replies");
            }
            Output::Disconnect { peer } => assert_ne!(peer, self.peer),
            Output::Fetch { pull, attempt, peer, skip, .. } => {
                assert_ne!(peer, self.peer, "a fetch from itself");
                let pull = self.pull(pull);
                assert!(!pull.abandoned && pull.launched.insert(attempt), "an attempt named twice");
                assert_eq!((pull.forwarded, skip), (None, pull.given), "what the client has already");
                pull.attempts.insert(attempt, false);
            }
            Output::CancelFetch { pull, attempt } => {
                let pull = self.pull(pull);
                assert!(pull.attempts.remove(&attempt).is_some(), "{attempt} is over");
                pull.forwarded = pull.forwarded.filter(|forwarded| *forwarded != attempt);
            }
            Output::Forward { pull, attempt, report_interval } => {
                assert!(report_interval > Duration::ZERO);
                let pull = self.pull(pull);
                assert_eq!(pull.forwarded.replace(attempt), None, "two bodies at a time");
                assert_eq!(pull.attempts.get(&attempt), Some(&true), "it has not answered");
                assert_eq!(pull.attempts.len(), 1, "the others are of no use");
                pull.begun = true;
            }
            Output::Refuse { pull: id, .. } => {
                let pull = self.pull(id);
                assert!(!pull.begun && !pull.abandoned && pull.attempts.is_empty(), "refused: {pull:?}");
                self.pulls.remove(&id);
            }
            Output::Truncate { pull: id, .. } => {
                let pull = self.pull(id);
                assert!(pull.begun && !pull.abandoned && pull.attempts.is_empty(), "truncated: {pull:?}");
                self.pulls.remove(&id);
            }
            Output::TellHolders { question, found } => {
                assert!(self.questions.remove(&question), "a question answered twice");
                assert!(!found.others.contains(&self.peer), "it is not another");
            }
            Output::SetReady { ready } => {
                assert_ne!(std::mem::replace(&mut self.ready, ready), ready, "told twice");
            }
            Output::ShutdownComplete => {
                assert!(!std::mem::replace(&mut self.is_shutdown_complete, true), "told twice");
            }
        }
    }

    /// The client left.
    pub(super) fn abandon(&mut self, now: Instant, id: PullId) {
        if let Some(pull) = self.pulls.get_mut(&id) {
            pull.abandoned = true;
        }
        self.handle(now, Input::PullAbandoned { pull: id });
        if let Some(pull) = self.pulls.remove(&id) {
            assert!(pull.attempts.is_empty(), "an attempt outlives its client");
        }
    }
}
