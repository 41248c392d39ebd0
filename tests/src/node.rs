//! One node: its containerd and its `spegel`, what can be done to them and asked of them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::containerd::{self, Paths};
use crate::http::{Answer, HttpClient};
use crate::image::{Blob, Image};
use crate::netns::{NetNs, ip_batch};
use crate::parts::{Generation, spegel_binary};
use crate::process::{Process, run, tail};
use crate::wait::wait_for;
use crate::{METRICS_PORT, MIRROR_PORT, REGISTRY, cri};

/// containerd is up in under a second on an idle machine; a loaded one gets a multiple.
const CONTAINERD_START_MAX: Duration = Duration::from_secs(30);
/// SIGTERM lets containerd close its database; SIGKILL follows.
const CONTAINERD_STOP_MAX: Duration = Duration::from_secs(10);
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// A line of log is some 200 bytes: a screen full, not a flood.
const TAIL_LINES: usize = 25;

/// A machine of the cluster.
#[derive(Debug)]
pub struct Node {
    /// `n1`, `n2`, …; also its host name inside the cluster.
    pub name: String,
    pub generation: Generation,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    /// Everything of this node lies here: logs, containerd's root, certs.d, the mirror's data directory.
    pub dir: PathBuf,
    pub(crate) paths: Paths,
    netns: NetNs,
    bridge: String,
    containerd: Mutex<Option<Process>>,
    spegel: Mutex<Option<Process>>,
    /// Arguments of `spegel registry`, as the cluster composed them.
    pub(crate) spegel_args: Mutex<Vec<String>>,
}

impl Node {
    pub(crate) fn new(
        name: String,
        generation: Generation,
        (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
        dir: PathBuf,
        (netns, bridge): (NetNs, &str),
    ) -> Self {
        fs::create_dir_all(&dir).expect("the cluster's directory is ours");
        let paths = Paths::new(&dir);
        let node = Self {
            name,
            generation,
            v4,
            v6,
            dir,
            paths,
            netns,
            bridge: bridge.to_owned(),
            containerd: Mutex::new(None),
            spegel: Mutex::new(None),
            spegel_args: Mutex::new(Vec::new()),
        };
        node.write(&node.paths.config, &containerd::config(generation, &node.paths));
        node.bypass_mirror();
        node
    }

    #[must_use]
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The address other nodes use; IPv4 where there are both.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        let v4 = self.v4.map(IpAddr::V4);
        v4.or_else(|| self.v6.map(IpAddr::V6)).expect("a node has an address")
    }

    /// Every address.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    // --- containerd

    /// Starts containerd without waiting for it.
    pub fn spawn_containerd(&self) {
        self.spawn_containerd_with(&[]);
    }

    /// Starts containerd with variables in its environment.
    pub fn spawn_containerd_with(&self, variables: &[(&str, &str)]) {
        self.spawn_containerd_as(&self.generation.containerd(), variables);
    }

