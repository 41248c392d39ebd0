//! Tells the core at once what comes into the content store and what leaves it, on every
//! containerd: only 2.1 and later send an event for a commit, but all of them rename the
//! finished file into `blobs/<algorithm>`, and delete it there when garbage is collected. It
//! decides nothing: what the content is, and whether it is in the mirrored namespace, the core
//! asks containerd.
//!
//! Nothing is ever missed in silence. Whenever events may have been lost (the kernel's queue
//! overflowed, a directory was replaced) the core hears [`Input::WatchLost`], the last time
//! when the watch is armed again, so that a listing made upon it is complete.

use std::{
    ffi::OsStr,
    fs, io, iter,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use spegel_core::{
    Input,
    oci::{Algorithm, Digest},
};
use tokio::{sync::mpsc::Sender, task::JoinHandle, time::sleep};
use tracing::{debug, warn};

use super::algorithm_dir;

/// How long after losing the watch, or failing to arm it, it is tried again. Longer and the
/// core is blind for that long after the directory was replaced, or was made by the first pull of
/// a fresh node; much shorter and a directory that stays away costs CPU.
const REARM_INTERVAL: Duration = Duration::from_millis(250);

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

/// Watches the content directory `root` for as long as `inputs` is open.
///
/// It is armed before this returns, if `root` is there: whatever happens to blobs from then on
/// is reported. Must be called within a tokio runtime.
pub fn spawn(root: impl Into<PathBuf>, inputs: Sender<Input>) -> JoinHandle<()> {
    let root = root.into();
    let armed = Watch::arm(&root);
    tokio::spawn(watch_forever(root, armed, inputs))
}

async fn watch_forever(root: PathBuf, mut armed: io::Result<Watch>, inputs: Sender<Input>) {
    let mut reported = None;
    while !inputs.is_closed() {
        let cause = match armed {
            Ok(watch) => match watch.run(&inputs).await {
                Ended::Lost(cause) => cause,
                Ended::InputsClosed => return,
            },
            Err(error) => format!("{} cannot be watched: {error}", root.display()),
        };
        // A directory that stays away is said once, not once a second.
        if reported.as_ref() != Some(&cause) {
            warn!(%cause, "content directory is not watched");
            reported = Some(cause.clone());
            if inputs.send(Input::WatchLost { cause }).await.is_err() {
                return;
            }
        }
        sleep(REARM_INTERVAL).await;
        armed = Watch::arm(&root);
        if let Ok(watch) = &armed {
            reported = None;
            let cause = format!("{} was not watched for a while", root.display());
            // What a small store has is said at once: on a fresh node this is the first pull, which
            // should not wait for a listing.
            let found = watch.scan(&watch.algorithms()).unwrap_or_default();
            for input in iter::once(Input::WatchLost { cause }).chain(found) {
                if inputs.send(input).await.is_err() {
                    return;
                }
            }
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

    async fn run(mut self, inputs: &Sender<Input>) -> Ended {
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
            return Ok(vec![Input::WatchLost { cause }]);
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
                    return Ok(vec![Input::WatchLost { cause }]);
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

    use tempfile::TempDir;
    use tokio::{
        sync::mpsc::{Receiver, channel},
        time::timeout,
    };

    #[tokio::test]
    async fn committed_and_collected_blobs_are_reported_in_order() {
        let store = Store::with_blobs();
        let mut inputs = store.watch(16);
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
        let mut inputs = store.watch(16);
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
        let mut inputs = store.watch(16);
        fs::write(store.path("blobs/sha256").join(Digest::sha256_of(b"x").hex()), "x").unwrap();
        assert_nothing(&mut inputs).await;
    }

    #[tokio::test]
    async fn first_commit_on_a_fresh_node_is_reported() {
        let store = Store::fresh();
        let mut inputs = store.watch(16);
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
        let mut inputs = store.watch(16);
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
            let mut inputs = store.watch(2 * SCAN_BLOBS_MAX);
            fs::rename(store.path("elsewhere"), store.path("blobs")).unwrap();
            let first = next(&mut inputs).await;
            assert_eq!(matches!(first, Input::WatchLost { .. }), listed, "{first:?}");
        }
    }

    #[tokio::test]
    async fn missing_content_directory_is_reported_once_and_again_when_it_is_there() {
        let store = Store::fresh();
        fs::remove_dir_all(store.path("")).unwrap();
        let mut inputs = store.watch(16);
        assert!(matches!(next(&mut inputs).await, Input::WatchLost { .. }));
        sleep(REARM_INTERVAL * 7 / 2).await;
        assert!(inputs.try_recv().is_err(), "a directory that stays away is said once");
        fs::create_dir_all(store.path("blobs/sha256")).unwrap();
        fs::create_dir_all(store.path("ingest")).unwrap();
        let unseen = store.commit(b"before the watch sees the directory");
        assert!(matches!(next(&mut inputs).await, Input::WatchLost { .. }));
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest: unseen });
        let digest = store.commit(b"x");
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest });
    }

    #[tokio::test]
    async fn replaced_directories_are_watched_again() {
        for replaced in ["", "blobs", "blobs/sha256"] {
            for moved in [false, true] {
                let store = Store::with_blobs();
                let mut inputs = store.watch(16);
                if moved {
                    fs::rename(store.path(replaced), store.dir.path().join("away")).unwrap();
                } else {
                    fs::remove_dir_all(store.path(replaced)).unwrap();
                }
                fs::create_dir_all(store.path("blobs/sha256")).unwrap();
                fs::create_dir_all(store.path("ingest")).unwrap();
                assert!(matches!(next(&mut inputs).await, Input::WatchLost { .. }), "{replaced}: lost");
                assert!(
                    matches!(next(&mut inputs).await, Input::WatchLost { .. }),
                    "{replaced}: armed again"
                );
                let digest = store.commit(b"x");
                assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest }, "{replaced}");
            }
        }
    }

    // On the test's single thread the watch can't run while the files are made.
    #[tokio::test]
    async fn burst_is_reported_whole_through_a_narrow_channel() {
        let store = Store::with_blobs();
        let mut inputs = store.watch(1);
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
        let mut inputs = store.watch(16);
        for i in 0..=queued_max {
            store.commit(&i.to_le_bytes());
        }
        while let input = next(&mut inputs).await
            && !matches!(input, Input::WatchLost { .. })
        {
            assert!(matches!(input, Input::BlobCommitted { .. }));
        }
        let digest = store.commit(b"after the overflow");
        assert_eq!(next(&mut inputs).await, Input::BlobCommitted { digest });
    }

    #[tokio::test]
    async fn watch_ends_with_its_listener() {
        let store = Store::with_blobs();
        let (sender, receiver) = channel(1);
        let watch = spawn(store.path(""), sender);
        drop(receiver);
        timeout(Duration::from_secs(5), watch).await.unwrap().unwrap();
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

        fn watch(&self, capacity: usize) -> Receiver<Input> {
            let (sender, receiver) = channel(capacity);
            spawn(self.path(""), sender);
            receiver
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

    async fn next(inputs: &mut Receiver<Input>) -> Input {
        timeout(Duration::from_secs(10), inputs.recv())
            .await
            .expect("an input in time")
            .expect("the watch runs")
    }

    async fn assert_nothing(inputs: &mut Receiver<Input>) {
        let input = timeout(Duration::from_millis(200), inputs.recv()).await;
        assert!(input.is_err(), "{input:?}");
    }
}
