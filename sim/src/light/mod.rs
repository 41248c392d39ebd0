//! Runs a scenario with cores alone: no HTTP, no tasks, no ticks. Time jumps from one event to
//! the next, so that a day of a quiet cluster, or a busy minute of a large one, takes seconds.
//!
//! What lies between the cores is modelled here: messages with latency, a peer's registry that
//! has or has not what its core ordered it to serve, bodies that flow at a rate, and a containerd
//! that pulls.

mod control;
mod event;
mod faults;
mod later;
mod lockstep;
mod machine;
mod meter;
mod names;
mod pull;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use spegel_core::{Config, Input, Node, Notice, Output, PeerId};
use spegel_io::clock;

pub use self::meter::{Measured, Traffic};
pub(crate) use self::pull::BYTES_PER_SECOND;
use self::{
    event::{Event, Queue, Wakes},
    machine::{Machine, Process, machine},
    meter::Meter,
    pull::Client,
};
use crate::{
    containerd::{self, Containerd},
    fault::{Dns, Fault, Lossy, happens},
    invariant::{Contents, Watch, agreement, agreement_by_key},
    node::{DNS_LATENCY, node_config, node_seed},
    scenario::{Outcome, Pulled, Scenario},
    trace::Trace,
    upstream::Upstream,
};

/// How long a message travels; if a scenario has a lookahead, at least that, and up to twice as
/// long.
const LATENCY_MIN_US: u64 = 100;
const LATENCY_MAX_US: u64 = 4000;

/// How far virtual time may advance before invariants are checked again.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// How often each node is asked for its report.
const REPORT_INTERVAL: Duration = Duration::from_secs(600);

/// Most events at one moment of virtual time: more and the cores keep each other busy for ever.
const EVENTS_PER_MOMENT_MAX: u32 = 1_000_000;

/// How long until a process that lost a connection, or news of containerd, hears of it.
const NEWS_LATENCY: Duration = Duration::from_millis(1);

/// Where a node is in the list of them.
type Index = usize;

/// How far a packet comes.
enum Reach {
    Open,
    /// A kernel is there, but no process.
    Refused,
    /// Nothing comes back.
    Silent,
    /// The process is paused until then.
    Later(Duration),
}

struct World<'a> {
    plan: &'a Scenario,
    seed: u64,
    rng: StdRng,
    base: Instant,
    now: Duration,
    events: Queue,
    wakes: Wakes,
    machines: Vec<Machine>,
    by_peer: HashMap<PeerId, Index>,
    by_name: BTreeMap<String, Index>,
    listed: Vec<(Duration, Index)>,
    /// Pairs that are cut off from each other, and by how many partitions.
    cuts: BTreeMap<(Index, Index), u32>,
    lossy: Lossy,
    upstream: Upstream,
    clients: Vec<Client>,
    watch: Watch,
    trace: Trace,
    outcome: Counts,
    meter: Option<Meter>,
    /// Nothing is planned for an earlier moment while something is carried out that a core wants.
    not_before: Duration,
}

#[derive(Default)]
struct Counts {
    pulls: Vec<Pulled>,
    ready: Vec<(String, Duration)>,
    unsupported: u64,
    notices: Vec<(Duration, String, Notice)>,
    fetches: Vec<(Duration, String)>,
}

/// Runs a scenario from a seed.
#[must_use]
pub fn run(plan: &Scenario, seed: u64, trace: Trace) -> Outcome {
    let mut world = World::new(plan, seed, trace);
    let error = world.run();
    world.outcome(error)
}

