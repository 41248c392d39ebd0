//! Decides what a manifest points to and what media type it is served with. Never fails for an
//! unusual document, only for one that is no JSON object; never keeps more of a hostile one than
//! [`CHILDREN_MAX`] short descriptors per list. The inventory and the registry call it.

#[cfg(test)]
mod model;

use std::fmt;

use oci_spec::image::MediaType;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    Digest,
    media_type::{is_index_type, is_manifest_type},
};

/// Largest manifest that is read, in bytes: what the distribution-spec asks registries to accept
/// at least, and containerd's own limit. Smaller and legal images are not walked; larger and
/// a few images fill the memory of the node.
pub const MANIFEST_SIZE_MAX: u64 = 4 * 1024 * 1024;

/// Most descriptors taken from one list of one manifest. Lower and large artifacts are walked in
/// part only; higher and one document of 4 MiB costs many times that in memory.
pub const CHILDREN_MAX: usize = 2048;

/// Longest media type served or kept, in bytes: both of its halves may have 127 (RFC 6838, 4.2).
/// Shorter and legal types are ignored; longer ones do not fit a header that clients accept.
const MEDIA_TYPE_BYTES_MAX: usize = 255;

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

/// What a manifest or index points to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// An index's manifests.
    pub manifests: Vec<Descriptor>,
    /// A manifest's config.
    pub config: Option<Descriptor>,
    /// A manifest's layers, or an artifact's blobs.
    pub layers: Vec<Descriptor>,
    /// Descriptors left out because their digest is none.
    pub malformed: usize,
    /// Whether a list had more than [`CHILDREN_MAX`] entries; the rest is left out.
    pub truncated: bool,
}

/// Why a manifest cannot be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is not a JSON object.
    #[error("manifest is not a JSON object (line {line}, column {column})")]
    NotJson {
        /// Where it stops being one.
        line: usize,
        /// Where it stops being one.
        column: usize,
    },
    /// It is larger than [`MANIFEST_SIZE_MAX`].
    #[error("manifest is larger than {MANIFEST_SIZE_MAX} bytes")]
    TooLarge,
}

/// The media type to serve a manifest with: what it says of itself, else what it looks like
/// (`mediaType` is optional in OCI documents); `None` if neither tells.
#[must_use]
pub fn media_type_of(bytes: &[u8]) -> Option<String> {
    let document = parse(bytes).ok()?;
    if let Some(Value::Text(media_type)) = document.field(Field::MediaType)
        && !media_type.is_empty()
        && media_type.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        && media_type.trim() == media_type
    {
        return Some(media_type.clone());
    }
    let by_shape = match document.shape()? {
        Shape::Index => MediaType::ImageIndex,
        Shape::Manifest => MediaType::ImageManifest,
    };
    Some(by_shape.as_ref().to_owned())
}

/// What a document of the given media type points to. Documents of unknown types have no
/// children; without a type the document's own type or shape decides.
///
/// # Errors
///
/// [`ManifestError`] if a document that should have children is too large or not JSON.
pub fn parse_manifest(media_type: Option<&str>, bytes: &[u8]) -> Result<Children, ManifestError> {
    let shape_of = |media_type: &str| {
        if is_index_type(media_type) {
            Some(Shape::Index)
        } else if is_manifest_type(media_type) {
            Some(Shape::Manifest)
        } else {
            None
        }
    };
    let expected = media_type.map(shape_of);
    if expected == Some(None) {
        return Ok(Children::default());
    }
    if u64::try_from(bytes.len()).is_ok_and(|size| size > MANIFEST_SIZE_MAX) {
        return Err(ManifestError::TooLarge);
    }
    let mut document = parse(bytes)
        .map_err(|error| ManifestError::NotJson { line: error.line(), column: error.column() })?;
    let own = match document.field(Field::MediaType) {
        Some(Value::Text(own)) => shape_of(own),
        Some(Value::Size(_) | Value::Object(_) | Value::List { .. } | Value::Other) | None => None,
    };
    let Some(shape) = expected.flatten().or(own).or_else(|| document.shape()) else {
        return Ok(Children::default());
    };
    let mut children = Children::default();
    match shape {
        Shape::Index => children.manifests = document.descriptors(Field::Manifests, &mut children),
        Shape::Manifest => {
            if let Some(config) = document.take(Field::Config) {
                match config.into_descriptor() {
                    Some(config) => children.config = Some(config),
                    None => children.malformed += 1,
                }
            }
            children.layers = document.descriptors(Field::Layers, &mut children);
            let blobs = document.descriptors(Field::Blobs, &mut children);
            children.layers.extend(blobs);
        }
    }
    Ok(children)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Index,
    Manifest,
}

