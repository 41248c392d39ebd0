//! The incidents that this project exists for, as scenarios with names. Their stories are told
//! where they are run: `sim/tests/incidents.rs`.

use std::time::Duration;

use spegel_core::Notice;
use spegel_io::metrics::Metrics;

use crate::{
    fault::{Dns, Fault},
    image::Image,
    scenario::{Outcome, Scenario},
    scenarios::Named,
};

/// The image that most incidents are about.
const IMAGE: &str = "registry.test/app:1";

/// Bytes of each layer: a few segments, so that a transfer is more than one message.
const LAYER_BYTES: usize = 100_000;

/// Every incident, for replay by name.
pub(crate) const ALL: &[Named] = &[
    ("unknown_media_type", unknown_media_type),
    ("unknown_media_type_for_a_day", unknown_media_type_for_a_day),
    ("scale_up_from_one_node", scale_up_from_one_node),
    ("scale_up_to_fifty", scale_up_to_fifty),
    ("vip_always_leads_home", vip_always_leads_home),
    ("vip_often_leads_home", vip_often_leads_home),
    ("vip_sometimes_leads_home", vip_sometimes_leads_home),
    ("vip_with_http", vip_with_http),
    ("dead_node", dead_node),
    ("dead_nodes_of_sixty", dead_nodes_of_sixty),
    ("proxy_on_two_nodes", proxy_on_two_nodes),
    ("proxy_with_http", proxy_with_http),
    ("proxy_for_a_day", proxy_for_a_day),
];

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

// --- an image that cannot be walked ---------------------------------------------------------------

/// Images that are as they should be, beside those that are not.
const GOOD_IMAGES: usize = 500;

fn image_name(n: usize) -> String {
    format!("registry.test/good/image{n}:1")
}

const ODD_IMAGES: [&str; 3] =
    ["registry.test/odd/unknown:1", "registry.test/odd/garbled:1", "registry.test/odd/unreadable:1"];

/// `n1` has 500 images, and three that cannot be walked: one of an unknown media type, one whose
/// manifest is no JSON, one whose manifest cannot be read.
fn with_odd_images(scenario: Scenario) -> Scenario {
    let odd = [
        Image::new(ODD_IMAGES[0], 1, 100, 1001).with_unknown_media_type(),
        Image::new(ODD_IMAGES[1], 1, 100, 1002).with_garbled_manifest(),
        Image::new(ODD_IMAGES[2], 1, 100, 1003).with_unreadable_manifest(),
    ];
    let scenario = odd.into_iter().fold(scenario, |scenario, image| {
        let name = image.name.clone();
        scenario.image(image).preload("n1", &name)
    });
    (0..GOOD_IMAGES).fold(scenario, |scenario, n| {
        scenario.image(Image::new(&image_name(n), 1, 100, n as u64)).preload("n1", &image_name(n))
    })
}

/// Two nodes; the second pulls some of what the first has, the odd ones too, from nowhere else.
#[must_use]
pub fn unknown_media_type() -> Scenario {
    let scenario = Scenario::new("unknown_media_type", seconds(40)).light().nodes(2);
    let scenario = with_odd_images(scenario).fault(Duration::ZERO, Fault::CutUpstream);
    let odd = ODD_IMAGES[..2].iter().map(|name| (*name).to_owned());
    let wanted: Vec<_> = [0, 250, GOOD_IMAGES - 1].into_iter().map(image_name).chain(odd).collect();
    let scenario = wanted.iter().fold(scenario, |scenario, name| scenario.pull(seconds(15), "n2", name));
    scenario.expect(|outcome| {
        outcome.expect_pulls(5, Duration::from_millis(500))?;
        let held = outcome.reports.get("n1").map_or(0, |report| report.directory.keys_held);
        // A tag, a manifest, a config and a layer each. (Agreement of all owners is an invariant.)
        let expected = (GOOD_IMAGES + ODD_IMAGES.len()) * 4;
        if held != expected {
            return Err(format!("n1 announces {held} keys, not {expected}"));
        }
        expect_odd_notices(outcome)
    })
}

