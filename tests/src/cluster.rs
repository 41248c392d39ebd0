//! A whole cluster: a switch, a registry, some nodes; made in about a second and removed whatever happens.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::image::{Image, ImageSpec};
use crate::netns::{NetNs, ip_batch};
use crate::node::Node;
use crate::parts::{Generation, target_dir};
use crate::sweep::{base_dir, cluster_name, sweep_cluster, sweep_dead};
use crate::upstream::Upstream;
use crate::{BOOTSTRAP_NAME, BOOTSTRAP_PORT, METRICS_PORT, MIRROR_PORT, REGISTRY, ROUTER_PORT};

/// The host part of the registry's address; nodes count from 1.
const UPSTREAM_HOST: u8 = 250;
/// The hosts part of an address must stay clear of the registry's.
const NODES_MAX: u8 = 200;
/// How long a mirror may take until it is ready, where the test is not about that.
const READY_MAX: Duration = Duration::from_secs(20);

/// How long imported content may take to be found, where the test is not about that.
const HELD_MAX: Duration = Duration::from_secs(20);
/// Every holder has announced what it holds by then.
const ANNOUNCED_BY_ALL: Duration = Duration::from_secs(1);

static CLUSTERS: AtomicU32 = AtomicU32::new(0);
/// One cluster at a time in a process: the figures are about time, and two clusters on two cores would
/// measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Which addresses the nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamily {
    V4,
    V6,
    Dual,
}

impl IpFamily {
    fn addresses(self, host: u8) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let v4 = Ipv4Addr::new(10, 99, 0, host);
        let v6 = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, u16::from(host));
        match self {
            Self::V4 => (Some(v4), None),
            Self::V6 => (None, Some(v6)),
            Self::Dual => (Some(v4), Some(v6)),
        }
    }
}

/// How nodes find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    Dns,
    Http,
    Static,
}

/// What to build.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    pub nodes: u8,
    pub generation: Generation,
    pub family: IpFamily,
    pub bootstrap: Bootstrap,
    /// What the registry can send to all nodes together.
    pub upstream_mbit: Option<u32>,
    /// What each node can send.
    pub node_mbit: Option<u32>,
    /// Keeps all files in memory: for tests with so many small blobs that the disk's syncs would take minutes, and
    /// for those that time bytes, which all nodes here would write to one disk.
    pub in_memory: bool,
    /// What the mirrors log; figures of their cost need less of it.
    pub log_level: &'static str,
    /// More arguments for `spegel registry`.
    pub spegel_args: Vec<String>,
}

impl ClusterOptions {
    /// This many nodes with IPv4, DNS bootstrap and no limits.
    #[must_use]
    pub fn new(nodes: u8, generation: Generation) -> Self {
        Self {
            nodes,
            generation,
            family: IpFamily::V4,
            bootstrap: Bootstrap::Dns,
            upstream_mbit: None,
            node_mbit: None,
            in_memory: false,
            log_level: "DEBUG",
            spegel_args: Vec::new(),
        }
    }
}

/// A running cluster; dropping it removes every trace, and keeps the logs when the test has failed.
#[derive(Debug)]
pub struct Cluster {
    /// `sp<pid>x<n>`: what all of its namespaces and its directory are called.
    pub name: String,
    pub nodes: Vec<Node>,
    pub upstream: Upstream,
    options: ClusterOptions,
    dir: PathBuf,
    // Last, so that the next cluster starts only when everything of this one is gone.
    _removal: Removal,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Builds the network, starts the registry and containerd on every node, and waits for them. The mirror
    /// is not started: see [`Self::start_spegel`].
    ///
    /// A thread can hold one cluster at a time.
    #[must_use]
    pub fn new(options: ClusterOptions) -> Self {
        assert!((1..=NODES_MAX).contains(&options.nodes), "a cluster has 1 to {NODES_MAX} nodes");
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        sweep_dead();
        let name = cluster_name(CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let dir = base_dir().join(&name);
        let removal = Removal::of(&name, &dir);
        fs::create_dir_all(&dir).expect("/tmp is writable");
        if options.in_memory {
            let mounted = mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), None::<&str>);
            mounted.expect("root can mount a tmpfs");
        }
        fs::create_dir_all(dir.join("images")).expect("/tmp is writable");

