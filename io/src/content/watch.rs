//! Tells the core at once what comes into the content store and what leaves it, on every
//! containerd: only 2.1 and later send an event for a commit, but all of them rename the
//! finished file into `blobs/<algorithm>`, and delete it there when garbage is collected. It
//! decides nothing: what the content is, and whether it is in the mirrored namespace, the core
//! asks containerd.
//!
//! Nothing is ever missed in silence. When the kernel's queue overflowed the core hears
//! [`Input::ChangesMissed`]; when the watch could not be armed or is at its end, because a directory
//! was replaced, [`Input::WatchLost`]. It is armed again only by order, and the core then hears
//! [`Input::ContentWatched`], so that a listing made upon it is complete.

use std::{
    ffi::OsStr,
    fs, io, iter,
    path::{Path, PathBuf},
};

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use spegel_core::{
    Input,
    oci::{Algorithm, Digest},
};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::debug;

use super::algorithm_dir;

/// Most blobs reported one by one when a directory of them appears. A fresh node's first pull
/// makes one with a handful of blobs. Lower and those are found by a full listing; higher and
/// a store that was moved into place is announced twice, here and by the listing.
const SCAN_BLOBS_MAX: usize = 1024;

/// Bytes read from the kernel at once: some 170 events. Smaller means more system calls in a
/// burst; below some 300 the kernel refuses to give even one event.
const BUFFER_BYTES: usize = 16 * 1024;

/// What the watched directories themselves may suffer, and their sub-directories.
const DIRECTORY_MASK: WatchMask = WatchMask::CREATE
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);

/// As above without `CREATE`: blobs come by rename, complete. A file created in place is not
/// containerd's doing, and not complete yet.
const BLOBS_MASK: WatchMask = DIRECTORY_MASK.difference(WatchMask::CREATE);

const APPEARED: EventMask = EventMask::CREATE.union(EventMask::MOVED_TO);
const DISAPPEARED: EventMask = EventMask::DELETE.union(EventMask::MOVED_FROM);
const SELF_LOST: EventMask =
    EventMask::DELETE_SELF.union(EventMask::MOVE_SELF).union(EventMask::UNMOUNT).union(EventMask::IGNORED);

/// Carries orders to the watch, which ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct WatchHandle {
    // One order waits while another is looked at; more would say the same.
    orders: Sender<bool>,
}

impl WatchHandle {
    /// Carries out [`spegel_core::Output::WatchContent`]; returns at once.
    pub fn perform(&self, scan: bool) {
        // Full: an order waits already. Closed: the process ends.
        let _ = self.orders.try_send(scan);
    }
}

/// Has the content directory `root` watched when that is ordered, for as long as `inputs` is open.
/// Must be called within a tokio runtime.
pub fn spawn(root: impl Into<PathBuf>, inputs: Sender<Input>) -> WatchHandle {
    let (orders, received) = channel(1);
    tokio::spawn(carry_out(root.into(), received, inputs));
    WatchHandle { orders }
}

async fn carry_out(root: PathBuf, mut orders: Receiver<bool>, inputs: Sender<Input>) {
    while let Some(scan) = orders.recv().await {
        let ended = match Watch::arm(&root) {
            Ok(watch) => tokio::select! {
                ended = watch.run(scan, &inputs) => ended,
                // Orders given while it watches ask for nothing more.
                () = async { while orders.recv().await.is_some() {} } => return,
            },
            Err(error) => Ended::Lost(format!("{} cannot be watched: {error}", root.display())),
        };
        let cause = match ended {
            Ended::Lost(cause) => cause,
            Ended::InputsClosed => return,
        };
        debug!(%cause, "content directory is not watched");
        if inputs.send(Input::WatchLost { cause }).await.is_err() {
            return;
        }
    }
}

/// Why a watch came to its end.
enum Ended {
    /// It no longer sees the content directory.
    Lost(String),
    /// Nobody listens.
    InputsClosed,
}

/// A directory that is watched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The content directory.
    Root,
    /// `blobs`
    Blobs,
    /// `blobs/<algorithm>`
    Algorithm(Algorithm),
}

