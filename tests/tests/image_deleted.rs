//! A deleted image is not offered any longer: a peer that asks is told at once, and nobody is sent there.

use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Puller, wait_for};

const WITHDRAWN_MAX: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(15);

fn deleted_image_is_withdrawn(generation: Generation) {
    let cluster = Cluster::with_spegel(ClusterOptions::new(3, generation));
    let [holder, other, _] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let image = cluster.image(&ImageSpec::new("deleted", "1", &[1000, 2000]));
    let kept = cluster.image(&ImageSpec::new("kept", "1", &[1000]));
    for image in [&image, &kept] {
        cluster.expect("pull", holder.pull(Puller::Cri, &image.by_tag()));
        cluster.expect("shared", other.wait_finds(image, PATIENCE));
    }

    cluster.expect("remove", holder.remove_image(&image.by_tag()));
    let collected = || match image.needed.iter().find(|blob| holder.has(blob)) {
        Some(blob) => Err(format!("{} is still there", blob.digest)),
        None => Ok(()),
    };
    cluster.expect("the content is collected", wait_for("collected", PATIENCE, collected));
    for blob in &image.needed {
        let answer = cluster.expect("a peer asks", other.get_as_peer(holder, &image.blob_path(blob)));
        assert_eq!(answer.status, 404, "{generation:?}: a peer that asks for collected content gets 404");
    }
    let mut paths: Vec<String> = image.needed.iter().map(|blob| image.blob_path(blob)).collect();
    paths.push(image.tag_path());
    let withdrawn = || {
        let found = paths.iter().find(|path| other.finds(path).is_ok());
        found.map_or(Ok(()), |path| Err(format!("{path} is still found")))
    };
    let ((), took) = cluster.expect("withdrawn", wait_for("withdrawn", PATIENCE, withdrawn));
    assert!(
        took <= WITHDRAWN_MAX,
        "{generation:?}: withdrawn {took:?} after it was collected, not {WITHDRAWN_MAX:?}"
    );
    // The holder itself must not be sent to itself, nor say that it still has the tag.
    let own = cluster.expect("the holder's own question", holder.get(&image.tag_path(), &[]));
    assert_eq!(own.status, 404, "{generation:?}: the holder knows that the tag is gone");
    cluster.expect("another image stays shared", other.wait_finds(&kept, Duration::from_millis(500)));
}

#[test]
fn image_deleted_from_containerd_1_6_is_withdrawn() {
    deleted_image_is_withdrawn(Generation::V1_6);
}

#[test]
fn image_deleted_from_containerd_1_7_is_withdrawn() {
    deleted_image_is_withdrawn(Generation::V1_7);
}

#[test]
fn image_deleted_from_containerd_2_1_is_withdrawn() {
    deleted_image_is_withdrawn(Generation::V2_1);
}