/// The same images on one node, alone, for a day.
#[must_use]
pub fn unknown_media_type_for_a_day() -> Scenario {
    let day = seconds(24 * 3600);
    let scenario = Scenario::new("unknown_media_type_for_a_day", day).light().nodes(1);
    with_odd_images(scenario).quiet_from(seconds(60)).expect(|outcome| {
        let work = outcome.work.get("n1").copied().unwrap_or_default();
        // Back-off from a minute to six hours, at least half of each: nine steps to the top, then
        // two to eight a day.
        if work.reads > 20 {
            return Err(format!("{} manifests were read again, more than 20", work.reads));
        }
        // A resync each five to ten minutes.
        if work.lists > 24 * 12 || work.inspections > 100 {
            return Err(format!("containerd was asked too often: {work:?}"));
        }
        expect_odd_notices(outcome)
    })
}

fn expect_odd_notices(outcome: &Outcome) -> Result<(), String> {
    for odd in &ODD_IMAGES[1..] {
        let told = outcome.notices.iter().filter(
            |(_, node, notice)| matches!(notice, Notice::ImageUnusual { image, .. } if image == odd && node == "n1"),
        );
        let told = told.count();
        if told != 1 {
            return Err(format!("{odd} was mentioned {told} times, not once"));
        }
    }
    let told = outcome.notices.iter();
    let told = told.filter(|(_, _, notice)| matches!(notice, Notice::ImageUnusual { image, .. } if !ODD_IMAGES.contains(&image.as_str())));
    match told.count() {
        0 => Ok(()),
        count => Err(format!("good images were called unusual {count} times")),
    }
}

// --- one node, then more --------------------------------------------------------------------------

/// When the last of the nodes that join by and by has started.
const LAST_JOIN: Duration = seconds(60);

/// How old the addresses are that the bootstrap name leads to.
const DNS_STALE: Duration = seconds(30);

/// One node, alone, whose containerd comes up five seconds after the mirror; it pulls an image
/// from the registry, which is then cut off. More nodes join, first one, then the rest at once,
/// while DNS is half a minute behind. Each pulls the image a few seconds after it can have been
/// found.
fn scale_up(name: &'static str, nodes: usize) -> Scenario {
    let mut scenario = Scenario::new(name, LAST_JOIN + DNS_STALE + seconds(30))
        .tick(Duration::from_millis(2))
        .image(Image::new(IMAGE, 3, LAYER_BYTES, 1))
        .dns(Dns::List { stale: DNS_STALE })
        .node("n1", seconds(0), seconds(5))
        .pull(seconds(10), "n1", IMAGE)
        .fault(seconds(20), Fault::CutUpstream)
        .node("n2", seconds(25), seconds(0))
        .pull(seconds(25) + DNS_STALE, "n2", IMAGE);
    for n in 3..=nodes {
        let name = format!("n{n}");
        let delay = Duration::from_millis(1000 * (n % 6) as u64 + 10 * n as u64);
        scenario =
            scenario.node(&name, LAST_JOIN, seconds(0)).pull(LAST_JOIN + DNS_STALE + delay, &name, IMAGE);
    }
    scenario
}

fn expect_scaled_up(outcome: &Outcome, nodes: usize) -> Result<(), String> {
    let (first, ready_at) = outcome.ready.first().ok_or("no node ever became ready")?;
    if first != "n1" || *ready_at > seconds(7) {
        return Err(format!("alone, {first} was ready after {ready_at:?}, not 2 s after its containerd"));
    }
    if outcome.ready.len() != nodes {
        return Err(format!("only {} of {nodes} nodes became ready", outcome.ready.len()));
    }
    outcome.expect_pulls(nodes, seconds(2))?;
    // What the tag names, manifest, config and three layers, once, by the first node.
    outcome.expect_upstream(6)
}

/// Eight nodes in the end, with everything that is real.
#[must_use]
pub fn scale_up_from_one_node() -> Scenario {
    scale_up("scale_up_from_one_node", 8).expect(|outcome| expect_scaled_up(outcome, 8))
}

/// Fifty nodes in the end.
#[must_use]
pub fn scale_up_to_fifty() -> Scenario {
    scale_up("scale_up_to_fifty", 50).light().expect(|outcome| expect_scaled_up(outcome, 50))
}

// --- a virtual address ----------------------------------------------------------------------------

/// Most questions to DNS, and most dials, of a node in an hour: the ten that may follow each other
/// quickly, then one a minute.
pub(crate) const ATTEMPTS_PER_HOUR_MAX: u64 = 10 + 60;

