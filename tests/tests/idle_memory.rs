//! An idle mirror costs next to nothing.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec};

const RSS_BYTES_MAX: u64 = 17_000_000;
/// 200 images of three layers, a config and a manifest: 1000 digests.
const IMAGES: usize = 200;
const SETTLE: Duration = Duration::from_secs(10);

#[test]
fn mirror_with_a_thousand_keys_idles_in_seventeen_megabytes() {
    let mut options = ClusterOptions::new(3, Generation::V2_1);
    options.in_memory = true;
    let cluster = Cluster::new(options);
    let spec = |n: usize| ImageSpec::new(&format!("idle/{n}"), "1", &[64; 3]).single();
    let images: Vec<Image> = (0..IMAGES).map(|n| cluster.unpublished_image(&spec(n))).collect();
    for node in &cluster.nodes {
        cluster.expect("fill the store", node.store(&images));
    }
    cluster.start_spegel();
    thread::sleep(SETTLE);
    for node in &cluster.nodes {
        let last = &images[IMAGES - 1];
        cluster.expect("it knows its content", node.wait_finds(last, Duration::from_secs(5)));
        let rss = node.spegel_rss_bytes();
        println!("{}: {rss} bytes resident", node.name);
        assert!(rss > 0 && rss <= RSS_BYTES_MAX, "{}: {rss} bytes resident, not {RSS_BYTES_MAX}", node.name);
    }
}
