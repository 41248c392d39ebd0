//! Pulling, importing and removing images on one node, by the kubelet's way and by `ctr`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::image::{Blob, Image};
use crate::node::Node;
use crate::process::run;
use crate::{content, cri, wait_for};

/// A pull that takes longer has failed, whatever it says later: the worst case promised is some seconds.
const PULL_MAX: Duration = Duration::from_secs(120);
const CALL_MAX: Duration = Duration::from_secs(20);

/// Who pulls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Puller {
    /// `PullImage` of the CRI API, as the kubelet.
    Cri,
    /// `ctr images pull --hosts-dir`.
    Ctr,
}

impl Puller {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cri, Self::Ctr];
}

impl Node {
    /// Pulls an image by name and says how long it took.
    ///
    /// # Errors
    /// With what containerd said.
    pub fn pull(&self, puller: Puller, name: &str) -> Result<Duration, String> {
        let start = Instant::now();
        match puller {
            Puller::Cri => cri::pull(&self.paths.socket, name, PULL_MAX).map(drop)?,
            Puller::Ctr => {
                let mut command = self.ctr();
                command.args(["images", "pull", "--hosts-dir"]).arg(&self.paths.hosts).arg(name);
                run(command)?;
            }
        }
        Ok(start.elapsed())
    }

    /// `ctr content fetch`: downloads without unpacking.
    ///
    /// # Errors
    /// With what ctr said.
    pub fn fetch(&self, name: &str) -> Result<Duration, String> {
        let start = Instant::now();
        let mut command = self.ctr();
        command.args(["content", "fetch", "--hosts-dir"]).arg(&self.paths.hosts).arg(name);
        run(command)?;
        Ok(start.elapsed())
    }

    /// Imports an image's layout without the network: content, and the image by its tag.
    ///
    /// # Errors
    /// With what ctr said.
    pub fn import(&self, image: &Image) -> Result<(), String> {
        self.import_archive(&image.archive())
    }

    /// Imports any archive `ctr images import` takes.
    ///
    /// # Errors
    /// With what ctr said.
    pub fn import_archive(&self, archive: &Path) -> Result<(), String> {
        let mut command = self.ctr();
        command.args(["images", "import", "--no-unpack", "--all-platforms"]).arg(archive);
        run(command).map(drop)
    }

    /// Adds one blob to the content store, as the commit of a layer in the middle of a pull does: no image
    /// names it yet, and it has the label that tells where it came from.
    ///
    /// # Errors
    /// With what containerd said.
    pub fn ingest(&self, image: &Image, blob: &Blob) -> Result<(), String> {
        content::ingest(&self.paths.socket, &image.repository, blob)
    }

    /// Puts many images into the store over one connection, with all content a node needs of them.
    ///
    /// # Errors
    /// With what containerd said.
    pub fn store(&self, images: &[Image]) -> Result<(), String> {
        content::store(&self.paths.socket, images)
    }

    /// Removes an image as the kubelet does; containerd collects the content before it answers.
    ///
    /// # Errors
    /// With what containerd said.
    pub fn remove_image(&self, name: &str) -> Result<(), String> {
        cri::remove(&self.paths.socket, name, CALL_MAX)
    }

    /// Names of the images the kubelet sees.
    ///
    /// # Errors
    /// With what containerd said.
    pub fn images(&self) -> Result<Vec<String>, String> {
        cri::list(&self.paths.socket, CALL_MAX)
    }

    /// Checks that everything a node needs of the image is in the content store, byte for byte.
    ///
    /// # Errors
    /// Naming the blob that is missing or wrong.
    pub fn verify(&self, image: &Image) -> Result<(), String> {
        let mut command = Command::new("sha256sum");
        for blob in &image.needed {
            command.arg(self.blob_file(blob));
        }
        let sums = run(command).map_err(|error| format!("{}: {error}", self.name))?;
        for (blob, line) in image.needed.iter().zip(sums.lines()) {
            if !line.starts_with(blob.hex()) {
                return Err(format!("{}: {} has other bytes: {line}", self.name, blob.digest));
            }
        }
        Ok(())
    }

    /// Whether the content store has the blob.
    #[must_use]
    pub fn has(&self, blob: &Blob) -> bool {
        self.blob_file(blob).exists()
    }

    /// Waits until a download of this blob has at least `bytes` on disk, to break something in the middle.
    ///
    /// # Errors
    /// If it does not get there in time.
    pub fn wait_ingest(&self, blob: &Blob, bytes: u64, within: Duration) -> Result<(), String> {
        let look = || match self.ingest_bytes(blob) {
            Some(there) if there >= bytes => Ok(()),
            other => Err(format!("{other:?} bytes of {}", blob.digest)),
        };
        wait_for("the download is under way", within, look).map(drop)
    }

    /// How much of a blob that is being downloaded is on disk.
    #[must_use]
    pub fn ingest_bytes(&self, blob: &Blob) -> Option<u64> {
        let ingests = fs::read_dir(self.paths.content().join("ingest")).ok()?;
        ingests.flatten().map(|entry| entry.path()).find_map(|ingest| {
            let reference = fs::read_to_string(ingest.join("ref")).ok()?;
            let data = fs::metadata(ingest.join("data")).ok()?;
            reference.ends_with(&blob.digest).then_some(data.len())
        })
    }

    pub(crate) fn ctr(&self) -> Command {
        let mut command = self.netns().command(self.generation.ctr());
        command.arg("-a").arg(&self.paths.socket).args(["-n", "k8s.io"]);
        command
    }
}
