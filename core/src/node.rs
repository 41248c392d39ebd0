//! The dispatcher: hands each input to the machine whose noun it is, carries events from one
//! machine to the next, and queues what the shell must do. Decides nothing itself.
//!
//! The shell's loop, for [`Node::handle`] and [`Node::handle_timeout`] alike:
//!
//! 1. call it with the time,
//! 2. drain [`Node::poll_output`] to `None` and carry out each output,
//! 3. wait for the next input, or until [`Node::poll_timeout`].

mod driven;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use self::driven::{Driven, Machine};
use crate::{
    Config, DirectoryContents, ExchangeId, FoundHolders, Input, Key, Member, Notice, Output, PeerId, PullId,
    QuestionId, Wake,
    bootstrap::{self, Bootstrap},
    directory::{self, Directory, LookupId},
    fetch::{self, Candidate, Fetch},
    health::Health,
    intercept::{self, Intercept},
    inventory::{self, Inventory},
    membership::{self, Membership},
    message::{MessageError, Reply, Request},
    oci::Digest,
    output::EXCHANGE_TIMEOUT_MAX,
    report::Report,
};

/// Longest wait for the reply to a gossip packet. Shorter and a busy node loses packets that
/// would have arrived; longer and exchanges with a dead node pile up.
const SWIM_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for other nodes to take note of this node's farewell. Shorter and some go on
/// naming it; longer and a rolling update waits for nodes that are dead.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// Most control messages without a reply. Each costs a stream of a connection; the machines
/// bound their own, so that more than this means that replies have stopped altogether, and
/// further messages fail at once.
const EXCHANGES_MAX: usize = 16_384;

/// How often a peer that sends nonsense is mentioned. More often and it fills the log.
const MALFORMED_NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// Most peers whose nonsense is remembered. Fewer and many such peers fill the log.
const MALFORMED_PEERS_MAX: usize = 256;

/// How late timers must be for this process to have been paused, by its quota of CPU or a hypervisor. Shorter and a
/// busy executor makes every wait longer; longer and pulls go upstream, and peers are taken for slow, although their
/// answers wait in socket buffers.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Most questions of people that wait for an answer; of further ones it is said at once that nothing is known.
/// Fewer and two people who look at once get in each other's way; more and whoever sees the debug page can use
/// up the lookups that pulls need.
const QUESTIONS_MAX: usize = 16;

/// Most events passed between machines after one input, those of the inventory aside. Fewer and
/// many members that change at once end the process; more only means that two machines which
/// answer each other for ever are found later.
const SETTLE_ROUNDS_MAX: usize = 100_000;

/// All decisions of one mirror node.
#[derive(Debug)]
pub struct Node {
    inventory: Driven<Inventory>,
    intercept: Driven<Intercept>,
    bootstrap: Driven<Bootstrap>,
    membership: Driven<Membership>,
    directory: Driven<Directory>,
    fetch: Driven<Fetch>,
    health: Driven<Health>,
    exchanges: BTreeMap<ExchangeId, Exchange>,
    next_exchange: u64,
    lookups: BTreeMap<LookupId, Asker>,
    malformed: BTreeMap<PeerId, Instant>,
    ready: bool,
    shutdown_delay: Duration,
    shutdown: Option<Shutdown>,
    /// When it was called last.
    called_at: Instant,
    outputs: VecDeque<Output>,
}

macro_rules! machines {
    ($($machine:ty: $event:ty),+) => {
        $(impl Machine for $machine {
            type Event = $event;

            fn poll_event(&mut self) -> Option<$event> {
                self.poll_event()
            }

            fn poll_timeout(&self) -> Option<Instant> {
                self.poll_timeout()
            }
        })+
    };
}

machines! {
    Inventory: inventory::Event,
    Intercept: intercept::Event,
    Bootstrap: bootstrap::Event,
    Membership: membership::Event,
    Directory: directory::Event,
    Fetch: fetch::Event
}

/// Judges peers when it is asked.
impl Machine for Health {
    type Event = Notice;

