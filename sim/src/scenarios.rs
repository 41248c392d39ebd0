//! Faults of every kind, then healing, then a deadline by which all must be well: at the end of
//! each run views must agree, and pulls must have gone well although the registry was cut off.

use std::{collections::BTreeMap, time::Duration};

use spegel_core::Notice;

use crate::{
    fault::{Fault, Lossy},
    image::{HollowLayer, Image},
    incidents,
    invariant::RESTING_SENDS_PER_SECOND_MAX,
    scenario::{Outcome, Scenario},
    stories, untruths,
};

/// The image that most scenarios are about.
const IMAGE: &str = "registry.test/app:1";

/// Bytes of each layer.
const LAYER_BYTES: usize = 100_000;

/// Bodies that are worth moving in the middle, and how many of them.
const SHARED_LAYER_BYTES: usize = 64 << 20;
const SHARED_LAYERS: usize = 4;

/// Twelve such bodies of two nodes that send 50 MB/s take 8.05 seconds. Where holders do not say how busy they are,
/// half of sixty seeds take more than 11.4, and the worst 14.8; where they do, 9.53 at most.
const SHARED_MAX: Duration = Duration::from_millis(10_000);

/// As in the chart.
const SHUTDOWN_DELAY: Duration = Duration::from_secs(5);

