//! Many directories in virtual time, with latency, loss and lagging membership.

use super::super::*;

pub(super) const RESOLVE_TIMEOUT: Duration = Duration::from_millis(20);

pub(super) fn peer(number: u16) -> PeerId {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&number.to_be_bytes());
    PeerId::from_public_key(key)
}

pub(super) fn key(number: usize) -> Key {
    Key::of(&number.to_string())
}

pub(super) const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub(super) const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

enum Delivery {
    Request {
        from: PeerId,
        exchange: (u64, u64),
        message: Vec<u8>,
    },
    Reply {
        exchange: (u64, u64),
        message: Vec<u8>,
    },
    Failure {
        exchange: (u64, u64),
    },
    /// What is true of `subject` reaches the node.
    Membership {
        subject: PeerId,
    },
}

pub(super) struct Mirror {
    pub(super) directory: Directory,
    life: u64,
    /// The life in which this node believes each other member to be.
    sees: BTreeMap<PeerId, u64>,
    pending: BTreeSet<u64>,
    answers: BTreeMap<LookupId, (Vec<PeerId>, Outcome)>,
}

pub(super) struct Net {
    now: Instant,
    pub(super) mirrors: BTreeMap<PeerId, Mirror>,
    deliveries: BTreeMap<(Instant, u64), (PeerId, Delivery)>,
    pub(super) sequence: u64,
    lives: u64,
    rng: Rng,
    latency_ms: usize,
    pub(super) loss_percent: usize,
    /// How late at most a node hears of another's coming or going.
    pub(super) lag_ms: usize,
    /// Nodes that neither send nor receive.
    pub(super) cut_off: BTreeSet<PeerId>,
    pub(super) requests_sent: BTreeMap<PeerId, usize>,
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: crate::test_time::start(),
            mirrors: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            sequence: 0,
            lives: 0,
            rng: Rng::new(seed, "net"),
            latency_ms: 3,
            loss_percent: 0,
            lag_ms: 200,
            cut_off: BTreeSet::new(),
            requests_sent: BTreeMap::new(),
        }
    }

    /// Nodes that all know each other and have settled.
    pub(super) fn settled(count: u16) -> Self {
        let mut net = Self::new(u64::from(count));
        (0..count).for_each(|number| net.start(peer(number)));
        net.run(secs(20));
        net
    }

    pub(super) fn start(&mut self, name: PeerId) {
        self.lives += 1;
        let zone = Zone::new(if name.public_key()[1].is_multiple_of(2) { "even" } else { "odd" });
        let mirror = Mirror {
            directory: {
                let mut directory = Directory::new(name, zone, self.lives, RESOLVE_TIMEOUT);
                directory.set_view_complete(true);
                directory
            },
            life: self.lives,
            sees: BTreeMap::new(),
            pending: BTreeSet::new(),
            answers: BTreeMap::new(),
        };
        self.mirrors.insert(name, mirror);
        self.spread_word(name);
        for subject in self.names() {
            self.later(self.lag_ms, name, Delivery::Membership { subject });
        }
    }

    pub(super) fn kill(&mut self, name: PeerId) {
        self.mirrors.remove(&name);
        self.spread_word(name);
    }

    fn spread_word(&mut self, subject: PeerId) {
        for observer in self.names() {
            self.later(self.lag_ms, observer, Delivery::Membership { subject });
        }
    }

    pub(super) fn names(&self) -> Vec<PeerId> {
        self.mirrors.keys().copied().collect()
    }

    fn later(&mut self, up_to_ms: usize, to: PeerId, delivery: Delivery) {
        let at = self.now + millis(self.rng.below(up_to_ms + 1) as u64);
        self.at(at, to, delivery);
    }

    fn at(&mut self, at: Instant, to: PeerId, delivery: Delivery) {
        self.sequence += 1;
        self.deliveries.insert((at, self.sequence), (to, delivery));
    }

    pub(super) fn with<T>(
        &mut self,
        name: PeerId,
        act: impl FnOnce(&mut Directory, Instant) -> T,
    ) -> Option<T> {
        let result = act(&mut self.mirrors.get_mut(&name)?.directory, self.now);
        self.drain(name);
        Some(result)
    }

    pub(super) fn hold(&mut self, name: PeerId, key: Key) {
        self.with(name, |directory, now| directory.hold(now, key));
    }

    /// Looks up and waits for the answer; says how long it took.
    pub(super) fn find(&mut self, name: PeerId, key: Key) -> (Vec<PeerId>, Outcome, Duration) {
        let began = self.now;
        let id = self.with(name, |directory, now| directory.lookup(now, key)).expect("it lives");
        for _ in 0..1000 {
            if let Some((holders, outcome)) = self.mirrors[&name].answers.get(&id) {
                return (holders.clone(), *outcome, self.now - began);
            }
            self.run(millis(1));
        }
        panic!("lookup without an answer");
    }

    fn drain(&mut self, name: PeerId) {
        loop {
            let Some(mirror) = self.mirrors.get_mut(&name) else { return };
            let Some(event) = mirror.directory.poll_event() else { return };
            match event {
                Event::Send { exchange, to, request, timeout } => {
                    assert_ne!(to, name, "talks to itself");
                    mirror.pending.insert(exchange);
                    let exchange = (mirror.life, exchange);
                    *self.requests_sent.entry(name).or_default() += 1;
                    self.at(self.now + timeout, name, Delivery::Failure { exchange });
                    let message = request.encode();
                    if !self.is_lost(name, to) {
                        self.later(self.latency_ms, to, Delivery::Request { from: name, exchange, message });
                    }
                }
                Event::Answered { lookup, holders, outcome } => {
                    assert!(!holders.contains(&name), "finds itself");
                    assert!(holders.is_empty() || outcome == Outcome::Definitive);
                    assert!(mirror.answers.insert(lookup, (holders, outcome)).is_none(), "answered twice");
                }
            }
        }
    }

    fn is_lost(&mut self, one: PeerId, other: PeerId) -> bool {
        let cut = self.cut_off.contains(&one) || self.cut_off.contains(&other);
        cut || self.rng.below(100) < self.loss_percent
    }

    fn deliver(&mut self, to: PeerId, delivery: Delivery) {
        let truth = |net: &Self, subject| net.mirrors.get(&subject).map(|mirror| mirror.life);
        match delivery {
            Delivery::Request { from, exchange, message } => {
                let request = Request::decode(&message).expect("own messages are well formed");
                let reply = self.with(to, |directory, now| match request {
                    Request::Announce(announce) => directory.on_announce(now, from, &announce),
                    Request::Lookup { key } => directory.on_lookup(now, from, key),
                    Request::Goodbye { .. } => {
                        directory.on_goodbye(now, from);
                        Reply::Ack
                    }
                    Request::Swim(_) | Request::Compare { .. } => panic!("not the directory's"),
                });
                if let Some(reply) = reply
                    && !self.is_lost(from, to)
                {
                    let message = reply.encode();
                    self.later(self.latency_ms, from, Delivery::Reply { exchange, message });
                }
            }
            Delivery::Reply { exchange: (life, exchange), message } => {
                let reply = Reply::decode(&message).expect("own messages are well formed");
                if self.take_pending(to, life, exchange) {
                    self.with(to, |directory, now| directory.on_reply(now, exchange, reply));
                }
            }
            Delivery::Failure { exchange: (life, exchange) } => {
                if self.take_pending(to, life, exchange) {
                    self.with(to, |directory, now| directory.on_failed(now, exchange));
                }
            }
            Delivery::Membership { subject } => {
                let life = truth(self, subject);
                let Some(mirror) = self.mirrors.get_mut(&to) else { return };
                let seen = mirror.sees.get(&subject).copied();
                if subject == to || seen == life {
                    return;
                }
                if seen.is_some() {
                    mirror.sees.remove(&subject);
                    self.with(to, |directory, now| directory.member_down(now, subject));
                }
                if let Some(life) = life {
                    let zone =
                        Zone::new(if subject.public_key()[1].is_multiple_of(2) { "even" } else { "odd" });
                    self.mirrors.get_mut(&to).expect("it lives").sees.insert(subject, life);
                    self.with(to, |directory, now| directory.member_up(now, subject, zone));
                }
            }
        }
    }

    fn take_pending(&mut self, name: PeerId, life: u64, exchange: u64) -> bool {
        let mirror = self.mirrors.get_mut(&name).filter(|mirror| mirror.life == life);
        mirror.is_some_and(|mirror| mirror.pending.remove(&exchange))
    }

    pub(super) fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        let mut steps_now = 0;
        loop {
            let wakes = |(name, mirror): (&PeerId, &Mirror)| Some((mirror.directory.poll_timeout()?, *name));
            let timeout = self.mirrors.iter().filter_map(wakes).min();
            let delivery = self.deliveries.first_key_value().map(|((at, _), _)| *at);
            let next = soonest(timeout.map(|(at, _)| at), delivery).filter(|at| *at <= until);
            let Some(next) = next else { break };
            steps_now = if next > self.now { 0 } else { steps_now + 1 };
            assert!(steps_now < 1_000_000, "time stands still");
            self.now = self.now.max(next);
            if delivery == Some(next) {
                let (_, (to, delivery)) = self.deliveries.pop_first().expect("it is there");
                self.deliver(to, delivery);
            } else if let Some((_, name)) = timeout {
                self.with(name, |directory, now| directory.handle_timeout(now));
            }
        }
        self.now = until;
    }

    pub(super) fn owners(&self, key: Key) -> Vec<PeerId> {
        let any = self.mirrors.values().next().expect("a node lives");
        any.directory.roster.owners(&key).iter().collect()
    }

    pub(super) fn says_nobody(&mut self, owner: PeerId, key: Key) -> bool {
        let asker = self.names().into_iter().find(|name| *name != owner).expect("there are others");
        let reply = self.with(owner, |directory, now| directory.on_lookup(now, asker, key));
        let Some(Reply::Found { holders, knows }) = reply else { panic!("{reply:?}") };
        holders.is_empty() && knows
    }

    /// What every owner believes of every holder is what is held.
    pub(super) fn assert_agreed(&self, held: &BTreeMap<PeerId, BTreeSet<Key>>) {
        for (owner, mirror) in &self.mirrors {
            for holder in self.mirrors.keys() {
                let owned = |key: &&Key| mirror.directory.roster.owners(key).contains(owner);
                let expected: Vec<Key> =
                    held.get(holder).into_iter().flatten().filter(owned).copied().collect();
                assert_eq!(mirror.directory.ledger.keys_of(holder), expected, "{owner} of {holder}");
            }
            let report = mirror.directory.report();
            assert_eq!((report.holders_incomplete, report.owners_unsynced), (0, 0), "{owner}: {report:?}");
        }
    }
}
