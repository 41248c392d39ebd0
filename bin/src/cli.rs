//! The command line: the flags, environment variables and defaults that Spegel has always
//! had, so that a DaemonSet written for the Go implementation runs this one unchanged.
//!
//! A flag wins over its environment variable, which wins over the default. Lists follow their
//! flag separated by spaces (`--mirrored-registries a b`); in the environment they are one
//! line of comma-separated values.

use std::{env, ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};

use spegel_io::listen;

use crate::go_duration;

/// A peer-to-peer image mirror for every Kubernetes node.
#[derive(Debug, Parser)]
#[command(name = "spegel", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// What to log at least.
    #[arg(long, env = "LOG_LEVEL", default_value = "INFO", global = true, ignore_case = true)]
    pub(crate) log_level: LogLevel,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the mirror.
    Registry(Box<Registry>),
    /// Write the mirror configuration of containerd.
    Configuration(Configuration),
    /// Restore containerd's own configuration, then stay until told to end.
    Cleanup(Cleanup),
    /// Wait until every `cleanup` says that it is done.
    CleanupWait(CleanupWait),
    /// Say what keeps this node from mirroring, and what to do about it.
    ///
    /// Exits with 0 if nothing is wrong as far as can be seen, 1 if the check could not be run, 2 if something keeps
    /// the node from mirroring, 3 if something costs but does not. What the flags leave open is what the registry was
    /// told that runs here, else what is usual on such a node.
    Check(Box<Check>),
    /// Print the version.
    Version(Version),
}

/// Addresses to listen at: two where a flag names no host, one for each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) Vec<SocketAddr>);

fn listen_addr(text: &str) -> Result<Listen, String> {
    listen::parse(text).map(Listen).map_err(|error| error.to_string())
}

#[derive(Debug, Args)]
pub(crate) struct Registry {
    /// How to find other nodes: dns, http or static.
    #[arg(long, env = "BOOTSTRAP_KIND")]
    pub(crate) bootstrap_kind: Option<String>,

    /// Name whose addresses are those of the nodes.
    #[arg(long, env = "DNS_BOOTSTRAP_DOMAIN", default_value = "")]
    pub(crate) dns_bootstrap_domain: String,

    /// Where to answer /id for nodes that bootstrap by HTTP; nowhere if empty.
    #[arg(long, env = "HTTP_BOOTSTRAP_ADDR", default_value = "")]
    pub(crate) http_bootstrap_addr: String,

    /// URL that answers with the nodes to join.
    #[arg(long, env = "HTTP_BOOTSTRAP_URL", default_value = "")]
    pub(crate) http_bootstrap_url: String,

    /// Directory with ca.crt, tls.crt and tls.key, each optional, for that URL.
    #[arg(long, env = "HTTP_BOOTSTRAP_CERT_DIR", default_value = "")]
    pub(crate) http_bootstrap_cert_dir: String,

    /// Nodes to join, as multiaddrs with or without /p2p/ID.
    #[arg(long, num_args = 0..)]
    pub(crate) static_bootstrap_peers: Vec<String>,

    /// Where to serve metrics.
    #[arg(long, env = "METRICS_ADDR", default_value = ":9090", value_parser = listen_addr)]
    pub(crate) metrics_addr: Listen,

    /// containerd's socket.
    #[arg(long, env = "CONTAINERD_SOCK", default_value = "/run/containerd/containerd.sock")]
    pub(crate) containerd_sock: PathBuf,

