//! OCI names and documents: digests, references, media types, manifests. Pure parsing.

mod digest;
mod manifest;
mod reference;

pub use self::{
    digest::{Algorithm, Digest, DigestError},
    manifest::{Children, Descriptor, MANIFEST_SIZE_MAX, ManifestError, media_type_of, parse_manifest},
    reference::{ImageName, Reference, ReferenceError, Repository, Tag},
};
