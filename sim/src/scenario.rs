//! A scenario: which nodes start when, who pulls what, and what is taken away; run from a seed.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    containerd::Containerd,
    image::Image,
    node::{Dns, NodeParts, REGISTRY_PORT, elapsed},
    puller::{Upstream, pull},
    trace::Trace,
};

/// Step of virtual time. Finer and a simulated minute takes longer to run; coarser and timeouts
/// of a few milliseconds all fall into one step.
const TICK: Duration = Duration::from_millis(1);

/// Longest that a message travels between two nodes.
const LATENCY_MAX: Duration = Duration::from_millis(4);

/// Connections that may wait to be accepted; turmoil panics beyond.
const BACKLOG: usize = 4096;

/// What happens in a run.
#[derive(Clone, Debug)]
pub struct Scenario {
    name: &'static str,
    nodes: Vec<NodePlan>,
    images: Vec<Image>,
    pulls: Vec<PullPlan>,
    dns_stale: Duration,
    cut_at: Option<Duration>,
    ends_at: Duration,
}

#[derive(Clone, Debug)]
struct NodePlan {
    name: String,
    starts_at: Duration,
    containerd_starts_at: Duration,
}

#[derive(Clone, Debug)]
struct PullPlan {
    at: Duration,
    node: String,
    image: String,
}

/// How a pull went.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The node.
    pub node: String,
    /// The image.
    pub image: String,
    /// Virtual time from request to complete image.
    pub took: Duration,
    /// What went wrong, if anything.
    pub error: Option<String>,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The seed it ran from.
    pub seed: u64,
    /// Everything that happened.
    pub trace: Trace,
    /// Every pull that ended, in that order.
    pub pulls: Vec<Pulled>,
    /// When each node became ready for the first time, since the run began.
    pub ready: Vec<(String, Duration)>,
    /// Requests that reached the registry.
    pub upstream_requests: u64,
    /// What stopped the run, if anything did.
    pub error: Option<String>,
}

impl Scenario {
    /// An empty scenario that ends after `ends_at` of virtual time.
    #[must_use]
    pub fn new(name: &'static str, ends_at: Duration) -> Self {
        let (nodes, images, pulls) = (Vec::new(), Vec::new(), Vec::new());
        Self { name, nodes, images, pulls, dns_stale: Duration::ZERO, cut_at: None, ends_at }
    }

    /// The name under which it is replayed.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// A node whose mirror starts at one time and its containerd at another.
    #[must_use]
    pub fn node(mut self, name: &str, starts_at: Duration, containerd_starts_at: Duration) -> Self {
        self.nodes.push(NodePlan { name: name.to_owned(), starts_at, containerd_starts_at });
        self
    }

    /// An image that the registry has.
    #[must_use]
    pub fn image(mut self, image: Image) -> Self {
        self.images.push(image);
        self
    }

    /// A pull.
    #[must_use]
    pub fn pull(mut self, at: Duration, node: &str, image: &str) -> Self {
        self.pulls.push(PullPlan { at, node: node.to_owned(), image: image.to_owned() });
        self
    }

    /// The bootstrap name leads to the nodes of this long ago.
    #[must_use]
    pub const fn dns_stale(mut self, stale: Duration) -> Self {
        self.dns_stale = stale;
        self
    }

    /// The registry is out of reach from this moment on.
    #[must_use]
    pub const fn cut_upstream(mut self, at: Duration) -> Self {
        self.cut_at = Some(at);
        self
    }