/// Runs a scenario from a seed without a trace, and counts what it costs each node, at each of
/// the `moments` and at the end. What members come and go is counted, not kept as notices.
///
/// On so many `threads`, this one among them, which does not change what comes of it; if `None`,
/// one event after the other. `freed` drops a core, and tells how many bytes of memory it had.
///
/// # Panics
///
/// If there are to be threads, and the plan has no lookahead, or faults that pause a process or
/// affect messages.
#[must_use]
pub fn measure(
    plan: &Scenario,
    seed: u64,
    moments: &[Duration],
    threads: Option<usize>,
    freed: fn(Node) -> usize,
) -> (Outcome, Measured) {
    let mut world = World::new(plan, seed, Trace::none());
    world.meter = Some(Meter::new(world.machines.len()));
    world.watch.spare();
    for at in moments {
        world.at(*at, Event::Sample);
    }
    let error = match threads {
        None => world.run(),
        Some(threads) => {
            assert!(lockstep::suits(plan), "a plan that threads cannot share");
            lockstep::with_crew(threads, plan.nodes.len(), world.base, |crew| world.run_in_lockstep(crew))
        }
    };
    let mut outcome = world.outcome(error);
    // They share memory with the cores.
    outcome.reports.values_mut().for_each(|report| report.members = Vec::new());
    let mut measured = world.meter.take().map(|meter| meter.measured).unwrap_or_default();
    for process in world.machines.iter_mut().filter_map(|machine| machine.process.take()) {
        measured.core_bytes.push(freed(process.node));
    }
    plan.judge(&mut outcome);
    (outcome, measured)
}

impl<'a> World<'a> {
    fn new(plan: &'a Scenario, seed: u64, trace: Trace) -> Self {
        let machines: Vec<_> =
            plan.nodes.iter().enumerate().map(|(n, node)| machine(n, &node.name)).collect();
        let by_name: BTreeMap<_, _> =
            machines.iter().enumerate().map(|(n, machine)| (machine.name.clone(), n)).collect();
        for (name, image) in &plan.preloads {
            let machine = by_name.get(name).expect("a scenario preloads its own nodes");
            machines[*machine].containerd.preload(&plan.images[*image]);
        }
        let by_peer = machines.iter().enumerate().map(|(n, machine)| (machine.peer, n)).collect();
        for machine in &machines {
            trace.name(machine.peer, &machine.name);
        }
        let mut world = Self {
            plan,
            seed,
            rng: StdRng::seed_from_u64(seed),
            base: clock::now(),
            now: Duration::ZERO,
            events: Queue::default(),
            wakes: Wakes::new(machines.len()),
            machines,
            by_peer,
            by_name,
            listed: Vec::new(),
            cuts: BTreeMap::new(),
            lossy: Lossy::NONE,
            upstream: Upstream::default(),
            clients: Vec::new(),
            watch: Watch::new(plan.quiet_from),
            trace,
            outcome: Counts::default(),
            meter: None,
            not_before: Duration::ZERO,
        };
        if !plan.starts_disturb {
            world.watch.expect_of_newcomers();
        }
        for (index, (at, _)) in plan.faults.iter().enumerate() {
            world.at(*at, Event::Fault { index });
        }
        for (node, planned) in plan.nodes.iter().enumerate() {
            world.at(planned.starts_at, Event::Start { node });
        }
        for (index, pull) in plan.pulls.iter().enumerate() {
            world.at(pull.at, Event::Pull { index });
        }
        world.at(REPORT_INTERVAL, Event::Report);
        world
    }

    fn run(&mut self) -> Option<String> {
        let (mut checked_at, mut in_this_moment) = (Duration::ZERO, 0);
        while let Some(at) = self.next_at() {
            in_this_moment = if at > self.now { 0 } else { in_this_moment + 1 };
            if in_this_moment > EVENTS_PER_MOMENT_MAX {
                return Some(Self::stands_still(at));
            }
            self.now = at;
            if let Some(event) = self.events.pop_at(at) {
                self.happen(event);
            } else if let Some(node) = self.wakes.pop() {
                self.wake(node);
            }
            if let Some(what) = self.checked(&mut checked_at) {
                return Some(what);
            }
        }
        self.now = self.plan.ends_at;
        None
    }

    /// When something happens next, if anything does before the end.
    fn next_at(&mut self) -> Option<Duration> {
        let first = self.events.next_at().into_iter().chain(self.wakes.next_at()).min();
        first.filter(|at| *at < self.plan.ends_at)
    }

    fn stands_still(at: Duration) -> String {
        format!("at {at:?} time stands still: the cores keep each other busy")
    }

    /// What broke an invariant, looked for now and then.
    fn checked(&mut self, checked_at: &mut Duration) -> Option<String> {
        if *checked_at + CHECK_INTERVAL <= self.now {
            *checked_at = self.now;
            self.watch.check(self.now);
        }
        self.watch.violation().map(str::to_owned)
    }

