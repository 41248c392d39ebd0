//! Behaviour of the inventory as a whole, boundaries by hand.

mod model;
mod walking;

use super::*;
use crate::{oci::Descriptor, test_time};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What the events of an inventory make of the world; panics when they contradict themselves.
#[derive(Debug, Default)]
struct Served {
    contents: BTreeMap<Digest, u64>,
    tags: BTreeMap<String, Digest>,
    held: BTreeSet<Key>,
}

impl Served {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::ServeContent { digest, size } => {
                let before = self.contents.insert(*digest, *size);
                assert_ne!(before, Some(*size), "{digest} served twice");
            }
            Event::StopServingContent { digest } => {
                assert!(self.contents.remove(digest).is_some(), "{digest} was not served");
                assert!(!self.tags.values().any(|target| target == digest), "a tag names {digest}");
            }
            Event::ServeTag { name, digest } => {
                assert!(self.contents.contains_key(digest), "{name} names what is not served");
                assert_ne!(self.tags.insert(name.clone(), *digest), Some(*digest), "{name} served twice");
            }
            Event::StopServingTag { name } => assert!(self.tags.remove(name).is_some(), "{name} not served"),
            Event::Hold(key) => assert!(self.held.insert(*key), "held twice"),
            Event::Release(key) => assert!(self.held.remove(key), "released twice"),
            Event::ConnectContainerd
            | Event::ProbeContainerd
            | Event::WatchContent { .. }
            | Event::List
            | Event::Inspect { .. }
            | Event::ReadManifest { .. }
            | Event::Notice(_) => {}
        }
    }

    /// What is held is what is served, once all events are taken.
    fn check(&self) {
        let keys = self.contents.keys().map(Key::of_digest).chain(self.tags.keys().map(|name| Key::of(name)));
        assert_eq!(self.held, keys.collect());
    }
}

struct Fixture {
    inventory: Inventory,
    served: Served,
    now: Instant,
}

impl Fixture {
    fn new(filters: Filters) -> Self {
        let mut inventory = Inventory::new(filters, 1);
        let now = test_time::start();
        assert_eq!(
            inventory.poll_event(),
            Some(Event::WatchContent { scan: false }),
            "before anything is asked"
        );
        inventory.on_content_watched(now);
        Self { inventory, served: Served::default(), now }
    }

    /// Connected, the first listing ordered.
    fn connected(filters: Filters) -> Self {
        let mut f = Self::new(filters);
        f.inventory.on_connected(f.now, String::new());
        assert_eq!(f.drain(), [Event::ConnectContainerd, Event::List]);
        f
    }

    /// Connected, with this listing.
    fn listed(filters: Filters, listing: Listing) -> Self {
        let mut f = Self::connected(filters);
        f.inventory.on_listed(f.now, listing);
        f.drain();
        f
    }

    /// What is ordered; a containerd that is probed lives.
    fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.inventory.poll_event() {
            if event == Event::ProbeContainerd {
                self.inventory.on_probed(self.now);
            } else {
                events.push(event);
            }
        }
        events.iter().for_each(|event| self.served.apply(event));
        let is_hold = |event: &Event| matches!(event, Event::Hold(_) | Event::Release(_));
        if events.iter().any(is_hold) {
            self.served.check();
        }
        assert_eq!(self.inventory.contents_served, self.served.contents.len());
        events
    }

    /// Goes to the next timeout.
    fn skip(&mut self) -> Vec<Event> {
        self.now = self.inventory.poll_timeout().expect("a timeout").max(self.now);
        self.inventory.handle_timeout(self.now);
        self.drain()
    }

    /// Skips until `event` comes; returns how long that took.
    fn skip_until(&mut self, event: &Event) -> Duration {
        let start = self.now;
        for _ in 0..1000 {
            if self.skip().contains(event) {
                return self.now - start;
            }
        }
        panic!("no {event:?}");
    }

    fn inspected(&mut self, name: &str, outcome: Inspection) -> Vec<Event> {
        self.inventory.on_inspected(self.now, &digest(name), outcome);
        self.drain()
    }

    fn committed(&mut self, name: &str) -> Vec<Event> {
        self.inventory.on_blob_committed(self.now, &digest(name));
        self.drain()
    }

    fn read(&mut self, digest: &Digest, outcome: ManifestRead) -> Vec<Event> {
        self.inventory.on_manifest_read(self.now, digest, outcome);
        self.drain()
    }
}

