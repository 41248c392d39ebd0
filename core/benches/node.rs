//! What the core spends on the inputs that are frequent in a cluster of a thousand nodes, or large:
//! `make bench-core`. Everything goes through [`Node`], as in production.

use std::{
    fmt::Write,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use spegel_core::{
    Announce, BootstrapAddr, Config, ExchangeId, Filters, Fingerprint, Input, Key, ListedContent,
    ListedImage, Listing, ManifestRead, Node, Output, PeerId, PullId, PullKind, Reply, Request,
    oci::{Descriptor, Digest, parse_manifest},
};

const MEMBERS: u32 = 1000;
const KEYS: u32 = 10_000;
/// Of each member: together almost as many entries as an owner keeps.
const KEYS_PER_MEMBER: u32 = 990;
const IMAGES: u32 = 10_000;
/// Far more than there are until the next resync: instead of a benchmark that never ends.
const TIMEOUTS_MAX: u32 = 10_000;

fn peer(number: u32) -> PeerId {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    PeerId::from_public_key(key)
}

fn addr(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

fn key(number: u32) -> Key {
    Key::of(&(number % KEYS).to_string())
}

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the origin of the axis, and the stopwatch")]
    Instant::now()
}

fn node(now: Instant, number: u32) -> Node {
    let config = Config {
        peer: peer(number),
        started_at_unix_ms: 1_000_000,
        router_port: 5001,
        registry_port: 5000,
        zone: None,
        filters: Filters::default(),
        resolve_timeout: Duration::from_millis(20),
        resolve_retries: 3,
        shutdown_delay: Duration::ZERO,
    };
    let mut node = Node::new(now, config, number.into());
    apply(&mut node, now, Input::ListenAddrsChanged { addrs: vec![addr(number)] });
    node
}

fn apply(node: &mut Node, now: Instant, input: Input) -> Vec<Output> {
    node.handle(now, input);
    std::iter::from_fn(|| node.poll_output()).collect()
}

fn received(from: u32, request: &Request) -> Input {
    Input::MessageReceived { from: peer(from), exchange: ExchangeId(0), message: request.encode() }
}

fn reply(outputs: &[Output]) -> Reply {
    let reply = outputs
        .iter()
        .find_map(|output| if let Output::Reply { message, .. } = output { Some(message) } else { None });
    Reply::decode(reply.expect("a reply")).expect("one that makes sense")
}

/// A member that has joined by its own words, so that its packet is a real one.
fn introduce(node: &mut Node, now: Instant, number: u32) {
    let mut member = self::node(now, number);
    let contact = SocketAddr::new(addr(0), 5001);
    let addrs = vec![BootstrapAddr { addr: contact, peer: None }];
    apply(&mut member, now, Input::BootstrapResolved { addrs });
    let outputs = apply(&mut member, now, Input::Dialed { addr: contact, peer: peer(0) });
    for output in outputs {
        if let Output::Send { message, .. } = output {
            let from = peer(number);
            apply(node, now, Input::MessageReceived { from, exchange: ExchangeId(0), message });
        }
    }
}

fn announced(member: u32, shifted: bool, delta: bool) -> Input {
    let first = member * 10 + u32::from(shifted);
    let keys: Vec<_> = (first..first + KEYS_PER_MEMBER).map(key).collect();
    let mut holds = Fingerprint::default();
    keys.iter().for_each(|key| holds.add(key));
    let (last, before) = (member * 10 + KEYS_PER_MEMBER, member * 10);
    let (add, remove) = match (delta, shifted) {
        (false, _) => (keys, Vec::new()),
        (true, true) => (vec![key(last)], vec![key(before)]),
        (true, false) => (vec![key(before)], vec![key(last)]),
    };
    let announce = Announce { reset: !delta, add, remove, complete: true, holds, wants: false };
    received(member, &Request::Announce(announce))
}

/// A node among a thousand, of whose directory it knows as much as it may.
fn owner(now: Instant) -> Node {
    let mut node = node(now, 0);
    for member in 1..=MEMBERS {
        introduce(&mut node, now, member);
        let outputs = apply(&mut node, now, announced(member, false, false));
        assert_eq!(reply(&outputs), Reply::Announced { synced: true });
    }
    let report = node.report(now);
    assert_eq!(report.members.len() as u32, MEMBERS);
    assert_eq!(report.directory.entries_owned as u32, MEMBERS * KEYS_PER_MEMBER);
    node
}

fn directory(c: &mut Criterion) {
    let now = now();
    let mut node = owner(now);
    let mut group = c.benchmark_group("1000 members, 990k entries");

    let mut number = 0;
    group.bench_function("lookup request", |b| {
        b.iter_batched(
            || {
                number += 1;
                received(1 + number % MEMBERS, &Request::Lookup { key: key(number) })
            },
            |input| apply(&mut node, now, input),
            BatchSize::SmallInput,
        );
    });
    let mut shifted = false;
    group.bench_function("announcement of one key, one gone", |b| {
        b.iter_batched(
            || {
                shifted = !shifted;
                announced(7, shifted, true)
            },
            |input| apply(&mut node, now, input),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("announcement of all 990 keys", |b| {
        let input = announced(8, false, false);
        b.iter_batched(|| input.clone(), |input| apply(&mut node, now, input), BatchSize::SmallInput);
    });

    // What is measured is finding the owners; what is known of a pull is forgotten in between.
    let mut next = 0;
    group.bench_function("pull begins: owners found and asked", |b| {
        b.iter_custom(|iterations| {
            let (mut spent, mut asked) = (Duration::ZERO, 0);
            for _ in 0..iterations {
                let pull = PullId(next);
                next += 1;
                let digest = Digest::sha256_of(&next.to_be_bytes());
                let key = Key::of_digest(&digest);
                let (digest, kind) = (Some(digest), PullKind::Blob);
                let began = self::now();
                let input = Input::PullRequested { pull, key, digest, kind, whole: true };
                let outputs = black_box(apply(&mut node, now, input));
                spent += began.elapsed();
                asked += u64::from(outputs.iter().any(|output| matches!(output, Output::Send { .. })));
                apply(&mut node, now, Input::PullAbandoned { pull });
                for output in outputs {
                    if let Output::Send { exchange, .. } = output {
                        let message = Reply::Found { holders: Vec::new(), knows: true }.encode();
                        apply(&mut node, now, Input::ReplyReceived { exchange, message });
                    }
                }
            }
            assert!(asked * 2 > iterations, "this node owns few keys: others are asked");
            spent
        });
    });
}

fn blob(name: &str) -> Digest {
    Digest::sha256_of(name.as_bytes())
}

fn image_manifest(layers: &[Digest]) -> String {
    let descriptor = |digest: &Digest, kind: &str| {
        format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":1234567}}"#)
    };
    let config = descriptor(&blob("config"), "config.v1+json");
    let mut text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":["#);
    for (at, layer) in layers.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _infallible = write!(text, "{comma}{}", descriptor(layer, "layer.v1.tar+gzip"));
    }
    text + "]}"
}

/// Images of a manifest, a config and three layers, one of them shared.
fn listing() -> (Listing, Vec<(Digest, Vec<u8>)>) {
    let mut listing = Listing::default();
    let mut manifests = Vec::new();
    let content = |digest: Digest, size| {
        let sources = vec![("registry.test".to_owned(), "team/app".to_owned())];
        ListedContent { digest, size, sources }
    };
    for number in 0..IMAGES {
        let own = ["a", "b"].map(|layer| blob(&format!("{number}{layer}")));
        let shared = blob(&format!("base{}", number % 100));
        let manifest = image_manifest(&[shared, own[0], own[1]]).into_bytes();
        let digest = Digest::sha256_of(&manifest);
        listing.contents.push(content(digest, manifest.len() as u64));
        listing.contents.extend(own.map(|digest| content(digest, 1_234_567)));
        if number < 100 {
            listing.contents.push(content(shared, 1_234_567));
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        let target = Some(Descriptor { media_type, digest, size: manifest.len() as u64 });
        listing.images.push(ListedImage { name: format!("registry.test/team/app:{number}"), target });
        manifests.push((digest, manifest));
    }
    listing.contents.push(content(blob("config"), 1_234_567));
    manifests.sort();
    (listing, manifests)
}

/// Applies a listing and answers every read that follows.
fn start(
    mut node: Node,
    mut now: Instant,
    listing: Listing,
    manifests: &[(Digest, Vec<u8>)],
) -> (Node, Instant) {
    let mut outputs = apply(&mut node, now, Input::Listed(listing));
    let mut unread = manifests.len();
    while unread > 0 {
        for output in std::mem::take(&mut outputs) {
            if let Output::ReadManifest { digest, .. } = output {
                let at = manifests.binary_search_by_key(&digest, |(digest, _)| *digest).expect("listed");
                let outcome = ManifestRead::Bytes(manifests[at].1.clone());
                outputs.extend(apply(&mut node, now, Input::ManifestRead { digest, outcome }));
                unread -= 1;
            }
        }
        if outputs.is_empty() {
            now = node.poll_timeout().map_or(now, |(at, _)| at.max(now));
            outputs = timeout(&mut node, now);
        }
    }
    (node, now)
}

/// Time passes, with a containerd that is well, until the core wants all its content again.
fn until_listed_again(node: &mut Node, mut now: Instant) -> Instant {
    for _ in 0..TIMEOUTS_MAX {
        now = node.poll_timeout().map_or(now, |(at, _)| at.max(now));
        for output in timeout(node, now) {
            if matches!(output, Output::List { .. }) {
                return now;
            }
            if matches!(output, Output::ProbeContainerd { .. }) {
                apply(node, now, Input::ContainerdProbed);
            }
        }
    }
    panic!("no resync in {TIMEOUTS_MAX} timeouts");
}

fn timeout(node: &mut Node, now: Instant) -> Vec<Output> {
    node.handle_timeout(now);
    std::iter::from_fn(|| node.poll_output()).collect()
}

fn inventory(c: &mut Criterion) {
    let origin = now();
    let (listing, manifests) = listing();
    let mut group = c.benchmark_group("10 000 images, 30 101 blobs");
    group.sample_size(10);

    let connected = || {
        let mut node = node(origin, 0);
        apply(&mut node, origin, Input::ContainerdConnected { version: String::new() });
        node
    };
    group.bench_function("first listing, every manifest read", |b| {
        b.iter_batched(
            || (connected(), listing.clone()),
            |(node, listing)| start(node, origin, listing, &manifests),
            BatchSize::PerIteration,
        );
    });

    let (mut node, mut now) = start(connected(), origin, listing.clone(), &manifests);
    group.bench_function("resync: nothing has changed", |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                now = until_listed_again(&mut node, now);
                let listing = listing.clone();
                let began = self::now();
                let outputs = black_box(apply(&mut node, now, Input::Listed(listing)));
                spent += began.elapsed();
                assert!(!outputs.iter().any(|output| matches!(output, Output::ServeContent { .. })));
            }
            spent
        });
    });
}

fn manifest(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse a manifest");
    for layers in [5, 20, 2000] {
        let layers: Vec<_> = (0..layers).map(|layer| blob(&layer.to_string())).collect();
        let text = image_manifest(&layers);
        let name = format!("{} layers, {} bytes", layers.len(), text.len());
        group.bench_function(name, |b| b.iter(|| parse_manifest(None, black_box(text.as_bytes()))));
    }
}

criterion_group!(benches, manifest, directory, inventory);
criterion_main!(benches);