/// The fields that matter; everything else is skipped while parsing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    MediaType,
    Digest,
    Size,
    Manifests,
    Config,
    Layers,
    Blobs,
}

impl Field {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "mediaType" => Self::MediaType,
            "digest" => Self::Digest,
            "size" => Self::Size,
            "manifests" => Self::Manifests,
            "config" => Self::Config,
            "layers" => Self::Layers,
            "blobs" => Self::Blobs,
            _ => return None,
        })
    }
}

/// A JSON value, reduced to what can matter. `serde_json::Value` would cost up to thirty times
/// the size of a hostile document, and typed structs would refuse a merely unusual one.
enum Value {
    /// A string, not longer than any that matters.
    Text(String),
    Size(u64),
    Object(Vec<(Field, Self)>),
    List {
        items: Vec<Self>,
        truncated: bool,
    },
    Other,
}

impl Value {
    fn field(&self, field: Field) -> Option<&Self> {
        let Self::Object(fields) = self else { return None };
        fields.iter().find(|(name, _)| *name == field).map(|(_, value)| value)
    }

    fn take(&mut self, field: Field) -> Option<Self> {
        let Self::Object(fields) = self else { return None };
        let at = fields.iter().position(|(name, _)| *name == field)?;
        Some(fields.swap_remove(at).1)
    }

    fn shape(&self) -> Option<Shape> {
        let is_list = |field| matches!(self.field(field), Some(Self::List { .. }));
        if is_list(Field::Manifests) {
            Some(Shape::Index)
        } else if is_list(Field::Layers) && matches!(self.field(Field::Config), Some(Self::Object(_))) {
            Some(Shape::Manifest)
        } else {
            None
        }
    }

    fn descriptors(&mut self, field: Field, children: &mut Children) -> Vec<Descriptor> {
        let Some(Self::List { items, truncated }) = self.take(field) else { return Vec::new() };
        children.truncated |= truncated;
        let count = items.len();
        let descriptors: Vec<_> = items.into_iter().filter_map(Self::into_descriptor).collect();
        children.malformed += count - descriptors.len();
        descriptors
    }

    fn into_descriptor(mut self) -> Option<Descriptor> {
        let Some(Self::Text(digest)) = self.take(Field::Digest) else { return None };
        let digest = digest.parse().ok()?;
        let media_type = match self.take(Field::MediaType) {
            Some(Self::Text(media_type)) => media_type,
            Some(Self::Size(_) | Self::Object(_) | Self::List { .. } | Self::Other) | None => String::new(),
        };
        let size = match self.take(Field::Size) {
            Some(Self::Size(size)) => size,
            Some(Self::Text(_) | Self::Object(_) | Self::List { .. } | Self::Other) | None => 0,
        };
        Some(Descriptor { media_type, digest, size })
    }
}

fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let document = Sieve { depth: 0 }.deserialize(&mut json)?;
    json.end()?;
    if matches!(document, Value::Object(_)) { Ok(document) } else { Err(de::Error::custom("not an object")) }
}

/// Keeps of a JSON value what can matter at its depth: the document is 0, its lists and config
/// are 1, the descriptors in lists 2, their fields 3. Nothing deeper is kept.
#[derive(Clone, Copy)]
struct Sieve {
    depth: u8,
}

