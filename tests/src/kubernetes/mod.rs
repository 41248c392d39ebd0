//! A whole Kubernetes on this machine, for what containerd alone cannot show: kube-proxy, the kubelet, helm.
//!
//! etcd, the control plane, the cluster's DNS and a registry are in one network namespace; each node is in one of its
//! own, with its own process tree and its own view of the directories that distributions use. It takes some six
//! seconds to start, and leaves nothing behind.

mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Removal, build_network};
use crate::image::{Image, ImageSpec};
use crate::netns::{NetNs, ip_batch};
use crate::parts::{Generation, helm, kubernetes_dir};
use crate::process::{Process, run, tail};
use crate::sweep::{base_dir, cluster_name, sweep_dead};
use crate::upstream::Upstream;
use crate::wait::wait_for;
use crate::{IpFamily, chart_dir};

pub use machine::Machine;

/// Where the control plane is: beside the registry.
const CONTROL: &str = "10.99.0.250";
/// What the cluster's DNS is called by pods.
const DNS: &str = "10.96.0.10";
/// An idle machine takes four seconds.
const START_MAX: Duration = Duration::from_secs(60);
/// A screen full of each log.
const TAIL_LINES: usize = 15;

/// A running Kubernetes; dropping it removes every trace.
#[derive(Debug)]
pub struct Kubernetes {
    /// `n1`, `n2`, …, as many as generations were named.
    pub machines: Vec<Machine>,
    version: String,
    dir: PathBuf,
    control: NetNs,
    registry: Upstream,
    processes: Vec<Process>,
    // Last, as everything must have ended before it is removed.
    _removal: Removal,
}

impl Kubernetes {
    /// Starts one with a node for each of these, and waits until all of them are ready.
    ///
    /// # Panics
    /// If something is missing or does not start, with the ends of the logs.
    #[must_use]
    pub fn start(version: &str, generations: &[Generation]) -> Self {
        sweep_dead();
        let name = cluster_name(0);
        let dir = base_dir().join(&name);
        let removal = Removal::of(&name, &dir);
        for part in ["images", "control"] {
            fs::create_dir_all(dir.join(part)).expect("/tmp is writable");
        }
        let hosts: Vec<(String, u8)> = (1..).take(generations.len()).map(|n| (format!("n{n}"), n)).collect();
        build_network(&name, &hosts, IpFamily::V4);
        let bridge = format!("{name}-br");
        let registry = Upstream::start(NetNs::open(&format!("{name}-registry")), &bridge, &dir);
        let mut kubernetes = Self {
            machines: Vec::new(),
            version: version.to_owned(),
            control: NetNs::open(&format!("{name}-registry")),
            registry,
            processes: Vec::new(),
            dir,
            _removal: removal,
        };
        for (host, n) in &hosts {
            // Each node's pods have a network of their own, which is behind the node.
            let route = format!("route add 10.244.{n}.0/24 via 10.99.0.{n}\n");
            let others = hosts.iter().map(|(other, _)| other.as_str()).filter(|other| other != host);
            others.chain(["registry"]).for_each(|other| ip_batch(Some(&format!("{name}-{other}")), &route));
        }
        kubernetes.start_control_plane();
        let config = kubernetes.kubeconfig();
        let pause = kubernetes.image(&ImageSpec::new("pause", "1", &[]));
        for ((_, n), generation) in hosts.iter().zip(generations) {
            let machine = Machine::start(&name, *n, *generation, &kubernetes.dir, &config, version);
            kubernetes.machines.push(machine);
        }
        kubernetes.machines.iter().for_each(|machine| {
            let imported = machine.import(&pause);
            kubernetes.expect("the pause image", imported);
        });
        kubernetes.wait_nodes(generations.len());
        kubernetes
    }

