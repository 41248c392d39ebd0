//! Runs a scenario on turmoil: the real core, the real registry and peer client, on a simulated
//! network, each node a host with a runtime of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use spegel_core::{Input, Report};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use turmoil::Sim;

use crate::{
    containerd::Containerd,
    control::Wire,
    fault::{Fault, Lossy},
    image::Image,
    invariant::{Watch, agreement},
    kubelet::retry_delay,
    node::{NodeParts, Resolver, elapsed, lock, peer_of},
    node_port::NodePort,
    puller::pull,
    scenario::{FailedTry, NodePlan, Outcome, PullPlan, Pulled, Scenario},
    trace::Trace,
    upstream::Upstream,
};

/// Longest that a message travels between two nodes, if a step of time is not longer.
const LATENCY_MAX: Duration = Duration::from_millis(4);

/// Connections that may wait to be accepted; turmoil panics beyond.
const BACKLOG: usize = 4096;

/// How long containerd waits before it looks whether it is running.
const CONTAINERD_POLL: Duration = Duration::from_secs(1);

/// How often invariants that are not events are checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Runs a scenario from a seed.
#[must_use]
pub fn run(plan: &Scenario, seed: u64, trace: Trace) -> Outcome {
    World::new(plan, seed, trace).run()
}

struct World<'a> {
    plan: &'a Scenario,
    sim: Sim<'a>,
    nodes: Vec<NodeParts>,
    upstream: Upstream,
    wire: Wire,
    trace: Trace,
    watch: Arc<Mutex<Watch>>,
    pulls: Arc<Mutex<Vec<Pulled>>>,
    ready: Arc<Mutex<Vec<(String, Duration)>>>,
    reports: Arc<Mutex<BTreeMap<String, Report>>>,
    is_lossy: bool,
    /// What was frozen, and until when.
    thaws: Vec<(Duration, String)>,
    /// What is wrong with each pair of nodes, the smaller index first.
    links: BTreeMap<(usize, usize), Link>,
    /// Nodes without power.
    vanished: BTreeSet<String>,
}

/// Reasons for which nothing passes between two nodes.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// Partitions: connections are refused.
    cuts: u32,
    /// Nodes that are frozen or without power: silence.
    silences: u32,
}

impl<'a> World<'a> {
    fn new(plan: &'a Scenario, seed: u64, trace: Trace) -> Self {
        let watch = Arc::new(Mutex::new(Watch::new(plan.quiet_from)));
        let (dns, wire) = (Resolver::new(plan.dns, seed), Wire::new(seed));
        let (pulls, ready, upstream) = (Arc::default(), Arc::default(), Upstream::default());
        let (notices, fetches) = (Arc::default(), Arc::default());
        let reports: Arc<Mutex<BTreeMap<String, Report>>> = Arc::default();
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(SystemTime::UNIX_EPOCH)
            .tick_duration(plan.tick)
            .simulation_duration(plan.ends_at * 2)
            .min_message_latency(Duration::ZERO)
            .max_message_latency(LATENCY_MAX)
            .tcp_capacity(BACKLOG)
            .build();
        let mut nodes = Vec::new();
        for node in &plan.nodes {
            let parts = NodeParts {
                name: node.name.clone(),
                seed,
                containerd: Containerd::default(),
                dns: dns.clone(),
                wire: wire.clone(),
                trace: trace.clone(),
                watch: Arc::clone(&watch),
                ready: watch::channel(false).0,
                notices: Arc::clone(&notices),
                fetches: Arc::clone(&fetches),
                running: Arc::default(),
                node_port: NodePort::new(plan.node_ports_lag),
                shutdown_delay: plan.shutdown_delay,
                restart: Arc::default(),
            };
            for (_, image) in plan.preloads.iter().filter(|(name, _)| *name == node.name) {
                parts.containerd.preload(&plan.images[*image]);
            }
            nodes.push(parts.clone());
            let host = Host {
                plan: node.clone(),
                pulls: plan.pulls.iter().filter(|pull| pull.node == node.name).cloned().collect(),
                images: plan.images.clone(),
                upstream: upstream.clone(),
                pulled: Arc::clone(&pulls),
                became_ready: Arc::clone(&ready),
            };
            sim.host(node.name.as_str(), move || host.clone().run(parts.clone()));
        }
        let (ends_at, collected, running) = (plan.ends_at, Arc::clone(&reports), nodes.clone());
        sim.client("scenario", async move {
            sleep(ends_at.saturating_sub(elapsed())).await;
            for node in running {
                let handle = lock(&node.running).clone();
                let Some(handle) = handle else { continue };
                if let Some(report) = handle.reports.report().await {
                    lock(&collected).insert(node.name, report);
                }
            }
            Ok(())
        });
        Self {
            plan,
            sim,
            nodes,
            upstream,
            wire,
            trace,
            watch,
            pulls,
            ready,
            reports,
            is_lossy: false,
            thaws: Vec::new(),
            links: BTreeMap::new(),
            vanished: BTreeSet::new(),
        }
    }

