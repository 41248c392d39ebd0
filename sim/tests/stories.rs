//! What the five incidents look like in a trace, told small and kept: whoever changes what nodes
//! do or say to each other sees here what becomes of the stories.
//!
//! docs/simulation.md says how to accept what has changed.

use spegel_sim::{scenario::Scenario, stories};

/// What tells lines that are the same in every story: gossip, its answers and failures, and checks
/// of what an owner believes that find nothing amiss.
const LEFT_OUT: [&str; 5] =
    ["Swim(", ", Ack }", "SendFailed", "add: [], remove: []", "Announced { synced: true }"];

/// The trace of one seed without what is in every story, without the numbers of exchanges, which
/// gossip uses up too, and with short digests.
fn told(scenario: &Scenario) -> String {
    let outcome = scenario.replay(1);
    assert_eq!(outcome.error, None, "make sim SCENARIO={} SEED=1", scenario.name());
    let trace = outcome.trace.text();
    let is_told = |line: &&str| !LEFT_OUT.iter().any(|word| line.contains(word));
    let lines = trace.lines().filter(is_told);
    lines.map(|line| short_digests(&without_exchange(line))).collect::<Vec<_>>().join("\n")
}

fn without_exchange(line: &str) -> String {
    match line.split_once("exchange: ").and_then(|(before, rest)| Some((before, rest.split_once(", ")?.1))) {
        Some((before, after)) => format!("{before}{after}"),
        None => line.to_owned(),
    }
}

fn short_digests(line: &str) -> String {
    const SHORT: usize = "sha256:".len() + 8;
    let mut parts = line.split("sha256:");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let digest = format!("sha256:{part}");
        let end = digest.find(|c: char| !c.is_ascii_alphanumeric() && c != ':').unwrap_or(digest.len());
        format!("{text}{}{}", &digest[..end.min(SHORT)], &digest[end..])
    })
}

#[test]
fn unknown_media_type_costs_bounded_work() {
    insta::assert_snapshot!(told(&stories::unknown_media_type()));
}

#[test]
fn proxy_on_the_node_is_noticed() {
    insta::assert_snapshot!(told(&stories::proxy()));
}

#[test]
fn scale_up_from_one_node_needs_no_restart() {
    insta::assert_snapshot!(told(&stories::scaling_up()));
}

#[test]
fn vip_leading_to_self_costs_nothing() {
    insta::assert_snapshot!(told(&stories::vip()));
}

#[test]
fn dead_node_is_routed_around() {
    insta::assert_snapshot!(told(&stories::dead_node()));
}
