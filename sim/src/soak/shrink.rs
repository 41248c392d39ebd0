//! Makes a failing plan small: removes and simplifies whatever is not needed for a failure of the
//! same kind (delta debugging), until nothing more can go.

use std::{collections::BTreeSet, time::Duration};

use super::plan::Plan;
use crate::fault::{Dns, Fault};

/// Makes `plan` as small as `fails` allows, asking it of at most `tries_max` candidates.
#[must_use]
pub fn shrink(plan: &Plan, tries_max: usize, fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut search = Search { plan: plan.clone(), fails, tries_left: tries_max };
    loop {
        let before = search.plan.clone();
        search.remove_parts();
        search.simplify();
        if search.plan == before || search.tries_left == 0 {
            return search.plan;
        }
    }
}

struct Search<F> {
    plan: Plan,
    fails: F,
    tries_left: usize,
}

impl<F: FnMut(&Plan) -> bool> Search<F> {
    /// Takes a candidate if it fails, too.
    fn attempt(&mut self, candidate: Plan) -> bool {
        if self.tries_left == 0 || candidate == self.plan {
            return false;
        }
        self.tries_left -= 1;
        let fails = (self.fails)(&candidate);
        if fails {
            self.plan = candidate;
        }
        fails
    }

    /// Coarse things first: each node that goes takes its pulls and faults with it.
    fn remove_parts(&mut self) {
        self.remove(|plan| plan.nodes.len(), |plan, gone| retain(&mut plan.nodes, gone));
        self.remove(|plan| plan.troubles.len(), |plan, gone| retain(&mut plan.troubles, gone));
        self.remove(|plan| plan.images.len(), |plan, gone| retain(&mut plan.images, gone));
        self.remove(|plan| plan.pulls.len(), |plan, gone| retain(&mut plan.pulls, gone));
        self.remove(|plan| plan.preloads.len(), |plan, gone| retain(&mut plan.preloads, gone));
        for image in 0..self.plan.images.len() {
            self.remove(
                |plan| plan.images[image].layers.len(),
                |plan, gone| retain(&mut plan.images[image].layers, gone),
            );
        }
    }

    /// Removes as many of some parts as can go: halves first, then quarters, down to single ones.
    fn remove(&mut self, count: impl Fn(&Plan) -> usize, cut: impl Fn(&mut Plan, &BTreeSet<usize>)) {
        let mut chunk = count(&self.plan);
        while chunk > 0 {
            // From the end: what came later is less often needed.
            let mut end = count(&self.plan);
            while end > 0 {
                let begin = end.saturating_sub(chunk);
                let mut candidate = self.plan.clone();
                cut(&mut candidate, &(begin..end).collect());
                drop_dangling(&mut candidate);
                self.attempt(candidate);
                end = begin.min(count(&self.plan));
            }
            chunk /= 2;
        }
    }

    fn simplify(&mut self) {
        let attempt = |search: &mut Self, change: &dyn Fn(&mut Plan)| {
            let mut candidate = search.plan.clone();
            change(&mut candidate);
            drop_dangling(&mut candidate);
            search.attempt(candidate)
        };
        attempt(self, &|plan| plan.dns = Dns::List { stale: Duration::ZERO });
        attempt(self, &|plan| plan.shutdown_delay = Duration::ZERO);
        attempt(self, &|plan| {
            for node in &mut plan.nodes {
                (node.starts_at, node.containerd_at) = (Duration::ZERO, Duration::ZERO);
            }
        });
        attempt(self, &|plan| plan.images.iter_mut().for_each(|image| image.oddity = None));
        attempt(self, &|plan| {
            plan.images.iter_mut().flat_map(|image| &mut image.layers).for_each(|layer| layer.bytes = 1000);
        });
        // The stretch in which things go wrong, by halves and quarters.
        while attempt(self, &|plan| scale_times(plan, 1, 2)) || attempt(self, &|plan| scale_times(plan, 3, 4))
        {
        }
        for index in 0..self.plan.troubles.len() {
            attempt(self, &|plan| shorten(plan, index));
            let Fault::Partition { left, right } = &self.plan.troubles[index].fault else { continue };
            let sides = [left.len(), right.len()];
            for (side, members) in sides.into_iter().enumerate() {
                for member in (0..members).rev() {
                    attempt(self, &|plan| {
                        if let Fault::Partition { left, right } = &mut plan.troubles[index].fault {
                            [left, right][side].remove(member);
                        }
                    });
                }
            }
        }
        for index in 0..self.plan.nodes.len() {
            attempt(self, &|plan| plan.nodes[index].starts_at = Duration::ZERO);
            attempt(self, &|plan| plan.nodes[index].containerd_at = Duration::ZERO);
        }
    }
}

fn retain<T>(parts: &mut Vec<T>, gone: &BTreeSet<usize>) {
    let mut index = 0;
    parts.retain(|_| {
        index += 1;
        !gone.contains(&(index - 1))
    });
}

/// Ends a trouble at half its time.
fn shorten(plan: &mut Plan, index: usize) {
    let trouble = &mut plan.troubles[index];
    let half = trouble.ends_at().saturating_sub(trouble.at).as_millis() / 2;
    let half = Duration::from_millis(u64::try_from(half).unwrap_or(u64::MAX));
    trouble.until = trouble.at + half;
    if let Some(pause) = trouble.fault.pause_mut() {
        *pause = half;
    }
}

