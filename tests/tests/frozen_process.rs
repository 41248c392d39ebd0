//! A mirror that stood still for so long that it was taken for dead wakes: it is a member again, what it has is
//! found, and its own node's pulls are answered at once. And one that is paused for a moment, as a quota of CPU does,
//! sends no pull upstream. Mirrors the simulated scenarios `frozen_process` and `pauses_of_who_asks`.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller};

const LAYERS: [u64; 2] = [100_000, 100_000];
const PAUSE: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(20);
const PULL_MAX: Duration = Duration::from_secs(3);
/// From waking until all count it and find what only it has. In the simulator views agree 42 s later.
const BACK_MAX: Duration = Duration::from_secs(20);
/// Longer than lookups last, so that one under way is overdue on waking.
const SHORT_PAUSES: [Duration; 3] =
    [Duration::from_millis(150), Duration::from_millis(250), Duration::from_millis(400)];
const SHORT_PAUSES_COUNT: usize = 30;
const BETWEEN_PAUSES: Duration = Duration::from_millis(50);
const CLIENTS: usize = 2;

#[test]
fn mirror_that_wakes_is_a_member_again_and_shares() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(4, Generation::V2_1));
    cluster.expect("the cluster forms", cluster.wait_whole(PATIENCE));
    let [frozen, other, near, far] = cluster.nodes.as_slice() else { panic!("four nodes") };
    let shared = cluster.held_image(&ImageSpec::new("frozen", "shared", &LAYERS), &[frozen, other], far);
    let own = cluster.held_image(&ImageSpec::new("frozen", "own", &LAYERS), &[frozen], far);
    let wanted = cluster.held_image(&ImageSpec::new("frozen", "wanted", &LAYERS), &[other], far);
    cluster.upstream.cut();
    let pull = |puller: &Node, image: &Image| {
        let took = cluster.expect("pull", puller.pull(Puller::Cri, &image.by_tag()));
        cluster.expect("content", puller.verify(image));
        println!("{} pulled {} in {took:?}", puller.name, image.by_tag());
        assert!(took <= PULL_MAX, "{} pulled {} in {took:?}, not {PULL_MAX:?}", puller.name, image.by_tag());
    };

    let start = Instant::now();
    frozen.freeze_spegel();
    thread::sleep(Duration::from_millis(100));
    pull(near, &shared);
    let gone = cluster.expect("the frozen one is given up", far.wait_members(3, PAUSE));
    println!("given up after {gone:?}");
    pull(far, &shared);
    thread::sleep(PAUSE.saturating_sub(start.elapsed()));
    frozen.thaw_spegel();
    let awake = Instant::now();
    // Its own view is eight seconds old: that must not cost its node's pulls anything.
    pull(frozen, &wanted);
    cluster.expect("a member again", cluster.wait_whole(BACK_MAX));
    println!("a member again {:?} after waking", awake.elapsed());
    cluster.expect("what it has is found", near.wait_finds(&own, BACK_MAX));
    let back = awake.elapsed();
    println!("its content is found {back:?} after waking");
    assert!(back <= BACK_MAX, "back {back:?} after waking, not {BACK_MAX:?}");
    pull(near, &own);
    assert_eq!(frozen.spegel_exited(), None, "the mirror never restarted");
}

#[test]
fn short_pauses_of_a_mirror_send_no_pull_upstream() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(4, Generation::V2_1));
    cluster.expect("the cluster forms", cluster.wait_whole(PATIENCE));
    let [holder, asker, ..] = cluster.nodes.as_slice() else { panic!("four nodes") };
    let image = cluster.held_image(&ImageSpec::new("frozen", "paused", &LAYERS), &[holder], asker);
    let (done, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let ask = || {
        let mut missed = Vec::new();
        while !done.load(Ordering::Relaxed) {
            for blob in &image.needed {
                missed.extend(asker.finds(&image.blob_path(blob)).err());
                asked.fetch_add(1, Ordering::Relaxed);
            }
        }
        missed
    };
    let missed: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        for pause in SHORT_PAUSES.iter().cycle().take(SHORT_PAUSES_COUNT) {
            thread::sleep(BETWEEN_PAUSES);
            asker.freeze_spegel();
            thread::sleep(*pause);
            asker.thaw_spegel();
        }
        done.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("asking does not panic")).collect()
    });
    let asked = asked.into_inner();
    println!("{asked} questions, {} in vain", missed.len());
    assert!(missed.is_empty(), "{} of {asked} questions were in vain: {missed:?}", missed.len());
}