    /// Runs it.
    #[must_use]
    pub fn run(&self, seed: u64) -> Outcome {
        let (trace, upstream) = (Trace::default(), Upstream::default());
        let pulls = Arc::new(Mutex::new(Vec::new()));
        let ready = Arc::new(Mutex::new(Vec::new()));
        let dns = Dns::stale_by(self.dns_stale);
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(SystemTime::UNIX_EPOCH)
            .tick_duration(TICK)
            .simulation_duration(self.ends_at + TICK * 10)
            .min_message_latency(Duration::ZERO)
            .max_message_latency(LATENCY_MAX)
            .tcp_capacity(BACKLOG)
            .build();
        for plan in &self.nodes {
            let parts = NodeParts {
                name: plan.name.clone(),
                seed,
                containerd: Containerd::default(),
                dns: dns.clone(),
                trace: trace.clone(),
                ready: watch::channel(false).0,
            };
            let host = Host {
                plan: plan.clone(),
                pulls: self.pulls.iter().filter(|pull| pull.node == plan.name).cloned().collect(),
                images: self.images.clone(),
                upstream: upstream.clone(),
                pulled: Arc::clone(&pulls),
                became_ready: Arc::clone(&ready),
            };
            sim.host(plan.name.as_str(), move || host.clone().run(parts.clone()));
        }
        let (ends_at, cut_at, cut) = (self.ends_at, self.cut_at, upstream.clone());
        sim.client("scenario", async move {
            if let Some(at) = cut_at {
                sleep(at).await;
                cut.cut();
            }
            sleep(ends_at.saturating_sub(elapsed())).await;
            Ok(())
        });
        let error = sim.run().err().map(|error| error.to_string());
        drop(sim);
        let take = |list: &Mutex<Vec<Pulled>>| list.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ready = ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Outcome {
            scenario: self.name,
            seed,
            trace,
            pulls: take(&pulls),
            ready,
            upstream_requests: upstream.requests(),
            error,
        }
    }

    /// Runs every seed twice: `expect` judges the first run, and the second must leave the same
    /// trace.
    ///
    /// # Panics
    ///
    /// When a seed fails, with the line that replays it.
    pub fn run_seeds(
        &self,
        seeds: impl IntoIterator<Item = u64>,
        expect: impl Fn(&Outcome) -> Result<(), String>,
    ) {
        for seed in seeds {
            let outcome = self.run(seed);
            let verdict = outcome.error.clone().map_or_else(|| expect(&outcome), Err);
            if let Err(what) = verdict {
                panic!(
                    "{what}\n\nscenario {} failed with seed {seed}; the end of its trace:\n{}\n\nreplay: make sim SCENARIO={} SEED={seed}",
                    self.name,
                    outcome.trace.tail(),
                    self.name,
                );
            }
            let (first, second) = (outcome.trace.hash(), self.run(seed).trace.hash());
            assert_eq!(
                first, second,
                "scenario {} is not deterministic: seed {seed} left two traces",
                self.name
            );
        }
    }
}

/// What runs on one node besides the mirror: its containerd, and the kubelet that orders pulls.
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
        let containerd = parts.containerd.clone();
        let containerd_starts_at = self.plan.containerd_starts_at;
        tokio::spawn(async move {
            sleep(containerd_starts_at).await;
            containerd.start();
        });
        for plan in self.pulls.clone() {
            tokio::spawn(self.clone().pull(plan, parts.clone()));
        }
        let (mut ready, name, list) = (parts.ready.subscribe(), self.plan.name.clone(), self.became_ready);
        tokio::spawn(async move {
            if ready.wait_for(|ready| *ready).await.is_ok() {
                list.lock().unwrap_or_else(PoisonError::into_inner).push((name, elapsed()));
            }
        });
        sleep(self.plan.starts_at).await;
        Ok(parts.run().await?)
    }

    async fn pull(self, plan: PullPlan, parts: NodeParts) {
        sleep(plan.at).await;
        parts.trace.note(&plan.node, &format!("pull {}", plan.image));
        let started = Instant::now();
        let image = self.images.iter().find(|image| image.name == plan.image);
        let result = match image {
            Some(image) => {
                let mirror = (Ipv4Addr::LOCALHOST, REGISTRY_PORT).into();
                pull(image, &parts.containerd, &self.upstream, mirror)
                    .await
                    .map_err(|error| error.to_string())
            }
            None => Err("the scenario has no such image".to_owned()),
        };
        let took = started.elapsed();
        parts.trace.note(&plan.node, &format!("pulled {} in {took:?}: {result:?}", plan.image));
        let pulled = Pulled { node: plan.node, image: plan.image, took, error: result.err() };
        self.pulled.lock().unwrap_or_else(PoisonError::into_inner).push(pulled);
    }
}
