//! The incidents told small: one short run of each with as few nodes as it takes, whose trace a
//! person can read from beginning to end. `sim/tests/stories.rs` keeps what they say.

use std::time::Duration;

use crate::{
    fault::{Dns, Fault},
    image::Image,
    scenario::Scenario,
    scenarios::{Named, name, seconds},
};

/// The image that most stories are about.
const IMAGE: &str = "registry.test/app:1";

/// Bytes of each layer: read at once.
const LAYER_BYTES: usize = 1000;

/// Every story, for replay by name.
pub(crate) const ALL: &[Named] = &[
    ("story_of_an_unknown_media_type", unknown_media_type),
    ("story_of_a_proxy", proxy),
    ("story_of_scaling_up", scaling_up),
    ("story_of_a_vip", vip),
    ("story_of_a_dead_node", dead_node),
];

/// `n1` has an image of an unknown media type and one whose manifest is no JSON; both are
/// announced, the second is mentioned, and `n2` gets it from there.
#[must_use]
pub fn unknown_media_type() -> Scenario {
    const ODD: &str = "registry.test/odd/unknown:1";
    const GARBLED: &str = "registry.test/odd/garbled:1";
    Scenario::new("story_of_an_unknown_media_type", seconds(12))
        .light()
        .nodes(2)
        .image(Image::new(ODD, 1, LAYER_BYTES, 1).with_unknown_media_type())
        .image(Image::new(GARBLED, 1, LAYER_BYTES, 2).with_garbled_manifest())
        .preload("n1", ODD)
        .preload("n1", GARBLED)
        .fault(Duration::ZERO, Fault::CutUpstream)
        .pull(seconds(8), "n2", GARBLED)
        .expect(|outcome| outcome.expect_pulls(1, seconds(1)))
}

/// containerd's requests go past the mirror of `n1`. An image put in by hand is nothing to mention;
/// three that were pulled are.
#[must_use]
pub fn proxy() -> Scenario {
    let images: Vec<_> = (1..=4).map(|n| format!("registry.test/app{n}:1")).collect();
    let mut scenario = Scenario::new("story_of_a_proxy", seconds(24)).light().nodes(1);
    for (n, image) in images.iter().enumerate() {
        scenario = scenario.image(Image::new(image, 1, LAYER_BYTES, n as u64));
    }
    let node = || "n1".to_owned();
    scenario = scenario
        .fault(seconds(4), Fault::BypassMirror { node: node() })
        .fault(seconds(5), Fault::Sideload { node: node(), image: images[0].clone() });
    for (n, image) in images.iter().enumerate().skip(1) {
        scenario = scenario.pull(seconds(10 + 2 * n as u64), "n1", image);
    }
    scenario.expect(|outcome| {
        outcome.expect_pulls(3, seconds(1))?;
        let told = outcome.notices.iter();
        let told = told.filter(|(.., notice)| matches!(notice, spegel_core::Notice::MirrorBypassed { .. }));
        match told.count() {
            1 => Ok(()),
            count => Err(format!("the bypass was mentioned {count} times, not once")),
        }
    })
}

/// `n1` is alone, and its containerd is late. `n2` joins when DNS knows of it, and pulls what `n1`
/// has.
#[must_use]
pub fn scaling_up() -> Scenario {
    Scenario::new("story_of_scaling_up", seconds(20))
        .light()
        .image(Image::new(IMAGE, 1, LAYER_BYTES, 1))
        .preload("n1", IMAGE)
        .dns(Dns::List { stale: seconds(3) })
        .fault(Duration::ZERO, Fault::CutUpstream)
        .node("n1", seconds(0), seconds(2))
        .node("n2", seconds(6), seconds(6))
        .pull(seconds(15), "n2", IMAGE)
        .expect(|outcome| outcome.expect_pulls(1, seconds(1)))
}

/// Two nodes behind one virtual address that leads home four times of five.
#[must_use]
pub fn vip() -> Scenario {
    Scenario::new("story_of_a_vip", seconds(15))
        .light()
        .nodes(2)
        .dns(Dns::Vip { self_percent: 80 })
        .image(Image::new(IMAGE, 1, LAYER_BYTES, 1))
        .preload("n1", IMAGE)
        .fault(Duration::ZERO, Fault::CutUpstream)
        .pull(seconds(12), "n2", IMAGE)
        .expect(|outcome| outcome.expect_pulls(1, seconds(1)))
}

/// Two of three nodes have the image; one of them loses power, and the third pulls at that moment
/// and again when the death is known.
#[must_use]
pub fn dead_node() -> Scenario {
    let second = "registry.test/app2:1";
    let mut scenario = Scenario::new("story_of_a_dead_node", seconds(24))
        .light()
        .nodes(3)
        .image(Image::new(IMAGE, 1, LAYER_BYTES, 1))
        .image(Image::new(second, 1, LAYER_BYTES, 2))
        .fault(Duration::ZERO, Fault::CutUpstream);
    for holder in 1..=2 {
        scenario = scenario.preload(&name(holder), IMAGE).preload(&name(holder), second);
    }
    scenario
        .fault(seconds(10), Fault::Vanish { node: name(1) })
        .pull(seconds(10) + Duration::from_millis(1), "n3", IMAGE)
        .pull(seconds(20), "n3", second)
        .expect(|outcome| outcome.expect_pulls(2, seconds(1)))
}