    fn run(mut self) -> Outcome {
        let mut faults = self.plan.faults.clone();
        faults.sort_by_key(|(at, _)| *at);
        let (mut next, mut checked_at) = (0, Duration::ZERO);
        let error = loop {
            let now = self.sim.elapsed();
            while let Some((_, fault)) = faults.get(next).filter(|(at, _)| *at <= now) {
                if let Err(unsupported) = self.commit_fault(now, fault) {
                    panic!("{}: {unsupported}", self.plan.name);
                }
                next += 1;
            }
            self.thaw(now);
            if checked_at + CHECK_INTERVAL <= now {
                checked_at = now;
                lock(&self.watch).check(now);
            }
            if let Some(what) = lock(&self.watch).violation() {
                break Some(what.to_owned());
            }
            match self.sim.step() {
                Ok(false) => {}
                Ok(true) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        drop(self.sim);
        let reports = lock(&self.reports).clone();
        for (name, report) in &reports {
            lock(&self.watch).report(name, report);
        }
        let disagreement = if self.plan.agrees_at_end { agreement(&reports).err() } else { None };
        let name_of = |peer| self.nodes.iter().find(|node| peer_of(&node.name) == peer);
        let shared = self.nodes.first();
        let fetches = shared.map(|node| lock(&node.fetches).clone()).unwrap_or_default();
        let watch = lock(&self.watch);
        let late_violation = watch.violation().map(str::to_owned);
        Outcome {
            trace: self.trace.clone(),
            pulls: lock(&self.pulls).clone(),
            ready: lock(&self.ready).clone(),
            upstream: self.upstream.counts(),
            unsupported: 0,
            notices: shared.map(|node| lock(&node.notices).clone()).unwrap_or_default(),
            work: watch.work(),
            fetches: fetches
                .into_iter()
                .filter_map(|(at, peer)| Some((at, name_of(peer)?.name.clone())))
                .collect(),
            reports,
            manifest_reads: self
                .nodes
                .iter()
                .map(|node| (node.name.clone(), node.containerd.manifest_reads()))
                .collect(),
            error: error
                .or(late_violation)
                .or(disagreement)
                .or_else(|| watch.at_rest(self.plan.ends_at).err()),
        }
    }

    fn node(&self, name: &str) -> &NodeParts {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.expect("a scenario's faults name its own nodes")
    }

    fn commit_fault(&mut self, now: Duration, fault: &Fault) -> Result<(), String> {
        self.trace.note(now, "", &format!("{fault:?}"));
        match fault {
            Fault::Crash { node } => self.crash(now, node),
            Fault::Vanish { node } => {
                // A partition would refuse connections at once; this is silence.
                if self.vanished.insert(node.clone()) {
                    self.change_links_of(node, |link| link.silences += 1);
                }
                self.crash(now, node);
            }
            Fault::Stop { node } => {
                lock(&self.watch).disturbed(now);
                self.node(node).node_port.told_to_end(now);
                if let Some(running) = &*lock(&self.node(node).running) {
                    // One that has no room for this is not going to end well anyhow.
                    let _ = running.inputs.try_send(Input::ShutdownRequested);
                }
            }
            Fault::Start { node } => {
                if self.vanished.remove(node) {
                    self.change_links_of(node, |link| link.silences = link.silences.saturating_sub(1));
                }
                if self.sim.is_host_running(node.as_str()) {
                    self.node(node).restart.notify_one();
                } else {
                    self.sim.bounce(node.as_str());
                }
            }
            Fault::Freeze { node, pause } => {
                self.change_links_of(node, |link| link.silences += 1);
                lock(&self.watch).frozen(node, now, now + *pause);
                self.thaws.push((now + *pause, node.clone()));
            }
            Fault::Partition { left, right } => {
                lock(&self.watch).uneasy();
                self.change_links_between(left, right, |link| link.cuts += 1);
            }
            Fault::Reconnect { left, right } => {
                self.change_links_between(left, right, |link| link.cuts = link.cuts.saturating_sub(1));
                self.become_calm(now);
            }
            Fault::Repair => {
                for pair in self.links.keys().copied().collect::<Vec<_>>() {
                    self.change_link(pair, |link| link.cuts = 0);
                }
                self.become_calm(now);
            }
            Fault::Lossy(lossy) => {
                self.wire.set_lossy(*lossy);
                self.is_lossy = *lossy != Lossy::NONE;
                lock(&self.watch).uneasy();
                self.become_calm(now);
            }
            Fault::Corrupt { node } => self.node(node).containerd.set_corrupt(true),
            Fault::Truthful { node } => self.node(node).containerd.set_corrupt(false),
            Fault::Slow { node, bytes_per_second } => {
                self.node(node).containerd.set_speed(Some(*bytes_per_second));
            }
            Fault::FullSpeed { node } => self.node(node).containerd.set_speed(None),
            Fault::StartContainerd { node } => {
                lock(&self.watch).containerd_started(now, node);
                self.node(node).containerd.start();
            }
            Fault::StopContainerd { node } => {
                let containerd = &self.node(node).containerd;
                containerd.tell_now(containerd.stop());
            }
            Fault::DeleteImage { node, image } => {
                let containerd = &self.node(node).containerd;
                containerd.tell_now(containerd.delete_image(image));
                let mut watch = lock(&self.watch);
                watch.disturbed(now);
                watch.content_changed(now, node);
            }
            Fault::Sideload { node, image } => {
                let containerd = &self.node(node).containerd;
                containerd.tell_now(containerd.sideload(self.plan.image_named(image)));
            }
            Fault::BypassMirror { node } => self.node(node).containerd.bypass_mirror(true),
            Fault::UseMirror { node } => self.node(node).containerd.bypass_mirror(false),
            Fault::CutUpstream => self.upstream.set_cut(true),
            Fault::RestoreUpstream => self.upstream.set_cut(false),
            Fault::ThrottleUpstream { requests_per_second } => self.upstream.throttle(*requests_per_second),
            Fault::HangContainerd { .. }
            | Fault::Suspend { .. }
            | Fault::StepClock { .. }
            | Fault::Upgrade { .. } => {
                return Err(format!("{fault:?} needs the light driver"));
            }
        }
        Ok(())
    }

    fn become_calm(&self, now: Duration) {
        if self.links.values().all(|link| link.cuts == 0) && !self.is_lossy {
            lock(&self.watch).calm(now);
        }
    }

    fn crash(&mut self, now: Duration, node: &str) {
        self.sim.crash(node);
        let parts = self.node(node);
        parts.containerd.forget_mirror();
        *lock(&parts.running) = None;
        lock(&self.watch).ended(now, node);
    }

    fn index_of(&self, name: &str) -> usize {
        let found = self.nodes.iter().position(|node| node.name == name);
        found.expect("a scenario's faults name its own nodes")
    }

    fn change_links_of(&mut self, node: &str, change: impl Fn(&mut Link)) {
        let node = self.index_of(node);
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.change_link((node.min(other), node.max(other)), &change);
        }
    }

    fn change_links_between(&mut self, left: &[String], right: &[String], change: impl Fn(&mut Link)) {
        for left in left {
            for right in right {
                let (left, right) = (self.index_of(left), self.index_of(right));
                self.change_link((left.min(right), left.max(right)), &change);
            }
        }
    }

    /// Tells turmoil, which knows one state of each link, what all that is wrong with it comes to.
    fn change_link(&mut self, pair: (usize, usize), change: impl Fn(&mut Link)) {
        let link = self.links.entry(pair).or_default();
        change(link);
        let link = *link;
        let (one, other) = (self.nodes[pair.0].name.as_str(), self.nodes[pair.1].name.as_str());
        if link.cuts > 0 {
            self.sim.partition(one, other);
        } else if link.silences > 0 {
            self.sim.hold(one, other);
        } else {
            self.sim.release(one, other);
        }
    }

    fn thaw(&mut self, now: Duration) {
        let (due, later) = std::mem::take(&mut self.thaws).into_iter().partition(|(at, _)| *at <= now);
        self.thaws = later;
        let due: Vec<(Duration, String)> = due;
        for (_, node) in due {
            self.change_links_of(&node, |link| link.silences = link.silences.saturating_sub(1));
        }
    }
}

/// What runs on one node besides the mirror: the kubelet that orders pulls.
#[derive(Clone)]
struct Host {
    plan: NodePlan,
    pulls: Vec<PullPlan>,
    images: Vec<Image>,
    upstream: Upstream,
    pulled: Arc<Mutex<Vec<Pulled>>>,
    became_ready: Arc<Mutex<Vec<(String, Duration)>>>,
}

impl Host {
    async fn run(self, parts: NodeParts) -> turmoil::Result {
        for plan in self.pulls.iter().filter(|plan| plan.at >= elapsed()).cloned() {
            tokio::spawn(self.clone().pull(plan, parts.clone()));
        }
        let (mut ready, name, list) = (parts.ready.subscribe(), self.plan.name.clone(), self.became_ready);
        tokio::spawn(async move {
            if ready.wait_for(|ready| *ready).await.is_ok() {
                let mut list = lock(&list);
                if list.iter().all(|(known, _)| *known != name) {
                    list.push((name, elapsed()));
                }
            }
        });
        sleep(self.plan.starts_at.saturating_sub(elapsed())).await;
        parts.ready.send_replace(false);
        Ok(parts.run().await?)
    }

