//! The adapters for containerd and its content directory on a real containerd: a private one per
//! test, out of `$SPEGEL_CONTAINERD` (default `/usr/bin/containerd`) and the `ctr` beside it.
//! A machine without one fails these tests. No container is run and nothing is mounted.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod daemon;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use spegel_core::{
    Input, Inspection, ListedContent, ListedImage, Listing, ManifestRead, Output,
    oci::{Descriptor, Digest},
};
use spegel_io::{
    containerd::{Containerd, ContainerdHandle, ContainerdSettings},
    content::{
        Blob, ContentDir, ContentStore,
        watch::{self, WatchHandle},
    },
};
use tokio::{
    sync::mpsc::{Receiver, channel},
    time::{Instant, timeout},
};

use daemon::Daemon;

const NAMESPACE: &str = "k8s.io";

/// Far more than anything here takes, so that only what never comes fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// What containerd is given to connect or to give a sign of life.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How soon a commit must be known: a layer that a second node asks for at that time is there.
const COMMIT_SEEN_WITHIN: Duration = Duration::from_secs(1);

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn containerd_that_is_not_there_yet_is_reported_and_later_connected() {
    let mut daemon = Daemon::new();
    let mut node = Node::new(&daemon);
    assert!(node.settings.check_content_path().is_err(), "nothing is there yet");

    node.containerd.perform(Output::ConnectContainerd { timeout: TIMEOUT });
    let Input::ContainerdDisconnected { cause } = node.next().await else {
        panic!("no containerd to connect to")
    };
    assert!(cause.contains(&daemon.socket().display().to_string()), "{cause}");
    assert!(matches!(node.list().await, Input::ListFailed { .. }));
    assert!(matches!(node.inspect(Digest::sha256_of(b"x")).await, Inspection::Failed { .. }));

    daemon.start().await;
    node.settings.check_content_path().expect("an empty store is a store");
    node.connect().await;
    assert_eq!(node.list().await, Input::Listed(Listing::default()));
    assert_eq!(node.inspect(Digest::sha256_of(b"x")).await, Inspection::Absent);
    node.assert_silent().await;
}

#[tokio::test]
async fn commit_and_collection_are_seen_at_once_even_on_a_fresh_node() {
    let daemon = Daemon::started().await;
    let mut node = Node::new(&daemon);
    let (_watch, mut watched) = node.watch();
    wait_for(&mut watched, &Input::ContentWatched).await;
    node.connect().await;

    // The first commit makes the directories it goes to, the second finds them. Not `content ingest`:
    // nothing protects such content, and containerd soon collects it.
    for (name, layer) in [("registry.test/app:1", "first layer"), ("registry.test/app:2", "second layer")] {
        let (archive, ..) = image(daemon.dir(), name, &[layer.as_bytes().to_vec()]);
        daemon.import(NAMESPACE, &archive);
        let committed = Instant::now();
        let digest = Digest::sha256_of(layer.as_bytes());
        wait_for(&mut watched, &Input::BlobCommitted { digest }).await;
        assert!(committed.elapsed() < COMMIT_SEEN_WITHIN, "{:?}", committed.elapsed());
    }

    let digest = Digest::sha256_of(b"second layer");
    let present = ListedContent { digest, size: 12, sources: Vec::new() };
    assert_eq!(node.inspect(digest).await, Inspection::Present(present));
    let label = "containerd.io/distribution.source.registry.test=team/a,team/b";
    daemon.ctr(NAMESPACE, &["content", "label", &digest.to_string(), label]);
    let sources = ["team/a", "team/b"].map(|repository| ("registry.test".to_owned(), repository.to_owned()));
    let present = ListedContent { digest, size: 12, sources: sources.to_vec() };
    assert_eq!(node.inspect(digest).await, Inspection::Present(present.clone()));
    let Input::Listed(listing) = node.list().await else { panic!("listing failed") };
    assert!(listing.contents.contains(&present), "{listing:?}");

    let content = ContentDir::new(daemon.content_path());
    assert_eq!(content.open(&digest, 12).await.unwrap().read_at(7, 5).await.unwrap(), "layer");

    daemon.ctr(NAMESPACE, &["images", "rm", "--sync", "registry.test/app:2"]);
    wait_for(&mut watched, &Input::BlobRemoved { digest }).await;
    assert_eq!(node.inspect(digest).await, Inspection::Absent);
}

