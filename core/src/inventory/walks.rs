//! Decides which manifests are read, and knows what images consist of. Never decides what
//! is served: an image that cannot be walked is served like any other. The inventory calls it.
//!
//! Walks are per root digest, because CRI gives each image several names. A manifest is read once
//! whatever the number of images that share it, paced, and again only if it could not be read:
//! content under one digest does not change.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    contents::Contents,
    finding::{Finding, Reason},
};
use crate::{
    ManifestRead,
    backoff::Backoff,
    oci::{
        Descriptor, Digest, MANIFEST_SIZE_MAX, ManifestError, is_index_type, is_layer_type, is_manifest_type,
        parse_manifest,
    },
    output::{ANSWER_GRACE, soonest},
    pacer::Pacer,
    rng::Rng,
};

/// Most manifests read at a time. Lower and a start takes longer; higher and slow disks
/// serve us rather than the pods.
pub(super) const READS_IN_FLIGHT_MAX: usize = 16;

/// Pace of reads: this many at once, then one each interval. Slower and attribution of content is
/// late after a start; faster and a start takes a whole CPU.
const READ_BURST: u32 = 256;
/// See [`READ_BURST`].
const READ_INTERVAL: Duration = Duration::from_micros(500);

/// How long a read may take. Shorter and a busy disk looks broken; longer and lost answers
/// keep their places.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// First and longest pause before an unreadable manifest is read again. Shorter and a broken
/// disk keeps us busy; longer and an image that was repaired stays in quarantine.
const REREAD_BACKOFF: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));

/// Deepest nesting of indexes walked. Lower and odd but legal images are walked in part; higher
/// and crafted ones cost stack.
pub(super) const WALK_DEPTH_MAX: usize = 8;

/// Most manifests walked of one image. Lower and large artifacts are walked in part; higher and
/// one crafted image keeps the node reading.
pub(super) const WALK_MANIFESTS_MAX: usize = 1024;

#[derive(Debug)]
struct Tree {
    root: Descriptor,
    /// The images whose target it is.
    names: BTreeSet<String>,
    /// Manifests of the tree, local or not.
    met: BTreeSet<Digest>,
    /// What was found by the last walk.
    findings: BTreeMap<Reason, Finding>,
    /// What has been said.
    noted: BTreeSet<Reason>,
}

#[derive(Debug)]
struct Manifest {
    media_type: String,
    /// The trees it is in.
    roots: BTreeSet<Digest>,
    state: ManifestState,
    is_queued: bool,
    rereads: Backoff,
    reread_at: Option<Instant>,
}

#[derive(Debug)]
enum ManifestState {
    Unread,
    Read(Arc<Walked>),
    /// For good: content under one digest does not change.
    Refused(Finding),
    /// For the time being; nothing is said of a file that is merely gone, once.
    Unreadable(Option<Finding>),
}

/// What a manifest consists of.
#[derive(Debug)]
struct Walked {
    manifests: Vec<Descriptor>,
    leaves: Vec<Digest>,
    findings: Vec<Finding>,
}

/// A tree in trouble, for the report.
#[derive(Debug)]
pub(super) struct Quarantined<'a> {
    pub(super) name: &'a str,
    pub(super) reason: Reason,
    pub(super) reread_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Walks {
    trees: BTreeMap<Digest, Tree>,
    manifests: BTreeMap<Digest, Manifest>,
    /// Trees to walk again.
    dirty: BTreeSet<Digest>,
    queue: VecDeque<Digest>,
    /// Reads under way and their deadlines.
    reading: BTreeMap<Digest, Instant>,
    rereads: BTreeSet<(Instant, Digest)>,
    pacer: Pacer,
    /// When the queue may go on.
    read_at: Option<Instant>,
}

impl Walks {
    pub(super) fn new() -> Self {
        Self {
            trees: BTreeMap::new(),
            manifests: BTreeMap::new(),
            dirty: BTreeSet::new(),
            queue: VecDeque::new(),
            reading: BTreeMap::new(),
            rereads: BTreeSet::new(),
            pacer: Pacer::new(READ_INTERVAL, READ_BURST),
            read_at: None,
        }
    }

