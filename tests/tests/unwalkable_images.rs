//! Images that cannot be walked cost a warning each and nothing else: the others are shared at once, and the
//! mirror is as idle as without them. In the Go implementation one of them stopped the sync, which was started
//! again for ever.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::fs;
use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, mib, wait_for};

const SHARED_MAX: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(20);
const SETTLE: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(10);
const CPU_SHARE_MAX: f64 = 0.01;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The reason that the log and the metric give, and the image that gives rise to it.
fn unwalkable() -> Vec<(&'static str, ImageSpec)> {
    let plain = |name: &str| ImageSpec::new(&format!("unwalkable/{name}"), "1", &[1000]).single();
    let large = format!(r#"{{"architecture":"amd64","padding":"{}"}}"#, "x".repeat(5_000_000));
    vec![
        (
            "layer_media_type",
            ImageSpec { layer_type: "application/octet-stream".to_owned(), ..plain("octet-stream") },
        ),
        ("manifest_not_json", ImageSpec { manifest: Some(b"\x7fELF".to_vec()), ..plain("not-json") }),
        ("config_too_large", ImageSpec { config: Some(large.into_bytes()), ..plain("large-config") }),
        // Its entries are called indexes so that one of them can be made to lead back to it.
        ("index_cycle", ImageSpec { manifest_type: INDEX.to_owned(), index: true, ..plain("cycle") }),
    ]
}

/// Makes an index lead back to itself. No digest can do that, so it takes a content store whose file is not
/// what its name says.
fn close_the_cycle(holder: &Node, image: &Image) {
    rewrite_index(holder, image, |text, own, entry| text.replace(entry, own));
}

/// containerd's own CRI plugin follows the cycle for ever when it starts.
fn open_the_cycle(holder: &Node, image: &Image) {
    rewrite_index(holder, image, |text, own, entry| text.replace(own, entry));
}

fn rewrite_index(holder: &Node, image: &Image, rewrite: impl FnOnce(&str, &str, &str) -> String) {
    let index = image.needed.iter().find(|blob| blob.digest == image.digest).expect("its own index");
    let entry = image.needed.iter().find(|blob| blob.is_manifest && blob.digest != index.digest);
    let entry = entry.expect("a manifest of this architecture");
    let file = holder.blob_file(index);
    let text = fs::read_to_string(&file).expect("the index was stored");
    let rewritten = rewrite(&text, &index.digest, &entry.digest);
    assert_ne!(text, rewritten, "the index names its manifest");
    fs::write(&file, rewritten).expect("the node's directory is ours");
}

fn warnings(holder: &Node, image: &Image) -> Vec<String> {
    let name = format!("\"image\":\"{}\"", image.by_tag());
    let log = holder.spegel_log();
    log.lines().filter(|line| line.contains("unusual") && line.contains(&name)).map(str::to_owned).collect()
}

fn unwalkable_images_cost_a_warning_each(generation: Generation) {
    let cluster = Cluster::new(ClusterOptions::new(2, generation));
    let [holder, other] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let odd: Vec<(&str, Image)> =
        unwalkable().into_iter().map(|(reason, spec)| (reason, cluster.unpublished_image(&spec))).collect();
    let plain: Vec<Image> = (0..5)
        .map(|n| {
            cluster.unpublished_image(&ImageSpec::new(&format!("plain/{n}"), "1", &[mib(1), 1000]).single())
        })
        .collect();
    for (_, image) in &odd {
        cluster.expect("store", holder.store(std::slice::from_ref(image)));
    }
    cluster.expect("store", holder.store(&plain));
    close_the_cycle(holder, &odd[3].1);

    cluster.start_spegel();
    for image in &plain {
        let took = cluster.expect("an ordinary image is shared", other.wait_finds(image, PATIENCE));
        assert!(took <= SHARED_MAX, "{generation:?}: {} is shared after {took:?}", image.by_tag());
    }
    for (reason, image) in &odd {
        let said = || match warnings(holder, image).as_slice() {
            [one] if one.contains(reason) => Ok(()),
            other => Err(format!("{reason}: {other:?}")),
        };
        cluster.expect("a warning each", wait_for("the warning", PATIENCE, said));
        // All of it but the tampered index is content like any other.
        for layer in &image.layers {
            cluster.expect(reason, wait_for("shared", PATIENCE, || other.finds(&image.blob_path(layer))));
        }
    }

    thread::sleep(SETTLE);
    let before = holder.spegel_cpu_seconds();
    thread::sleep(WATCH);
    let share = (holder.spegel_cpu_seconds() - before) / WATCH.as_secs_f64();
    println!("{generation:?}: {:.2} % of a processor with {} unwalkable images", share * 100.0, odd.len());
    assert!(share <= CPU_SHARE_MAX, "{generation:?}: {:.2} % of a processor, not 1 %", share * 100.0);

    // Everything is listed and looked at again; what was said is not said again.
    open_the_cycle(holder, &odd[3].1);
    holder.stop_containerd();
    holder.start_containerd();
    thread::sleep(SETTLE);
    for (reason, image) in &odd {
        let said = warnings(holder, image);
        assert_eq!(said.len(), 1, "{generation:?}: {reason} is said once: {said:?}");
        let labels = format!("reason=\"{reason}\"");
        let counted = cluster.expect("metrics", holder.metric("spegel_image_findings_total", &labels));
        assert!(
            (1.0..1.5).contains(&counted),
            "{generation:?}: {reason} is counted {counted} times, not once"
        );
    }
}

#[test]
fn unwalkable_images_on_containerd_1_6_cost_a_warning_each() {
    unwalkable_images_cost_a_warning_each(Generation::V1_6);
}

#[test]
fn unwalkable_images_on_containerd_1_7_cost_a_warning_each() {
    unwalkable_images_cost_a_warning_each(Generation::V1_7);
}

#[test]
fn unwalkable_images_on_containerd_2_1_cost_a_warning_each() {
    unwalkable_images_cost_a_warning_each(Generation::V2_1);
}
