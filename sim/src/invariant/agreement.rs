//! When all is well again, what is held, what is announced, and what owners believe agree.

use std::collections::{BTreeMap, BTreeSet};

use spegel_core::{DirectoryContents, Key, PeerId, Report};

/// Owners keep between so many holders of a key to name, and so many, if there are more.
const HOLDERS_KEPT_MIN: usize = 16;
const HOLDERS_KEPT_MAX: usize = 64;

/// How many owners each key has.
const OWNERS: usize = 3;

/// Whether nodes agree on who is a member, and on how much is held.
///
/// # Errors
///
/// When they do not.
pub fn agreement(reports: &BTreeMap<String, Report>) -> Result<(), String> {
    let alive: BTreeSet<PeerId> = reports.values().map(|report| report.me.peer).collect();
    for (name, report) in reports {
        let seen: BTreeSet<PeerId> =
            report.members.iter().map(|member| member.peer).chain([report.me.peer]).collect();
        if seen != alive {
            let (missing, extra) = (alive.difference(&seen).count(), seen.difference(&alive).count());
            return Err(format!(
                "{name} does not see {missing} nodes that are there, and sees {extra} that are not"
            ));
        }
        if report.directory.owners_unsynced > 0 || report.directory.holders_incomplete > 0 {
            return Err(format!("{name} has not reconciled: {:?}", report.directory));
        }
    }
    let held: usize = reports.values().map(|report| report.directory.keys_held).sum();
    let owned: usize = reports.values().map(|report| report.directory.entries_owned).sum();
    let expected = held * OWNERS.min(alive.len());
    if owned != expected {
        return Err(format!("nodes hold {held} keys, owners know {owned} times of them, not {expected}"));
    }
    Ok(())
}

/// One node, key by key.
#[derive(Debug)]
pub struct Contents {
    /// Who it is.
    pub peer: PeerId,
    /// What its containerd has; `None` where containerd does not run.
    pub has: Option<BTreeSet<Key>>,
    /// What it says that it holds, and knows of others as an owner.
    pub directory: DirectoryContents,
}

/// Whether for each key those nodes hold it whose containerd has it, and three owners know of all
/// of these and of nobody else, though they name some only if there are many.
///
/// # Errors
///
/// When it is not so, with the first key for which it is not.
pub fn agreement_by_key(nodes: &BTreeMap<String, Contents>) -> Result<(), String> {
    let mut holders: BTreeMap<Key, BTreeSet<PeerId>> = BTreeMap::new();
    for (name, node) in nodes {
        let held: BTreeSet<Key> = node.directory.held.iter().copied().collect();
        if let Some(key) = node.has.iter().flat_map(|has| has.symmetric_difference(&held)).next() {
            let what =
                if held.contains(key) { "holds what is not there" } else { "does not hold what is there" };
            return Err(format!("{name} {what}: {key}"));
        }
        for key in held {
            holders.entry(key).or_default().insert(node.peer);
        }
    }
    let mut owners: BTreeMap<Key, usize> = BTreeMap::new();
    for (name, node) in nodes {
        for (key, known) in &node.directory.owned {
            let left_out = known.left_out;
            let known: BTreeSet<PeerId> = known.kept.iter().copied().collect();
            let none = BTreeSet::new();
            let true_ones = holders.get(key).unwrap_or(&none);
            if let Some(wrong) = known.difference(true_ones).next() {
                return Err(format!("{name} believes that {wrong} holds {key}"));
            }
            let kept_min = true_ones.len().min(HOLDERS_KEPT_MIN);
            if known.len() + left_out != true_ones.len()
                || !(kept_min..=HOLDERS_KEPT_MAX).contains(&known.len())
            {
                let (named, all) = (known.len(), true_ones.len());
                return Err(format!(
                    "{name} names {named} and leaves out {left_out} of {all} holders of {key}"
                ));
            }
            *owners.entry(*key).or_default() += 1;
        }
    }
    let expected = OWNERS.min(nodes.len());
    for key in holders.keys() {
        let count = owners.get(key).copied().unwrap_or_default();
        if count != expected {
            return Err(format!("{count} nodes know who holds {key}, not {expected}"));
        }
    }
    Ok(())
}