    /// containerd namespace to mirror.
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = "k8s.io")]
    pub(crate) containerd_namespace: String,

    /// containerd's content directory.
    #[arg(
        long,
        env = "CONTAINERD_CONTENT_PATH",
        default_value = "/var/lib/containerd/io.containerd.content.v1.content"
    )]
    pub(crate) containerd_content_path: PathBuf,

    /// Where the node's identity is kept; a new one at each start if empty.
    #[arg(long, env = "DATA_DIR", default_value = "")]
    pub(crate) data_dir: String,

    /// Where to listen for other nodes' control messages.
    #[arg(long, env = "ROUTER_ADDR", default_value = ":5001", value_parser = listen_addr)]
    pub(crate) router_addr: Listen,

    /// Where to serve the registry.
    #[arg(long, env = "REGISTRY_ADDR", default_value = ":5000", value_parser = listen_addr)]
    pub(crate) registry_addr: Listen,

    /// Registries to mirror, as URLs; all if empty.
    #[arg(long, num_args = 0..)]
    pub(crate) mirrored_registries: Vec<String>,

    /// Regular expressions on registry/repository[:tag]; what matches is not mirrored.
    #[arg(long, num_args = 0..)]
    pub(crate) registry_filters: Vec<String>,

    /// How long one node may take to say who has some content before another is asked too.
    #[arg(long, env = "MIRROR_RESOLVE_TIMEOUT", default_value = "20ms", value_parser = go_duration::parse)]
    pub(crate) mirror_resolve_timeout: Duration,

    /// How many holders of some content to try beyond the first.
    #[arg(long, env = "MIRROR_RESOLVE_RETRIES", default_value_t = 3)]
    pub(crate) mirror_resolve_retries: u32,

    /// How long to go on as before once told to end, while /readyz says no: so that nothing leads here any more when
    /// this ends. A minute at most.
    #[arg(long, env = "SHUTDOWN_DELAY", default_value = "0s", value_parser = go_duration::parse)]
    pub(crate) shutdown_delay: Duration,

    /// Whether to show at --metrics-addr what this node knows: a page for people at /debug/web/, only to loopback
    /// (kubectl port-forward) unless there is a token; who it is (/debug/web/metadata) and what the check found
    /// (/debug/web/check), to everybody.
    #[arg(
        long, env = "DEBUG_WEB_ENABLED", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub(crate) debug_web_enabled: bool,

    /// File with a token of 16 characters or more; who shows it, as password or bearer token, sees the debug page
    /// from everywhere, and nobody else does. Only loopback if empty.
    #[arg(long, env = "DEBUG_WEB_TOKEN_FILE", default_value = "")]
    pub(crate) debug_web_token_file: String,

    /// Whether to serve profiles of this process at --metrics-addr, to those who may see the debug page:
    /// /debug/pprof/profile (processor time) and /debug/pprof/heap (memory), for go tool pprof.
    #[arg(
        long, env = "DEBUG_PPROF_ENABLED", default_value_t = false, action = clap::ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub(crate) debug_pprof_enabled: bool,

    /// File with the secret that only the nodes of the cluster have, one or two lines; anybody may join if
    /// empty.
    #[arg(long, env = "CLUSTER_SECRET_FILE", default_value = "")]
    pub(crate) cluster_secret_file: String,

    /// Directory that containerd reads registry configuration from, for the check.
    #[arg(long, env = "CONTAINERD_REGISTRY_CONFIG_PATH", default_value = "/etc/containerd/certs.d")]
    pub(crate) containerd_registry_config_path: PathBuf,

    /// Where the node's configuration is seen, for the check: its directories are looked for below this one.
    #[arg(long, env = "NODE_ROOT", default_value = "/")]
    pub(crate) node_root: PathBuf,

    /// Zone of this node; content is fetched from the same zone first.
    #[arg(long, env = "ZONE", default_value = "")]
    pub(crate) zone: String,
}

#[derive(Debug, Args)]
pub(crate) struct Configuration {
    /// Directory that containerd reads registry configuration from.
    #[arg(long, env = "CONTAINERD_REGISTRY_CONFIG_PATH", default_value = "/etc/containerd/certs.d")]
    pub(crate) containerd_registry_config_path: PathBuf,

    /// Registries to mirror, as URLs; all if empty.
    #[arg(long, num_args = 0..)]
    pub(crate) mirrored_registries: Vec<String>,

    /// URLs at which containerd reaches the mirror.
    #[arg(long, num_args = 0..)]
    pub(crate) mirror_targets: Vec<String>,

    /// Whether the mirror answers for tags too.
    #[arg(
        long, env = "RESOLVE_TAGS", default_value_t = true, action = clap::ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub(crate) resolve_tags: bool,

    /// The mirror's --cluster-secret-file; containerd is given credentials made of it, unless there are
    /// others.
    #[arg(long, env = "CLUSTER_SECRET_FILE", default_value = "")]
    pub(crate) cluster_secret_file: String,

