//! What the inventory tells metrics and the debug page; decides nothing.

use std::{collections::BTreeMap, time::Instant};

/// Most quarantined images told by name. Lower and a person cannot see which; higher and the
/// debug page of a badly broken node is of no use.
pub(super) const QUARANTINED_MAX: usize = 1000;

/// What this node can serve, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InventoryReport {
    /// Whether containerd is connected.
    pub is_connected: bool,
    /// Whether containerd was listed at least once.
    pub is_listed: bool,
    /// Images known, by any name.
    pub images: usize,
    /// Content known, served or not.
    pub contents: usize,
    /// Content served.
    pub contents_served: usize,
    /// Tags served.
    pub tags_served: usize,
    /// What is advertised, by registry.
    pub registries: BTreeMap<String, RegistryCounts>,
    /// Images that cannot be walked; at most 1000 of them. Their content is served all the same.
    pub quarantined: Vec<QuarantinedImage>,
    /// Content not served because it could not be read.
    pub contents_unreadable: usize,
    /// Unusual things found since the start, by reason.
    pub findings: BTreeMap<&'static str, u64>,
    /// Names and content ignored since the start because there were too many or they were too long.
    pub ignored: u64,
    /// Digests containerd is being asked about, or about to be.
    pub inspections_pending: usize,
    /// Manifests being read, or about to be.
    pub reads_pending: usize,
}

/// What is advertised of one registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegistryCounts {
    /// Tags.
    pub tags: usize,
    /// Digests of images.
    pub images: usize,
    /// Digests of content, images included.
    pub contents: usize,
}

/// An image that cannot be walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedImage {
    /// Its name.
    pub image: String,
    /// What is wrong: the word of [`crate::Notice::ImageUnusual`].
    pub reason: &'static str,
    /// When it is read again; `None` if not before it changes.
    pub retry_at: Option<Instant>,
}
