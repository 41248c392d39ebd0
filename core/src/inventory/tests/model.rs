//! Random histories of a containerd beside the inventory that watches it: events late or lost,
//! answers stale or missing, outages. Once everything settles, what is served is what is there.

use proptest::prelude::*;

use super::*;
use crate::oci::parse_manifest;

/// Blobs of the little world: layers, configs, manifests, an index, a broken manifest.
const BLOBS: usize = 11;
/// The blobs that images may have as their target.
const ROOTS: [usize; 5] = [6, 7, 8, 9, 3];
const NAMES: [&str; 6] = [
    "docker.io/a:1",
    "docker.io/b:2",
    "docker.io/secret:1",
    "r.test/a:1",
    "docker.io/ODD:1",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
];
const LABELS: [&[(&str, &str)]; 4] = [&[], DOCKER, OTHER, &[("docker.io", "secret")]];

#[derive(Clone, Debug)]
enum Step {
    Commit {
        blob: usize,
        labels: usize,
        is_told: bool,
    },
    /// The file is there, containerd's metadata a moment later.
    CommitEarly {
        blob: usize,
    },
    /// Labels change without any event.
    Label {
        blob: usize,
        labels: usize,
    },
    Remove {
        blob: usize,
        is_told: bool,
    },
    SetImage {
        name: usize,
        root: usize,
        is_told: bool,
    },
    DeleteImage {
        name: usize,
        is_told: bool,
    },
    Disconnect,
    Connect,
    /// The n-th open question is answered: as things were when it was asked, or as they are.
    Answer {
        nth: usize,
        is_stale: bool,
    },
    /// The n-th open question comes to nothing.
    Fail {
        nth: usize,
    },
    ChangesMissed,
    Unreadable {
        blob: usize,
    },
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let told = || prop::bool::weighted(0.8);
    prop_oneof![
        2 => (0..BLOBS).prop_map(|blob| Step::CommitEarly { blob }),
        6 => (0..BLOBS, 0..LABELS.len(), told())
            .prop_map(|(blob, labels, is_told)| Step::Commit { blob, labels, is_told }),
        2 => (0..BLOBS, 0..LABELS.len()).prop_map(|(blob, labels)| Step::Label { blob, labels }),
        3 => (0..BLOBS, told()).prop_map(|(blob, is_told)| Step::Remove { blob, is_told }),
        4 => (0..NAMES.len(), 0..ROOTS.len(), told())
            .prop_map(|(name, root, is_told)| Step::SetImage { name, root, is_told }),
        2 => (0..NAMES.len(), told()).prop_map(|(name, is_told)| Step::DeleteImage { name, is_told }),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Connect),
        12 => (0..8_usize, any::<bool>()).prop_map(|(nth, is_stale)| Step::Answer { nth, is_stale }),
        1 => (0..8_usize).prop_map(|nth| Step::Fail { nth }),
        1 => Just(Step::ChangesMissed),
        1 => (0..BLOBS).prop_map(|blob| Step::Unreadable { blob }),
        4 => prop::sample::select(vec![1, 20, 300, 1_500, 61_000]).prop_map(|ms| Step::Wait { ms }),
    ]
}

/// Everything is told and nothing fails; answers may still be stale.
fn told_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..BLOBS).prop_map(|blob| Step::Commit { blob, labels: 1, is_told: true }),
        4 => (0..BLOBS).prop_map(|blob| Step::CommitEarly { blob }),
        4 => (0..BLOBS).prop_map(|blob| Step::Remove { blob, is_told: true }),
        4 => (0..NAMES.len(), 0..ROOTS.len())
            .prop_map(|(name, root)| Step::SetImage { name, root, is_told: true }),
        2 => (0..NAMES.len()).prop_map(|name| Step::DeleteImage { name, is_told: true }),
        12 => (0..4_usize, prop::bool::weighted(0.8))
            .prop_map(|(nth, is_stale)| Step::Answer { nth, is_stale }),
        2 => Just(Step::ChangesMissed),
        6 => prop::sample::select(vec![1, 20, 300, 1_500]).prop_map(|ms| Step::Wait { ms }),
    ]
}

struct Blob {
    digest: Digest,
    media_type: &'static str,
    bytes: Vec<u8>,
}

