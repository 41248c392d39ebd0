//! `spegel registry`: adapters around the core, until the process is told to end.

use std::{error::Error, future::Future, net::SocketAddr, path::Path, time::Duration};

use axum::Router;
use spegel_core::{Config, FilterError, Filters, Input, Node, Zone};
use spegel_io::{
    check::{self, CheckSettings, Checks},
    clock,
    containerd::{Containerd, ContainerdSettings},
    content::{self, ContentDir},
    control::{self, ControlSettings},
    debug::{self, DebugPage, Guard, Measurer},
    descriptors,
    distribution::Credentials,
    hosts_toml::{BASIC_AUTH_DIR, BasicAuth},
    identity::Identity,
    listen,
    metrics::{self, Metrics},
    mirror::Pulls,
    net::TcpDialer,
    ports::Ports,
    questions::Questions,
    registry::{self, Serving},
    resolve::{Resolver, ResolverSettings, id_router},
    shell,
    trust::{self, Refusals, Trust},
    zero_copy::Kernel,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::Registry;

/// Longest delay of the end that may be asked for. More, and what was told to end seems to hang: Kubernetes
/// kills it after 30 s unless told otherwise, and no transfer is finished.
const SHUTDOWN_DELAY_MAX: Duration = Duration::from_secs(60);

/// How long transfers may go on after the process has taken leave of the others. Longer, and it is killed before: the
/// chart has Kubernetes wait for 35 s in all; shorter, and more of them are cut off, and resumed by containerd elsewhere.
const DRAIN_MAX: Duration = Duration::from_secs(25);

/// How long requests for metrics and the like may go on then.
const DEBUG_DRAIN_MAX: Duration = Duration::from_secs(1);

pub(crate) async fn run(flags: Registry, terminated: impl Future<Output = ()>) -> Result<(), Box<dyn Error>> {
    let router_port = port(&flags.router_addr.0);
    let resolver = Resolver::new(&ResolverSettings {
        kind: flags.bootstrap_kind.unwrap_or_default(),
        dns_domain: flags.dns_bootstrap_domain,
        http_url: flags.http_bootstrap_url,
        http_cert_dir: flags.http_bootstrap_cert_dir.into(),
        static_peers: flags.static_bootstrap_peers,
        router_port,
    })?;
    if flags.shutdown_delay > SHUTDOWN_DELAY_MAX {
        return Err(format!("--shutdown-delay: {SHUTDOWN_DELAY_MAX:?} at most").into());
    }
    if flags.debug_pprof_enabled {
        // Early, because what was allocated before is not seen.
        spegel_profiles::heap::start();
    }
    let filters =
        Filters::new(&flags.mirrored_registries, &flags.registry_filters).map_err(|error| match error {
            FilterError::Registry { .. } => format!("--mirrored-registries: {error}"),
            FilterError::Regex { .. } => format!("--registry-filters: {error}"),
        })?;
    let containerd = ContainerdSettings {
        socket: flags.containerd_sock,
        namespace: flags.containerd_namespace,
        content_path: flags.containerd_content_path,
    };
    containerd.check_content_path()?;
    let checked = CheckSettings {
        containerd: containerd.clone(),
        registry_config_path: flags.containerd_registry_config_path,
        mirrored_registries: Some(flags.mirrored_registries),
        node_root: flags.node_root,
    };
    let basic_auth = BasicAuth::read(Path::new(BASIC_AUTH_DIR))?;
    let credentials = basic_auth.map(|auth| Credentials::new(&auth.username, &auth.password));
    let metrics = Metrics::of_process();
    let secrets = match flags.cluster_secret_file.as_str() {
        "" => None,
        path => Some(trust::watch(Path::new(path), metrics.clone())?),
    };
    let guard = match flags.debug_web_token_file.as_str() {
        "" => Guard::Loopback,
        path => Guard::read(Path::new(path)).map_err(|error| format!("--debug-web-token-file: {error}"))?,
    };
    let identity = Identity::load(Path::new(&flags.data_dir))?;

    let registry_listeners = bind("--registry-addr", &flags.registry_addr.0)?;
    let metrics_listeners = bind("--metrics-addr", &flags.metrics_addr.0)?;
    let id_listeners = match flags.http_bootstrap_addr.as_str() {
        "" => Vec::new(),
        addr => {
            let addrs = listen::parse(addr).map_err(|error| format!("--http-bootstrap-addr: {error}"))?;
            bind("--http-bootstrap-addr", &addrs)?
        }
    };

    if let Err(error) = descriptors::raise_limit() {
        warn!(%error, "the limit of open files stays as it is");
    }
    let (inputs, from_adapters) = mpsc::channel(shell::INPUTS_MAX);
    let refusals = Refusals::new(metrics.clone());
    let settings = ControlSettings {
        keypair: identity.keypair,
        listen: flags.router_addr.0,
        secrets: secrets.clone(),
        refusals: refusals.clone(),
    };
    let control = control::spawn(settings, inputs.clone())?;
    let trust = Trust::new(identity.peer, credentials, secrets, refusals);
    let serving = Serving::default();
    let store = ContentDir::new(&containerd.content_path);
    let kernel = Kernel::new();
    let dialer = TcpDialer::new(kernel.clone());
    let pulls = Pulls::new(dialer, inputs.clone(), trust.clone(), metrics.clone());
    let questions = Questions::new(inputs.clone());
    let (ready, is_ready) = watch::channel(false);
    let (farewell, mut farewell_said) = watch::channel(false);
    let (reports, report_requests) = shell::reports();

    let config = Config {
        peer: identity.peer,
        started_at_unix_ms: clock::unix_ms(),
        router_port,
        registry_port: port(&flags.registry_addr.0),
        zone: Zone::new(&flags.zone),
        filters: filters.clone(),
        resolve_timeout: flags.mirror_resolve_timeout,
        resolve_retries: flags.mirror_resolve_retries,
        shutdown_delay: flags.shutdown_delay,
    };
    let ports = Ports {
        watch: content::watch::spawn(&containerd.content_path, inputs.clone()),
        containerd: Containerd::spawn(containerd, inputs.clone()),
        control: control.clone(),
        resolver,
        inputs: inputs.clone(),
        serving: serving.clone(),
        questions: questions.clone(),
        pulls: pulls.clone(),
        metrics: metrics.clone(),
        ready,
        farewell,
    };
    // Nothing needs secrecy of this seed, only that nodes differ.
    let seed = clock::unix_ms() ^ u64::from_be_bytes(first_bytes(identity.peer.public_key()));
    let node = Node::new(clock::now(), config, seed);
    let core = tokio::spawn(shell::run(node, from_adapters, report_requests, ports));

    let page = DebugPage {
        reports: reports.clone(),
        checks: Checks::spawn(checked, reports.clone(), metrics.clone()),
        pulls: pulls.history(),
        questions,
        measurer: Measurer::new(&flags.registry_addr.0, trust.clone()),
    };
    let registry = registry::Registry {
        serving,
        store,
        pulls,
        filters,
        trust,
        ready: is_ready,
        inputs: inputs.clone(),
        metrics: metrics.clone(),
    };
    let stop_serving = CancellationToken::new();
    let mut servers = JoinSet::new();
    let mut serve = |listeners: Vec<tokio::net::TcpListener>, router: Router, drain_max| {
        for listener in listeners {
            let stop = stop_serving.clone();
            servers.spawn(registry::serve(listener, router.clone(), kernel.clone(), stop, drain_max));
        }
    };
    serve(registry_listeners, registry.into_router(), DRAIN_MAX);
    let shown = flags.debug_web_enabled.then_some(identity.peer);
    let mut debug = Router::new();
    if flags.debug_web_enabled {
        debug = check::router(page.checks.clone()).merge(guard.protect(debug::router(page)));
    }
    if flags.debug_pprof_enabled {
        debug = debug.merge(guard.protect(spegel_profiles::router()));
    }
    serve(metrics_listeners, metrics::router(metrics, reports, shown, debug), DEBUG_DRAIN_MAX);
    serve(id_listeners, id_router(identity.peer, control.listening()), DEBUG_DRAIN_MAX);
    info!(peer = %identity.peer, "mirror is running");

    // A panic in a connection costs that connection; without the core or the router the process
    // would linger as half a mirror, so that it is better started anew.
    tokio::select! {
        () = terminated => {}
        ended = core => return Err(format!("the core ended: {ended:?}").into()),
        () = control.ended() => return Err("the router ended".into()),
    }
    info!(delay = ?flags.shutdown_delay, "told to end: after the delay come goodbyes, then transfers are finished");
    // The core lives as long as its inputs, one of which is here.
    let _ = inputs.send(Input::ShutdownRequested).await;
    let _ = farewell_said.wait_for(|said| *said).await;
    stop_serving.cancel();
    while servers.join_next().await.is_some() {}
    Ok(())
}

fn bind(flag: &str, addrs: &[SocketAddr]) -> Result<Vec<tokio::net::TcpListener>, String> {
    listen::bind(addrs).map_err(|error| format!("{flag}: {error}"))
}

/// All addresses of a flag share one port.
fn port(addrs: &[SocketAddr]) -> u16 {
    addrs.first().map_or(0, SocketAddr::port)
}

fn first_bytes(key: &[u8; 32]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&key[..8]);
    bytes
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::{
        chain,
        cli::{self, Command},
    };

    /// Why the mirror does not start with these flags; it is told to end as soon as it has.
    async fn refused(args: &[&str]) -> String {
        let args = [&["spegel", "registry"], args].concat();
        let cli = cli::parse(args.into_iter().map(OsString::from)).expect("the flags can be read");
        let Command::Registry(flags) = cli.command else { panic!("registry expected") };
        chain(run(*flags, std::future::ready(())).await.expect_err("it starts").as_ref())
    }

    #[tokio::test]
    async fn flags_that_make_no_sense_together_are_named() {
        const STATIC: [&str; 3] =
            ["--bootstrap-kind=static", "--static-bootstrap-peers", "/ip4/10.0.0.1/tcp/1"];
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("blobs")).expect("a directory");
        let store = dir.path().display().to_string();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let taken = taken.local_addr().expect("it is bound").to_string();
        let cases: [(&[&str], &[&str]); 13] = [
            (&[], &[]),
            (&["--bootstrap-kind=dns"], &[]),
            (&["--bootstrap-kind=http", "--http-bootstrap-url=10.0.0.1/id"], &[]),
            (&STATIC[..1], &["--static-bootstrap-peers", "10.0.0.1:5001"]),
            (&STATIC, &["--mirrored-registries", "docker.io"]),
            (&STATIC, &["--registry-filters", "ok", "("]),
            (&STATIC, &["--containerd-content-path=/nowhere"]),
            (&STATIC, &["--containerd-content-path=/"]),
            (&STATIC, &["--containerd-content-path=STORE", "--cluster-secret-file=/nowhere"]),
            (&STATIC, &["--containerd-content-path=STORE", "--cluster-secret-file=/dev/null"]),
            (&STATIC, &["--containerd-content-path=STORE", "--debug-web-token-file=/dev/null"]),
            (&STATIC, &["--containerd-content-path=STORE", "--data-dir=/dev/null"]),
            (&STATIC, &["--containerd-content-path=STORE", "--shutdown-delay=61s"]),
        ];
        let mut errors = Vec::new();
        for (bootstrap, others) in cases {
            let args = [bootstrap, others].concat();
            let real: Vec<String> = args.iter().map(|arg| arg.replace("STORE", &store)).collect();
            let error = refused(&real.iter().map(String::as_str).collect::<Vec<_>>()).await;
            errors.push(format!("{}\n  {error}\n", args.join(" ")));
        }
        insta::assert_snapshot!(errors.concat());
        let flags = [format!("--registry-addr={taken}"), format!("--containerd-content-path={store}")];
        let error = refused(&[&STATIC[..], &[&flags[0], &flags[1]]].concat()).await;
        assert!(error.starts_with("--registry-addr: ") && error.contains(&taken), "{error}");
    }
}
