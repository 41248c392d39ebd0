//! A restart of containerd does not end the mirror, and two seconds after the socket is back it serves again.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Puller, mib, wait_for};

const SERVING_MAX: Duration = Duration::from_secs(2);
const SHARED_MAX: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(15);

fn mirror_serves_again(generation: Generation, gently: bool) {
    let cluster = Cluster::with_spegel(ClusterOptions::new(2, generation));
    let [holder, other] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let image = cluster.image(&ImageSpec::new("restart/before", "1", &[mib(1), 1000]));
    cluster.expect("pull", holder.pull(Puller::Cri, &image.by_tag()));
    cluster.expect("shared", other.wait_finds(&image, PATIENCE));

    if gently {
        holder.stop_containerd();
    } else {
        holder.kill_containerd();
    }
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(holder.spegel_exited(), None, "the mirror outlives its containerd; see {}", holder.logs());

    holder.spawn_containerd();
    let accepts =
        || UnixStream::connect(holder.containerd_socket()).map(drop).map_err(|error| error.to_string());
    cluster.expect("the socket is back", wait_for("containerd's socket", PATIENCE, accepts));
    let took = cluster.expect("serving again", other.wait_finds(&image, PATIENCE));
    assert!(
        took <= SERVING_MAX,
        "{generation:?}: serving {took:?} after the socket is back, not {SERVING_MAX:?}"
    );

    holder.wait_containerd();
    std::thread::sleep(SERVING_MAX);
    let later = cluster.image(&ImageSpec::new("restart/after", "1", &[mib(1)]));
    cluster.expect("pull after the restart", holder.pull(Puller::Cri, &later.by_tag()));
    let took = cluster.expect("a later image is shared", other.wait_finds(&later, PATIENCE));
    assert!(took <= SHARED_MAX, "{generation:?}: a later image is shared after {took:?}, not {SHARED_MAX:?}");
    assert_eq!(holder.spegel_exited(), None, "the mirror never restarted");
}

#[test]
fn mirror_serves_again_after_containerd_1_6_was_restarted() {
    mirror_serves_again(Generation::V1_6, true);
}

#[test]
fn mirror_serves_again_after_containerd_1_7_was_restarted() {
    mirror_serves_again(Generation::V1_7, true);
}

#[test]
fn mirror_serves_again_after_containerd_2_1_was_restarted() {
    mirror_serves_again(Generation::V2_1, true);
}

#[test]
fn mirror_serves_again_after_containerd_2_1_was_killed() {
    mirror_serves_again(Generation::V2_1, false);
}

#[test]
fn mirror_that_starts_before_containerd_waits_for_it() {
    let cluster = Cluster::new(ClusterOptions::new(2, Generation::V2_1));
    let [late, other] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let image = cluster.unpublished_image(&ImageSpec::new("restart/late", "1", &[1000]));
    cluster.expect("import", late.import(&image));
    late.stop_containerd();
    cluster.nodes.iter().for_each(|node| cluster.spawn_spegel(node));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(late.spegel_exited(), None, "the mirror waits for containerd; see {}", late.logs());
    late.start_containerd();
    let took = cluster.expect("serving", other.wait_finds(&image, PATIENCE));
    assert!(took <= SERVING_MAX, "serving {took:?} after containerd came up, not {SERVING_MAX:?}");
}