    fn outcome(&mut self, error: Option<String>) -> Outcome {
        let (base, now) = (self.base, self.now);
        let running = self.machines.iter().filter_map(|machine| Some((machine, machine.process.as_ref()?)));
        let reports = running
            .map(|(machine, process)| (machine.name.clone(), process.node.report(machine.clock(base, now))));
        let reports: BTreeMap<_, _> = reports.collect();
        let disagreement = if self.plan.agrees_at_end {
            agreement(&reports).and_then(|()| agreement_by_key(&self.contents())).err()
        } else {
            None
        };
        let restless = self.watch.at_rest(now).err();
        let reads = self.machines.iter();
        let counts = std::mem::take(&mut self.outcome);
        Outcome {
            trace: self.trace.clone(),
            pulls: counts.pulls,
            ready: counts.ready,
            upstream: self.upstream.counts(),
            unsupported: counts.unsupported,
            notices: counts.notices,
            work: self.watch.work(),
            fetches: counts.fetches,
            reports,
            manifest_reads: reads.map(|it| (it.name.clone(), it.containerd.manifest_reads())).collect(),
            error: error.or(disagreement).or(restless),
        }
    }

    /// The nodes that run, key by key.
    fn contents(&self) -> BTreeMap<String, Contents> {
        let contents = |machine: &Machine| {
            let directory = machine.process.as_ref()?.node.directory_contents();
            let has = machine.containerd.is_running().then(|| machine.containerd.keys());
            Some((machine.name.clone(), Contents { peer: machine.peer, has, directory }))
        };
        self.machines.iter().filter_map(contents).collect()
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.events.push(at.max(self.not_before), event);
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// How long a message travels this time.
    fn latency(&mut self) -> Duration {
        let lookahead = self.plan.lookahead.as_micros() as u64;
        let (least, most) = (LATENCY_MIN_US.max(lookahead), LATENCY_MAX_US.max(2 * lookahead));
        Duration::from_micros(self.rng.random_range(least..most))
    }

    fn index_of(&self, name: &str) -> Index {
        *self.by_name.get(name).expect("a scenario's pulls and faults name its own nodes")
    }

    fn percent(&mut self, percent: u8) -> bool {
        happens(percent, &mut self.rng)
    }

    fn note(&self, node: Index, what: &str) {
        self.trace.note(self.now, &self.machines[node].name, what);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start { node } => self.start(node),
            Event::Fault { index } => {
                let fault = self.plan.faults[index].1.clone();
                self.commit_fault(&fault);
            }
            Event::Pull { index } => self.begin_client(index),
            Event::Thaw { node } => self.wake(node),
            Event::Report => self.report(),
            Event::Sample => self.meter.as_mut().expect("samples are planned for a meter").sample(),
            Event::Input { .. } | Event::Request { .. } | Event::Reply { .. } => {
                if let Some((node, arrival)) = self.arrival(event) {
                    self.deliver(node, arrival);
                }
            }
            Event::Containerd { node, life, order } => {
                if self.machines[node].life == life {
                    self.ask_containerd(node, order);
                }
            }
            Event::Resolve { node, life } => {
                if self.machines[node].life == life {
                    let answer = self.resolve(node);
                    self.handle(node, answer);
                }
            }
            Event::Dial { node, life, addr, expected, target } => {
                self.arrive_dial(node, life, addr, expected, target);
            }
            Event::Ask { node, life, pull, attempt, holder, skip, check_bytes_max } => {
                self.arrive_ask(node, life, pull, attempt, holder, skip, check_bytes_max);
            }
            Event::Body { node, life, pull, attempt, interval } => {
                self.flow(node, life, pull, attempt, interval);
            }
            Event::Client { client, turn } => self.advance(client, turn),
            Event::Upstream { client, turn } => self.arrive_upstream(client, turn),
            Event::ProcessEnd { node, life } => {
                if self.machines[node].life == life {
                    self.end_process(node);
                    if self.machines[node].start_again {
                        self.start(node);
                    }
                }
            }
        }
    }

