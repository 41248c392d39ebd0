//! What a node knows about itself and the cluster, for metrics and the operator.

use std::collections::BTreeSet;

use crate::{DirectoryReport, InventoryReport, Member, PeerId, PeerReport};

/// A node at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether it is ready.
    pub ready: bool,
    /// What it tells others of itself.
    pub me: Member,
    /// The other live members, in order of peer ID.
    pub members: Vec<Member>,
    /// Those of them that have been silent: they are asked and count as alive until they have had the time
    /// to object.
    pub suspected: BTreeSet<PeerId>,
    /// What it can serve.
    pub inventory: InventoryReport,
    /// Images pulled past the mirror since the start.
    pub bypassed_images: u64,
    /// What it owns and announces.
    pub directory: DirectoryReport,
    /// What it remembers of its peers.
    pub peers: Vec<PeerReport>,
    /// Pulls in flight.
    pub pulls: usize,
}
