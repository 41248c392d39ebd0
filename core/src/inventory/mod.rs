//! Decides what this node can serve, from containerd's list and events and from changes of the
//! content directory: which content and tags are announced, what is asked of containerd and when.
//! Never serves nor reads anything itself; [`crate::Node`] calls it with what happened and
//! carries its [`Event`]s on.
//!
//! containerd's word is the truth, events are the news: a digest or name that changed while
//! a listing was under way is left to the event. Everything present and allowed is served
//! at once; walking images only attributes content and finds what is unusual, so that trouble with
//! an image delays nothing.

mod contents;
mod finding;
mod inspections;
mod link;
mod report;
mod suspects;
#[cfg(test)]
mod tests;
mod walks;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

pub use self::report::{InventoryReport, QuarantinedImage, RegistryCounts};
use self::{
    contents::{Content, Contents, Registries, RegistryId, Sources},
    finding::{Finding, Reason},
    inspections::{Inspections, Purpose},
    link::{Link, Order},
    suspects::Suspects,
    walks::{Reached, Walks},
    watch::Watch,
};
pub(crate) use self::{
    inspections::INSPECT_TIMEOUT,
    link::{CONNECT_TIMEOUT, LIST_TIMEOUT, PROBE_TIMEOUT},
    walks::READ_TIMEOUT,
};
use crate::{
    Filters, Inspection, Key, ListedContent, ListedImage, Listing, ManifestRead, Notice,
    oci::{Digest, ImageName},
    output::soonest,
    rng::Rng,
};

/// Most images known. Lower and large nodes' images have no tags; higher only costs memory.
const IMAGES_MAX: usize = 50_000;

/// Most content known. Lower and large nodes share a part only; higher only costs memory.
/// Tests reach it sooner.
const CONTENTS_MAX: usize = if cfg!(test) { 13_000 } else { 200_000 };

/// Longest image name in bytes. Shorter and legal names with a digest are ignored; longer
/// ones are no names.
const NAME_BYTES_MAX: usize = 1024;

/// Pause before attributing content after a change of images: collects bursts. Shorter and a
/// start attributes all content again for each manifest; longer and unlabelled content is late.
const ATTRIBUTION_DELAY: Duration = Duration::from_millis(50);

/// What the inventory wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// As [`crate::Output::ConnectContainerd`].
    ConnectContainerd,
    /// As [`crate::Output::ProbeContainerd`].
    ProbeContainerd,
    /// As [`crate::Output::List`].
    List,
    /// As [`crate::Output::Inspect`].
    Inspect { digest: Digest },
    /// As [`crate::Output::ReadManifest`].
    ReadManifest { digest: Digest },
    /// As [`crate::Output::WatchContent`].
    WatchContent { scan: bool },
    /// As [`crate::Output::ServeContent`].
    ServeContent { digest: Digest, size: u64 },
    /// As [`crate::Output::StopServingContent`].
    StopServingContent { digest: Digest },
    /// As [`crate::Output::ServeTag`].
    ServeTag { name: String, digest: Digest },
    /// As [`crate::Output::StopServingTag`].
    StopServingTag { name: String },
    /// Announce that this node has it.
    Hold(Key),
    /// Announce that it has not any more.
    Release(Key),
    /// Tell the operator.
    Notice(Notice),
}

#[derive(Debug)]
struct Image {
    target: Option<Digest>,
    registry: Option<RegistryId>,
    /// Whether its name is allowed: its content is, then, even if unlabelled.
    is_allowed: bool,
    /// Whether its name is a tag that may be announced.
    is_tag: bool,
    /// What the tag is announced for.
    served: Option<Digest>,
}

/// What this node can serve.
#[derive(Debug)]
pub(crate) struct Inventory {
    filters: Filters,
    rng: Rng,
    link: Link,
    containerd_version: Option<String>,
    watch: Watch,
    inspections: Inspections,
    suspects: Suspects,
    walks: Walks,
    registries: Registries,
    contents: Contents,
    contents_served: usize,
    images: BTreeMap<String, Image>,
    /// Unlabelled content of allowed images; empty without filters.
    attributed: BTreeSet<Digest>,
    attribute_at: Option<Instant>,
    /// Whether the next attribution may take content away: only after a listing.
    prune_wanted: bool,
    findings: BTreeMap<&'static str, u64>,
    ignored: u64,
    events: VecDeque<Event>,
}

