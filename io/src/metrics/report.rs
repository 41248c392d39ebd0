//! The gauges that are read off the core when somebody asks.

use spegel_core::{Notice, RegistryCounts, Report};

use super::{Advertised, Metrics};

impl Metrics {
    /// Takes over what the core knows at this moment.
    pub fn reported(&self, report: &Report) {
        let advertised = |count: fn(&RegistryCounts) -> usize| -> Advertised {
            let registries = report.inventory.registries.iter();
            registries.map(|(registry, counts)| (registry.clone(), count(counts) as u64)).collect()
        };
        self.set_advertised_image_tags(&advertised(|counts| counts.tags));
        self.set_advertised_image_digests(&advertised(|counts| counts.images));
        self.set_advertised_content_digests(&advertised(|counts| counts.contents));
        self.set_quarantined_images(report.inventory.quarantined.len() as u64);
        self.set_bypassed_images(report.bypassed_images);
        self.set_members(report.members.len() as u64 + 1);
    }

    /// Counts what the core wants an operator to know.
    pub fn noticed(&self, notice: &Notice) {
        if let Notice::ImageUnusual { reason, .. } = notice {
            self.image_found_unusual(reason);
        }
        if let Notice::PeerShunned { reason, .. } = notice {
            self.peer_shunned(reason);
        }
    }
}
