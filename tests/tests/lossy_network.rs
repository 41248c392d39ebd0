//! Packets get lost, late and doubled: at first many of those with which nodes talk to each other, then some of
//! all. Pulls go well and are not late, and when the network is sound again the cluster is whole. Mirrors the
//! simulated scenario `lossy_control`; that what is sent again arrives late and out of order is TCP's doing.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::thread;
use std::time::Duration;

use spegel_tests::{
    Cluster, ClusterOptions, Generation, ImageSpec, Node, Noise, Puller, ROUTER_PORT, percentile,
};

const LAYERS: [u64; 2] = [100_000, 100_000];
const PATIENCE: Duration = Duration::from_secs(20);
/// Between nodes: a fifth lost, a fifth of the rest doubled, as in the simulator.
const CONTROL: Noise = Noise { lost_percent: 20, doubled_percent: 20, port: Some(ROUTER_PORT) };
/// What a bad cable does to everything.
const ALL: Noise = Noise { lost_percent: 3, doubled_percent: 10, port: None };
/// Each kind of trouble lasts so long before the first pull, and again between rounds of pulls.
const TROUBLE: Duration = Duration::from_secs(3);
const PULL_MAX: Duration = Duration::from_secs(5);
/// From the end of the trouble until all count each other.
const WHOLE_MAX: Duration = Duration::from_secs(30);
const LAST_PULL_MAX: Duration = Duration::from_secs(2);

#[test]
fn pulls_go_well_on_a_lossy_network_and_the_cluster_recovers() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(5, Generation::V2_1));
    cluster.expect("the cluster forms", cluster.wait_whole(PATIENCE));
    let [first, second, pullers @ ..] = cluster.nodes.as_slice() else { panic!("five nodes") };
    let specs: Vec<ImageSpec> = (0..5).map(|n| ImageSpec::new("lossy", &n.to_string(), &LAYERS)).collect();
    let images = cluster.held_images(&specs, &[first, second], &pullers[0]);
    let (last, rounds) = images.split_last().expect("five images");

    for (noise, images) in [CONTROL, ALL].into_iter().zip(rounds.chunks(2)) {
        cluster.disturb(noise);
        let mut took = Vec::new();
        for image in images {
            thread::sleep(TROUBLE);
            let pulled: Vec<Duration> = thread::scope(|scope| {
                let pull = |puller| {
                    let took = cluster.expect("pull", Node::pull(puller, Puller::Cri, &image.by_tag()));
                    cluster.expect("content", puller.verify(image));
                    took
                };
                let pulls: Vec<_> = pullers.iter().map(|puller| scope.spawn(move || pull(puller))).collect();
                pulls.into_iter().map(|pull| pull.join().expect("a pull goes well")).collect()
            });
            took.extend(pulled);
        }
        let members =
            cluster.nodes.iter().map(|node| cluster.expect("metrics", node.metric("spegel_members", "")));
        let members: Vec<f64> = members.collect();
        let (lost, doubled) = cluster.disturbed();
        let longest = percentile(&took, 100);
        println!(
            "{noise:?}: {lost} packets lost, {doubled} doubled; {} pulls, half within {:?}, longest {longest:?}; \
             members counted at the end: {members:?}",
            took.len(),
            percentile(&took, 50)
        );
        assert!(lost > 0 && doubled > 0, "nothing was lost or doubled, so this shows nothing");
        assert!(longest <= PULL_MAX, "{noise:?}: a pull took {longest:?}, not {PULL_MAX:?}");
        cluster.heal();
    }
    let whole = cluster.expect("the cluster is whole", cluster.wait_whole(WHOLE_MAX));
    println!("whole {whole:?} after the trouble");
    cluster.upstream.cut();
    for puller in pullers {
        let took = cluster.expect("pull", puller.pull(Puller::Cri, &last.by_tag()));
        cluster.expect("content", puller.verify(last));
        assert!(took <= LAST_PULL_MAX, "{} pulled in {took:?}, not {LAST_PULL_MAX:?}", puller.name);
    }
}