    fn start(&mut self, node: Index) {
        let (now, seed) = (self.now, self.seed);
        let machine = &mut self.machines[node];
        if machine.process.is_some() {
            machine.start_again = machine.stopping;
            return;
        }
        machine.powered = true;
        machine.stopping = false;
        machine.is_later = machine.is_upgraded;
        machine.start_again = false;
        machine.life += 1;
        // Each process draws other numbers than the one before.
        let seed = node_seed(seed.wrapping_add(machine.life << 32), &machine.name);
        let config = Config {
            shutdown_delay: self.plan.shutdown_delay,
            ..node_config(machine.peer, now, machine.ahead_seconds)
        };
        let core = Node::new(machine.clock(self.base, now), config, seed);
        machine.process = Some(Box::new(Process::new(core)));
        self.watch.started(now, &machine.name, machine.peer, &machine.containerd);
        let ip = machine.ip;
        if !self.listed.iter().any(|(_, listed)| *listed == node) {
            self.listed.push((now, node));
        }
        if let Some(meter) = &mut self.meter {
            meter.started(now, node);
        }
        self.note(node, "process started");
        self.handle(node, Input::ListenAddrsChanged { addrs: vec![ip] });
    }

    fn end_process(&mut self, node: Index) {
        let machine = &mut self.machines[node];
        if machine.process.take().is_none() {
            return;
        }
        machine.life += 1;
        machine.frozen_until = Duration::ZERO;
        machine.containerd.forget_mirror();
        self.wakes.wish(node, None);
        self.watch.ended(self.now, &self.machines[node].name);
        if let Some(meter) = &mut self.meter {
            meter.ended(self.now, node);
        }
        self.note(node, "process ended");
        self.orphan_clients(node);
    }

    /// Something that happens now is an input to a node.
    fn handle(&mut self, node: Index, input: Input) {
        if self.plan.lookahead.is_zero() {
            self.give(node, input);
        } else {
            // Not before all that happens now, so that threads may share what comes of it.
            let life = self.machines[node].life;
            self.after(Duration::ZERO, Event::Input { node, life, input });
        }
    }

    /// Gives an input to a node, or to nobody.
    fn give(&mut self, node: Index, input: Input) {
        let now = self.now;
        let machine = &mut self.machines[node];
        let clock = machine.clock(self.base, now);
        let Some(process) = &mut machine.process else { return };
        if machine.frozen_until > now {
            let (at, life) = (machine.frozen_until, machine.life);
            return self.at(at, Event::Input { node, life, input });
        }
        self.trace.input(now, &machine.name, &input);
        self.watch.input(now, &machine.name, &input);
        process.node.handle(clock, input);
        self.drain(node);
    }

    fn wake(&mut self, node: Index) {
        let now = self.now;
        let machine = &mut self.machines[node];
        let clock = machine.clock(self.base, now);
        let Some(process) = &mut machine.process else { return };
        if machine.frozen_until > now {
            // It is woken by its thaw.
            return;
        }
        for input in process.late(now) {
            self.give(node, input);
        }
        if let Some(process) = &mut self.machines[node].process
            && process.is_due(clock)
        {
            process.node.handle_timeout(clock);
        }
        self.drain(node);
    }

    /// Carries out what a node wants, and notes when it wants to be called next.
    fn drain(&mut self, node: Index) {
        loop {
            let machine = &mut self.machines[node];
            let Some(output) = machine.process.as_mut().and_then(|process| process.node.poll_output()) else {
                break;
            };
            self.carry_out(node, output);
        }
        let (base, now) = (self.base, self.now);
        let machine = &mut self.machines[node];
        let wake_at = machine.process.as_ref().and_then(|process| process.wakes_at(base, machine.slept));
        self.wakes.wish(node, wake_at.map(|at| at.max(now)));
    }

    fn carry_out(&mut self, node: Index, output: Output) {
        let name = &self.machines[node].name;
        self.trace.output(self.now, name, &output);
        self.watch.output(self.now, name, &output);
        self.not_before = self.now + self.plan.lookahead;
        self.perform(node, output);
        self.not_before = Duration::ZERO;
    }