#[tokio::test]
async fn images_are_reported_when_created_retagged_and_deleted() {
    let daemon = Daemon::started().await;
    let mut node = Node::new(&daemon);
    node.connect().await;

    let layers = [b"layer".to_vec()];
    let (archive, target, manifest) = image(daemon.dir(), "registry.test/app:1", &layers);
    daemon.import(NAMESPACE, &archive);
    let created = named("registry.test/app:1", &target);
    assert_eq!(node.next_image_event().await, Input::ImageChanged(created.clone()));
    node.containerd.perform(Output::ReadManifest { digest: target.digest, timeout: PATIENCE });
    let read = Input::ManifestRead { digest: target.digest, outcome: ManifestRead::Bytes(manifest) };
    assert_eq!(node.next_other(&Input::ImageChanged(created.clone())).await, read);
    let Input::Listed(listing) = node.list().await else { panic!("listing failed") };
    assert_eq!(listing.images, [created]);
    let manifest = listing.contents.iter().find(|content| content.digest == target.digest);
    assert_eq!(manifest.map(|content| content.size), Some(target.size));

    daemon.ctr(NAMESPACE, &["images", "tag", "registry.test/app:1", "registry.test/app:2"]);
    let tagged = Input::ImageChanged(named("registry.test/app:2", &target));
    assert_eq!(node.next_image_event().await, tagged);

    // The same tag on other content: what a mutable tag such as `latest` does.
    let (archive, target, _) = image(daemon.dir(), "registry.test/app:2", &[b"other layer".to_vec()]);
    daemon.import(NAMESPACE, &archive);
    let moved = Input::ImageChanged(named("registry.test/app:2", &target));
    assert_eq!(node.next_other(&tagged).await, moved);

    daemon.ctr(NAMESPACE, &["images", "rm", "registry.test/app:1"]);
    let deleted = Input::ImageDeleted { name: "registry.test/app:1".to_owned() };
    assert_eq!(node.next_other(&moved).await, deleted);
}

#[tokio::test]
async fn other_namespaces_are_invisible() {
    let daemon = Daemon::started().await;
    let mut node = Node::new(&daemon);
    node.connect().await;
    let (archive, target, _) = image(daemon.dir(), "registry.test/app:1", &[b"layer".to_vec()]);
    daemon.import("other", &archive);
    assert_eq!(node.inspect(target.digest).await, Inspection::Absent);
    assert_eq!(node.list().await, Input::Listed(Listing::default()));
    node.assert_silent().await;
}

#[tokio::test]
async fn restarted_containerd_is_lost_once_and_can_be_connected_again() {
    let mut daemon = Daemon::started().await;
    let mut node = Node::new(&daemon);
    node.connect().await;
    let (archive, target, _) = image(daemon.dir(), "registry.test/app:1", &[b"layer".to_vec()]);
    daemon.import(NAMESPACE, &archive);
    node.drain_content_events().await;

    daemon.stop();
    assert!(matches!(node.next().await, Input::ContainerdDisconnected { .. }));
    assert!(matches!(node.inspect(target.digest).await, Inspection::Failed { .. }));
    daemon.start().await;
    node.assert_silent().await;
    // One that is not ordered to connect again does not by itself.
    assert!(matches!(node.list().await, Input::ListFailed { .. }));

    node.connect().await;
    assert!(matches!(node.inspect(target.digest).await, Inspection::Present(_)));
    daemon.ctr(NAMESPACE, &["images", "tag", "registry.test/app:1", "registry.test/app:2"]);
    assert_eq!(node.next_image_event().await, Input::ImageChanged(named("registry.test/app:2", &target)));
}

