//! What a node pulls while its mirror runs is shared within a second of the commit, layer by layer, on every
//! generation of containerd; the older two say nothing about it before the whole image is done.

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Puller, mib, wait_for};

const SHARED_MAX: Duration = Duration::from_secs(1);
/// Waiting longer than promised, so that a miss is reported with the figure it had.
const PATIENCE: Duration = Duration::from_secs(10);

fn cluster(generation: Generation, upstream_mbit: Option<u32>) -> Cluster {
    let mut options = ClusterOptions::new(3, generation);
    options.upstream_mbit = upstream_mbit;
    Cluster::with_spegel(options)
}

fn a_pulled_image_is_shared(generation: Generation) {
    let cluster = cluster(generation, None);
    for puller in Puller::ALL {
        let name = format!("shared/{puller:?}").to_lowercase();
        let image = cluster.image(&ImageSpec::new(&name, "1", &[mib(1), 1000]));
        cluster.expect("pull", cluster.nodes[0].pull(puller, &image.by_tag()));
        let took = cluster.expect("shared", cluster.nodes[2].wait_finds(&image, PATIENCE));
        assert!(
            took <= SHARED_MAX,
            "{generation:?}: an image {puller:?} pulled is shared after {took:?}, not {SHARED_MAX:?}"
        );
    }
}

fn a_layer_is_shared_before_its_image_is_complete(generation: Generation) {
    // The second layer takes about eight seconds.
    let cluster = cluster(generation, Some(40));
    let [first, second, _] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let image = cluster.image(&ImageSpec::new("shared/layers", "1", &[1000, mib(40)]));
    let [small, large] = image.layers.as_slice() else { panic!("two layers") };
    thread::scope(|scope| {
        let pull = scope.spawn(|| first.pull(Puller::Cri, &image.by_tag()));
        let committed = || if first.has(small) { Ok(()) } else { Err("not there".to_owned()) };
        cluster.expect("the small layer arrives", wait_for("commit", PATIENCE, committed));
        let path = image.blob_path(small);
        let ((), took) = cluster.expect("shared", wait_for("shared", PATIENCE, || second.finds(&path)));
        let still_downloading = !first.has(large);
        cluster.expect("pull", pull.join().expect("the pull does not panic"));
        assert!(
            took <= SHARED_MAX,
            "{generation:?}: a layer is shared {took:?} after its commit, not {SHARED_MAX:?}"
        );
        assert!(still_downloading, "{generation:?}: the layer was shared only when the image was complete");
    });
}

fn content_without_an_image_is_shared(generation: Generation) {
    let cluster = cluster(generation, None);
    let image = cluster.unpublished_image(&ImageSpec::new("shared/ingested", "1", &[mib(1)]));
    let layer = &image.layers[0];
    cluster.expect("ingest", cluster.nodes[0].ingest(&image, layer));
    let path = image.blob_path(layer);
    let found = wait_for("shared", PATIENCE, || cluster.nodes[1].finds(&path));
    let ((), took) = cluster.expect("an ingested layer is shared", found);
    assert!(
        took <= SHARED_MAX,
        "{generation:?}: an ingested layer is shared after {took:?}, not {SHARED_MAX:?}"
    );
    let answer = cluster.expect("GET", cluster.nodes[1].get(&path, &[]));
    assert_eq!(answer.body, std::fs::read(&layer.path).expect("the layer was built here"), "its bytes");
}

#[test]
fn image_pulled_by_containerd_1_6_is_shared_within_a_second() {
    a_pulled_image_is_shared(Generation::V1_6);
}

#[test]
fn image_pulled_by_containerd_1_7_is_shared_within_a_second() {
    a_pulled_image_is_shared(Generation::V1_7);
}

#[test]
fn image_pulled_by_containerd_2_1_is_shared_within_a_second() {
    a_pulled_image_is_shared(Generation::V2_1);
}

#[test]
fn layer_of_containerd_1_6_is_shared_before_its_image_is_complete() {
    a_layer_is_shared_before_its_image_is_complete(Generation::V1_6);
}

#[test]
fn layer_of_containerd_1_7_is_shared_before_its_image_is_complete() {
    a_layer_is_shared_before_its_image_is_complete(Generation::V1_7);
}

#[test]
fn layer_of_containerd_2_1_is_shared_before_its_image_is_complete() {
    a_layer_is_shared_before_its_image_is_complete(Generation::V2_1);
}

#[test]
fn layer_ingested_on_containerd_1_6_is_shared_within_a_second() {
    content_without_an_image_is_shared(Generation::V1_6);
}

#[test]
fn layer_ingested_on_containerd_1_7_is_shared_within_a_second() {
    content_without_an_image_is_shared(Generation::V1_7);
}

#[test]
fn layer_ingested_on_containerd_2_1_is_shared_within_a_second() {
    content_without_an_image_is_shared(Generation::V2_1);
}
