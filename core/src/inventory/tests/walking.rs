//! Walking images: what is read, what is found, what it never affects.

use super::*;

/// A document and its digest.
struct Document {
    digest: Digest,
    media_type: &'static str,
    bytes: Vec<u8>,
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
}

fn document(media_type: &'static str, json: String) -> Document {
    Document { digest: Digest::sha256_of(json.as_bytes()), media_type, bytes: json.into_bytes() }
}

fn manifest(config: &str, layers: &[&str]) -> Document {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(LAYER, &digest(layer), 10)).collect();
    let config = descriptor(CONFIG, &digest(config), 10);
    document(MANIFEST, format!(r#"{{"config":{config},"layers":[{}]}}"#, layers.join(",")))
}

fn index(children: &[(&'static str, Digest)]) -> Document {
    let children: Vec<_> = children.iter().map(|(kind, digest)| descriptor(kind, digest, 10)).collect();
    document(INDEX, format!(r#"{{"manifests":[{}]}}"#, children.join(",")))
}

fn index_of(documents: &[&Document]) -> Document {
    index(&documents.iter().map(|d| (d.media_type, d.digest)).collect::<Vec<_>>())
}

impl Document {
    fn content(&self) -> ListedContent {
        ListedContent { digest: self.digest, size: 10, sources: Vec::new() }
    }

    fn image(&self, name: &str) -> ListedImage {
        image(name, self.media_type, &self.digest)
    }

    fn wanted(&self) -> Event {
        Event::ReadManifest { digest: self.digest }
    }

    fn bytes(&self) -> ManifestRead {
        ManifestRead::Bytes(self.bytes.clone())
    }
}

/// Lists one image of one document with some of its content; the document is asked for.
fn walking(document: &Document, contents: &[ListedContent]) -> Fixture {
    let mut f = Fixture::connected(Filters::default());
    let contents = [&[document.content()], contents].concat();
    f.inventory.on_listed(f.now, listing(&[document.image("r.test/a:1")], &contents));
    assert!(f.drain().contains(&document.wanted()));
    assert_eq!(f.served.contents.len(), contents.len(), "served before it is read");
    f
}

fn found(events: &[Event]) -> Vec<&'static str> {
    events.iter().filter_map(|event| unusual(event).map(|(_, reason)| reason)).collect()
}

#[test]
fn each_manifest_is_read_once_for_all_images() {
    let (m1, m2) = (manifest("c1", &["l"]), manifest("c2", &["l"]));
    let root = index_of(&[&m1, &m2]);
    let images = [root.image("r.test/a:1"), root.image(&root.digest.to_string()), m1.image("r.test/b:1")];
    let mut f = Fixture::connected(Filters::default());
    f.inventory.on_listed(f.now, listing(&images, &[root.content(), m1.content()]));
    let reads: Vec<_> =
        f.drain().into_iter().filter(|event| matches!(event, Event::ReadManifest { .. })).collect();
    assert_eq!(reads.len(), 2);
    f.inventory.on_image_changed(f.now, &root.image("r.test/c:1"));
    assert!(!f.drain().contains(&root.wanted()), "a further name while it is being read");
    f.inventory.on_image_deleted(f.now, "r.test/c:1");
    f.drain();
    assert!(reads.contains(&root.wanted()) && reads.contains(&m1.wanted()));
    assert_eq!(f.read(&m1.digest, m1.bytes()), []);
    assert_eq!(f.read(&root.digest, root.bytes()), [], "the other platform's is not here");
    assert_eq!(f.read(&root.digest, root.bytes()), [], "nobody asked");
    f.inventory.on_blob_committed(f.now, &m2.digest);
    f.drain();
    f.inventory.on_inspected(f.now, &m2.digest, Inspection::Present(m2.content()));
    assert!(f.drain().contains(&m2.wanted()), "walked when it appears");
    f.read(&m2.digest, m2.bytes());
    for image in &images {
        f.inventory.on_image_deleted(f.now, &image.name);
    }
    assert_eq!(f.inventory.walks.manifests_len(), 0, "nothing is kept for images that are gone");
}

#[test]
fn manifest_that_is_not_json_is_noted_once_and_read_once() {
    let bad = document(MANIFEST, "<html>".to_owned());
    let mut f = walking(&bad, &[content("l", &[])]);
    assert_eq!(found(&f.read(&bad.digest, bad.bytes())), ["manifest_not_json"]);
    let report = f.inventory.report();
    let quarantined =
        QuarantinedImage { image: "r.test/a:1".to_owned(), reason: "manifest_not_json", retry_at: None };
    assert_eq!(report.quarantined, [quarantined]);
    assert_eq!(report.findings.get("manifest_not_json"), Some(&1));
    assert!(f.inventory.holds(&bad.digest) && f.inventory.holds(&digest("l")));
    for _ in 0..3 {
        f.skip_until(&Event::List);
        let same = listing(&[bad.image("r.test/a:1")], &[bad.content(), content("l", &[])]);
        f.inventory.on_listed(f.now, same);
        assert_eq!(f.drain(), []);
    }
}

#[test]
fn too_large_manifest_is_noted_by_its_size_or_by_reading() {
    let large = document(MANIFEST, "{}".to_owned());
    let mut f = walking(&large, &[]);
    assert_eq!(found(&f.read(&large.digest, ManifestRead::TooLarge)), ["manifest_too_large"]);

    let mut f = Fixture::connected(Filters::default());
    let content = ListedContent { size: crate::oci::MANIFEST_SIZE_MAX + 1, ..large.content() };
    f.inventory.on_listed(f.now, listing(&[large.image("r.test/a:1")], &[content]));
    let events = f.drain();
    assert_eq!(found(&events), ["manifest_too_large"]);
    assert!(!events.contains(&large.wanted()), "not worth reading");
}

#[test]
fn unreadable_manifest_is_read_again_ever_later_and_noted_once() {
    let root = manifest("c", &["l"]);
    let mut f = walking(&root, &[]);
    let failed = || ManifestRead::Failed { cause: "input/output error".to_owned() };
    assert_eq!(found(&f.read(&root.digest, failed())), ["unreadable"]);
    let mut waits = Vec::new();
    for _ in 0..11 {
        assert!(f.inventory.report().quarantined[0].retry_at.is_some());
        let mut waited = Duration::ZERO;
        loop {
            let start = f.now;
            let events = f.skip();
            waited += f.now - start;
            if events.contains(&Event::List) {
                f.inventory.on_listed(f.now, listing(&[root.image("r.test/a:1")], &[root.content()]));
                assert_eq!(f.drain(), []);
            }
            if events.contains(&root.wanted()) {
                break;
            }
        }
        waits.push(waited);
        assert_eq!(found(&f.read(&root.digest, failed())), [] as [&str; 0]);
    }
    assert!(waits[0] <= Duration::from_secs(60) && waits[10] >= Duration::from_secs(3 * 3600), "{waits:?}");
    let retry_at = f.inventory.report().quarantined[0].retry_at.expect("a retry");
    f.now = retry_at;
    f.inventory.handle_timeout(f.now);
    f.drain();
    assert_eq!(f.read(&root.digest, root.bytes()), []);
    assert_eq!(f.inventory.report().quarantined, []);
}

#[test]
fn missing_manifest_is_asked_about_before_it_is_noted() {
    let root = manifest("c", &["l"]);
    let mut f = walking(&root, &[]);
    let asked = [Event::Inspect { digest: root.digest }];
    assert_eq!(f.read(&root.digest, ManifestRead::Absent), asked);
    f.inventory.on_inspected(f.now, &root.digest, Inspection::Present(root.content()));
    f.drain();
    assert!(f.skip_until(&root.wanted()) <= Duration::from_secs(60));
    assert_eq!(found(&f.read(&root.digest, ManifestRead::Absent)), ["unreadable"]);
    f.inventory.on_inspected(f.now, &root.digest, Inspection::Absent);
    f.drain();
    assert!(!f.inventory.holds(&root.digest));
    assert_eq!(f.inventory.report().quarantined, []);
}

#[test]
fn unanswered_read_counts_as_failed() {
    let root = manifest("c", &[]);
    let mut f = walking(&root, &[]);
    let start = f.now;
    assert_eq!(found(&f.skip()), ["unreadable"]);
    assert_eq!(f.now - start, READ_TIMEOUT + crate::output::ANSWER_GRACE);
    assert_eq!(f.read(&root.digest, root.bytes()), [], "too late");
}

/// No honest content can contain its own digest, but reads are not verified.
#[test]
fn cycle_is_noted_and_ends() {
    let (a, b) = (digest("a"), digest("b"));
    let (to_b, to_a) = (index(&[(INDEX, b)]), index(&[(INDEX, a)]));
    let contents = [content("a", &[]), content("b", &[])];
    let mut f = Fixture::listed(Filters::default(), listing(&[image("r.test/a:1", INDEX, &a)], &contents));
    assert_eq!(f.read(&a, to_b.bytes()), [Event::ReadManifest { digest: b }]);
    assert_eq!(found(&f.read(&b, to_a.bytes())), ["index_cycle"]);
    assert_eq!(f.inventory.report().quarantined.len(), 1);
}

#[test]
fn depth_is_bounded() {
    for (depth, expected) in [(walks::WALK_DEPTH_MAX, &[][..]), (walks::WALK_DEPTH_MAX + 1, &["too_deep"])] {
        let mut chain = vec![manifest("c", &[])];
        while chain.len() < depth {
            let next = index_of(&[chain.last().expect("one")]);
            chain.push(next);
        }
        chain.reverse();
        let contents: Vec<_> = chain.iter().map(Document::content).collect();
        let root = chain[0].image("r.test/a:1");
        let mut f = Fixture::listed(Filters::default(), listing(&[root], &contents));
        let events: Vec<_> = chain.iter().flat_map(|d| f.read(&d.digest, d.bytes())).collect();
        assert_eq!(found(&events), expected, "{depth}");
    }
}

#[test]
fn number_of_manifests_is_bounded() {
    for (extra, expected) in [(0, &[][..]), (1, &["too_many_children"])] {
        let count = walks::WALK_MANIFESTS_MAX - 1 + extra;
        let children: Vec<_> = (0..count).map(|n| (MANIFEST, digest(&n.to_string()))).collect();
        let root = index(&children);
        let mut f = walking(&root, &[]);
        assert_eq!(found(&f.read(&root.digest, root.bytes())), expected, "{count}");
    }
}

#[test]
fn too_many_descriptors_are_noted() {
    let layers = vec!["l"; crate::oci::CHILDREN_MAX + 1];
    let root = manifest("c", &layers);
    let mut f = walking(&root, &[]);
    assert_eq!(found(&f.read(&root.digest, root.bytes())), ["too_many_children"]);
}

#[test]
fn unusual_layers_and_configs_are_mere_findings() {
    let layer = descriptor("application/octet-stream", &digest("l"), 10);
    let config = descriptor(CONFIG, &digest("c"), crate::oci::MANIFEST_SIZE_MAX + 1);
    let root = document(MANIFEST, format!(r#"{{"config":{config},"layers":[{layer}]}}"#));
    let mut f = walking(&root, &[content("l", &[]), content("c", &[])]);
    assert_eq!(found(&f.read(&root.digest, root.bytes())), ["layer_media_type", "config_too_large"]);
    let report = f.inventory.report();
    assert_eq!((report.quarantined.len(), report.findings.len()), (0, 2));
    assert_eq!(report.contents_served, 3);
}

#[test]
fn target_of_unknown_type_is_a_leaf() {
    let root = document("application/wasm", "{}".to_owned());
    let f = Fixture::listed(Filters::default(), listing(&[root.image("r.test/a:1")], &[root.content()]));
    assert!(f.inventory.holds(&root.digest));
    assert_eq!((f.inventory.report().reads_pending, f.inventory.report().findings.len()), (0, 0));
}

#[test]
fn reads_are_bounded_and_paced() {
    let roots: Vec<_> = (0..600).map(|n| manifest(&n.to_string(), &[])).collect();
    let images: Vec<_> =
        roots.iter().map(|root| root.image(&format!("r.test/{}:1", root.digest.hex()))).collect();
    let contents: Vec<_> = roots.iter().map(Document::content).collect();
    let mut f = Fixture::connected(Filters::default());
    f.inventory.on_listed(f.now, listing(&images, &contents));
    let by_digest: BTreeMap<_, _> = roots.iter().map(|root| (root.digest, root)).collect();
    let mut wanted: VecDeque<Digest> = VecDeque::new();
    let start = f.now;
    let mut at_start = 0;
    let mut total = 0;
    let mut events = f.drain();
    while total < roots.len() {
        wanted.extend(events.iter().filter_map(|event| {
            if let Event::ReadManifest { digest } = event { Some(*digest) } else { None }
        }));
        assert!(wanted.len() <= walks::READS_IN_FLIGHT_MAX);
        assert_eq!(f.inventory.report().reads_pending, roots.len() - total);
        events = match wanted.pop_front() {
            Some(digest) => {
                total += 1;
                at_start += usize::from(f.now == start);
                f.read(&digest, by_digest[&digest].bytes())
            }
            None => f.skip(),
        };
    }
    assert_eq!(at_start, 256);
    assert!(f.now - start >= Duration::from_millis(170) && f.now - start < Duration::from_secs(1));
}

#[test]
fn trouble_with_one_image_leaves_others_alone() {
    let (bad, good) = (document(MANIFEST, "[".to_owned()), manifest("c", &["l"]));
    let images = [bad.image("r.test/bad:1"), good.image("r.test/good:1")];
    let mut f = Fixture::listed(
        Filters::default(),
        listing(&images, &[bad.content(), good.content(), content("c", &[]), content("l", &[])]),
    );
    f.read(&bad.digest, bad.bytes());
    f.read(&good.digest, good.bytes());
    let report = f.inventory.report();
    assert_eq!((report.contents_served, report.tags_served, report.quarantined.len()), (4, 2, 1));
    assert_eq!(report.registries["r.test"], RegistryCounts { tags: 2, images: 2, contents: 4 });
}

#[test]
fn unlabelled_content_of_allowed_images_is_served() {
    let (allowed, other) = (manifest("c", &["l"]), manifest("x", &["y"]));
    let images = [allowed.image("docker.io/a:1"), other.image("r.test/a:1")];
    let leaves = ["c", "l", "x", "y"].map(|name| content(name, &[]));
    let all = [&[allowed.content(), other.content()][..], &leaves].concat();
    let mut f = Fixture::listed(docker_only(), listing(&images, &all));
    assert!(f.served.contents.is_empty());
    f.read(&allowed.digest, allowed.bytes());
    f.read(&other.digest, other.bytes());
    f.skip();
    let served: BTreeSet<_> = f.served.contents.keys().copied().collect();
    assert_eq!(served, BTreeSet::from([allowed.digest, digest("c"), digest("l")]));
    assert_eq!(f.served.tags.keys().collect::<Vec<_>>(), ["docker.io/a:1"]);

    // The image goes, its content stays until containerd is listed again, whatever else changes.
    f.inventory.on_image_deleted(f.now, "docker.io/a:1");
    f.inventory.on_image_changed(f.now, &other.image("r.test/b:1"));
    f.drain();
    while !f.skip().contains(&Event::List) {
        assert_eq!(f.served.contents.len(), 3);
    }
    f.inventory.on_listed(f.now, listing(&images[1..], &all));
    f.drain();
    f.skip();
    assert!(f.served.contents.is_empty());
}

#[test]
fn content_shared_with_the_next_version_of_an_image_is_served_without_a_gap() {
    let (old, new) = (manifest("c1", &["shared"]), manifest("c2", &["shared"]));
    let leaves = ["c1", "c2", "shared"].map(|name| content(name, &[]));
    let all = [&[old.content(), new.content()][..], &leaves].concat();
    let name = "docker.io/a:1";
    let mut f = Fixture::listed(docker_only(), listing(&[old.image(name)], &all));
    f.read(&old.digest, old.bytes());
    f.skip();
    assert!(f.inventory.holds(&digest("shared")));

    f.skip_until(&Event::List);
    f.inventory.on_listed(f.now, listing(&[new.image(name)], &all));
    f.drain();
    f.inventory.handle_timeout(f.now + ATTRIBUTION_DELAY);
    f.drain();
    assert!(f.inventory.holds(&digest("shared")) && f.inventory.holds(&digest("c1")), "not all is read");
    f.now += ATTRIBUTION_DELAY;
    f.read(&new.digest, new.bytes());
    f.skip();
    let served: BTreeSet<_> = f.served.contents.keys().copied().collect();
    assert_eq!(served, BTreeSet::from([new.digest, digest("c2"), digest("shared")]));
}

#[test]
fn twelve_thousand_contents_are_one_pass() {
    let contents: Vec<_> = (0..12_000).map(|n| content(&n.to_string(), DOCKER)).collect();
    let known = listing(&[image("docker.io/a:1", LAYER, &digest("0"))], &contents);
    let mut f = Fixture::connected(docker_only());
    f.inventory.on_listed(f.now, known.clone());
    assert_eq!(f.drain().len(), 1 + 2 * 12_000 + 2);
    f.skip_until(&Event::List);
    f.inventory.on_listed(f.now, known);
    assert_eq!(f.drain(), []);
}
