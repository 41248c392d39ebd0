//! Draws a plan from a seed. Which kinds of faults a run has is drawn, too ("swarm testing"): if
//! all were always on, each would hide what the others find.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::plan::{Layer, Oddity, Plan, PlannedImage, PlannedNode, PlannedPull, Preload, Trouble};
use crate::{
    fault::{Dns, Fault, Lossy},
    scenario::Driver,
};

/// Of a hundred runs, how many are by the whole driver. It takes some ten times as long.
const WHOLE_PERCENT: u32 = 10;

/// Of a hundred runs by the light driver, how many are of a large cluster.
const LARGE_PERCENT: u32 = 3;

/// Of a hundred runs, how many have faults from the first moment on. The others form a cluster
/// first.
const ROUGH_PERCENT: u32 = 20;

/// Of a hundred runs, how many have slow nodes throughout: bodies then take long enough for faults
/// to fall into them.
const SLOW_PERCENT: u32 = 25;

/// In these runs, so many pulls of what a node holds begin just before that node falls silent, and
/// how long before at most. Left to chance, hardly any body is under way then.
const AMBUSHES: usize = 3;
const AMBUSH_BEFORE: Duration = Duration::from_secs(1);

/// When a cluster that starts in peace has formed.
const FORMED_AT: Duration = Duration::from_secs(45);

/// By when the cluster must be whole after the last fault: the dead are
/// greeted every 20 s, an alone node tries every 60 to 90 s, breakers open for 60 s at most, and the
/// kubelet tries for 150 s.
const SETTLE: Duration = Duration::from_secs(180);

/// The same if there may be parts of the cluster that never knew each other: they meet by the
/// re-check, each 200 to 400 s.
const SETTLE_STRANGERS: Duration = Duration::from_secs(840);

/// The same if addresses of strangers come one at a time, by a virtual address that often leads
/// home, or among many that are wrong.
const SETTLE_VIP: Duration = Duration::from_secs(2000);

/// For how long pulls begin after that, and how long the last of them may take and nodes
/// must be at rest after.
const CALM_PULLS: Duration = Duration::from_secs(10);
const CALM_PULL_ENDS: Duration = Duration::from_secs(60);

/// Most bytes of a layer in the whole driver, which moves each of them.
const WHOLE_LAYER_BYTES_MAX: u32 = 300_000;
/// The same in the light driver: long enough that it matters how busy their holders are.
const LIGHT_LAYER_BYTES_MAX: u32 = 40_000_000;

/// A kind of trouble that can be on or off in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Crash,
    Stop,
    Vanish,
    Freeze,
    Partition,
    Isolation,
    Suspend,
    Clock,
    Lossy,
    Corrupt,
    Slow,
    Containerd,
    Hang,
    Upgrade,
    Delete,
    Sideload,
    Bypass,
    Upstream,
    Throttle,
}

const KINDS: [Kind; 19] = [
    Kind::Crash,
    Kind::Stop,
    Kind::Vanish,
    Kind::Freeze,
    Kind::Partition,
    Kind::Isolation,
    Kind::Suspend,
    Kind::Clock,
    Kind::Lossy,
    Kind::Corrupt,
    Kind::Slow,
    Kind::Containerd,
    Kind::Hang,
    Kind::Upgrade,
    Kind::Delete,
    Kind::Sideload,
    Kind::Bypass,
    Kind::Upstream,
    Kind::Throttle,
];

