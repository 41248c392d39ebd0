//! One node of it: containerd, the kubelet and kube-proxy, with a process tree of their own, and the directories that a
//! distribution would give them.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::image::Image;
use crate::netns::NetNs;
use crate::parts::{Generation, kubernetes_dir};
use crate::process::{Process, run};
use crate::wait::wait_for;

use super::DNS;

/// containerd is up in a second on an idle machine.
const START_MAX: Duration = Duration::from_secs(30);
/// Controllers of control groups that runc needs.
const CONTROLLERS: [&str; 9] =
    ["blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids", "systemd"];

/// What the kubelet needs to run pods, and what changes it.
#[derive(Debug)]
pub struct Machine {
    /// `n1`, `n2`, …
    pub name: String,
    pub generation: Generation,
    pub address: IpAddr,
    dir: PathBuf,
    netns: NetNs,
    process: Process,
}

impl Machine {
    pub(super) fn start(
        cluster: &str,
        n: u8,
        generation: Generation,
        parent: &Path,
        kubeconfig: &Path,
        version: &str,
    ) -> Self {
        let name = format!("n{n}");
        let dir = parent.join(&name);
        for part in ["lib/kubelet", "log", "run", "containerd/certs.d", "cni"] {
            fs::create_dir_all(dir.join(part)).expect("/tmp is writable");
        }
        let group = format!("{cluster}-{name}");
        make_groups(&group);
        let address = IpAddr::from([10, 99, 0, n]);
        let plugins = kubernetes_dir(version).join("cni");
        let network = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": dir.join("addresses"),
                "ranges": [[{"subnet": format!("10.244.{n}.0/24")}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }]});
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupRoot": format!("/{group}"), "cgroupDriver": "cgroupfs", "failCgroupV1": false,
            "enforceNodeAllocatable": [], "failSwapOn": false,
            "clusterDNS": [DNS], "clusterDomain": "cluster.local",
            // A full disk of this machine is not what is tried here.
            "evictionHard": {"memory.available": "50Mi"}, "imageGCHighThresholdPercent": 100,
        });
        let proxy = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "clusterCIDR": "10.244.0.0/16", "hostnameOverride": name,
            "clientConnection": {"kubeconfig": kubeconfig}, "conntrack": {"maxPerCore": 0, "min": 0},
            "nodePortAddresses": ["10.99.0.0/24"],
        });
        let write = |file: &str, text: String| {
            fs::write(dir.join(file), text).expect("the directory is ours");
        };
        write("cni/pods.conflist", network.to_string());
        write("kubelet.json", kubelet.to_string());
        write("proxy.json", proxy.to_string());
        write("containerd/config.toml", containerd_config(generation, &plugins, &dir.join("cni")));
        let netns = NetNs::open(&group);
        let programs = kubernetes_dir(version);
        write(
            "start",
            format!(
                "mount --make-rshared /
             for file in hosts resolv.conf; do mount --bind /etc/netns/{group}/$file /etc/$file; done
             mount --bind {dir}/containerd /etc/containerd
             mount --bind {dir}/lib /var/lib
             mount --bind {dir}/log /var/log
             mount --bind {dir}/run /run
             echo 1 > /proc/sys/net/ipv4/ip_forward
             hostname {name}
             cd /
             containerd > {dir}/containerd.log 2>&1 &
             until [ -S /run/containerd/containerd.sock ]; do sleep 0.05; done
             {programs}/kubelet --config {dir}/kubelet.json --kubeconfig {config} --hostname-override {name} \
                 --node-ip {address} > {dir}/kubelet.log 2>&1 &
             {programs}/kube-proxy --config {dir}/proxy.json > {dir}/kube-proxy.log 2>&1 &
             wait -n
             echo one of them has ended\n",
                dir = dir.display(),
                programs = programs.display(),
                config = kubeconfig.display(),
            ),
        );
        // The first process of the tree: with it ends whatever the kubelet has started.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.arg("nsenter").arg(format!("--net=/run/netns/{group}"));
        command.args(["bash", "-eu"]).arg(dir.join("start"));
        command.env("PATH", generation.path()).env_remove("NOTIFY_SOCKET");
        let process = Process::spawn(&name, command, &dir.join("node.log"));
        let machine = Self { name, generation, address, dir, netns, process };
        if let Err(error) = wait_for("containerd answers", START_MAX, || machine.run(&["ctr", "version"])) {
            panic!("{}: {error}; see {}", machine.name, machine.dir.display());
        }
        machine
    }

    #[must_use]
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Runs a program on the node, as somebody who has logged in there.
    ///
    /// # Errors
    /// With what it said.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        let pid = self.process.pid();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(&children).map_err(|error| format!("{children}: {error}"))?;
        let first = children.split_whitespace().next().ok_or("the node has no process")?;
        let mut command = Command::new("nsenter");
        command.args(["--target", first, "--mount", "--uts", "--pid", "--net"]).args(words);
        command.env("PATH", self.generation.path());
        run(command)
    }

    /// Imports an image for the kubelet.
    ///
    /// # Errors
    /// With what `ctr` said.
    pub fn import(&self, image: &Image) -> Result<String, String> {
        self.run(&["ctr", "-n", "k8s.io", "images", "import", &image.archive().display().to_string()])
    }

    /// Where its containerd looks for registries.
    #[must_use]
    pub fn registry_config_path(&self) -> PathBuf {
        self.dir.join("containerd/certs.d")
    }

    pub(super) fn logs(&self) -> impl Iterator<Item = PathBuf> {
        ["node", "containerd", "kubelet", "kube-proxy"]
            .map(|name| self.dir.join(format!("{name}.log")))
            .into_iter()
    }
}

/// The kubelet makes its groups below this one, and takes it for the machine.
fn make_groups(name: &str) {
    let base = Path::new("/sys/fs/cgroup");
    for controller in CONTROLLERS {
        let (above, group) = (base.join(controller), base.join(controller).join(name));
        fs::create_dir(&group).unwrap_or_else(|error| {
            panic!("{}: {error} (control groups of version 1 are needed)", group.display())
        });
        if controller == "cpuset" {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = fs::copy(above.join(file), group.join(file));
                own.unwrap_or_else(|error| panic!("{}: {error}", group.join(file).display()));
            }
        }
    }
}

fn containerd_config(generation: Generation, plugins: &Path, network: &Path) -> String {
    let (plugins, network) = (plugins.display(), network.display());
    match generation {
        Generation::V1_6 | Generation::V1_7 => format!(
            r#"
version = 2
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.test/pause:1"
# This machine may not let its processes be killed later than others.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
discard_unpacked_layers = false
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{network}"
"#
        ),
        Generation::V2_1 => format!(
            r"
version = 3
[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.cri.v1.images']
discard_unpacked_layers = false
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'registry.test/pause:1'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.cri.v1.runtime']
# This machine may not let its processes be killed later than others.
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{plugins}']
conf_dir = '{network}'
"
        ),
    }
}