    /// Starts a containerd of the test's choice, with variables in its environment.
    pub fn spawn_containerd_as(&self, program: &Path, variables: &[(&str, &str)]) {
        let mut command = self.netns.command_with_cgroups(program);
        // Without these it would look for a proxy, a tracing collector or a notify socket of this machine.
        command.arg("--config").arg(&self.paths.config).env_remove("NOTIFY_SOCKET");
        // Its shim is looked for there, and one of another generation may speak differently.
        command.env("PATH", self.generation.path());
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            command.env_remove(proxy);
        }
        command.envs(variables.iter().copied());
        let process = Process::spawn("containerd", command, &self.dir.join("containerd.log"));
        *lock(&self.containerd) = Some(process);
    }

    /// Waits until containerd answers the kubelet.
    pub fn wait_containerd(&self) {
        let look = || {
            if lock(&self.containerd).as_mut().is_none_or(|process| process.exited().is_some()) {
                return Err("it is not running".to_owned());
            }
            cri::list(&self.paths.socket, Duration::from_secs(2))
        };
        if let Err(error) = wait_for("containerd answers", CONTAINERD_START_MAX, look) {
            panic!("{}: {error}\n{}", self.name, self.logs());
        }
    }

    /// Starts containerd and waits until it answers.
    pub fn start_containerd(&self) {
        self.spawn_containerd();
        self.wait_containerd();
    }

    /// Stops containerd as systemd does; its socket file stays.
    pub fn stop_containerd(&self) {
        let mut process = lock(&self.containerd);
        if let Some(process) = process.as_mut() {
            process.signal(Signal::SIGTERM);
            let _killed_below = process.wait(CONTAINERD_STOP_MAX);
        }
        *process = None;
    }

    /// SIGKILL to containerd.
    pub fn kill_containerd(&self) {
        *lock(&self.containerd) = None;
    }

    /// Its configuration file.
    #[must_use]
    pub fn containerd_config(&self) -> &Path {
        &self.paths.config
    }

    /// Changes its configuration file and starts it anew.
    pub fn reconfigure_containerd(&self, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(&self.paths.config).expect("the harness wrote it");
        let changed = change(text.clone());
        assert_ne!(changed, text, "the change changes nothing");
        self.write(&self.paths.config, &changed);
        self.stop_containerd();
        self.start_containerd();
    }

    /// Where it looks for registries.
    #[must_use]
    pub fn registry_config_path(&self) -> &Path {
        &self.paths.hosts
    }

    /// Its content store.
    #[must_use]
    pub fn content_path(&self) -> PathBuf {
        self.paths.content()
    }

    /// containerd's socket, to see when it is back.
    #[must_use]
    pub fn containerd_socket(&self) -> &Path {
        &self.paths.socket
    }

    /// Where a blob is in containerd's content directory.
    #[must_use]
    pub fn blob_file(&self, blob: &Blob) -> PathBuf {
        self.paths.content().join("blobs/sha256").join(blob.hex())
    }

    // --- the mirror

    /// Makes containerd go straight to the registry, as on a node without Spegel.
    pub fn bypass_mirror(&self) {
        let dir = self.paths.hosts.join(REGISTRY);
        fs::create_dir_all(&dir).expect("the node's directory is ours");
        let host = format!("http://{REGISTRY}");
        let text = format!("server = '{host}'\n[host.'{host}']\ncapabilities = ['pull', 'resolve']\n");
        self.write(&dir.join("hosts.toml"), &text);
    }

    /// Runs `spegel configuration`, so that containerd asks the mirror on this node first.
    ///
    /// # Errors
    /// If the command fails.
    pub fn configure_mirror(&self) -> Result<(), String> {
        let _first_time = fs::remove_dir_all(&self.paths.hosts);
        self.write_mirror_configuration()
    }

    /// Runs `spegel configuration` over what it has written before, as a restarted pod does.
    ///
    /// # Errors
    /// If the command fails.
    pub fn write_mirror_configuration(&self) -> Result<(), String> {
        let mut command = self.netns.command(spegel_binary());
        command.arg("configuration");
        command.arg(format!("--containerd-registry-config-path={}", self.paths.hosts.display()));
        command.arg(format!("--mirrored-registries=http://{REGISTRY}"));
        command.arg(format!("--mirror-targets=http://{}", self.mirror_address()));
        command.args(self.cluster_secret_argument());
        run(command).map(drop)
    }

    /// Gives the node's mirror a cluster secret, or another one, as the kubelet replaces what is mounted.
    pub fn put_cluster_secret(&self, secrets: &[&str]) {
        let new = self.dir.join("cluster-secret.new");
        self.write(&new, &secrets.join("\n"));
        fs::rename(&new, self.cluster_secret_file()).expect("the node's directory is ours");
    }

    fn cluster_secret_file(&self) -> PathBuf {
        self.dir.join("cluster-secret")
    }

    /// The flag that names the node's cluster secret, if it has one.
    pub(crate) fn cluster_secret_argument(&self) -> Option<String> {
        let file = self.cluster_secret_file();
        file.exists().then(|| format!("--cluster-secret-file={}", file.display()))
    }

    /// Gives the node's mirror and its containerd a user name and password, where the chart mounts them.
    pub fn put_basic_auth(&self, username: &str, password: &str) {
        // `ip netns exec` puts what is below /etc/netns/NAME over what is of the same name in /etc, if that is there.
        let dir = PathBuf::from(format!("/etc/netns/{}/secrets/basic-auth", self.netns.name()));
        fs::create_dir_all("/etc/secrets").expect("the harness runs as root");
        fs::create_dir_all(&dir).expect("the harness runs as root");
        self.write(&dir.join("username"), username);
        self.write(&dir.join("password"), password);
    }

    /// What containerd shows to the mirror, out of the configuration that was written for it.
    #[must_use]
    pub fn authorization(&self) -> Option<String> {
        let text = fs::read_to_string(self.paths.hosts.join(REGISTRY).join("hosts.toml")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Authorization = "))?;
        Some(line.trim_matches('\'').to_owned())
    }

    /// The mirror of this node as its containerd reaches it.
    #[must_use]
    pub fn mirror_address(&self) -> SocketAddr {
        SocketAddr::new(self.address(), MIRROR_PORT)
    }

    /// Starts `spegel registry` without waiting for it.
    pub fn spawn_spegel(&self) {
        self.spawn_spegel_by(self.netns.command(spegel_binary()));
    }

    /// Starts it by another program, which is given these arguments and the command to run.
    pub fn spawn_spegel_under(&self, program: &Path, arguments: &[&str]) {
        let mut command = self.netns.command(program);
        command.args(arguments).arg(spegel_binary());
        self.spawn_spegel_by(command);
    }

    fn spawn_spegel_by(&self, mut command: Command) {
        command.arg("registry").args(lock(&self.spegel_args).iter());
        *lock(&self.spegel) = Some(Process::spawn("spegel", command, &self.dir.join("spegel.log")));
    }

    /// Waits until `/readyz` says yes, and says how long that took.
    ///
    /// # Errors
    /// If it does not within this time, or the process ended.
    pub fn wait_ready(&self, within: Duration) -> Result<Duration, String> {
        let look = || {
            if let Some(status) = self.spegel_exited() {
                return Err(format!("spegel ended with {status}"));
            }
            match self.get("/readyz", &[])? {
                Answer { status: 200, .. } => Ok(()),
                Answer { status, .. } => Err(format!("/readyz says {status}")),
            }
        };
        let waited = wait_for("the mirror is ready", within, look).map(|((), elapsed)| elapsed);
        waited.map_err(|error| format!("{}: {error}", self.name))
    }

    /// Stops the mirror as the kubelet does, and gives its exit status.
    ///
    /// # Errors
    /// If it still runs after `within`.
    pub fn stop_spegel(&self, within: Duration) -> Result<ExitStatus, String> {
        self.signal_spegel(Signal::SIGTERM);
        self.wait_spegel(within)
    }

    /// Waits until the mirror has ended by itself.
    ///
    /// # Errors
    /// If it still runs after `within`, or never ran.
    pub fn wait_spegel(&self, within: Duration) -> Result<ExitStatus, String> {
        let mut process = lock(&self.spegel);
        process.as_mut().ok_or("spegel was not started")?.wait(within)
    }

    /// SIGKILL to the mirror.
    pub fn kill_spegel(&self) {
        if let Some(process) = lock(&self.spegel).as_mut() {
            process.kill();
        }
    }

    /// What the mirror ended with, if it has.
    #[must_use]
    pub fn spegel_exited(&self) -> Option<ExitStatus> {
        lock(&self.spegel).as_mut().and_then(Process::exited)
    }

    /// Sends the mirror a signal.
    pub fn signal_spegel(&self, signal: Signal) {
        if let Some(process) = lock(&self.spegel).as_ref() {
            process.signal(signal);
        }
    }

    /// The mirror's process, if it was started.
    #[must_use]
    pub fn spegel_pid(&self) -> Option<u32> {
        lock(&self.spegel).as_ref().map(Process::pid)
    }

    /// Processor time of the mirror so far.
    #[must_use]
    pub fn spegel_cpu_seconds(&self) -> f64 {
        lock(&self.spegel).as_ref().map_or(0.0, Process::cpu_seconds)
    }

    /// Resident memory of the mirror.
    #[must_use]
    pub fn spegel_rss_bytes(&self) -> u64 {
        lock(&self.spegel).as_ref().map_or(0, Process::rss_bytes)
    }

    /// Everything the mirror has logged.
    #[must_use]
    pub fn spegel_log(&self) -> String {
        fs::read_to_string(self.dir.join("spegel.log")).unwrap_or_default()
    }

    // --- asking

    /// Opens a connection to any address from inside this node.
    ///
    /// # Errors
    /// If nothing accepts.
    pub fn connect(&self, address: SocketAddr) -> Result<HttpClient, String> {
        self.netns.enter(|| HttpClient::connect(address, CONNECT_MAX))
    }

    /// Opens a connection to this node's own mirror, as its containerd does.
    ///
    /// # Errors
    /// If nothing accepts.
    pub fn client(&self) -> Result<HttpClient, String> {
        self.connect(self.mirror_address())
    }

    /// GET at this node's own mirror, with what containerd shows it.
    ///
    /// # Errors
    /// If no answer comes.
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        self.ask("GET", path, headers)
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        let authorization = self.authorization();
        let own = authorization.iter().map(|value| ("Authorization", value.as_str()));
        let headers: Vec<(&str, &str)> = headers.iter().copied().chain(own).collect();
        self.client()?.request(method, path, &headers)
    }

    /// Whether this node's mirror can get what the path names, from here or from a peer.
    ///
    /// # Errors
    /// With the status it answered instead.
    pub fn finds(&self, path: &str) -> Result<(), String> {
        match self.ask("HEAD", path, &[("Connection", "close")])?.status {
            200 => Ok(()),
            status => Err(format!("{}: {status} for {path}", self.name)),
        }
    }

    /// Waits until this node's mirror can get the image by tag and all its content, and says how long that took.
    ///
    /// # Errors
    /// Naming what it could not get.
    pub fn wait_finds(&self, image: &Image, within: Duration) -> Result<Duration, String> {
        let mut paths: Vec<String> = image.needed.iter().map(|blob| image.blob_path(blob)).collect();
        paths.push(image.tag_path());
        // What was found once is not asked again, so that the time is that of the last one.
        let look = || {
            while let Some(path) = paths.last() {
                self.finds(path)?;
                paths.pop();
            }
            Ok(())
        };
        wait_for("the image is found", within, look).map(|((), elapsed)| elapsed)
    }

    /// GET at another node's mirror, as a peer that must be answered from the local store alone.
    ///
    /// # Errors
    /// If no answer comes.
    pub fn get_as_peer(&self, other: &Self, path: &str) -> Result<Answer, String> {
        self.connect(other.mirror_address())?.get(path, &[("X-Spegel-Mirrored", "true")])
    }

    /// The metrics page.
    ///
    /// # Errors
    /// If no answer comes.
    pub fn metrics(&self) -> Result<String, String> {
        let address = SocketAddr::new(self.address(), METRICS_PORT);
        self.connect(address)?.get("/metrics", &[("Connection", "close")]).map(|answer| answer.text())
    }

    /// Sum of a metric over the label sets that contain `labels`.
    ///
    /// # Errors
    /// If the page can't be read.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64, String> {
        let page = self.metrics()?;
        let lines = page
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let values = lines
            .filter(|line| line.contains(labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        // The sum of no numbers is -0 otherwise.
        Ok(values.fold(0.0, |sum, value| sum + value))
    }

    // --- breaking

    /// The node vanishes: nothing gets in or out, nobody is told.
    pub fn link_down(&self) {
        ip_batch(Some(&self.bridge), &format!("link set {} down\n", self.name));
    }

    /// Undoes [`Self::link_down`].
    pub fn link_up(&self) {
        ip_batch(Some(&self.bridge), &format!("link set {} up\n", self.name));
    }

    /// Limits what the node can send.
    pub fn limit(&self, mbit: Option<u32>) {
        self.netns.shape("eth0", mbit);
    }

    /// The mirror stands still with its sockets open.
    pub fn freeze_spegel(&self) {
        self.signal_spegel(Signal::SIGSTOP);
    }

    /// Undoes [`Self::freeze_spegel`].
    pub fn thaw_spegel(&self) {
        self.signal_spegel(Signal::SIGCONT);
    }

    /// RSTs sent from this node since it was made.
    #[must_use]
    pub fn resets_sent(&self) -> u64 {
        self.netns.tcp_counter("OutRsts")
    }

    /// The ends of all logs of this node, for the message of a failed assertion.
    #[must_use]
    pub fn logs(&self) -> String {
        let of = |name: &str| {
            let log = self.dir.join(name);
            format!("--- {}\n{}\n", log.display(), tail(&log, TAIL_LINES))
        };
        let mut logs: Vec<String> = ["containerd.log", "spegel.log"].map(of).into();
        // The mirror, where the test runs it in a container.
        if self.dir.join("registry.log").exists() {
            logs.push(of("registry.log"));
        }
        logs.concat()
    }

    fn write(&self, path: &Path, text: &str) {
        fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// A test thread that panicked must not hide its own message behind a poisoned lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