impl<'de> DeserializeSeed<'de> for Sieve {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Sieve {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Size(number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(if text.len() <= MEDIA_TYPE_BYTES_MAX { Value::Text(text.to_owned()) } else { Value::Other })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        // Lists only matter as fields of the document.
        if self.depth == 1 {
            while items.len() < CHILDREN_MAX {
                match list.next_element_seed(Self { depth: self.depth + 1 })? {
                    Some(item) => items.push(item),
                    None => return Ok(Value::List { items, truncated: false }),
                }
            }
        }
        let mut truncated = false;
        while list.next_element::<IgnoredAny>()?.is_some() {
            truncated = true;
        }
        Ok(Value::List { items, truncated })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields: Vec<(Field, Value)> = Vec::new();
        while let Some(field) = object.next_key_seed(FieldName)? {
            match field {
                Some(field) if self.depth <= 2 => {
                    let value = object.next_value_seed(Self { depth: self.depth + 1 })?;
                    // The last of several counts, as in containerd's parser.
                    fields.retain(|(name, _)| *name != field);
                    fields.push((field, value));
                }
                Some(_) | None => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(fields))
    }
}

/// Tells fields by name without keeping the name.
struct FieldName;

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = Option<Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Field>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Option<Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<Field>, E> {
        Ok(Field::of(name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

    fn digest(name: &str) -> Digest {
        Digest::sha256_of(name.as_bytes())
    }

    fn descriptor(name: &str) -> String {
        format!(
            r#"{{"mediaType":"t/{name}","digest":"{}","size":7,"annotations":{{"a":"b"}}}}"#,
            digest(name)
        )
    }

    fn names(descriptors: &[Descriptor]) -> Vec<&str> {
        descriptors.iter().map(|d| d.media_type.as_str()).collect()
    }

    #[test]
    fn manifest_has_config_and_layers() {
        let json = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{},{}],"subject":{}}}"#,
            descriptor("c"),
            descriptor("l1"),
            descriptor("l2"),
            descriptor("s"),
        );
        for media_type in [Some(MANIFEST), Some("application/vnd.docker.distribution.manifest.v2+json"), None]
        {
            let children = parse_manifest(media_type, json.as_bytes()).expect("a manifest");
            assert_eq!(children.config.as_ref().map(|c| c.digest), Some(digest("c")));
            assert_eq!(children.config.as_ref().map(|c| c.size), Some(7));
            assert_eq!(names(&children.layers), ["t/l1", "t/l2"]);
            assert!(children.manifests.is_empty() && !children.truncated && children.malformed == 0);
        }
    }

