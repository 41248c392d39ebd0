//! Garbage from the network costs a pull a moment, never its success: on the port where nodes talk to each
//! other, and from a holder whose registry lies.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{
    Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller, ROUTER_PORT, mib, wait_for,
};

const PATIENCE: Duration = Duration::from_secs(20);
const ADDED_MAX: Duration = Duration::from_secs(3);
const ROUTER_CONNECTIONS: usize = 300;
/// Where the liar listens on the node whose registry it stands in for.
const LIAR_PORT: u16 = 5999;
const OTHER_DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// As often as the kubelet would try within half a minute.
const PULLS_MAX: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    WrongDigest,
    WrongLength,
    EndlessHeaders,
    NoHttp,
    Silence,
    HangUp,
    WrongBytes,
}

/// Answers one connection with a lie about whatever it is asked for.
fn lie(lie: Lie, mut stream: TcpStream, image: &Image) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => request.extend_from_slice(&buffer[..read]),
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let asked = image.blobs.iter().find(|blob| request.contains(&blob.digest)).unwrap_or(&image.blobs[0]);
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
            let _ = stream.write_all(head(asked.size, OTHER_DIGEST).as_bytes());
            garbage(&mut stream, asked.size);
        }
        Lie::WrongLength => {
            // The client of the pull is promised what is in the first answer: it must not be this.
            let _ = stream.write_all(head(asked.size, &asked.digest).as_bytes());
            garbage(&mut stream, asked.size / 2);
        }
        Lie::EndlessHeaders => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            while stream.write_all(&b"X-Endless: header\r\n".repeat(100)).is_ok() {}
        }
        Lie::NoHttp => {
            let _ = stream.write_all(&b"\x00\xffnot HTTP at all\r\n".repeat(1000));
        }
        Lie::Silence => {
            let _ = stream.read(&mut buffer);
        }
        Lie::HangUp => {}
        Lie::WrongBytes => {
            let _ = stream.write_all(head(asked.size, &asked.digest).as_bytes());
            garbage(&mut stream, asked.size);
        }
    }
}

/// Puts a liar in the place of a node's registry for everybody else; gives how often it was asked.
fn replace_registry(node: &Node, what: Lie, image: &Image) -> Arc<AtomicU32> {
    let addr = SocketAddr::new(node.address(), LIAR_PORT);
    let listener = node.netns().enter(|| TcpListener::bind(addr)).expect("the port is free");
    let asked = Arc::new(AtomicU32::new(0));
    let (count, image) = (asked.clone(), image.clone());
    // Ends with the process: its listener has no more to say once the namespace is gone.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            let image = image.clone();
            thread::spawn(move || lie(what, stream, &image));
        }
    });
    let rules = format!(
        "table ip liar {{ chain c {{ type nat hook prerouting priority -100; iifname eth0 tcp dport 5000 redirect to :{LIAR_PORT}; }}; }}"
    );
    node.netns().nft(&rules).expect("nat is in the kernel");
    asked
}

fn hold(cluster: &Cluster, tag: &str) -> Image {
    let [first, second, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let image = cluster.image(&ImageSpec::new("hostile", tag, &[mib(4), mib(1)]).single());
    for holder in [first, second] {
        cluster.expect("import", holder.import(&image));
        let local = || holder.finds(&image.blob_path(&image.layers[0]));
        cluster.expect("the holder knows", wait_for("local", PATIENCE, local));
    }
    cluster.expect("shared", puller.wait_finds(&image, PATIENCE));
    thread::sleep(Duration::from_secs(1));
    image
}

fn liar_is_left(generation: Generation, what: Lie) {
    let cluster = Cluster::with_spegel(ClusterOptions::new(3, generation));
    let [liar, _honest, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let calm_image = hold(&cluster, "calm");
    let image = hold(&cluster, "lied-about");
    cluster.upstream.cut();
    let calm = cluster.expect("pull", puller.pull(Puller::Cri, &calm_image.by_tag()));
    let asked = replace_registry(liar, what, &image);
    let start = Instant::now();
    let mut pulls = 0;
    loop {
        pulls += 1;
        match puller.pull(Puller::Cri, &image.by_tag()) {
            Ok(_) => break,
            // Only bytes that nobody can tell to be wrong before the last one may fail a pull.
            Err(error) if what == Lie::WrongBytes && pulls < PULLS_MAX => {
                println!("  asked {} times, failed: {error}", asked.load(Ordering::Relaxed));
            }
            Err(error) => {
                let times = asked.load(Ordering::Relaxed);
                panic!("{what:?}: pull {pulls}, liar asked {times} times: {error}\n{}", cluster.logs())
            }
        }
    }
    let added = start.elapsed().saturating_sub(calm);
    cluster.expect("content", puller.verify(&image));
    let times = asked.load(Ordering::Relaxed);
    println!(
        "{generation:?} {what:?}: {pulls} pulls, {added:?} more than {calm:?}, liar asked {times} times"
    );
    assert!(added <= ADDED_MAX, "{what:?} added {added:?} to {calm:?}, not {ADDED_MAX:?}");
}

#[test]
fn holder_that_answers_nonsense_is_left() {
    for what in [Lie::WrongDigest, Lie::EndlessHeaders, Lie::NoHttp, Lie::Silence, Lie::HangUp] {
        liar_is_left(Generation::V2_1, what);
    }
}

/// A retry of the kubelet's is within the promise here: containerd finds out at the last byte.
#[test]
#[ignore = "fails: containerd keeps the wrong bytes in its ingest and commits them again without asking"]
fn containerd_1_6_pulls_in_spite_of_wrong_bytes() {
    liar_is_left(Generation::V1_6, Lie::WrongBytes);
}

#[test]
#[ignore = "fails: containerd keeps the wrong bytes in its ingest and commits them again without asking"]
fn containerd_1_7_pulls_in_spite_of_wrong_bytes() {
    liar_is_left(Generation::V1_7, Lie::WrongBytes);
}

#[test]
#[ignore = "fails: containerd keeps the wrong bytes in its ingest and commits them again without asking"]
fn containerd_2_1_pulls_in_spite_of_wrong_bytes() {
    liar_is_left(Generation::V2_1, Lie::WrongBytes);
}

/// Half of the body is wrong, the rest comes from the honest holder: wrong bytes as well.
#[test]
#[ignore = "fails: after a transfer with bytes of two holders the honest one is not asked either"]
fn holder_that_hangs_up_amid_wrong_bytes_ends_the_pull_in_time() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(3, Generation::V2_1));
    let [liar, _honest, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let image = hold(&cluster, "half");
    cluster.upstream.cut();
    let asked = replace_registry(liar, Lie::WrongLength, &image);
    let start = Instant::now();
    let mut pulls = 0;
    let pulled = (0..PULLS_MAX).any(|_| {
        pulls += 1;
        puller.pull(Puller::Cri, &image.by_tag()).is_ok()
    });
    let (took, times) = (start.elapsed(), asked.load(Ordering::Relaxed));
    println!("half a body of wrong bytes: {pulls} pulls, {took:?}, liar asked {times} times");
    assert!(pulled, "not pulled after {pulls} times\n{}", cluster.logs());
    cluster.expect("content", puller.verify(&image));
}

#[test]
fn garbage_at_the_router_port_disturbs_nobody() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(3, Generation::V2_1));
    let [_, target, puller] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let router = SocketAddr::new(target.address(), ROUTER_PORT);
    let image = hold(&cluster, "garbage");
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
