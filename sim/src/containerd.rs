//! A containerd of the simulator's own: images and blobs in memory, and the inputs that the
//! real one would cause. Both drivers use it; whoever changes it passes on the news.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use spegel_core::{
    Input, Inspection, Key, ListedContent, ListedImage, Listing, ManifestRead, Output,
    oci::{Descriptor, Digest, parse_manifest},
};
use spegel_io::content::{Blob, ContentStore};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::image::Image;

/// How long containerd takes to answer anything.
pub const LATENCY: Duration = Duration::from_millis(1);

/// How long after it was committed pulled content gets the label that says where it came from.
pub(crate) const LABEL_LATENCY: Duration = Duration::from_millis(5);

/// One node's containerd. Clones are the same one; it outlives the mirror process.
#[derive(Clone, Debug, Default)]
pub struct Containerd(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    running: bool,
    images: BTreeMap<String, Descriptor>,
    blobs: BTreeMap<Digest, Bytes>,
    /// Those of both.
    keys: BTreeSet<Key>,
    /// Its `containerd.io/distribution.source` labels: registry and repository.
    sources: BTreeMap<Digest, BTreeSet<(String, String)>>,
    /// What pulls that are under way need, and how many of them.
    leases: BTreeMap<Digest, u32>,
    /// Content whose file cannot be read.
    unreadable: BTreeSet<Digest>,
    manifest_reads: u64,
    /// Whether a mirror is connected.
    connected: bool,
    /// Where the news goes, if the driver is one of tasks.
    events: Option<mpsc::Sender<Input>>,
    corrupt: bool,
    bytes_per_second: Option<u64>,
    bypasses_mirror: bool,
}

impl Containerd {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it: its socket accepts connections from here on.
    pub fn start(&self) {
        self.state().running = true;
    }

    /// Stops it, and says what a connected mirror notices.
    pub fn stop(&self) -> Vec<Input> {
        let mut state = self.state();
        state.running = false;
        let news = Input::ContainerdDisconnected { cause: "connection reset by peer".to_owned() };
        if std::mem::take(&mut state.connected) { vec![news] } else { Vec::new() }
    }

    /// The mirror's process ended: nobody listens.
    pub fn forget_mirror(&self) {
        let mut state = self.state();
        state.connected = false;
        state.events = None;
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state().running
    }

    /// Whether it has all of these.
    #[must_use]
    pub fn has(&self, digests: &[Digest]) -> bool {
        let state = self.state();
        digests.iter().all(|digest| state.blobs.contains_key(digest))
    }

    /// The keys of its content and images.
    #[must_use]
    pub fn keys(&self) -> BTreeSet<Key> {
        self.state().keys.clone()
    }

    /// Whether what is served of it has wrong bytes from now on.
    pub fn set_corrupt(&self, is_corrupt: bool) {
        self.state().corrupt = is_corrupt;
    }

    /// How fast it is read from now on; as fast as can be if `None`.
    pub fn set_speed(&self, bytes_per_second: Option<u64>) {
        self.state().bytes_per_second = bytes_per_second;
    }

    /// From now on its pulls go past the mirror, or no longer do.
    pub fn bypass_mirror(&self, bypasses: bool) {
        self.state().bypasses_mirror = bypasses;
    }

    /// Whether its pulls go past the mirror.
    #[must_use]
    pub fn bypasses_mirror(&self) -> bool {
        self.state().bypasses_mirror
    }

    /// How often manifests were read.
    #[must_use]
    pub fn manifest_reads(&self) -> u64 {
        self.state().manifest_reads
    }

    /// Commits a blob, and says what a connected mirror notices.
    pub fn store(&self, digest: Digest, content: Bytes) -> Vec<Input> {
        let mut state = self.state();
        state.put_blob(digest, content);
        if state.connected { vec![Input::BlobCommitted { digest }] } else { Vec::new() }
    }

    /// Labels pulled content with the repository that it came from.
    pub fn label(&self, digest: &Digest, image: &Image) {
        self.state().label(digest, image);
    }

    /// Puts an image there by hand, without a pull, and says what a connected mirror notices.
    pub fn sideload(&self, image: &Image) -> Vec<Input> {
        let contents = image.contents.iter();
        let news = contents.flat_map(|(digest, content)| self.store(*digest, content.clone()));
        let mut news: Vec<_> = news.collect();
        news.extend(self.name_image(&image.name, image.manifest.clone()));
        news
    }

    /// Has an image from the beginning: it was pulled before the scenario begins.
    pub fn preload(&self, image: &Image) {
        let mut state = self.state();
        for (digest, content) in &image.contents {
            state.put_blob(*digest, content.clone());
            state.label(digest, image);
        }
        state.unreadable.extend(image.unreadable.iter().copied());
        state.put_image(&image.name, image.manifest.clone());
    }

