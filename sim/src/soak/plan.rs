//! A run of the swarm as data: what a file of `sim/seeds/swarm` contains.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::judge::judge;
use crate::{
    fault::{Dns, Fault, millis},
    image::{HollowLayer, Image},
    scenario::{Driver, Outcome, Scenario},
    trace::Trace,
};

/// The step of time of the whole driver's network. A round trip takes two.
const TICK: Duration = Duration::from_millis(5);

/// Everything that decides a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What the run draws from: latencies, losses, the cores' choices.
    pub seed: u64,
    /// What runs it.
    pub driver: Driver,
    /// Every fault is over by then.
    #[serde(rename = "healed_ms", with = "millis")]
    pub healed_at: Duration,
    /// The cluster must be whole by then. The registry is cut off, and pulls begun from here on
    /// must go well wherever a node has the image.
    #[serde(rename = "settled_ms", with = "millis")]
    pub settled_at: Duration,
    /// The end, when all that nodes know must agree.
    #[serde(rename = "ends_ms", with = "millis")]
    pub ends_at: Duration,
    /// How nodes find each other.
    pub dns: Dns,
    /// How long processes go on once they were told to end.
    #[serde(
        rename = "shutdown_delay_ms",
        default,
        with = "millis",
        skip_serializing_if = "Duration::is_zero"
    )]
    pub shutdown_delay: Duration,
    /// The nodes.
    #[serde(default)]
    pub nodes: Vec<PlannedNode>,
    /// The images that the registry has.
    #[serde(default)]
    pub images: Vec<PlannedImage>,
    /// Who has which of them from the beginning.
    #[serde(default)]
    pub preloads: Vec<Preload>,
    /// Who pulls which of them.
    #[serde(default)]
    pub pulls: Vec<PlannedPull>,
    /// What goes wrong.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedNode {
    /// What it is called.
    pub name: String,
    /// When its mirror starts.
    #[serde(rename = "starts_ms", with = "millis")]
    pub starts_at: Duration,
    /// When its containerd starts.
    #[serde(rename = "containerd_ms", with = "millis")]
    pub containerd_at: Duration,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedImage {
    /// `registry/repository:tag`.
    pub name: String,
    /// What is odd about its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oddity: Option<Oddity>,
    /// Its layers.
    pub layers: Vec<Layer>,
}

/// What can be odd about a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oddity {
    /// Nobody knows its media type.
    UnknownMediaType,
    /// It is no JSON.
    Garbled,
}

/// A layer; equal ones are the same in whatever image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// What its bytes are drawn from.
    pub seed: u64,
    /// How many there are.
    pub bytes: u32,
}

/// An image that a node has from the beginning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preload {
    /// The node.
    pub node: String,
    /// The image.
    pub image: String,
}

/// A pull.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedPull {
    /// When.
    #[serde(rename = "at_ms", with = "millis")]
    pub at: Duration,
    /// On which node.
    pub node: String,
    /// What.
    pub image: String,
}

/// A fault and its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// When it begins.
    #[serde(rename = "at_ms", with = "millis")]
    pub at: Duration,
    /// When it is undone, if it can be ([`Fault::cure`]).
    #[serde(rename = "until_ms", with = "millis")]
    pub until: Duration,
    /// What it is.
    #[serde(flatten)]
    pub fault: Fault,
}

/// What was wrong with a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

