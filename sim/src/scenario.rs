//! A scenario: which nodes start when, who pulls what, what goes wrong, and how the result is
//! judged. It is the same for both drivers: [`crate::whole`] (real HTTP on a simulated network)
//! and [`crate::light`] (cores alone, for large clusters and long times).

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    fmt::{self, Write as _},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use spegel_core::{Notice, Report};

use crate::{
    fault::{Dns, Fault},
    image::Image,
    invariant::Work,
    kubelet::TRIES_MAX,
    light,
    trace::Trace,
    upstream::UpstreamCounts,
    whole,
};

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub(crate) name: Cow<'static, str>,
    pub(crate) driver: Driver,
    pub(crate) tick: Duration,
    pub(crate) lookahead: Duration,
    pub(crate) nodes: Vec<NodePlan>,
    pub(crate) images: Vec<Image>,
    pub(crate) preloads: Vec<(String, usize)>,
    pub(crate) pulls: Vec<PullPlan>,
    pub(crate) faults: Vec<(Duration, Fault)>,
    pub(crate) dns: Dns,
    pub(crate) node_ports_lag: bool,
    pub(crate) shutdown_delay: Duration,
    pub(crate) ends_at: Duration,
    pub(crate) quiet_from: Duration,
    pub(crate) agrees_at_end: bool,
    pub(crate) starts_disturb: bool,
    expect: Expectation,
}

/// Judges a run that broke no invariant.
pub type Expectation = fn(&Outcome) -> Result<(), String>;

/// What runs a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// [`whole`].
    Whole,
    /// [`light`].
    Light,
}

#[derive(Clone, Debug)]
pub(crate) struct NodePlan {
    pub(crate) name: String,
    pub(crate) starts_at: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct PullPlan {
    pub(crate) at: Duration,
    pub(crate) node: String,
    pub(crate) image: String,
    /// How often it is tried, the first time included.
    pub(crate) tries_max: u32,
}

/// How a pull went.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// On which node.
    pub node: String,
    /// What.
    pub image: String,
    /// When it began.
    pub at: Duration,
    /// When its last try ended.
    pub ended_at: Duration,
    /// How long the last try took.
    pub took: Duration,
    /// How often it was tried; the kubelet does so again after a failure.
    pub tries: u32,
    /// The tries that failed, but for the last one.
    pub failures: Vec<FailedTry>,
    /// Nodes that had all of it when it began, and a process that runs.
    pub holders: Vec<String>,
    /// Why it failed in the end, if it did.
    pub error: Option<String>,
}

/// A try after which the kubelet tried again.
#[derive(Clone, Debug)]
pub struct FailedTry {
    /// When it began.
    pub began: Duration,
    /// When it ended.
    pub ended: Duration,
    /// Why.
    pub cause: String,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Everything that happened.
    pub trace: Trace,
    /// Every pull that ended, in that order.
    pub pulls: Vec<Pulled>,
    /// When each node became ready for the first time.
    pub ready: Vec<(String, Duration)>,
    /// What reached the registry.
    pub upstream: UpstreamCounts,
    /// Requests of a kind that the receiver did not know, and said so.
    pub unsupported: u64,
    /// What each node said, and when.
    pub notices: Vec<(Duration, String, Notice)>,
    /// What each node did since [`Scenario::quiet_from`].
    pub work: BTreeMap<String, Work>,
    /// How often each node was asked for content, by when.
    pub fetches: Vec<(Duration, String)>,
    /// What the nodes that run know at the end.
    pub reports: BTreeMap<String, Report>,
    /// How often manifests were read from each node's containerd.
    pub manifest_reads: BTreeMap<String, u64>,
    /// What stopped the run, if anything did: the first broken invariant.
    pub error: Option<String>,
}

