//! OCI names and documents: digests, references, media types, manifests. Pure parsing.

mod digest;
mod manifest;
mod media_type;
mod reference;
mod sought;

pub use self::{
    digest::{Algorithm, Digest, DigestError},
    manifest::{
        CHILDREN_MAX, Children, Descriptor, MANIFEST_SIZE_MAX, ManifestError, media_type_of, parse_manifest,
    },
    media_type::{is_config_type, is_index_type, is_layer_type, is_manifest_type},
    reference::{ImageName, Reference, ReferenceError, Repository, Tag},
    sought::Sought,
};
