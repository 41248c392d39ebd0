//! The cluster secret is replaced step by step, as docs/operating.md says, while pods start: no pull fails, and nobody
//! is refused. Who keeps the old one is out in the end.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use spegel_tests::{
    Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, OTHER_SECRET as NEW, Puller, SECRET as OLD,
    percentile, wait_for,
};

const LAYERS: [u64; 2] = [100_000, 300_000];
const PATIENCE: Duration = Duration::from_secs(20);
const PULL_MAX: Duration = Duration::from_secs(2);
const BETWEEN_PULLS: Duration = Duration::from_millis(200);
/// Kubelets replace what is mounted at times of their own: longer than a mirror takes to see that, so that nodes of
/// two steps live side by side.
const BETWEEN_NODES: Duration = Duration::from_secs(3);
/// As the `DaemonSet` restarts a mirror.
const AWAY: Duration = Duration::from_millis(500);
/// Until those that are out are known to be.
const OUT_MAX: Duration = Duration::from_secs(60);

#[test]
fn no_pull_fails_while_the_secret_is_replaced() {
    let cluster = Cluster::new(ClusterOptions::new(5, Generation::V2_1));
    cluster.nodes.iter().for_each(|node| node.put_cluster_secret(&[OLD]));
    cluster.start_spegel();
    cluster.expect("the cluster forms", cluster.wait_whole(PATIENCE));
    let [first, second, .., last] = cluster.nodes.as_slice() else { panic!("five nodes") };
    let specs: Vec<ImageSpec> = (0..4).map(|n| ImageSpec::new("secret", &n.to_string(), &LAYERS)).collect();
    let images = cluster.held_images(&specs, &[first, second], last);
    cluster.upstream.cut();

    // A node whose mirror is away goes to the registry, which is not there.
    let turns: Vec<Mutex<()>> = cluster.nodes.iter().map(|_| Mutex::new(())).collect();
    let turn = |n: usize| turns[n].lock().unwrap_or_else(PoisonError::into_inner);
    let done = AtomicBool::new(false);
    let pulls_of = |n: usize, node: &Node| {
        let mut took = Vec::new();
        for image in images.iter().cycle() {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let mine = turn(n);
            took.push(pull_anew(&cluster, node, image));
            drop(mine);
            thread::sleep(BETWEEN_PULLS);
        }
        took
    };
    let took: Vec<Duration> = thread::scope(|scope| {
        let pulls: Vec<_> = (2..cluster.nodes.len())
            .map(|n| {
                let (pulls_of, node) = (&pulls_of, &cluster.nodes[n]);
                scope.spawn(move || pulls_of(n, node))
            })
            .collect();
        put_everywhere(&cluster, &[OLD, NEW]);
        put_everywhere(&cluster, &[NEW, OLD]);
        let shown = last.authorization();
        for (n, node) in cluster.nodes.iter().enumerate() {
            let _mine = turn(n);
            restart(&cluster, node);
        }
        assert_ne!(last.authorization(), shown, "containerd is given credentials made of the new secret");
        put_everywhere(&cluster, &[NEW]);
        thread::sleep(BETWEEN_NODES);
        done.store(true, Ordering::Relaxed);
        pulls.into_iter().flat_map(|pulls| pulls.join().expect("pulls go well")).collect()
    });
    let longest = percentile(&took, 100);
    println!("{} pulls, half within {:?}, longest {longest:?}", took.len(), percentile(&took, 50));
    assert!(longest <= PULL_MAX, "a pull took {longest:?}, not {PULL_MAX:?}");
    for node in &cluster.nodes {
        let refused = cluster.expect("metrics", node.metric("spegel_strangers_refused_total", ""));
        assert!(
            refused < 0.5,
            "{} has refused {refused} that belong to the cluster\n{}",
            node.name,
            node.logs()
        );
        cluster.expect("all are still there", node.wait_members(cluster.nodes.len(), PATIENCE));
    }
    old_secret_is_worth_nothing(&cluster, last);
}

/// One node after the other, and until all say that they hold the same, as an operator sees it.
fn put_everywhere(cluster: &Cluster, secrets: &[&str]) {
    let before = cluster.expect("metrics", held(&cluster.nodes[0]));
    for node in &cluster.nodes {
        node.put_cluster_secret(secrets);
        thread::sleep(BETWEEN_NODES);
    }
    let look = || {
        let all: Vec<String> = cluster.nodes.iter().map(held).collect::<Result<_, _>>()?;
        let same = all.iter().all(|of_one| *of_one == all[0] && *of_one != before);
        if same { Ok(()) } else { Err(format!("{all:?}")) }
    };
    cluster.expect("all hold the same", wait_for("secrets are replaced", PATIENCE, look));
}

/// Fingerprints of the secrets that a node holds, and which is the first.
fn held(node: &Node) -> Result<String, String> {
    let page = node.metrics()?;
    let mut lines: Vec<&str> =
        page.lines().filter(|line| line.starts_with("spegel_cluster_secrets{")).collect();
    lines.sort_unstable();
    Ok(lines.join(" "))
}

/// What `kubectl rollout restart` does to one node.
fn restart(cluster: &Cluster, node: &Node) {
    let status = cluster.expect("the mirror ends", node.stop_spegel(PATIENCE));
    assert!(status.success(), "{}: {status}", node.name);
    thread::sleep(AWAY);
    cluster.expect("spegel configuration", node.write_mirror_configuration());
    node.spawn_spegel();
    cluster.expect("ready", node.wait_ready(PATIENCE));
    cluster.expect("a member", node.wait_members(cluster.nodes.len(), PATIENCE));
    thread::sleep(Duration::from_secs(1));
}

/// Pulls what another node has, and forgets it, so that it can be pulled again.
fn pull_anew(cluster: &Cluster, node: &Node, image: &Image) -> Duration {
    let took = cluster.expect("pull", node.pull(Puller::Cri, &image.by_tag()));
    cluster.expect("content", node.verify(image));
    cluster.expect("remove", node.remove_image(&image.by_tag()));
    took
}

/// A node that still has the old secret loses even the connections that it has.
fn old_secret_is_worth_nothing(cluster: &Cluster, node: &Node) {
    node.put_cluster_secret(&[OLD]);
    let alone = cluster.expect("it is alone", node.wait_members(1, OUT_MAX));
    let others = cluster.nodes.len() - 1;
    for other in &cluster.nodes[..others] {
        cluster.expect("it has left", other.wait_members(others, OUT_MAX));
    }
    println!("{} is alone after {alone:?}", node.name);
}
