//! Decides what kind of content a media type stands for. Never refuses one: content of any other
//! type is content like any other, it only has no children.

use oci_spec::image::MediaType;

const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYERS: [&str; 5] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];
/// The layers of the attestations that BuildKit puts beside every image.
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// Whether content of this type is an index: a list of manifests.
#[must_use]
pub fn is_index_type(media_type: &str) -> bool {
    matches!(MediaType::from(media_type), MediaType::ImageIndex) || media_type == DOCKER_MANIFEST_LIST
}

/// Whether content of this type is a manifest: a config and layers, or an artifact's blobs.
#[must_use]
pub fn is_manifest_type(media_type: &str) -> bool {
    matches!(MediaType::from(media_type), MediaType::ImageManifest | MediaType::ArtifactManifest)
        || media_type == DOCKER_MANIFEST
}

/// Whether content of this type is the configuration of an image.
#[must_use]
pub fn is_config_type(media_type: &str) -> bool {
    matches!(MediaType::from(media_type), MediaType::ImageConfig | MediaType::EmptyJSON)
        || media_type == DOCKER_CONFIG
}

/// Whether content of this type is a layer of the usual kinds.
#[must_use]
pub fn is_layer_type(media_type: &str) -> bool {
    matches!(
        MediaType::from(media_type),
        MediaType::ImageLayer
            | MediaType::ImageLayerGzip
            | MediaType::ImageLayerZstd
            | MediaType::ImageLayerNonDistributable
            | MediaType::ImageLayerNonDistributableGzip
            | MediaType::ImageLayerNonDistributableZstd
            | MediaType::EmptyJSON
    ) || DOCKER_LAYERS.contains(&media_type)
        || media_type == IN_TOTO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oci_and_docker_types_are_known() {
        assert!(is_index_type("application/vnd.oci.image.index.v1+json"));
        assert!(is_index_type("application/vnd.docker.distribution.manifest.list.v2+json"));
        assert!(is_manifest_type("application/vnd.oci.image.manifest.v1+json"));
        assert!(is_manifest_type("application/vnd.docker.distribution.manifest.v2+json"));
        assert!(is_layer_type("application/vnd.oci.image.layer.v1.tar+zstd"));
        assert!(is_layer_type("application/vnd.docker.image.rootfs.diff.tar.gzip"));
        assert!(is_layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"));
        assert!(is_config_type("application/vnd.oci.image.config.v1+json"));
        assert!(is_config_type("application/vnd.docker.container.image.v1+json"));
    }

    #[test]
    fn other_types_are_of_no_kind() {
        for other in ["", "application/octet-stream", "application/vnd.docker.distribution.manifest.v1+json"]
        {
            assert!(!is_index_type(other) && !is_manifest_type(other));
            assert!(!is_layer_type(other) && !is_config_type(other));
        }
    }
}