    fn poll_event(&mut self) -> Option<Notice> {
        self.poll_event()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

/// What a control message was sent for.
#[derive(Clone, Copy, Debug)]
enum Exchange {
    Swim(PeerId),
    Compare(PeerId),
    Directory(u64),
}

/// Who waits for the answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Pull(PullId),
    Person { question: QuestionId, key: Key },
}

/// How far the end of the process is.
#[derive(Clone, Copy, Debug)]
enum Shutdown {
    /// Going on as before, not ready, until those who lead clients here have learnt of it.
    Delayed { until: Instant },
    /// Waiting for other nodes to take note, but no longer than this.
    Leaving { until: Instant },
    /// [`Output::ShutdownComplete`] was given.
    Complete,
}

impl Node {
    /// Starts a node; equal arguments and inputs give equal outputs.
    #[must_use]
    pub fn new(now: Instant, config: Config, seed: u64) -> Self {
        let me = Member {
            peer: config.peer,
            generation: config.started_at_unix_ms,
            addrs: Arc::new([]),
            router_port: config.router_port,
            registry_port: config.registry_port,
            zone: config.zone.clone(),
        };
        let mut node = Self {
            intercept: Driven::new(Intercept::new(config.filters.clone())),
            inventory: Driven::new(Inventory::new(config.filters, seed)),
            bootstrap: Driven::new(Bootstrap::new(config.peer, seed)),
            membership: Driven::new(Membership::new(me, seed)),
            directory: Driven::new(Directory::new(config.peer, config.zone, seed, config.resolve_timeout)),
            fetch: Driven::new(Fetch::new(seed, config.peer, config.resolve_retries)),
            health: Driven::new(Health::new(seed)),
            exchanges: BTreeMap::new(),
            next_exchange: 0,
            lookups: BTreeMap::new(),
            malformed: BTreeMap::new(),
            ready: false,
            shutdown_delay: config.shutdown_delay,
            shutdown: None,
            called_at: now,
            outputs: VecDeque::new(),
        };
        node.membership.wait_for_addrs(now);
        node.bootstrap.start(now);
        node.settle(now);
        node
    }

    /// Applies one input. `now` must not go backwards between calls.
    pub fn handle(&mut self, now: Instant, input: Input) {
        self.notice_pause(now);
        match input {
            Input::ContainerdConnected { version } => self.inventory.on_connected(now, version),
            Input::ContainerdDisconnected { cause } => self.inventory.on_disconnected(now, cause),
            Input::Listed(listing) => self.inventory.on_listed(now, listing),
            Input::ContainerdProbed => self.inventory.on_probed(now),
            Input::ContainerdProbeFailed { cause } => self.inventory.on_probe_failed(now, cause),
            Input::ListFailed { cause } => self.inventory.on_list_failed(now, &cause),
            Input::ImageChanged(image) => {
                self.intercept.on_image_changed(now, &image);
                self.inventory.on_image_changed(now, &image);
            }
            Input::ImageDeleted { name } => self.inventory.on_image_deleted(now, &name),
            Input::BlobCommitted { digest } => {
                // containerd commits only what has the right digest: whoever sent it sent the
                // right bytes, even if the blob is of another namespace or gone again at once.
                self.fetch.on_content_appeared(now, &digest, &mut self.health);
                self.intercept.on_blob_committed(now, digest);
                self.inventory.on_blob_committed(now, &digest);
            }
            Input::BlobRemoved { digest } => self.inventory.on_blob_removed(now, &digest),
            Input::ContentWatched => self.inventory.on_content_watched(now),
            Input::WatchLost { cause } => self.inventory.on_watch_lost(now, cause),
            Input::ChangesMissed { .. } => self.inventory.on_changes_missed(now),
            Input::Inspected { digest, outcome } => {
                self.intercept.on_inspected(now, &digest, &outcome);
                self.inventory.on_inspected(now, &digest, outcome);
            }
            Input::ManifestRead { digest, outcome } => self.inventory.on_manifest_read(now, &digest, outcome),
            Input::ContentUnreadable { digest } => self.inventory.on_content_unreadable(now, &digest),

            Input::ListenAddrsChanged { addrs } => self.membership.set_addrs(now, addrs),
            Input::BootstrapResolved { addrs } => self.bootstrap.on_resolved(now, addrs),
            Input::BootstrapFailed { cause } => self.bootstrap.on_failed(now, &cause),
            Input::Dialed { addr, peer } => self.bootstrap.on_dialed(now, addr, peer),
            Input::DialFailed { addr, .. } => self.bootstrap.on_dial_failed(now, addr),
            Input::MessageReceived { from, exchange, message } => {
                let reply = self.answer(now, from, &message);
                self.outputs.push_back(Output::Reply { exchange, message: reply.encode() });
            }
            Input::ReplyReceived { exchange, message } => self.receive_reply(now, exchange, &message),
            Input::SendFailed { exchange, .. } => self.fail_exchange(now, exchange),

            Input::PullRequested { pull, key, digest, kind, whole } => {
                if let Some(digest) = digest {
                    self.intercept.on_requested(now, digest);
                }
                self.fetch.on_requested(now, pull, key, digest, kind, whole, &mut self.health);
            }
            Input::FetchAnswered { pull, attempt, body_bytes, backlog_bytes } => {
                self.fetch.on_answered(now, pull, attempt, body_bytes, backlog_bytes, &mut self.health);
            }
            Input::FetchFailed { pull, attempt, cause } => {
                self.fetch.on_failed(now, pull, attempt, cause, &mut self.health);
            }
            Input::FetchProgressed { pull, attempt, bytes, starved } => {
                self.fetch.on_progressed(now, pull, attempt, bytes, starved, &mut self.health);
            }
            Input::FetchCompleted { pull, attempt, bytes } => {
                self.fetch.on_completed(now, pull, attempt, bytes, &mut self.health);
            }
            Input::PullAbandoned { pull } => self.fetch.on_abandoned(now, pull, &mut self.health),

            Input::HoldersAsked { question, key } => self.look_for_person(now, question, key),

            Input::ShutdownRequested => self.begin_shutdown(now),
        }
        self.settle(now);
    }

