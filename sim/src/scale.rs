//! A working day's hour of a large cluster, and what it costs each node: every quarter of an hour
//! a wave of deployments, then some nodes go and others come, then nothing happens.
//!
//! `make sim-scale` runs it for growing clusters by [`crate::light`], and compares.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use spegel_core::Node;

use crate::{
    fault::Fault,
    image::{HollowLayer, Image},
    light::{self, Measured, Traffic},
    scenario::{Outcome, Scenario},
};

const MIB: usize = 1 << 20;

/// Applications, of which the most popular is as popular as the next two together, and so on.
const APPS: usize = 60;

/// Images of different applications that a node has at first, and that it pulls in a wave.
const PRELOADED: usize = 8;
const PULLED: usize = 4;

/// Base images and runtimes, which applications share.
const BASES: usize = 6;
const RUNTIMES: usize = 20;

/// The nodes that are there from the beginning start within this long.
const START_SPREAD: Duration = Duration::from_secs(10);

/// Of a quarter of an hour: when the wave begins, and how long its pulls are spread over; when
/// nodes come and go; from when on nothing happens.
const QUARTER: Duration = Duration::from_secs(900);
const WAVE_FROM: Duration = Duration::from_secs(240);
const WAVE_SPREAD: Duration = Duration::from_secs(120);
const WAVE_UNTIL: Duration = Duration::from_secs(380);
const CHURN_FROM: Duration = Duration::from_secs(390);
const CHURN_SPREAD: Duration = Duration::from_secs(60);
const IDLE_FROM: Duration = Duration::from_secs(630);
const IDLE_UNTIL: Duration = Duration::from_secs(895);

/// How long a node that leaves stays away.
const AWAY: Duration = Duration::from_secs(60);

/// One node in so many leaves, loses power, or is new in each quarter of an hour.
const LEAVERS: usize = 500;
const LOST: usize = 500;
const NEWCOMERS: usize = 500;

/// The least time that a message takes; none takes twice as long. Longer makes it easier for threads
/// to share the work, and clusters slower than real ones.
const LOOKAHEAD: Duration = Duration::from_millis(4);

/// How long, how large, and from which seed.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes, those that come later among them.
    pub nodes: usize,
    /// Quarters of an hour.
    pub quarters: u32,
    /// Decides all else.
    pub seed: u64,
}

/// One kind of stretch of time, all quarters together, per node and second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Control messages sent.
    pub messages: Spread,
    /// Bytes of these.
    pub bytes: Spread,
}

/// How something is spread over nodes, or pulls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// Half have at most this.
    pub p50: f64,
    /// All but one in a hundred have at most this.
    pub p99: f64,
    /// None has more.
    pub max: f64,
}

/// What an hour cost.
#[derive(Debug)]
pub struct Costs {
    /// While nothing happens.
    pub idle: Rates,
    /// While images are pulled.
    pub wave: Rates,
    /// Pairs of key and holder that a node knows as an owner, at the end.
    pub entries: Spread,
    /// Keys that a node holds, at the end.
    pub held: Spread,
    /// Bytes of memory of a node's core, at the end.
    pub memory_bytes: Spread,
    /// From the last start of the beginning until every node saw all others, in seconds.
    pub joined_seconds: Option<f64>,
    /// Pulls of images, and those that failed.
    pub pulls: usize,
    /// Pulls that failed in the end.
    pub pulls_failed: usize,
    /// Seconds that a pull took.
    pub pull_seconds: Spread,
    /// Bodies that came from peers.
    pub from_peers: u64,
    /// Questions that reached the registry.
    pub from_upstream: u64,
    /// What broke an invariant, if anything did.
    pub error: Option<String>,
}

/// Runs it on so many threads.
///
/// `freed` drops a core, and tells how many bytes of memory it had.
#[must_use]
pub fn run(size: Size, threads: usize, freed: fn(Node) -> usize) -> Costs {
    let plan = plan(size);
    let (outcome, measured) = light::measure(&plan, size.seed, &moments(size), Some(threads), freed);
    costs(size, &outcome, &measured)
}

