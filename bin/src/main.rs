//! The `spegel` command: flags, wiring, signals.

mod check;
mod cli;
mod go_duration;
mod registry;

use std::{error::Error, future::Future, io::Write as _, num::NonZero, path::Path, process::ExitCode};

use spegel_io::{
    cleanup,
    hosts_toml::{self, BASIC_AUTH_DIR, BasicAuth, HostsTomlSettings},
    trust,
};
use spegel_profiles::Allocator;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tracing::{error, info, level_filters::LevelFilter};

use crate::cli::{Command, Exit, LogLevel, VersionFormat};

/// The system's, which notes some of what passes if profiles are wanted.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Most threads that serve. The kernel moves the bytes, so that each does gigabytes a second: more only
/// cost memory, on nodes with very many cores. Fewer and parsing and checking get in each other's way.
const WORKERS_MAX: usize = 4;

/// Most threads that wait for the disk or for DNS at once. Fewer and one slow disk read delays others; each
/// has a stack.
const BLOCKING_THREADS_MAX: usize = 32;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(Exit::Print(text)) => return print(&text),
        Err(Exit::Wrong(line)) => return fail(&line),
    };
    let runs = match &cli.command {
        Command::Version(version) => return print(&version_text(version.format)),
        Command::Registry(_)
        | Command::Configuration(_)
        | Command::Cleanup(_)
        | Command::CleanupWait(_)
        | Command::Check(_) => runtime(),
    };
    let runtime = match runs {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("threads cannot be started: {error}")),
    };
    log_to_stderr(cli.log_level);
    if let Command::Check(flags) = cli.command {
        let (text, code) = runtime.block_on(check::run(*flags));
        return if print(&text) == ExitCode::SUCCESS { code } else { ExitCode::FAILURE };
    }
    match runtime.block_on(run(cli.command)) {
        Ok(()) => {
            info!("exit gracefully");
            ExitCode::SUCCESS
        }
        Err(cause) => {
            error!(error = %chain(cause.as_ref()), "exit with error");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> std::io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    Builder::new_multi_thread()
        .worker_threads(cores.min(WORKERS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build()
}

async fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Registry(flags) => registry::run(*flags, terminated()?).await,
        Command::Configuration(flags) => {
            let settings = HostsTomlSettings {
                config_path: flags.containerd_registry_config_path,
                mirrored_registries: flags.mirrored_registries,
                mirror_targets: flags.mirror_targets,
                resolve_tags: flags.resolve_tags,
                prepend_existing: flags.prepend_existing,
                auth: auth_of_client(&flags.cluster_secret_file)?,
            };
            hosts_toml::configure(&settings)?;
            info!(path = %settings.config_path.display(), "containerd asks the mirror first");
            Ok(())
        }
        Command::Cleanup(flags) => {
            Ok(cleanup::cleanup(&flags.addr, &flags.containerd_registry_config_path, terminated()?).await?)
        }
        Command::CleanupWait(flags) => {
            let wait = cleanup::cleanup_wait(&flags.probe_endpoint, flags.threshold, flags.period);
            tokio::select! {
                done = wait => Ok(done?),
                () = terminated()? => Err("ended before every cleanup had answered".into()),
            }
        }
        Command::Check(_) | Command::Version(_) => unreachable!("answered before"),
    }
}

/// What containerd is to show: what the operator chose, or else something made of the secret.
fn auth_of_client(cluster_secret_file: &str) -> Result<Option<BasicAuth>, Box<dyn Error>> {
    let secrets = match cluster_secret_file {
        "" => None,
        path => Some(trust::read(Path::new(path))?),
    };
    let chosen = BasicAuth::read(Path::new(BASIC_AUTH_DIR))?;
    Ok(chosen.or_else(|| secrets.as_ref().and_then(BasicAuth::of_cluster)))
}

/// Completes when the process is told to end.
fn terminated() -> Result<impl Future<Output = ()>, std::io::Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn log_to_stderr(level: LogLevel) {
    let level = match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let own = ["spegel", "spegel_io"].map(|target| format!("{target}={level}")).join(",");
    // Libraries speak of their own affairs: what an operator must know, this program says itself.
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,{own}"));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_file(true)
        .with_line_number(true)
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
}

fn version_text(format: VersionFormat) -> String {
    let version = env!("CARGO_PKG_VERSION");
    match format {
        VersionFormat::Text => format!("spegel {version}\n"),
        VersionFormat::Json => format!("{{\"name\":\"spegel\",\"version\":\"{version}\"}}\n"),
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn fail(line: &str) -> ExitCode {
    // With stderr gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "spegel: {line}");
    ExitCode::FAILURE
}

/// An error and what caused it, in one line; causes that their error already quotes are left out.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
