//! The incidents, over many seeds, each of them twice. Figures are in `sim/src/incidents.rs`.

use spegel_sim::incidents;

const SEEDS: u64 = 16;

/// One image of an unknown media type among hundreds made the walk of all images fail, and with
/// it the mirror restarted, for ever ("unsupported media type"). Here such an image is announced
/// like any other, told once, and costs a bounded number of reads over a day.
#[test]
fn unknown_media_type_costs_bounded_work() {
    incidents::unknown_media_type().run_seeds(1..=SEEDS);
    incidents::unknown_media_type_for_a_day().run_seeds(1..=SEEDS);
}

/// A proxy set on all hosts of more than a hundred nodes sent containerd's requests past the
/// mirror, and all that showed was a rate of requests near zero. Here a node says so seconds after
/// the third such image, at most once an hour, and counts each; it says nothing of images that were
/// asked for, sideloaded, or there before: ten nodes, then three with real HTTP, then a day.
#[test]
fn proxy_on_the_node_is_noticed() {
    incidents::proxy_on_two_nodes().run_seeds(1..=SEEDS);
    incidents::proxy_with_http().run_seeds(1..=SEEDS);
    incidents::proxy_for_a_day().run_seeds(1..=SEEDS);
}

/// A node that was alone had to be restarted before those that joined it could use it ("leader is
/// self, skipping"), and a containerd that came up late kept the mirror from ever starting
/// ("connection refused"). Here the first node is ready as soon as its containerd is there, and
/// every node that joins is served by the others without anything being restarted: from one to
/// two to eight with real HTTP, and to fifty without.
#[test]
fn scale_up_from_one_node_needs_no_restart() {
    incidents::scale_up_from_one_node().run_seeds(1..=SEEDS);
    incidents::scale_up_to_fifty().run_seeds(1..=SEEDS);
}

/// A Service with one virtual address leads to any node, the caller included. A node that dialled
/// itself took that for a failure and tried again at once, at the cost of a whole CPU, or took it
/// for a success and stayed alone. Here attempts are few however often it leads home, and the
/// cluster forms unless it always does.
#[test]
fn vip_leading_to_self_costs_nothing() {
    incidents::vip_always_leads_home().run_seeds(1..=SEEDS);
    incidents::vip_often_leads_home().run_seeds(1..=SEEDS);
    incidents::vip_sometimes_leads_home().run_seeds(1..=SEEDS);
    incidents::vip_with_http().run_seeds(1..=SEEDS);
}

/// A node that had lost power was named as a holder until its records expired, and each pull that
/// asked it waited for a connection that never came about. Here others are asked while it is
/// silent, no pull takes longer than a second, and the dead are soon left alone: one, then a
/// third of sixty nodes.
#[test]
fn dead_node_is_routed_around() {
    incidents::dead_node().run_seeds(1..=SEEDS);
    incidents::dead_nodes_of_sixty().run_seeds(1..=SEEDS);
}