fn digest(name: &str) -> Digest {
    Digest::sha256_of(name.as_bytes())
}

fn content(name: &str, sources: &[(&str, &str)]) -> ListedContent {
    let sources = sources.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    ListedContent { digest: digest(name), size: 10, sources }
}

fn image(name: &str, media_type: &str, target: &Digest) -> ListedImage {
    let target = Descriptor { media_type: media_type.to_owned(), digest: *target, size: 10 };
    ListedImage { name: name.to_owned(), target: Some(target) }
}

fn listing(images: &[ListedImage], contents: &[ListedContent]) -> Listing {
    Listing { images: images.to_vec(), contents: contents.to_vec() }
}

fn present(name: &str, sources: &[(&str, &str)]) -> Inspection {
    Inspection::Present(content(name, sources))
}

fn serve(name: &str) -> [Event; 2] {
    [Event::ServeContent { digest: digest(name), size: 10 }, Event::Hold(Key::of_digest(&digest(name)))]
}

fn stop(name: &str) -> [Event; 2] {
    [Event::StopServingContent { digest: digest(name) }, Event::Release(Key::of_digest(&digest(name)))]
}

fn serve_tag(name: &str, target: &str) -> [Event; 2] {
    [Event::ServeTag { name: name.to_owned(), digest: digest(target) }, Event::Hold(Key::of(name))]
}

fn stop_tag(name: &str) -> [Event; 2] {
    [Event::StopServingTag { name: name.to_owned() }, Event::Release(Key::of(name))]
}

fn inspect(name: &str) -> Event {
    Event::Inspect { digest: digest(name) }
}

/// docker.io only, nothing secret, no tag `2`.
fn docker_only() -> Filters {
    let filters = ["/secret".to_owned(), ":2$".to_owned()];
    Filters::new(&["https://docker.io".to_owned()], &filters).expect("filters")
}

const DOCKER: &[(&str, &str)] = &[("docker.io", "a")];
const OTHER: &[(&str, &str)] = &[("r.test", "a")];

#[test]
fn first_listing_is_served_at_once() {
    let mut f = Fixture::connected(Filters::default());
    assert!(!f.inventory.is_listed());
    let listing = listing(
        &[image("docker.io/a:1", LAYER, &digest("a")), image("r.test/gone:1", LAYER, &digest("gone"))],
        &[content("a", DOCKER)],
    );
    f.inventory.on_listed(f.now, listing);
    let notice = Event::Notice(Notice::ContainerdListed { images: 2, contents: 1 });
    assert_eq!(f.drain(), [&[notice][..], &serve("a"), &serve_tag("docker.io/a:1", "a")].concat());
    assert!(f.inventory.is_listed() && f.inventory.holds(&digest("a")) && !f.inventory.holds(&digest("b")));
}

#[test]
fn equal_listing_changes_nothing() {
    let same =
        listing(&[image("docker.io/a:1", LAYER, &digest("a"))], &[content("a", &[]), content("b", &[])]);
    let mut f = Fixture::listed(Filters::default(), same.clone());
    f.skip_until(&Event::List);
    f.inventory.on_listed(f.now, same);
    assert_eq!(f.drain(), []);
}

#[test]
fn listing_is_applied_as_a_difference() {
    let mut f = Fixture::listed(Filters::default(), listing(&[], &[content("a", &[]), content("b", &[])]));
    f.skip_until(&Event::List);
    f.inventory.on_listed(f.now, listing(&[], &[content("b", &[]), content("c", &[]), content("c", &[])]));
    assert_eq!(f.drain(), [stop("a"), serve("c")].concat());
}