/// A scenario and the name under which it is replayed.
pub type Named = (&'static str, fn() -> Scenario);

/// Scenarios that are no incidents.
const OTHERS: &[Named] = &[
    ("partition_and_merge", partition_and_merge),
    ("rolling_restart", rolling_restart),
    ("rolling_restart_with_http", rolling_restart_with_http),
    ("update_behind_node_ports", update_behind_node_ports),
    ("frozen_process", frozen_process),
    ("holder_falls_silent", holder_falls_silent),
    ("holders_share_the_work", holders_share_the_work),
    ("busy_holder_dies", busy_holder_dies),
    ("slow_peer", slow_peer),
    ("corrupting_peer", corrupting_peer),
    ("lossy_control", lossy_control),
    ("lossy_control_with_http", lossy_control_with_http),
    ("lost_control", lost_control),
    ("doubled_control", doubled_control),
    ("late_control", late_control),
    ("late_goodbyes", late_goodbyes),
    ("owner_restarts_empty", owner_restarts_empty),
    ("owners_restart_in_turn", owners_restart_in_turn),
    ("pauses_of_who_asks", pauses_of_who_asks),
    ("containerd_flaps", containerd_flaps),
    ("containerd_hangs", containerd_hangs),
    ("garbage_collection", garbage_collection),
    ("upstream_down", upstream_down),
    ("upstream_throttles", upstream_throttles),
    ("upstream_throttles_with_http", upstream_throttles_with_http),
    ("upstream_throttles_without_mirror", upstream_throttles_without_mirror),
    ("flash_crowd", flash_crowd),
    ("newcomers_to_three_hundred", newcomers_to_three_hundred),
    ("idle_cluster", idle_cluster),
];

/// Every scenario there is, for replay by name.
pub fn all() -> impl Iterator<Item = Named> {
    incidents::ALL.iter().chain(stories::ALL).chain(OTHERS).chain(untruths::ALL).copied()
}

/// The scenario of this name.
#[must_use]
pub fn named(name: &str) -> Option<Scenario> {
    all().find(|(known, _)| *known == name).map(|(_, scenario)| scenario())
}

pub(crate) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(crate) fn name(n: usize) -> String {
    format!("n{n}")
}

/// `nodes` nodes, the first `holders` of which have the image; the registry is cut off.
fn cluster(scenario: &'static str, ends_at: Duration, nodes: usize, holders: usize) -> Scenario {
    let scenario = Scenario::new(scenario, ends_at)
        .nodes(nodes)
        .image(Image::new(IMAGE, 2, LAYER_BYTES, 1))
        .fault(Duration::ZERO, Fault::CutUpstream);
    (1..=holders).fold(scenario, |scenario, n| scenario.preload(&name(n), IMAGE))
}

/// Every pull went well at the first try.
pub(crate) fn expect_first_tries(outcome: &Outcome, count: usize, longest: Duration) -> Result<(), String> {
    outcome.expect_pulls(count, longest)?;
    match outcome.pulls.iter().find(|pull| pull.tries > 1) {
        Some(pull) => Err(format!("a pull had to be tried again: {pull:?}")),
        None => Ok(()),
    }
}

/// Two halves, each with a holder, are apart for a minute, and go on serving their own. A minute
/// after the network is whole so is the cluster.
#[must_use]
pub fn partition_and_merge() -> Scenario {
    let (left, right): (Vec<_>, Vec<_>) = (1..=12).map(name).partition(|name| name.len() == 2);
    // n1..n9 and n10..n12.
    let right_holder = "n10";
    cluster("partition_and_merge", seconds(140), 12, 1)
        .light()
        .preload(right_holder, IMAGE)
        .fault(seconds(10), Fault::Partition { left, right })
        .pull(seconds(40), "n5", IMAGE)
        .pull(seconds(40), "n11", IMAGE)
        .fault(seconds(70), Fault::Repair)
        .pull(seconds(130), "n6", IMAGE)
        .pull(seconds(130), "n12", IMAGE)
        .expect(|outcome| expect_first_tries(outcome, 4, seconds(2)))
}

/// Each node is restarted, one after the other, while pods start on the second half of them.
fn rolling(name_of: &'static str, nodes: usize) -> Scenario {
    let holders = nodes / 2;
    let mut scenario = cluster(name_of, seconds(50 + 5 * nodes as u64), nodes, holders);
    for n in 1..=nodes {
        let at = seconds(10 + 5 * n as u64);
        scenario = scenario
            .fault(at, Fault::Stop { node: name(n) })
            .fault(at + seconds(2), Fault::Start { node: name(n) });
    }
    for n in holders + 1..=nodes {
        // Not while its own mirror is away.
        let at = Duration::from_millis(15_000 + 4_900 * (n - holders) as u64);
        scenario = scenario.pull(at, &name(n), IMAGE);
    }
    scenario
}

/// Ten nodes.
#[must_use]
pub fn rolling_restart() -> Scenario {
    rolling("rolling_restart", 10).light().expect(|outcome| expect_first_tries(outcome, 5, seconds(2)))
}

/// Four nodes, with everything that is real.
#[must_use]
pub fn rolling_restart_with_http() -> Scenario {
    rolling("rolling_restart_with_http", 4)
        .tick(Duration::from_millis(5))
        .expect(|outcome| expect_first_tries(outcome, 2, seconds(2)))
}

/// Each mirror is replaced, one after the other, as Kubernetes does it: a moment after one has ended comes the next.
/// Its node pulls when one was just told to end, and containerd is still led to that.
#[must_use]
pub fn update_behind_node_ports() -> Scenario {
    let other = "registry.test/other:1";
    let mut scenario = cluster("update_behind_node_ports", seconds(80), 4, 2)
        .image(Image::new(other, 2, LAYER_BYTES, 3))
        .preload("n3", other)
        .preload("n4", other)
        .tick(Duration::from_millis(5))
        .behind_node_ports()
        .shutdown_delay(SHUTDOWN_DELAY);
    for n in 1..=4 {
        let (at, wanted) = (seconds(15 * n as u64), if n <= 2 { other } else { IMAGE });
        scenario = scenario
            .fault(at, Fault::Stop { node: name(n) })
            .fault(at + SHUTDOWN_DELAY + seconds(2), Fault::Start { node: name(n) })
            .pull(at + Duration::from_millis(500), &name(n), wanted);
    }
    scenario.expect(|outcome| expect_first_tries(outcome, 4, seconds(2)))
}

/// One of two holders is paused for eight seconds, long enough to be declared dead, and wakes.
#[must_use]
pub fn frozen_process() -> Scenario {
    cluster("frozen_process", seconds(60), 6, 2)
        .light()
        .fault(seconds(10), Fault::Freeze { node: name(1), pause: seconds(8) })
        .pull(Duration::from_millis(10_100), "n3", IMAGE)
        .pull(seconds(12), "n4", IMAGE)
        .pull(Duration::from_millis(18_001), "n1", IMAGE)
        .pull(seconds(55), "n5", IMAGE)
        .expect(|outcome| expect_first_tries(outcome, 4, seconds(3)))
}

/// Two nodes pull when one of two holders is paused in mid-body, too shortly to be declared dead by
/// all: what is left comes from the other.
#[must_use]
pub fn holder_falls_silent() -> Scenario {
    let big = "registry.test/big:1";
    let mut scenario = cluster("holder_falls_silent", seconds(60), 4, 0)
        .light()
        .image(Image::new(big, 2, 10_000_000, 2))
        .preload("n1", big)
        .preload("n2", big)
        .fault(seconds(11), Fault::Freeze { node: name(1), pause: seconds(8) })
        .pull(seconds(10), "n3", big)
        .pull(seconds(10), "n4", big);
    for n in 1..=4 {
        scenario = scenario.fault(Duration::ZERO, Fault::Slow { node: name(n), bytes_per_second: 5_000_000 });
    }
    // Eight seconds if one holder serves both all the time.
    scenario.expect(|outcome| expect_first_tries(outcome, 2, seconds(11)))
}

/// One of two holders sends five hundred times slower than the other.
#[must_use]
pub fn slow_peer() -> Scenario {
    let big = "registry.test/big:1";
    let mut scenario = cluster("slow_peer", seconds(60), 6, 0)
        .light()
        .image(Image::new(big, 1, 20_000_000, 2))
        .preload("n1", big)
        .preload("n2", big)
        .fault(Duration::ZERO, Fault::Slow { node: name(1), bytes_per_second: 100_000 });
    for n in 3..=6 {
        scenario = scenario.pull(seconds(10 + 10 * (n as u64 - 3)), &name(n), big);
    }
    // At the slow one's rate it would be two hundred seconds.
    scenario.expect(|outcome| outcome.expect_pulls(4, seconds(10)))
}

/// Three nodes pull twelve large bodies, and two others hold them.
fn shared(name_of: &'static str) -> Scenario {
    let layer = |n: usize| HollowLayer { name: format!("layer {n}"), bytes: SHARED_LAYER_BYTES };
    let big = "registry.test/big:1";
    let image = Image::hollow(big, &(0..SHARED_LAYERS).map(layer).collect::<Vec<_>>());
    let scenario = cluster(name_of, seconds(60), 5, 0).light().image(image);
    let scenario = scenario.preload("n1", big).preload("n2", big);
    (3..=5).fold(scenario, |scenario, n| {
        scenario.pull(seconds(10) + Duration::from_millis(n as u64), &name(n), big)
    })
}

/// Holders say how busy they are, so that both are busy to the end.
#[must_use]
pub fn holders_share_the_work() -> Scenario {
    shared("holders_share_the_work").expect(|outcome| expect_first_tries(outcome, 3, SHARED_MAX))
}

/// One of the two is killed in mid-body, and back in a second; the other sends the rest.
#[must_use]
pub fn busy_holder_dies() -> Scenario {
    shared("busy_holder_dies")
        .fault(seconds(12), Fault::Crash { node: name(1) })
        .fault(seconds(13), Fault::Start { node: name(1) })
        .expect(|outcome| expect_first_tries(outcome, 3, 2 * SHARED_MAX))
}

/// One of two holders serves wrong bytes. containerd notices; the pull that had them fails, and
/// goes well when it is tried again. With everything that is real.
#[must_use]
pub fn corrupting_peer() -> Scenario {
    let mut scenario = cluster("corrupting_peer", seconds(100), 6, 2)
        .tick(Duration::from_millis(5))
        .fault(seconds(5), Fault::Corrupt { node: name(1) });
    for n in 3..=6 {
        scenario = scenario.pull(seconds(5 + n as u64), &name(n), IMAGE);
    }
    scenario.expect(|outcome| {
        outcome.expect_pulls(4, seconds(3))?;
        let failed = outcome.pulls.iter().any(|pull| pull.tries > 1);
        let shunned = outcome.notices.iter().any(|(_, _, it)| matches!(it, Notice::PeerShunned { .. }));
        if failed && !shunned { Err("nobody shunned the peer with wrong bytes".to_owned()) } else { Ok(()) }
    })
}

/// For a minute control messages fare badly while nodes pull; half a minute later all is well.
/// Pulls may go without the cluster's help then, late they may not be.
fn lossy(name_of: &'static str, nodes: usize, lossy: Lossy) -> Scenario {
    let mut scenario = cluster(name_of, seconds(110), nodes, 3)
        .fault(seconds(10), Fault::Lossy(lossy))
        .fault(seconds(70), Fault::Lossy(Lossy::NONE));
    for n in 4..nodes {
        scenario = scenario.pull(seconds(15 + 5 * n as u64), &name(n), IMAGE);
    }
    scenario.pull(seconds(100), &name(nodes), IMAGE)
}

/// A fifth of all messages is lost, a fifth of the rest doubled, a fifth of what is left late by up
/// to three seconds.
const LOSSY: Lossy = Lossy { lost: 20, doubled: 20, late: 20 };

/// Everything at once.
#[must_use]
pub fn lossy_control() -> Scenario {
    lossy("lossy_control", 10, LOSSY).light().expect(|outcome| outcome.expect_pulls(7, seconds(5)))
}

/// Everything at once, to five nodes with everything that is real.
#[must_use]
pub fn lossy_control_with_http() -> Scenario {
    lossy("lossy_control_with_http", 5, LOSSY)
        .tick(Duration::from_millis(5))
        .expect(|outcome| outcome.expect_pulls(2, seconds(5)))
}

/// Every third message is lost.
#[must_use]
pub fn lost_control() -> Scenario {
    lossy("lost_control", 10, Lossy { lost: 33, ..Lossy::NONE })
        .light()
        .expect(|outcome| outcome.expect_pulls(7, seconds(5)))
}

/// Every other message arrives twice, which nobody must notice.
#[must_use]
pub fn doubled_control() -> Scenario {
    lossy("doubled_control", 10, Lossy { doubled: 50, ..Lossy::NONE })
        .light()
        .expect(|outcome| expect_first_tries(outcome, 7, seconds(1)))
}

/// Every third message is up to three seconds late, and overtaken by what was sent after it.
#[must_use]
pub fn late_control() -> Scenario {
    lossy("late_control", 10, Lossy { late: 33, ..Lossy::NONE })
        .light()
        .expect(|outcome| outcome.expect_pulls(7, seconds(5)))
}

/// Nodes are restarted within a moment, and every fifth of their farewells arrives when they have
/// long been back: nobody takes them for gone again.
#[must_use]
pub fn late_goodbyes() -> Scenario {
    let mut scenario = cluster("late_goodbyes", seconds(70), 8, 7)
        .light()
        .fault(seconds(5), Fault::Lossy(Lossy { late: 20, ..Lossy::NONE }))
        .fault(seconds(50), Fault::Lossy(Lossy::NONE));
    for n in 2..=7 {
        let at = seconds(5 + 5 * n as u64);
        scenario = scenario
            .fault(at, Fault::Stop { node: name(n) })
            .fault(at + Duration::from_millis(300), Fault::Start { node: name(n) });
    }
    scenario.pull(seconds(60), "n8", IMAGE).expect(|outcome| {
        expect_first_tries(outcome, 1, seconds(2))?;
        let mut gone = BTreeMap::new();
        for (at, observer, notice) in &outcome.notices {
            if let Notice::MemberDown { peer } = notice
                && let Some(before) = gone.insert((observer, peer), at)
            {
                return Err(format!("{observer} took {peer} for gone at {before:?} and again at {at:?}"));
            }
        }
        Ok(())
    })
}

/// Owners of the image's keys are killed and come back at once, with nothing: whoever asks them
/// must not be told that nobody has it.
#[must_use]
pub fn owner_restarts_empty() -> Scenario {
    let mut scenario = cluster("owner_restarts_empty", seconds(60), 8, 1).light();
    for n in 2..=7 {
        let at = seconds(10 + 3 * n as u64);
        scenario = scenario
            .fault(at, Fault::Crash { node: name(n) })
            .fault(at + Duration::from_millis(300), Fault::Start { node: name(n) })
            .pull(at + Duration::from_millis(1500), &name(n), IMAGE);
    }
    scenario.pull(seconds(33), "n8", IMAGE).expect(|outcome| expect_first_tries(outcome, 7, seconds(2)))
}

/// Owners are killed and come back with nothing one after another, faster than they are reconciled, while a node
/// pulls image after image: it is never told that nobody has one.
#[must_use]
pub fn owners_restart_in_turn() -> Scenario {
    const IMAGES: usize = 140;
    const BETWEEN_PULLS: Duration = Duration::from_millis(50);
    const TURN: Duration = Duration::from_millis(1650);
    const AWAY: Duration = Duration::from_millis(350);
    let mut scenario = cluster("owners_restart_in_turn", seconds(30), 6, 1).light();
    for turn in 0..4 {
        let at = seconds(10) + TURN * turn;
        let node = name(2 + turn as usize);
        scenario =
            scenario.fault(at, Fault::Crash { node: node.clone() }).fault(at + AWAY, Fault::Start { node });
    }
    for n in 0..IMAGES {
        let image = format!("registry.test/turn:{n}");
        let seed = 100 + n as u64;
        scenario = scenario.image(Image::new(&image, 1, 1000, seed)).preload("n1", &image).pull(
            seconds(10) + BETWEEN_PULLS * n as u32,
            "n6",
            &image,
        );
    }
    scenario.expect(|outcome| expect_first_tries(outcome, IMAGES, seconds(2)))
}

/// A node that pulls image after image is paused again and again, as its quota of CPU or its hypervisor does, now alone
/// and now with all others: answers that came meanwhile are not late, and no pull goes upstream.
#[must_use]
pub fn pauses_of_who_asks() -> Scenario {
    const IMAGES: usize = 200;
    const BETWEEN_PULLS: Duration = Duration::from_millis(47);
    const BETWEEN_PAUSES: Duration = Duration::from_millis(750);
    const PAUSES: [Duration; 4] =
        [Duration::from_millis(60), Duration::from_millis(150), Duration::from_millis(400), seconds(1)];
    let mut scenario = cluster("pauses_of_who_asks", seconds(40), 6, 1).light();
    let mut at = seconds(10);
    for (turn, pause) in PAUSES.into_iter().cycle().take(12).enumerate() {
        let paused = if turn < PAUSES.len() { 6..=6 } else { 1..=6 };
        for n in paused {
            scenario = scenario.fault(at, Fault::Freeze { node: name(n), pause });
        }
        at += BETWEEN_PAUSES + pause;
    }
    for n in 0..IMAGES {
        let image = format!("registry.test/paused:{n}");
        scenario = scenario.image(Image::new(&image, 1, 1000, 100 + n as u64)).preload("n1", &image).pull(
            seconds(10) + BETWEEN_PULLS * n as u32,
            "n6",
            &image,
        );
    }
    scenario.expect(|outcome| expect_first_tries(outcome, IMAGES, seconds(4)))
}

/// The containerd of a holder comes and goes; that of a node that pulls, too.
#[must_use]
pub fn containerd_flaps() -> Scenario {
    let mut scenario = cluster("containerd_flaps", seconds(120), 5, 1).light();
    for turn in 0..5 {
        let at = seconds(10 + 15 * turn);
        for node in ["n1", "n2"] {
            scenario = scenario
                .fault(at, Fault::StopContainerd { node: node.to_owned() })
                .fault(at + seconds(7), Fault::StartContainerd { node: node.to_owned() });
        }
    }
    scenario
        .pull(seconds(12), "n2", IMAGE)
        .pull(seconds(14), "n3", IMAGE)
        .pull(seconds(100), "n4", IMAGE)
        .expect(|outcome| outcome.expect_pulls(3, seconds(10)))
}

/// The containerd of one of two holders hangs for a minute, that of another node from its start:
/// both accept connections and answer nothing. The holder notices, and serves what it has; the
/// other is not ready before its containerd wakes; nobody else is concerned.
#[must_use]
pub fn containerd_hangs() -> Scenario {
    cluster("containerd_hangs", seconds(120), 6, 2)
        .light()
        .fault(Duration::ZERO, Fault::HangContainerd { node: name(6), pause: seconds(40) })
        .fault(seconds(10), Fault::HangContainerd { node: name(1), pause: seconds(60) })
        .pull(seconds(20), "n3", IMAGE)
        .pull(seconds(45), "n6", IMAGE)
        .pull(seconds(60), "n4", IMAGE)
        .pull(seconds(100), "n5", IMAGE)
        .expect(|outcome| {
            expect_first_tries(outcome, 4, seconds(2))?;
            let said = |node: &str, lost: bool| {
                let is_it = |notice: &Notice| {
                    if lost {
                        matches!(notice, Notice::ContainerdLost { .. })
                    } else {
                        matches!(notice, Notice::ContainerdListed { .. })
                    }
                };
                let said = outcome.notices.iter().filter(|(_, who, what)| who == node && is_it(what));
                said.map(|(at, ..)| *at).collect::<Vec<_>>()
            };
            // Fifteen seconds of silence, five for an answer, and what is on its way.
            let is_noticed = |at: &Duration| (seconds(10)..=seconds(32)).contains(at);
            let is_healed = |at: &Duration| (seconds(70)..=seconds(72)).contains(at);
            if !matches!(&said("n1", true)[..], [at] if is_noticed(at)) {
                return Err(format!("n1 noticed at {:?} that its containerd hangs", said("n1", true)));
            }
            if !matches!(&said("n1", false)[..], [_, at] if is_healed(at)) {
                return Err(format!("n1 listed its containerd at {:?}", said("n1", false)));
            }
            if let Some((at, ..)) =
                (2..=5).map(name).find_map(|node| Some((*said(&node, true).first()?, node)))
            {
                return Err(format!("another node lost its containerd at {at:?}"));
            }
            match outcome.ready.iter().find(|(node, _)| node == "n6") {
                Some((_, at)) if (seconds(40)..=seconds(42)).contains(at) => Ok(()),
                ready => Err(format!("n6 became ready at {ready:?}")),
            }
        })
}

/// Holders delete the image while others pull it from them; there is always one that has it.
#[must_use]
pub fn garbage_collection() -> Scenario {
    let mut scenario = cluster("garbage_collection", seconds(60), 8, 4).light();
    for n in 1..=3 {
        let at = seconds(10) + Duration::from_millis(7 * n as u64);
        scenario = scenario.fault(at, Fault::DeleteImage { node: name(n), image: IMAGE.to_owned() });
    }
    for n in 5..=8 {
        scenario = scenario.pull(seconds(10) + Duration::from_millis(3 * n as u64), &name(n), IMAGE);
    }
    scenario.expect(|outcome| expect_first_tries(outcome, 4, seconds(2)))
}

/// Nobody has the image, and the registry is away for half a minute: pulls fail at once, and go
/// well as soon as they are tried again; the registry is then asked by few.
#[must_use]
pub fn upstream_down() -> Scenario {
    let mut scenario =
        cluster("upstream_down", seconds(90), 6, 0).light().fault(seconds(40), Fault::RestoreUpstream);
    for n in 1..=6 {
        scenario = scenario.pull(seconds(20) + Duration::from_millis(500 * n as u64), &name(n), IMAGE);
    }
    scenario.expect(|outcome| outcome.expect_pulls(6, seconds(2)))
}

/// What the registry takes in a second before it answers 429.
const UPSTREAM_LIMIT: usize = 10;

/// `nodes` nodes pull an image that nobody has, one each fifty milliseconds, from a registry that
/// throttles. Pulls that it refuses fail, and are begun again by the kubelet.
fn throttled(name_of: &'static str, nodes: usize, ends_at: Duration) -> Scenario {
    let mut scenario = Scenario::new(name_of, ends_at)
        .nodes(nodes)
        .image(Image::new(IMAGE, 3, LAYER_BYTES, 1))
        .fault(Duration::ZERO, Fault::ThrottleUpstream { requests_per_second: Some(UPSTREAM_LIMIT) });
    for n in 1..=nodes {
        scenario = scenario.pull(seconds(10) + Duration::from_millis(50 * n as u64), &name(n), IMAGE);
    }
    scenario
}

/// When the last pull of a throttled registry's image ended.
#[must_use]
pub fn last_pull_ended_at(outcome: &Outcome) -> Duration {
    outcome.pulls.iter().map(|pull| pull.ended_at).max().unwrap_or_default()
}

/// Everyone has the image after so few tries because what few could pull all can share.
fn expect_throttled(outcome: &Outcome, nodes: usize, tries: u32, requests: u64) -> Result<(), String> {
    outcome.expect_pulls(nodes, seconds(2))?;
    if outcome.upstream.throttled == 0 {
        return Err("the registry had no reason to throttle".to_owned());
    }
    match outcome.pulls.iter().find(|pull| pull.tries > tries) {
        Some(pull) => Err(format!("a pull was tried too often: {pull:?}")),
        None => outcome.expect_upstream(requests),
    }
}

/// Forty nodes.
#[must_use]
pub fn upstream_throttles() -> Scenario {
    throttled("upstream_throttles", 40, seconds(120))
        .light()
        .expect(|outcome| expect_throttled(outcome, 40, 2, 300))
}

/// Six nodes, with everything that is real. They go in lockstep, so that each wave of tries gains few
/// blobs: without a mirror five tries are not enough.
#[must_use]
pub fn upstream_throttles_with_http() -> Scenario {
    throttled("upstream_throttles_with_http", 6, seconds(110))
        .tick(Duration::from_millis(5))
        .expect(|outcome| expect_throttled(outcome, 6, 4, 200))
}

/// The same forty nodes without a mirror, for comparison.
#[must_use]
pub fn upstream_throttles_without_mirror() -> Scenario {
    let scenario = throttled("upstream_throttles_without_mirror", 40, seconds(240)).light();
    (1..=40)
        .fold(scenario, |scenario, n| scenario.fault(Duration::ZERO, Fault::BypassMirror { node: name(n) }))
}

/// Two hundred nodes pull an image that one of them has, within a second.
#[must_use]
pub fn flash_crowd() -> Scenario {
    let mut scenario = cluster("flash_crowd", seconds(9), 200, 1).light();
    for n in 2..=200 {
        scenario = scenario.pull(seconds(5) + Duration::from_millis(5 * n as u64), &name(n), IMAGE);
    }
    scenario.expect(|outcome| expect_first_tries(outcome, 199, seconds(3)))
}

/// Ten nodes join three hundred and pull at once what three of them have had for long. A view of
/// so many members takes several messages; until a newcomer has them all, neither it nor those
/// that it is an owner for may say that nobody has the image.
#[must_use]
pub fn newcomers_to_three_hundred() -> Scenario {
    let mut scenario = Scenario::new("newcomers_to_three_hundred", seconds(60))
        .light()
        .expects_of_newcomers()
        .nodes(300)
        .image(Image::new(IMAGE, 2, LAYER_BYTES, 1));
    scenario = (1..=3).fold(scenario, |scenario, n| scenario.preload(&name(n), IMAGE));
    for n in 301..=310 {
        let at = seconds(40) + Duration::from_millis(37 * (n as u64 - 300));
        // From before it has met anybody to when it has met all.
        let pull_at = at + Duration::from_millis(4 * (n as u64 - 300).pow(2));
        scenario = scenario.node(&name(n), at, at).pull(pull_at, &name(n), IMAGE);
    }
    scenario.expect(|outcome| expect_first_tries(outcome, 10, seconds(3)))
}

/// Twenty nodes with some content and nothing to do.
#[must_use]
pub fn idle_cluster() -> Scenario {
    cluster("idle_cluster", seconds(150), 20, 10).light().quiet_from(seconds(30)).expect(|outcome| {
        for (node, work) in &outcome.work {
            // Two minutes: a probe a second, gossip and reconciliation.
            if work.sends > 120 * RESTING_SENDS_PER_SECOND_MAX {
                return Err(format!("{node} talks too much for an idle node: {work:?}"));
            }
            // And two looks for others, which become rarer.
            if work.inspections + work.reads > 0 || work.lists > 1 || work.resolves > 2 {
                return Err(format!("{node} does too much for an idle node: {work:?}"));
            }
        }
        Ok(())
    })
}
