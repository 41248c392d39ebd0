//! One simulated node: the real core, the real registry and peer client, and adapters of the
//! simulator for the rest.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use spegel_core::{BootstrapAddr, Config, Filters, Input, Node, Notice, Output, PeerId};
use spegel_io::{
    clock,
    metrics::Metrics,
    mirror::Pulls,
    net::{Dialer, Listener},
    registry::{self, Registry, Serving},
    shell,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use turmoil::net::{TcpListener, TcpStream};

use crate::{containerd::Containerd, control::Control, invariant::Watch, trace::Trace};

/// Where the mirror listens on each node.
pub const REGISTRY_PORT: u16 = 5000;

/// Where nodes talk to each other.
pub const ROUTER_PORT: u16 = 5001;

/// Milliseconds since the UNIX epoch when every simulation begins.
const EPOCH_UNIX_MS: u64 = 1_800_000_000_000;

/// How long a DNS server takes to answer.
pub(crate) const DNS_LATENCY: Duration = Duration::from_millis(2);

/// The headless Service: nodes appear in it a while after they have started.
#[derive(Clone, Debug, Default)]
pub struct Resolver {
    stale: Duration,
    nodes: Arc<Mutex<Vec<(Duration, IpAddr)>>>,
}

impl Resolver {
    /// A name server whose answers are as old as this.
    #[must_use]
    pub fn stale_by(stale: Duration) -> Self {
        Self { stale, nodes: Arc::default() }
    }

    fn add(&self, addr: IpAddr) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.iter().all(|(_, known)| *known != addr) {
            nodes.push((elapsed(), addr));
        }
    }

    fn resolve(&self) -> Input {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = nodes.iter().filter(|(since, _)| *since + self.stale <= elapsed());
        let addrs =
            known.map(|(_, ip)| BootstrapAddr { addr: SocketAddr::new(*ip, ROUTER_PORT), peer: None });
        let addrs: Vec<_> = addrs.collect();
        if addrs.is_empty() {
            Input::BootstrapFailed { cause: "no such host".to_owned() }
        } else {
            Input::BootstrapResolved { addrs }
        }
    }
}

/// Virtual time since the simulation began.
pub(crate) fn elapsed() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// The identity of the node of this name.
pub(crate) fn peer_of(name: &str) -> PeerId {
    PeerId::from_public_key(Sha256::digest(name.as_bytes()).into())
}

/// What a node is told at its start, so long after the simulation began, where the wall clock is
/// so many seconds ahead.
pub(crate) fn node_config(peer: PeerId, since_epoch: Duration, ahead_seconds: i64) -> Config {
    let since_epoch_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
    Config {
        peer,
        // A clock cannot be before 1970.
        started_at_unix_ms: (EPOCH_UNIX_MS + since_epoch_ms).saturating_add_signed(ahead_seconds * 1000),
        router_port: ROUTER_PORT,
        registry_port: REGISTRY_PORT,
        zone: None,
        filters: Filters::default(),
        resolve_timeout: Duration::from_millis(20),
        resolve_retries: 3,
    }
}

