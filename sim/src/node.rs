//! One simulated node: the real core, the real registry and peer client, and adapters of the
//! simulator for the rest.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{SeedableRng as _, rngs::StdRng};
use sha2::{Digest as _, Sha256};
use spegel_core::{BootstrapAddr, Config, Filters, Input, Node, Notice, Output, PeerId};
use spegel_io::{
    clock,
    metrics::Metrics,
    mirror::Pulls,
    net::{Dialer, Listener},
    registry::{self, Registry, Serving},
    shell,
    trust::Trust,
    zero_copy::Kernel,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use turmoil::net::{TcpListener, TcpStream};

use crate::{
    containerd::Containerd,
    control::{Control, Wire},
    fault::{Dns, VIP, endpoint},
    invariant::Watch,
    node_port::NodePort,
    trace::Trace,
};

/// Where the mirror listens on each node.
pub const REGISTRY_PORT: u16 = 5000;

/// Where nodes talk to each other.
pub const ROUTER_PORT: u16 = 5001;

/// Milliseconds since the UNIX epoch when every simulation begins.
const EPOCH_UNIX_MS: u64 = 1_800_000_000_000;

/// How long bodies under way may take to end when a process ends.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// How long a DNS server takes to answer.
pub(crate) const DNS_LATENCY: Duration = Duration::from_millis(2);

/// The Service by which nodes find each other. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Resolver {
    dns: Dns,
    state: Arc<Mutex<ResolverState>>,
}

#[derive(Debug)]
struct ResolverState {
    /// Nodes, and since when they have been there.
    nodes: Vec<(Duration, IpAddr)>,
    rng: StdRng,
}

impl Resolver {
    /// A Service without nodes.
    #[must_use]
    pub fn new(dns: Dns, seed: u64) -> Self {
        let state = ResolverState { nodes: Vec::new(), rng: StdRng::seed_from_u64(seed) };
        Self { dns, state: Arc::new(Mutex::new(state)) }
    }

    fn add(&self, addr: IpAddr) {
        let nodes = &mut lock(&self.state).nodes;
        if nodes.iter().all(|(_, known)| *known != addr) {
            nodes.push((elapsed(), addr));
        }
    }

    /// Where a dial of `addr` from `home` leads to.
    pub(crate) fn endpoint(&self, home: IpAddr, addr: SocketAddr) -> SocketAddr {
        let Dns::Vip { self_percent } = self.dns else { return addr };
        if addr != VIP {
            return addr;
        }
        let state = &mut *lock(&self.state);
        let others: Vec<_> = state.nodes.iter().map(|(_, ip)| *ip).filter(|ip| *ip != home).collect();
        SocketAddr::new(endpoint(self_percent, home, &others, &mut state.rng), ROUTER_PORT)
    }

    fn resolve(&self) -> Input {
        let addrs: Vec<_> = match self.dns {
            Dns::List { stale } => {
                let state = lock(&self.state);
                let known = state.nodes.iter().filter(|(since, _)| *since + stale <= elapsed());
                known.map(|(_, ip)| SocketAddr::new(*ip, ROUTER_PORT)).collect()
            }
            Dns::Vip { .. } => vec![VIP],
            Dns::Lie { .. } => panic!("a list that is a lie needs the light driver"),
        };
        let addrs: Vec<_> = addrs.into_iter().map(|addr| BootstrapAddr { addr, peer: None }).collect();
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
        shutdown_delay: Duration::ZERO,
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
    /// Where it is told what happens.
    pub inputs: mpsc::Sender<Input>,
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
    /// How it talks to them.
    pub wire: Wire,
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
    /// What leads containerd to the process.
    pub node_port: NodePort,
    /// How long the process goes on once it was told to end.
    pub shutdown_delay: Duration,
    /// Begins another process after one that ended of itself.
    pub restart: Arc<Notify>,
}

impl NodeParts {
    /// Runs one process of the mirror after the other, until each is asked to end.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub async fn run(self) -> io::Result<()> {
        loop {
            self.run_once().await?;
            self.restart.notified().await;
        }
    }

    async fn run_once(&self) -> io::Result<()> {
        let ip = turmoil::lookup(self.name.as_str());
        self.dns.add(ip);
        let (inputs, from_adapters) = mpsc::channel(shell::INPUTS_MAX);
        let peer = peer_of(&self.name);
        self.trace.name(peer, &self.name);
        lock(&self.watch).started(elapsed(), &self.name, peer, &self.containerd);
        let (metrics, serving) = (Metrics::new(), Serving::default());
        let pulls = Pulls::new(SimulatedDialer, inputs.clone(), Trust::default(), metrics.clone());
        let control = Control::new(peer, ip, self.dns.clone(), self.wire.clone(), inputs.clone());
        let (reports, report_requests) = shell::reports();
        *lock(&self.running) = Some(Running { reports, inputs: inputs.clone() });
        let config = Config { shutdown_delay: self.shutdown_delay, ..node_config(peer, elapsed(), 0) };
        self.node_port.started();
        let seed = self.seed.wrapping_add(config.started_at_unix_ms);
        let node = Node::new(clock::now(), config, node_seed(seed, &self.name));
        let complete = CancellationToken::new();
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
            complete: complete.clone(),
            inputs: inputs.clone(),
        };
        let registry = Registry {
            serving,
            store: self.containerd.clone(),
            pulls,
            filters: Filters::default(),
            trust: Trust::default(),
            ready: self.ready.subscribe(),
            inputs: inputs.clone(),
            metrics,
        };
        let addrs = vec![ip];
        // The core's end of the channel is below and open.
        let _ = inputs.send(Input::ListenAddrsChanged { addrs }).await;
        let listener = SimulatedListener(TcpListener::bind((Ipv4Addr::UNSPECIFIED, REGISTRY_PORT)).await?);
        let server =
            registry::serve(listener, registry.into_router(), Kernel::new(), complete.clone(), DRAIN_MAX);
        let listening = tokio::spawn(control.listen(ROUTER_PORT));
        let core = shell::run(node, from_adapters, report_requests, ports);
        // Both in this task, so that a panic of the core ends the run.
        tokio::select! {
            () = core => {}
            () = server => {}
        }
        listening.abort();
        *lock(&self.running) = None;
        self.ready.send_replace(false);
        self.containerd.forget_mirror();
        lock(&self.watch).ended(elapsed(), &self.name);
        self.trace.note(elapsed(), &self.name, "process ended");
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
    /// Cancelled when the core has said farewell.
    complete: CancellationToken,
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
            Output::ResolveBootstrap { .. } => {
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
            Output::ShutdownComplete => self.complete.cancel(),
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