    #[test]
    fn index_has_manifests_and_artifact_has_blobs() {
        let index = format!(r#"{{"manifests":[{}]}}"#, descriptor("m"));
        let children = parse_manifest(None, index.as_bytes()).expect("an index");
        assert_eq!(names(&children.manifests), ["t/m"]);
        let artifact = format!(r#"{{"blobs":[{}]}}"#, descriptor("b"));
        let media_type = "application/vnd.oci.artifact.manifest.v1+json";
        let children = parse_manifest(Some(media_type), artifact.as_bytes()).expect("an artifact");
        assert_eq!(names(&children.layers), ["t/b"]);
    }

    #[test]
    fn unknown_types_and_shapes_are_leaves() {
        let index = format!(r#"{{"manifests":[{}]}}"#, descriptor("m"));
        let leaf = Ok(Children::default());
        assert_eq!(parse_manifest(Some("application/octet-stream"), index.as_bytes()), leaf);
        assert_eq!(parse_manifest(Some("application/octet-stream"), b"\0not json"), leaf);
        for odd in [r#"{"manifests":{}}"#, r#"{"layers":[]}"#, r#"{"config":7,"layers":[]}"#, "{}"] {
            assert_eq!(parse_manifest(None, odd.as_bytes()), leaf, "{odd}");
        }
    }

    #[test]
    fn malformed_json_is_an_error() {
        for odd in ["", "[]", "7", "null", "{", "{}{}", "\u{0}", r#"{"layers":[}"#, r#"{"a":1,}"#] {
            let parsed = parse_manifest(Some(MANIFEST), odd.as_bytes());
            assert!(matches!(parsed, Err(ManifestError::NotJson { .. })), "{odd}");
            assert_eq!(media_type_of(odd.as_bytes()), None, "{odd}");
        }
        let deep = format!(r#"{{"x":{}"#, "[".repeat(100_000));
        assert!(matches!(parse_manifest(None, deep.as_bytes()), Err(ManifestError::NotJson { .. })));
    }

    #[test]
    fn size_is_bounded() {
        let sized = |size: u64| {
            let mut json = b"{}".to_vec();
            json.resize(usize::try_from(size).expect("fits"), b' ');
            parse_manifest(Some(MANIFEST), &json)
        };
        assert_eq!(sized(MANIFEST_SIZE_MAX), Ok(Children::default()));
        assert_eq!(sized(MANIFEST_SIZE_MAX + 1), Err(ManifestError::TooLarge));
    }

    #[test]
    fn children_are_bounded() {
        for (count, truncated) in [(CHILDREN_MAX, false), (CHILDREN_MAX + 1, true)] {
            let json = format!(r#"{{"manifests":[{}]}}"#, vec![descriptor("m"); count].join(","));
            let children = parse_manifest(Some(INDEX), json.as_bytes()).expect("an index");
            assert_eq!((children.manifests.len(), children.truncated), (CHILDREN_MAX, truncated));
        }
    }

    #[test]
    fn malformed_descriptors_are_skipped_and_counted() {
        let json = format!(
            r#"{{"config":{{"digest":"md5:0"}},"layers":[7,null,[],"x",{{}},{{"digest":"sha256:00"}},{},
               {{"digest":"{}","size":-1,"mediaType":9}}]}}"#,
            descriptor("l"),
            digest("bare"),
        );
        let children = parse_manifest(Some(MANIFEST), json.as_bytes()).expect("a manifest");
        assert_eq!(children.config, None);
        assert_eq!(names(&children.layers), ["t/l", ""]);
        assert_eq!(children.layers[1].size, 0);
        assert_eq!(children.malformed, 7);
    }

    #[test]
    fn own_media_type_is_served_if_it_makes_a_header() {
        let own = |text: &str| media_type_of(format!(r#"{{"manifests":[],"mediaType":{text}}}"#).as_bytes());
        assert_eq!(own(r#""application/x""#).as_deref(), Some("application/x"));
        assert_eq!(own(r#""text/x; a=b""#).as_deref(), Some("text/x; a=b"));
        let longest = "a".repeat(MEDIA_TYPE_BYTES_MAX);
        assert_eq!(own(&format!(r#""{longest}""#)), Some(longest.clone()));
        for odd in [r#""""#, "7", "null", r#""a\nb""#, r#""é""#, r#"" a""#, &format!(r#""{longest}a""#)] {
            assert_eq!(own(odd).as_deref(), Some(INDEX), "{odd}");
        }
    }

    #[test]
    fn shape_tells_the_media_type() {
        assert_eq!(media_type_of(br#"{"manifests":[]}"#).as_deref(), Some(INDEX));
        assert_eq!(media_type_of(br#"{"config":{},"layers":[]}"#).as_deref(), Some(MANIFEST));
        assert_eq!(media_type_of(br#"{"layers":[]}"#), None);
        assert_eq!(media_type_of(b"{}"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_manifest(None, &bytes);
            let _ = media_type_of(&bytes);
        }

        #[test]
        fn any_json_like_text_is_a_value_or_an_error(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "{", "}", "[", "]", ",", ":", "\"layers\"", "\"config\"", "\"manifests\"", "\"digest\"",
                    "\"size\"", "1", "null", "\"mediaType\"",
                ]),
                0..24,
            ),
        ) {
            let text = parts.concat();
            let _ = parse_manifest(Some(INDEX), text.as_bytes());
            let _ = media_type_of(text.as_bytes());
        }
    }
}