#[tokio::test]
async fn replaced_connection_goes_without_a_word() {
    let daemon = Daemon::started().await;
    let mut node = Node::new(&daemon);
    node.connect().await;
    node.connect().await;
    daemon.ctr_with(NAMESPACE, &["images", "ls"], b"");
    node.assert_silent().await;
    let (archive, target, _) = image(daemon.dir(), "registry.test/app:1", &[b"layer".to_vec()]);
    daemon.import(NAMESPACE, &archive);
    let created = Input::ImageChanged(named("registry.test/app:1", &target));
    assert_eq!(node.next_image_event().await, created);
    node.drain_content_events().await;
}

#[tokio::test]
async fn frozen_containerd_is_noticed() {
    let daemon = Daemon::started().await;
    let mut node = Node::new(&daemon);
    node.connect().await;
    let probe = Output::ProbeContainerd { timeout: TIMEOUT };
    node.containerd.perform(probe.clone());
    assert_eq!(node.next().await, Input::ContainerdProbed);
    daemon.freeze();
    let frozen = Instant::now();
    // More questions than are asked at a time: each fails by its own timeout, and the probe's
    // answer does not wait for theirs.
    for i in 0..20_u32 {
        let digest = Digest::sha256_of(&i.to_le_bytes());
        node.containerd.perform(Output::Inspect { digest, timeout: 2 * TIMEOUT });
    }
    node.containerd.perform(probe);
    assert!(matches!(node.next().await, Input::ContainerdProbeFailed { .. }));
    for _ in 0..20 {
        let input = node.next().await;
        assert!(matches!(input, Input::Inspected { outcome: Inspection::Failed { .. }, .. }), "{input:?}");
    }
    assert!(frozen.elapsed() < 3 * TIMEOUT, "{:?}", frozen.elapsed());
    node.containerd.perform(Output::ConnectContainerd { timeout: TIMEOUT });
    assert!(
        matches!(node.next().await, Input::ContainerdDisconnected { .. }),
        "it accepts, but does not answer"
    );
}

#[tokio::test]
async fn every_question_of_a_burst_is_answered() {
    let daemon = Daemon::started().await;
    let mut node = Node::new(&daemon);
    node.connect().await;
    for i in 0..500_u32 {
        node.containerd
            .perform(Output::Inspect { digest: Digest::sha256_of(&i.to_le_bytes()), timeout: PATIENCE });
    }
    let mut answered = BTreeSet::new();
    for _ in 0..500 {
        let Input::Inspected { digest, outcome } = node.next().await else { panic!("only answers") };
        assert_eq!(outcome, Inspection::Absent);
        answered.insert(digest);
    }
    assert_eq!(answered.len(), 500);
}

// One manifest of many layers is the quickest way to a large store.
#[tokio::test]
async fn large_store_is_listed_whole() {
    const LAYERS: u32 = 2_000;
    let daemon = Daemon::started().await;
    let mut node = Node::new(&daemon);
    node.connect().await;
    let layers: Vec<_> = (0..LAYERS).map(|i| i.to_le_bytes().to_vec()).collect();
    let (archive, ..) = image(daemon.dir(), "registry.test/app:1", &layers);
    daemon.import(NAMESPACE, &archive);
    node.drain_content_events().await;
    let started = Instant::now();
    let Input::Listed(listing) = node.list().await else { panic!("listing failed") };
    println!("{} blobs listed in {:?}", listing.contents.len(), started.elapsed());
    let listed: BTreeSet<_> = listing.contents.iter().map(|content| content.digest).collect();
    assert!(layers.iter().all(|layer| listed.contains(&Digest::sha256_of(layer))));
}

/// What stands in for the core: orders out, inputs in.
struct Node {
    settings: ContainerdSettings,
    containerd: ContainerdHandle,
    inputs: Receiver<Input>,
}