    /// Sees whether this process was paused before it was called: something was due, and nobody called.
    fn notice_pause(&mut self, now: Instant) {
        let called_at = std::mem::replace(&mut self.called_at, now);
        // As for most calls, which need not look for what is due.
        if now.saturating_duration_since(called_at) < PAUSE_MIN {
            return;
        }
        let Some((due, _)) = self.poll_timeout() else { return };
        let lasted = now.saturating_duration_since(due.max(called_at));
        if lasted >= PAUSE_MIN {
            self.directory.on_paused(now);
            self.fetch.on_paused(now, lasted, &mut self.health);
            self.settle(now);
        }
    }

    /// Fires everything due at `now`. Early, late and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.notice_pause(now);
        if self.inventory.is_due(now) {
            self.inventory.handle_timeout(now);
        }
        if self.intercept.is_due(now) {
            self.intercept.handle_timeout(now);
        }
        if self.bootstrap.is_due(now) {
            self.bootstrap.handle_timeout(now);
        }
        if self.membership.is_due(now) {
            self.membership.handle_timeout(now);
        }
        if self.directory.is_due(now) {
            self.directory.handle_timeout(now);
        }
        if self.fetch.is_due(now) {
            self.fetch.handle_timeout(now, &mut self.health);
        }
        if matches!(self.shutdown, Some(Shutdown::Delayed { until }) if until <= now) {
            self.leave(now);
        }
        self.settle(now);
    }

