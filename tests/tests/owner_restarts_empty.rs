//! Owners of an image's keys are killed and start again with nothing: whoever asks them is not told that nobody
//! has it. Mirrors the simulated scenario `owner_restarts_empty`.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, Node, Puller};

const LAYERS: [u64; 2] = [100_000, 100_000];
const PATIENCE: Duration = Duration::from_secs(20);
const PULL_MAX: Duration = Duration::from_secs(2);
/// How long a killed mirror is away, and how long after its return its node pulls.
const AWAY: Duration = Duration::from_millis(300);
const PULL_AFTER: Duration = Duration::from_millis(1200);
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(20);

#[test]
fn owner_that_restarts_empty_never_says_that_nobody_has_it() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(6, Generation::V2_1));
    cluster.expect("the cluster forms", cluster.wait_whole(PATIENCE));
    let [holder, restarted @ .., asker] = cluster.nodes.as_slice() else { panic!("six nodes") };
    let image = cluster.held_image(&ImageSpec::new("owner", "1", &LAYERS), &[holder], asker);
    cluster.upstream.cut();
    let mut paths: Vec<String> = image.needed.iter().map(|blob| image.blob_path(blob)).collect();
    paths.push(image.tag_path());
    let told_nobody = |node: &Node| {
        cluster.expect("metrics", node.metric("spegel_pull_refusals_total", "reason=\"nobody_has_it\""))
    };
    // Before the image was there that was true.
    let before = [holder, asker].map(told_nobody);
    let done = AtomicBool::new(false);
    // Somebody asks for each of the keys all the time: three of the six own it.
    let (asked, missed) = thread::scope(|scope| {
        let questions = scope.spawn(|| {
            let (mut asked, mut missed) = (0, Vec::new());
            while !done.load(Ordering::Relaxed) {
                let path = &paths[asked % paths.len()];
                missed.extend(asker.finds(path).err());
                asked += 1;
                thread::sleep(BETWEEN_QUESTIONS);
            }
            (asked, missed)
        });
        for node in restarted {
            node.kill_spegel();
            thread::sleep(AWAY);
            node.spawn_spegel();
            cluster.expect("ready", node.wait_ready(PATIENCE));
            thread::sleep(PULL_AFTER);
            let took = cluster.expect("pull", node.pull(Puller::Cri, &image.by_tag()));
            cluster.expect("content", node.verify(&image));
            println!("{}: pulled in {took:?}", node.name);
            assert!(took <= PULL_MAX, "{} pulled in {took:?}, not {PULL_MAX:?}", node.name);
        }
        done.store(true, Ordering::Relaxed);
        questions.join().expect("asking does not panic")
    });
    println!("{asked} questions, {} in vain", missed.len());
    let after = [holder, asker].map(told_nobody);
    assert_eq!(before, after, "refusals of {} and {} because nobody has it", holder.name, asker.name);
    for node in restarted {
        let refused = told_nobody(node);
        assert!(refused < 0.5, "{} was told {refused} times that nobody has it", node.name);
    }
    assert!(missed.is_empty(), "{} of {asked} questions were in vain: {missed:?}", missed.len());
}