fn expect_few_attempts(outcome: &Outcome, hours: u64) -> Result<(), String> {
    for (node, work) in &outcome.work {
        if work.resolves.max(work.dials) > ATTEMPTS_PER_HOUR_MAX * hours {
            return Err(format!("{node} looked for others too often in {hours} h: {work:?}"));
        }
    }
    Ok(())
}

/// Four nodes, each of which is always led home by the Service, for three hours. No cluster can
/// form; each node must go on serving what it has, and stay quiet.
#[must_use]
pub fn vip_always_leads_home() -> Scenario {
    Scenario::new("vip_always_leads_home", seconds(3 * 3600))
        .light()
        .nodes(4)
        .dns(Dns::Vip { self_percent: 100 })
        .stays_broken()
        .quiet_from(Duration::ZERO)
        .expect(|outcome| {
            if outcome.ready.len() != 4 {
                return Err("a node that is alone was not ready".to_owned());
            }
            expect_few_attempts(outcome, 3)
        })
}

fn vip(name: &'static str, nodes: usize, self_percent: u8, formed_by: Duration) -> Scenario {
    let mut scenario = Scenario::new(name, formed_by + seconds(60))
        .nodes(nodes)
        .dns(Dns::Vip { self_percent })
        .quiet_from(Duration::ZERO)
        .image(Image::new(IMAGE, 1, LAYER_BYTES, 1))
        .preload("n1", IMAGE)
        .fault(Duration::ZERO, Fault::CutUpstream)
        .expect(|outcome| {
            outcome.expect_pulls(outcome.reports.len() - 1, seconds(1))?;
            expect_few_attempts(outcome, 1)
        });
    for n in 2..=nodes {
        scenario = scenario.pull(formed_by, &format!("n{n}"), IMAGE);
    }
    scenario
}

/// Four times of five the Service leads home.
#[must_use]
pub fn vip_often_leads_home() -> Scenario {
    vip("vip_often_leads_home", 3, 80, seconds(1500)).light()
}

/// Every other time the Service leads home.
#[must_use]
pub fn vip_sometimes_leads_home() -> Scenario {
    vip("vip_sometimes_leads_home", 5, 50, seconds(1200)).light()
}

/// Every third time the Service leads home, with everything that is real.
#[must_use]
pub fn vip_with_http() -> Scenario {
    vip("vip_with_http", 3, 33, seconds(200)).tick(Duration::from_millis(10))
}

// --- nodes that die in silence ----------------------------------------------------------------------

/// Eight nodes with everything that is real; two of the three holders die in silence while the
/// others pull.
#[must_use]
pub fn dead_node() -> Scenario {
    let mut scenario = Scenario::new("dead_node", seconds(45))
        .tick(Duration::from_millis(2))
        .nodes(8)
        .image(Image::new(IMAGE, 3, LAYER_BYTES, 1))
        .fault(Duration::ZERO, Fault::CutUpstream)
        .fault(seconds(10), Fault::Vanish { node: "n1".to_owned() })
        .fault(seconds(20), Fault::Vanish { node: "n2".to_owned() });
    for holder in ["n1", "n2", "n3"] {
        scenario = scenario.preload(holder, IMAGE);
    }
    for n in 4..=8 {
        let at = [10_010, 10_500, 12_000, 20_010, 21_000][n - 4];
        scenario = scenario.pull(Duration::from_millis(at), &format!("n{n}"), IMAGE);
    }
    scenario.expect(|outcome| {
        outcome.expect_pulls(5, seconds(1))?;
        expect_dead_are_left_alone(outcome, &[("n1", seconds(10)), ("n2", seconds(20))], 15)
    })
}

/// Nodes of the large cluster, those of it that die, and when.
const MANY: usize = 60;
const FIRST_DEATH: Duration = seconds(15);
const DYING: usize = 20;
const DEATHS: Duration = seconds(25);

