//! Turns containerd's images and content into the core's. Pure. What is not well-formed is left
//! out or made harmless here, never an error: one odd entry must not hide the others.

use std::collections::HashMap;

use containerd_client::{
    services::v1::{Image, Info},
    types::Descriptor as ContainerdDescriptor,
};
use spegel_core::{ListedContent, ListedImage, oci::Descriptor};

/// Precedes the registry in the label that says where content was pulled from.
const SOURCE_LABEL_PREFIX: &str = "containerd.io/distribution.source.";

/// Longest image name taken. A reference has at most 255 bytes of registry and repository, 128
/// of tag and 135 of digest. Shorter loses real images; longer only costs memory.
const IMAGE_NAME_BYTES_MAX: usize = 1024;

/// Longest media type taken (RFC 6838, section 4.2: 127 bytes on each side of the `/`). One that
/// is longer counts as unknown.
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// Most places that content is said to come from. Fewer may lose the one that a filter lets
/// through; more only costs memory, for base layers that everybody has.
const SOURCES_MAX: usize = 64;

const UNKNOWN_MEDIA_TYPE: &str = "application/octet-stream";

/// Whether the core should hear of an image of that name.
pub(super) fn is_image_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= IMAGE_NAME_BYTES_MAX
}

pub(super) fn image(image: Image) -> Option<ListedImage> {
    is_image_name(&image.name)
        .then(|| ListedImage { target: image.target.and_then(descriptor), name: image.name })
}

fn descriptor(descriptor: ContainerdDescriptor) -> Option<Descriptor> {
    let mut media_type = descriptor.media_type;
    if media_type.len() > MEDIA_TYPE_BYTES_MAX {
        UNKNOWN_MEDIA_TYPE.clone_into(&mut media_type);
    }
    Some(Descriptor {
        media_type,
        digest: descriptor.digest.parse().ok()?,
        size: u64::try_from(descriptor.size).ok()?,
    })
}

pub(super) fn content(info: Info) -> Option<ListedContent> {
    Some(ListedContent {
        digest: info.digest.parse().ok()?,
        size: u64::try_from(info.size).ok()?,
        sources: sources(info.labels),
    })
}

/// Pairs of registry and repository, in order.
fn sources(labels: HashMap<String, String>) -> Vec<(String, String)> {
    let mut sources = Vec::new();
    for (label, repositories) in labels {
        let Some(registry) = label.strip_prefix(SOURCE_LABEL_PREFIX).filter(|registry| !registry.is_empty())
        else {
            continue;
        };
        let repositories = repositories.split(',').filter(|repository| !repository.is_empty());
        sources.extend(repositories.map(|repository| (registry.to_owned(), repository.to_owned())));
    }
    // Labels come in no order.
    sources.sort_unstable();
    sources.dedup();
    sources.truncate(SOURCES_MAX);
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    use spegel_core::oci::Digest;

    #[test]
    fn sources_are_read_from_labels_in_order() {
        let info = labelled(&[
            ("containerd.io/distribution.source.registry.test:5000", "team/app"),
            ("containerd.io/distribution.source.docker.io", "library/b,library/a,,library/b"),
            ("containerd.io/distribution.source.", "nowhere"),
            ("containerd.io/uncompressed", "sha256:x"),
        ]);
        let expected =
            [("docker.io", "library/a"), ("docker.io", "library/b"), ("registry.test:5000", "team/app")];
        let expected = expected.map(|(registry, repository)| (registry.to_owned(), repository.to_owned()));
        assert_eq!(content(info).unwrap().sources, expected);
        assert_eq!(content(labelled(&[])).unwrap().sources, []);
    }

    #[test]
    fn sources_are_bounded() {
        let repositories: Vec<_> = (0..=SOURCES_MAX).map(|i| format!("r{i}")).collect();
        let all = repositories.join(",");
        let info = labelled(&[("containerd.io/distribution.source.docker.io", &all)]);
        assert_eq!(content(info).unwrap().sources.len(), SOURCES_MAX);
    }

    #[test]
    fn malformed_content_is_left_out() {
        assert!(content(Info { digest: "md5:x".to_owned(), ..labelled(&[]) }).is_none());
        assert!(content(Info { size: -1, ..labelled(&[]) }).is_none());
        assert!(content(Info { size: 0, ..labelled(&[]) }).is_some());
    }

    #[test]
    fn image_without_a_sensible_target_is_still_listed() {
        let digest = Digest::sha256_of(b"index");
        let target = ContainerdDescriptor {
            media_type: "a/b".to_owned(),
            digest: digest.to_string(),
            size: 5,
            annotations: HashMap::new(),
        };
        let named = |target| Image { name: "registry.test/app:1".to_owned(), target, ..Default::default() };
        let listed = image(named(Some(target.clone()))).unwrap();
        assert_eq!(listed.target, Some(Descriptor { media_type: "a/b".to_owned(), digest, size: 5 }));
        let odd = [
            None,
            Some(ContainerdDescriptor { digest: "sha256:".to_owned(), ..target.clone() }),
            Some(ContainerdDescriptor { size: -1, ..target.clone() }),
        ];
        for target in odd {
            assert_eq!(image(named(target)).unwrap().target, None);
        }
        let long = ContainerdDescriptor { media_type: "x".repeat(MEDIA_TYPE_BYTES_MAX + 1), ..target };
        assert_eq!(image(named(Some(long))).unwrap().target.unwrap().media_type, UNKNOWN_MEDIA_TYPE);
    }

    #[test]
    fn image_names_are_bounded() {
        for (length, listed) in
            [(0, false), (1, true), (IMAGE_NAME_BYTES_MAX, true), (IMAGE_NAME_BYTES_MAX + 1, false)]
        {
            let image = image(Image { name: "x".repeat(length), ..Default::default() });
            assert_eq!(image.is_some(), listed, "{length}");
        }
    }

    fn labelled(labels: &[(&str, &str)]) -> Info {
        Info {
            digest: Digest::sha256_of(b"layer").to_string(),
            size: 5,
            labels: labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect(),
            ..Default::default()
        }
    }
}