/// The blobs, by index: 0 to 3 layers, 4 and 5 configs, 6 and 7 manifests, 8 their index, 9 a
/// broken manifest, 10 another layer.
fn blobs() -> Vec<Blob> {
    let mut blobs: Vec<Blob> = Vec::new();
    let plain =
        |media_type, text: &str| Blob { digest: digest(text), media_type, bytes: text.as_bytes().to_vec() };
    blobs.extend(["l0", "l1", "l2", "l3"].map(|text| plain(LAYER, text)));
    blobs.extend(["c0", "c1"].map(|text| plain(CONFIG, text)));
    let pointer = |blob: &Blob| {
        format!(r#"{{"mediaType":"{}","digest":"{}","size":10}}"#, blob.media_type, blob.digest)
    };
    for (config, layers) in [(4, [0, 1]), (5, [1, 2])] {
        let layers = layers.map(|layer: usize| pointer(&blobs[layer])).join(",");
        let json = format!(r#"{{"config":{},"layers":[{layers}]}}"#, pointer(&blobs[config]));
        blobs.push(plain(MANIFEST, &json));
    }
    let json = format!(r#"{{"manifests":[{},{}]}}"#, pointer(&blobs[6]), pointer(&blobs[7]));
    blobs.push(plain(INDEX, &json));
    blobs.push(plain(MANIFEST, "<html>"));
    blobs.push(plain(LAYER, "l4"));
    blobs
}

#[derive(Clone, Debug)]
enum Question {
    List(Listing),
    Inspect(Digest, Inspection),
    Read(Digest, ManifestRead),
}

/// containerd, and everything between it and the inventory.
struct World {
    f: Fixture,
    filters: Filters,
    blobs: Vec<Blob>,
    /// What is there, with its labels.
    contents: BTreeMap<usize, usize>,
    /// Files whose metadata comes at a time.
    early: BTreeMap<usize, Instant>,
    images: BTreeMap<usize, usize>,
    is_connected: bool,
    questions: Vec<Question>,
}

impl World {
    fn new(filters: Filters) -> Self {
        Self {
            f: Fixture::new(filters.clone()),
            filters,
            blobs: blobs(),
            contents: BTreeMap::new(),
            early: BTreeMap::new(),
            images: BTreeMap::new(),
            is_connected: false,
            questions: Vec::new(),
        }
    }

    fn listed_content(&self, blob: usize, labels: usize) -> ListedContent {
        let sources = LABELS[labels].iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        ListedContent { digest: self.blobs[blob].digest, size: 10, sources }
    }

    fn listed_image(&self, name: usize, root: usize) -> ListedImage {
        let root = &self.blobs[ROOTS[root]];
        image(NAMES[name], root.media_type, &root.digest)
    }

    fn blob_of(&self, digest: &Digest) -> Option<usize> {
        self.blobs.iter().position(|blob| blob.digest == *digest)
    }

    fn listing(&self) -> Listing {
        Listing {
            images: self.images.iter().map(|(name, root)| self.listed_image(*name, *root)).collect(),
            contents: self
                .contents
                .iter()
                .map(|(blob, labels)| self.listed_content(*blob, *labels))
                .collect(),
        }
    }

    fn truth(&self, question: &Question) -> Question {
        let there = |digest: &Digest| self.blob_of(digest).filter(|blob| self.contents.contains_key(blob));
        match question {
            Question::List(_) => Question::List(self.listing()),
            Question::Inspect(digest, _) => {
                let outcome = there(digest).map_or(Inspection::Absent, |blob| {
                    Inspection::Present(self.listed_content(blob, self.contents[&blob]))
                });
                Question::Inspect(*digest, outcome)
            }
            Question::Read(digest, _) => {
                let outcome = there(digest)
                    .map_or(ManifestRead::Absent, |blob| ManifestRead::Bytes(self.blobs[blob].bytes.clone()));
                Question::Read(*digest, outcome)
            }
        }
    }

    fn drain(&mut self) {
        for event in self.f.drain() {
            let question = match event {
                Event::List => {
                    assert!(self.is_connected, "nobody to list");
                    Question::List(Listing::default())
                }
                Event::Inspect { digest } => Question::Inspect(digest, Inspection::Absent),
                Event::ReadManifest { digest } => Question::Read(digest, ManifestRead::Absent),
                Event::ConnectContainerd
                | Event::ProbeContainerd
                | Event::WatchContent { .. }
                | Event::ServeContent { .. }
                | Event::StopServingContent { .. }
                | Event::ServeTag { .. }
                | Event::StopServingTag { .. }
                | Event::Hold(_)
                | Event::Release(_)
                | Event::Notice(_) => continue,
            };
            let question = self.truth(&question);
            self.questions.push(question);
        }
    }

    fn answer(&mut self, nth: usize, is_stale: bool) {
        if nth >= self.questions.len() {
            return;
        }
        let question = self.questions.remove(nth);
        let question = if is_stale { question } else { self.truth(&question) };
        let (inventory, now) = (&mut self.f.inventory, self.f.now);
        match question {
            Question::List(listing) => inventory.on_listed(now, listing),
            Question::Inspect(digest, outcome) => inventory.on_inspected(now, &digest, outcome),
            Question::Read(digest, outcome) => inventory.on_manifest_read(now, &digest, outcome),
        }
    }

    fn fail(&mut self, nth: usize) {
        if nth >= self.questions.len() {
            return;
        }
        let cause = "no".to_owned();
        let (inventory, now) = (&mut self.f.inventory, self.f.now);
        match self.questions.remove(nth) {
            Question::List(_) => inventory.on_list_failed(now, &cause),
            Question::Inspect(digest, _) => {
                inventory.on_inspected(now, &digest, Inspection::Failed { cause })
            }
            Question::Read(digest, _) => {
                inventory.on_manifest_read(now, &digest, ManifestRead::Failed { cause })
            }
        }
    }

    /// Questions to containerd that are open come to nothing; files can still be read.
    fn disconnect(&mut self) {
        self.is_connected = false;
        self.f.inventory.on_disconnected(self.f.now, "gone".to_owned());
        while let Some(nth) = self.questions.iter().position(|q| !matches!(q, Question::Read(..))) {
            self.fail(nth);
        }
    }

    fn connect(&mut self) {
        self.is_connected = true;
        self.f.inventory.on_connected(self.f.now, String::new());
    }

    fn wait_until(&mut self, at: Instant) {
        self.f.now = self.f.now.max(at);
        let now = self.f.now;
        for (blob, _) in self.early.extract_if(.., |_, at| *at <= now) {
            self.contents.insert(blob, 1);
        }
        self.f.inventory.handle_timeout(now);
    }

    fn apply(&mut self, step: &Step) {
        let now = self.f.now;
        match *step {
            Step::CommitEarly { blob } => {
                if !self.contents.contains_key(&blob) {
                    self.early.insert(blob, now + Duration::from_millis(200));
                    self.f.inventory.on_blob_committed(now, &self.blobs[blob].digest);
                }
            }
            Step::Commit { blob, labels, is_told } => {
                self.contents.insert(blob, labels);
                self.early.remove(&blob);
                if is_told {
                    self.f.inventory.on_blob_committed(now, &self.blobs[blob].digest);
                }
            }
            Step::Label { blob, labels } => {
                self.contents.entry(blob).and_modify(|before| *before = labels);
            }
            Step::Remove { blob, is_told } => {
                self.contents.remove(&blob);
                self.early.remove(&blob);
                if is_told {
                    self.f.inventory.on_blob_removed(now, &self.blobs[blob].digest);
                }
            }
            Step::SetImage { name, root, is_told } => {
                self.images.insert(name, root);
                if is_told && self.is_connected {
                    let image = self.listed_image(name, root);
                    self.f.inventory.on_image_changed(now, &image);
                }
            }
            Step::DeleteImage { name, is_told } => {
                self.images.remove(&name);
                if is_told && self.is_connected {
                    self.f.inventory.on_image_deleted(now, NAMES[name]);
                }
            }
            Step::Disconnect => self.disconnect(),
            Step::Connect => {
                if !self.is_connected {
                    self.connect();
                }
            }
            Step::Answer { nth, is_stale } => self.answer(nth, is_stale),
            Step::Fail { nth } => self.fail(nth),
            Step::ChangesMissed => self.f.inventory.on_changes_missed(now),
            Step::Unreadable { blob } => {
                self.f.inventory.on_content_unreadable(now, &self.blobs[blob].digest);
            }
            Step::Wait { ms } => {
                self.wait_until(now + Duration::from_millis(ms));
            }
        }
        self.drain();
    }

    /// Everything works and is answered for longer than any back-off lasts.
    fn settle(&mut self) {
        self.disconnect();
        self.connect();
        self.drain();
        self.settle_for(Duration::from_secs(7 * 3600));
    }

    fn settle_for(&mut self, duration: Duration) {
        let end = self.f.now + duration;
        for _ in 0..10_000 {
            while !self.questions.is_empty() {
                self.answer(0, false);
                self.drain();
            }
            let next = self.f.inventory.poll_timeout().expect("a resync at least");
            if next > end {
                return;
            }
            self.wait_until(next);
            self.drain();
        }
        panic!("it never comes to rest");
    }

    /// What unlabelled content is of allowed images: at least by the manifests that are there,
    /// at most by all.
    fn reached(&self, all: bool) -> BTreeSet<Digest> {
        let mut reached = BTreeSet::new();
        let is_allowed = |name: &str| {
            name.parse::<ImageName>()
                .is_ok_and(|n| self.filters.allows(&n.registry, n.repository.as_str(), None))
        };
        let roots =
            self.images.iter().filter(|(name, _)| is_allowed(NAMES[**name])).map(|(_, root)| ROOTS[*root]);
        let mut open: Vec<usize> = roots.collect();
        while let Some(blob) = open.pop() {
            let Blob { digest, media_type, bytes } = &self.blobs[blob];
            reached.insert(*digest);
            if !all && !self.contents.contains_key(&blob) {
                continue;
            }
            let children = parse_manifest(Some(media_type), bytes).unwrap_or_default();
            let children = children.manifests.iter().chain(&children.config).chain(&children.layers);
            open.extend(children.filter_map(|child| self.blob_of(&child.digest)));
        }
        reached
    }

    fn check(&self) {
        let (least, most) = (self.reached(false), self.reached(true));
        for (blob, Blob { digest, .. }) in self.blobs.iter().enumerate() {
            let (may, must) = match self.contents.get(&blob).map(|labels| LABELS[*labels]) {
                None => (false, false),
                Some(_) if self.filters.is_unrestricted() => (true, true),
                Some([]) => (most.contains(digest), least.contains(digest)),
                Some(labels) => {
                    let allowed = labels.iter().any(|(a, b)| self.filters.allows(a, b, None));
                    (allowed, allowed)
                }
            };
            let is_served = self.f.served.contents.contains_key(digest);
            assert!(is_served || !must, "{digest} (blob {blob}) is not served");
            assert!(!is_served || may, "{digest} (blob {blob}) is served");
            assert_eq!(self.f.inventory.holds(digest), is_served);
        }
        let is_allowed = |name: &&usize| {
            NAMES[**name].parse::<ImageName>().is_ok_and(|n| {
                let tag = n.tag.as_ref().map(|tag| tag.as_str());
                self.filters.allows(&n.registry, n.repository.as_str(), tag)
            })
        };
        let tags = self.images.iter().filter(|(name, _)| is_allowed(name)).filter_map(|(name, root)| {
            let target = self.blobs[ROOTS[*root]].digest;
            self.f.served.contents.contains_key(&target).then(|| (NAMES[*name].to_owned(), target))
        });
        assert_eq!(self.f.served.tags, tags.collect());
        self.f.served.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_served_settles_on_what_is_there(
        steps in prop::collection::vec(step(), 0..80),
        is_restricted: bool,
    ) {
        let mut world = World::new(if is_restricted { docker_only() } else { Filters::default() });
        world.connect();
        world.drain();
        for step in &steps {
            world.apply(step);
        }
        world.settle();
        world.check();
    }

    #[test]
    fn events_alone_keep_what_is_served_right(steps in prop::collection::vec(told_step(), 0..60)) {
        let mut world = World::new(Filters::default());
        world.connect();
        world.drain();
        for step in &steps {
            world.apply(step);
        }
        // What is open is answered as things were; what follows from that, as they are.
        for _ in 0..world.questions.len() {
            world.answer(0, true);
        }
        world.drain();
        // Shorter than any listing takes to become due without cause.
        world.f.inventory.link.want_no_resync();
        world.settle_for(Duration::from_secs(3));
        world.check();
    }
}
