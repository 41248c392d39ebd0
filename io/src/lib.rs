//! The adapters: containerd, libp2p, HTTP and DNS on one side, [`spegel_core::Node`] on the
//! other. They turn the world into inputs and outputs into the world, and hold no policy: no
//! retry, no timeout value, no choice of peer that the core did not make.

pub mod check;
pub mod cleanup;
pub mod clock;
pub mod containerd;
pub mod content;
pub mod control;
pub mod debug;
pub mod descriptors;
pub mod distribution;
pub mod hosts_toml;
pub mod identity;
pub mod listen;
pub mod metrics;
pub mod mirror;
pub mod net;
pub mod notice;
pub mod peer;
pub mod ports;
pub mod questions;
pub mod registry;
pub mod resolve;
pub mod shell;
pub mod trust;
pub mod zero_copy;

#[cfg(test)]
mod registry_tests;