/// The run's seed split by name, so that another node more does not change what this one draws.
pub(crate) fn node_seed(seed: u64, name: &str) -> u64 {
    let hash = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(name.as_bytes()).finalize();
    hash.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// What the driver holds of a running process.
#[derive(Clone, Debug)]
pub struct Running {
    /// Where the core is asked what it knows.
    pub reports: shell::Reports,
}

/// What a node is made of; the process can be run several times on it.
#[derive(Clone, Debug)]
pub struct NodeParts {
    /// Its host name.
    pub name: String,
    /// The seed of the run.
    pub seed: u64,
    /// Its containerd, which outlives the process.
    pub containerd: Containerd,
    /// How it finds others.
    pub dns: Resolver,
    /// Where everything is noted.
    pub trace: Trace,
    /// What must be true.
    pub watch: Arc<Mutex<Watch>>,
    /// What `/readyz` says; false while the process does not run.
    pub ready: watch::Sender<bool>,
    /// What its core said.
    pub notices: Arc<Mutex<Vec<(Duration, String, Notice)>>>,
    /// Who was asked for content.
    pub fetches: Arc<Mutex<Vec<(Duration, PeerId)>>>,
    /// The process, while there is one.
    pub running: Arc<Mutex<Option<Running>>>,
}

impl NodeParts {
    /// Runs the mirror process for ever.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub async fn run(self) -> io::Result<()> {
        let ip = turmoil::lookup(self.name.as_str());
        self.dns.add(ip);
        let (inputs, from_adapters) = mpsc::channel(shell::INPUTS_MAX);
        let peer = peer_of(&self.name);
        self.trace.name(peer, &self.name);
        lock(&self.watch).started(elapsed(), &self.name, peer, &self.containerd);
        let (metrics, serving) = (Metrics::new(), Serving::default());
        let pulls = Pulls::new(SimulatedDialer, inputs.clone(), None, metrics.clone());
        let control = Control::new(peer, inputs.clone());
        let (reports, report_requests) = shell::reports();
        *lock(&self.running) = Some(Running { reports });
        let config = node_config(peer, elapsed(), 0);
        let seed = self.seed.wrapping_add(config.started_at_unix_ms);
        let node = Node::new(clock::now(), config, node_seed(seed, &self.name));
        let ports = Ports {
            name: self.name.clone(),
            trace: self.trace.clone(),
            watch: self.watch.clone(),
            notices: self.notices.clone(),
            fetches: self.fetches.clone(),
            containerd: self.containerd.clone(),
            dns: self.dns.clone(),
            control: control.clone(),
            serving: serving.clone(),
            pulls: pulls.clone(),
            ready: self.ready.clone(),
            inputs: inputs.clone(),
        };
        let registry = Registry {
            serving,
            store: self.containerd.clone(),
            pulls,
            filters: Filters::default(),
            credentials: None,
            ready: self.ready.subscribe(),
            inputs: inputs.clone(),
            metrics,
        };
        let addrs = vec![ip];
        // The core's end of the channel is below and open.
        let _ = inputs.send(Input::ListenAddrsChanged { addrs }).await;
        let listener = SimulatedListener(TcpListener::bind((Ipv4Addr::UNSPECIFIED, REGISTRY_PORT)).await?);
        let never = CancellationToken::new();
        tokio::spawn(registry::serve(listener, registry.into_router(), never, Duration::ZERO));
        tokio::spawn(control.listen(ROUTER_PORT));
        shell::run(node, from_adapters, report_requests, ports).await;
        Ok(())
    }
}

pub(crate) fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Ports {
    name: String,
    trace: Trace,
    watch: Arc<Mutex<Watch>>,
    notices: Arc<Mutex<Vec<(Duration, String, Notice)>>>,
    fetches: Arc<Mutex<Vec<(Duration, PeerId)>>>,
    containerd: Containerd,
    dns: Resolver,
    control: Control,
    serving: Serving,
    pulls: Pulls<SimulatedDialer>,
    ready: watch::Sender<bool>,
    inputs: mpsc::Sender<Input>,
}

impl shell::Ports for Ports {
    fn observe(&mut self, input: &Input) {
        self.trace.input(elapsed(), &self.name, input);
        lock(&self.watch).input(elapsed(), &self.name, input);
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever no adapter took is a mistake")]
    fn perform(&mut self, output: Output) {
        self.trace.output(elapsed(), &self.name, &output);
        lock(&self.watch).output(elapsed(), &self.name, &output);
        if let Output::Fetch { peer, .. } = &output {
            lock(&self.fetches).push((elapsed(), *peer));
        }
        let done = self.serving.perform(&output)
            || self.pulls.perform(&output)
            || self.control.perform(&output)
            || self.containerd.perform(&output, &self.inputs);
        match output {
            _ if done => {}
            Output::ResolveBootstrap => {
                let (dns, inputs) = (self.dns.clone(), self.inputs.clone());
                tokio::spawn(async move {
                    sleep(DNS_LATENCY).await;
                    // The process has ended: nobody to tell.
                    let _ = inputs.send(dns.resolve()).await;
                });
            }
            Output::SetReady { ready } => {
                self.ready.send_replace(ready);
            }
            // In the trace; nothing else to do.
            Output::ShutdownComplete => {}
            Output::Notice(notice) => lock(&self.notices).push((elapsed(), self.name.clone(), notice)),
            other => unreachable!("carried out above: {other:?}"),
        }
    }
}

/// Dials over turmoil's TCP.
#[derive(Clone, Copy, Debug)]
struct SimulatedDialer;

impl Dialer for SimulatedDialer {
    type Stream = TcpStream;

    fn dial(&self, addr: SocketAddr) -> impl Future<Output = io::Result<TcpStream>> + Send {
        TcpStream::connect(addr)
    }
}

struct SimulatedListener(TcpListener);

impl Listener for SimulatedListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }
}