    /// An image has this target.
    pub(super) fn add(&mut self, root: &Descriptor, name: &str) {
        let tree = self.trees.entry(root.digest).or_insert_with(|| Tree {
            root: root.clone(),
            names: BTreeSet::new(),
            met: BTreeSet::new(),
            findings: BTreeMap::new(),
            noted: BTreeSet::new(),
        });
        tree.names.insert(name.to_owned());
        self.dirty.insert(root.digest);
    }

    /// An image has this target no more.
    pub(super) fn remove(&mut self, root: &Digest, name: &str) {
        let Some(tree) = self.trees.get_mut(root) else { return };
        tree.names.remove(name);
        if tree.names.is_empty()
            && let Some(tree) = self.trees.remove(root)
        {
            self.dirty.remove(root);
            for digest in &tree.met {
                self.leave(digest, root);
            }
        }
    }

    /// The images whose target this is.
    pub(super) fn names(&self, root: &Digest) -> impl Iterator<Item = &str> {
        self.trees.get(root).into_iter().flat_map(|tree| tree.names.iter().map(String::as_str))
    }

    /// A manifest left a tree; the last tree takes it along.
    fn leave(&mut self, digest: &Digest, root: &Digest) {
        let Some(manifest) = self.manifests.get_mut(digest) else { return };
        manifest.roots.remove(root);
        if manifest.roots.is_empty() {
            if let Some(at) = manifest.reread_at {
                self.rereads.remove(&(at, *digest));
            }
            self.manifests.remove(digest);
        }
    }

    /// Content appeared or vanished.
    pub(super) fn on_content_changed(&mut self, digest: &Digest) {
        if let Some(manifest) = self.manifests.get_mut(digest) {
            if matches!(manifest.state, ManifestState::Unreadable(_)) {
                manifest.state = ManifestState::Unread;
                manifest.rereads.reset();
                if let Some(at) = manifest.reread_at.take() {
                    self.rereads.remove(&(at, *digest));
                }
            }
            self.dirty.extend(manifest.roots.iter().copied());
        }
    }

    /// Takes in the answer to a read. Returns whether the file is missing.
    pub(super) fn on_read(
        &mut self,
        now: Instant,
        digest: &Digest,
        outcome: ManifestRead,
        rng: &mut Rng,
    ) -> bool {
        if self.reading.remove(digest).is_none() {
            return false;
        }
        let is_missing = outcome == ManifestRead::Absent;
        let Some(manifest) = self.manifests.get_mut(digest) else { return is_missing };
        let finding = |reason, detail| Finding { reason, digest: *digest, detail };
        manifest.state = match outcome {
            ManifestRead::Bytes(bytes) => match walked(&manifest.media_type, digest, &bytes) {
                Ok(walked) => ManifestState::Read(Arc::new(walked)),
                Err(finding) => ManifestState::Refused(finding),
            },
            ManifestRead::TooLarge => {
                ManifestState::Refused(finding(Reason::ManifestTooLarge, String::new()))
            }
            // A removal may be on its way to us.
            ManifestRead::Absent if manifest.rereads.failures() == 0 => ManifestState::Unreadable(None),
            ManifestRead::Absent => {
                let detail = "containerd has it but its file is missing".to_owned();
                ManifestState::Unreadable(Some(finding(Reason::Unreadable, detail)))
            }
            ManifestRead::Failed { cause } => {
                ManifestState::Unreadable(Some(finding(Reason::Unreadable, cause)))
            }
        };
        if let Some(at) = manifest.reread_at.take() {
            self.rereads.remove(&(at, *digest));
        }
        if matches!(manifest.state, ManifestState::Unreadable(_)) {
            let at = now + manifest.rereads.next_delay(rng);
            manifest.reread_at = Some(at);
            self.rereads.insert((at, *digest));
        }
        self.dirty.extend(manifest.roots.iter().copied());
        is_missing
    }

