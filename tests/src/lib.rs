//! A cluster of real parts on one machine: containerd, a registry and the `spegel` binary, each node in
//! a network namespace of its own.
//!
//! It builds and breaks the world and reports what happened; it never decides whether that was right.
//! The files under `tests/tests` do, one promise each, and `demo` tells the story to a human.
//!
//! Needs root and what `.ci/install` installs. Everything is blocking: a test reads top to bottom, and
//! `std::thread::scope` is there when two things must happen at once.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]

mod browser;
mod check;
mod cluster;
mod container;
mod containerd;
mod content;
mod cri;
mod ctr;
mod faults;
mod helm;
mod http;
mod image;
mod kubernetes;
mod netns;
mod node;
mod parts;
mod process;
mod stand_in;
mod sweep;
mod upstream;
mod wait;

pub use browser::{Browser, Screen};
pub use check::Checked;
pub use cluster::{Bootstrap, Cluster, ClusterOptions, IpFamily};
pub use container::Container;
pub use ctr::Puller;
pub use faults::Noise;
pub use helm::{Chart, chart_dir, deploy_dir, parse as parse_yaml};
pub use http::{Answer, BodyEnd, HttpClient};
pub use image::{Blob, Image, ImageSpec, digest_of};
pub use kubernetes::{Kubernetes, Machine};
pub use netns::{LinkBytes, NetNs, SocketBytes};
pub use node::Node;
pub use parts::{
    Generation, helm, image_archive, outdated_containerd, prometheus, promtool, spegel_binary, target_dir,
};
pub use process::Process;
pub use stand_in::{StandIn, answer_status, request_head, stay_silent};
pub use sweep::{clean_up, clean_up_on_signal, interrupted, leftovers};
pub use upstream::Upstream;
pub use wait::{percentile, wait_for};

/// The registry's name, in every namespace's hosts file; images are called `registry.test/…`.
pub const REGISTRY: &str = "registry.test";
/// The name that resolves to every node, what a headless Service is in Kubernetes.
pub const BOOTSTRAP_NAME: &str = "spegel.test";
/// Where the mirror listens on each node.
pub const MIRROR_PORT: u16 = 5000;
/// Where nodes talk to each other.
pub const ROUTER_PORT: u16 = 5001;
/// Where a node serves its own address with HTTP bootstrap.
pub const BOOTSTRAP_PORT: u16 = 5002;
/// Where a node serves metrics.
pub const METRICS_PORT: u16 = 9090;
/// A cluster secret, of 32 bytes.
pub const SECRET: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
/// A secret of somebody else, or the next one.
pub const OTHER_SECRET: &str = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100";

const MIB: u64 = 1024 * 1024;

/// `n` MiB in bytes.
#[must_use]
pub const fn mib(n: u64) -> u64 {
    n * MIB
}