    async fn pull(self, plan: PullPlan, parts: NodeParts) {
        sleep(plan.at.saturating_sub(elapsed())).await;
        parts.trace.note(elapsed(), &plan.node, &format!("pull {}", plan.image));
        let image = self.images.iter().find(|image| image.name == plan.image);
        let image = image.expect("a scenario's pulls name its own images");
        let holders = lock(&parts.watch).holders(&plan.node, image);
        parts.containerd.lease(image);
        let (mut tries, mut failures) = (1, Vec::new());
        let (took, error) = loop {
            while !parts.containerd.is_running() {
                sleep(CONTAINERD_POLL).await;
            }
            let (began, started) = (elapsed(), Instant::now());
            let error = pull(image, &parts.containerd, &self.upstream, &parts.node_port).await.err();
            lock(&parts.watch).content_changed(elapsed(), &plan.node);
            if error.is_none() || tries == plan.tries_max {
                break (started.elapsed(), error.map(|error| error.to_string()));
            }
            if let Some(error) = error {
                failures.push(FailedTry { began, ended: elapsed(), cause: error.to_string() });
            }
            sleep(retry_delay(tries)).await;
            tries += 1;
        };
        parts.containerd.release(image);
        let pulled = Pulled {
            node: plan.node,
            image: plan.image,
            at: plan.at,
            ended_at: elapsed(),
            took,
            tries,
            failures,
            holders,
            error,
        };
        parts.trace.note(elapsed(), &pulled.node, &pulled.to_string());
        lock(&self.pulled).push(pulled);
    }
}
