//! stub
use super::Digest;

/// A pointer to content (OCI image-spec, "Content Descriptors").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What kind of content; anything a registry made up.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}
/// stub
pub const MANIFEST_SIZE_MAX: u64 = 4 * 1024 * 1024;
/// stub
#[derive(Clone, Debug)]
pub struct Children;
/// stub
#[derive(Clone, Debug)]
pub struct ManifestError;
/// stub
pub fn media_type_of(bytes: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    value.get("mediaType")?.as_str().map(str::to_owned)
}
/// stub
pub fn parse_manifest() {}