#[test]
fn unexpected_listing_is_ignored() {
    let mut f = Fixture::listed(Filters::default(), listing(&[], &[content("a", &[])]));
    f.inventory.on_listed(f.now, Listing::default());
    assert_eq!(f.drain(), []);
}

#[test]
fn outage_keeps_everything_served_and_is_noted_once() {
    let known = listing(&[], &[content("a", &[])]);
    let mut f = Fixture::listed(Filters::default(), known.clone());
    f.inventory.on_disconnected(f.now, "gone".to_owned());
    assert_eq!(f.drain(), [Event::Notice(Notice::ContainerdLost { cause: "gone".to_owned() })]);
    for _ in 0..5 {
        assert!(f.skip_until(&Event::ConnectContainerd) <= Duration::from_secs(1));
        f.inventory.on_disconnected(f.now, "gone".to_owned());
        assert_eq!(f.drain(), []);
    }
    assert!(f.inventory.holds(&digest("a")) && f.inventory.is_listed());
    f.inventory.on_connected(f.now, "2.1.4".to_owned());
    assert_eq!(f.drain(), [Event::List]);
    f.inventory.on_listed(f.now, known);
    assert_eq!(f.drain(), [Event::Notice(Notice::ContainerdListed { images: 0, contents: 1 })]);
    let report = f.inventory.report();
    assert!(report.is_connected);
    assert_eq!(report.containerd_version.as_deref(), Some("2.1.4"));
}

#[test]
fn committed_blob_is_served_as_soon_as_containerd_knows_it() {
    let mut f = Fixture::listed(Filters::default(), Listing::default());
    assert_eq!(f.committed("a"), [inspect("a")]);
    assert_eq!(f.inspected("a", Inspection::Absent), []);
    assert!(f.skip_until(&inspect("a")) <= Duration::from_millis(20));
    assert_eq!(f.committed("a"), [], "a second signal of the same commit");
    assert_eq!(f.inspected("a", present("a", DOCKER)), serve("a"));
    assert_eq!(f.committed("a"), [], "a late signal");
    f.committed("c");
    f.committed("c");
    assert_eq!(f.inspected("c", Inspection::Absent), [inspect("c")], "the second signal may know more");
    assert_eq!(f.inspected("b", present("b", &[])), [], "nobody asked");
}

#[test]
fn blob_of_another_namespace_is_dropped() {
    let mut f = Fixture::listed(Filters::default(), Listing::default());
    f.committed("a");
    for _ in 0..inspections::EARLY_TRIES_MAX {
        assert_eq!(f.inspected("a", Inspection::Absent), []);
        f.skip_until(&inspect("a"));
    }
    assert_eq!(f.inspected("a", Inspection::Absent), []);
    assert_eq!(f.inventory.report().inspections_pending, 0);
}

#[test]
fn blobs_are_inspected_in_parallel_and_too_many_cause_a_listing() {
    let mut f = Fixture::listed(Filters::default(), Listing::default());
    let mut asked = 0;
    for n in 0..=inspections::INSPECTIONS_MAX {
        asked += f.committed(&n.to_string()).len();
    }
    assert_eq!(asked, inspections::INSPECTIONS_IN_FLIGHT_MAX);
    assert!(f.skip_until(&Event::List) <= Duration::from_secs(2));
}

#[test]
fn failing_inspection_is_retried_and_then_left_to_a_listing() {
    let mut f = Fixture::listed(Filters::default(), Listing::default());
    f.committed("a");
    let failed = || Inspection::Failed { cause: "busy".to_owned() };
    for _ in 0..6 {
        assert_eq!(f.inspected("a", failed()), []);
        f.skip_until(&inspect("a"));
    }
    assert_eq!(f.inspected("a", failed()), []);
    assert!(f.skip_until(&Event::List) <= Duration::from_secs(2));
}