/// Sixty nodes under a steady load of pulls. One dies in silence, then a third of all at once.
#[must_use]
pub fn dead_nodes_of_sixty() -> Scenario {
    let mut scenario = Scenario::new("dead_nodes_of_sixty", seconds(70)).light().nodes(MANY);
    let names: Vec<_> = (0..20).map(|n| format!("registry.test/app{n}:1")).collect();
    for (n, name) in names.iter().enumerate() {
        scenario = scenario.image(Image::new(name, 2, LAYER_BYTES, n as u64));
        // Six holders each, two of which are going to die.
        for holder in [n + 1, (n + 7) % DYING + 1, n + 21, n + 41, (n + 3) % 40 + 21, (n + 11) % 40 + 21] {
            scenario = scenario.preload(&format!("n{holder}"), name);
        }
    }
    scenario = scenario.fault(FIRST_DEATH, Fault::Vanish { node: "n1".to_owned() });
    for n in 2..=DYING {
        scenario = scenario.fault(DEATHS, Fault::Vanish { node: format!("n{n}") });
    }
    // Ten pulls a second, by those that live.
    for n in 0..400 {
        let at = seconds(10) + Duration::from_millis(100 * n as u64);
        let puller = DYING + 1 + n * 7 % (MANY - DYING);
        // Another image in each round of the pullers, so that hardly any has it already.
        let image = (n * 11 + n / (MANY - DYING)) % names.len();
        scenario = scenario.pull(at, &format!("n{puller}"), &names[image]);
    }
    scenario.expect(|outcome| {
        outcome.expect_pulls(400, seconds(1))?;
        let dead: Vec<_> =
            (1..=DYING).map(|n| (format!("n{n}"), if n == 1 { FIRST_DEATH } else { DEATHS })).collect();
        let dead: Vec<_> = dead.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        expect_dead_are_left_alone(outcome, &dead, 100)
    })
}

/// The dead are asked at most so often in all, and not at all once their death must be known.
fn expect_dead_are_left_alone(
    outcome: &Outcome,
    dead: &[(&str, Duration)],
    most: usize,
) -> Result<(), String> {
    let is_in_vain =
        |(at, node): &&(Duration, String)| dead.iter().any(|(name, died_at)| name == node && died_at < at);
    let in_vain: Vec<_> = outcome.fetches.iter().filter(is_in_vain).collect();
    if in_vain.len() > most {
        return Err(format!("the dead were asked {} times, more than {most}", in_vain.len()));
    }
    let is_known = |at: &Duration, node: &str| {
        dead.iter().any(|(name, died_at)| *name == node && *died_at + DEATH_KNOWN_MAX < *at)
    };
    match in_vain.iter().find(|(at, node)| is_known(at, node)) {
        Some((at, node)) => Err(format!("{node} was asked at {at:?}, long after its death")),
        None => Ok(()),
    }
}

/// Until when all members know of a death: nine seconds have been seen where a third dies at once,
/// because many of those who are asked to probe for others are dead themselves.
const DEATH_KNOWN_MAX: Duration = seconds(12);

// --- a proxy between containerd and the mirror ------------------------------------------------------

/// Images that come past the mirror in a row before anything is said.
const BYPASSES_MIN: usize = 3;

/// How long after the last of these at the latest: labels, by which pulled content is told from
/// imported, come a moment late, and are looked at after five seconds.
const BYPASS_NOTICED_MAX: Duration = seconds(6);

/// How often it is said at most.
const BYPASS_NOTICE_INTERVAL: Duration = seconds(3600);

fn proxied_image(n: usize) -> String {
    format!("registry.test/proxied{n}:1")
}

/// The image that is put on every node by hand, and the one that every node has from the beginning.
const SIDELOADED: &str = "registry.test/sideloaded:1";
const PRELOADED: &str = "registry.test/preloaded:1";