impl Inventory {
    /// An empty inventory that wants a connection to containerd.
    pub(crate) fn new(filters: Filters, seed: u64) -> Self {
        let mut inventory = Self {
            filters,
            rng: Rng::new(seed, "inventory"),
            link: Link::new(),
            containerd_version: None,
            watch: Watch::new(),
            inspections: Inspections::default(),
            suspects: Suspects::default(),
            walks: Walks::new(),
            registries: Registries::default(),
            contents: Contents::new(),
            contents_served: 0,
            images: BTreeMap::new(),
            attributed: BTreeSet::new(),
            attribute_at: None,
            prune_wanted: false,
            findings: BTreeMap::new(),
            ignored: 0,
            // Before containerd is listed, so that nothing falls between.
            events: VecDeque::from([Event::WatchContent { scan: false }]),
        };
        inventory.drain_orders();
        inventory
    }

    /// containerd's event stream is open: what happens from here on is not missed.
    pub(crate) fn on_connected(&mut self, now: Instant, version: String) {
        self.containerd_version = Some(version);
        self.link.on_connected(now);
        self.settle(now);
    }

    /// containerd cannot be reached. What is known is served on.
    pub(crate) fn on_disconnected(&mut self, now: Instant, cause: String) {
        if self.link.on_disconnected(now, &mut self.rng) {
            self.events.push_back(Event::Notice(Notice::ContainerdLost { cause }));
        }
        self.settle(now);
    }

    /// containerd gave a sign of life.
    pub(crate) fn on_probed(&mut self, now: Instant) {
        self.link.on_sign_of_life(now);
        self.settle(now);
    }

    /// containerd gave no sign of life.
    pub(crate) fn on_probe_failed(&mut self, now: Instant, cause: String) {
        if self.link.on_probe_failed(now, &mut self.rng) {
            self.events.push_back(Event::Notice(Notice::ContainerdLost { cause }));
        }
        self.settle(now);
    }

    /// containerd was listed: applies what differs from what is known.
    pub(crate) fn on_listed(&mut self, now: Instant, listing: Listing) {
        self.link.on_sign_of_life(now);
        let is_first = !self.link.is_listed();
        if let Some(touched) = self.link.on_listed(now, &mut self.rng) {
            if self.link.end_outage() || is_first {
                let (images, contents) = (listing.images.len(), listing.contents.len());
                self.events.push_back(Event::Notice(Notice::ContainerdListed { images, contents }));
            }
            self.apply_contents(now, listing.contents, &touched.digests);
            self.apply_images(now, listing.images, &touched.names);
            self.prune_wanted = true;
        }
        self.settle(now);
    }

    fn apply_contents(&mut self, now: Instant, contents: Vec<ListedContent>, touched: &BTreeSet<Digest>) {
        let asked = self.inspections.recheck_in_flight();
        let is_fresher = |digest: &Digest| touched.contains(digest) || asked.contains(digest);
        let listed: BTreeMap<_, _> = contents.into_iter().map(|content| (content.digest, content)).collect();
        let is_gone = |digest: &&Digest| !listed.contains_key(*digest) && !is_fresher(digest);
        for digest in self.contents.keys().filter(is_gone).copied().collect::<Vec<_>>() {
            self.remove_content(&digest);
        }
        for (digest, content) in listed.iter().filter(|(digest, _)| !is_fresher(digest)) {
            self.put_content(now, digest, content);
        }
        // Removed while the listing was under way: make sure.
        for digest in touched {
            if !self.contents.contains_key(digest) {
                self.inspect(now, digest, Purpose::Check);
            }
        }
    }