fn quarters(size: Size) -> impl Iterator<Item = Duration> {
    (0..size.quarters).map(|quarter| QUARTER * quarter)
}

/// When what has been sent is counted.
fn moments(size: Size) -> Vec<Duration> {
    quarters(size).flat_map(|at| stretches().map(|offset| at + offset)).collect()
}

/// Bounds of what is measured in a quarter of an hour.
const fn stretches() -> [Duration; 4] {
    [WAVE_FROM, WAVE_UNTIL, IDLE_FROM, IDLE_UNTIL]
}

/// The layers of an application's version. A new version has a new layer on top; every other one
/// has other dependencies, too.
fn image(app: usize, version: u32) -> Image {
    let layer = |name: String, bytes: usize| HollowLayer { name, bytes };
    let layers = [
        layer(format!("base {}", app % BASES), 28 * MIB),
        layer(format!("packages {}", app % BASES), 9 * MIB),
        layer(format!("runtime {}", app % RUNTIMES), 40 * MIB),
        layer(format!("dependencies {app} {}", version / 2), 15 * MIB),
        layer(format!("code {app} {version}"), 2 * MIB),
    ];
    Image::hollow(&image_name(app, version), &layers)
}

fn image_name(app: usize, version: u32) -> String {
    format!("registry.test/app-{app}:{version}")
}

/// Different applications, each as likely as it is popular (Zipf).
fn choose_apps(rng: &mut StdRng, count: usize) -> Vec<usize> {
    let total: f64 = (1..=APPS).map(|rank| 1.0 / rank as f64).sum();
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let mut left = rng.random_range(0.0..total);
        let app = (0..APPS).find(|app| {
            left -= 1.0 / (app + 1) as f64;
            left <= 0.0
        });
        let app = app.unwrap_or(APPS - 1);
        if !chosen.contains(&app) {
            chosen.push(app);
        }
    }
    chosen
}

fn within(rng: &mut StdRng, spread: Duration) -> Duration {
    Duration::from_micros(rng.random_range(0..spread.as_micros() as u64))
}

fn plan(size: Size) -> Scenario {
    let mut rng = StdRng::seed_from_u64(size.seed);
    let mut plan = Scenario::new("scale", QUARTER * size.quarters).light().lookahead(LOOKAHEAD);
    for version in 0..=size.quarters {
        plan = (0..APPS).fold(plan, |plan, app| plan.image(image(app, version)));
    }
    let name = |n: usize| format!("n{n}");
    let newcomers = size.nodes.div_ceil(NEWCOMERS);
    let first = size.nodes - newcomers * size.quarters as usize;
    // Those that are there from the beginning, and all that have come by now.
    let mut there: Vec<usize> = (1..=first).collect();
    let mut next = first + 1;
    for n in &there {
        let at = within(&mut rng, START_SPREAD);
        plan = plan.node(&name(*n), at, at);
        for app in choose_apps(&mut rng, PRELOADED) {
            plan = plan.preload(&name(*n), &image_name(app, 0));
        }
    }
    for (version, quarter) in (1..).zip(quarters(size)) {
        for n in &there {
            for app in choose_apps(&mut rng, PULLED) {
                let at = quarter + WAVE_FROM + within(&mut rng, WAVE_SPREAD);
                plan = plan.pull(at, &name(*n), &image_name(app, version));
            }
        }
        there.shuffle(&mut rng);
        let (leavers, lost) = (size.nodes.div_ceil(LEAVERS), size.nodes.div_ceil(LOST));
        for (place, n) in there.iter().take(leavers + lost).enumerate() {
            let at = quarter + CHURN_FROM + within(&mut rng, CHURN_SPREAD);
            let node = name(*n);
            let goes = if place < leavers { Fault::Stop { node } } else { Fault::Vanish { node } };
            plan = plan.fault(at, goes).fault(at + AWAY, Fault::Start { node: name(*n) });
        }
        for _ in 0..newcomers {
            let at = quarter + CHURN_FROM + within(&mut rng, CHURN_SPREAD);
            plan = plan.node(&name(next), at, at);
            there.push(next);
            next += 1;
        }
    }
    plan
}

