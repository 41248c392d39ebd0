//! The containerd of the only holder comes and goes, and that of a node that pulls, too: what is on the holder's
//! disk is served all the same, a pull that lost its own containerd goes well when it is tried again, and in the
//! end all is found. Mirrors the simulated scenario `containerd_flaps`.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Puller, wait_for};

const LAYERS: [u64; 2] = [100_000, 100_000];
const PATIENCE: Duration = Duration::from_secs(20);
const FLAPS: usize = 3;
const AWAY: Duration = Duration::from_secs(1);
/// The worst the simulator allows.
const PULL_MAX: Duration = Duration::from_secs(10);

#[test]
fn pulls_go_well_while_containerd_comes_and_goes() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(4, Generation::V2_1));
    let [holder, flapping, steady, last] = cluster.nodes.as_slice() else { panic!("four nodes") };
    let specs: Vec<ImageSpec> =
        (0..=FLAPS).map(|n| ImageSpec::new("flaps", &n.to_string(), &LAYERS)).collect();
    let images = cluster.held_images(&specs, &[holder], last);
    cluster.upstream.cut();
    let (afterwards, during) = images.split_last().expect("some images");
    for (n, image) in during.iter().enumerate() {
        thread::scope(|scope| {
            // It loses its containerd at some point of the pull, or before, and pulls again as the kubelet does.
            let persistent = scope.spawn(|| {
                let look = || flapping.pull(Puller::Cri, &image.by_tag());
                wait_for("a pull goes well", PATIENCE, look)
            });
            let gentle = n % 2 == 0;
            for node in [holder, flapping] {
                if gentle { node.stop_containerd() } else { node.kill_containerd() }
            }
            let pulled = steady.pull(Puller::Cri, &image.by_tag());
            let took = cluster.expect("a pull from a node without containerd", pulled);
            cluster.expect("content", steady.verify(image));
            println!("flap {n}: pulled in {took:?} while the holder's containerd is away");
            assert!(took <= PULL_MAX, "a pull took {took:?}, not {PULL_MAX:?}");
            thread::sleep(AWAY);
            for node in [holder, flapping] {
                node.spawn_containerd();
            }
            for node in [holder, flapping] {
                node.wait_containerd();
            }
            let (_, took) = cluster.expect("tried again", persistent.join().expect("pulling does not panic"));
            cluster.expect("content", flapping.verify(image));
            println!("flap {n}: the pull that lost its containerd went well after {took:?}");
        });
    }
    for image in &images {
        for node in &cluster.nodes {
            cluster.expect("found afterwards", node.wait_finds(image, PATIENCE));
        }
    }
    let took = cluster.expect("pull afterwards", last.pull(Puller::Cri, &afterwards.by_tag()));
    cluster.expect("content", last.verify(afterwards));
    assert!(took <= PULL_MAX, "a pull took {took:?}, not {PULL_MAX:?}");
    for node in &cluster.nodes {
        assert_eq!(node.spegel_exited(), None, "{}: the mirror never restarted", node.name);
    }
}