    /// Whether to keep existing mirrors after this one.
    #[arg(
        long, env = "PREPEND_EXISTING", default_value_t = false, action = clap::ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true"
    )]
    pub(crate) prepend_existing: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    /// Where to answer /readyz once done.
    #[arg(long, env = "ADDR")]
    pub(crate) addr: String,

    /// Directory that containerd reads registry configuration from.
    #[arg(long, env = "CONTAINERD_REGISTRY_CONFIG_PATH", default_value = "/etc/containerd/certs.d")]
    pub(crate) containerd_registry_config_path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct CleanupWait {
    /// host:port whose every address must answer.
    #[arg(long, env = "PROBE_ENDPOINT")]
    pub(crate) probe_endpoint: String,

    /// How many times in a row all must answer.
    #[arg(long, env = "THRESHOLD", default_value_t = 3)]
    pub(crate) threshold: u32,

    /// How often to ask.
    #[arg(long, env = "PERIOD", default_value = "2s", value_parser = go_duration::parse)]
    pub(crate) period: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// text, a line for each finding, or json.
    #[arg(long, default_value = "text")]
    pub(crate) output: OutputFormat,

    /// containerd's socket.
    #[arg(long, env = "CONTAINERD_SOCK")]
    pub(crate) containerd_sock: Option<PathBuf>,

    /// containerd namespace that is mirrored.
    #[arg(long, env = "CONTAINERD_NAMESPACE")]
    pub(crate) containerd_namespace: Option<String>,

    /// containerd's content directory.
    #[arg(long, env = "CONTAINERD_CONTENT_PATH")]
    pub(crate) containerd_content_path: Option<PathBuf>,

    /// Directory that containerd reads registry configuration from.
    #[arg(long, env = "CONTAINERD_REGISTRY_CONFIG_PATH")]
    pub(crate) containerd_registry_config_path: Option<PathBuf>,

    /// Registries that are mirrored, as URLs.
    #[arg(long, num_args = 0..)]
    pub(crate) mirrored_registries: Vec<String>,

    /// Where the registry serves metrics; it tells what other nodes there are.
    #[arg(long, env = "METRICS_ADDR", value_parser = listen_addr)]
    pub(crate) metrics_addr: Option<Listen>,

    /// Where the node's configuration is seen: its directories are looked for below this one.
    #[arg(long, env = "NODE_ROOT")]
    pub(crate) node_root: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OutputFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Version {
    /// text or json.
    #[arg(long, default_value = "text")]
    pub(crate) format: VersionFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum VersionFormat {
    Text,
    Json,
}

/// What is to be done instead of running a command.
#[derive(Debug)]
pub(crate) enum Exit {
    /// Help or version was asked for.
    Print(String),
    /// The command line is wrong, in one line.
    Wrong(String),
}

/// Reads the command line and the environment.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Exit> {
    let mut cli = Cli::try_parse_from(args).map_err(|error| {
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            Exit::Print(error.to_string())
        } else if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            // clap would print its help, whose first line is no complaint.
            let commands = "registry, configuration, cleanup, cleanup-wait, check or version";
            Exit::Wrong(format!("no command was given: expected {commands}; see spegel --help"))
        } else {
            Exit::Wrong(one_line(&error.to_string()))
        }
    })?;
    match &mut cli.command {
        Command::Registry(flags) => {
            list_from_env(&mut flags.static_bootstrap_peers, "STATIC_BOOTSTRAP_PEERS")?;
            list_from_env(&mut flags.mirrored_registries, "MIRRORED_REGISTRIES")?;
            list_from_env(&mut flags.registry_filters, "REGISTRY_FILTERS")?;
        }
        Command::Configuration(flags) => {
            list_from_env(&mut flags.mirrored_registries, "MIRRORED_REGISTRIES")?;
            list_from_env(&mut flags.mirror_targets, "MIRROR_TARGETS")?;
            if flags.mirror_targets.is_empty() {
                let message = "--mirror-targets (or MIRROR_TARGETS) is required: give the URL at which \
                               containerd reaches this mirror, such as http://127.0.0.1:5000";
                return Err(Exit::Wrong(message.to_owned()));
            }
        }
        Command::Check(flags) => list_from_env(&mut flags.mirrored_registries, "MIRRORED_REGISTRIES")?,
        Command::Cleanup(_) | Command::CleanupWait(_) | Command::Version(_) => {}
    }
    Ok(cli)
}

