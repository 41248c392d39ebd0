//! Images made by hand: random layers (gzip would hide the bytes), any shape, any media type.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::REGISTRY;
use crate::process::run;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// tar pads everything to this.
const TAR_BLOCK_BYTES: usize = 512;

/// Every layer ever made by this process differs, so that nothing is shared unless a test shares it.
static SEED: AtomicU64 = AtomicU64::new(1);

/// What to build. Start from [`ImageSpec::new`] and change what the test is about.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// Repository without the registry, `team/app`.
    pub repository: String,
    pub tag: Option<String>,
    /// Bytes of random data in each layer; the tar around it adds up to 2 KiB.
    pub layers: Vec<u64>,
    /// A static program that is run, in a last layer of its own. Without one there is nothing to run.
    pub program: Option<PathBuf>,
    /// An index with a manifest for this machine and one for another architecture, or a lone manifest.
    pub index: bool,
    /// Media types of layers, config, manifest and index, to be odd with.
    pub layer_type: String,
    pub config_type: String,
    pub manifest_type: String,
    pub index_type: String,
    /// Replaces the config's content (`{}`, an SBOM, not even JSON).
    pub config: Option<Vec<u8>>,
    /// Replaces the manifest's content wholesale.
    pub manifest: Option<Vec<u8>>,
}

impl ImageSpec {
    /// A multi-architecture image `registry.test/REPOSITORY:TAG` with layers of these sizes.
    #[must_use]
    pub fn new(repository: &str, tag: &str, layers: &[u64]) -> Self {
        Self {
            repository: repository.to_owned(),
            tag: Some(tag.to_owned()),
            layers: layers.to_vec(),
            program: None,
            index: true,
            layer_type: LAYER.to_owned(),
            config_type: CONFIG.to_owned(),
            manifest_type: MANIFEST.to_owned(),
            index_type: INDEX.to_owned(),
            config: None,
            manifest: None,
        }
    }

    /// The same without an index: the tag names the manifest.
    #[must_use]
    pub fn single(mut self) -> Self {
        self.index = false;
        self
    }
}

/// One piece of content.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: String,
    pub size: u64,
    pub media_type: String,
    /// Indexes count too: whatever a registry keeps under `manifests`.
    pub is_manifest: bool,
    pub path: PathBuf,
}

impl Blob {
    /// The digest without its algorithm: the file's name in containerd's content directory.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.digest.trim_start_matches("sha256:")
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// An image that has been built.
#[derive(Clone, Debug)]
pub struct Image {
    pub repository: String,
    pub tag: Option<String>,
    /// What the tag names: the index, or the manifest.
    pub digest: String,
    /// What a node of this architecture needs: index, manifest, config, layers.
    pub needed: Vec<Blob>,
    /// All of it, the other architecture too.
    pub blobs: Vec<Blob>,
    /// Layers of this architecture in order.
    pub layers: Vec<Blob>,
    layout: PathBuf,
}

impl Image {
    /// Builds an image as an OCI layout in a new directory under `parent`.
    pub(crate) fn build(parent: &Path, spec: &ImageSpec) -> Self {
        let n = SEED.fetch_add(1, Ordering::Relaxed);
        let layout = parent.join(format!("image-{n}"));
        let store = layout.join("blobs/sha256");
        fs::create_dir_all(&store).expect("the cluster's directory is ours");

        let (manifest, layers, mut needed) = build_platform(&store, spec, &spec.layers, architecture());
        let mut blobs = needed.clone();
        let mut target = manifest.clone();
        if spec.index {
            let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
            let (foreign, _, foreign_blobs) = build_platform(&store, spec, &[64 * 1024], other);
            let entry = |blob: &Blob, architecture: &str| {
                let mut descriptor = blob.descriptor();
                descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
                descriptor
            };
            let manifests = [entry(&manifest, architecture()), entry(&foreign, other)];
            let index = json!({"schemaVersion": 2, "mediaType": spec.index_type, "manifests": manifests});
            let index = store_bytes(&store, index.to_string().as_bytes(), &spec.index_type, true);
            blobs.extend(foreign_blobs);
            blobs.push(index.clone());
            needed.push(index.clone());
            target = index;
        }
        let mut entry = target.descriptor();
        if let Some(tag) = &spec.tag {
            let name = format!("{REGISTRY}/{}:{tag}", spec.repository);
            entry["annotations"] =
                json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
        }
        write(
            &layout.join("index.json"),
            json!({"schemaVersion": 2, "manifests": [entry]}).to_string().as_bytes(),
        );
        write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
        Self {
            repository: spec.repository.clone(),
            tag: spec.tag.clone(),
            digest: target.digest,
            needed,
            blobs,
            layers,
            layout,
        }
    }

