//! What can go wrong in a scenario, and when.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use rand::{RngExt as _, rngs::StdRng};
use serde::{Deserialize, Serialize};

use crate::node::ROUTER_PORT;

/// Something done to the cluster at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// The mirror's process dies; its kernel refuses connections from then on.
    Crash {
        /// The node.
        node: String,
    },
    /// The mirror is asked to end, says farewell, and ends.
    Stop {
        /// The node.
        node: String,
    },
    /// A new process of the mirror, which remembers nothing.
    Start {
        /// The node.
        node: String,
    },
    /// The machine loses power: from then on there is silence.
    Vanish {
        /// The node.
        node: String,
    },
    /// The process is paused, its machine is not: connections open, nothing answers.
    Freeze {
        /// The node.
        node: String,
        /// For how long.
        #[serde(with = "millis")]
        pause: Duration,
    },
    /// The machine sleeps, its monotonic clock too: nothing answers, what is sent to it is lost,
    /// and no time has passed when it wakes. Light driver only.
    Suspend {
        /// The node.
        node: String,
        /// For how long.
        #[serde(with = "millis")]
        pause: Duration,
    },
    /// The machine's wall clock is wrong by so much; the mirror reads it when it starts. Light
    /// driver only.
    StepClock {
        /// The node.
        node: String,
        /// Seconds ahead of the true time; negative is behind. 0 corrects it.
        ahead_seconds: i64,
    },
    /// From its next start on the mirror of this node is of a later release. Light driver only.
    Upgrade {
        /// The node.
        node: String,
    },
    /// Nothing passes between the two groups, silently.
    Partition {
        /// One group.
        left: Vec<String>,
        /// The other.
        right: Vec<String>,
    },
    /// One such partition ends; what others cut stays cut.
    Reconnect {
        /// One group.
        left: Vec<String>,
        /// The other.
        right: Vec<String>,
    },
    /// Everything passes again.
    Repair,
    /// From now on control messages fare like this; [`Lossy::NONE`] ends it.
    Lossy(Lossy),
    /// From now on content served by this node has wrong bytes.
    Corrupt {
        /// The node.
        node: String,
    },
    /// From now on content served by this node is right again.
    Truthful {
        /// The node.
        node: String,
    },
    /// From now on this node sends so slowly.
    Slow {
        /// The node.
        node: String,
        /// Its rate.
        bytes_per_second: u64,
    },
    /// From now on this node sends as fast as at first.
    FullSpeed {
        /// The node.
        node: String,
    },
    /// containerd goes away.
    StopContainerd {
        /// The node.
        node: String,
    },
    /// containerd is there (again), with what it had.
    StartContainerd {
        /// The node.
        node: String,
    },
    /// containerd is paused: it accepts connections and answers nothing, until it wakes and answers
    /// whoever still waits. Its content directory can be read meanwhile. Light driver only.
    HangContainerd {
        /// The node.
        node: String,
        /// For how long.
        #[serde(with = "millis")]
        pause: Duration,
    },
    /// Deletes an image and collects its garbage.
    DeleteImage {
        /// The node.
        node: String,
        /// The image.
        image: String,
    },
    /// An image is put into containerd by hand, from a file: nobody pulled it.
    Sideload {
        /// The node.
        node: String,
        /// The image.
        image: String,
    },
    /// From now on containerd's requests go past the mirror, as by a proxy in its environment.
    BypassMirror {
        /// The node.
        node: String,
    },
    /// containerd asks the mirror (again).
    UseMirror {
        /// The node.
        node: String,
    },
    /// The registry is out of reach.
    CutUpstream,
    /// The registry is back.
    RestoreUpstream,
    /// The registry answers 429 to whatever is more than so many requests a second.
    ThrottleUpstream {
        /// By all nodes together; `None` ends it.
        requests_per_second: Option<usize>,
    },
}

/// What becomes of control messages, each a request or a reply: probabilities of a hundred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lossy {
    /// Never arrives.
    pub lost: u8,
    /// Arrives twice.
    pub doubled: u8,
    /// Arrives up to three seconds later, after others that were sent after it.
    pub late: u8,
}

/// Longest that a late message is late.
const LATE_MAX_MS: u64 = 3000;

impl Lossy {
    /// Every message arrives, once, and soon.
    pub const NONE: Self = Self { lost: 0, doubled: 0, late: 0 };

    /// How much longer than others each copy of one message travels: none if it is lost.
    pub(crate) fn travels(self, rng: &mut StdRng) -> Vec<Duration> {
        if happens(self.lost, rng) {
            Vec::new()
        } else if happens(self.doubled, rng) {
            vec![Duration::ZERO; 2]
        } else if happens(self.late, rng) {
            vec![Duration::from_millis(rng.random_range(0..LATE_MAX_MS))]
        } else {
            vec![Duration::ZERO]
        }
    }
}