    /// A pull begins: none of this is garbage until [`Containerd::release`].
    pub fn lease(&self, image: &Image) {
        let mut state = self.state();
        for digest in image.contents.keys() {
            *state.leases.entry(*digest).or_default() += 1;
        }
    }

    /// A pull is over.
    pub fn release(&self, image: &Image) {
        let mut state = self.state();
        for digest in image.contents.keys() {
            if let Some(pulls) = state.leases.get_mut(digest) {
                *pulls = pulls.saturating_sub(1);
            }
        }
        state.leases.retain(|_, pulls| *pulls > 0);
    }

    /// Whether an image is there with all of its content.
    #[must_use]
    pub fn has_image(&self, image: &Image) -> bool {
        let state = self.state();
        state.running
            && state.images.get(&image.name).is_some_and(|target| target.digest == image.manifest.digest)
            && image.contents.keys().all(|digest| state.blobs.contains_key(digest))
    }

    /// Creates or updates an image, and says what a connected mirror notices.
    pub fn name_image(&self, name: &str, target: Descriptor) -> Vec<Input> {
        let mut state = self.state();
        state.put_image(name, target.clone());
        let image = ListedImage { name: name.to_owned(), target: Some(target) };
        if state.connected { vec![Input::ImageChanged(image)] } else { Vec::new() }
    }

    /// Deletes an image and of its content what no other image needs, and says what a connected
    /// mirror notices. Content that is being pulled is held by a lease and stays.
    pub fn delete_image(&self, name: &str) -> Vec<Input> {
        let mut state = self.state();
        let Some(target) = state.images.remove(name) else { return Vec::new() };
        state.keys.remove(&Key::of(name));
        let needed = state.images.values().flat_map(|target| state.tree(target));
        let needed: BTreeSet<_> = needed.chain(state.leases.keys().copied()).collect();
        let garbage: Vec<_> =
            state.tree(&target).into_iter().filter(|digest| !needed.contains(digest)).collect();
        let mut news = vec![Input::ImageDeleted { name: name.to_owned() }];
        for digest in garbage {
            state.blobs.remove(&digest);
            state.keys.remove(&Key::of_digest(&digest));
            state.sources.remove(&digest);
            news.push(Input::BlobRemoved { digest });
        }
        if state.connected { news } else { Vec::new() }
    }

    /// Passes news on to the mirror's task.
    pub async fn tell(&self, news: Vec<Input>) {
        let events = self.state().events.clone();
        let Some(events) = events else { return };
        for input in news {
            // The mirror has ended: nobody to tell.
            let _ = events.send(input).await;
        }
    }

    /// As [`Containerd::tell`], from outside of any task.
    pub fn tell_now(&self, news: Vec<Input>) {
        let events = self.state().events.clone();
        let Some(events) = events else { return };
        for input in news {
            // The mirror has ended, or has thousands of inputs before it: a resync will tell.
            let _ = events.try_send(input);
        }
    }

    /// The answer to an order of the core; `None` if it is for somebody else.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the node routes every order; these are ours")]
    pub fn answer(&self, order: &Output) -> Option<Input> {
        match order {
            Output::ConnectContainerd { .. } => Some(self.connect()),
            Output::ProbeContainerd { .. } => Some(self.probe()),
            Output::List { .. } => Some(self.list()),
            // The directory is told of by the news, as long as a mirror is connected.
            Output::WatchContent { .. } => Some(Input::ContentWatched),
            Output::Inspect { digest, .. } => {
                Some(Input::Inspected { digest: *digest, outcome: self.inspect(digest) })
            }
            Output::ReadManifest { digest, .. } => {
                Some(Input::ManifestRead { digest: *digest, outcome: self.read(digest) })
            }
            _ => None,
        }
    }

    /// Whether an order of the core is for containerd.
    #[must_use]
    pub const fn is_for(order: &Output) -> bool {
        matches!(
            order,
            Output::ConnectContainerd { .. }
                | Output::ProbeContainerd { .. }
                | Output::List { .. }
                | Output::Inspect { .. }
                | Output::ReadManifest { .. }
                | Output::WatchContent { .. }
        )
    }

    /// When an order fails that a hanging containerd never answers, and how; `None` if it is
    /// answered all the same, by the content directory.
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are not asked of its process")]
    pub fn unanswered(order: &Output) -> Option<(Duration, Input)> {
        let cause = "no answer".to_owned();
        match order {
            Output::ConnectContainerd { timeout } => {
                Some((*timeout, Input::ContainerdDisconnected { cause }))
            }
            Output::ProbeContainerd { timeout } => Some((*timeout, Input::ContainerdProbeFailed { cause })),
            Output::List { timeout } => Some((*timeout, Input::ListFailed { cause })),
            Output::Inspect { digest, timeout } => {
                let outcome = Inspection::Failed { cause };
                Some((*timeout, Input::Inspected { digest: *digest, outcome }))
            }
            _ => None,
        }
    }

