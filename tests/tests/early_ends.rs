//! However a body ends early, it ends by FIN: containerd resumes after that, and fails the pull after RST. RSTs are
//! counted where they arrive, at the client.
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use nix::libc::linger;
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use spegel_tests::{
    Answer, Blob, BodyEnd, Cluster, ClusterOptions, Generation, HttpClient, Image, ImageSpec, MIRROR_PORT,
    Node, StandIn, mib, request_head, wait_for,
};

/// A layer takes some three seconds, so that there is a middle.
const NODE_MBIT: u32 = 100;
const LAYER: u64 = mib(36);
const MIDDLE: Duration = Duration::from_secs(1);
/// An answer has begun by then.
const BEGUN: Duration = Duration::from_millis(200);
/// Content up to 128 KiB is read and checked by a mirror before its client gets any of it.
const SMALL: u64 = 100_000;
/// A mirror lets transfers go on for 25 s when it is told to end.
const ENDED_MAX: Duration = Duration::from_secs(35);
const PATIENCE: Duration = Duration::from_secs(30);
/// A client that has taken nothing for 120 s is given up.
const GIVEN_UP: Duration = Duration::from_secs(125);

/// Where the next liar listens on the node whose registry it stands in for.
static NEXT_LIAR_PORT: AtomicU16 = AtomicU16::new(6000);

/// When the client reads its body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    AsItComes,
    /// Nothing until it has ended at the other side.
    Afterwards,
}

#[derive(Clone, Copy)]
struct World<'a> {
    cluster: &'a Cluster,
    image: &'a Image,
}

impl World<'_> {
    /// Opens a connection and asks for the same twice. The second request comes while the first is answered, so
    /// that it stays unread: a socket that is closed with something unread is reset.
    fn ask_twice(&self, server: &Node, blob: &Blob) -> HttpClient {
        let client = &self.cluster.nodes[2];
        let mut stream = self.cluster.expect("connect", client.connect(server.mirror_address()));
        self.cluster.expect("GET", stream.send("GET", &self.image.blob_path(blob), &[]));
        thread::sleep(BEGUN);
        self.cluster.expect("GET", stream.send("GET", &self.image.blob_path(blob), &[]));
        stream
    }

    fn resets(&self) -> u64 {
        self.cluster.nodes[2].netns().counter("resets")
    }

    fn is_found(&self, what: &str, server: &Node, blob: &Blob) {
        let look = || server.finds(&self.image.blob_path(blob));
        self.cluster.expect(what, wait_for("it is found", PATIENCE, look));
    }

    /// Ends the body of `layer`, which `server` sends, in the middle.
    fn ends_by_fin(&self, what: &str, server: &Node, layer: &Blob, reads: Reads, end: impl FnOnce()) {
        self.is_found(what, server, layer);
        let mut stream = self.ask_twice(server, layer);
        let answer = match reads {
            Reads::AsItComes => {
                let body = thread::spawn(move || stream.receive(false));
                thread::sleep(MIDDLE);
                assert!(!body.is_finished(), "{what}: it has ended before the middle");
                end();
                body.join().expect("reading does not panic")
            }
            Reads::Afterwards => {
                thread::sleep(MIDDLE);
                end();
                stream.receive(false)
            }
        };
        let Answer { status, body, end, elapsed, .. } = self.cluster.expect(what, answer);
        println!("{what}: {} bytes, {end:?} after {elapsed:?}", body.len());
        assert_eq!((status, end), (200, BodyEnd::Short), "{what}: {}", self.cluster.logs());
        assert!(!body.is_empty(), "{what}: nothing came, so that it was not the middle");
        let whole = fs::read(&layer.path).expect("the image is on disk");
        assert!(whole.starts_with(&body), "{what}: what came is not the beginning of the layer");
        assert_eq!(self.resets(), 0, "{what}: RSTs came to the client");
    }

    /// Nothing of it may come: it is refused, as often as it is asked for.
    fn is_refused(&self, what: &str, server: &Node, blob: &Blob) {
        let mut stream = self.ask_twice(server, blob);
        for _ in 0..2 {
            let answer = self.cluster.expect(what, stream.receive(false));
            assert_eq!((answer.status, answer.end), (404, BodyEnd::Complete), "{what}: {}", answer.text());
        }
        println!("{what}: refused");
        assert_eq!(self.resets(), 0, "{what}: RSTs came to the client");
    }

    /// Another program sends `lie` for the holder's registry while `work` is done.
    fn lied_to(&self, blob: &Blob, lie: Lie, work: impl FnOnce()) {
        let (holder, mirror) = (&self.cluster.nodes[0], &self.cluster.nodes[1]);
        self.is_found("before somebody lies", mirror, blob);
        let blob = blob.clone();
        let answer = move |stream| lie.tell(stream, &blob);
        let port = NEXT_LIAR_PORT.fetch_add(1, Ordering::Relaxed);
        let liar = StandIn::start(holder.netns(), SocketAddr::new(holder.address(), port), answer);
        holder.netns().divert(MIRROR_PORT, port);
        work();
        holder.netns().undivert(MIRROR_PORT);
        assert!(liar.asked() > 0, "the liar was never asked, so nothing was shown");
    }

    fn revive(&self, node: &Node) {
        node.spawn_spegel();
        self.cluster.expect("it is ready again", node.wait_ready(PATIENCE));
    }

    /// All ends but that of a client that takes nothing.
    fn ends_that_others_make(&self, holder: &Node, mirror: &Node) {
        let [layer, cut_served, cut_mirrored, small, cut_small] = self.image.layers.as_slice() else {
            panic!("five layers")
        };

        self.ends_by_fin("served: the file is cut short", holder, cut_served, Reads::AsItComes, || {
            cut_short(holder, cut_served, mib(1));
        });
        self.is_refused("served: a file that is shorter than containerd says", holder, cut_served);
        cut_short(holder, cut_small, SMALL / 2);
        self.is_refused("served: a small file that is shorter", holder, cut_small);

        self.ends_by_fin(
            "mirrored: the holder's file is cut short",
            mirror,
            cut_mirrored,
            Reads::AsItComes,
            || {
                cut_short(holder, cut_mirrored, mib(1));
            },
        );
        self.ends_by_fin("mirrored: the holder's link goes down", mirror, layer, Reads::AsItComes, || {
            holder.link_down();
        });
        holder.link_up();
        self.ends_by_fin("mirrored: the holder freezes", mirror, layer, Reads::AsItComes, || {
            holder.freeze_spegel()
        });
        holder.thaw_spegel();
        self.ends_by_fin(
            "mirrored: the holder freezes, the client is stuck",
            mirror,
            layer,
            Reads::Afterwards,
            || {
                holder.freeze_spegel();
                thread::sleep(MIDDLE * 5);
            },
        );
        holder.thaw_spegel();
        self.ends_by_fin("mirrored: the holder is killed", mirror, layer, Reads::AsItComes, || {
            holder.kill_spegel()
        });
        self.revive(holder);
        self.ends_by_fin(
            "mirrored: the holder is killed, the client is stuck",
            mirror,
            layer,
            Reads::Afterwards,
            || {
                holder.kill_spegel();
                thread::sleep(MIDDLE * 5);
            },
        );
        self.revive(holder);
        self.lied_to(layer, Lie::Reset, || {
            self.ends_by_fin("mirrored: the peer resets", mirror, layer, Reads::AsItComes, || {});
        });
        self.lied_to(small, Lie::Short, || {
            self.is_refused("mirrored: a small body that is short", mirror, small)
        });

        // Side by side, because each takes as long as transfers may go on.
        thread::scope(|scope| {
            for (what, server) in [("served", holder), ("mirrored", mirror)] {
                scope.spawn(move || {
                    let end = || {
                        server.signal_spegel(Signal::SIGTERM);
                        let ended = server.wait_spegel(ENDED_MAX);
                        assert_eq!(
                            ended.map(|status| status.code()),
                            Ok(Some(0)),
                            "{what}: it ends in order"
                        );
                    };
                    let what = format!("{what}: the process is told to end, the client is stuck");
                    self.ends_by_fin(&what, server, layer, Reads::Afterwards, end);
                });
            }
        });
        self.revive(holder);
        self.revive(mirror);
        self.lied_to(small, Lie::Corrupt, || {
            self.is_refused("mirrored: a small body that is wrong", mirror, small)
        });
    }
}