    /// Walks again what changed. Returns whether it did, and what was found for the first time.
    pub(super) fn settle(&mut self, contents: &Contents) -> (bool, Vec<(String, Finding)>) {
        let changed = !self.dirty.is_empty();
        let mut found = Vec::new();
        for root in std::mem::take(&mut self.dirty) {
            let Some(mut tree) = self.trees.remove(&root) else { continue };
            let mut walk = Walk { root, met: BTreeSet::new(), findings: BTreeMap::new(), path: Vec::new() };
            self.visit(&mut walk, contents, &tree.root);
            for left in tree.met.difference(&walk.met) {
                self.leave(left, &root);
            }
            tree.met = walk.met;
            tree.findings = walk.findings;
            for (reason, finding) in &tree.findings {
                if tree.noted.insert(*reason) {
                    found.push((tree.name().to_owned(), finding.clone()));
                }
            }
            self.trees.insert(root, tree);
        }
        (changed, found)
    }

    /// Visits one node of a tree; the depth of recursion is bounded by [`WALK_DEPTH_MAX`].
    fn visit(&mut self, walk: &mut Walk, contents: &Contents, node: &Descriptor) {
        if !is_index_type(&node.media_type) && !is_manifest_type(&node.media_type) {
            return;
        }
        let digest = node.digest;
        if walk.path.contains(&digest) {
            return walk.note(Reason::IndexCycle, &digest, "an index contains itself".to_owned());
        }
        if walk.met.contains(&digest) {
            return;
        }
        if walk.path.len() >= WALK_DEPTH_MAX {
            return walk.note(Reason::TooDeep, &digest, format!("nested deeper than {WALK_DEPTH_MAX}"));
        }
        if walk.met.len() >= WALK_MANIFESTS_MAX {
            let detail = format!("more than {WALK_MANIFESTS_MAX} manifests");
            return walk.note(Reason::TooManyChildren, &digest, detail);
        }
        walk.met.insert(digest);
        let manifest = self.manifests.entry(digest).or_insert_with(|| Manifest {
            media_type: node.media_type.clone(),
            roots: BTreeSet::new(),
            state: ManifestState::Unread,
            is_queued: false,
            rereads: Backoff::new(REREAD_BACKOFF.0, REREAD_BACKOFF.1),
            reread_at: None,
        });
        manifest.roots.insert(walk.root);
        // Manifests of other platforms are not pulled.
        let Some(content) = contents.get(&digest) else { return };
        match &manifest.state {
            ManifestState::Unread if content.size > MANIFEST_SIZE_MAX => {
                let detail = format!("{} bytes", content.size);
                walk.note(Reason::ManifestTooLarge, &digest, detail);
            }
            ManifestState::Unread => {
                if !manifest.is_queued && !self.reading.contains_key(&digest) {
                    manifest.is_queued = true;
                    self.queue.push_back(digest);
                }
            }
            ManifestState::Read(walked) => {
                let walked = Arc::clone(walked);
                for finding in &walked.findings {
                    walk.note(finding.reason, &finding.digest, finding.detail.clone());
                }
                walk.path.push(digest);
                for child in &walked.manifests {
                    self.visit(walk, contents, child);
                }
                walk.path.pop();
            }
            ManifestState::Refused(finding) | ManifestState::Unreadable(Some(finding)) => {
                walk.note(finding.reason, &finding.digest, finding.detail.clone());
            }
            ManifestState::Unreadable(None) => {}
        }
    }

    /// The next manifest to read.
    pub(super) fn poll_read(&mut self, now: Instant, contents: &Contents) -> Option<Digest> {
        self.read_at = None;
        while self.reading.len() < READS_IN_FLIGHT_MAX {
            let digest = *self.queue.front()?;
            let is_wanted = self.manifests.get(&digest).is_some_and(|manifest| manifest.is_queued);
            // What vanished is queued again when it comes back.
            if is_wanted && contents.contains_key(&digest) {
                if !self.pacer.take(now) {
                    self.read_at = Some(self.pacer.ready_at(now));
                    return None;
                }
                self.reading.insert(digest, now + READ_TIMEOUT + ANSWER_GRACE);
            }
            self.queue.pop_front();
            if let Some(manifest) = self.manifests.get_mut(&digest) {
                manifest.is_queued = false;
            }
            if self.reading.contains_key(&digest) && is_wanted {
                return Some(digest);
            }
        }
        None
    }

