//! What the inventory tells metrics and the debug page; decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{
    Inventory,
    contents::{RegistryId, Sources},
    walks::Reached,
};
use crate::oci::Digest;

/// Most quarantined images told by name. Lower and a person cannot see which; higher and the
/// debug page of a badly broken node is of no use.
const QUARANTINED_MAX: usize = 1000;

/// What this node can serve, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InventoryReport {
    /// Whether containerd is connected.
    pub is_connected: bool,
    /// The version that containerd last reported.
    pub containerd_version: Option<String>,
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

impl Inventory {
    /// What there is and what is wrong with it. Looks at everything known.
    #[must_use]
    pub(crate) fn report(&self) -> InventoryReport {
        let mut counts: BTreeMap<RegistryId, RegistryCounts> = BTreeMap::new();
        let mut roots: BTreeMap<RegistryId, BTreeSet<Digest>> = BTreeMap::new();
        let mut tags_served = 0;
        for image in self.images.values() {
            tags_served += usize::from(image.served.is_some());
            let (Some(registry), Some(target)) = (image.registry, image.target) else { continue };
            counts.entry(registry).or_default().tags += usize::from(image.served.is_some());
            if image.is_allowed {
                roots.entry(registry).or_default().insert(target);
            }
        }
        for content in self.contents.values().filter(|content| content.is_served) {
            if let Sources::Allowed(registries) = &content.sources {
                for registry in registries {
                    counts.entry(*registry).or_default().contents += 1;
                }
            }
        }
        let is_unlabelled = |digest: &&Digest| {
            self.contents.get(*digest).is_some_and(|c| c.is_served && c.sources == Sources::Unknown)
        };
        for (registry, roots) in roots {
            let counts = counts.entry(registry).or_default();
            counts.images = roots.iter().filter(|root| self.holds(root)).count();
            let mut reached = Reached::default();
            roots.iter().for_each(|root| self.walks.reach(root, &mut reached));
            counts.contents += reached.digests.iter().filter(is_unlabelled).count();
        }
        let name = |(id, counts): (RegistryId, RegistryCounts)| (self.registries.name(id).to_owned(), counts);
        let quarantined = self.walks.quarantined().take(QUARANTINED_MAX);
        InventoryReport {
            is_connected: self.link.is_connected(),
            containerd_version: self.containerd_version.clone(),
            is_listed: self.link.is_listed(),
            images: self.images.len(),
            contents: self.contents.len(),
            contents_served: self.contents_served,
            tags_served,
            registries: counts.into_iter().map(name).collect(),
            quarantined: quarantined
                .map(|image| QuarantinedImage {
                    image: image.name.to_owned(),
                    reason: image.reason.as_str(),
                    retry_at: image.reread_at,
                })
                .collect(),
            contents_unreadable: self.suspects.blocked_count(),
            findings: self.findings.clone(),
            ignored: self.ignored,
            inspections_pending: self.inspections.len(),
            reads_pending: self.walks.reads_pending(),
        }
    }
}
