//! Reads containerd's content store from its directory: blobs for the registry, manifests for
//! the core. It never writes there, and never decides what may be served: the registry asks
//! only for what the core said it serves. [`watch`] tells the core what comes and goes.
//!
//! Layout: `<root>/blobs/<algorithm>/<hex>` is complete content, made by a rename out of
//! `<root>/ingest/<id>/data`. `blobs/<algorithm>` is made with the first commit; `<root>` and
//! `ingest` by containerd 1.6 when it starts, by 1.7 and later with the first ingest. So on a fresh
//! node there may be nothing at all.

pub mod watch;

use std::{
    fs::{self, File},
    future::Future,
    io::{self, IoSliceMut, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::{ReadWriteFlags, preadv2},
};
use spegel_core::{
    ManifestRead,
    oci::{Algorithm, Digest, MANIFEST_SIZE_MAX},
};
use tokio::task::spawn_blocking;

/// Most bytes that are read at once on the thread that asks, if they are in memory. Less and a
/// manifest takes a turn through another thread, which costs more than reading it; more and copying
/// holds up the thread's other requests.
const READ_AT_ONCE_BYTES_MAX: usize = 64 * 1024;

/// Content that can be read by its digest.
pub trait ContentStore: Clone + Send + Sync + 'static {
    /// What opened content is.
    type Blob: Blob;

    /// Opens content; an error is a miss. A file whose size is not `size` is an error.
    fn open(&self, digest: &Digest, size: u64) -> impl Future<Output = io::Result<Self::Blob>> + Send;
}

/// An open blob: stays readable to its end even if deleted meanwhile.
pub trait Blob: Send + Sync + 'static {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Where the kernel can send it from; `None` if it has to be read.
    fn file(&self) -> Option<&Arc<File>> {
        None
    }

    /// Reads up to `length` bytes at `offset`; fewer only at the end; empty = file is shorter
    /// than it was.
    fn read_at(&self, offset: u64, length: usize) -> impl Future<Output = io::Result<Bytes>> + Send;
}

/// The content directory of containerd.
#[derive(Clone, Debug)]
pub struct ContentDir {
    root: Arc<Path>,
}

/// A file of the content directory.
#[derive(Clone, Debug)]
pub struct ContentFile {
    file: Arc<File>,
    size: u64,
}

/// Why a directory can't be containerd's content store.
#[derive(Debug, thiserror::Error)]
pub enum ContentPathError {
    /// It is not there, or may not be read.
    #[error(
        "containerd content path {path} cannot be read ({cause}): mount the node's content store there, or name \
         its place by --containerd-content-path (<root>/io.containerd.content.v1.content, where <root> is `root` \
         in containerd's configuration)"
    )]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// What went wrong; in the text, hence not a source as well.
        cause: io::Error,
    },
    /// It is some other directory.
    #[error(
        "containerd content path {path} holds no content store (neither blobs nor ingest is in it): name the right \
         place by --containerd-content-path (<root>/io.containerd.content.v1.content, where <root> is `root` in \
         containerd's configuration)"
    )]
    NotAContentStore {
        /// The directory.
        path: PathBuf,
    },
}