    /// Whether nothing is being read or about to be.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.reading.is_empty()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, rng: &mut Rng) {
        let late = self.reading.iter().filter(|(_, deadline)| **deadline <= now);
        for digest in late.map(|(digest, _)| *digest).collect::<Vec<_>>() {
            self.on_read(
                now,
                &digest,
                ManifestRead::Failed { cause: "reading took too long".to_owned() },
                rng,
            );
        }
        while let Some((_, digest)) = self.rereads.first().copied().filter(|(at, _)| *at <= now) {
            self.rereads.pop_first();
            if let Some(manifest) = self.manifests.get_mut(&digest) {
                manifest.reread_at = None;
                if !manifest.is_queued {
                    manifest.is_queued = true;
                    self.queue.push_back(digest);
                }
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let reading = self.reading.values().min().copied();
        soonest(soonest(self.read_at, reading), self.rereads.first().map(|(at, _)| *at))
    }

    /// Adds everything that is known to belong to an image to `reached`.
    pub(super) fn reach(&self, root: &Digest, reached: &mut Reached) {
        let mut open = vec![*root];
        while let Some(digest) = open.pop() {
            reached.digests.insert(digest);
            let Some(ManifestState::Read(walked)) = self.manifests.get(&digest).map(|m| &m.state) else {
                continue;
            };
            if reached.expanded.insert(digest) {
                reached.digests.extend(walked.leaves.iter().copied());
                open.extend(walked.manifests.iter().map(|child| child.digest));
            }
        }
    }

    /// The images in trouble.
    pub(super) fn quarantined(&self) -> impl Iterator<Item = Quarantined<'_>> {
        self.trees.values().filter_map(|tree| {
            let reason = *tree.findings.keys().find(|reason| reason.is_trouble())?;
            let rereads = tree.met.iter().filter_map(|digest| self.manifests.get(digest)?.reread_at);
            Some(Quarantined { name: tree.name(), reason, reread_at: rereads.min() })
        })
    }

    pub(super) fn reads_pending(&self) -> usize {
        self.queue.len() + self.reading.len()
    }

    #[cfg(test)]
    pub(super) fn manifests_len(&self) -> usize {
        self.manifests.len()
    }
}

impl Tree {
    /// The name to tell people: CRI's aliases are no names to them.
    fn name(&self) -> &str {
        let named = self.names.iter().find(|name| name.contains('/')).or_else(|| self.names.first());
        named.map_or("", String::as_str)
    }
}

/// What belongs to some images.
#[derive(Debug, Default)]
pub(super) struct Reached {
    pub(super) digests: BTreeSet<Digest>,
    expanded: BTreeSet<Digest>,
}

struct Walk {
    root: Digest,
    met: BTreeSet<Digest>,
    findings: BTreeMap<Reason, Finding>,
    path: Vec<Digest>,
}

impl Walk {
    fn note(&mut self, reason: Reason, digest: &Digest, detail: String) {
        self.findings.entry(reason).or_insert(Finding { reason, digest: *digest, detail });
    }
}

fn walked(media_type: &str, digest: &Digest, bytes: &[u8]) -> Result<Walked, Finding> {
    let children = parse_manifest(Some(media_type), bytes).map_err(|error| {
        let reason = match error {
            ManifestError::NotJson { .. } => Reason::ManifestNotJson,
            ManifestError::TooLarge => Reason::ManifestTooLarge,
        };
        Finding { reason, digest: *digest, detail: error.to_string() }
    })?;
    let mut findings = Vec::new();
    if children.truncated {
        let detail = format!("more than {} descriptors", crate::oci::CHILDREN_MAX);
        findings.push(Finding { reason: Reason::TooManyChildren, digest: *digest, detail });
    }
    if let Some(layer) = children.layers.iter().find(|layer| !is_layer_type(&layer.media_type)) {
        let detail = format!("layer of media type {:?}", layer.media_type);
        findings.push(Finding { reason: Reason::LayerMediaType, digest: layer.digest, detail });
    }
    if let Some(config) = children.config.as_ref().filter(|config| config.size > MANIFEST_SIZE_MAX) {
        let detail = format!("{} bytes", config.size);
        findings.push(Finding { reason: Reason::ConfigTooLarge, digest: config.digest, detail });
    }
    let leaves = children.config.iter().chain(&children.layers).map(|leaf| leaf.digest).collect();
    Ok(Walked { manifests: children.manifests, leaves, findings })
}
