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
    /// How long this node goes on as before once it was told to end, while it says that it is not ready
    /// (`--shutdown-delay`). Whoever leads clients here, kube-proxy for instance, learns in that time to lead them
    /// elsewhere. Shorter, and they are led to an address that nobody has any more, where containerd waits for up to
    /// 30 seconds; longer, and an update of all nodes takes longer.
    pub shutdown_delay: Duration,
}
