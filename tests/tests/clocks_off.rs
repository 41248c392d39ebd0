//! A node whose clock is off mirrors as before, and is told. With a cluster secret it is as good as alone, since what
//! nodes sign is good for a minute: its pulls go upstream and cost nobody else anything, until its clock is right again.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spegel_tests::{
    Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller, SECRET, mib, wait_for,
};

const LAYERS: [u64; 2] = [mib(2), 100_000];
const PATIENCE: Duration = Duration::from_secs(20);
/// The first check comes some seconds after the start.
const CHECK_MAX: Duration = Duration::from_secs(60);
/// As without a mirror, and what one asks others for at most before it says that nobody has it.
const PULL_MAX: Duration = Duration::from_secs(3);
const WARNING: f64 = 1.0;

/// What makes a process see another wall clock: the namespaces of Linux shift the monotonic clocks only.
fn libfaketime() -> PathBuf {
    let dirs = fs::read_dir("/usr/lib").expect("Debian's libraries").flatten();
    let found = dirs.map(|dir| dir.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect(".ci/install installs libfaketime")
}

/// Starts a node's mirror anew with a clock that is off by as much.
fn set_clock(cluster: &Cluster, node: &Node, off: &str) {
    cluster.expect("stop", node.stop_spegel(PATIENCE));
    let preload = format!("LD_PRELOAD={}", libfaketime().display());
    let off = format!("FAKETIME={off}");
    let variables = [preload.as_str(), &off, "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"];
    node.spawn_spegel_under(Path::new("/usr/bin/env"), &variables);
    cluster.expect("ready", node.wait_ready(PATIENCE));
    cluster.expect("members", node.wait_members(cluster.nodes.len(), PATIENCE));
}

fn pulls(cluster: &Cluster, node: &Node, image: &Image) {
    let took = cluster.expect("pull", node.pull(Puller::Cri, &image.by_tag()));
    cluster.expect("content", node.verify(image));
    println!("{} pulls in {took:?}", node.name);
    assert!(took <= PULL_MAX, "{} takes {took:?} to pull: {}", node.name, cluster.logs());
}

/// Waits until one node has heard that another has an image, and is refused by it.
fn is_refused(cluster: &Cluster, asking: &Node, asked: &Node, image: &Image, reason: &str) {
    let look = || {
        let found = asking.finds(&image.blob_path(&image.layers[0]));
        let refused = asked.metric("spegel_strangers_refused_total", &format!("reason=\"{reason}\""))? > 0.5;
        let told = asked.spegel_log().contains(&format!("\"reason\":\"{reason}\""));
        if found.is_err() && refused && told {
            Ok(())
        } else {
            Err(format!("{} finds it: {found:?}; {} refuses: {refused}", asking.name, asked.name))
        }
    };
    cluster.expect(reason, wait_for(reason, PATIENCE, look));
}

#[test]
fn node_whose_clock_is_off_mirrors_and_is_told() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(4, Generation::V2_1));
    let [holder, puller, other, off] = cluster.nodes.as_slice() else { panic!("four nodes") };
    set_clock(&cluster, off, "+2h");
    let by_right = cluster.held_image(&ImageSpec::new("clocks", "right", &LAYERS).single(), &[holder], off);
    let by_off = cluster.held_image(&ImageSpec::new("clocks", "off", &LAYERS).single(), &[off], puller);
    cluster.upstream.cut();
    pulls(&cluster, off, &by_right);
    pulls(&cluster, puller, &by_off);

    let told = || match off.metric("spegel_check", "name=\"clock\"")? {
        value if (value - WARNING).abs() < 0.5 => Ok(()),
        value => Err(format!("spegel_check is {value}")),
    };
    cluster.expect("the node is told", wait_for("a warning", CHECK_MAX, told));
    let log = off.spegel_log();
    let line = log.lines().find(|line| line.contains("clock") && line.contains("ahead"));
    println!("{}", line.unwrap_or_else(|| panic!("nothing is said of the clock: {log}")));
    for right in [holder, puller, other] {
        let checked = right.check(&[]);
        assert!(checked.text.contains("✔ clock: "), "{}: {}", right.name, checked.text);
    }
}

#[test]
fn with_a_secret_pulls_of_a_node_whose_clock_is_off_go_upstream_until_it_is_right() {
    let cluster = Cluster::new(ClusterOptions::new(3, Generation::V2_1));
    let [holder, puller, off] = cluster.nodes.as_slice() else { panic!("three nodes") };
    cluster.nodes.iter().for_each(|node| node.put_cluster_secret(&[SECRET]));
    cluster.start_spegel();
    cluster.expect("members", puller.wait_members(3, PATIENCE));
    let held = |tag, by| cluster.held_image(&ImageSpec::new("clocks", tag, &LAYERS).single(), &[by], puller);
    let (ahead, behind, own) = (held("ahead", holder), held("behind", holder), held("own", off));

    set_clock(&cluster, off, "+2h");
    is_refused(&cluster, off, holder, &ahead, "signature_early");
    pulls(&cluster, off, &ahead);
    set_clock(&cluster, off, "-2h");
    is_refused(&cluster, off, holder, &behind, "signature_expired");
    pulls(&cluster, off, &behind);
    is_refused(&cluster, puller, off, &own, "signature_early");
    pulls(&cluster, puller, &own);

    // Those whose clocks are right have each other meanwhile, and all do afterwards.
    let image = held("between", holder);
    cluster.upstream.cut();
    pulls(&cluster, puller, &image);
    set_clock(&cluster, off, "+0");
    cluster.expect("found by it as well", off.wait_finds(&image, PATIENCE));
    pulls(&cluster, off, &image);
}
