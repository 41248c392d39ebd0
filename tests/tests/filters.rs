//! What is filtered out is neither announced nor served, under whatever name it is asked for; it is pulled as if
//! there were no mirror.

use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Puller, REGISTRY};

const PATIENCE: Duration = Duration::from_secs(10);

fn filtered_image_stays_on_its_node(generation: Generation) {
    let mut options = ClusterOptions::new(2, generation);
    options.spegel_args = vec![format!("--registry-filters=^{}/private/", REGISTRY.replace('.', "\\."))];
    let cluster = Cluster::with_spegel(options);
    let [holder, other] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let private = cluster.image(&ImageSpec::new("private/app", "1", &[1000, 2000]));
    let public = cluster.image(&ImageSpec::new("public/app", "1", &[1000]));
    for image in [&private, &public] {
        cluster.expect("pull", holder.pull(Puller::Cri, &image.by_tag()));
    }
    // Whatever was to be announced of the first has been by the time the second can be found.
    cluster.expect("the other image is shared", other.wait_finds(&public, PATIENCE));

    let mut paths = vec![private.tag_path()];
    paths.extend(private.needed.iter().map(|blob| private.blob_path(blob)));
    paths.extend(private.needed.iter().map(|blob| public.blob_path(blob)));
    for path in paths {
        let found = cluster.expect("GET", other.get(&path, &[]));
        assert_eq!(found.status, 404, "{generation:?}: {path} is found at another node");
        let served = cluster.expect("GET", other.get_as_peer(holder, &path));
        assert_eq!(served.status, 404, "{generation:?}: {path} is served to another node");
    }
    cluster.expect("pull from the registry", other.pull(Puller::Cri, &private.by_tag()));
}

#[test]
fn filtered_image_stays_on_its_node_with_containerd_1_6() {
    filtered_image_stays_on_its_node(Generation::V1_6);
}

#[test]
fn filtered_image_stays_on_its_node_with_containerd_1_7() {
    filtered_image_stays_on_its_node(Generation::V1_7);
}

#[test]
fn filtered_image_stays_on_its_node_with_containerd_2_1() {
    filtered_image_stays_on_its_node(Generation::V2_1);
}