/// One inotify instance and what it watches. It ends with the first directory lost: a fresh
/// one has no stale watches to tell from valid ones.
struct Watch {
    root: PathBuf,
    events: EventStream<Vec<u8>>,
    watches: Watches,
    /// At most the root, `blobs` and one directory per algorithm.
    places: Vec<(WatchDescriptor, Place)>,
}

impl Watch {
    fn arm(root: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let events = inotify.into_event_stream(vec![0; BUFFER_BYTES])?;
        let mut watch = Self { root: root.to_path_buf(), events, watches, places: Vec::new() };
        // Parents first: a child that appears after it was found missing is reported by its parent.
        if !watch.add(Place::Root)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        watch.descend()?;
        Ok(watch)
    }

    /// Watches what is below the root and not watched yet, and says which algorithms that added.
    fn descend(&mut self) -> io::Result<Vec<Algorithm>> {
        let mut added = Vec::new();
        if self.add(Place::Blobs)? {
            for algorithm in Algorithm::ALL {
                let watched = self.is_watched(Place::Algorithm(algorithm));
                if self.add(Place::Algorithm(algorithm))? && !watched {
                    added.push(algorithm);
                }
            }
        }
        Ok(added)
    }

    /// Watches a place unless it is watched; false if it does not exist.
    fn add(&mut self, place: Place) -> io::Result<bool> {
        if self.is_watched(place) {
            return Ok(true);
        }
        let (path, mask) = match place {
            Place::Root => (self.root.clone(), DIRECTORY_MASK),
            Place::Blobs => (self.root.join("blobs"), DIRECTORY_MASK),
            Place::Algorithm(algorithm) => (algorithm_dir(&self.root, algorithm), BLOBS_MASK),
        };
        match self.watches.add(path, mask) {
            Ok(descriptor) => {
                self.places.push((descriptor, place));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn algorithms(&self) -> Vec<Algorithm> {
        Algorithm::ALL.into_iter().filter(|algorithm| self.is_watched(Place::Algorithm(*algorithm))).collect()
    }

    fn is_watched(&self, place: Place) -> bool {
        self.places.iter().any(|(_, watched)| *watched == place)
    }

    async fn run(mut self, scan: bool, inputs: &Sender<Input>) -> Ended {
        // What cannot be read is left to the listing.
        let there = if scan { self.scan(&self.algorithms()).unwrap_or_default() } else { Vec::new() };
        for input in iter::once(Input::ContentWatched).chain(there) {
            if inputs.send(input).await.is_err() {
                return Ended::InputsClosed;
            }
        }
        loop {
            let event = tokio::select! {
                event = self.events.next() => event,
                () = inputs.closed() => return Ended::InputsClosed,
            };
            let found = match event {
                Some(Ok(event)) => self.interpret(&event),
                Some(Err(error)) => return Ended::Lost(format!("reading inotify events: {error}")),
                None => return Ended::Lost("the inotify stream ended".to_owned()),
            };
            match found {
                Ok(found) => {
                    for input in found {
                        // While the core is busy the kernel queues (16384 events by default), and says
                        // so when its queue overflows.
                        if inputs.send(input).await.is_err() {
                            return Ended::InputsClosed;
                        }
                    }
                }
                Err(cause) => return Ended::Lost(cause),
            }
        }
    }

    /// What an event means to the core; an error says that the watch is lost.
    fn interpret(&mut self, event: &EventOwned) -> Result<Vec<Input>, String> {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            // The watches stay armed, and what happens from here on is queued again.
            let cause = "the kernel's inotify queue overflowed".to_owned();
            return Ok(vec![Input::ChangesMissed { cause }]);
        }
        let Some(place) =
            self.places.iter().find(|(descriptor, _)| *descriptor == event.wd).map(|(_, place)| *place)
        else {
            return Ok(Vec::new());
        };
        if event.mask.intersects(SELF_LOST) {
            return Err(format!("{} was removed, moved or unmounted", self.describe(place)));
        }
        let name = event.name.as_deref().and_then(OsStr::to_str).unwrap_or_default();
        match place {
            Place::Algorithm(algorithm) => Ok(blob_input(algorithm, name, event.mask).into_iter().collect()),
            Place::Root if name == "blobs" => self.directory_changed(name, event.mask),
            Place::Blobs if Algorithm::ALL.iter().any(|algorithm| algorithm.as_str() == name) => {
                self.directory_changed(name, event.mask)
            }
            Place::Root | Place::Blobs => Ok(Vec::new()),
        }
    }

    fn directory_changed(&mut self, name: &str, mask: EventMask) -> Result<Vec<Input>, String> {
        if mask.intersects(DISAPPEARED) {
            return Err(format!("{name} was removed from {}", self.root.display()));
        }
        debug!(name, "directory appeared in the content store");
        let found = self.descend().and_then(|added| self.scan(&added));
        found.map_err(|error| format!("{name} in {} cannot be watched: {error}", self.root.display()))
    }

    /// The blobs that were in these directories before they were watched; some may be reported
    /// twice. Too many are a reason for a listing instead.
    fn scan(&self, algorithms: &[Algorithm]) -> io::Result<Vec<Input>> {
        let mut found = Vec::new();
        for &algorithm in algorithms {
            for entry in fs::read_dir(algorithm_dir(&self.root, algorithm))? {
                let name = entry?.file_name();
                let Some(input) =
                    blob_input(algorithm, name.to_str().unwrap_or_default(), EventMask::MOVED_TO)
                else {
                    continue;
                };
                if found.len() == SCAN_BLOBS_MAX {
                    let cause = format!("much content appeared at once in {}", self.root.display());
                    return Ok(vec![Input::ChangesMissed { cause }]);
                }
                found.push(input);
            }
        }
        Ok(found)
    }

    fn describe(&self, place: Place) -> String {
        match place {
            Place::Root => self.root.clone(),
            Place::Blobs => self.root.join("blobs"),
            Place::Algorithm(algorithm) => algorithm_dir(&self.root, algorithm),
        }
        .display()
        .to_string()
    }
}

/// What happened to a blob; `None` if the name is not one of a blob.
fn blob_input(algorithm: Algorithm, name: &str, mask: EventMask) -> Option<Input> {
    if mask.contains(EventMask::ISDIR) {
        return None;
    }
    let digest = Digest::from_hex(algorithm, name).ok()?;
    if mask.intersects(APPEARED) {
        Some(Input::BlobCommitted { digest })
    } else if mask.intersects(DISAPPEARED) {
        Some(Input::BlobRemoved { digest })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::time::{sleep, timeout};

    #[tokio::test]
    async fn committed_and_collected_blobs_are_reported_in_order() {
        let store = Store::with_blobs();
        let mut inputs = store.watch(16).await;
        let first = store.commit(b"first");
        let second = store.commit(b"second");
        store.collect(&first);
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest: first });
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest: second });
        assert_eq!(next(&mut inputs).await, Input::BlobRemoved { digest: first });
        assert_nothing(&mut inputs).await;
    }

    #[tokio::test]
    async fn files_that_are_not_blobs_are_ignored() {
        let store = Store::with_blobs();
        let mut inputs = store.watch(16).await;
        let hex = Digest::sha256_of(b"x").hex();
        fs::create_dir(store.path("moved")).unwrap();
        fs::rename(store.path("moved"), store.path("blobs/sha256").join(&hex)).unwrap();
        fs::write(store.path("blobs/sha256/notes"), "x").unwrap();
        fs::write(store.path("moved"), "x").unwrap();
        fs::rename(store.path("moved"), store.path("blobs/sha256").join(hex.to_uppercase())).unwrap();
        fs::create_dir(store.path("blobs/md5")).unwrap();
        fs::remove_dir(store.path("blobs/md5")).unwrap();
        fs::remove_dir_all(store.path("ingest")).unwrap();
        assert_nothing(&mut inputs).await;
    }

    #[tokio::test]
    async fn blob_written_in_place_is_not_taken_for_a_commit() {
        let store = Store::with_blobs();
        let mut inputs = store.watch(16).await;
        fs::write(store.path("blobs/sha256").join(Digest::sha256_of(b"x").hex()), "x").unwrap();
        assert_nothing(&mut inputs).await;
    }

    #[tokio::test]
    async fn first_commit_on_a_fresh_node_is_reported() {
        let store = Store::fresh();
        let mut inputs = store.watch(16).await;
        fs::create_dir(store.path("blobs")).unwrap();
        fs::create_dir(store.path("blobs/sha256")).unwrap();
        let raced = store.commit(b"before the watch sees the directories");
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest: raced });
        let later = store.commit(b"after");
        while let input = next(&mut inputs).await
            && input != (Input::BlobCommitted { digest: later })
        {
            assert_eq!(input, Input::BlobCommitted { digest: raced }, "at most a repetition");
        }
    }

    #[tokio::test]
    async fn directory_of_another_algorithm_is_picked_up() {
        let store = Store::with_blobs();
        let mut inputs = store.watch(16).await;
        fs::create_dir(store.path("blobs/sha512")).unwrap();
        sleep(Duration::from_millis(50)).await;
        let digest = Digest::from_hex(Algorithm::Sha512, &"5a".repeat(64)).unwrap();
        store.commit_as(&digest, b"x");
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest });
    }

    #[tokio::test]
    async fn much_content_appearing_at_once_asks_for_a_listing() {
        for (count, listed) in [(SCAN_BLOBS_MAX, false), (SCAN_BLOBS_MAX + 1, true)] {
            let store = Store::fresh();
            fs::create_dir_all(store.path("elsewhere/sha256")).unwrap();
            for i in 0..count {
                let name = Digest::sha256_of(&i.to_le_bytes()).hex();
                fs::write(store.path("elsewhere/sha256").join(name), "").unwrap();
            }
            let mut inputs = store.watch(2 * SCAN_BLOBS_MAX).await;
            fs::rename(store.path("elsewhere"), store.path("blobs")).unwrap();
            let first = next(&mut inputs).await;
            assert_eq!(matches!(first, Input::ChangesMissed { .. }), listed, "{first:?}");
        }
    }

    #[tokio::test]
    async fn missing_content_directory_is_reported_each_time_until_it_is_there() {
        let store = Store::fresh();
        fs::remove_dir_all(store.path("")).unwrap();
        let mut inputs = store.ordered(16);
        for _ in 0..2 {
            assert!(matches!(next(&mut inputs).await, Input::WatchLost { .. }));
            assert_nothing(&mut inputs).await;
            inputs.handle.perform(true);
        }
        assert!(matches!(next(&mut inputs).await, Input::WatchLost { .. }));
        fs::create_dir_all(store.path("blobs/sha256")).unwrap();
        fs::create_dir_all(store.path("ingest")).unwrap();
        let unseen = store.commit(b"before the watch sees the directory");
        inputs.handle.perform(true);
        assert_eq!(next(&mut inputs).await, Input::ContentWatched);
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest: unseen });
        let digest = store.commit(b"x");
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest });
    }

    #[tokio::test]
    async fn what_is_there_is_reported_only_if_that_is_wanted() {
        let store = Store::with_blobs();
        store.commit(b"there");
        let mut watch = store.watch(16).await;
        watch.handle.perform(true);
        assert_nothing(&mut watch).await;
    }

    #[tokio::test]
    async fn replaced_directories_are_watched_again_by_order() {
        for replaced in ["", "blobs", "blobs/sha256"] {
            for moved in [false, true] {
                let store = Store::with_blobs();
                let mut inputs = store.watch(16).await;
                if moved {
                    fs::rename(store.path(replaced), store.dir.path().join("away")).unwrap();
                } else {
                    fs::remove_dir_all(store.path(replaced)).unwrap();
                }
                fs::create_dir_all(store.path("blobs/sha256")).unwrap();
                fs::create_dir_all(store.path("ingest")).unwrap();
                assert!(matches!(next(&mut inputs).await, Input::WatchLost { .. }), "{replaced}: lost");
                inputs.handle.perform(true);
                assert_eq!(next(&mut inputs).await, Input::ContentWatched, "{replaced}: armed again");
                let digest = store.commit(b"x");
                assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest }, "{replaced}");
            }
        }
    }

    // On the test's single thread the watch can't run while the files are made.
    #[tokio::test]
    async fn burst_is_reported_whole_through_a_narrow_channel() {
        let store = Store::with_blobs();
        let mut inputs = store.watch(1).await;
        for i in 0..10_000_u32 {
            store.commit(&i.to_le_bytes());
        }
        for i in 0..10_000_u32 {
            let digest = Digest::sha256_of(&i.to_le_bytes());
            assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest });
        }
    }

    #[tokio::test]
    async fn overflow_of_the_kernels_queue_is_reported_and_survived() {
        let queued_max: u32 =
            fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
        let store = Store::with_blobs();
        let mut inputs = store.watch(16).await;
        for i in 0..=queued_max {
            store.commit(&i.to_le_bytes());
        }
        while let input = next(&mut inputs).await
            && !matches!(input, Input::ChangesMissed { .. })
        {
            assert!(matches!(input, Input::BlobCommitted { .. }));
        }
        let digest = store.commit(b"after the overflow");
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest });
    }

    #[tokio::test]
    async fn watch_ends_with_its_listener_or_its_last_order() {
        let store = Store::with_blobs();
        let inputs = store.watch(1).await;
        let Watched { handle, inputs } = inputs;
        drop(inputs);
        timeout(Duration::from_secs(5), handle.orders.closed()).await.unwrap();
        let Watched { handle, mut inputs } = store.watch(1).await;
        drop(handle);
        assert_eq!(timeout(Duration::from_secs(5), inputs.recv()).await.unwrap(), None);
    }

    struct Watched {
        handle: WatchHandle,
        inputs: Receiver<Input>,
    }

    struct Store {
        dir: TempDir,
    }

    impl Store {
        /// As containerd leaves it when it has just started for the first time.
        fn fresh() -> Self {
            let store = Self { dir: TempDir::new().unwrap() };
            fs::create_dir_all(store.path("ingest")).unwrap();
            store
        }

        fn with_blobs() -> Self {
            let store = Self::fresh();
            fs::create_dir_all(store.path("blobs/sha256")).unwrap();
            store
        }

        fn path(&self, below: &str) -> PathBuf {
            self.dir.path().join("content").join(below)
        }

        /// A watch that was ordered once.
        fn ordered(&self, capacity: usize) -> Watched {
            let (sender, inputs) = channel(capacity);
            let handle = spawn(self.path(""), sender);
            handle.perform(false);
            Watched { handle, inputs }
        }

        /// A watch that is armed.
        async fn watch(&self, capacity: usize) -> Watched {
            let mut watched = self.ordered(capacity);
            assert_eq!(next(&mut watched).await, Input::ContentWatched);
            watched
        }

        fn commit(&self, bytes: &[u8]) -> Digest {
            let digest = Digest::sha256_of(bytes);
            self.commit_as(&digest, bytes);
            digest
        }

        fn commit_as(&self, digest: &Digest, bytes: &[u8]) {
            fs::write(self.path("ingest/data"), bytes).unwrap();
            let target = algorithm_dir(&self.path(""), digest.algorithm()).join(digest.hex());
            fs::rename(self.path("ingest/data"), target).unwrap();
        }

        fn collect(&self, digest: &Digest) {
            fs::remove_file(algorithm_dir(&self.path(""), digest.algorithm()).join(digest.hex())).unwrap();
        }
    }

    async fn next(watched: &mut Watched) -> Input {
        timeout(Duration::from_secs(10), watched.inputs.recv())
            .await
            .expect("an input in time")
            .expect("the watch runs")
    }

    async fn assert_nothing(watched: &mut Watched) {
        let input = timeout(Duration::from_millis(200), watched.inputs.recv()).await;
        assert!(input.is_err(), "{input:?}");
    }
}
