//! What can be unusual about an image. Only words; nothing is ever refused for them.

use crate::oci::Digest;

/// What is unusual; the order is that of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    ManifestNotJson,
    ManifestTooLarge,
    IndexCycle,
    TooDeep,
    TooManyChildren,
    Unreadable,
    LayerMediaType,
    ConfigTooLarge,
    NameUnparsable,
    TooManyImages,
    TooManyContents,
}

impl Reason {
    /// The word in notices and metric labels.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::ManifestNotJson => "manifest_not_json",
            Self::ManifestTooLarge => "manifest_too_large",
            Self::IndexCycle => "index_cycle",
            Self::TooDeep => "too_deep",
            Self::TooManyChildren => "too_many_children",
            Self::Unreadable => "unreadable",
            Self::LayerMediaType => "layer_media_type",
            Self::ConfigTooLarge => "config_too_large",
            Self::NameUnparsable => "name_unparsable",
            Self::TooManyImages => "too_many_images",
            Self::TooManyContents => "too_many_contents",
        }
    }

    /// Whether part of the image cannot be walked; else it is merely unusual.
    pub(super) const fn is_trouble(self) -> bool {
        match self {
            Self::ManifestNotJson
            | Self::ManifestTooLarge
            | Self::IndexCycle
            | Self::TooDeep
            | Self::TooManyChildren
            | Self::Unreadable => true,
            Self::LayerMediaType
            | Self::ConfigTooLarge
            | Self::NameUnparsable
            | Self::TooManyImages
            | Self::TooManyContents => false,
        }
    }
}

/// Something unusual about an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) reason: Reason,
    /// The content in question.
    pub(super) digest: Digest,
    /// More, for a person.
    pub(super) detail: String,
}