/// With this probability, of a hundred.
pub(crate) fn happens(percent: u8, rng: &mut StdRng) -> bool {
    percent > 0 && rng.random_range(0..100) < percent
}

impl Fault {
    /// Whether only the light driver can do it.
    #[must_use]
    pub const fn needs_light(&self) -> bool {
        matches!(
            self,
            Self::Suspend { .. }
                | Self::StepClock { .. }
                | Self::Upgrade { .. }
                | Self::HangContainerd { .. }
        )
    }

    /// The node that sends nothing from then on.
    pub(crate) fn silences(&self) -> Option<&str> {
        if let Self::Crash { node }
        | Self::Stop { node }
        | Self::Vanish { node }
        | Self::Freeze { node, .. }
        | Self::Suspend { node, .. } = self
        {
            Some(node)
        } else {
            None
        }
    }

    /// For how long it lasts, if it ends by itself.
    pub(crate) const fn pause_mut(&mut self) -> Option<&mut Duration> {
        if let Self::Freeze { pause, .. } | Self::Suspend { pause, .. } | Self::HangContainerd { pause, .. } =
            self
        {
            Some(pause)
        } else {
            None
        }
    }

    /// What it is called in files.
    #[must_use]
    pub fn kind(&self) -> String {
        let text = toml::Value::try_from(self).ok();
        text.and_then(|fields| Some(fields.get("kind")?.as_str()?.to_owned())).unwrap_or_default()
    }

    /// What undoes it; `None` if it ends by itself, cannot be undone, or undoes another.
    #[must_use]
    pub fn cure(&self) -> Option<Self> {
        match self.clone() {
            Self::Crash { node } | Self::Stop { node } | Self::Vanish { node } => Some(Self::Start { node }),
            Self::Partition { left, right } => Some(Self::Reconnect { left, right }),
            Self::Lossy(lossy) => (lossy != Lossy::NONE).then_some(Self::Lossy(Lossy::NONE)),
            Self::StepClock { node, ahead_seconds } => {
                (ahead_seconds != 0).then_some(Self::StepClock { node, ahead_seconds: 0 })
            }
            Self::BypassMirror { node } => Some(Self::UseMirror { node }),
            Self::ThrottleUpstream { requests_per_second } => {
                requests_per_second.map(|_| Self::ThrottleUpstream { requests_per_second: None })
            }
            Self::Corrupt { node } => Some(Self::Truthful { node }),
            Self::Slow { node, .. } => Some(Self::FullSpeed { node }),
            Self::StopContainerd { node } => Some(Self::StartContainerd { node }),
            Self::CutUpstream => Some(Self::RestoreUpstream),
            Self::Freeze { .. }
            | Self::Suspend { .. }
            | Self::Upgrade { .. }
            | Self::HangContainerd { .. }
            | Self::DeleteImage { .. }
            | Self::Sideload { .. }
            | Self::UseMirror { .. }
            | Self::Start { .. }
            | Self::Reconnect { .. }
            | Self::Repair
            | Self::Truthful { .. }
            | Self::FullSpeed { .. }
            | Self::StartContainerd { .. }
            | Self::RestoreUpstream => None,
        }
    }
}

/// How nodes find each other at first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dns {
    /// A headless Service: all nodes that had started this long ago.
    List {
        /// The age of the answer.
        #[serde(with = "millis")]
        stale: Duration,
    },
    /// A list that is mostly wrong and another in each answer, sometimes empty: some of the nodes,
    /// among addresses of nobody, of what is no mirror, of strangers, of the asker itself, and of
    /// nodes under the names of others. Light driver only.
    Lie {
        /// Nothing but empty answers for so long.
        #[serde(with = "millis")]
        empty_for: Duration,
        /// Up to so many addresses.
        entries_max: usize,
    },
    /// A Service with a virtual address, which leads to any node.
    Vip {
        /// How often it leads to the node that dials, of a hundred.
        self_percent: u8,
    },
}

/// The address of the Service, which is no node's.
pub(crate) const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), ROUTER_PORT);

/// Where a Service's address leads to this time, as seen from `home`.
pub(crate) fn endpoint<T: Copy>(self_percent: u8, home: T, others: &[T], rng: &mut StdRng) -> T {
    if others.is_empty() || happens(self_percent, rng) {
        return home;
    }
    others[rng.random_range(0..others.len())]
}

/// Durations in files are whole milliseconds.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}