impl ContentDir {
    /// Names the directory, `<containerd root>/io.containerd.content.v1.content`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into().into() }
    }

    /// Makes sure that the directory looks like a content store, or like the place where containerd
    /// will make one.
    ///
    /// # Errors
    ///
    /// [`ContentPathError`], in words for the operator.
    pub fn check(&self) -> Result<(), ContentPathError> {
        let cause = match self.looks_like_a_store() {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(error) => Some(error),
        };
        let missing = cause.as_ref().is_none_or(|error| error.kind() == io::ErrorKind::NotFound);
        if missing && self.is_where_containerd_makes_it() {
            return Ok(());
        }
        let path = self.root.to_path_buf();
        Err(match cause {
            Some(cause) => ContentPathError::Unreadable { path, cause },
            None => ContentPathError::NotAContentStore { path },
        })
    }

    fn looks_like_a_store(&self) -> io::Result<bool> {
        // read_dir rather than metadata: a directory that can be seen may still not be readable.
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            if name == "blobs" || name == "ingest" {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether this is the default place in the root of a containerd that has started.
    fn is_where_containerd_makes_it(&self) -> bool {
        self.root.file_name().is_some_and(|name| name == "io.containerd.content.v1.content")
            && self.root.parent().is_some_and(|root| root.join("io.containerd.metadata.v1.bolt").is_dir())
    }

    /// Reads a manifest, giving up beyond [`MANIFEST_SIZE_MAX`].
    pub async fn read_manifest(&self, digest: &Digest) -> ManifestRead {
        let path = self.path(digest);
        let read = spawn_blocking(move || read_up_to(&path, MANIFEST_SIZE_MAX)).await;
        match read.map_err(io::Error::other).and_then(|read| read) {
            Ok(Some(bytes)) => ManifestRead::Bytes(bytes),
            Ok(None) => ManifestRead::TooLarge,
            Err(error) if error.kind() == io::ErrorKind::NotFound => ManifestRead::Absent,
            Err(error) => ManifestRead::Failed { cause: error.to_string() },
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        algorithm_dir(&self.root, digest.algorithm()).join(digest.hex())
    }
}

impl ContentStore for ContentDir {
    type Blob = ContentFile;

    async fn open(&self, digest: &Digest, size: u64) -> io::Result<ContentFile> {
        let path = self.path(digest);
        let (file, actual) = match open_at_once(&path) {
            Some(opened) => opened?,
            None => spawn_blocking(move || open_regular(&path)).await??,
        };
        if actual != size {
            let text = format!("size is {actual} bytes, expected {size}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(ContentFile { file: Arc::new(file), size })
    }
}

impl Blob for ContentFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn file(&self) -> Option<&Arc<File>> {
        Some(&self.file)
    }

    async fn read_at(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let rest = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(rest);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut buffer = vec![0; length];
        if length <= READ_AT_ONCE_BYTES_MAX {
            let slice = &mut [IoSliceMut::new(&mut buffer)];
            if preadv2(&*self.file, slice, offset, ReadWriteFlags::NOWAIT) == Ok(length) {
                return Ok(buffer.into());
            }
        }
        let file = Arc::clone(&self.file);
        spawn_blocking(move || {
            let filled = fill_at(&file, &mut buffer, offset)?;
            buffer.truncate(filled);
            Ok(Bytes::from(buffer))
        })
        .await?
    }
}

fn algorithm_dir(root: &Path, algorithm: Algorithm) -> PathBuf {
    root.join("blobs").join(algorithm.as_str())
}

fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    // Looked at before it is opened, because opening a FIFO would block a thread for ever; and
    // again after, because that is the file which is read.
    if !fs::metadata(path)?.is_file() {
        return Err(not_regular());
    }
    measured(File::open(path)?)
}

/// The same, if the system can open it without waiting for the disk; `None` if not, or where it
/// cannot be asked to (before Linux 5.12, and in some sandboxes).
fn open_at_once(path: &Path) -> Option<io::Result<(File, u64)>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    Some(measured(file.into()))
}

/// A regular file and its size; anything else is an error.
fn measured(file: File) -> io::Result<(File, u64)> {
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { Err(not_regular()) }
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a regular file")
}

/// The whole file, or `None` if it is larger than `size_max`.
fn read_up_to(path: &Path, size_max: u64) -> io::Result<Option<Vec<u8>>> {
    let (file, size) = open_regular(path)?;
    if size > size_max {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(size).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Fills `buffer` from `offset` on as far as the file goes, and says how far.
fn fill_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    use tempfile::TempDir;

    #[tokio::test]
    async fn blob_is_read_in_pieces_to_its_end() {
        let (dir, content) = store();
        let digest = put(&dir, b"0123456789");
        let blob = content.open(&digest, 10).await.unwrap();
        assert_eq!(blob.size(), 10);
        assert_eq!(blob.read_at(0, 4).await.unwrap(), "0123");
        assert_eq!(blob.read_at(4, 100).await.unwrap(), "456789");
        assert_eq!(blob.read_at(9, 1).await.unwrap(), "9");
        assert_eq!(blob.read_at(10, 1).await.unwrap(), "");
        assert_eq!(blob.read_at(u64::MAX, 1).await.unwrap(), "");
        assert_eq!(blob.read_at(0, 0).await.unwrap(), "");
    }

    #[tokio::test]
    async fn each_algorithm_has_its_directory() {
        let (dir, content) = store();
        for algorithm in Algorithm::ALL {
            let length = match algorithm {
                Algorithm::Sha256 => 64,
                Algorithm::Sha384 => 96,
                Algorithm::Sha512 => 128,
            };
            let digest = Digest::from_hex(algorithm, &"0f".repeat(length / 2)).unwrap();
            let under = dir.path().join("blobs").join(algorithm.as_str());
            fs::create_dir_all(&under).unwrap();
            fs::write(under.join(digest.hex()), algorithm.as_str()).unwrap();
            assert_eq!(
                content.open(&digest, 6).await.unwrap().read_at(0, 6).await.unwrap(),
                algorithm.as_str()
            );
        }
    }

    #[tokio::test]
    async fn missing_or_resized_content_is_a_miss() {
        let (dir, content) = store();
        let absent = content.open(&Digest::sha256_of(b"absent"), 6).await.unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        let digest = put(&dir, b"0123456789");
        for size in [0, 9, 11, u64::MAX] {
            assert_eq!(
                content.open(&digest, size).await.unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{size}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_not_a_regular_file_is_a_miss() {
        let (dir, content) = store();
        let directory = Digest::sha256_of(b"directory");
        fs::create_dir_all(path_of(&dir, &directory)).unwrap();
        assert_eq!(content.open(&directory, 4096).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let socket = Digest::sha256_of(b"socket");
        let _listener = std::os::unix::net::UnixListener::bind(path_of(&dir, &socket)).unwrap();
        assert_eq!(content.open(&socket, 0).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn open_blob_outlives_its_deletion() {
        let (dir, content) = store();
        let digest = put(&dir, b"still here");
        let blob = content.open(&digest, 10).await.unwrap();
        fs::remove_file(path_of(&dir, &digest)).unwrap();
        assert_eq!(blob.read_at(0, 10).await.unwrap(), "still here");
        assert!(content.open(&digest, 10).await.is_err());
    }

    #[tokio::test]
    async fn truncated_blob_reads_short_then_empty() {
        let (dir, content) = store();
        let digest = put(&dir, b"0123456789");
        let blob = content.open(&digest, 10).await.unwrap();
        fs::write(path_of(&dir, &digest), "012").unwrap();
        assert_eq!(blob.read_at(0, 10).await.unwrap(), "012");
        assert_eq!(blob.read_at(3, 7).await.unwrap(), "");
    }

    #[tokio::test]
    async fn manifest_is_read_up_to_its_bound() {
        let (dir, content) = store();
        let empty = put(&dir, b"");
        assert_eq!(content.read_manifest(&empty).await, ManifestRead::Bytes(Vec::new()));
        let largest = vec![b' '; usize::try_from(MANIFEST_SIZE_MAX).unwrap()];
        let digest = put(&dir, &largest);
        assert_eq!(content.read_manifest(&digest).await, ManifestRead::Bytes(largest.clone()));
        let digest = put(&dir, &[largest, vec![b' ']].concat());
        assert_eq!(content.read_manifest(&digest).await, ManifestRead::TooLarge);
        assert_eq!(content.read_manifest(&Digest::sha256_of(b"absent")).await, ManifestRead::Absent);
        let directory = Digest::sha256_of(b"directory");
        fs::create_dir_all(path_of(&dir, &directory)).unwrap();
        assert!(matches!(content.read_manifest(&directory).await, ManifestRead::Failed { .. }));
    }

    #[test]
    fn content_path_is_checked_in_words_for_the_operator() {
        let dir = TempDir::new().unwrap();
        let missing = ContentDir::new(dir.path().join("missing")).check().unwrap_err();
        assert!(matches!(missing, ContentPathError::Unreadable { .. }));
        let empty = ContentDir::new(dir.path()).check().unwrap_err();
        assert!(matches!(empty, ContentPathError::NotAContentStore { .. }));
        for error in [missing.to_string(), empty.to_string()] {
            assert!(error.contains(&dir.path().display().to_string()), "{error}");
            assert!(error.contains("--containerd-content-path") && !error.contains('\n'), "{error}");
        }
        fs::create_dir(dir.path().join("ingest")).unwrap();
        assert!(
            ContentDir::new(dir.path()).check().is_ok(),
            "containerd 1.6 has started, nothing was pulled"
        );
        fs::remove_dir(dir.path().join("ingest")).unwrap();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        assert!(ContentDir::new(dir.path()).check().is_ok());
    }

    #[test]
    fn store_that_containerd_has_yet_to_make_is_accepted() {
        let root = TempDir::new().unwrap();
        let default = root.path().join("io.containerd.content.v1.content");
        assert!(ContentDir::new(&default).check().is_err(), "not the root of any containerd");
        fs::create_dir(root.path().join("io.containerd.metadata.v1.bolt")).unwrap();
        assert!(ContentDir::new(&default).check().is_ok());
        assert!(ContentDir::new(root.path().join("io.containerd.content.v1.contnet")).check().is_err());
        fs::create_dir(&default).unwrap();
        assert!(ContentDir::new(&default).check().is_ok());
    }

    fn store() -> (TempDir, ContentDir) {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        let content = ContentDir::new(dir.path());
        (dir, content)
    }

    fn path_of(dir: &TempDir, digest: &Digest) -> PathBuf {
        dir.path().join("blobs/sha256").join(digest.hex())
    }

    fn put(dir: &TempDir, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256_of(bytes);
        fs::write(path_of(dir, &digest), bytes).unwrap();
        digest
    }
}
