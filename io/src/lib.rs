//! The adapters: containerd, libp2p, HTTP and DNS on one side, [`spegel_core::Node`] on the
//! other. They turn the world into inputs and outputs into the world, and hold no policy: no
//! retry, no timeout value, no choice of peer that the core did not make.

pub mod clock;
pub mod content;
pub mod metrics;
pub mod mirror;
pub mod net;
pub mod peer;
pub mod registry;
#[cfg(test)]
mod registry_tests;
