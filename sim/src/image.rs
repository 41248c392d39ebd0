//! Images of the simulator: a manifest, a config and layers, all in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use bytes::Bytes;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use spegel_core::oci::{Descriptor, Digest};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Longest hollow layer.
const HOLLOW_LAYER_MAX: usize = 64 << 20;

/// A layer whose bytes nobody looks at, known by its name: only the light driver takes it.
#[derive(Clone, Debug)]
pub struct HollowLayer {
    /// Equal names are the same layer.
    pub name: String,
    /// Its size, at most 64 MiB.
    pub bytes: usize,
}

impl HollowLayer {
    /// Zeros, which all such layers share, under the digest of the name.
    fn content(&self) -> (Digest, Bytes) {
        static ZEROS: OnceLock<Bytes> = OnceLock::new();
        let zeros = ZEROS.get_or_init(|| vec![0; HOLLOW_LAYER_MAX].into());
        (Digest::sha256_of(self.name.as_bytes()), zeros.slice(..self.bytes))
    }
}

/// An image as a registry has it.
#[derive(Clone, Debug)]
pub struct Image {
    /// `registry/repository:tag`.
    pub name: String,
    /// Its manifest.
    pub manifest: Descriptor,
    /// Config and layers, in the order containerd asks for them.
    pub blobs: Vec<Descriptor>,
    pub(crate) contents: BTreeMap<Digest, Bytes>,
    /// Content whose file cannot be read.
    pub(crate) unreadable: BTreeSet<Digest>,
}

impl Image {
    /// An image of random layers, each `layer_bytes` long. Equal arguments give equal images.
    #[must_use]
    pub fn new(name: &str, layers: usize, layer_bytes: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self::of_layers(name, (0..layers).map(|_| (0..layer_bytes).map(|_| rng.random()).collect()))
    }

    /// An image of these layers, which other images may have too.
    #[must_use]
    pub fn of_layers(name: &str, layers: impl IntoIterator<Item = Bytes>) -> Self {
        Self::of(name, layers.into_iter().map(|content| (Digest::sha256_of(&content), content)))
    }

    /// An image of layers that it may share with others, whose bytes do not matter.
    #[must_use]
    pub fn hollow(name: &str, layers: &[HollowLayer]) -> Self {
        Self::of(name, layers.iter().map(HollowLayer::content))
    }

    fn of(name: &str, layers: impl Iterator<Item = (Digest, Bytes)>) -> Self {
        let mut contents = BTreeMap::new();
        let mut add = |media_type: &str, digest: Digest, content: Bytes| {
            let size = content.len() as u64;
            contents.insert(digest, content);
            Descriptor { media_type: media_type.to_owned(), digest, size }
        };
        let config = Bytes::from(format!(r#"{{"architecture":"amd64","name":"{name}"}}"#));
        let mut blobs = vec![add(CONFIG_TYPE, Digest::sha256_of(&config), config)];
        blobs.extend(layers.map(|(digest, content)| add(LAYER_TYPE, digest, content)));
        let described: Vec<String> = blobs.iter().map(describe).collect();
        let manifest = Bytes::from(format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{},"layers":[{}]}}"#,
            described[0],
            described[1..].join(",")
        ));
        let manifest = add(MANIFEST_TYPE, Digest::sha256_of(&manifest), manifest);
        Self { name: name.to_owned(), manifest, blobs, contents, unreadable: BTreeSet::new() }
    }

    /// The same, but its manifest is of a media type that nobody knows.
    #[must_use]
    pub fn with_unknown_media_type(mut self) -> Self {
        self.manifest.media_type = "application/vnd.example.unheard-of.v7+json".to_owned();
        self
    }

    /// The same, but its manifest is no JSON.
    #[must_use]
    pub fn with_garbled_manifest(mut self) -> Self {
        let garbled = Bytes::from(format!("{{{{ {}", self.name));
        self.contents.remove(&self.manifest.digest);
        self.manifest.digest = Digest::sha256_of(&garbled);
        self.manifest.size = garbled.len() as u64;
        self.contents.insert(self.manifest.digest, garbled);
        self
    }

    /// The same, but the file of its manifest cannot be read where it is preloaded.
    #[must_use]
    pub fn with_unreadable_manifest(mut self) -> Self {
        self.unreadable.insert(self.manifest.digest);
        self
    }

    /// Registry, repository and tag.
    #[must_use]
    pub fn parts(&self) -> (&str, &str, &str) {
        let (registry, rest) = self.name.split_once('/').expect("image names have a registry");
        let (repository, tag) = rest.rsplit_once(':').expect("image names have a tag");
        (registry, repository, tag)
    }

    /// The content of a digest, as the registry would give it.
    #[must_use]
    pub fn content(&self, digest: &Digest) -> Option<&Bytes> {
        self.contents.get(digest)
    }

    /// Everything a node has once it has pulled the image.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        self.contents.keys().copied().collect()
    }
}

fn describe(descriptor: &Descriptor) -> String {
    format!(
        r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#,
        descriptor.media_type, descriptor.digest, descriptor.size
    )
}