    /// Reads an archive that holds an OCI layout of one index whose manifests are for one platform each.
    pub(crate) fn from_archive(parent: &Path, archive: &Path, repository: &str, tag: &str) -> Self {
        let layout = parent.join(format!("image-{}", SEED.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&layout).expect("the cluster's directory is ours");
        let mut command = Command::new("tar");
        command.arg("-C").arg(&layout).arg("-xf").arg(archive);
        run(command).expect("the archive is a tar");
        let store = layout.join("blobs/sha256");
        let read = |path: &Path| -> Value {
            let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let blob = |descriptor: &Value, is_manifest| {
            let text = |name: &str| descriptor[name].as_str().expect("descriptors are complete").to_owned();
            let (digest, size) =
                (text("digest"), descriptor["size"].as_u64().expect("descriptors are complete"));
            let path = store.join(digest.trim_start_matches("sha256:"));
            Blob { digest, size, media_type: text("mediaType"), is_manifest, path }
        };
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let index = blob(&read(&layout.join("index.json"))["manifests"][0], true);
        let (mut needed, mut blobs, mut layers) = (vec![index.clone()], vec![index.clone()], Vec::new());
        for entry in list(&read(&index.path)["manifests"]) {
            let manifest = blob(&entry, true);
            let content = read(&manifest.path);
            let own: Vec<Blob> = list(&content["layers"]).iter().map(|layer| blob(layer, false)).collect();
            let mut all = vec![manifest, blob(&content["config"], false)];
            all.extend(own.iter().cloned());
            if entry["platform"]["architecture"] == architecture() {
                needed.extend(all.iter().cloned());
                layers = own;
            }
            blobs.extend(all);
        }
        let (repository, tag) = (repository.to_owned(), Some(tag.to_owned()));
        Self { repository, tag, digest: index.digest, needed, blobs, layers, layout }
    }

    /// `registry.test/REPOSITORY:TAG`.
    ///
    /// # Panics
    /// If the image has no tag.
    #[must_use]
    pub fn by_tag(&self) -> String {
        let tag = self.tag.as_ref().expect("this image was built without a tag");
        format!("{REGISTRY}/{}:{tag}", self.repository)
    }

    /// `registry.test/REPOSITORY@DIGEST`.
    #[must_use]
    pub fn by_digest(&self) -> String {
        format!("{REGISTRY}/{}@{}", self.repository, self.digest)
    }

    /// The path a mirror is asked for one of the image's blobs.
    #[must_use]
    pub fn blob_path(&self, blob: &Blob) -> String {
        let kind = if blob.is_manifest { "manifests" } else { "blobs" };
        format!("/v2/{}/{kind}/{}?ns={REGISTRY}", self.repository, blob.digest)
    }

    /// The path a mirror is asked to resolve the tag.
    #[must_use]
    pub fn tag_path(&self) -> String {
        let tag = self.tag.as_deref().unwrap_or("latest");
        format!("/v2/{}/manifests/{tag}?ns={REGISTRY}", self.repository)
    }

    /// Bytes a node has to fetch.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.needed.iter().map(|blob| blob.size).sum()
    }

    /// The layout as a tar for `ctr images import`.
    #[must_use]
    pub fn archive(&self) -> PathBuf {
        let archive = self.layout.with_extension("tar");
        let mut command = Command::new("tar");
        command.arg("-C").arg(&self.layout).arg("-cf").arg(&archive).arg(".");
        run(command).expect("tar archives a directory");
        archive
    }
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn build_platform(
    store: &Path,
    spec: &ImageSpec,
    layer_sizes: &[u64],
    architecture: &str,
) -> (Blob, Vec<Blob>, Vec<Blob>) {
    let program = spec.program.as_ref().map(|program| store_program(store, program));
    let layers: Vec<Blob> = store_layers(store, layer_sizes)
        .into_iter()
        .chain(program)
        .map(|b| Blob { media_type: spec.layer_type.clone(), ..b })
        .collect();
    let program = spec.program.as_deref().and_then(Path::file_name);
    let run =
        program.map_or_else(|| json!({}), |name| json!({"Entrypoint": [format!("/{}", name.display())]}));
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = spec.config.clone().unwrap_or_else(|| config.to_string().into_bytes());
    let config = store_bytes(store, &config, &spec.config_type, false);
    let descriptors: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": spec.manifest_type,
        "config": config.descriptor(), "layers": descriptors,
    });
    let manifest = spec.manifest.clone().unwrap_or_else(|| manifest.to_string().into_bytes());
    let manifest = store_bytes(store, &manifest, &spec.manifest_type, true);
    let mut all = layers.clone();
    all.extend([config, manifest.clone()]);
    (manifest, layers, all)
}

fn store_bytes(store: &Path, bytes: &[u8], media_type: &str, is_manifest: bool) -> Blob {
    let digest = digest_of(bytes);
    let path = store.join(digest.trim_start_matches("sha256:"));
    write(&path, bytes);
    Blob { digest, size: bytes.len() as u64, media_type: media_type.to_owned(), is_manifest, path }
}

/// Writes layers and names them by digest; `sha256sum` hashes them all at once, much faster than a debug
/// build of this crate would.
fn store_layers(store: &Path, sizes: &[u64]) -> Vec<Blob> {
    if sizes.is_empty() {
        return Vec::new();
    }
    let mut sum = Command::new("sha256sum");
    let mut files = Vec::new();
    for size in sizes {
        let seed = SEED.fetch_add(1, Ordering::Relaxed);
        let path = store.join(format!("layer-{seed}"));
        write_layer(&path, *size, seed);
        sum.arg(&path);
        files.push(path);
    }
    let sums = run(sum).expect("sha256sum reads what was just written");
    let named = files.iter().zip(sums.lines()).map(|(file, line)| {
        let hex = line.split_whitespace().next().expect("a sum begins the line");
        let path = store.join(hex);
        fs::rename(file, &path).expect("the directory is ours");
        let size = fs::metadata(&path).expect("just renamed").len();
        Blob { digest: format!("sha256:{hex}"), size, media_type: LAYER.to_owned(), is_manifest: false, path }
    });
    named.collect()
}

/// A layer with one program.
fn store_program(store: &Path, program: &Path) -> Blob {
    let place = program.parent().zip(program.file_name());
    let (dir, name) = place.unwrap_or_else(|| panic!("{} is no file", program.display()));
    let archive = store.join("program");
    let mut command = Command::new("tar");
    command.arg("-C").arg(dir).arg("-cf").arg(&archive).arg(name);
    run(command).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let bytes = fs::read(&archive).expect("just written");
    fs::remove_file(&archive).expect("just written");
    store_bytes(store, &bytes, LAYER, false)
}

/// A tar with one file of random bytes.
fn write_layer(path: &Path, size: u64, seed: u64) {
    let mut header = [0_u8; TAR_BLOCK_BYTES];
    let name = format!("data-{seed}");
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());

    let mut file = BufWriter::with_capacity(256 * 1024, File::create(path).expect("the directory is ours"));
    let mut put = |bytes: &[u8]| file.write_all(bytes).expect("the disk has room");
    put(&header);
    let mut random = Xorshift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut left = size;
    let mut chunk = [0_u8; 64 * 1024];
    while left > 0 {
        random.fill(&mut chunk);
        let take = left.min(chunk.len() as u64);
        put(&chunk[..usize::try_from(take).expect("at most a chunk")]);
        left -= take;
    }
    let padding = (TAR_BLOCK_BYTES as u64 - size % TAR_BLOCK_BYTES as u64) % TAR_BLOCK_BYTES as u64;
    put(&vec![0; usize::try_from(padding).expect("less than a block")]);
    put(&[0; 2 * TAR_BLOCK_BYTES]);
    file.flush().expect("the disk has room");
}

/// Not good randomness, but incompressible and fast in a debug build.
struct Xorshift(u64);

impl Xorshift {
    fn fill(&mut self, chunk: &mut [u8]) {
        for word in chunk.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

/// `sha256:…` of some bytes.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
