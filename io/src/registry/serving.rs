//! What this node serves, as the core last said. Local requests are answered from here and
//! never wait for the core.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use spegel_core::{Output, oci::Digest};

use super::backlog::Backlog;

/// The content and tags that this node serves; clones share them. Bounded by what the core
/// keeps, which orders every entry.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    table: Arc<RwLock<Table>>,
    backlog: Backlog,
}

#[derive(Debug, Default)]
struct Table {
    sizes: HashMap<Digest, u64>,
    tags: HashMap<String, Digest>,
}

impl Serving {
    /// Carries out an order of the core; `false` if it is none for this table.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the shell routes every order; these four are ours")]
    pub fn perform(&self, output: &Output) -> bool {
        match output {
            Output::ServeContent { digest, size } => drop(self.write().sizes.insert(*digest, *size)),
            Output::StopServingContent { digest } => drop(self.write().sizes.remove(digest)),
            Output::ServeTag { name, digest } => drop(self.write().tags.insert(name.clone(), *digest)),
            Output::StopServingTag { name } => drop(self.write().tags.remove(name)),
            _ => return false,
        }
        true
    }

    /// The size of some content; `None` unless it is served.
    #[must_use]
    pub fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.read().sizes.get(digest).copied()
    }

    /// What a tag, as `registry/repository:tag`, names; `None` unless it is served.
    #[must_use]
    pub fn digest_of(&self, name: &str) -> Option<Digest> {
        self.read().tags.get(name).copied()
    }

    /// What of it is under way to other nodes.
    pub(super) const fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_ordered_last_is_served() {
        let serving = Serving::default();
        let digest = Digest::sha256_of(b"content");
        let name = "docker.io/library/alpine:3";
        assert_eq!(serving.size_of(&digest), None);
        assert!(serving.perform(&Output::ServeContent { digest, size: 7 }));
        assert!(serving.perform(&Output::ServeContent { digest, size: 8 }));
        assert!(serving.perform(&Output::ServeTag { name: name.into(), digest }));
        assert_eq!(serving.size_of(&digest), Some(8));
        assert_eq!(serving.digest_of(name), Some(digest));
        assert!(serving.perform(&Output::StopServingContent { digest }));
        assert!(serving.perform(&Output::StopServingTag { name: name.into() }));
        assert!(serving.perform(&Output::StopServingTag { name: name.into() }));
        assert_eq!((serving.size_of(&digest), serving.digest_of(name)), (None, None));
        assert!(!serving.perform(&Output::ShutdownComplete));
    }
}
