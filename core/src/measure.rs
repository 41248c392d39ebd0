//! Decides what a live measurement asks this node's own mirror for, and when it has seen enough. Asks nobody:
//! the debug page does, as containerd would.

use std::time::Duration;

use crate::{
    ByteRange,
    oci::{Children, Digest},
};

/// Most bytes taken of one blob. Fewer and the time to the first byte is all that is measured; more and one
/// layer uses up what is to be had.
pub const BLOB_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Most bytes of blobs taken by one measurement. Fewer and its figures are those of a connection that has just
/// begun; more and pulls feel it.
pub const TOTAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Most blobs asked for. Fewer and large layers behind small ones are not reached; more is a flood of requests.
const BLOBS_MAX: usize = 32;

/// Most manifests of an index that are tried. As a cluster has the images of its own platforms only, the first
/// that is there is measured. Fewer and one of a rare platform is not found; more asks for nothing.
pub const MANIFESTS_TRIED_MAX: usize = 16;

/// Longest measurement. Shorter and a slow link is never measured; longer and the browser gives up on the page.
pub const TIME_MAX: Duration = Duration::from_secs(20);

/// A part of a blob to ask for. Never the whole by a request without range: the mirror would wait in vain for
/// containerd to commit it, and doubt who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The blob.
    pub digest: Digest,
    /// Its bytes.
    pub range: ByteRange,
}

/// What to ask for of an image: its config and layers from their beginnings, in the order of the manifest.
#[must_use]
pub fn parts(children: &Children) -> Vec<Part> {
    let mut left = TOTAL_BYTES_MAX;
    let mut parts = Vec::new();
    for blob in children.config.iter().chain(&children.layers).take(BLOBS_MAX) {
        let bytes = blob.size.min(BLOB_BYTES_MAX).min(left);
        if bytes > 0 {
            left -= bytes;
            parts.push(Part { digest: blob.digest, range: ByteRange::FromTo(0, bytes - 1) });
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Descriptor;

    fn blob(number: u64, size: u64) -> Descriptor {
        let digest = Digest::sha256_of(&number.to_be_bytes());
        Descriptor { media_type: String::new(), digest, size }
    }

    fn lengths(children: &Children) -> Vec<u64> {
        let length = |part: &Part| match part.range {
            ByteRange::FromTo(0, last) => last + 1,
            ByteRange::FromTo(..) | ByteRange::From(_) | ByteRange::Suffix(_) => {
                panic!("not its beginning: {part:?}")
            }
        };
        parts(children).iter().map(length).collect()
    }

    #[test]
    fn config_and_layers_are_asked_for_from_their_beginning() {
        let (config, layers) =
            (blob(0, 7), vec![blob(1, BLOB_BYTES_MAX), blob(2, BLOB_BYTES_MAX + 1), blob(3, 0)]);
        let children = Children { config: Some(config.clone()), layers, ..Children::default() };
        assert_eq!(lengths(&children), [7, BLOB_BYTES_MAX, BLOB_BYTES_MAX], "an empty blob has no range");
        assert_eq!(parts(&children)[0].digest, config.digest);
        assert!(lengths(&Children::default()).is_empty());
    }

    #[test]
    fn measurement_of_the_largest_image_is_bounded() {
        let layers: Vec<_> = (0..100).map(|number| blob(number, u64::MAX)).collect();
        let large = lengths(&Children { layers, ..Children::default() });
        assert_eq!(large.iter().sum::<u64>(), TOTAL_BYTES_MAX);
        let layers: Vec<_> = (0..100).map(|number| blob(number, 1)).collect();
        assert_eq!(lengths(&Children { layers, ..Children::default() }).len(), BLOBS_MAX);
    }
}
