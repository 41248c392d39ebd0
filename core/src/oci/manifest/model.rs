//! Odd documents beside the plain way to read them, which keeps all of them in memory.

use proptest::{
    collection::vec,
    option,
    prelude::{BoxedStrategy, Just, Strategy, any, prop_assert_eq, prop_oneof, proptest},
    sample::select,
};
use serde_json::{Map, Value as Json, json};

use super::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const NAMES: [&str; 9] =
    ["mediaType", "digest", "size", "manifests", "config", "layers", "blobs", "annotations", "Digest"];

fn text() -> impl Strategy<Value = String> {
    let valid = |number: u8| Digest::sha256_of(&[number]).to_string();
    prop_oneof![
        4 => (0..4_u8).prop_map(valid),
        1 => Just(Digest::Sha512([7; 64]).to_string()),
        1 => select(&[INDEX, MANIFEST, "text/plain", "", "sha256:00", "é", " a"]).prop_map(str::to_owned),
        1 => select(&[255_usize, 256]).prop_map(|length| "a".repeat(length)),
    ]
}

fn scalar() -> impl Strategy<Value = Json> {
    prop_oneof![
        4 => text().prop_map(Json::from),
        1 => any::<u64>().prop_map(Json::from),
        1 => any::<i64>().prop_map(Json::from),
        1 => Just(json!(1.5)),
        1 => Just(Json::Null),
        1 => Just(json!(true)),
    ]
}

/// Any value, of any depth, with more of the names that matter than chance would give.
fn value() -> BoxedStrategy<Json> {
    let name = || select(&NAMES).prop_map(str::to_owned);
    let any_value = scalar().prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Json::from),
            vec((name(), inner), 0..4).prop_map(|fields| Json::Object(Map::from_iter(fields))),
        ]
    });
    any_value.boxed()
}

fn descriptor() -> impl Strategy<Value = Json> {
    let fields = (option::weighted(0.9, scalar()), option::weighted(0.8, scalar()), option::of(value()));
    fields.prop_map(|(digest, media_type, size)| {
        let fields = [("digest", digest), ("mediaType", media_type), ("size", size)];
        Json::Object(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
    })
}

fn document() -> impl Strategy<Value = Json> {
    let list = || {
        let item = prop_oneof![4 => descriptor(), 1 => value()];
        prop_oneof![6 => vec(item, 0..5).prop_map(Json::from), 1 => value()]
    };
    let config = prop_oneof![4 => descriptor(), 1 => value()];
    let maybe = |part: BoxedStrategy<Json>| option::weighted(0.6, part);
    let parts = (
        option::weighted(0.4, scalar()),
        maybe(list().boxed()),
        maybe(config.boxed()),
        maybe(list().boxed()),
        maybe(list().boxed()),
        option::of(value()),
    );
    parts.prop_map(|(media_type, manifests, config, layers, blobs, other)| {
        let names = ["mediaType", "manifests", "config", "layers", "blobs", "annotations"];
        let parts = names.into_iter().zip([media_type, manifests, config, layers, blobs, other]);
        Json::Object(parts.filter_map(|(name, part)| Some((name.to_owned(), part?))).collect())
    })
}

fn naive_descriptor(value: &Json) -> Option<Descriptor> {
    let digest = value.get("digest")?.as_str()?.parse().ok()?;
    let media_type = value.get("mediaType").and_then(Json::as_str).unwrap_or_default();
    let media_type = if media_type.len() > 255 { "" } else { media_type };
    let size = value.get("size").and_then(Json::as_u64).unwrap_or(0);
    Some(Descriptor { media_type: media_type.to_owned(), digest, size })
}

/// The documents that types name here: `None` for any other type.
fn is_index(media_type: &str) -> Option<bool> {
    [(INDEX, true), (MANIFEST, false)]
        .into_iter()
        .find(|(known, _)| *known == media_type)
        .map(|(_, index)| index)
}

fn naive_children(media_type: Option<&str>, document: &Json) -> Children {
    let is_list = |name: &str| document.get(name).is_some_and(Json::is_array);
    let by_shape = || {
        let is_manifest = is_list("layers") && document.get("config").is_some_and(Json::is_object);
        if is_list("manifests") { Some(true) } else { is_manifest.then_some(false) }
    };
    let own = || document.get("mediaType").and_then(Json::as_str).and_then(is_index);
    let kind = match media_type {
        Some(media_type) => is_index(media_type),
        None => own().or_else(by_shape),
    };
    let mut children = Children::default();
    let mut malformed = 0;
    let mut list = |name: &str| -> Vec<Descriptor> {
        let items = document.get(name).and_then(Json::as_array).cloned().unwrap_or_default();
        malformed += items.iter().filter(|item| naive_descriptor(item).is_none()).count();
        items.iter().filter_map(naive_descriptor).collect()
    };
    match kind {
        Some(true) => children.manifests = list("manifests"),
        Some(false) => {
            children.layers = [list("layers"), list("blobs")].concat();
            children.config = document.get("config").and_then(naive_descriptor);
            malformed += usize::from(document.get("config").is_some() && children.config.is_none());
        }
        None => {}
    }
    children.malformed = malformed;
    children
}

proptest! {
    #[test]
    fn what_a_document_points_to_is_what_a_plain_reader_finds(
        document in prop_oneof![6 => document().boxed(), 1 => value()],
        media_type in option::of(select(&[INDEX, MANIFEST, "application/octet-stream"])),
    ) {
        let bytes = document.to_string();
        let parsed = parse_manifest(media_type, bytes.as_bytes());
        if document.is_object() || media_type == Some("application/octet-stream") {
            prop_assert_eq!(parsed, Ok(naive_children(media_type, &document)), "{}", bytes);
        } else {
            let is_refused = matches!(parsed, Err(ManifestError::NotJson { .. }));
            prop_assert_eq!(is_refused, true, "{}", bytes);
        }
    }
}