#[test]
fn unanswered_inspection_is_asked_again() {
    let mut f = Fixture::listed(Filters::default(), Listing::default());
    f.committed("a");
    let waited = f.skip_until(&inspect("a"));
    assert!(waited > Duration::from_secs(11) && waited < Duration::from_secs(12), "{waited:?}");
}

#[test]
fn removed_blob_is_released_at_once_with_its_tags() {
    let images = [
        image("docker.io/a:1", LAYER, &digest("a")),
        image("docker.io/a:2", LAYER, &digest("a")),
        image("docker.io/b:1", LAYER, &digest("b")),
    ];
    let known = listing(&images, &[content("a", &[]), content("b", &[])]);
    let mut f = Fixture::listed(Filters::default(), known);
    f.inventory.on_blob_removed(f.now, &digest("a"));
    assert_eq!(f.drain(), [stop_tag("docker.io/a:1"), stop_tag("docker.io/a:2"), stop("a")].concat());
    f.inventory.on_blob_removed(f.now, &digest("a"));
    f.inventory.on_blob_removed(f.now, &digest("unknown"));
    assert_eq!(f.drain(), []);
    assert_eq!(f.committed("a"), [inspect("a")]);
    let back = [serve("a"), serve_tag("docker.io/a:1", "a"), serve_tag("docker.io/a:2", "a")].concat();
    assert_eq!(f.inspected("a", present("a", &[])), back);
}

#[test]
fn answer_from_before_a_removal_is_void() {
    let mut f = Fixture::listed(Filters::default(), Listing::default());
    f.committed("a");
    f.inventory.on_blob_removed(f.now, &digest("a"));
    assert_eq!(f.inspected("a", present("a", &[])), []);
    f.committed("b");
    f.inventory.on_blob_removed(f.now, &digest("b"));
    f.committed("b");
    assert_eq!(f.inspected("b", present("b", &[])), [inspect("b")], "which commit did it see?");
    assert_eq!(f.inspected("b", present("b", &[])), serve("b"));
}

#[test]
fn stale_listing_does_not_undo_events() {
    let before = listing(
        &[image("r.test/old:1", LAYER, &digest("old"))],
        &[content("old", &[]), content("kept", &[])],
    );
    let mut f = Fixture::listed(Filters::default(), before.clone());
    f.skip_until(&Event::List);
    f.committed("new");
    f.inspected("new", present("new", &[]));
    f.committed("asked");
    f.inventory.on_blob_removed(f.now, &digest("old"));
    f.inventory.on_image_deleted(f.now, "r.test/old:1");
    f.inventory.on_image_changed(f.now, &image("r.test/new:1", LAYER, &digest("new")));
    f.drain();
    f.inventory.on_listed(f.now, before);
    assert_eq!(f.drain(), [inspect("old")], "only to make sure");
    assert_eq!(f.inspected("old", Inspection::Absent), []);
    assert!(f.inventory.holds(&digest("new")) && !f.inventory.holds(&digest("old")));
    assert_eq!(f.served.tags.keys().collect::<Vec<_>>(), ["r.test/new:1"]);
    let again = [&serve("asked")[..], &[inspect("asked")]].concat();
    assert_eq!(f.inspected("asked", present("asked", &[])), again, "the answer may be older than the list");
    assert_eq!(f.inspected("asked", present("asked", &[])), []);
}

#[test]
fn answer_during_a_listing_is_not_undone_by_it() {
    let mut f = Fixture::connected(Filters::default());
    f.committed("a");
    f.inspected("a", Inspection::Absent);
    f.skip_until(&inspect("a"));
    assert_eq!(f.inspected("a", present("a", &[])), serve("a"));
    f.inventory.on_listed(f.now, Listing::default());
    f.drain();
    assert!(f.inventory.holds(&digest("a")));

    let mut f = Fixture::listed(Filters::default(), Listing::default());
    f.committed("b");
    f.inspected("b", Inspection::Absent);
    f.inventory.on_connected(f.now, String::new());
    f.skip_until(&inspect("b"));
    f.inspected("b", present("b", &[]));
    f.inventory.on_listed(f.now, Listing::default());
    f.drain();
    assert!(f.inventory.holds(&digest("b")), "committed before the listing, known during it");
}