    fn apply_images(&mut self, now: Instant, images: Vec<ListedImage>, touched: &BTreeSet<String>) {
        let listed: BTreeMap<_, _> = images.iter().map(|image| (image.name.as_str(), image)).collect();
        let is_gone = |name: &&String| !listed.contains_key(name.as_str()) && !touched.contains(*name);
        for name in self.images.keys().filter(is_gone).cloned().collect::<Vec<_>>() {
            self.remove_image(&name);
        }
        for (_, image) in listed.into_iter().filter(|(name, _)| !touched.contains(*name)) {
            self.put_image(now, image);
        }
    }

    /// Listing came to nothing.
    pub(crate) fn on_list_failed(&mut self, now: Instant, _cause: &str) {
        self.link.on_list_failed(now, &mut self.rng);
        self.settle(now);
    }

    /// containerd created or updated an image.
    pub(crate) fn on_image_changed(&mut self, now: Instant, image: &ListedImage) {
        self.link.on_sign_of_life(now);
        self.link.touch_name(&image.name);
        self.put_image(now, image);
        // Its root should be known by now; if not, something was missed.
        if let Some(target) = &image.target
            && !self.contents.contains_key(&target.digest)
        {
            self.inspect(now, &target.digest, Purpose::Committed);
        }
        self.settle(now);
    }

    /// containerd deleted an image: its tag goes, its content stays until it is removed too.
    pub(crate) fn on_image_deleted(&mut self, now: Instant, name: &str) {
        self.link.on_sign_of_life(now);
        self.link.touch_name(name);
        self.remove_image(name);
        self.settle(now);
    }

    /// A blob appeared in the content store, perhaps of another containerd namespace.
    pub(crate) fn on_blob_committed(&mut self, now: Instant, digest: &Digest) {
        self.link.touch_digest(digest);
        // Several signals tell the same; only what is known and labelled needs no question.
        let is_known = self
            .contents
            .get(digest)
            .is_some_and(|content| content.is_served && content.sources != Sources::Unknown);
        if !is_known {
            // It is another file than the one that could not be read.
            self.suspects.forget(digest);
            self.inspect(now, digest, Purpose::Committed);
        }
        self.settle(now);
    }

    /// A blob left the content store.
    pub(crate) fn on_blob_removed(&mut self, now: Instant, digest: &Digest) {
        self.link.touch_digest(digest);
        self.inspections.forget(digest);
        self.remove_content(digest);
        self.settle(now);
    }

    /// Changes of the content directory are not missed from here on.
    pub(crate) fn on_content_watched(&mut self, now: Instant) {
        if self.watch.on_watched() || self.link.has_listed() {
            self.link.want_resync(now, &mut self.rng);
        }
        self.settle(now);
    }

    /// Changes of the content directory are missed from here on.
    pub(crate) fn on_watch_lost(&mut self, now: Instant, cause: String) {
        if self.watch.on_lost(now) {
            self.events.push_back(Event::Notice(Notice::ContentUnwatched { cause }));
            self.link.want_resync(now, &mut self.rng);
        }
        self.settle(now);
    }

    /// Changes of the content directory may have been missed.
    pub(crate) fn on_changes_missed(&mut self, now: Instant) {
        self.link.want_resync(now, &mut self.rng);
        self.settle(now);
    }

    /// containerd said what it knows of a digest.
    pub(crate) fn on_inspected(&mut self, now: Instant, digest: &Digest, outcome: Inspection) {
        match outcome {
            Inspection::Present(_) | Inspection::Absent => self.link.on_sign_of_life(now),
            Inspection::Failed { .. } => {}
        }
        if let Some(inspected) = self.inspections.on_inspected(digest) {
            self.judge_inspection(now, digest, inspected, outcome);
        }
        self.settle(now);
    }