impl Failure {
    /// The failure without what differs from run to run: names, numbers, times. Runs whose
    /// failures are of one kind are taken to fail for one reason.
    #[must_use]
    pub fn kind(&self) -> String {
        let first = self.0.split([':', '{']).next().unwrap_or_default();
        let plain = |word: &&str| !word.contains(|c: char| c.is_ascii_digit());
        first
            .split_whitespace()
            .map(|word| if plain(&word) { word } else { "#" })
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl Trouble {
    /// When it ends.
    #[must_use]
    pub fn ends_at(&self) -> Duration {
        self.fault.clone().pause_mut().map_or(self.until, |pause| self.at + *pause)
    }
}

impl Plan {
    /// Reads a plan from the text of a file.
    ///
    /// # Errors
    ///
    /// When it is none, with the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// The text of a file.
    #[must_use]
    pub fn text(&self) -> String {
        toml::to_string(self).expect("a plan is made of numbers, texts and lists")
    }

    /// The scenario of this plan, for either driver.
    #[must_use]
    pub fn scenario(&self) -> Scenario {
        let mut scenario = Scenario::new("swarm", self.ends_at).dns(self.dns).tick(TICK);
        scenario = scenario.shutdown_delay(self.shutdown_delay);
        if self.driver == Driver::Light {
            scenario = scenario.light();
        }
        for node in &self.nodes {
            scenario = scenario.node(&node.name, node.starts_at, node.containerd_at);
        }
        for image in &self.images {
            scenario = scenario.image(image.image(self.driver));
        }
        for preload in &self.preloads {
            scenario = scenario.preload(&preload.node, &preload.image);
        }
        for pull in &self.pulls {
            let at = pull.at;
            scenario = if at < self.settled_at {
                scenario.pull(at, &pull.node, &pull.image)
            } else {
                scenario.pull_once(at, &pull.node, &pull.image)
            };
        }
        for trouble in &self.troubles {
            scenario = scenario.fault(trouble.at, trouble.fault.clone());
            if let Some(cure) = trouble.fault.cure() {
                scenario = scenario.fault(trouble.until, cure);
            }
        }
        scenario.fault(self.settled_at, Fault::CutUpstream)
    }

    /// Runs it and judges the result. What is wrong is a broken invariant, what [`judge`] found, or
    /// a panic, of which there is no outcome.
    pub fn run(&self, trace: Trace) -> (Option<Outcome>, Result<(), Failure>) {
        let scenario = self.scenario();
        // What the run touches is dropped with it.
        let run = AssertUnwindSafe(|| scenario.run_into(self.seed, trace));
        match catch_unwind(run) {
            Ok(outcome) => {
                let judged = judge(self, &outcome).map_err(Failure);
                (Some(outcome), judged)
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                (None, Err(Failure(format!("panic, {}", text.unwrap_or("of unknown cause")))))
            }
        }
    }

    /// Runs it once, or twice to compare the traces; `see` is shown what came of the first.
    ///
    /// # Errors
    ///
    /// What was wrong.
    pub fn check(&self, twice: bool, see: impl FnMut(&Outcome)) -> Result<(), Failure> {
        let run = || {
            let (outcome, result) = self.run(if twice { Trace::end() } else { Trace::none() });
            result.map(|()| outcome)
        };
        let hash = |outcome: Option<Outcome>| outcome.map(|outcome| outcome.trace.hash()).unwrap_or_default();
        let outcome = run()?;
        outcome.iter().for_each(see);
        if !twice {
            return Ok(());
        }
        let second = run().map_err(|failure| Failure(format!("not deterministic: {}", failure.0)))?;
        let (first, second) = (hash(outcome), hash(second));
        if first == second {
            return Ok(());
        }
        Err(Failure(format!("not deterministic: one seed left two traces, {first} and {second}")))
    }

    /// What is wrong with it, if anything.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.run(Trace::none()).1.err()
    }
}

impl PlannedImage {
    fn image(&self, driver: Driver) -> Image {
        let image = match driver {
            Driver::Whole => Image::of_layers(&self.name, self.layers.iter().map(Layer::content)),
            Driver::Light => {
                Image::hollow(&self.name, &self.layers.iter().map(Layer::hollow).collect::<Vec<_>>())
            }
        };
        match self.oddity {
            None => image,
            Some(Oddity::UnknownMediaType) => image.with_unknown_media_type(),
            Some(Oddity::Garbled) => image.with_garbled_manifest(),
        }
    }

    /// About how many bytes a pull of it moves.
    pub(super) fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| u64::from(layer.bytes)).sum()
    }
}

impl Layer {
    fn hollow(&self) -> HollowLayer {
        HollowLayer { name: format!("{} of {}", self.seed, self.bytes), bytes: self.bytes as usize }
    }

    fn content(&self) -> Bytes {
        let mut content = vec![0; self.bytes as usize];
        StdRng::seed_from_u64(self.seed).fill_bytes(&mut content);
        content.into()
    }
}
