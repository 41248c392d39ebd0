//! Where a sandbox refuses the system calls that move bytes in the kernel, they are copied, and that is said once.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::path::Path;
use std::thread;
use std::time::Duration;

use spegel_tests::{
    BodyEnd, Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller, digest_of, mib, wait_for,
};

const LAYER: u64 = mib(128);
const AT_ONCE: usize = 4;
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts a node's mirror anew, for which the kernel refuses some calls with `errno`.
fn refuse(cluster: &Cluster, node: &Node, errno: &str, calls: &str) {
    cluster.expect("stop", node.stop_spegel(PATIENCE));
    node.spawn_spegel_under(Path::new(env!("CARGO_BIN_EXE_refuse")), &[errno, calls]);
    cluster.expect("it starts in the sandbox", node.wait_ready(PATIENCE));
}

/// How often a node has said that it copies what this call was to move.
fn told(node: &Node, call: &str) -> usize {
    let log = node.spegel_log();
    log.lines().filter(|line| line.contains("are copied") && line.contains(&format!("\"{call}\""))).count()
}

/// Several clients at once get all of it.
fn get_whole(cluster: &Cluster, what: &str, from: &Node, path: &str, digest: &str) {
    let one = || {
        let mut client = cluster.expect("connect", cluster.nodes[0].connect(from.mirror_address()));
        let answer = cluster.expect("GET", client.get(path, &[]));
        assert_eq!((answer.status, answer.end), (200, BodyEnd::Complete), "{what}: {}", cluster.logs());
        assert_eq!(digest_of(&answer.body), digest, "{what}: other bytes");
        answer.elapsed
    };
    let took: Vec<Duration> = thread::scope(|scope| {
        let bodies: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(one)).collect();
        bodies.into_iter().map(|body| body.join().expect("it comes whole")).collect()
    });
    println!("{what}: {took:?}");
}

#[test]
fn bytes_are_copied_where_the_kernel_refuses_to_move_them() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(3, Generation::V2_1));
    let [_, holder, mirror] = cluster.nodes.as_slice() else { panic!("three nodes") };
    refuse(&cluster, holder, "ENOSYS", "sendfile");
    refuse(&cluster, mirror, "EPERM", "sendfile,splice");
    let spec = |name: &str| ImageSpec::new(name, "1", &[LAYER]).single();
    let image = cluster.held_image(&spec("refused"), &[holder], mirror);
    // Another: who asks again for what did not appear in containerd says that it was sent wrong.
    let pulled = cluster.held_image(&spec("pulled"), &[holder], mirror);
    cluster.upstream.cut();
    let layer = |image: &Image| (image.blob_path(&image.layers[0]), image.layers[0].digest.clone());

    let (path, digest) = layer(&image);
    get_whole(&cluster, "served", holder, &path, &digest);
    get_whole(&cluster, "mirrored", mirror, &path, &digest);
    assert_eq!((told(holder, "sendfile"), told(holder, "splice")), (1, 0), "{}", holder.logs());
    assert_eq!((told(mirror, "sendfile"), told(mirror, "splice")), (0, 1), "{}", mirror.logs());

    cluster.expect("pull", mirror.pull(Puller::Cri, &pulled.by_tag()));
    let (path, digest) = layer(&pulled);
    let is_local = || mirror.get_as_peer(mirror, &path).map(|answer| answer.status == 200);
    cluster.expect(
        "it is held",
        wait_for("local", PATIENCE, || is_local()?.then_some(()).ok_or_else(|| "it is not there".to_owned())),
    );
    get_whole(&cluster, "served by the other", mirror, &path, &digest);
    assert_eq!((told(mirror, "sendfile"), told(mirror, "splice")), (1, 1), "{}", mirror.logs());
}