    /// Carries out an order of the core by a task; `false` if it is for somebody else.
    pub fn perform(&self, order: &Output, inputs: &mpsc::Sender<Input>) -> bool {
        if !Self::is_for(order) {
            return false;
        }
        let (this, order, inputs) = (self.clone(), order.clone(), inputs.clone());
        tokio::spawn(async move {
            tokio::time::sleep(LATENCY).await;
            let Some(input) = this.answer(&order) else { return };
            if matches!(input, Input::ContainerdConnected { .. }) {
                this.state().events = Some(inputs.clone());
            }
            // The mirror has ended: nobody to tell.
            let _ = inputs.send(input).await;
        });
        true
    }

    fn connect(&self) -> Input {
        let mut state = self.state();
        if state.running {
            state.connected = true;
            Input::ContainerdConnected { version: "simulated".to_owned() }
        } else {
            Input::ContainerdDisconnected { cause: "no such file or directory".to_owned() }
        }
    }

    fn probe(&self) -> Input {
        if self.state().running {
            Input::ContainerdProbed
        } else {
            Input::ContainerdProbeFailed { cause: "connection refused".to_owned() }
        }
    }

    fn list(&self) -> Input {
        let state = self.state();
        if !state.running {
            return Input::ListFailed { cause: "connection refused".to_owned() };
        }
        let images = state.images.iter();
        let images =
            images.map(|(name, target)| ListedImage { name: name.clone(), target: Some(target.clone()) });
        let contents = state.blobs.iter().map(|(digest, content)| state.listed(*digest, content));
        Input::Listed(Listing { images: images.collect(), contents: contents.collect() })
    }

    fn inspect(&self, digest: &Digest) -> Inspection {
        let state = self.state();
        if !state.running {
            return Inspection::Failed { cause: "connection refused".to_owned() };
        }
        state
            .blobs
            .get(digest)
            .map_or(Inspection::Absent, |content| Inspection::Present(state.listed(*digest, content)))
    }

    fn read(&self, digest: &Digest) -> ManifestRead {
        let mut state = self.state();
        state.manifest_reads += 1;
        if state.unreadable.contains(digest) {
            return ManifestRead::Failed { cause: "input/output error".to_owned() };
        }
        state.blobs.get(digest).map_or(ManifestRead::Absent, |content| ManifestRead::Bytes(content.to_vec()))
    }
}

impl State {
    fn put_blob(&mut self, digest: Digest, content: Bytes) {
        self.keys.insert(Key::of_digest(&digest));
        self.blobs.insert(digest, content);
    }

    fn put_image(&mut self, name: &str, target: Descriptor) {
        self.keys.insert(Key::of(name));
        self.images.insert(name.to_owned(), target);
    }

    /// What an image consists of.
    fn tree(&self, target: &Descriptor) -> Vec<Digest> {
        let mut tree = vec![target.digest];
        let manifest = self.blobs.get(&target.digest);
        if let Some(children) =
            manifest.and_then(|bytes| parse_manifest(Some(&target.media_type), bytes).ok())
        {
            tree.extend(children.config.iter().chain(&children.layers).map(|child| child.digest));
        }
        tree
    }

    fn label(&mut self, digest: &Digest, image: &Image) {
        if self.blobs.contains_key(digest) {
            let (registry, repository, _) = image.parts();
            let source = (registry.to_owned(), repository.to_owned());
            self.sources.entry(*digest).or_default().insert(source);
        }
    }

    fn listed(&self, digest: Digest, content: &Bytes) -> ListedContent {
        let sources = self.sources.get(&digest).into_iter().flatten().cloned().collect();
        ListedContent { digest, size: content.len() as u64, sources }
    }
}

/// An open blob of the simulated content store.
#[derive(Debug)]
pub struct SimulatedBlob {
    content: Bytes,
    corrupt: bool,
    bytes_per_second: Option<u64>,
}

impl ContentStore for Containerd {
    type Blob = SimulatedBlob;

    async fn open(&self, digest: &Digest, size: u64) -> io::Result<SimulatedBlob> {
        let state = self.state();
        let content = state.blobs.get(digest).cloned().ok_or(io::ErrorKind::NotFound)?;
        if content.len() as u64 != size {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(SimulatedBlob { content, corrupt: state.corrupt, bytes_per_second: state.bytes_per_second })
    }
}

impl Blob for SimulatedBlob {
    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    async fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.content.len());
        let mut length = length;
        if let Some(rate) = self.bytes_per_second {
            length = length.min(usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1));
            sleep_until(Instant::now() + Duration::from_millis(100)).await;
        }
        let end = start.saturating_add(length).min(self.content.len());
        let chunk = self.content.slice(start..end);
        Ok(if self.corrupt { chunk.iter().map(|byte| !byte).collect() } else { chunk })
    }
}