/// The plan of a seed.
#[must_use]
pub fn draw(seed: u64) -> Plan {
    let mut dice = Dice(StdRng::seed_from_u64(seed));
    let driver = if dice.percent(WHOLE_PERCENT) { Driver::Whole } else { Driver::Light };
    let is_whole = driver == Driver::Whole;
    let nodes = match driver {
        Driver::Whole => dice.between(2, 6),
        Driver::Light if dice.percent(LARGE_PERCENT) => dice.between(41, 120),
        Driver::Light => dice.skewed(1, 40),
    };
    let rough = dice.percent(ROUGH_PERCENT);
    let trouble_from = if rough { Duration::ZERO } else { FORMED_AT };
    let longest = if is_whole { 60 } else { 400 };
    let healed_at = trouble_from + Duration::from_secs(dice.skewed(20, longest) as u64);
    let dns = dice.dns(driver, nodes);
    let mut plan = Plan {
        seed,
        driver,
        healed_at,
        settled_at: healed_at,
        ends_at: healed_at,
        dns,
        shutdown_delay: Duration::from_secs([0, 0, 5][dice.below(3)]),
        nodes: dice.nodes(nodes, healed_at),
        images: dice.images(driver),
        preloads: Vec::new(),
        pulls: Vec::new(),
        troubles: Vec::new(),
    };
    dice.preload(&mut plan);
    let share = [10, 30, 60][dice.below(3)];
    let on: Vec<_> = KINDS.into_iter().filter(|_| dice.percent(share)).collect();
    if !on.is_empty() {
        for _ in 0..dice.skewed(1, 4 + nodes) {
            let kind = on[dice.below(on.len())];
            let trouble = dice.trouble(kind, &plan, trouble_from);
            plan.troubles.extend(trouble.filter(|it| !is_whole || !it.fault.needs_light()));
        }
    }
    let is_slow = dice.percent(SLOW_PERCENT);
    if is_slow {
        let bytes_per_second = dice.skewed(100_000, 5_000_000) as u64;
        let slow = |node: &PlannedNode| {
            let fault = Fault::Slow { node: node.name.clone(), bytes_per_second };
            Trouble { at: Duration::ZERO, until: healed_at, fault }
        };
        plan.troubles.extend(plan.nodes.iter().map(slow));
    }
    plan.troubles.sort_by_key(|trouble| trouble.at);
    plan.settled_at = plan.healed_at + settle(&plan);
    plan.ends_at = plan.settled_at + CALM_PULLS + CALM_PULL_ENDS;
    let pulls = if is_whole { dice.skewed(1, 20) } else { dice.skewed(1, 20 + 3 * nodes) };
    dice.pulls(&mut plan, pulls);
    if is_slow {
        dice.ambush(&mut plan);
    }
    plan.pulls.sort_by_key(|pull| pull.at);
    plan
}

/// How long the cluster may take to become whole.
fn settle(plan: &Plan) -> Duration {
    let starts = plan.nodes.iter().map(|node| node.starts_at);
    let restarts =
        plan.troubles.iter().filter(|trouble| matches!(trouble.fault.cure(), Some(Fault::Start { .. })));
    // One that was stopped a moment before ends after its delay.
    let restarts = restarts.map(|trouble| trouble.until + plan.shutdown_delay);
    let starts: Vec<_> = starts.chain(restarts).collect();
    let is_apart = |trouble: &&Trouble| {
        matches!(
            trouble.fault,
            Fault::Partition { .. }
                | Fault::Lossy(_)
                | Fault::Suspend { .. }
                | Fault::Freeze { .. }
                | Fault::Vanish { .. }
        )
    };
    let strangers = plan
        .troubles
        .iter()
        .filter(is_apart)
        .any(|trouble| starts.iter().any(|at| *at + FORMED_AT >= trouble.at && *at <= trouble.ends_at()));
    let formed = match plan.dns {
        Dns::Vip { .. } | Dns::Lie { .. } => SETTLE_VIP,
        Dns::List { stale } if strangers => SETTLE_STRANGERS + stale,
        Dns::List { stale } => SETTLE + stale,
    };
    plan.shutdown_delay + formed
}

