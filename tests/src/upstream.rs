//! The upstream registry: Debian's `docker-registry` on a directory, in a namespace of its own.
//!
//! Images are put straight into its storage directory, as a push would leave them there: that is fast, and
//! it takes images no client would push.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::http::HttpClient;
use crate::image::Image;
use crate::netns::{LinkBytes, NetNs, ip_batch};
use crate::process::Process;
use crate::wait::wait_for;

/// A registry of an idle machine answers in some 50 ms; a loaded one gets a multiple.
const START_MAX: Duration = Duration::from_secs(20);

/// The registry and its link.
#[derive(Debug)]
pub struct Upstream {
    netns: NetNs,
    bridge: String,
    storage: PathBuf,
    process: Process,
}

impl Upstream {
    pub(crate) fn start(netns: NetNs, bridge: &str, dir: &Path) -> Self {
        let storage = dir.join("storage");
        fs::create_dir_all(&storage).expect("the cluster's directory is ours");
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: ':80'}}\n",
            storage.display()
        );
        fs::write(&config, text).expect("the cluster's directory is ours");
        let mut command = netns.command("docker-registry");
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        let process = Process::spawn("docker-registry", command, &dir.join("registry.log"));
        Self { netns, bridge: bridge.to_owned(), storage, process }
    }

    pub(crate) fn wait_ready(&self) {
        let look = || {
            let loopback = "127.0.0.1:80".parse().expect("an address");
            self.netns.enter(|| HttpClient::connect(loopback, Duration::from_secs(1)))?.get("/v2/", &[])
        };
        wait_for("the registry answers", START_MAX, look)
            .unwrap_or_else(|error| panic!("{error}\n{}", self.process.log_tail(20)));
    }

    #[must_use]
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Makes an image available under its name.
    pub fn publish(&self, image: &Image) {
        let root = self.storage.join("docker/registry/v2");
        let repository = root.join("repositories").join(&image.repository);
        for blob in &image.blobs {
            let hex = blob.hex();
            let data = root.join("blobs/sha256").join(&hex[..2]).join(hex);
            fs::create_dir_all(&data).expect("the storage is ours");
            // A link, not a copy: hundreds of megabytes need not be written twice.
            let _already_there = symlink(&blob.path, data.join("data"));
            let kind = if blob.is_manifest { "_manifests/revisions" } else { "_layers" };
            write_link(&repository.join(kind).join("sha256").join(hex), &blob.digest);
        }
        if let Some(tag) = &image.tag {
            let tag = repository.join("_manifests/tags").join(tag);
            let hex = image.digest.trim_start_matches("sha256:");
            write_link(&tag.join("current"), &image.digest);
            write_link(&tag.join("index/sha256").join(hex), &image.digest);
        }
    }

    /// Takes the registry away as a cable would: no answer, no FIN, no RST.
    pub fn cut(&self) {
        ip_batch(Some(&self.bridge), "link set registry down\n");
    }

    /// Undoes [`Self::cut`].
    pub fn restore(&self) {
        ip_batch(Some(&self.bridge), "link set registry up\n");
    }

    /// Limits what the registry can send to all nodes together.
    pub fn limit(&self, mbit: Option<u32>) {
        self.netns.shape("eth0", mbit);
    }

    /// What passed the registry's link; `sent` is what the cluster downloaded, with protocol overhead.
    #[must_use]
    pub fn link_bytes(&self) -> LinkBytes {
        self.netns.link_bytes()
    }

    /// Connections accepted so far. Exactly 0 more is what "without the registry" means; bytes have the
    /// background noise of ARP and neighbour discovery.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.netns.tcp_counter("PassiveOpens")
    }
}

fn write_link(dir: &Path, digest: &str) {
    fs::create_dir_all(dir).expect("the storage is ours");
    fs::write(dir.join("link"), digest).expect("the storage is ours");
}
