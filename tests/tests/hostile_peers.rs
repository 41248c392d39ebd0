//! Garbage from the network costs a pull a moment, never its success: on the port where nodes talk to each
//! other, and from a holder whose registry lies. Only a layer with wrong bytes costs one try. Mirrors the simulated
//! scenario `corrupting_peer`.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{
    Cluster, ClusterOptions, Generation, Image, ImageSpec, MIRROR_PORT, Node, Puller, ROUTER_PORT, StandIn,
    mib, request_head, stay_silent,
};

const ADDED_MAX: Duration = Duration::from_secs(3);
const ROUTER_CONNECTIONS: usize = 300;
/// Where the liar listens on the node whose registry it stands in for.
const LIAR_PORT: u16 = 5999;
const OTHER_DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// So long that their bytes go to containerd as they come; and so many that the liar is asked for some of them.
const LARGE: &[u64] = &[mib(1); 12];
/// So short that it is checked first; and so many that the liar is asked for some of them.
const SMALL: &[u64] = &[100_000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000];

/// Longer than what is checked first; and so many that the liar is asked for some of them.
const MANY_LARGE: &[u64] = &[300_000; 8];
/// Content up to this is checked before containerd gets any of it.
const CHECKED_BYTES_MAX: u64 = 128 * 1024;
/// The pause of the kubelet before it tries again.
const KUBELET_PAUSE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    WrongDigest,
    EndlessHeaders,
    NoHttp,
    Silence,
    HangUp,
    WrongBytes,
    /// Wrong bytes of what is not checked first, right ones of the rest.
    WrongLayers,
}

/// Answers one connection with a lie about whatever it is asked for.
fn lie(lie: Lie, mut stream: TcpStream, image: &Image) {
    let Some(request) = request_head(&mut stream) else { return };
    // Whoever resolves a tag is believed: nobody can check that. The liar lies about content.
    let by_tag = || image.blobs.iter().find(|blob| blob.digest == image.digest);
    let by_digest = image.blobs.iter().find(|blob| request.contains(&blob.digest));
    let asked = by_digest.or_else(by_tag).expect("an image has a target");
    let head = |length: u64, digest: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {length}\r\nDocker-Content-Digest: {digest}\r\n\r\n",
            asked.media_type
        )
    };
    let garbage = |stream: &mut TcpStream, mut bytes: u64| {
        let chunk = [b'x'; 64 * 1024];
        while bytes > 0 {
            let most = chunk.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
            if stream.write_all(&chunk[..most]).is_err() {
                return;
            }
            bytes -= most as u64;
        }
    };
    match lie {
        Lie::WrongDigest => {
            let digest = if by_digest.is_some() { OTHER_DIGEST } else { &asked.digest };
            let _ = stream.write_all(head(asked.size, digest).as_bytes());
            garbage(&mut stream, asked.size);
        }
        Lie::EndlessHeaders => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            while stream.write_all(&b"X-Endless: header\r\n".repeat(100)).is_ok() {}
        }
        Lie::NoHttp => {
            let _ = stream.write_all(&b"\x00\xffnot HTTP at all\r\n".repeat(1000));
        }
        Lie::Silence => stay_silent(&mut stream),
        Lie::HangUp => {}
        Lie::WrongLayers if asked.size <= CHECKED_BYTES_MAX => {
            let bytes = fs::read(&asked.path).expect("the image is on disk");
            let _ = stream.write_all(head(asked.size, &asked.digest).as_bytes());
            let _ = stream.write_all(&bytes);
        }
        Lie::WrongBytes | Lie::WrongLayers => {
            let _ = stream.write_all(head(asked.size, &asked.digest).as_bytes());
            garbage(&mut stream, asked.size);
        }
    }
}

/// Puts a liar in the place of a node's registry for everybody else.
fn replace_registry(node: &Node, what: Lie, image: &Image) -> StandIn {
    let image = image.clone();
    let address = SocketAddr::new(node.address(), LIAR_PORT);
    let liar = StandIn::start(node.netns(), address, move |stream| lie(what, stream, &image));
    node.netns().divert(MIRROR_PORT, LIAR_PORT);
    liar
}

