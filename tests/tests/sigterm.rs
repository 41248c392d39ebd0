//! A mirror that is told to stop finishes what it is sending, is not asked again, and ends with 0.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]

use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{BodyEnd, Cluster, ClusterOptions, Generation, ImageSpec, mib, wait_for};

use nix::sys::signal::Signal;

const NODE_MBIT: u32 = 60;
/// Some three seconds at that rate.
const LAYER: u64 = mib(24);
const PATIENCE: Duration = Duration::from_secs(20);
/// A lookup that still names the node costs at least an attempt to connect there.
const REFUSED_MAX: Duration = Duration::from_millis(100);

#[derive(Clone, Copy)]
enum Stopped {
    /// The one that has the layer.
    Serving,
    /// The one that containerd asked.
    Forwarding,
}

fn transfer_finishes(stopped: Stopped) {
    let mut options = ClusterOptions::new(3, Generation::V2_1);
    options.node_mbit = Some(NODE_MBIT);
    let cluster = Cluster::with_spegel(options);
    let [holder, asker, witness] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let image = cluster.unpublished_image(&ImageSpec::new("sigterm", "1", &[LAYER, 1000]).single());
    cluster.expect("import", holder.import(&image));
    cluster.expect("shared", asker.wait_finds(&image, PATIENCE));
    cluster.expect("shared", witness.wait_finds(&image, PATIENCE));

    let (layer, other) = (&image.layers[0], &image.layers[1]);
    let victim = match stopped {
        Stopped::Serving => holder,
        Stopped::Forwarding => asker,
    };
    let mut client = cluster.expect("connect", asker.client());
    cluster.expect("GET", client.send("GET", &image.blob_path(layer), &[("Connection", "close")]));
    let answer = thread::scope(|scope| {
        let body = scope.spawn(move || client.receive(false));
        thread::sleep(Duration::from_secs(1));
        assert!(!body.is_finished(), "the transfer is in the middle");
        victim.signal_spegel(Signal::SIGTERM);
        if matches!(stopped, Stopped::Serving) {
            thread::sleep(Duration::from_millis(500));
            assert!(!body.is_finished(), "the transfer goes on while the mirror stops");
            let answer = cluster.expect("a lookup", witness.get(&image.blob_path(other), &[]));
            assert_eq!(answer.status, 404, "half a second after SIGTERM lookups don't name the node");
            assert!(answer.elapsed <= REFUSED_MAX, "that took {:?}, not {REFUSED_MAX:?}", answer.elapsed);
        }
        body.join().expect("reading does not panic")
    });
    let answer = cluster.expect("the answer", answer);
    assert_eq!((answer.status, answer.end), (200, BodyEnd::Complete), "the transfer finishes");
    assert_eq!(answer.body.len() as u64, layer.size);
    let status = cluster.expect("the mirror ends", victim.wait_spegel(Duration::from_secs(5)));
    assert_eq!(status.code(), Some(0), "SIGTERM is a success\n{}", victim.logs());
}

#[test]
fn transfer_that_a_stopping_mirror_serves_is_finished() {
    transfer_finishes(Stopped::Serving);
}

#[test]
fn transfer_that_a_stopping_mirror_forwards_is_finished() {
    transfer_finishes(Stopped::Forwarding);
}

/// What leads containerd to a mirror learns of its end later than the mirror does.
#[test]
fn mirror_with_a_delay_goes_on_for_so_long_but_is_not_ready() {
    let mut options = ClusterOptions::new(2, Generation::V2_1);
    options.spegel_args = vec!["--shutdown-delay=3s".to_owned()];
    let cluster = Cluster::with_spegel(options);
    let [one, other] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let images = [ImageSpec::new("delay/own", "1", &[1000]), ImageSpec::new("delay/other", "1", &[1000])];
    let images = images.map(|spec| cluster.unpublished_image(&spec.single()));
    cluster.expect("import", one.import(&images[0]));
    cluster.expect("import", other.import(&images[1]));
    cluster.expect("shared", one.wait_finds(&images[1], PATIENCE));
    cluster.expect("shared", other.wait_finds(&images[0], PATIENCE));

    let told = Instant::now();
    one.signal_spegel(Signal::SIGTERM);
    let not_ready = || match one.get("/readyz", &[])?.status {
        500 => Ok(()),
        status => Err(format!("{status} for /readyz")),
    };
    cluster.expect("not ready", wait_for("others are led elsewhere", Duration::from_secs(1), not_ready));
    while told.elapsed() < Duration::from_millis(2_700) {
        for (node, image) in [(one, &images[0]), (one, &images[1]), (other, &images[0])] {
            cluster.expect("as before", node.finds(&image.blob_path(&image.layers[0])));
        }
        thread::sleep(Duration::from_millis(50));
    }
    let status = cluster.expect("the mirror ends", one.wait_spegel(Duration::from_secs(2)));
    assert_eq!(status.code(), Some(0), "SIGTERM is a success\n{}", one.logs());
    assert!(told.elapsed() >= Duration::from_secs(3), "it ended after {:?}", told.elapsed());
}

#[test]
fn idle_mirror_stops_at_once() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(2, Generation::V2_1));
    let status = cluster.expect("the mirror ends", cluster.nodes[0].stop_spegel(Duration::from_secs(2)));
    assert_eq!(status.code(), Some(0), "SIGTERM is a success");
}