#[test]
fn lost_watch_is_had_again_and_healed_by_a_listing_soon() {
    let mut f = Fixture::listed(Filters::default(), Listing::default());
    f.inventory.on_watch_lost(f.now, "removed".to_owned());
    let notice = Notice::ContentUnwatched { cause: "removed".to_owned() };
    assert_eq!(f.drain(), [Event::Notice(notice)]);
    assert!(f.skip_until(&Event::WatchContent { scan: true }) <= Duration::from_millis(250));
    f.inventory.on_watch_lost(f.now, "still not there".to_owned());
    assert_eq!(f.drain(), [], "said once");
    assert!(f.skip_until(&Event::List) <= Duration::from_secs(2), "what changed until it was lost");
    f.inventory.on_listed(f.now, Listing::default());
    f.inventory.on_content_watched(f.now);
    assert_eq!(f.drain(), []);
    assert!(f.skip_until(&Event::List) <= Duration::from_secs(4), "what changed meanwhile");
}

#[test]
fn watch_that_comes_after_a_listing_is_followed_by_another() {
    let mut inventory = Inventory::new(Filters::default(), 1);
    let now = test_time::start();
    inventory.on_connected(now, String::new());
    inventory.on_content_watched(now);
    inventory.on_listed(now, Listing::default());
    assert!(inventory.poll_timeout().is_some_and(|at| at <= now + Duration::from_secs(2)));
}

#[test]
fn missed_changes_are_healed_by_a_listing_soon() {
    let mut f = Fixture::listed(Filters::default(), Listing::default());
    f.inventory.on_changes_missed(f.now);
    f.inventory.on_changes_missed(f.now);
    assert_eq!(f.drain(), []);
    let waited = f.skip_until(&Event::List);
    assert!(waited >= Duration::from_secs(1) && waited <= Duration::from_secs(2), "{waited:?}");
    f.inventory.on_list_failed(f.now, "busy");
    assert!(f.skip_until(&Event::List) <= Duration::from_millis(250));
}

#[test]
fn moved_tag_is_served_for_its_target_as_soon_as_that_is_there() {
    let known = listing(&[image("r.test/a:1", LAYER, &digest("a"))], &[content("a", &[]), content("b", &[])]);
    let mut f = Fixture::listed(Filters::default(), known);
    f.inventory.on_image_changed(f.now, &image("r.test/a:1", LAYER, &digest("b")));
    let moved = Event::ServeTag { name: "r.test/a:1".to_owned(), digest: digest("b") };
    assert_eq!(f.drain(), [moved], "held all the time");
    f.inventory.on_image_changed(f.now, &image("r.test/a:1", LAYER, &digest("c")));
    assert_eq!(f.drain(), [&stop_tag("r.test/a:1")[..], &[inspect("c")]].concat());
    assert_eq!(f.inspected("c", present("c", &[])), [serve("c"), serve_tag("r.test/a:1", "c")].concat());
    f.inventory.on_image_changed(f.now, &ListedImage { name: "r.test/a:1".to_owned(), target: None });
    assert_eq!(f.drain(), stop_tag("r.test/a:1"));
}

#[test]
fn deleted_image_loses_its_tag_and_keeps_its_content() {
    let known = listing(&[image("r.test/a:1", LAYER, &digest("a"))], &[content("a", &[])]);
    let mut f = Fixture::listed(Filters::default(), known);
    f.inventory.on_image_deleted(f.now, "r.test/a:1");
    f.inventory.on_image_deleted(f.now, "r.test/a:1");
    f.inventory.on_image_deleted(f.now, "unknown");
    assert_eq!(f.drain(), stop_tag("r.test/a:1"));
    assert!(f.inventory.holds(&digest("a")));
    assert_eq!(f.inventory.report().images, 0);
}

