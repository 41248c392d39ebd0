//! Decides what keeps a node from mirroring, from what could be seen of it. [`Facts`] are gathered by
//! `spegel check` and by the running registry; [`findings`] says in plain words what is wrong and what to
//! do. Asks nobody, and knows no more than the facts: what could not be seen is said to be unknown, never
//! to be well.

mod cluster;
mod containerd;
mod distribution;
mod facts;
mod hosts;
mod proxy;
mod rota;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use serde::Serialize;

pub use self::{
    containerd::{VERSION_MIN, VERSION_SPLIT_CRI, major_minor},
    distribution::Distribution,
    facts::{
        ContainerdFacts, ContentStore, Facts, HostsDir, Known, PeerProbe, Settings, SettingsSource, StoreDir,
        TargetAnswer, TargetProbe,
    },
    rota::Rota,
};

/// How often the running registry checks itself. Shorter and a large cluster's nodes knock at each other
/// for nothing; longer and a repair takes as long to show.
const INTERVAL: Duration = Duration::from_secs(300);

/// How often while something is wrong, so that a repair shows soon. Shorter only asks more.
const INTERVAL_TROUBLED: Duration = Duration::from_secs(60);

/// How long after its start the registry checks itself for the first time. Shorter and the cluster is not
/// known yet; longer and a node that was set up wrongly looks well for that time.
pub const FIRST_DELAY: Duration = Duration::from_secs(10);

/// How long anybody may take to answer one question of the check. Shorter and a busy node counts as
/// unreachable; longer and a cluster behind a firewall makes `spegel check` slow.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How many questions are asked at a time. More is a burst that the node's other work feels; fewer and a
/// cluster that swallows packets takes minutes to check.
pub const PROBES_CONCURRENT_MAX: usize = 16;

/// How many peers one check knocks at. Fewer and a large cluster takes hours to be gone through; more and
/// a thousand nodes that check each other are a load of their own.
pub const PEERS_MAX: usize = 64;

/// One thing that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// containerd answers and is recent enough.
    Containerd,
    /// containerd reads the directory that `hosts.toml` is written to.
    ConfigPath,
    /// containerd keeps the layers it has unpacked.
    UnpackedLayers,
    /// Content is where the mirror reads it.
    ContentPath,
    /// `hosts.toml` is there and ours.
    HostsToml,
    /// No directory of a single registry takes it away from the mirror.
    HostsShadowed,
    /// No other mirror comes first.
    OtherMirror,
    /// containerd does not go through a proxy to reach the mirror.
    Proxy,
    /// The mirror answers where containerd is told to ask it.
    Mirror,
    /// Other nodes' router ports can be reached.
    PeerRouter,
    /// Other nodes' registry ports can be reached.
    PeerRegistry,
    /// This node's clock is that of the others.
    Clock,
}

impl Check {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 12] = [
        Self::Containerd,
        Self::ConfigPath,
        Self::UnpackedLayers,
        Self::ContentPath,
        Self::HostsToml,
        Self::HostsShadowed,
        Self::OtherMirror,
        Self::Proxy,
        Self::Mirror,
        Self::PeerRouter,
        Self::PeerRegistry,
        Self::Clock,
    ];

    /// Its name for scripts and metrics, which stays the same from release to release.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::ConfigPath => "config_path",
            Self::UnpackedLayers => "unpacked_layers",
            Self::ContentPath => "content_path",
            Self::HostsToml => "hosts_toml",
            Self::HostsShadowed => "hosts_shadowed",
            Self::OtherMirror => "other_mirror",
            Self::Proxy => "proxy",
            Self::Mirror => "mirror",
            Self::PeerRouter => "peer_router",
            Self::PeerRegistry => "peer_registry",
            Self::Clock => "clock",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Check {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How bad it is, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Seen to be well.
    Ok,
    /// Cannot be seen from here.
    Unknown,
    /// Costs something, but the node mirrors.
    Warning,
    /// Keeps the node from mirroring.
    Error,
}

impl Level {
    /// The sign at the beginning of a line.
    #[must_use]
    pub const fn sign(self) -> char {
        match self {
            Self::Ok => '✔',
            Self::Unknown => '?',
            Self::Warning => '!',
            Self::Error => '✘',
        }
    }

    /// The value of the metric `spegel_check`: what needs looking at is above zero.
    #[must_use]
    pub const fn value(self) -> i64 {
        match self {
            Self::Unknown => -1,
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Error => 2,
        }
    }
}

/// What one check came to. A check that looks at several things has a finding for each that is not well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    #[serde(rename = "name")]
    pub check: Check,
    /// How bad it is.
    pub level: Level,
    /// Which of several: a peer, a registry, an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What was seen, in a sentence.
    pub summary: String,
    /// What to do about it, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(check: Check, level: Level, summary: impl Into<String>) -> Self {
        Self { check, level, subject: None, summary: summary.into(), advice: None }
    }

    fn ok(check: Check, summary: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, summary)
    }

    fn unknown(check: Check, summary: impl Into<String>) -> Self {
        Self::new(check, Level::Unknown, summary)
    }

    fn warning(check: Check, summary: impl Into<String>) -> Self {
        Self::new(check, Level::Warning, summary)
    }

    fn error(check: Check, summary: impl Into<String>) -> Self {
        Self::new(check, Level::Error, summary)
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }
}

impl fmt::Display for Finding {
    /// One line. What comes from outside may hold line breaks; they become spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = format!("{} {}: {}", self.level.sign(), self.check, self.summary);
        if let Some(advice) = &self.advice {
            line = format!("{line} {advice}");
        }
        f.write_str(&line.replace(char::is_control, " "))
    }
}

/// What keeps the node from mirroring, and what does not; at least one finding for each [`Check`], in
/// their order.
#[must_use]
pub fn findings(facts: &Facts) -> Vec<Finding> {
    Check::ALL
        .iter()
        .flat_map(|check| match check {
            Check::Containerd => vec![containerd::reachable(facts)],
            Check::ConfigPath => vec![containerd::config_path(facts)],
            Check::UnpackedLayers => vec![containerd::unpacked_layers(facts)],
            Check::ContentPath => vec![containerd::content_path(facts)],
            Check::HostsToml => hosts::present(facts),
            Check::HostsShadowed => hosts::shadowed(facts),
            Check::OtherMirror => hosts::other_mirror(facts),
            Check::Proxy => proxy::proxy(facts),
            Check::Mirror => cluster::mirror(facts),
            Check::PeerRouter => cluster::routers(facts),
            Check::PeerRegistry => cluster::registries(facts),
            Check::Clock => vec![cluster::clock(facts)],
        })
        .collect()
}

/// The worst of one check's findings.
#[must_use]
pub fn level_of(check: Check, findings: &[Finding]) -> Level {
    findings.iter().filter(|finding| finding.check == check).map(|f| f.level).max().unwrap_or(Level::Unknown)
}

/// The worst of all findings.
#[must_use]
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Unknown)
}

/// When the running registry checks itself next, after findings of which this is the worst level.
#[must_use]
pub const fn interval_after(worst: Level) -> Duration {
    match worst {
        Level::Ok | Level::Unknown => INTERVAL,
        Level::Warning | Level::Error => INTERVAL_TROUBLED,
    }
}
