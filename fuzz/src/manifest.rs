use serde_json::Value;
use spegel_core::oci::{
    CHILDREN_MAX, Children, Descriptor, Digest, ManifestError, is_index_type, media_type_of, parse_manifest,
};

use crate::bytes::Bytes;

const TYPES: [Option<&str>; 6] = [
    None,
    Some("application/vnd.oci.image.index.v1+json"),
    Some("application/vnd.oci.image.manifest.v1+json"),
    Some("application/vnd.docker.distribution.manifest.list.v2+json"),
    Some("application/vnd.docker.distribution.manifest.v2+json"),
    Some("application/octet-stream"),
];

/// Manifests out of the content store: bounded children or an error, a media type that makes a
/// header, and the children that a plain JSON parser finds. A byte of type, then the document.
pub fn manifest(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let media_type = TYPES[bytes.below(TYPES.len())];
    let document = bytes.rest();
    if let Some(own) = media_type_of(document) {
        assert!(!own.is_empty() && own.len() <= 255);
        assert!(own.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{own:?}");
    }
    let children = match parse_manifest(media_type, document) {
        Ok(children) => children,
        Err(ManifestError::NotJson { .. } | ManifestError::TooLarge) => return,
    };
    assert!(children.manifests.len() <= CHILDREN_MAX && children.layers.len() <= 2 * CHILDREN_MAX);
    let is_typed = media_type.is_some_and(|media_type| media_type != "application/octet-stream");
    // The plain parser refuses some of what is skipped here, such as 1e999.
    if is_typed
        && !children.truncated
        && let Some(media_type) = media_type
        && let Ok(json) = serde_json::from_slice(document)
    {
        assert_eq!(children, plainly(is_index_type(media_type), &json));
    }
}

fn plainly(is_index: bool, document: &Value) -> Children {
    let mut children = Children::default();
    let mut list = |name: &str| {
        let entries = document.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let found: Vec<_> = entries.iter().filter_map(descriptor).collect();
        children.malformed += entries.len() - found.len();
        found
    };
    if is_index {
        children.manifests = list("manifests");
        return children;
    }
    let mut layers = list("layers");
    layers.extend(list("blobs"));
    children.layers = layers;
    if let Some(config) = document.get("config") {
        children.config = descriptor(config);
        children.malformed += usize::from(children.config.is_none());
    }
    children
}

fn descriptor(value: &Value) -> Option<Descriptor> {
    let digest: Digest = value.get("digest")?.as_str()?.parse().ok()?;
    let media_type = value.get("mediaType").and_then(Value::as_str).filter(|text| text.len() <= 255);
    let size = value.get("size").and_then(Value::as_u64).unwrap_or(0);
    Some(Descriptor { media_type: media_type.unwrap_or_default().to_owned(), digest, size })
}
