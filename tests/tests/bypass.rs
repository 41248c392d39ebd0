//! Pulls that go past the mirror are noticed and explained; an image that was put there by hand is not.

use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Puller, wait_for};

const NOTICED_MAX: Duration = Duration::from_secs(10);
const EXPLANATION: &str = "pulled images without asking this mirror";

fn bypassed(cluster: &Cluster) -> f64 {
    cluster.expect("metrics", cluster.nodes[0].metric("spegel_mirror_bypassed_images_total", ""))
}

fn pulls_past_the_mirror_are_noticed(generation: Generation) {
    let cluster = Cluster::with_spegel(ClusterOptions::new(1, generation));
    let node = &cluster.nodes[0];
    let image = |name: &str| cluster.image(&ImageSpec::new(name, "1", &[1000]));
    let imported = cluster.unpublished_image(&ImageSpec::new("bypass/imported", "1", &[1000]));
    cluster.expect("import", node.import(&imported));
    cluster.expect("pull through the mirror", node.pull(Puller::Cri, &image("bypass/mirrored").by_tag()));

    node.bypass_mirror();
    for n in 0..3 {
        cluster
            .expect("pull past the mirror", node.pull(Puller::Cri, &image(&format!("bypass/{n}")).by_tag()));
    }
    let said = || match bypassed(&cluster) {
        count if count >= 3.0 && node.spegel_log().contains(EXPLANATION) => Ok(()),
        count => Err(format!("{count} images counted, nothing said")),
    };
    cluster.expect("noticed", wait_for("the warning", NOTICED_MAX, said));
    // Not the imported one, nor the one that was asked for here.
    let count = bypassed(&cluster);
    assert!((3.0..3.5).contains(&count), "{generation:?}: {count} images bypassed the mirror, not 3");
    assert_eq!(node.spegel_log().matches(EXPLANATION).count(), 1, "{generation:?}: it is said once");
}

#[test]
fn pulls_of_containerd_1_6_past_the_mirror_are_noticed() {
    pulls_past_the_mirror_are_noticed(Generation::V1_6);
}

#[test]
fn pulls_of_containerd_1_7_past_the_mirror_are_noticed() {
    pulls_past_the_mirror_are_noticed(Generation::V1_7);
}

#[test]
fn pulls_of_containerd_2_1_past_the_mirror_are_noticed() {
    pulls_past_the_mirror_are_noticed(Generation::V2_1);
}