fn cut_short(holder: &Node, blob: &Blob, length: u64) {
    let file = OpenOptions::new().write(true).open(holder.blob_file(blob)).expect("the file is there");
    file.set_len(length).expect("root may write it");
}

/// What a peer sends instead of a body.
#[derive(Clone, Copy)]
enum Lie {
    /// The beginning, then RST.
    Reset,
    /// The beginning, then FIN.
    Short,
    /// Zeros.
    Corrupt,
}

impl Lie {
    fn tell(self, mut stream: TcpStream, blob: &Blob) {
        if request_head(&mut stream).is_none() {
            return;
        }
        let mut bytes = fs::read(&blob.path).expect("the image is on disk");
        match self {
            Self::Reset | Self::Short => bytes.truncate(bytes.len() / 4 * 3),
            Self::Corrupt => bytes.fill(0),
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\
             Docker-Content-Digest: {}\r\n\r\n",
            blob.size, blob.digest
        );
        let _gone = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
        if matches!(self, Self::Reset) {
            let at_once = linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream, sockopt::Linger, &at_once).expect("the socket is ours");
        }
    }
}

#[test]
fn body_that_ends_early_is_never_reset() {
    let mut options = ClusterOptions::new(4, Generation::V2_1);
    options.node_mbit = Some(NODE_MBIT);
    let cluster = Cluster::with_spegel(options);
    let [holder, mirror, client, other] = cluster.nodes.as_slice() else { panic!("four nodes") };
    let counted = client.netns().nft(&format!(
        "table ip resets {{\n counter resets {{ }}\n chain input {{\n  type filter hook input priority 0\n  \
         tcp sport {MIRROR_PORT} tcp flags & rst == rst counter name resets\n }}\n}}\n"
    ));
    cluster.expect("the kernel filters", counted);
    let spec = ImageSpec::new("early", "1", &[LAYER, LAYER, LAYER, SMALL, SMALL]).single();
    let image = cluster.held_image(&spec, &[holder], mirror);
    let others = cluster.held_image(&ImageSpec::new("stuck", "1", &[LAYER; 2]).single(), &[other], mirror);
    cluster.upstream.cut();
    thread::scope(|scope| {
        for ((what, server), layer) in
            [("served", other), ("mirrored", client)].into_iter().zip(&others.layers)
        {
            let stuck = World { cluster: &cluster, image: &others };
            let what = format!("{what}: the client is stuck until it is given up");
            scope.spawn(move || {
                stuck.ends_by_fin(&what, server, layer, Reads::Afterwards, || thread::sleep(GIVEN_UP));
            });
        }
        World { cluster: &cluster, image: &image }.ends_that_others_make(holder, mirror);
    });
    assert_eq!(World { cluster: &cluster, image: &image }.resets(), 0, "RSTs came to the client");
}