/// On each of `nodes` nodes the first `proxied` of which have a proxy between containerd and mirror,
/// a new image is pulled each `interval`, from `from` on, one is there already, and one is put there
/// by hand. containerd is away when the second image is judged.
fn with_proxy(
    name: &'static str,
    nodes: usize,
    proxied: usize,
    images: u64,
    (from, interval): (Duration, Duration),
) -> Scenario {
    let ends_at = from + interval * u32::try_from(images).unwrap_or(u32::MAX) + seconds(20);
    let mut scenario = Scenario::new(name, ends_at)
        .nodes(nodes)
        .image(Image::new(SIDELOADED, 1, 100, 1001))
        .image(Image::new(PRELOADED, 1, 100, 1002));
    for n in 0..images {
        scenario = scenario.image(Image::new(&proxied_image(n as usize), 1, 100, n));
    }
    for n in 1..=nodes {
        let node = format!("n{n}");
        if n <= proxied {
            scenario = scenario.fault(Duration::ZERO, Fault::BypassMirror { node: node.clone() });
        }
        scenario = scenario
            .preload(&node, PRELOADED)
            .fault(from + interval / 2, Fault::Sideload { node: node.clone(), image: SIDELOADED.to_owned() })
            .fault(from + interval + seconds(5), Fault::StopContainerd { node: node.clone() })
            .fault(from + interval + seconds(6), Fault::StartContainerd { node: node.clone() });
        for image in 0..images {
            let at = from
                + interval * u32::try_from(image).unwrap_or(u32::MAX)
                + Duration::from_millis(200 * n as u64);
            scenario = scenario.pull(at, &node, &proxied_image(image as usize));
        }
    }
    scenario
}

/// The first `proxied` nodes say so, in time and not too often; the others say nothing.
fn expect_bypass_noticed(outcome: &Outcome, proxied: usize) -> Result<(), String> {
    for (node, report) in &outcome.reports {
        let pulls: Vec<_> = outcome.pulls.iter().filter(|pull| pull.node == *node).collect();
        let said: Vec<_> = outcome
            .notices
            .iter()
            .filter(|(_, by, notice)| by == node && matches!(notice, Notice::MirrorBypassed { .. }))
            .collect();
        let is_proxied = node[1..].parse().is_ok_and(|n: usize| n <= proxied);
        let expected = if is_proxied { pulls.len() } else { 0 };
        let metrics = Metrics::new();
        metrics.reported(report);
        if !metrics.encode().contains(&format!("spegel_mirror_bypassed_images_total {expected}\n")) {
            let counted = report.bypassed_images;
            return Err(format!("{node} counts {counted} images that came past the mirror, not {expected}"));
        }
        if !is_proxied {
            match said.first() {
                Some(wrong) => {
                    return Err(format!("{node} uses the mirror, and says that it does not: {wrong:?}"));
                }
                None => continue,
            }
        }
        let alarming = pulls.get(BYPASSES_MIN - 1).ok_or("too few pulls for an alarm")?;
        let Some((first, _, Notice::MirrorBypassed { example, .. })) = said.first() else {
            return Err(format!("{node} does not say that the mirror is bypassed"));
        };
        if *first > alarming.ended_at + BYPASS_NOTICED_MAX || *example != alarming.image {
            return Err(format!("{node} speaks of {example} at {first:?}, not soon after {alarming:?}"));
        }
        if let Some(pair) = said.windows(2).find(|pair| pair[0].0 + BYPASS_NOTICE_INTERVAL > pair[1].0) {
            return Err(format!("{node} says it again too soon: {pair:?}"));
        }
    }
    Ok(())
}

/// Two of ten nodes, five images within two minutes.
#[must_use]
pub fn proxy_on_two_nodes() -> Scenario {
    with_proxy("proxy_on_two_nodes", 10, 2, 5, (seconds(20), seconds(20))).light().expect(|outcome| {
        outcome.expect_pulls(50, seconds(1))?;
        expect_bypass_noticed(outcome, 2)
    })
}

/// One of three nodes, with everything that is real.
#[must_use]
pub fn proxy_with_http() -> Scenario {
    with_proxy("proxy_with_http", 3, 1, 4, (seconds(10), seconds(10))).tick(Duration::from_millis(5)).expect(
        |outcome| {
            outcome.expect_pulls(12, seconds(1))?;
            expect_bypass_noticed(outcome, 1)
        },
    )
}

/// Two nodes, one of them with a proxy, an image each half an hour for a day. (The Service leads
/// each node home, because gossip of a day takes long to simulate.)
#[must_use]
pub fn proxy_for_a_day() -> Scenario {
    with_proxy("proxy_for_a_day", 2, 1, 48, (seconds(600), seconds(1800)))
        .light()
        .dns(Dns::Vip { self_percent: 100 })
        .stays_broken()
        .expect(|outcome| {
            outcome.expect_pulls(96, seconds(1))?;
            expect_bypass_noticed(outcome, 1)
        })
}