#[test]
fn odd_names_have_no_tag_and_stop_nothing() {
    let mut f = Fixture::connected(Filters::default());
    let images = [
        image(&digest("a").to_string(), LAYER, &digest("a")),
        image(&format!("r.test/a@{}", digest("a")), LAYER, &digest("a")),
        image(&format!("r.test/a:1@{}", digest("a")), LAYER, &digest("a")),
        image("r.test/UPPER:1", LAYER, &digest("a")),
        image("", LAYER, &digest("a")),
        image(&"x".repeat(NAME_BYTES_MAX + 1), LAYER, &digest("a")),
        image("r.test/b:1", LAYER, &digest("a")),
    ];
    f.inventory.on_listed(f.now, listing(&images, &[content("a", &[])]));
    let noted: Vec<_> = f.drain().into_iter().filter_map(|event| unusual(&event)).collect();
    let expected = ["", "r.test/UPPER:1"].map(|name| (name.to_owned(), "name_unparsable"));
    assert_eq!(noted, expected);
    assert_eq!(f.served.tags.keys().collect::<Vec<_>>(), ["r.test/b:1"]);
    let report = f.inventory.report();
    assert_eq!((report.findings.get("name_unparsable"), report.ignored), (Some(&2), 1));
}

fn unusual(event: &Event) -> Option<(String, &'static str)> {
    if let Event::Notice(Notice::ImageUnusual { image, reason, .. }) = event {
        Some((image.clone(), reason))
    } else {
        None
    }
}

#[test]
fn filters_decide_by_any_source() {
    let mut f = Fixture::connected(docker_only());
    let contents = [
        content("allowed", &[("r.test", "a"), ("docker.io", "a")]),
        content("other", OTHER),
        content("secret", &[("docker.io", "secret")]),
        content("unlabelled", &[]),
    ];
    let images = [
        image("docker.io/a:1", LAYER, &digest("allowed")),
        image("docker.io/a:2", LAYER, &digest("allowed")),
        image("r.test/a:1", LAYER, &digest("allowed")),
        image("docker.io/b:1", LAYER, &digest("other")),
    ];
    f.inventory.on_listed(f.now, listing(&images, &contents));
    f.drain();
    assert_eq!(f.served.contents.keys().collect::<Vec<_>>(), [&digest("allowed")]);
    assert_eq!(f.served.tags.keys().collect::<Vec<_>>(), ["docker.io/a:1"]);
}

#[test]
fn labels_that_come_a_moment_late_are_waited_for() {
    let mut f = Fixture::listed(docker_only(), Listing::default());
    f.committed("a");
    assert_eq!(f.inspected("a", present("a", &[])), []);
    assert!(f.skip_until(&inspect("a")) <= Duration::from_millis(20));
    assert_eq!(f.inspected("a", present("a", DOCKER)), serve("a"));
    f.committed("b");
    f.inspected("b", present("b", &[]));
    f.skip_until(&inspect("b"));
    assert_eq!(f.inspected("b", present("b", OTHER)), []);
    assert_eq!(f.inventory.report().inspections_pending, 0);
}

