//! A node with two thousand images starts as fast as any other and has announced all of them in three seconds.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, wait_for};

const IMAGES: usize = 2000;
const LAYERS: [u64; 5] = [64; 5];
/// Every so-maniest image is looked for by all its parts.
const SAMPLE: usize = 40;
const ANNOUNCED_MAX: Duration = Duration::from_secs(3);
const CPU_SECONDS_MAX: f64 = 1.0;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn two_thousand_images_are_announced_in_three_seconds() {
    let mut options = ClusterOptions::new(3, Generation::V2_1);
    // Fourteen thousand blobs, and containerd syncs each.
    options.in_memory = true;
    let cluster = Cluster::new(options);
    let [big, other, third] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let spec = |n: usize| ImageSpec::new(&format!("big/{n}"), "1", &LAYERS).single();
    let images: Vec<Image> = (0..IMAGES).map(|n| cluster.unpublished_image(&spec(n))).collect();
    cluster.expect("fill the store", big.store(&images));

    for node in [other, third] {
        cluster.spawn_spegel(node);
        cluster.expect("ready", node.wait_ready(PATIENCE));
    }
    cluster.spawn_spegel(big);
    let mut wanted: Vec<String> = images
        .iter()
        .step_by(SAMPLE)
        .chain(images.last())
        .flat_map(|image| image.needed.iter().map(|blob| image.blob_path(blob)).chain([image.tag_path()]))
        .collect();
    let look = || {
        let mut client = other.client()?;
        while let Some(path) = wanted.last() {
            let answer = client.request("HEAD", path, &[])?;
            if answer.status != 200 {
                return Err(format!("{} of the sample are missing; {path}: {}", wanted.len(), answer.status));
            }
            wanted.pop();
        }
        Ok(())
    };
    let ((), took) = cluster.expect("all is announced", wait_for("announced", PATIENCE, look));
    let cpu = big.spegel_cpu_seconds();
    println!(
        "announced after {took:?} with {cpu:.2} s of processor time, {} MB",
        big.spegel_rss_bytes() / 1_000_000
    );
    assert!(took <= ANNOUNCED_MAX, "{IMAGES} images are announced after {took:?}, not {ANNOUNCED_MAX:?}");
    assert!(cpu <= CPU_SECONDS_MAX, "that took {cpu:.2} s of processor time, not {CPU_SECONDS_MAX}");
}
