//! Whether the mirror and the other nodes can be reached, and agree on the time.

use super::{Check, Facts, Finding, Known, PeerProbe, TargetAnswer};

/// How far this node's clock may be from the others'. Smaller and the whole seconds that HTTP tells the
/// time in, and a slow answer, count as a wrong clock; larger and the signatures of nodes that share a
/// cluster secret, which live for a minute, expire before anyone was told.
const CLOCK_OFF_MAX_SECONDS: i64 = 5;

pub(super) fn mirror(facts: &Facts) -> Vec<Finding> {
    const CHECK: Check = Check::Mirror;
    if facts.targets.is_empty() {
        let summary = "Where containerd is told to find the mirror is not known.";
        return vec![Finding::unknown(CHECK, summary).advise("See to hosts_toml first.")];
    }
    let answers = |answer: &TargetAnswer| matches!(answer, TargetAnswer::Spegel);
    let some = facts.targets.iter().any(|target| answers(&target.answer));
    let level = if some { Finding::warning } else { Finding::error };
    let wrong: Vec<Finding> = facts
        .targets
        .iter()
        .filter_map(|target| {
            let url = &target.url;
            let finding = match &target.answer {
                TargetAnswer::Spegel => return None,
                TargetAnswer::Other(what) => level(
                    CHECK,
                    format!("Something else than Spegel answers at {url}, where containerd looks for the mirror: {what}."),
                )
                .advise("Free that port on the node, or give the mirror another (chart: service.registry.nodePort)."),
                TargetAnswer::Nobody(cause) => {
                    level(CHECK, format!("Nobody answers at {url}, where containerd looks for the mirror: {cause}."))
                        .advise("See that the registry is ready, that the Service's node port leads to it, and that no firewall is between the node and itself.")
                }
            };
            Some(finding.about(url))
        })
        .collect();
    if wrong.is_empty() {
        let urls: Vec<&str> = facts.targets.iter().map(|target| target.url.as_str()).collect();
        return vec![Finding::ok(CHECK, format!("The mirror answers at {}.", urls.join(", ")))];
    }
    wrong
}

pub(super) fn routers(facts: &Facts) -> Vec<Finding> {
    let advice = "Allow TCP to the router port between the nodes' mirrors (chart: service.router.port).";
    peers(facts, Check::PeerRouter, "router", advice, |peer| (&peer.router_addr, &peer.router))
}

pub(super) fn registries(facts: &Facts) -> Vec<Finding> {
    let advice = "Allow TCP to the registry port between the nodes' mirrors (chart: service.registry.port).";
    peers(facts, Check::PeerRegistry, "registry", advice, |peer| (&peer.registry_addr, &peer.registry))
}

fn hidden(check: Check, cause: &str) -> Finding {
    Finding::unknown(check, format!("The other nodes are not known here: {cause}."))
        .advise("Run `spegel check` where the registry runs to know.")
}

type Answer<'a> = (&'a String, &'a Result<(), String>);

fn peers(
    facts: &Facts,
    check: Check,
    port: &str,
    advice: &str,
    answer: impl Fn(&PeerProbe) -> Answer<'_>,
) -> Vec<Finding> {
    let peers = match &facts.peers {
        Known::Seen(peers) => peers,
        Known::Hidden(cause) => return vec![hidden(check, cause)],
    };
    if peers.is_empty() {
        return vec![Finding::unknown(check, "There is no other node to share with at the moment.")];
    }
    let wrong: Vec<Finding> = peers
        .iter()
        .filter_map(|peer| {
            let (addr, answered) = answer(peer);
            let cause = answered.as_ref().err()?;
            let summary = format!("The {port} of {} does not answer at {addr}: {cause}.", peer.peer);
            Some(Finding::warning(check, summary).about(&peer.peer).advise(advice))
        })
        .collect();
    if wrong.is_empty() {
        return vec![Finding::ok(
            check,
            format!("All {} other nodes asked answer on their {port} port.", peers.len()),
        )];
    }
    if wrong.len() == peers.len() {
        // With nobody to ask, this is what keeps the node from mirroring.
        return wrong.into_iter().map(|finding| Finding { level: super::Level::Error, ..finding }).collect();
    }
    wrong
}

pub(super) fn clock(facts: &Facts) -> Finding {
    const CHECK: Check = Check::Clock;
    let peers = match &facts.peers {
        Known::Seen(peers) => peers,
        Known::Hidden(cause) => return hidden(CHECK, cause),
    };
    let mut ahead: Vec<i64> = peers.iter().filter_map(|peer| peer.clock_ahead_seconds).collect();
    ahead.sort_unstable();
    // The middle one: a single node whose clock is off must not make the others doubt theirs. Where two are
    // in the middle, the one that is less off.
    let middle = ahead.len().saturating_sub(1) / 2;
    let Some(middle) =
        ahead.get(middle..=ahead.len() / 2).and_then(|two| two.iter().min_by_key(|s| s.unsigned_abs()))
    else {
        return Finding::unknown(
            CHECK,
            "No other node has told the time, so this node's clock cannot be compared.",
        );
    };
    let off = middle.unsigned_abs();
    if *middle > CLOCK_OFF_MAX_SECONDS || *middle < -CLOCK_OFF_MAX_SECONDS {
        let way = if *middle > 0 { "behind" } else { "ahead of" };
        let summary = format!(
            "This node's clock is {off} s {way} those of the {} nodes that told the time.",
            ahead.len()
        );
        return Finding::warning(CHECK, summary)
            .advise("Set up time synchronisation (NTP, chrony) on the node.");
    }
    Finding::ok(CHECK, format!("This node's clock is within {CLOCK_OFF_MAX_SECONDS} s of the others'."))
}