fn costs(size: Size, outcome: &Outcome, measured: &Measured) -> Costs {
    let stretch = |from: usize| {
        let samples: Vec<_> = measured.samples.chunks_exact(stretches().len()).collect();
        let seconds = (stretches()[from + 1] - stretches()[from]).as_secs_f64();
        // A node that has not come yet sends nothing, and is no quiet node.
        let nodes = 0..size.nodes;
        let sent = nodes.flat_map(|node| {
            samples.iter().map(move |samples| samples[from + 1][node].since(samples[from][node]))
        });
        let sent: Vec<_> = sent.filter(|sent| *sent != Traffic::default()).collect();
        Rates {
            messages: spread(sent.iter().map(|sent| sent.messages as f64 / seconds)),
            bytes: spread(sent.iter().map(|sent| sent.bytes as f64 / seconds)),
        }
    };
    let directories = || outcome.reports.values().map(|report| report.directory);
    let joined = measured.whole_at.iter().find(|at| **at >= START_SPREAD);
    Costs {
        wave: stretch(0),
        idle: stretch(2),
        entries: spread(directories().map(|it| it.entries_owned as f64)),
        held: spread(directories().map(|it| it.keys_held as f64)),
        memory_bytes: spread(measured.core_bytes.iter().map(|bytes| *bytes as f64)),
        joined_seconds: joined.map(|at| (*at - START_SPREAD).as_secs_f64()),
        pulls: outcome.pulls.len(),
        pulls_failed: outcome.failed_pulls().count(),
        pull_seconds: spread(outcome.pulls.iter().map(|pull| pull.took.as_secs_f64())),
        from_peers: measured.from_peers,
        from_upstream: outcome.upstream.requests,
        error: outcome.error.clone(),
    }
}

fn spread(values: impl Iterator<Item = f64>) -> Spread {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |of_hundred: usize| values.get((values.len() * of_hundred).div_ceil(100).max(1) - 1);
    Spread {
        mean: values.iter().sum::<f64>() / values.len().max(1) as f64,
        p50: at(50).copied().unwrap_or_default(),
        p99: at(99).copied().unwrap_or_default(),
        max: values.last().copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What threads come to is what one event after the other comes to, to the microsecond.
    #[test]
    fn threads_change_nothing() {
        let size = Size { nodes: 30, quarters: 1, seed: 3 };
        let plan = plan(size);
        let run = |threads| {
            let (outcome, measured) = light::measure(&plan, size.seed, &moments(size), threads, |_| 0);
            let Outcome { pulls, ready, notices, fetches, reports, error, .. } = outcome;
            let samples = measured.samples;
            assert_eq!((error, pulls.len() > size.nodes), (None, true), "{pulls:?}");
            format!("{:#?}", (pulls, ready, notices, fetches, reports, samples, measured.whole_at))
        };
        let expected = run(None);
        for threads in 1..=3 {
            let found = run(Some(threads));
            let differs = expected.lines().zip(found.lines()).find(|(expected, found)| expected != found);
            assert!(found == expected, "{threads} threads: {differs:?}");
        }
    }

    #[test]
    fn spread_of_a_hundred() {
        let spread = spread((1..=100).rev().map(f64::from));
        assert_eq!((spread.mean, spread.p50, spread.p99, spread.max), (50.5, 50.0, 99.0, 100.0));
    }

    #[test]
    fn popular_applications_are_chosen_more_often() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut counts = [0; APPS];
        for _ in 0..1000 {
            choose_apps(&mut rng, PULLED).into_iter().for_each(|app| counts[app] += 1);
        }
        assert!(counts[0] > counts[4] && counts[4] > counts[APPS - 1], "{counts:?}");
    }
}
