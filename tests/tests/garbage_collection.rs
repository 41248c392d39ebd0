//! Holders delete an image, and their containerd collects its content, while others pull it from them: no pull
//! fails as long as one node has it. Mirrors the simulated scenario `garbage_collection`.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, Puller, mib};

/// A layer takes half a second, so that the content is gone in mid-pull.
const NODE_MBIT: u32 = 100;
const LAYERS: [u64; 3] = [mib(6), mib(6), 1000];
const PATIENCE: Duration = Duration::from_secs(20);
const ADDED_MAX: Duration = Duration::from_secs(3);
/// When the holders delete it, from the pulls' beginning: at once, and when a part has been sent.
const DELETED_AFTER: [Duration; 2] = [Duration::ZERO, Duration::from_millis(300)];

#[test]
fn pulls_survive_that_holders_delete_what_they_serve() {
    let mut options = ClusterOptions::new(5, Generation::V2_1);
    options.node_mbit = Some(NODE_MBIT);
    let cluster = Cluster::with_spegel(options);
    let [keeper, one, two, near, far] = cluster.nodes.as_slice() else { panic!("five nodes") };
    let specs = ["calm", "0", "1"].map(|tag| ImageSpec::new("gc", tag, &LAYERS));
    let images = cluster.held_images(&specs, &[one, two, keeper], far);
    cluster.upstream.cut();
    let (calm_image, raced) = images.split_first().expect("three images");
    let pull_both = |image: &Image, meanwhile: &dyn Fn()| -> Duration {
        thread::scope(|scope| {
            let pulls = [near, far].map(|puller| {
                let cluster = &cluster;
                scope.spawn(move || {
                    let took = cluster.expect("pull", puller.pull(Puller::Cri, &image.by_tag()));
                    cluster.expect("content", puller.verify(image));
                    took
                })
            });
            meanwhile();
            pulls.into_iter().map(|pull| pull.join().expect("a pull goes well")).max().expect("two pulls")
        })
    };
    let calm = pull_both(calm_image, &|| {});
    for (image, after) in raced.iter().zip(DELETED_AFTER) {
        let took = pull_both(image, &|| {
            thread::sleep(after);
            for holder in [one, two] {
                cluster.expect("delete", holder.remove_image(&image.by_tag()));
                assert!(!holder.has(&image.layers[0]), "{}: the content is collected", holder.name);
            }
        });
        let added = took.saturating_sub(calm);
        println!("deleted {after:?} after the pulls began: {added:?} more than {calm:?}");
        assert!(
            added <= ADDED_MAX,
            "deleted after {after:?}: {added:?} more than {calm:?}, not {ADDED_MAX:?}"
        );
        cluster.expect("the image is still shared", one.wait_finds(image, PATIENCE));
    }
}