    fn perform(&mut self, node: Index, output: Output) {
        let life = self.machines[node].life;
        if Containerd::is_for(&output) {
            return self.after(containerd::LATENCY, Event::Containerd { node, life, order: output });
        }
        let Some(process) = &mut self.machines[node].process else { return };
        match output {
            Output::ServeContent { digest, size } => drop(process.sizes.insert(digest, size)),
            Output::StopServingContent { digest } => drop(process.sizes.remove(&digest)),
            Output::ServeTag { name, digest } => drop(process.tags.insert(name, digest)),
            Output::StopServingTag { name } => drop(process.tags.remove(&name)),
            Output::ResolveBootstrap { .. } => self.after(DNS_LATENCY, Event::Resolve { node, life }),
            Output::Dial { addr, peer, timeout } => self.dial(node, addr, peer, timeout),
            Output::Send { to, addrs, exchange, message, timeout } => {
                self.send(node, &to, &addrs, exchange, message, timeout);
            }
            Output::Reply { exchange, message } => self.reply(node, exchange, message),
            // Nobody asks in a simulation.
            Output::Disconnect { .. } | Output::TellHolders { .. } => {}
            Output::Fetch { pull, attempt, peer, skip, check_bytes_max, .. } => {
                self.ask(node, pull, attempt, &peer, skip, check_bytes_max);
            }
            Output::CancelFetch { pull, attempt } => {
                if let Some(pull) = process.pulls.get_mut(&pull) {
                    pull.cancel(attempt);
                }
            }
            Output::Forward { pull, attempt, report_interval } => {
                self.forward(node, pull, attempt, report_interval);
            }
            Output::Refuse { pull, .. } => self.refuse(node, pull),
            Output::Truncate { pull, .. } => self.truncate(node, pull),
            Output::SetReady { ready } => {
                let machine = &mut self.machines[node];
                if ready && !std::mem::replace(&mut machine.was_ready, true) {
                    self.outcome.ready.push((machine.name.clone(), self.now));
                }
            }
            Output::ShutdownComplete => {
                if self.machines[node].stopping {
                    self.after(NEWS_LATENCY, Event::ProcessEnd { node, life });
                }
            }
            Output::Notice(notice) => self.notice(node, notice),
            Output::ConnectContainerd { .. }
            | Output::ProbeContainerd { .. }
            | Output::List { .. }
            | Output::Inspect { .. }
            | Output::ReadManifest { .. }
            | Output::WatchContent { .. } => unreachable!("containerd took it"),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are kept as they are")]
    fn notice(&mut self, node: Index, notice: Notice) {
        let change = match &notice {
            Notice::MemberUp { member } => Some((member.peer, true)),
            Notice::MemberDown { peer } => Some((*peer, false)),
            _ => None,
        };
        if let Some(meter) = &mut self.meter
            && let Some((peer, is_member)) = change
        {
            if let Some(other) = self.by_peer.get(&peer) {
                meter.saw(self.now, node, *other, is_member);
            }
            return;
        }
        self.outcome.notices.push((self.now, self.machines[node].name.clone(), notice));
    }

    fn ask_containerd(&mut self, node: Index, order: Output) {
        let machine = &self.machines[node];
        let (life, hangs_for) = (machine.life, machine.containerd_hangs_until.saturating_sub(self.now));
        if hangs_for > Duration::ZERO
            && let Some((timeout, input)) = Containerd::unanswered(&order)
        {
            return if hangs_for < timeout {
                self.after(hangs_for, Event::Containerd { node, life, order });
            } else {
                self.after(timeout, Event::Input { node, life, input });
            };
        }
        if let Some(input) = machine.containerd.answer(&order) {
            self.handle(node, input);
        }
    }

    /// How far something sent by one process to another comes now.
    fn reach(&self, from: Index, to: Index) -> Reach {
        let machine = &self.machines[to];
        let pair = (from.min(to), from.max(to));
        if !machine.powered || machine.asleep_until > self.now || self.cuts.contains_key(&pair) {
            Reach::Silent
        } else if machine.process.is_none() {
            Reach::Refused
        } else if machine.frozen_until > self.now {
            Reach::Later(machine.frozen_until)
        } else {
            Reach::Open
        }
    }

    /// Passes containerd's news on to the mirror of its node.
    fn tell(&mut self, node: Index, news: Vec<Input>) {
        self.watch.content_changed(self.now, &self.machines[node].name);
        let life = self.machines[node].life;
        for input in news {
            self.after(NEWS_LATENCY, Event::Input { node, life, input });
        }
    }

    fn report(&mut self) {
        for machine in &self.machines {
            if let Some(process) = &machine.process {
                self.watch.report(&machine.name, &process.node.report(machine.clock(self.base, self.now)));
            }
        }
        self.after(REPORT_INTERVAL, Event::Report);
    }
}