#[test]
fn unreadable_content_is_quarantined_ever_longer() {
    let known = listing(&[image("r.test/a:1", LAYER, &digest("a"))], &[content("a", &[]), content("b", &[])]);
    let mut f = Fixture::listed(Filters::default(), known);
    let stopped = [&stop_tag("r.test/a:1")[..], &stop("a"), &[inspect("a")]].concat();
    let mut waits = Vec::new();
    for _ in 0..3 {
        f.inventory.on_content_unreadable(f.now, &digest("a"));
        assert_eq!(f.drain(), stopped);
        f.inventory.on_content_unreadable(f.now, &digest("a"));
        assert_eq!(f.inspected("a", present("a", &[])), [], "containerd has it, but the file is bad");
        assert_eq!(f.inventory.report().contents_unreadable, 1);
        waits.push(f.skip_until(&inspect("a")));
        let back = [serve("a"), serve_tag("r.test/a:1", "a")].concat();
        assert_eq!(f.inspected("a", present("a", &[])), back);
    }
    assert!(waits[0] <= Duration::from_secs(10) && waits[2] >= Duration::from_secs(20), "{waits:?}");
    f.inventory.on_content_unreadable(f.now, &digest("a"));
    f.drain();
    f.inspected("a", Inspection::Absent);
    assert_eq!(f.inventory.report().contents, 1);
    f.inventory.on_content_unreadable(f.now, &digest("unknown"));
    assert_eq!(f.drain(), []);
}

#[test]
fn fresh_commit_ends_a_quarantine() {
    let mut f = Fixture::listed(Filters::default(), listing(&[], &[content("a", &[])]));
    f.inventory.on_content_unreadable(f.now, &digest("a"));
    f.drain();
    f.inspected("a", present("a", &[]));
    assert_eq!(f.committed("a"), [inspect("a")]);
    assert_eq!(f.inspected("a", present("a", &[])), serve("a"));
}

#[test]
fn changed_size_is_passed_on() {
    let mut f = Fixture::listed(Filters::default(), listing(&[], &[content("a", &[])]));
    f.committed("a");
    let larger = ListedContent { size: 11, ..content("a", &[]) };
    let event = Event::ServeContent { digest: digest("a"), size: 11 };
    assert_eq!(f.inspected("a", Inspection::Present(larger)), [event]);
}

#[test]
fn surplus_is_ignored_and_said_once() {
    let contents: Vec<_> = (0..CONTENTS_MAX + 2).map(|n| content(&n.to_string(), &[])).collect();
    let mut f = Fixture::connected(Filters::default());
    f.inventory.on_listed(f.now, listing(&[], &contents));
    let noted: Vec<_> = f.drain().into_iter().filter_map(|event| unusual(&event)).collect();
    assert_eq!(noted, [(String::new(), "too_many_contents")]);
    let report = f.inventory.report();
    assert_eq!((report.contents, report.contents_served, report.ignored), (CONTENTS_MAX, CONTENTS_MAX, 2));
}

#[test]
fn report_counts_by_registry() {
    let images = [
        image("docker.io/a:1", LAYER, &digest("a")),
        image("docker.io/a:2", LAYER, &digest("a")),
        image("docker.io/gone:1", LAYER, &digest("gone")),
        image("r.test/b:1", LAYER, &digest("unlabelled")),
    ];
    let contents = [
        content("a", DOCKER),
        content("both", &[("docker.io", "x"), ("r.test", "y")]),
        content("unlabelled", &[]),
    ];
    let f = Fixture::listed(Filters::default(), listing(&images, &contents));
    let report = f.inventory.report();
    let counts = |tags, images, contents| RegistryCounts { tags, images, contents };
    assert_eq!(report.registries["docker.io"], counts(2, 1, 2));
    assert_eq!(report.registries["r.test"], counts(1, 1, 2));
    assert_eq!((report.images, report.contents_served, report.tags_served), (4, 3, 3));
}

#[test]
fn calls_without_cause_are_harmless() {
    let mut f = Fixture::new(Filters::default());
    f.inventory.handle_timeout(f.now);
    f.inventory.on_manifest_read(f.now, &digest("a"), ManifestRead::Absent);
    f.inventory.on_list_failed(f.now, "odd");
    f.inventory.on_listed(f.now, Listing::default());
    f.inventory.on_content_unreadable(f.now, &digest("a"));
    assert_eq!(f.drain(), [Event::ConnectContainerd]);
    assert_eq!(f.committed("a"), [], "nobody to ask");
    f.inventory.on_connected(f.now, String::new());
    assert_eq!(f.drain(), [Event::List, inspect("a")]);
}