        let hosts: Vec<(String, u8)> = (1..=options.nodes).map(|n| (format!("n{n}"), n)).collect();
        build_network(&name, &hosts, options.family);
        let bridge = format!("{name}-br");
        let upstream = Upstream::start(NetNs::open(&format!("{name}-registry")), &bridge, &dir);
        let nodes: Vec<Node> = hosts
            .iter()
            .map(|(host, n)| {
                let netns = NetNs::open(&format!("{name}-{host}"));
                let addresses = options.family.addresses(*n);
                Node::new(host.clone(), options.generation, addresses, dir.join(host), (netns, &bridge))
            })
            .collect();
        let cluster = Self { name, nodes, upstream, options, dir, _removal: removal, _turn: turn };
        cluster.upstream.limit(cluster.options.upstream_mbit);
        cluster.nodes.iter().for_each(Node::spawn_containerd);
        cluster.upstream.wait_ready();
        for node in &cluster.nodes {
            if cluster.options.node_mbit.is_some() {
                node.limit(cluster.options.node_mbit);
            }
            node.wait_containerd();
        }
        cluster
    }

    /// A cluster whose mirrors are up and ready.
    #[must_use]
    pub fn with_spegel(options: ClusterOptions) -> Self {
        let cluster = Self::new(options);
        cluster.start_spegel();
        cluster
    }

    /// Builds an image and publishes it in the registry.
    #[must_use]
    pub fn image(&self, spec: &ImageSpec) -> Image {
        let image = self.unpublished_image(spec);
        self.upstream.publish(&image);
        image
    }

    /// Publishes an image that was built elsewhere, an archive of an OCI layout with one index.
    #[must_use]
    pub fn image_of_archive(&self, archive: &Path, repository: &str, tag: &str) -> Image {
        let image = Image::from_archive(&self.dir.join("images"), archive, repository, tag);
        self.upstream.publish(&image);
        image
    }

    /// Builds an image that the registry does not have.
    #[must_use]
    pub fn unpublished_image(&self, spec: &ImageSpec) -> Image {
        Image::build(&self.dir.join("images"), spec)
    }

    /// Publishes an image, imports it on some nodes, and waits until another can find all of it there.
    #[must_use]
    pub fn held_image(&self, spec: &ImageSpec, holders: &[&Node], finder: &Node) -> Image {
        self.held_images(std::slice::from_ref(spec), holders, finder).remove(0)
    }

    /// The same for several images.
    #[must_use]
    pub fn held_images(&self, specs: &[ImageSpec], holders: &[&Node], finder: &Node) -> Vec<Image> {
        let images: Vec<Image> = specs.iter().map(|spec| self.image(spec)).collect();
        for holder in holders {
            for image in &images {
                self.expect("import", holder.import(image));
            }
            for image in &images {
                let local = || holder.finds(&image.blob_path(&image.layers[0]));
                self.expect("the holder knows", crate::wait_for("local", HELD_MAX, local));
            }
        }
        for image in &images {
            self.expect("shared", finder.wait_finds(image, HELD_MAX));
        }
        // The first holder may have answered for the others.
        thread::sleep(ANNOUNCED_BY_ALL);
        images
    }

    /// A directory for the test's own files, removed with the cluster.
    #[must_use]
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// Starts the mirror on every node and waits until all are ready.
    pub fn start_spegel(&self) {
        self.nodes.iter().for_each(|node| self.spawn_spegel(node));
        for node in &self.nodes {
            self.expect("all mirrors become ready", node.wait_ready(READY_MAX));
        }
    }

    /// Points a node's containerd at its mirror and starts that, without waiting.
    pub fn spawn_spegel(&self, node: &Node) {
        let arguments = self.spegel_arguments(node);
        *node.spegel_args.lock().unwrap_or_else(PoisonError::into_inner) = arguments;
        self.expect("spegel configuration", node.configure_mirror());
        node.spawn_spegel();
    }

    fn spegel_arguments(&self, node: &Node) -> Vec<String> {
        let level = self.options.log_level;
        let mut arguments = vec![
            format!("--log-level={level}"),
            format!("--registry-addr=:{MIRROR_PORT}"),
            format!("--router-addr=:{ROUTER_PORT}"),
            format!("--metrics-addr=:{METRICS_PORT}"),
            format!("--containerd-sock={}", node.paths.socket.display()),
            format!("--containerd-content-path={}", node.paths.content().display()),
            format!("--containerd-registry-config-path={}", node.paths.hosts.display()),
            "--containerd-namespace=k8s.io".to_owned(),
            format!("--data-dir={}", node.dir.join("data").display()),
            format!("--mirrored-registries=http://{REGISTRY}"),
        ];
        arguments.extend(match self.options.bootstrap {
            Bootstrap::Dns => {
                vec!["--bootstrap-kind=dns".to_owned(), format!("--dns-bootstrap-domain={BOOTSTRAP_NAME}")]
            }
            Bootstrap::Http => vec![
                "--bootstrap-kind=http".to_owned(),
                format!("--http-bootstrap-addr=:{BOOTSTRAP_PORT}"),
                format!("--http-bootstrap-url=http://n1:{BOOTSTRAP_PORT}/id"),
            ],
            Bootstrap::Static => {
                vec![
                    "--bootstrap-kind=static".to_owned(),
                    format!("--static-bootstrap-peers={}", self.first_peer(node)),
                ]
            }
        });
        arguments.extend(self.options.spegel_args.iter().cloned());
        arguments.extend(node.cluster_secret_argument());
        arguments
    }

    /// The first node's full multiaddr. Its identity is in its data directory, so it can be learnt by a short
    /// first run; the first node itself gets an address nobody has.
    fn first_peer(&self, asking: &Node) -> String {
        let first = &self.nodes[0];
        let address = |id: &str| match first.address() {
            std::net::IpAddr::V4(v4) => format!("/ip4/{v4}/tcp/{ROUTER_PORT}/p2p/{id}"),
            std::net::IpAddr::V6(v6) => format!("/ip6/{v6}/tcp/{ROUTER_PORT}/p2p/{id}"),
        };
        if asking.name == first.name {
            return address("12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo");
        }
        let debug = SocketAddr::new(first.address(), METRICS_PORT);
        let look = || {
            let answer = first.connect(debug)?.get("/debug/web/metadata", &[])?;
            let metadata: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
            let id = metadata["libp2p"]["id"].as_str().ok_or("no libp2p.id in /debug/web/metadata")?;
            Ok(id.to_owned())
        };
        let (id, _) =
            self.expect("the first node tells its peer ID", crate::wait_for("metadata", READY_MAX, look));
        address(&id)
    }

    /// Rewrites the hosts file of every namespace: `addresses` is what the bootstrap name leads to. Processes
    /// that run see it at once.
    pub fn set_bootstrap_addresses(&self, addresses: &[std::net::IpAddr]) {
        let hosts: Vec<(String, u8)> = (1..=self.options.nodes).map(|n| (format!("n{n}"), n)).collect();
        let mut text = hosts_file(&hosts, self.options.family, false);
        for address in addresses {
            text.push_str(&format!("{address} {BOOTSTRAP_NAME}\n"));
        }
        for role in hosts.iter().map(|(host, _)| host.as_str()).chain(["registry"]) {
            fs::write(format!("/etc/netns/{}-{role}/hosts", self.name), &text).expect("the file is ours");
        }
    }

    /// What each node has sent so far, for [`Self::busiest_since`].
    #[must_use]
    pub fn bytes_sent(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.netns().link_bytes().sent).collect()
    }

    /// The node that sent most since then: the one a transfer comes from.
    ///
    /// # Panics
    /// Never: a cluster has a node.
    #[must_use]
    pub fn busiest_since(&self, before: &[u64]) -> &Node {
        let sent = self
            .nodes
            .iter()
            .zip(before)
            .map(|(node, before)| (node.netns().link_bytes().sent - before, node));
        sent.max_by_key(|(bytes, _)| *bytes).map(|(_, node)| node).expect("a cluster has a node")
    }

    /// Unwraps, or panics with `what`, the error and the ends of all logs.
    pub fn expect<T>(&self, what: &str, result: Result<T, String>) -> T {
        result.unwrap_or_else(|error| panic!("{what}: {error}\n{}", self.logs()))
    }

    /// The ends of all logs.
    #[must_use]
    pub fn logs(&self) -> String {
        self.nodes.iter().map(Node::logs).collect()
    }
}

