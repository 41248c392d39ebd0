//! What must hold for every run of the swarm beyond the invariants of each step: pulls cost no
//! more than named bounds, fail only for a reason that lies outside, and go well once all is.

use std::time::Duration;

use super::plan::{Plan, PlannedImage};
use crate::{
    fault::Fault,
    light,
    scenario::{Driver, FailedTry, Outcome, Pulled},
};

/// What one request may cost more than without a mirror: the longest that the mirror may take to
/// begin an answer (a blob's), what the driver's steps add, and the registry after that, which
/// may have to be asked six times.
const REQUEST_MAX: Duration = Duration::from_millis(2050 + 6 * 60);

/// What a body may cost more each time something happens to its holder or the way there: a stall
/// of a second, a report, two searches for others of 0.9 s, then another request.
const INTERRUPTION_MAX: Duration = Duration::from_millis(1000 + 100 + 900 + 900 + 2200);

/// How fast one body comes at least unless many share a link.
const BYTES_PER_SECOND: u64 = 5_000_000;

/// The longest that containerd goes on waiting after it could have noticed that it can go on.
const POLL_MAX: Duration = Duration::from_secs(1);

/// How long a pull may take when all is well, bytes aside.
const CALM_PULL_MAX: Duration = Duration::from_secs(2);

/// What is wrong with a run.
///
/// # Errors
///
/// When something is.
pub(super) fn judge(plan: &Plan, outcome: &Outcome) -> Result<(), String> {
    if let Some(error) = &outcome.error {
        return Err(error.clone());
    }
    for pulled in &outcome.pulls {
        let image = plan.images.iter().find(|image| image.name == pulled.image);
        let image = image.ok_or_else(|| format!("a pull of an unknown image: {pulled:?}"))?;
        judge_pull(plan, image, pulled, outcome)?;
    }
    for node in &plan.nodes {
        let planned = plan.pulls.iter().filter(|pull| pull.node == node.name).count();
        let ended = outcome.pulls.iter().filter(|pull| pull.node == node.name).count();
        let lost = plan.troubles.iter().any(|trouble| loses_pulls(plan.driver, &trouble.fault, &node.name));
        if ended < planned && !lost {
            return Err(format!("pulls never ended: {} of {planned} on {}", planned - ended, node.name));
        }
    }
    Ok(())
}

/// Whether a node's pulls under way are lost by a fault, or those to come never begin.
fn loses_pulls(driver: Driver, fault: &Fault, name: &str) -> bool {
    // With the process goes its host in the whole driver, and the kubelet on it.
    let is_lost = matches!(fault, Fault::Vanish { .. })
        || (driver == Driver::Whole && matches!(fault, Fault::Crash { .. }));
    is_lost && matches!(fault, Fault::Vanish { node } | Fault::Crash { node } if node == name)
}

fn judge_pull(plan: &Plan, image: &PlannedImage, pulled: &Pulled, outcome: &Outcome) -> Result<(), String> {
    let last = FailedTry {
        began: pulled.ended_at.saturating_sub(pulled.took),
        ended: pulled.ended_at,
        cause: pulled.error.clone().unwrap_or_default(),
    };
    for tried in pulled.failures.iter().chain([&last]) {
        let took = tried.ended.saturating_sub(tried.began);
        let longest = longest(plan, image, pulled, tried, sharers(plan, outcome, tried));
        if took > longest {
            return Err(format!("a pull took longer than it may: {took:?}, not {longest:?}: {pulled:?}"));
        }
    }
    if pulled.at >= plan.settled_at {
        return judge_calm_pull(plan, image, pulled, sharers(plan, outcome, &last));
    }
    let failed = pulled.failures.iter().chain(pulled.error.is_some().then_some(&last));
    for tried in failed {
        if !is_excused(plan, tried) {
            return Err(format!("a pull failed without a reason ({}): {pulled:?}", tried.cause));
        }
    }
    Ok(())
}

