//! A mirror that dies in the middle of a layer, on either side, does not fail the pull.

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Puller, mib};

const NODE_MBIT: u32 = 100;
const LAYER: u64 = mib(36);
const PATIENCE: Duration = Duration::from_secs(20);

fn pull_survives(generation: Generation, kill_the_server: bool) {
    let mut options = ClusterOptions::new(2, generation);
    options.node_mbit = Some(NODE_MBIT);
    let cluster = Cluster::with_spegel(options);
    let [holder, puller] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let image = cluster.image(&ImageSpec::new("sigkill", "1", &[LAYER, mib(2)]));
    cluster.expect("import", holder.import(&image));
    cluster.expect("shared", puller.wait_finds(&image, PATIENCE));
    let victim = if kill_the_server { holder } else { puller };
    thread::scope(|scope| {
        let pull = scope.spawn(|| puller.pull(Puller::Cri, &image.by_tag()));
        cluster.expect("under way", puller.wait_ingest(&image.layers[0], LAYER / 3, PATIENCE));
        victim.kill_spegel();
        let side = if kill_the_server { "serves" } else { "forwards" };
        let pulled = pull.join().expect("the pull does not panic");
        cluster.expect(
            &format!("{generation:?}: the pull survives SIGKILL of the mirror that {side} it"),
            pulled,
        );
        cluster.expect("content", puller.verify(&image));
    });
}

#[test]
fn pull_of_containerd_1_6_survives_the_death_of_the_mirror_that_serves() {
    pull_survives(Generation::V1_6, true);
}

#[test]
fn pull_of_containerd_1_7_survives_the_death_of_the_mirror_that_serves() {
    pull_survives(Generation::V1_7, true);
}

#[test]
fn pull_of_containerd_2_1_survives_the_death_of_the_mirror_that_serves() {
    pull_survives(Generation::V2_1, true);
}

#[test]
fn pull_of_containerd_1_6_survives_the_death_of_its_own_mirror() {
    pull_survives(Generation::V1_6, false);
}

#[test]
fn pull_of_containerd_1_7_survives_the_death_of_its_own_mirror() {
    pull_survives(Generation::V1_7, false);
}

#[test]
fn pull_of_containerd_2_1_survives_the_death_of_its_own_mirror() {
    pull_survives(Generation::V2_1, false);
}
