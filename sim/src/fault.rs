//! What can go wrong in a scenario, and when.

use std::time::Duration;

/// Something done to the cluster at one moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The mirror's process dies; its kernel refuses connections from then on.
    Crash {
        /// The node.
        node: String,
    },
    /// The mirror is asked to end, says farewell, and ends. Light driver only.
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
        pause: Duration,
    },
    /// Nothing passes between the two groups, silently.
    Partition {
        /// One group.
        left: Vec<String>,
        /// The other.
        right: Vec<String>,
    },
    /// Everything passes again.
    Repair,
    /// Control messages are lost, doubled or late, each with this probability. Light driver only.
    Lossy {
        /// Of a hundred.
        percent: u8,
    },
    /// From now on content served by this node has wrong bytes.
    Corrupt {
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
    /// Deletes an image and collects its garbage.
    DeleteImage {
        /// The node.
        node: String,
        /// The image.
        image: String,
    },
    /// The registry is out of reach.
    CutUpstream,
    /// The registry is back.
    RestoreUpstream,
}

/// How nodes find each other at first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dns {
    /// A headless Service: all nodes that had started this long ago.
    List {
        /// The age of the answer.
        stale: Duration,
    },
    /// A Service with a virtual address, which leads to any node.
    Vip {
        /// How often it leads to the node that dials, of a hundred.
        self_percent: u8,
    },
}