    /// When to call [`Node::handle_timeout`] next, and what for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, Wake)> {
        let shutdown = match self.shutdown {
            Some(Shutdown::Delayed { until } | Shutdown::Leaving { until }) => Some(until),
            Some(Shutdown::Complete) | None => None,
        };
        [
            (self.inventory.due(), Wake::Inventory),
            (self.intercept.due(), Wake::Intercept),
            (self.bootstrap.due(), Wake::Bootstrap),
            (self.membership.due(), Wake::Membership),
            (self.directory.due(), Wake::Directory),
            (self.fetch.due(), Wake::Fetch),
            (shutdown, Wake::Shutdown),
        ]
        .into_iter()
        .filter_map(|(at, wake)| at.map(|at| (at, wake)))
        .min_by_key(|(at, _)| *at)
    }

    /// Next action in order of decision; drain to `None` after every `handle*`.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What the node knows, for metrics and the operator.
    #[must_use]
    pub fn report(&self, now: Instant) -> Report {
        Report {
            ready: self.ready,
            me: self.membership.me().clone(),
            members: self.membership.members().cloned().collect(),
            suspected: self.membership.suspected().collect(),
            inventory: self.inventory.report(),
            bypassed_images: self.intercept.bypassed_images(),
            directory: self.directory.report(),
            peers: self.health.report(now),
            pulls: self.fetch.in_flight(),
        }
    }

    /// What the node holds and what it knows of others as an owner, key by key: up to a million
    /// entries, so for tests and simulations that compare nodes.
    #[must_use]
    pub fn directory_contents(&self) -> DirectoryContents {
        self.directory.contents()
    }

    /// Passes events between the machines until none has any left.
    fn settle(&mut self, now: Instant) {
        // One listing can make a few for each image and content, but nothing that follows from
        // them comes back to the inventory.
        while let Some(event) = self.inventory.poll_event() {
            self.route_inventory(now, event);
        }
        while let Some(event) = self.intercept.poll_event() {
            self.outputs.push_back(match event {
                intercept::Event::Inspect { digest } => inspect(digest),
                intercept::Event::Notice(notice) => Output::Notice(notice),
            });
        }
        for _ in 0..SETTLE_ROUNDS_MAX {
            self.settle_view();
            if let Some(event) = self.bootstrap.poll_event() {
                self.route_bootstrap(now, event);
            } else if let Some(event) = self.membership.poll_event() {
                self.route_membership(now, event);
            } else if let Some(event) = self.directory.poll_event() {
                self.route_directory(now, event);
            } else if let Some(event) = self.fetch.poll_event() {
                self.route_fetch(now, event);
            } else if let Some(notice) = self.health.poll_event() {
                self.outputs.push_back(Output::Notice(notice));
            } else {
                self.settle_process(now);
                return;
            }
        }
        unreachable!("machines answered each other {SETTLE_ROUNDS_MAX} times after one input");
    }

    /// Tells the directory whether this node knows all members.
    fn settle_view(&mut self) {
        if !self.membership.is_touched() && !self.bootstrap.is_touched() {
            return;
        }
        // A newcomer to a large cluster knows few members at first, and one that has not
        // looked yet none.
        let is_complete = match self.membership.len() {
            0 => self.bootstrap.found_nobody(),
            _ => self.membership.is_complete(),
        };
        if is_complete != self.directory.is_view_complete() {
            self.directory.set_view_complete(is_complete);
        }
    }

    fn settle_process(&mut self, now: Instant) {
        if self.inventory.is_touched() || self.shutdown.is_some() {
            let ready = self.inventory.is_listed() && self.shutdown.is_none();
            if ready != self.ready {
                self.ready = ready;
                self.outputs.push_back(Output::SetReady { ready });
            }
        }
        if let Some(Shutdown::Leaving { until }) = self.shutdown
            && (self.directory.goodbyes_in_flight() == 0 || until <= now)
        {
            self.shutdown = Some(Shutdown::Complete);
            self.outputs.push_back(Output::ShutdownComplete);
        }
        self.inventory.settle();
        self.intercept.settle();
        self.bootstrap.settle();
        self.membership.settle();
        self.directory.settle();
        self.fetch.settle();
        self.health.settle();
    }

    fn route_inventory(&mut self, now: Instant, event: inventory::Event) {
        let output = match event {
            inventory::Event::Hold(key) => return self.directory.hold(now, key),
            inventory::Event::Release(key) => return self.directory.release(now, key),
            inventory::Event::ServeContent { digest, size } => {
                self.fetch.on_content_appeared(now, &digest, &mut self.health);
                Output::ServeContent { digest, size }
            }
            inventory::Event::StopServingContent { digest } => Output::StopServingContent { digest },
            inventory::Event::ServeTag { name, digest } => Output::ServeTag { name, digest },
            inventory::Event::StopServingTag { name } => Output::StopServingTag { name },
            inventory::Event::ConnectContainerd => {
                Output::ConnectContainerd { timeout: inventory::CONNECT_TIMEOUT }
            }
            inventory::Event::ProbeContainerd => {
                Output::ProbeContainerd { timeout: inventory::PROBE_TIMEOUT }
            }
            inventory::Event::List => Output::List { timeout: inventory::LIST_TIMEOUT },
            inventory::Event::Inspect { digest } => inspect(digest),
            inventory::Event::ReadManifest { digest } => {
                Output::ReadManifest { digest, timeout: inventory::READ_TIMEOUT }
            }
            inventory::Event::WatchContent { scan } => Output::WatchContent { scan },
            inventory::Event::Notice(notice) => Output::Notice(notice),
        };
        self.outputs.push_back(output);
    }

    fn route_bootstrap(&mut self, now: Instant, event: bootstrap::Event) {
        let output = match event {
            bootstrap::Event::Join { peer, addr } => return self.membership.join(now, peer, addr),
            bootstrap::Event::Resolve => Output::ResolveBootstrap { timeout: bootstrap::RESOLVE_TIMEOUT },
            bootstrap::Event::Dial { addr, peer, timeout } => Output::Dial { addr, peer, timeout },
            bootstrap::Event::Notice(notice) => Output::Notice(notice),
        };
        self.outputs.push_back(output);
    }

    fn route_membership(&mut self, now: Instant, event: membership::Event) {
        match event {
            membership::Event::Send { to, addrs, packet } => {
                self.send(now, Exchange::Swim(to), to, addrs, &Request::Swim(packet), SWIM_TIMEOUT);
            }
            membership::Event::Compare { to, addrs, view, after } => {
                let request = Request::Compare { view, after };
                self.send(now, Exchange::Compare(to), to, addrs, &request, SWIM_TIMEOUT);
            }
            membership::Event::Up(member) => {
                self.directory.member_up(now, member.peer, member.zone.clone());
                self.bootstrap.on_members(now, self.membership.len());
                self.outputs.push_back(Output::Notice(Notice::MemberUp { member }));
            }
            membership::Event::Changed(member) => {
                self.directory.member_changed(now, member.peer, member.zone.clone());
                self.outputs.push_back(Output::Notice(Notice::MemberUp { member }));
            }
            membership::Event::Down(peer) => {
                self.directory.member_down(now, peer);
                self.fetch.on_peer_down(now, &peer, &mut self.health);
                self.health.on_member_down(&peer);
                self.bootstrap.on_members(now, self.membership.len());
                self.outputs.push_back(Output::Disconnect { peer });
                self.outputs.push_back(Output::Notice(Notice::MemberDown { peer }));
            }
        }
    }

    fn route_directory(&mut self, now: Instant, event: directory::Event) {
        match event {
            directory::Event::Send { exchange, to, request, timeout } => {
                let addrs = self.membership.member(&to).map(Member::router_addrs).unwrap_or_default();
                self.send(now, Exchange::Directory(exchange), to, addrs, &request, timeout);
            }
            directory::Event::Answered { lookup, holders, outcome } => {
                let is_certain = outcome == directory::Outcome::Definitive;
                match self.lookups.remove(&lookup) {
                    Some(Asker::Pull(pull)) => {
                        let candidates = holders.iter().filter_map(|peer| self.candidate(peer)).collect();
                        self.fetch.on_holders(now, pull, candidates, is_certain, &mut self.health);
                    }
                    Some(Asker::Person { question, key }) => {
                        self.tell_holders(question, &key, holders, is_certain);
                    }
                    None => {}
                }
            }
        }
    }

    fn look_for_person(&mut self, now: Instant, question: QuestionId, key: Key) {
        let is_of_person = |asker: &&Asker| matches!(asker, Asker::Person { .. });
        if self.lookups.values().filter(is_of_person).count() >= QUESTIONS_MAX {
            return self.tell_holders(question, &key, Vec::new(), false);
        }
        let lookup = self.directory.lookup(now, key);
        self.lookups.insert(lookup, Asker::Person { question, key });
    }

    fn tell_holders(&mut self, question: QuestionId, key: &Key, others: Vec<PeerId>, is_certain: bool) {
        let is_held_here = self.directory.holds(key);
        let found = FoundHolders { is_held_here, others, is_certain };
        self.outputs.push_back(Output::TellHolders { question, found });
    }

    fn route_fetch(&mut self, now: Instant, event: fetch::Event) {
        match event {
            fetch::Event::Lookup { pull, key } => {
                let lookup = self.directory.lookup(now, key);
                self.lookups.insert(lookup, Asker::Pull(pull));
            }
            fetch::Event::CancelLookup { pull } => {
                let lookups = self.lookups.iter().filter(|(_, of)| **of == Asker::Pull(pull));
                let lookups: Vec<_> = lookups.map(|(lookup, _)| *lookup).collect();
                for lookup in lookups {
                    self.lookups.remove(&lookup);
                    self.directory.cancel_lookup(lookup);
                }
            }
            fetch::Event::Output(output) => self.outputs.push_back(output),
        }
    }

    /// A holder as the pulls see it: its addresses in the families this node has itself.
    fn candidate(&self, peer: &PeerId) -> Option<Candidate> {
        let member = self.membership.member(peer)?;
        let me = self.membership.me();
        let reachable =
            |ip: IpAddr| me.addrs.is_empty() || me.addrs.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
        let mut addrs = member.registry_addrs();
        addrs.retain(|addr| reachable(addr.ip()));
        let same_zone = me.zone.is_some() && me.zone == member.zone;
        Some(Candidate { peer: *peer, addrs, same_zone })
    }

    fn send(
        &mut self,
        now: Instant,
        purpose: Exchange,
        to: PeerId,
        addrs: Vec<SocketAddr>,
        request: &Request,
        timeout: Duration,
    ) {
        if self.exchanges.len() >= EXCHANGES_MAX {
            return self.end_exchange(now, purpose, None);
        }
        let exchange = ExchangeId(self.next_exchange);
        self.next_exchange += 1;
        self.exchanges.insert(exchange, purpose);
        let timeout = timeout.min(EXCHANGE_TIMEOUT_MAX);
        self.outputs.push_back(Output::Send { to, addrs, exchange, message: request.encode(), timeout });
    }

    fn answer(&mut self, now: Instant, from: PeerId, message: &[u8]) -> Reply {
        match Request::decode(message) {
            Ok(Request::Swim(packet)) => match self.membership.on_message(now, from, &packet) {
                Ok(packet) => packet.map_or(Reply::Ack, Reply::Swim),
                Err(error) => {
                    self.note_malformed(now, from, error.to_string());
                    Reply::Unsupported
                }
            },
            Ok(Request::Announce(announce)) => self.directory.on_announce(now, from, &announce),
            Ok(Request::Lookup { key }) => self.directory.on_lookup(now, from, key),
            Ok(Request::Goodbye { generation }) => {
                if self.membership.on_goodbye(now, from, generation) {
                    self.directory.on_goodbye(now, from);
                }
                Reply::Ack
            }
            Ok(Request::Compare { view, after }) => {
                Reply::Compared(self.membership.on_compare(now, from, view, after))
            }
            // Of a later release: nothing is wrong with it.
            Err(MessageError::Unsupported { .. }) => Reply::Unsupported,
            Err(error) => {
                self.note_malformed(now, from, error.to_string());
                Reply::Unsupported
            }
        }
    }

    fn receive_reply(&mut self, now: Instant, exchange: ExchangeId, message: &[u8]) {
        let Some(purpose) = self.exchanges.remove(&exchange) else { return };
        // A reply that makes no sense is worth as much as none: the machine that waits for it
        // asks another, or again.
        self.end_exchange(now, purpose, Reply::decode(message).ok());
    }

    fn fail_exchange(&mut self, now: Instant, exchange: ExchangeId) {
        if let Some(purpose) = self.exchanges.remove(&exchange) {
            self.end_exchange(now, purpose, None);
        }
    }

    fn end_exchange(&mut self, now: Instant, purpose: Exchange, reply: Option<Reply>) {
        match (purpose, reply) {
            (Exchange::Swim(from), Some(Reply::Swim(packet))) => {
                if let Err(error) = self.membership.on_reply(now, from, &packet) {
                    self.note_malformed(now, from, error.to_string());
                }
            }
            (Exchange::Compare(from), Some(Reply::Compared(compared))) => {
                if let Err(error) = self.membership.on_compared(now, from, &compared) {
                    self.note_malformed(now, from, error.to_string());
                }
            }
            // SWIM counts on packets being lost, and views are soon compared again.
            (Exchange::Swim(_) | Exchange::Compare(_), _) => {}
            (Exchange::Directory(exchange), Some(reply)) => self.directory.on_reply(now, exchange, reply),
            (Exchange::Directory(exchange), None) => self.directory.on_failed(now, exchange),
        }
    }

    fn note_malformed(&mut self, now: Instant, peer: PeerId, cause: String) {
        self.malformed.retain(|_, said| now.saturating_duration_since(*said) < MALFORMED_NOTICE_INTERVAL);
        if self.malformed.len() < MALFORMED_PEERS_MAX && !self.malformed.contains_key(&peer) {
            self.malformed.insert(peer, now);
            self.outputs.push_back(Output::Notice(Notice::MessageMalformed { peer, cause }));
        }
    }

    fn begin_shutdown(&mut self, now: Instant) {
        if self.shutdown.is_some() {
            return;
        }
        if self.shutdown_delay.is_zero() {
            self.leave(now);
        } else {
            self.shutdown = Some(Shutdown::Delayed { until: now + self.shutdown_delay });
        }
    }

    /// Tells everyone, so that nobody asks this node again; transfers go on.
    fn leave(&mut self, now: Instant) {
        self.shutdown = Some(Shutdown::Leaving { until: now + FAREWELL_MAX });
        self.membership.leave(now);
        self.directory.leave(now, self.membership.me().generation);
        self.fetch.shutdown();
    }
}

/// The same question whichever machine asks it.
const fn inspect(digest: Digest) -> Output {
    Output::Inspect { digest, timeout: inventory::INSPECT_TIMEOUT }
}
