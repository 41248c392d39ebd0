//! Reads containerd's events. Pure.

use containerd_client::{
    events::ContentCreate,
    services::v1::{ImageCreate, ImageDelete},
    types::Envelope,
};
use prost::Message;
use spegel_core::oci::Digest;

use super::listing::is_image_name;

const IMAGE_CREATE: &str = "/images/create";
const IMAGE_UPDATE: &str = "/images/update";
const IMAGE_DELETE: &str = "/images/delete";
/// Sent by 2.1 and later only.
const CONTENT_CREATE: &str = "/content/create";

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// An image was created or updated. Events do not say what it consists of.
    Image(String),
    ImageDeleted(String),
    Committed(Digest),
}

/// The subscription's filters; an event that one of them lets through is sent.
pub(super) fn filters(namespace: &str) -> Vec<String> {
    [IMAGE_CREATE, IMAGE_UPDATE, IMAGE_DELETE, CONTENT_CREATE]
        .iter()
        .map(|topic| format!("topic=={topic:?},namespace=={namespace:?}"))
        .collect()
}

/// What an event says; `None` if it is of no interest or makes no sense.
///
/// The topic tells what the message is, because its type URL differs between generations of
/// containerd.
pub(super) fn interpret(envelope: Envelope, namespace: &str) -> Option<Change> {
    if envelope.namespace != namespace {
        return None;
    }
    let bytes = envelope.event?.value;
    match envelope.topic.as_str() {
        // Create and update have the same fields.
        IMAGE_CREATE | IMAGE_UPDATE => {
            let name = ImageCreate::decode(bytes.as_slice()).ok()?.name;
            is_image_name(&name).then_some(Change::Image(name))
        }
        IMAGE_DELETE => {
            let name = ImageDelete::decode(bytes.as_slice()).ok()?.name;
            is_image_name(&name).then_some(Change::ImageDeleted(name))
        }
        CONTENT_CREATE => {
            let digest = ContentCreate::decode(bytes.as_slice()).ok()?.digest;
            digest.parse().ok().map(Change::Committed)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use prost_types::Any;

    #[test]
    fn image_events_name_the_image() {
        let created = ImageCreate { name: "registry.test/app:1".to_owned(), ..Default::default() };
        let image = Some(Change::Image("registry.test/app:1".to_owned()));
        assert_eq!(interpret(envelope("k8s.io", IMAGE_CREATE, &created), "k8s.io"), image);
        assert_eq!(interpret(envelope("k8s.io", IMAGE_UPDATE, &created), "k8s.io"), image);
        let deleted = ImageDelete { name: "registry.test/app:1".to_owned() };
        assert_eq!(
            interpret(envelope("k8s.io", IMAGE_DELETE, &deleted), "k8s.io"),
            Some(Change::ImageDeleted("registry.test/app:1".to_owned()))
        );
    }

    #[test]
    fn content_event_is_a_commit() {
        let digest = Digest::sha256_of(b"layer");
        let created = ContentCreate { digest: digest.to_string(), size: 5 };
        assert_eq!(
            interpret(envelope("k8s.io", CONTENT_CREATE, &created), "k8s.io"),
            Some(Change::Committed(digest))
        );
    }

    #[test]
    fn events_of_other_namespaces_and_topics_are_ignored() {
        let deleted = ImageDelete { name: "registry.test/app:1".to_owned() };
        assert_eq!(interpret(envelope("moby", IMAGE_DELETE, &deleted), "k8s.io"), None);
        assert_eq!(interpret(envelope("", IMAGE_DELETE, &deleted), "k8s.io"), None);
        assert_eq!(interpret(envelope("k8s.io", "/tasks/exit", &deleted), "k8s.io"), None);
    }

    #[test]
    fn senseless_events_are_ignored() {
        let nameless = ImageDelete { name: String::new() };
        assert_eq!(interpret(envelope("k8s.io", IMAGE_DELETE, &nameless), "k8s.io"), None);
        let odd = ContentCreate { digest: "md5:x".to_owned(), size: -1 };
        assert_eq!(interpret(envelope("k8s.io", CONTENT_CREATE, &odd), "k8s.io"), None);
        for topic in [IMAGE_CREATE, IMAGE_UPDATE, IMAGE_DELETE, CONTENT_CREATE] {
            let mut garbage = envelope("k8s.io", topic, &nameless);
            garbage.event = Some(Any { type_url: String::new(), value: vec![0xff; 16] });
            assert_eq!(interpret(garbage.clone(), "k8s.io"), None);
            garbage.event = None;
            assert_eq!(interpret(garbage, "k8s.io"), None);
        }
    }

    #[test]
    fn filters_select_topic_and_namespace() {
        assert_eq!(filters("k8s.io")[0], r#"topic=="/images/create",namespace=="k8s.io""#);
        assert_eq!(filters("k8s.io").len(), 4);
    }

    fn envelope(namespace: &str, topic: &str, event: &impl Message) -> Envelope {
        Envelope {
            timestamp: None,
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(Any { type_url: String::new(), value: event.encode_to_vec() }),
        }
    }
}