/// Tries until an image is there although one of its holders lies about layers: one fails because
/// of what was sent as they came, one more because of what containerd has kept.
const TRIES_MAX: u32 = 3;

fn hold(cluster: &Cluster, tags: [&str; 3], layers: &[u64]) -> [Image; 3] {
    let [first, second, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let specs = tags.map(|tag| ImageSpec::new("hostile", tag, layers).single());
    cluster.held_images(&specs, &[first, second], puller).try_into().expect("as many images as tags")
}

/// The puller has said that a node sends wrong content, and does not ask it for content any more.
fn liar_is_shunned(cluster: &Cluster, puller: &Node, liar: &StandIn, another: &Image, calm: Duration) {
    let told = |line: &&str| line.contains("node is not asked for content") && line.contains("wrong_content");
    let told = puller.spegel_log().lines().filter(told).count();
    // Once for each digest: the second tells the operator that it is no coincidence.
    assert!(
        (1..=MANY_LARGE.len()).contains(&told),
        "{} says {told} times that content is wrong",
        puller.name
    );
    let counted = puller.metric("spegel_shunned_peers_total", "reason=\"wrong_content\"");
    assert!(cluster.expect("metrics", counted) > 0.5, "{} does not count it", puller.name);
    let asked = liar.asked();
    let took = cluster.expect("pull of another image", puller.pull(Puller::Cri, &another.by_tag()));
    cluster.expect("content", puller.verify(another));
    let again = liar.asked() - asked;
    let added = took.saturating_sub(calm);
    println!("another image: {added:?} more than {calm:?}, liar asked {again} times");
    assert_eq!(again, 0, "a node that sent wrong content is not asked for other content");
    assert!(added <= ADDED_MAX, "a shunned liar added {added:?} to {calm:?}, not {ADDED_MAX:?}");
}

fn liar_is_left(generation: Generation, what: Lie) {
    let cluster = Cluster::with_spegel(ClusterOptions::new(3, generation));
    let [liar, _honest, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let layers = if what == Lie::WrongBytes { SMALL } else { LARGE };
    let [calm_image, image, another] = hold(&cluster, ["calm", "lied-about", "another"], layers);
    cluster.upstream.cut();
    let calm = cluster.expect("pull", puller.pull(Puller::Cri, &calm_image.by_tag()));
    let stand_in = replace_registry(liar, what, &image);
    let start = Instant::now();
    let pulled = puller.pull(Puller::Cri, &image.by_tag());
    cluster.expect(&format!("{what:?}: pulled all the same"), pulled);
    let added = start.elapsed().saturating_sub(calm);
    cluster.expect("content", puller.verify(&image));
    let times = stand_in.asked();
    println!("{generation:?} {what:?}: {added:?} more than {calm:?}, liar asked {times} times");
    assert!(times > 0, "{what:?}: the liar was never asked, so nothing was shown");
    assert!(added <= ADDED_MAX, "{what:?} added {added:?} to {calm:?}, not {ADDED_MAX:?}");
    if what == Lie::WrongBytes {
        liar_is_shunned(&cluster, puller, &stand_in, &another, calm);
    }
}

fn layer_with_wrong_bytes_costs_one_try(generation: Generation) {
    let cluster = Cluster::with_spegel(ClusterOptions::new(3, generation));
    let [liar, _honest, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let [calm_image, image, another] = hold(&cluster, ["calm", "lied-about", "another"], MANY_LARGE);
    cluster.upstream.cut();
    let calm = cluster.expect("pull", puller.pull(Puller::Cri, &calm_image.by_tag()));
    let stand_in = replace_registry(liar, Lie::WrongLayers, &image);
    let failed = puller.pull(Puller::Cri, &image.by_tag()).err();
    let failed = failed.expect("containerd gets the wrong bytes of a layer as they come, and refuses them");
    assert!(failed.contains("unexpected commit digest"), "{generation:?}: {failed}");
    // What failed is kept until containerd collects it, so that trying at once would be in vain.
    // Another layer of the liar's may have come to its end before the first one failed: containerd
    // then offers that for commit at the next try, without asking for it again.
    let mut tries = 1;
    let took = loop {
        thread::sleep(KUBELET_PAUSE);
        tries += 1;
        match puller.pull(Puller::Cri, &image.by_tag()) {
            Err(error) if tries < TRIES_MAX && error.contains("unexpected commit digest") => {}
            pulled => break cluster.expect("a later try", pulled),
        }
    };
    cluster.expect("content", puller.verify(&image));
    println!("{generation:?}: try {tries} took {took:?}; the liar was asked {} times", stand_in.asked());
    liar_is_shunned(&cluster, puller, &stand_in, &another, calm);
}

#[test]
fn holder_that_answers_nonsense_is_left() {
    for what in [Lie::WrongDigest, Lie::EndlessHeaders, Lie::NoHttp, Lie::Silence, Lie::HangUp] {
        liar_is_left(Generation::V2_1, what);
    }
}

/// Manifests, configs and small layers are checked before containerd gets any of them. (It keeps what it was given
/// and offers it for commit again without asking anew, so that later would be too late.)
#[test]
fn wrong_bytes_of_small_content_never_reach_containerd_1_6() {
    liar_is_left(Generation::V1_6, Lie::WrongBytes);
}

#[test]
fn wrong_bytes_of_small_content_never_reach_containerd_1_7() {
    liar_is_left(Generation::V1_7, Lie::WrongBytes);
}

#[test]
fn wrong_bytes_of_small_content_never_reach_containerd_2_1() {
    liar_is_left(Generation::V2_1, Lie::WrongBytes);
}

#[test]
fn layer_with_wrong_bytes_costs_containerd_1_6_one_try() {
    layer_with_wrong_bytes_costs_one_try(Generation::V1_6);
}

#[test]
fn layer_with_wrong_bytes_costs_containerd_2_1_one_try() {
    layer_with_wrong_bytes_costs_one_try(Generation::V2_1);
}

#[test]
fn garbage_at_the_router_port_disturbs_nobody() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(3, Generation::V2_1));
    let [_, target, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let router = SocketAddr::new(target.address(), ROUTER_PORT);
    let image = cluster.held_image(
        &ImageSpec::new("hostile", "garbage", LARGE).single(),
        &cluster.nodes[..2].iter().collect::<Vec<_>>(),
        puller,
    );
    cluster.upstream.cut();
    let before = target.spegel_rss_bytes();
    // Even bytes of a right beginning, then noise; silence; noise from the start.
    let open: Vec<TcpStream> = (0..ROUTER_CONNECTIONS)
        .filter_map(|n| {
            let mut stream = puller.netns().enter(|| TcpStream::connect(router)).ok()?;
            let noise: Vec<u8> =
                (0..8192_usize).map(|i| ((i * 31 + n * 17) % 256).try_into().expect("below 256")).collect();
            let _hung_up = match n % 3 {
                0 => stream.write_all(&noise),
                1 => stream
                    .write_all(b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff")
                    .and_then(|()| stream.write_all(&noise)),
                _ => Ok(()),
            };
            Some(stream)
        })
        .collect();
    let took = cluster.expect("pull amid garbage", puller.pull(Puller::Cri, &image.by_tag()));
    cluster.expect("content", puller.verify(&image));
    let cpu = target.spegel_cpu_seconds();
    thread::sleep(Duration::from_secs(1));
    let busy = target.spegel_cpu_seconds() - cpu;
    let after = target.spegel_rss_bytes();
    println!(
        "{} connections of garbage: pull {took:?}, RSS {} -> {} MiB, {busy:.2} s of CPU in the next second",
        open.len(),
        before / mib(1),
        after / mib(1)
    );
    assert!(took <= ADDED_MAX, "the pull takes {took:?}");
    assert!(busy <= 0.3, "the mirror is busy: {busy} s");
    assert!(after <= mib(100), "{after} bytes");
    cluster.expect("still ready", target.wait_ready(Duration::from_secs(1)));
    assert!(target.spegel_exited().is_none());
}