    fn start_control_plane(&mut self) {
        let dir = self.dir.join("control");
        let path = |name: &str| dir.join(name).display().to_string();
        let key = ["genrsa", "-out", &path("sa.key"), "2048"];
        run(with(Command::new("openssl"), &key)).expect("openssl is there");
        fs::write(path("tokens"), "token,admin,1,system:masters\n").expect("the directory is ours");
        let user = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster":
                {"server": format!("https://{CONTROL}:6443"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "it", "user": {"token": "token"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        });
        fs::write(self.kubeconfig(), user.to_string()).expect("the directory is ours");
        let config = self.kubeconfig().display().to_string();
        let zone = format!(
            ".:53 {{\n errors\n kubernetes cluster.local {{\n kubeconfig {config} it\n ttl 5\n }}\n}}\n"
        );
        fs::write(path("Corefile"), zone).expect("the directory is ours");

        let etcd = "http://127.0.0.1:2379";
        self.spawn(
            "etcd",
            &[
                &format!("--data-dir={}", path("etcd")),
                &format!("--listen-client-urls={etcd}"),
                &format!("--advertise-client-urls={etcd}"),
                "--unsafe-no-fsync",
            ],
        );
        self.spawn(
            "kube-apiserver",
            &[
                &format!("--etcd-servers={etcd}"),
                &format!("--cert-dir={}", path("certificates")),
                &format!("--token-auth-file={}", path("tokens")),
                &format!("--service-account-key-file={}", path("sa.key")),
                &format!("--service-account-signing-key-file={}", path("sa.key")),
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=Node,RBAC",
                "--service-cluster-ip-range=10.96.0.0/16",
                &format!("--advertise-address={CONTROL}"),
                "--allow-privileged=true",
                "--kubelet-preferred-address-types=InternalIP",
            ],
        );
        let look = || self.kubectl(&["get", "--raw", "/readyz"]);
        let up = wait_for("the API server answers", START_MAX, look);
        self.expect("the control plane", up);
        let own = format!("--kubeconfig={config}");
        let key = format!("--service-account-private-key-file={}", path("sa.key"));
        self.spawn("kube-controller-manager", &[&own, &key, "--leader-elect=false"]);
        self.spawn("kube-scheduler", &[&own, "--leader-elect=false"]);
        self.spawn("coredns", &["-conf", &path("Corefile")]);
        let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]);
        let dns = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
                "spec": {"clusterIP": DNS, "ports": ports}},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "kube-dns", "namespace": "kube-system",
                    "labels": {"kubernetes.io/service-name": "kube-dns"}},
                "endpoints": [{"addresses": [CONTROL]}], "ports": ports},
        ]});
        fs::write(path("dns.json"), dns.to_string()).expect("the directory is ours");
        let applied = wait_for("DNS", START_MAX, || self.kubectl(&["apply", "-f", &path("dns.json")]));
        self.expect("the cluster's DNS", applied);
    }

    fn spawn(&mut self, program: &str, args: &[&str]) {
        let mut command = self.control.command(kubernetes_dir(&self.version).join(program));
        command.args(args);
        let log = self.dir.join(format!("{program}.log"));
        self.processes.push(Process::spawn(program, command, &log));
    }

    fn wait_nodes(&self, count: usize) {
        let look = || {
            let nodes = self.kubectl(&["get", "nodes", "--no-headers"])?;
            let ready = nodes.lines().filter(|line| line.contains(" Ready ")).count();
            if ready == count { Ok(()) } else { Err(nodes) }
        };
        let ready = wait_for("all nodes are ready", START_MAX, look);
        self.expect("the nodes", ready);
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("control/kubeconfig")
    }

    /// N of 1.N.
    ///
    /// # Panics
    /// If the version is none.
    #[must_use]
    pub fn minor_version(&self) -> u32 {
        let minor = self.version.split('.').nth(1).and_then(|minor| minor.parse().ok());
        minor.unwrap_or_else(|| panic!("{} is no version of Kubernetes such as 1.35.4", self.version))
    }

    /// Runs kubectl as an administrator.
    ///
    /// # Errors
    /// With what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        run(with(self.administrator("kubectl"), args))
    }

    /// What the API server knows of objects, as `kubectl get` takes them.
    ///
    /// # Errors
    /// With what kubectl said.
    pub fn get(&self, args: &[&str]) -> Result<Value, String> {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// Runs lines of a shell as an administrator would, in the project's directory.
    ///
    /// # Errors
    /// With what was said by the first that fails.
    pub fn shell(&self, lines: &str) -> Result<String, String> {
        let mut command = self.administrator("bash");
        command.args(["-euo", "pipefail", "-c", lines]);
        run(command)
    }

    fn administrator(&self, program: &str) -> Command {
        let mut command = self.control.command(program);
        let helm = helm();
        let own = [kubernetes_dir(&self.version), helm.parent().map(Path::to_path_buf).unwrap_or_default()];
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&inherited)));
        command.env("PATH", path.expect("these are directories")).env("KUBECONFIG", self.kubeconfig());
        command.current_dir(chart_dir().join("../../.."));
        command
    }

    /// Puts an archive of an OCI layout into the registry.
    pub fn publish(&self, archive: &Path, repository: &str, tag: &str) {
        self.registry.publish(&Image::from_archive(&self.dir.join("images"), archive, repository, tag));
    }

    /// An image that the registry does not have, with a program that does nothing until it is told to end.
    #[must_use]
    pub fn image(&self, spec: &ImageSpec) -> Image {
        let program = Some(kubernetes_dir(&self.version).join("pause"));
        Image::build(&self.dir.join("images"), &ImageSpec { program, ..spec.clone() })
    }

    /// Unwraps, or panics with `what`, the error and the ends of all logs.
    pub fn expect<T>(&self, what: &str, result: Result<T, String>) -> T {
        result.unwrap_or_else(|error| panic!("{what}: {error}\n{}", self.logs()))
    }

    fn logs(&self) -> String {
        let control = self.processes.iter().map(|process| process.log().to_path_buf());
        let all = control.chain(self.machines.iter().flat_map(Machine::logs));
        all.map(|log| format!("--- {}\n{}\n", log.display(), tail(&log, TAIL_LINES))).collect()
    }
}

fn with(mut command: Command, args: &[&str]) -> Command {
    command.args(args);
    command
}