impl Scenario {
    /// An empty scenario that ends after `ends_at` of virtual time.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>, ends_at: Duration) -> Self {
        Self {
            name: name.into(),
            driver: Driver::Whole,
            tick: Duration::from_millis(1),
            lookahead: Duration::ZERO,
            nodes: Vec::new(),
            images: Vec::new(),
            preloads: Vec::new(),
            pulls: Vec::new(),
            faults: Vec::new(),
            dns: Dns::List { stale: Duration::ZERO },
            node_ports_lag: false,
            shutdown_delay: Duration::ZERO,
            ends_at,
            quiet_from: ends_at,
            agrees_at_end: true,
            starts_disturb: true,
            expect: |_| Ok(()),
        }
    }

    /// The name under which it is replayed.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs cores alone, without HTTP: time jumps from one event to the next.
    #[must_use]
    pub const fn light(mut self) -> Self {
        self.driver = Driver::Light;
        self
    }

    /// The step of time of the network; a millisecond unless told. Coarser runs faster, but a
    /// round trip takes two steps at least.
    #[must_use]
    pub const fn tick(mut self, tick: Duration) -> Self {
        self.tick = tick;
        self
    }

    /// In the light driver, the least time after which anything comes of what a node says or wants
    /// done. Longer lets threads work on their own for longer; no message is faster.
    #[must_use]
    pub const fn lookahead(mut self, lookahead: Duration) -> Self {
        self.lookahead = lookahead;
        self
    }

    /// A node whose mirror starts at one time and its containerd at another.
    #[must_use]
    pub fn node(mut self, name: &str, starts_at: Duration, containerd_starts_at: Duration) -> Self {
        self.nodes.push(NodePlan { name: name.to_owned(), starts_at });
        self.fault(containerd_starts_at, Fault::StartContainerd { node: name.to_owned() })
    }

    /// Nodes `n1` to `n<count>`, all there from the beginning.
    #[must_use]
    pub fn nodes(self, count: usize) -> Self {
        (1..=count).fold(self, |scenario, n| scenario.node(&format!("n{n}"), Duration::ZERO, Duration::ZERO))
    }

    /// An image that the registry has.
    #[must_use]
    pub fn image(mut self, image: Image) -> Self {
        self.images.push(image);
        self
    }

    pub(crate) fn image_named(&self, name: &str) -> &Image {
        let found = self.images.iter().find(|known| known.name == name);
        found.expect("a scenario's pulls and faults name its own images")
    }

    /// A node's containerd has one of the scenario's images from the beginning.
    ///
    /// # Panics
    ///
    /// When the scenario has no such image.
    #[must_use]
    pub fn preload(mut self, node: &str, image: &str) -> Self {
        let index = self.images.iter().position(|known| known.name == image);
        self.preloads.push((node.to_owned(), index.expect("an image is added before it is preloaded")));
        self
    }

    /// A pull.
    #[must_use]
    pub fn pull(self, at: Duration, node: &str, image: &str) -> Self {
        self.try_pull(at, node, image, TRIES_MAX)
    }

    /// A pull that is tried once only.
    #[must_use]
    pub fn pull_once(self, at: Duration, node: &str, image: &str) -> Self {
        self.try_pull(at, node, image, 1)
    }

    fn try_pull(mut self, at: Duration, node: &str, image: &str, tries_max: u32) -> Self {
        self.pulls.push(PullPlan { at, node: node.to_owned(), image: image.to_owned(), tries_max });
        self
    }

    /// Something goes wrong, or right again.
    #[must_use]
    pub fn fault(mut self, at: Duration, fault: Fault) -> Self {
        self.faults.push((at, fault));
        self
    }

    /// How nodes find each other; by a fresh list unless told.
    #[must_use]
    pub const fn dns(mut self, dns: Dns) -> Self {
        self.dns = dns;
        self
    }

    /// In the driver with HTTP, containerd asks a node port, which leads to a mirror's address for a while after the
    /// mirror was told to end.
    #[must_use]
    pub const fn behind_node_ports(mut self) -> Self {
        self.node_ports_lag = true;
        self
    }

    /// How long mirrors go on once they were told to end; not at all unless told.
    #[must_use]
    pub const fn shutdown_delay(mut self, delay: Duration) -> Self {
        self.shutdown_delay = delay;
        self
    }

    /// Nothing happens from here on: [`Outcome::work`] is counted.
    #[must_use]
    pub const fn quiet_from(mut self, at: Duration) -> Self {
        self.quiet_from = at;
        self
    }

    /// The cluster is not expected to be whole at the end: views are not compared.
    #[must_use]
    pub const fn stays_broken(mut self) -> Self {
        self.agrees_at_end = false;
        self
    }

    /// A node that starts is no excuse for saying "nobody has it": neither it nor others may.
    /// Light driver only.
    #[must_use]
    pub const fn expects_of_newcomers(mut self) -> Self {
        self.starts_disturb = false;
        self
    }

    /// How a run that broke no invariant is judged.
    #[must_use]
    pub fn expect(mut self, expect: Expectation) -> Self {
        self.expect = expect;
        self
    }

    /// Runs it, judges the result, and keeps the whole trace.
    #[must_use]
    pub fn replay(&self, seed: u64) -> Outcome {
        self.run_into(seed, Trace::whole())
    }

    /// Runs it, judges the result, and keeps the end of the trace.
    #[must_use]
    pub fn run(&self, seed: u64) -> Outcome {
        self.run_into(seed, Trace::end())
    }

    pub(crate) fn run_into(&self, seed: u64, trace: Trace) -> Outcome {
        let mut outcome = match self.driver {
            Driver::Whole => whole::run(self, seed, trace),
            Driver::Light => light::run(self, seed, trace),
        };
        self.judge(&mut outcome);
        outcome
    }

    pub(crate) fn judge(&self, outcome: &mut Outcome) {
        if outcome.error.is_none() {
            outcome.error = (self.expect)(outcome).err();
        }
    }

    /// Runs every seed twice, on all cores; the second run must leave the same trace.
    ///
    /// # Panics
    ///
    /// When a seed fails, with the line that replays it.
    pub fn run_seeds(&self, seeds: impl IntoIterator<Item = u64>) {
        let seeds: Mutex<VecDeque<u64>> = Mutex::new(seeds.into_iter().collect());
        let failures = Mutex::new(BTreeMap::new());
        let workers = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let next = seeds.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                        let Some(seed) = next else { return };
                        if let Some(failure) = self.failure(seed) {
                            failures.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, failure);
                            // The rest would say the same at length.
                            seeds.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        assert!(failures.is_empty(), "{}", failures.into_values().next().unwrap_or_default());
    }

    /// What a person needs to see when a seed fails.
    fn failure(&self, seed: u64) -> Option<String> {
        let outcome = self.run(seed);
        let (first, name) = (outcome.trace.hash(), &self.name);
        let what = match outcome.error {
            Some(error) => error,
            None => {
                let second = self.run(seed).trace.hash();
                if first == second {
                    return None;
                }
                format!("not deterministic: one seed left two traces, {first} and {second}")
            }
        };
        let mut text = String::new();
        write!(
            text,
            "{what}\n\nscenario {name}, seed {seed}, at {:?} of virtual time; the end of the trace:\n{}\n\nreplay: make sim SCENARIO={name} SEED={seed}",
            outcome.trace.ended_at(),
            outcome.trace.tail(),
        )
        .expect("writing to a string cannot fail");
        Some(text)
    }
}

