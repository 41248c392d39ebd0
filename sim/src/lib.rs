//! Clusters of nodes on a simulated network, in virtual time, replayed from a seed.
//!
//! Each node is the real core, the real registry and the real peer client. containerd, DNS, the
//! registry upstream and the framing of control messages are the simulator's own.

pub mod containerd;
pub mod control;
pub mod fault;
pub mod image;
pub mod incidents;
pub mod invariant;
mod kubelet;
pub mod light;
pub mod node;
pub mod node_port;
pub mod puller;
pub mod scale;
pub mod scenario;
pub mod scenarios;
pub mod soak;
pub mod stories;
pub mod trace;
pub mod untruths;
pub mod upstream;
pub mod whole;