/// Moves all that happens before the cluster heals together; what follows keeps its distance.
fn scale_times(plan: &mut Plan, times: u32, by: u32) {
    let (healed_at, settled_at, ends_at) = (plan.healed_at, plan.settled_at, plan.ends_at);
    let whole_ms = |at: Duration| Duration::from_millis(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
    let scale = |at: Duration| {
        if at <= healed_at {
            whole_ms(at * times / by)
        } else {
            whole_ms(healed_at * times / by) + (at - healed_at)
        }
    };
    (plan.healed_at, plan.settled_at, plan.ends_at) = (scale(healed_at), scale(settled_at), scale(ends_at));
    for node in &mut plan.nodes {
        (node.starts_at, node.containerd_at) = (scale(node.starts_at), scale(node.containerd_at));
    }
    for pull in &mut plan.pulls {
        pull.at = scale(pull.at);
    }
    for trouble in &mut plan.troubles {
        (trouble.at, trouble.until) = (scale(trouble.at), scale(trouble.until));
        if let Some(pause) = trouble.fault.pause_mut() {
            *pause = trouble.until.saturating_sub(trouble.at);
        }
    }
}

/// Drops what names nodes or images that are not there any more.
fn drop_dangling(plan: &mut Plan) {
    let nodes: BTreeSet<_> = plan.nodes.iter().map(|node| node.name.clone()).collect();
    let images: BTreeSet<_> = plan.images.iter().map(|image| image.name.clone()).collect();
    let is_there = |node: &String, image: &String| nodes.contains(node) && images.contains(image);
    plan.preloads.retain(|preload| is_there(&preload.node, &preload.image));
    plan.pulls.retain(|pull| is_there(&pull.node, &pull.image));
    plan.troubles.retain_mut(|trouble| match &mut trouble.fault {
        Fault::Partition { left, right } | Fault::Reconnect { left, right } => {
            left.retain(|node| nodes.contains(node));
            right.retain(|node| nodes.contains(node));
            !left.is_empty() && !right.is_empty()
        }
        Fault::DeleteImage { node, image } | Fault::Sideload { node, image } => is_there(node, image),
        Fault::Crash { node }
        | Fault::Stop { node }
        | Fault::Start { node }
        | Fault::Vanish { node }
        | Fault::Freeze { node, .. }
        | Fault::Suspend { node, .. }
        | Fault::HangContainerd { node, .. }
        | Fault::Upgrade { node }
        | Fault::StepClock { node, .. }
        | Fault::BypassMirror { node }
        | Fault::UseMirror { node }
        | Fault::Corrupt { node }
        | Fault::Truthful { node }
        | Fault::Slow { node, .. }
        | Fault::FullSpeed { node }
        | Fault::StopContainerd { node }
        | Fault::StartContainerd { node } => nodes.contains(node),
        Fault::Repair
        | Fault::Lossy(_)
        | Fault::CutUpstream
        | Fault::RestoreUpstream
        | Fault::ThrottleUpstream { .. } => true,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::draw;

    /// Fails when one node is partitioned from another, whatever else there is.
    fn cut(plan: &Plan) -> Option<(String, String)> {
        plan.troubles.iter().find_map(|trouble| {
            let Fault::Partition { left, right } = &trouble.fault else { return None };
            Some((left.first()?.clone(), right.first()?.clone()))
        })
    }

    #[test]
    fn what_is_not_needed_for_a_failure_goes() {
        let plan = (0..).map(draw).find(|plan| plan.nodes.len() > 20 && cut(plan).is_some());
        let plan = plan.expect("one of the first seeds has a partition");
        let small = shrink(&plan, 10_000, |plan| cut(plan).is_some());
        let (left, right) = cut(&small).expect("it fails like the first");
        assert_eq!(small.nodes.len(), 2, "{small:?}");
        assert_eq!(small.troubles.len(), 1);
        assert_eq!(small.troubles[0].fault, Fault::Partition { left: vec![left], right: vec![right] });
        assert!(small.pulls.is_empty() && small.images.is_empty() && small.preloads.is_empty());
        assert_eq!(small.dns, Dns::List { stale: Duration::ZERO });
        assert!(small.healed_at < Duration::from_secs(1), "{small:?}");
    }

    #[test]
    fn what_is_needed_together_stays() {
        let plan =
            (0..).map(draw).find(|plan| plan.pulls.len() > 30).expect("one of the first seeds has pulls");
        let (first, last) = (plan.pulls[3].clone(), plan.pulls[27].clone());
        let needed = |plan: &Plan| {
            let has = |pull: &super::super::plan::PlannedPull| {
                plan.pulls.iter().any(|it| it.node == pull.node && it.image == pull.image)
            };
            has(&first) && has(&last)
        };
        let small = shrink(&plan, 10_000, needed);
        assert!(small.pulls.len() <= 2 && needed(&small), "{small:?}");
        assert!(small.nodes.len() <= 2 && small.images.len() <= 2, "{small:?}");
        assert!(small.troubles.is_empty(), "{small:?}");
    }

    #[test]
    fn a_shrunk_plan_can_be_run() {
        let plan =
            (0..).map(draw).find(|plan| plan.troubles.len() > 10).expect("one of the first seeds is rough");
        // Whatever is removed, what is left names only what is there.
        let mut left = 30;
        let small = shrink(&plan, 100, |plan| {
            left -= 1;
            let _ = plan.scenario();
            left % 3 == 0
        });
        let _ = small.scenario();
    }
}
