//! The incidents that this project exists for, as scenarios with names.

use std::time::Duration;

use crate::{image::Image, scenario::Scenario};

/// Every scenario, for replay by name.
#[must_use]
pub fn all() -> Vec<Scenario> {
    vec![scale_up_from_one_node()]
}

/// The image that the incidents are about.
pub const IMAGE: &str = "registry.test/app:1";

/// When the last of the nodes that join by and by has started.
pub const LAST_JOIN: Duration = Duration::from_secs(60);

/// How old the addresses are that the bootstrap name leads to.
pub const DNS_STALE: Duration = Duration::from_secs(30);

/// How many nodes there are in the end.
pub const SCALED_UP: usize = 8;

/// Bytes of each layer: a few segments, so that a transfer is more than one message.
const LAYER_BYTES: usize = 100_000;

/// One node, alone, whose containerd comes up five seconds after the mirror; it pulls an image
/// from the registry, which is then cut off. More nodes join, first one, then six at once, while
/// DNS is half a minute behind. Each pulls the image a few seconds after it can have been found.
#[must_use]
pub fn scale_up_from_one_node() -> Scenario {
    let seconds = Duration::from_secs;
    let mut scenario = Scenario::new("scale_up_from_one_node", LAST_JOIN + DNS_STALE + seconds(30))
        .image(Image::new(IMAGE, 3, LAYER_BYTES, 1))
        .dns_stale(DNS_STALE)
        .node("n1", seconds(0), seconds(5))
        .pull(seconds(10), "n1", IMAGE)
        .cut_upstream(seconds(20))
        .node("n2", seconds(25), seconds(0))
        .pull(seconds(25) + DNS_STALE, "n2", IMAGE);
    for n in 3..=SCALED_UP {
        let name = format!("n{n}");
        scenario = scenario.node(&name, LAST_JOIN, seconds(0)).pull(
            LAST_JOIN + DNS_STALE + seconds(n as u64),
            &name,
            IMAGE,
        );
    }
    scenario
}