impl fmt::Display for Pulled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, took, tries, .. } = self;
        match &self.error {
            None => write!(f, "pulled {image} in {took:?}, try {tries}"),
            Some(error) => write!(f, "gave up {image} after try {tries}: {error}"),
        }
    }
}

impl Outcome {
    /// Pulls that failed in the end.
    pub fn failed_pulls(&self) -> impl Iterator<Item = &Pulled> {
        self.pulls.iter().filter(|pull| pull.error.is_some())
    }

    /// # Errors
    ///
    /// Unless so many pulls ended, all of them well, and none took longer than this.
    pub fn expect_pulls(&self, count: usize, longest: Duration) -> Result<(), String> {
        if let Some(failed) = self.failed_pulls().next() {
            return Err(format!("a pull failed: {failed:?}"));
        }
        if self.pulls.len() != count {
            return Err(format!("{} pulls ended, not {count}", self.pulls.len()));
        }
        match self.pulls.iter().find(|pull| pull.took > longest) {
            Some(slow) => Err(format!("a pull took longer than {longest:?}: {slow:?}")),
            None => Ok(()),
        }
    }

    /// # Errors
    ///
    /// Unless the registry was asked at most so often.
    pub fn expect_upstream(&self, most: u64) -> Result<(), String> {
        if self.upstream.requests > most {
            return Err(format!("the registry was asked more than {most} times: {:?}", self.upstream));
        }
        Ok(())
    }
}