/// clap explains over several lines; the first says what is wrong, indented ones name what is
/// missing.
fn one_line(error: &str) -> String {
    let mut lines = error.lines();
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ").trim_end();
    let named: Vec<&str> = lines.take_while(|line| line.starts_with("  ")).map(str::trim).collect();
    let usage = "see spegel --help";
    if named.is_empty() {
        format!("{first}; {usage}")
    } else {
        format!("{first} {}; {usage}", named.join(", "))
    }
}

fn list_from_env(list: &mut Vec<String>, variable: &str) -> Result<(), Exit> {
    if !list.is_empty() {
        return Ok(());
    }
    let Ok(line) = env::var(variable) else { return Ok(()) };
    *list = comma_separated(&line)
        .ok_or_else(|| Exit::Wrong(format!("{variable} is not a line of comma-separated values: {line}")))?;
    Ok(())
}

/// One record of comma-separated values (RFC 4180), as Go's `encoding/csv` reads them.
fn comma_separated(line: &str) -> Option<Vec<String>> {
    if line.is_empty() {
        return Some(Vec::new());
    }
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
    let mut records = reader.records();
    let record = records.next()?.ok()?;
    records.next().is_none().then(|| record.iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Cli {
        parse(args.iter().map(OsString::from)).expect("arguments are right")
    }

    fn wrong(args: &[&str]) -> String {
        match parse(args.iter().map(OsString::from)) {
            Err(Exit::Wrong(message)) => message,
            other => panic!("expected an error, got {other:?}"),
        }
    }

    #[test]
    fn lists_follow_their_flag() {
        let cli = parsed(
            &[
                "spegel",
                "registry",
                "--bootstrap-kind=dns",
                "--mirrored-registries",
                "https://docker.io",
                "https://quay.io",
                "--resolve-tags=false",
            ]
            .map(|arg| if arg == "--resolve-tags=false" { "--debug-web-enabled=false" } else { arg }),
        );
        let Command::Registry(flags) = cli.command else { panic!("registry expected") };
        assert_eq!(flags.mirrored_registries, ["https://docker.io", "https://quay.io"]);
        assert!(!flags.debug_web_enabled);
        assert_eq!(flags.mirror_resolve_timeout, Duration::from_millis(20));
        assert_eq!(cli.log_level, LogLevel::Info);
    }

    #[test]
    fn errors_are_one_line_that_names_the_flag() {
        let cases: [&[&str]; 18] = [
            &[],
            &["nonsense"],
            &["version", "more"],
            &["version", "--format", "xml"],
            &["--log-level", "LOUD", "version"],
            &["registry", "--nonsense"],
            &["registry", "--bootstrap-kind"],
            &["registry", "--registry-addr", "5000"],
            &["registry", "--router-addr", "localhost"],
            &["registry", "--metrics-addr", ":65536"],
            &["registry", "--mirror-resolve-timeout", "soon"],
            &["registry", "--mirror-resolve-retries", "-1"],
            &["registry", "--debug-web-enabled=perhaps"],
            &["configuration"],
            &["check", "--output", "xml"],
            &["cleanup"],
            &["cleanup-wait"],
            &["cleanup-wait", "--probe-endpoint", "a:80", "--threshold", "many", "--period", "2"],
        ];
        let mut errors = Vec::new();
        for args in cases {
            let error = wrong(&[&["spegel"], args].concat());
            assert!(!error.contains('\n'), "{args:?}: {error}");
            errors.push(format!("spegel {}\n  {error}\n", args.join(" ")));
        }
        insta::assert_snapshot!(errors.concat());
    }

    #[test]
    fn help_is_not_an_error() {
        let help = parse(["spegel", "--help"].map(OsString::from));
        assert!(matches!(help, Err(Exit::Print(text)) if text.contains("cleanup-wait")));
    }

    #[test]
    fn values_in_the_environment_may_be_quoted() {
        let read = |line| comma_separated(line).expect("well-formed");
        assert_eq!(read("a,b"), ["a", "b"]);
        assert_eq!(read(r#""a{1,3}",b"#), ["a{1,3}", "b"]);
        assert_eq!(read(""), Vec::<String>::new());
        assert_eq!(comma_separated("a\nb"), None);
    }
}