struct Dice(StdRng);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound.max(1))
    }

    /// From the least to the most, both possible.
    fn between(&mut self, least: usize, most: usize) -> usize {
        self.0.random_range(least..=most)
    }

    /// The same, but small ones are as likely as large ones of any magnitude.
    fn skewed(&mut self, least: usize, most: usize) -> usize {
        let most = self.between(least, most.max(least));
        self.between(least, most)
    }

    fn percent(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    fn moment(&mut self, from: Duration, to: Duration) -> Duration {
        let (from, to) = (millis(from), millis(to).max(millis(from)));
        Duration::from_millis(self.0.random_range(from..=to))
    }

    /// From a tenth of a second to this: of any magnitude.
    fn duration(&mut self, most: Duration) -> Duration {
        let magnitude = self.0.random_range(0.0..=1.0_f64);
        let most = most.as_secs_f64().max(0.1);
        Duration::from_millis(millis(Duration::from_secs_f64(0.1 * (most / 0.1).powf(magnitude))))
    }

    fn dns(&mut self, driver: Driver, nodes: usize) -> Dns {
        let stale = Duration::from_secs([0, 0, 5, 30][self.below(4)]);
        if driver == Driver::Light && nodes <= 8 && self.percent(15) {
            if self.percent(30) {
                return Dns::Lie { empty_for: stale, entries_max: self.between(nodes, 4 * nodes) };
            }
            return Dns::Vip { self_percent: [0, 20, 50][self.below(3)] };
        }
        Dns::List { stale }
    }

    fn nodes(&mut self, count: usize, healed_at: Duration) -> Vec<PlannedNode> {
        let (late, containerd_late) = (self.percent(30), self.percent(30));
        let most = Duration::from_secs(30).min(healed_at);
        let planned = |n| {
            let starts_at = if late { self.moment(Duration::ZERO, most) } else { Duration::ZERO };
            let containerd_at =
                if containerd_late { self.moment(Duration::ZERO, most) } else { Duration::ZERO };
            PlannedNode { name: format!("n{n}"), starts_at, containerd_at }
        };
        (1..=count).map(planned).collect()
    }

    fn images(&mut self, driver: Driver) -> Vec<PlannedImage> {
        let layer_bytes_max = match driver {
            Driver::Whole => WHOLE_LAYER_BYTES_MAX,
            Driver::Light => LIGHT_LAYER_BYTES_MAX,
        };
        let mut layers: Vec<Layer> = Vec::new();
        let images = self.skewed(1, 20);
        let odd_percent = if self.percent(20) { 30 } else { 0 };
        let sharing_percent = [0, 30, 70][self.below(3)];
        let mut planned = Vec::new();
        for n in 1..=images {
            let mut own: Vec<Layer> = Vec::new();
            for _ in 0..self.skewed(1, 8) {
                let known = layers.get(self.below(layers.len())).copied();
                let shared = known.filter(|known| self.percent(sharing_percent) && !own.contains(known));
                let layer = shared.unwrap_or_else(|| {
                    let most = self.skewed(1000, layer_bytes_max as usize);
                    let bytes = u32::try_from(most).unwrap_or(layer_bytes_max);
                    Layer { seed: layers.len() as u64, bytes }
                });
                if shared.is_none() {
                    layers.push(layer);
                }
                own.push(layer);
            }
            let oddity = self.percent(odd_percent).then(|| {
                // The real registry cannot tell the media type of what is no JSON, and leaves it to
                // the registry upstream.
                let is_known = self.percent(50) || driver == Driver::Whole;
                if is_known { Oddity::UnknownMediaType } else { Oddity::Garbled }
            });
            planned.push(PlannedImage { name: format!("registry.test/app{n}:1"), oddity, layers: own });
        }
        planned
    }

    fn preload(&mut self, plan: &mut Plan) {
        for image in &plan.images {
            let mut holders: Vec<_> = plan.nodes.iter().map(|node| node.name.clone()).collect();
            holders.shuffle(&mut self.0);
            holders.truncate(self.skewed(0, holders.len().min(5)));
            let preload = |node| Preload { node, image: image.name.clone() };
            plan.preloads.extend(holders.into_iter().map(preload));
        }
    }

    /// Most by chance, some in waves: all nodes, one image, at once.
    fn pulls(&mut self, plan: &mut Plan, count: usize) {
        for _ in 0..count {
            let at = self.moment(Duration::ZERO, plan.healed_at);
            let pull = self.pull(plan, at);
            plan.pulls.push(pull);
        }
        if self.percent(25) {
            let (at, image) = (self.moment(Duration::ZERO, plan.healed_at), self.image(plan));
            for node in &plan.nodes {
                let at = at + self.moment(Duration::ZERO, Duration::from_secs(1));
                plan.pulls.push(PlannedPull { at, node: node.name.clone(), image: image.clone() });
            }
        }
        for _ in 0..plan.nodes.len() + 2 {
            let at = self.moment(plan.settled_at, plan.settled_at + CALM_PULLS);
            let pull = self.pull(plan, at);
            plan.pulls.push(pull);
        }
    }

    fn ambush(&mut self, plan: &mut Plan) {
        for trouble in &plan.troubles {
            let Some(victim) = trouble.fault.silences() else { continue };
            let held: Vec<_> = plan.preloads.iter().filter(|preload| preload.node == victim).collect();
            if held.is_empty() {
                continue;
            }
            for _ in 0..AMBUSHES {
                let image = held[self.below(held.len())].image.clone();
                let at = self.moment(trouble.at.saturating_sub(AMBUSH_BEFORE), trouble.at);
                plan.pulls.push(PlannedPull { at, node: self.node(plan), image });
            }
        }
    }

    fn pull(&mut self, plan: &Plan, at: Duration) -> PlannedPull {
        PlannedPull { at, node: self.node(plan), image: self.image(plan) }
    }

    fn node(&mut self, plan: &Plan) -> String {
        plan.nodes[self.below(plan.nodes.len())].name.clone()
    }

    /// By Zipf's law: the n-th is asked for with a weight of one n-th.
    fn image(&mut self, plan: &Plan) -> String {
        let weight = |n: usize| 1.0 / (n + 1) as f64;
        let mut left = self.0.random_range(0.0..(0..plan.images.len()).map(weight).sum());
        let chosen = plan.images.iter().enumerate().find(|(n, _)| {
            left -= weight(*n);
            left <= 0.0
        });
        chosen.map_or(&plan.images[0], |(_, image)| image).name.clone()
    }

    /// Two groups without a common node; two nodes at least.
    fn groups(&mut self, plan: &Plan, left_max: usize) -> Option<(Vec<String>, Vec<String>)> {
        let mut names: Vec<_> = plan.nodes.iter().map(|node| node.name.clone()).collect();
        if names.len() < 2 {
            return None;
        }
        names.shuffle(&mut self.0);
        let right = names.split_off(self.between(1, left_max.min(names.len() - 1)));
        Some((names, right))
    }

    fn trouble(&mut self, kind: Kind, plan: &Plan, from: Duration) -> Option<Trouble> {
        let at = self.moment(from, plan.healed_at);
        let left = plan.healed_at.saturating_sub(at);
        let until = at + self.duration(left).min(left);
        let node = self.node(plan);
        let fault = match kind {
            Kind::Crash => Fault::Crash { node },
            Kind::Stop => Fault::Stop { node },
            Kind::Vanish => Fault::Vanish { node },
            Kind::Freeze | Kind::Suspend | Kind::Hang => {
                let pause = (until - at).min(Duration::from_secs(40));
                let fault = if kind == Kind::Freeze {
                    Fault::Freeze { node, pause }
                } else if kind == Kind::Suspend {
                    Fault::Suspend { node, pause }
                } else {
                    Fault::HangContainerd { node, pause }
                };
                return Some(Trouble { at, until: at + pause, fault });
            }
            Kind::Clock => {
                let ahead = self.skewed(1, 30 * 24 * 3600) as i64;
                Fault::StepClock { node, ahead_seconds: if self.percent(50) { ahead } else { -ahead } }
            }
            Kind::Partition => {
                let (left, right) = self.groups(plan, plan.nodes.len())?;
                Fault::Partition { left, right }
            }
            Kind::Isolation => {
                let (left, mut right) = self.groups(plan, 1)?;
                // From all, or from some, so that who is reachable depends on who asks.
                right.truncate(self.between(1, right.len()));
                Fault::Partition { left, right }
            }
            Kind::Lossy => {
                let mut percent = || [0, u8::try_from(self.skewed(1, 40)).unwrap_or(1)][self.below(2)];
                Fault::Lossy(Lossy { lost: percent(), doubled: percent(), late: percent() })
            }
            Kind::Corrupt => Fault::Corrupt { node },
            Kind::Slow => Fault::Slow { node, bytes_per_second: self.skewed(100_000, 5_000_000) as u64 },
            Kind::Containerd => Fault::StopContainerd { node },
            Kind::Delete => Fault::DeleteImage { node, image: self.image(plan) },
            Kind::Upgrade => Fault::Upgrade { node },
            Kind::Sideload => Fault::Sideload { node, image: self.image(plan) },
            Kind::Bypass => Fault::BypassMirror { node },
            Kind::Upstream => Fault::CutUpstream,
            Kind::Throttle => Fault::ThrottleUpstream { requests_per_second: Some(self.skewed(1, 50)) },
        };
        Some(Trouble { at, until, fault })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SEEDS: std::ops::Range<u64> = 0..500;

    #[test]
    fn equal_seeds_draw_equal_plans() {
        for seed in SEEDS {
            assert_eq!(draw(seed), draw(seed), "seed {seed}");
        }
        assert_ne!(draw(1).nodes, draw(2).nodes);
    }

    #[test]
    fn every_fault_is_over_when_all_is_said_to_have_healed() {
        for plan in SEEDS.map(draw) {
            for trouble in &plan.troubles {
                assert!(trouble.ends_at() <= plan.healed_at, "seed {}: {trouble:?}", plan.seed);
            }
        }
    }

    #[test]
    fn every_kind_of_fault_is_drawn_and_none_is_always_on() {
        let kinds =
            |plan: Plan| plan.troubles.iter().map(|trouble| trouble.fault.kind()).collect::<BTreeSet<_>>();
        let runs: Vec<_> = SEEDS.map(draw).map(kinds).collect();
        let all: BTreeSet<_> = runs.iter().flatten().collect();
        // Isolation and partition are one fault.
        assert_eq!(all.len(), KINDS.len() - 1);
        for kind in all {
            assert!(runs.iter().any(|run| !run.contains(kind)), "{kind} is always on");
        }
    }

    #[test]
    fn drawn_plans_are_read_back_as_they_were_written() {
        for plan in SEEDS.map(draw) {
            let text = plan.text();
            assert_eq!(Plan::parse(&text), Ok(plan), "{text}");
        }
    }
}