impl Node {
    fn new(daemon: &Daemon) -> Self {
        let settings = ContainerdSettings {
            socket: daemon.socket(),
            namespace: NAMESPACE.to_owned(),
            content_path: daemon.content_path(),
        };
        let (sender, inputs) = channel(16);
        Self { containerd: Containerd::spawn(settings.clone(), sender), settings, inputs }
    }

    /// What the watch of the content directory reports for as long as its handle lives.
    fn watch(&self) -> (WatchHandle, Receiver<Input>) {
        let (sender, inputs) = channel(16);
        let watch = watch::spawn(&self.settings.content_path, sender);
        watch.perform(false);
        (watch, inputs)
    }

    async fn next(&mut self) -> Input {
        timeout(PATIENCE, self.inputs.recv()).await.expect("an input in time").expect("the adapter runs")
    }

    async fn connect(&mut self) {
        self.containerd.perform(Output::ConnectContainerd { timeout: TIMEOUT });
        let input = self.next().await;
        assert!(matches!(&input, Input::ContainerdConnected { version } if !version.is_empty()), "{input:?}");
    }

    async fn list(&mut self) -> Input {
        self.containerd.perform(Output::List { timeout: PATIENCE });
        self.next().await
    }

    async fn inspect(&mut self, digest: Digest) -> Inspection {
        self.containerd.perform(Output::Inspect { digest, timeout: PATIENCE });
        loop {
            if let Input::Inspected { digest: asked, outcome } = self.next().await {
                assert_eq!(asked, digest);
                return outcome;
            }
        }
    }

    /// The next event about an image: containerd 2.1 and later send some about content too.
    async fn next_image_event(&mut self) -> Input {
        loop {
            let input = self.next().await;
            if !matches!(input, Input::BlobCommitted { .. }) {
                return input;
            }
        }
    }

    /// The next input that is neither about content nor `seen`: importing an image that exists, or
    /// whose name does, makes containerd report it more than once.
    async fn next_other(&mut self, seen: &Input) -> Input {
        loop {
            let input = self.next_image_event().await;
            if input != *seen {
                return input;
            }
        }
    }

    async fn drain_content_events(&mut self) {
        while let Ok(input) = timeout(Duration::from_millis(500), self.inputs.recv()).await {
            assert!(matches!(input, Some(Input::BlobCommitted { .. } | Input::ImageChanged(_))), "{input:?}");
        }
    }

    async fn assert_silent(&mut self) {
        let input = timeout(Duration::from_millis(500), self.inputs.recv()).await;
        assert!(input.is_err(), "{input:?}");
    }
}

async fn wait_for(inputs: &mut Receiver<Input>, expected: &Input) {
    let found = async { while inputs.recv().await.expect("the watch runs") != *expected {} };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{expected:?} did not come"));
}

fn named(name: &str, target: &Descriptor) -> ListedImage {
    ListedImage { name: name.to_owned(), target: Some(target.clone()) }
}

/// Makes an archive of an image: its path, its target, its manifest.
fn image(dir: &Path, name: &str, layers: &[Vec<u8>]) -> (PathBuf, Descriptor, Vec<u8>) {
    let layout = dir.join("layout");
    drop(fs::remove_dir_all(&layout));
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::sha256_of(bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, bytes.len())
    };
    let config = put(
        "application/vnd.oci.image.config.v1+json",
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
    );
    let layers: Vec<_> =
        layers.iter().map(|layer| put("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{config},"layers":[{}]}}"#,
        layers.join(",")
    );
    put(MANIFEST_TYPE, manifest.as_bytes());
    let digest = Digest::sha256_of(manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST_TYPE}","digest":"{digest}","size":{},"annotations":{{"io.containerd.image.name":"{name}"}}}}]}}"#,
        manifest.len()
    );
    fs::write(layout.join("index.json"), index).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let archive = dir.join("image.tar");
    let tar = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg(".").status();
    assert!(tar.expect("tar is installed").success());
    let target = Descriptor { media_type: MANIFEST_TYPE.to_owned(), digest, size: manifest.len() as u64 };
    (archive, target, manifest.into_bytes())
}