fn hosts_file(hosts: &[(String, u8)], family: IpFamily, bootstrap: bool) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    let mut add = |host: u8, name: &str| {
        let (v4, v6) = family.addresses(host);
        let lines = [v4.map(|v4| v4.to_string()), v6.map(|v6| v6.to_string())];
        lines.into_iter().flatten().for_each(|address| text.push_str(&format!("{address} {name}\n")));
    };
    add(UPSTREAM_HOST, REGISTRY);
    for (name, n) in hosts {
        add(*n, name);
        if bootstrap {
            add(*n, BOOTSTRAP_NAME);
        }
    }
    text
}

/// The bridge lives in a namespace of its own, so the addresses mean nothing outside and every cluster can
/// use the same ones.
pub(crate) fn build_network(name: &str, hosts: &[(String, u8)], family: IpFamily) {
    let upstream = [("registry".to_owned(), UPSTREAM_HOST)];
    let all: Vec<&(String, u8)> = hosts.iter().chain(&upstream).collect();
    let text = hosts_file(hosts, family, true);
    for (host, _) in &all {
        let dir = format!("/etc/netns/{name}-{host}");
        fs::create_dir_all(&dir).expect("the harness runs as root");
        fs::write(format!("{dir}/hosts"), &text).expect("the harness runs as root");
        // Nobody listens there: what is not in the hosts file does not exist, and that is known at once.
        fs::write(format!("{dir}/resolv.conf"), "nameserver 127.0.0.1\n").expect("the harness runs as root");
    }

    let mut batch = format!("netns add {name}-br\n");
    let mut bridge =
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set br0 up\n".to_owned();
    for (host, _) in &all {
        batch.push_str(&format!("netns add {name}-{host}\n"));
        batch.push_str(&format!(
            "link add eth0 netns {name}-{host} type veth peer name {host} netns {name}-br\n"
        ));
        bridge.push_str(&format!("link set {host} master br0 up\n"));
    }
    ip_batch(None, &batch);
    ip_batch(Some(&format!("{name}-br")), &bridge);
    thread::scope(|scope| {
        for (host, n) in all {
            let (v4, v6) = family.addresses(*n);
            let mut batch = "link set lo up\n".to_owned();
            if v6.is_none() {
                batch.push_str("link set eth0 addrgenmode none\n");
            }
            batch.push_str("link set eth0 up\n");
            let v4 = v4.map(|v4| format!("addr add {v4}/24 dev eth0\n"));
            // Duplicate address detection would make the address unusable for a second.
            let v6 = v6.map(|v6| format!("addr add {v6}/64 dev eth0 nodad\n"));
            batch.extend([v4, v6].into_iter().flatten());
            scope.spawn(move || ip_batch(Some(&format!("{name}-{host}")), &batch));
        }
    });
}

/// Removes the cluster when dropped, also when building it panicked half way.
#[derive(Debug)]
pub(crate) struct Removal {
    cluster: String,
    dir: PathBuf,
}

impl Removal {
    pub(crate) fn of(cluster: &str, dir: &Path) -> Self {
        Self { cluster: cluster.to_owned(), dir: dir.to_owned() }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        if thread::panicking() {
            self.keep_logs();
        }
        sweep_cluster(&self.cluster);
    }
}

impl Removal {
    fn keep_logs(&self) {
        let kept = target_dir().join("cluster-logs").join(&self.cluster);
        let nodes = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for dir in nodes.filter(|path| path.is_dir()) {
            let of_node = kept.join(dir.file_name().unwrap_or_default());
            for log in
                ["containerd.log", "spegel.log"].map(|name| dir.join(name)).iter().filter(|log| log.exists())
            {
                let copied = fs::create_dir_all(&of_node)
                    .and_then(|()| fs::copy(log, of_node.join(log.file_name().unwrap_or_default())));
                drop(copied);
            }
        }
        eprintln!("the logs are kept in {}", kept.display());
    }
}