/// A pull after everything has healed, with the registry away.
fn judge_calm_pull(plan: &Plan, image: &PlannedImage, pulled: &Pulled, sharers: u64) -> Result<(), String> {
    let ever_lied = |name: &&String| {
        let mut faults = plan.troubles.iter().map(|trouble| &trouble.fault);
        faults.any(|fault| matches!(fault, Fault::Corrupt { node } if node == *name))
    };
    // Who sent wrong bytes may be shunned for hours.
    if pulled.holders.iter().all(|name| ever_lied(&name)) {
        return Ok(());
    }
    if pulled.error.is_some() || pulled.tries > 1 {
        return Err(format!("a pull failed although all is well: {pulled:?}"));
    }
    let longest = CALM_PULL_MAX + flow_time(image, least_rate(light::BYTES_PER_SECOND, sharers));
    if pulled.took > longest {
        return Err(format!("a pull was slow although all is well: {:?}: {pulled:?}", pulled.took));
    }
    Ok(())
}

/// Whether what made a try fail lies outside of the mirrors.
fn is_excused(plan: &Plan, tried: &FailedTry) -> bool {
    let during = |begins: Duration, ends: Duration| begins <= tried.ended && tried.began <= ends;
    let mut troubles = plan.troubles.iter().filter(|trouble| during(trouble.at, trouble.ends_at()));
    let is_cut = during(plan.settled_at, plan.ends_at)
        || troubles.clone().any(|trouble| matches!(trouble.fault, Fault::CutUpstream));
    let is_corrupt = troubles.clone().any(|trouble| matches!(trouble.fault, Fault::Corrupt { .. }));
    let is_throttled = troubles.any(|trouble| matches!(trouble.fault, Fault::ThrottleUpstream { .. }));
    (is_throttled && tried.cause.starts_with("429 "))
        || (is_cut && tried.cause == "the registry is cut off")
        || (is_corrupt && tried.cause.starts_with("wrong "))
}

/// How long a try may take at most.
fn longest(plan: &Plan, image: &PlannedImage, pulled: &Pulled, tried: &FailedTry, sharers: u64) -> Duration {
    let requests = u32::try_from(image.layers.len()).unwrap_or(u32::MAX).saturating_add(3);
    let mut link = light::BYTES_PER_SECOND;
    let mut longest = REQUEST_MAX * requests;
    for trouble in &plan.troubles {
        let (begins, ends) = (trouble.at.max(tried.began), trouble.ends_at().min(tried.ended));
        if let Fault::Slow { bytes_per_second, .. } = &trouble.fault {
            link = link.min(*bytes_per_second);
        }
        if begins > tried.ended || ends < tried.began {
            continue;
        }
        // Both its beginning and its end break connections.
        let edges = [trouble.at, trouble.ends_at()];
        let edges = edges.iter().filter(|at| (tried.began..=tried.ended).contains(at)).count();
        longest += INTERRUPTION_MAX * u32::try_from(edges).unwrap_or(u32::MAX);
        let is_own = |node: &String| *node == pulled.node;
        let waits = matches!(
            &trouble.fault,
            Fault::StopContainerd { node } | Fault::HangContainerd { node, .. } | Fault::Freeze { node, .. } | Fault::Suspend { node, .. }
                if is_own(node)
        );
        if waits {
            longest += ends.saturating_sub(begins) + POLL_MAX;
        }
    }
    let own = plan.nodes.iter().find(|node| node.name == pulled.node);
    let late = own.map_or(Duration::ZERO, |node| node.containerd_at.saturating_sub(tried.began));
    longest + late + POLL_MAX + flow_time(image, least_rate(link, sharers))
}

/// How many pulls may have shared a link during a try, that one among them.
fn sharers(plan: &Plan, outcome: &Outcome, tried: &FailedTry) -> u64 {
    if plan.driver == Driver::Whole {
        return 1;
    }
    let during = |pull: &&Pulled| pull.at <= tried.ended && tried.began <= pull.ended_at;
    outcome.pulls.iter().filter(during).count() as u64
}

/// How fast a body comes at least of a node with this link, if so many share it.
fn least_rate(link: u64, sharers: u64) -> u64 {
    (link / sharers.max(1)).min(BYTES_PER_SECOND)
}

fn flow_time(image: &PlannedImage, bytes_per_second: u64) -> Duration {
    Duration::from_micros(image.bytes().saturating_mul(1_000_000) / bytes_per_second.max(1))
}