    fn judge_inspection(
        &mut self,
        now: Instant,
        digest: &Digest,
        inspected: inspections::Inspected,
        outcome: Inspection,
    ) {
        let is_present = matches!(outcome, Inspection::Present(_));
        let asks_again = self.inspections.rerun(digest, &inspected, is_present);
        if inspected.is_void {
            return;
        }
        match outcome {
            Inspection::Present(content) => {
                self.link.touch_digest(digest);
                self.put_content(now, digest, &content);
                // Labels come a moment after the commit.
                let lacks_labels = self.contents.get(digest).is_some_and(|content| {
                    !content.is_served
                        && content.sources == Sources::Unknown
                        && !self.suspects.is_blocked(digest)
                });
                if lacks_labels && !asks_again {
                    self.inspections.retry_early(now, digest, inspected, &mut self.rng);
                }
            }
            Inspection::Absent => {
                if !asks_again && !self.inspections.retry_early(now, digest, inspected, &mut self.rng) {
                    self.link.touch_digest(digest);
                    self.remove_content(digest);
                }
            }
            Inspection::Failed { cause: _ } => {
                if !asks_again && !self.inspections.retry_failed(now, digest, inspected, &mut self.rng) {
                    self.link.want_resync(now, &mut self.rng);
                }
            }
        }
    }

    /// A manifest was read, or could not be.
    pub(crate) fn on_manifest_read(&mut self, now: Instant, digest: &Digest, outcome: ManifestRead) {
        if self.walks.on_read(now, digest, outcome, &mut self.rng) && self.contents.contains_key(digest) {
            self.inspect(now, digest, Purpose::Check);
        }
        self.settle(now);
    }

    /// Content that is served turned out to be unreadable.
    pub(crate) fn on_content_unreadable(&mut self, now: Instant, digest: &Digest) {
        if self.contents.contains_key(digest) && self.suspects.accuse(now, digest, &mut self.rng) {
            self.refresh_content(digest);
            self.inspect(now, digest, Purpose::Check);
        }
        self.settle(now);
    }

