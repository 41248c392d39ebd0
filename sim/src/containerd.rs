//! A containerd of the simulator's own: images and blobs in memory, and the inputs that the
//! real one would cause.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use spegel_core::{
    Input, Inspection, ListedContent, ListedImage, Listing, ManifestRead, Output,
    oci::{Descriptor, Digest},
};
use spegel_io::content::{Blob, ContentStore};
use tokio::{sync::mpsc, time::sleep};

/// How long containerd takes to answer anything.
const LATENCY: Duration = Duration::from_millis(1);

/// One node's containerd. Clones are the same one; it outlives the mirror process.
#[derive(Clone, Debug, Default)]
pub struct Containerd(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    running: bool,
    images: BTreeMap<String, Descriptor>,
    blobs: BTreeMap<Digest, Bytes>,
    /// Where events go while a mirror is connected.
    events: Option<mpsc::Sender<Input>>,
}

impl Containerd {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it: its socket accepts connections from here on.
    pub fn start(&self) {
        self.state().running = true;
    }

    /// Whether it has all of these.
    #[must_use]
    pub fn has(&self, digests: &[Digest]) -> bool {
        let state = self.state();
        digests.iter().all(|digest| state.blobs.contains_key(digest))
    }

    /// Commits a blob, and says so as inotify would.
    pub async fn commit(&self, digest: Digest, content: Bytes) {
        let events = {
            let mut state = self.state();
            state.blobs.insert(digest, content);
            state.events.clone()
        };
        if let Some(events) = events {
            // The mirror has ended: nobody to tell.
            let _ = events.send(Input::BlobCommitted { digest }).await;
        }
    }

    /// Creates or updates an image, and says so as containerd's event would.
    pub async fn create_image(&self, name: &str, target: Descriptor) {
        let events = {
            let mut state = self.state();
            state.images.insert(name.to_owned(), target.clone());
            state.events.clone()
        };
        if let Some(events) = events {
            let image = ListedImage { name: name.to_owned(), target: Some(target) };
            // The mirror has ended: nobody to tell.
            let _ = events.send(Input::ImageChanged(image)).await;
        }
    }

    /// Carries out what the core wants of containerd; `false` if it wants something else.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the node routes every order; these four are ours")]
    pub fn perform(&self, output: &Output, inputs: &mpsc::Sender<Input>) -> bool {
        let answer: Box<dyn FnOnce(&Self) -> Input + Send> = match output {
            Output::ConnectContainerd => {
                let events = inputs.clone();
                Box::new(move |this| this.connect(events))
            }
            Output::List => Box::new(Self::list),
            Output::Inspect { digest } => {
                let digest = *digest;
                Box::new(move |this| Input::Inspected { digest, outcome: this.inspect(&digest) })
            }
            Output::ReadManifest { digest } => {
                let digest = *digest;
                Box::new(move |this| Input::ManifestRead { digest, outcome: this.read(&digest) })
            }
            _ => return false,
        };
        let (this, inputs) = (self.clone(), inputs.clone());
        tokio::spawn(async move {
            sleep(LATENCY).await;
            let input = answer(&this);
            // The mirror has ended: nobody to tell.
            let _ = inputs.send(input).await;
        });
        true
    }

    fn connect(&self, events: mpsc::Sender<Input>) -> Input {
        let mut state = self.state();
        if state.running {
            state.events = Some(events);
            Input::ContainerdConnected { version: "simulated".to_owned() }
        } else {
            Input::ContainerdDisconnected { cause: "no such file or directory".to_owned() }
        }
    }

    fn list(&self) -> Input {
        let state = self.state();
        let images = state.images.iter();
        let images =
            images.map(|(name, target)| ListedImage { name: name.clone(), target: Some(target.clone()) });
        let contents = state.blobs.iter().map(|(digest, content)| listed(*digest, content));
        Input::Listed(Listing { images: images.collect(), contents: contents.collect() })
    }

    fn inspect(&self, digest: &Digest) -> Inspection {
        let state = self.state();
        state
            .blobs
            .get(digest)
            .map_or(Inspection::Absent, |content| Inspection::Present(listed(*digest, content)))
    }

    fn read(&self, digest: &Digest) -> ManifestRead {
        let state = self.state();
        state.blobs.get(digest).map_or(ManifestRead::Absent, |content| ManifestRead::Bytes(content.to_vec()))
    }
}

fn listed(digest: Digest, content: &Bytes) -> ListedContent {
    ListedContent { digest, size: content.len() as u64, sources: Vec::new() }
}

/// An open blob of the simulated content store.
#[derive(Debug)]
pub struct SimulatedBlob(Bytes);

impl ContentStore for Containerd {
    type Blob = SimulatedBlob;

    async fn open(&self, digest: &Digest, size: u64) -> io::Result<SimulatedBlob> {
        let content = self.state().blobs.get(digest).cloned().ok_or(io::ErrorKind::NotFound)?;
        if content.len() as u64 == size {
            Ok(SimulatedBlob(content))
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

impl Blob for SimulatedBlob {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let end = start.saturating_add(length).min(self.0.len());
        Ok(self.0.slice(start..end))
    }
}
