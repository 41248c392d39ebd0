//! What a node must be told before it starts.

use std::time::Duration;

use crate::{Filters, PeerId, Zone};

/// Everything that stays the same during a node's life.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub peer: PeerId,
    /// Milliseconds since the UNIX epoch when the process started: tells this life from earlier
    /// ones of the same identity. The only wall time that enters.
    pub started_at_unix_ms: u64,
    /// TCP port of the router that other nodes dial.
    pub router_port: u16,
    /// TCP port of the registry that other nodes ask.
    pub registry_port: u16,
    /// Zone of this node.
    pub zone: Option<Zone>,
    /// What may be mirrored.
    pub filters: Filters,
    /// How long one owner of a key may take to answer a lookup before another is asked too
    /// (`--mirror-resolve-timeout`). Shorter and a busy cluster asks everything twice; longer
    /// and a pull waits on an owner that has just died.
    pub resolve_timeout: Duration,
    /// Most holders tried for one pull beyond the first (`--mirror-resolve-retries`).
    pub resolve_retries: u32,
}
