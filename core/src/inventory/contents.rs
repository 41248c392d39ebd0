//! What containerd is known to have, in as little memory as 200 000 blobs ask for.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Filters, oci::Digest};

/// Most sources of one blob that are looked at. Lower and a base layer that is in very many
/// repositories may be taken for excluded; higher and one label costs much time.
const SOURCES_MAX: usize = 256;

/// Longest registry or repository, in bytes. Shorter and legal names are ignored; longer ones
/// are no names.
const SOURCE_BYTES_MAX: usize = 261;

/// Most registries told apart in the report. Lower and some are not counted; higher and
/// metrics have too many series.
const REGISTRIES_MAX: usize = 1000;

/// What containerd has, allowed or not.
pub(super) type Contents = BTreeMap<Digest, Content>;

#[derive(Debug)]
pub(super) struct Content {
    pub(super) size: u64,
    pub(super) sources: Sources,
    pub(super) is_served: bool,
}

/// Where content was pulled from, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sources {
    /// Not told: imported, or the labels are a moment late.
    Unknown,
    /// At least one is allowed: the registries of those that are.
    Allowed(Vec<RegistryId>),
    /// None is allowed.
    Excluded,
}

/// A registry of the [`Registries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RegistryId(u16);

/// The names of registries, each kept once.
#[derive(Debug, Default)]
pub(super) struct Registries {
    ids: BTreeMap<Arc<str>, RegistryId>,
    names: Vec<Arc<str>>,
}

impl Registries {
    /// The id of a registry; `None` beyond [`REGISTRIES_MAX`].
    pub(super) fn id(&mut self, name: &str) -> Option<RegistryId> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        if self.names.len() >= REGISTRIES_MAX {
            return None;
        }
        let id = RegistryId(u16::try_from(self.names.len()).ok()?);
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.ids.insert(name, id);
        Some(id)
    }

    pub(super) fn name(&self, id: RegistryId) -> &str {
        self.names.get(usize::from(id.0)).map_or("", |name| name)
    }

    /// Judges the sources of some content.
    pub(super) fn judge(&mut self, filters: &Filters, sources: &[(String, String)]) -> Sources {
        let mut judged = Sources::Unknown;
        for (registry, repository) in sources.iter().take(SOURCES_MAX) {
            if registry.is_empty() || registry.len() > SOURCE_BYTES_MAX || repository.len() > SOURCE_BYTES_MAX
            {
                continue;
            }
            if !filters.allows(registry, repository, None) {
                if judged == Sources::Unknown {
                    judged = Sources::Excluded;
                }
                continue;
            }
            if !matches!(judged, Sources::Allowed(_)) {
                judged = Sources::Allowed(Vec::new());
            }
            if let (Sources::Allowed(ids), Some(id)) = (&mut judged, self.id(registry))
                && !ids.contains(&id)
            {
                ids.push(id);
            }
        }
        judged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(sources: &[(&str, &str)]) -> Sources {
        let filters = Filters::new(&["https://a.test".to_owned()], &["secret".to_owned()]).expect("filters");
        let sources: Vec<_> = sources.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Registries::default().judge(&filters, &sources)
    }

    #[test]
    fn one_allowed_source_is_enough() {
        assert_eq!(judge(&[]), Sources::Unknown);
        assert_eq!(judge(&[("b.test", "x"), ("a.test", "secret")]), Sources::Excluded);
        let allowed = Sources::Allowed(vec![RegistryId(0)]);
        assert_eq!(judge(&[("b.test", "x"), ("a.test", "x"), ("a.test", "y")]), allowed);
        assert_eq!(judge(&[("a.test", "x"), ("b.test", "x")]), allowed);
    }

    #[test]
    fn odd_sources_are_as_good_as_none() {
        let long = "a".repeat(SOURCE_BYTES_MAX + 1);
        assert_eq!(judge(&[("", "x"), (&long, "x"), ("a.test", &long)]), Sources::Unknown);
    }

    #[test]
    fn registries_are_bounded() {
        let mut registries = Registries::default();
        let last = (0..REGISTRIES_MAX).filter_map(|n| registries.id(&n.to_string())).last();
        assert_eq!(last.map(|id| registries.name(id).to_owned()), Some((REGISTRIES_MAX - 1).to_string()));
        assert_eq!(registries.id("one more"), None);
        assert_eq!(registries.id("0"), Some(RegistryId(0)));
    }
}