    /// Does everything due at `now`. Early, late and repeated calls are harmless.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for (digest, inspected) in self.inspections.handle_timeout(now) {
            let outcome = Inspection::Failed { cause: "no answer".to_owned() };
            self.judge_inspection(now, &digest, inspected, outcome);
        }
        for digest in self.suspects.handle_timeout(now) {
            self.inspect(now, &digest, Purpose::Check);
        }
        self.walks.handle_timeout(now, &mut self.rng);
        if self.attribute_at.is_some_and(|at| at <= now) {
            self.attribute_at = None;
            self.attribute();
        }
        self.settle(now);
    }

    /// When to call [`Self::handle_timeout`] next.
    #[must_use]
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [
            self.link.poll_timeout(),
            self.watch.poll_timeout(),
            self.inspections.poll_timeout(),
            self.suspects.poll_timeout(),
            self.walks.poll_timeout(),
        ]
        .into_iter()
        .fold(self.attribute_at, soonest)
    }

    /// The next thing to do; drain to `None` after every call.
    #[must_use]
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether containerd was listed at least once: before, nothing is known to be absent.
    #[must_use]
    pub(crate) const fn is_listed(&self) -> bool {
        self.link.is_listed()
    }

    /// Whether content is served.
    #[must_use]
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.contents.get(digest).is_some_and(|content| content.is_served)
    }

    // --- what is known -----------------------------------------------------------------------

    fn put_content(&mut self, now: Instant, digest: &Digest, listed: &ListedContent) {
        let sources = self.registries.judge(&self.filters, &listed.sources);
        if let Some(content) = self.contents.get_mut(digest) {
            if content.is_served && content.size != listed.size {
                self.events.push_back(Event::ServeContent { digest: *digest, size: listed.size });
            }
            content.size = listed.size;
            content.sources = sources;
            self.suspects.confirm(now, digest);
            self.refresh_content(digest);
            return;
        }
        if self.contents.len() >= CONTENTS_MAX {
            let detail = format!("more than {CONTENTS_MAX} contents; the rest is not shared");
            return self.ignore(Finding { reason: Reason::TooManyContents, digest: *digest, detail });
        }
        self.contents.insert(*digest, Content { size: listed.size, sources, is_served: false });
        self.refresh_content(digest);
        self.walks.on_content_changed(digest);
    }

    fn remove_content(&mut self, digest: &Digest) {
        let Some(content) = self.contents.remove(digest) else { return };
        self.suspects.forget(digest);
        if content.is_served {
            self.stop_serving(digest);
        }
        self.walks.on_content_changed(digest);
    }

    /// Serves content or stops serving it, as is right by what is known.
    fn refresh_content(&mut self, digest: &Digest) {
        let Some(content) = self.contents.get_mut(digest) else { return };
        let is_allowed = match content.sources {
            Sources::Allowed(_) => true,
            Sources::Excluded => false,
            Sources::Unknown => self.filters.is_unrestricted() || self.attributed.contains(digest),
        };
        let is_wanted = is_allowed && !self.suspects.is_blocked(digest);
        if is_wanted == content.is_served {
            return;
        }
        content.is_served = is_wanted;
        if is_wanted {
            self.contents_served += 1;
            self.events.push_back(Event::ServeContent { digest: *digest, size: content.size });
            self.events.push_back(Event::Hold(Key::of_digest(digest)));
            self.refresh_tags_of(digest);
        } else {
            self.stop_serving(digest);
        }
    }

    fn stop_serving(&mut self, digest: &Digest) {
        self.contents_served -= 1;
        // Tags first: none may name content that is not served.
        self.refresh_tags_of(digest);
        self.events.push_back(Event::StopServingContent { digest: *digest });
        self.events.push_back(Event::Release(Key::of_digest(digest)));
    }

    fn put_image(&mut self, now: Instant, listed: &ListedImage) {
        let name = listed.name.as_str();
        let target = listed.target.as_ref().map(|target| target.digest);
        if let Some(image) = self.images.get_mut(name) {
            let before = std::mem::replace(&mut image.target, target);
            if before == target {
                return;
            }
            if let Some(before) = before {
                self.walks.remove(&before, name);
            }
        } else {
            if name.len() > NAME_BYTES_MAX {
                self.ignored = self.ignored.saturating_add(1);
                return;
            }
            if self.images.len() >= IMAGES_MAX {
                let digest = target.unwrap_or_else(|| Digest::sha256_of(b""));
                let detail = format!("more than {IMAGES_MAX} images; the rest has no tags");
                return self.ignore(Finding { reason: Reason::TooManyImages, digest, detail });
            }
            let image = self.recognise(name, target);
            self.images.insert(name.to_owned(), image);
        }
        if let Some(root) = &listed.target {
            self.walks.add(root, name);
        }
        self.refresh_tag(name);
        self.want_attribution(now);
    }

    /// What an image's name says.
    fn recognise(&mut self, name: &str, target: Option<Digest>) -> Image {
        let mut image = Image { target, registry: None, is_allowed: false, is_tag: false, served: None };
        match name.parse::<ImageName>() {
            Ok(parsed) => {
                let repository = parsed.repository.as_str();
                image.registry = self.registries.id(&parsed.registry);
                image.is_allowed = self.filters.allows(&parsed.registry, repository, None);
                // A name with a digest does not tell what its tag stands for: nobody resolved it.
                image.is_tag = parsed.digest.is_none()
                    && parsed.tag.is_some_and(|tag| {
                        self.filters.allows(&parsed.registry, repository, Some(tag.as_str()))
                    });
            }
            // An alias of CRI.
            Err(_) if name.parse::<Digest>().is_ok() => {}
            Err(error) => {
                let digest = target.unwrap_or_else(|| Digest::sha256_of(b""));
                let detail = error.to_string();
                self.note(name, Finding { reason: Reason::NameUnparsable, digest, detail });
            }
        }
        image
    }

    fn remove_image(&mut self, name: &str) {
        let Some(image) = self.images.get_mut(name) else { return };
        if let Some(target) = image.target.take() {
            self.walks.remove(&target, name);
        }
        self.refresh_tag(name);
        self.images.remove(name);
    }

    fn refresh_tags_of(&mut self, digest: &Digest) {
        let names: Vec<String> = self.walks.names(digest).map(str::to_owned).collect();
        for name in names {
            self.refresh_tag(&name);
        }
    }

    /// Serves a tag or stops serving it, as is right by what is known.
    fn refresh_tag(&mut self, name: &str) {
        let Some(image) = self.images.get_mut(name) else { return };
        let is_held = |digest: &Digest| self.contents.get(digest).is_some_and(|content| content.is_served);
        let wanted = image.target.filter(|target| image.is_tag && is_held(target));
        let served = std::mem::replace(&mut image.served, wanted);
        if served == wanted {
            return;
        }
        match wanted {
            Some(digest) => {
                self.events.push_back(Event::ServeTag { name: name.to_owned(), digest });
                if served.is_none() {
                    self.events.push_back(Event::Hold(Key::of(name)));
                }
            }
            None => {
                self.events.push_back(Event::StopServingTag { name: name.to_owned() });
                self.events.push_back(Event::Release(Key::of(name)));
            }
        }
    }

    // --- what it belongs to ------------------------------------------------------------------

    fn want_attribution(&mut self, now: Instant) {
        if !self.filters.is_unrestricted() {
            self.attribute_at.get_or_insert(now + ATTRIBUTION_DELAY);
        }
    }

    /// Finds the unlabelled content of allowed images. Takes content away from what was found
    /// before only after a listing, once everything is read.
    fn attribute(&mut self) {
        let mut reached = Reached::default();
        for image in self.images.values().filter(|image| image.is_allowed) {
            if let Some(target) = &image.target {
                self.walks.reach(target, &mut reached);
            }
        }
        let mut attributed = reached.digests;
        if self.prune_wanted && self.walks.is_idle() {
            self.prune_wanted = false;
        } else {
            attributed.extend(self.attributed.iter().copied());
        }
        attributed.retain(|digest| self.contents.contains_key(digest));
        let before = std::mem::replace(&mut self.attributed, attributed);
        let changed: Vec<_> = before.symmetric_difference(&self.attributed).copied().collect();
        for digest in changed {
            self.refresh_content(&digest);
        }
    }

    // --- what is to be done ------------------------------------------------------------------

    fn inspect(&mut self, now: Instant, digest: &Digest, purpose: Purpose) {
        if !self.inspections.want(digest, purpose) {
            // A listing is cheaper than so many questions.
            self.link.want_resync(now, &mut self.rng);
        }
    }

    fn note(&mut self, image: &str, finding: Finding) {
        let Finding { reason, digest, detail } = finding;
        let reason = reason.as_str();
        let count = self.findings.entry(reason).or_default();
        *count = count.saturating_add(1);
        let image = image.to_owned();
        self.events.push_back(Event::Notice(Notice::ImageUnusual { image, digest, reason, detail }));
    }

    /// Counts what is left out; says so the first time.
    fn ignore(&mut self, finding: Finding) {
        self.ignored = self.ignored.saturating_add(1);
        if !self.findings.contains_key(finding.reason.as_str()) {
            self.note("", finding);
        }
    }

    /// Carries out what follows from a change.
    fn settle(&mut self, now: Instant) {
        if let Some(cause) = self.link.handle_timeout(now, &mut self.rng) {
            self.events.push_back(Event::Notice(Notice::ContainerdLost { cause: cause.to_owned() }));
        }
        if self.watch.handle_timeout(now) {
            // What a small store has is known at once: on a fresh node this is the first pull, which
            // should not wait for a listing.
            self.events.push_back(Event::WatchContent { scan: true });
        }
        self.drain_orders();
        let (changed, found) = self.walks.settle(&self.contents);
        for (image, finding) in found {
            self.note(&image, finding);
        }
        if changed || self.prune_wanted && self.walks.is_idle() {
            self.want_attribution(now);
        }
        // Without containerd a question is in vain; the content directory can be read.
        while self.link.is_connected()
            && let Some(digest) = self.inspections.poll(now)
        {
            self.events.push_back(Event::Inspect { digest });
        }
        while let Some(digest) = self.walks.poll_read(now, &self.contents) {
            self.events.push_back(Event::ReadManifest { digest });
        }
    }

    fn drain_orders(&mut self) {
        while let Some(order) = self.link.poll_order() {
            self.events.push_back(match order {
                Order::Connect => Event::ConnectContainerd,
                Order::Probe => Event::ProbeContainerd,
                Order::List => Event::List,
            });
        }
    }
}
