//! Clients that stop reading in mid-body hold little of the kernel's memory, and hold up nobody else.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{BodyEnd, Cluster, ClusterOptions, Generation, ImageSpec, Node, mib};

const NODE_MBIT: u32 = 1000;
const STALLED: usize = 1000;
/// Far more than the sockets and pipes of one transfer can hold.
const STALLED_LAYER: u64 = mib(64);
const OTHER_LAYER: u64 = mib(128);
/// What all sockets of one mirror may hold together.
const HELD_BYTES_MAX: u64 = mib(160);
/// How much longer another pull may take.
const SLOWER_MAX: f64 = 1.25;
/// What a mirror may use of one CPU while nobody takes a byte of it. The core hears of each pull ten times a second
/// how it goes, which has cost 0.05 to 0.09 for all thousand. A mirror that spins, be it for a single client, uses all of one.
const STALLED_CPU_MAX: f64 = 0.3;
const PULLS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);
/// Nothing more comes by then.
const SETTLE: Duration = Duration::from_secs(3);

fn ask(from: &Node, of: &Node, path: &str) -> Vec<TcpStream> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: mirror\r\nRange: bytes=1-\r\n\r\n");
    let connect =
        || (0..STALLED).map(|_| TcpStream::connect(of.mirror_address())).collect::<Result<Vec<_>, _>>();
    let mut clients = from.netns().enter(connect).expect("the mirror listens");
    for client in &mut clients {
        client.write_all(request.as_bytes()).expect("the mirror reads");
    }
    clients
}

/// The shortest of some pulls: others may use the machine meanwhile.
fn pull(cluster: &Cluster, from: &Node, of: &Node, path: &str) -> Duration {
    let one = |_| {
        let start = Instant::now();
        let mut client = cluster.expect("connect", from.connect(of.mirror_address()));
        let answer = cluster.expect("GET", client.get(path, &[("Range", "bytes=1-")]));
        assert_eq!((answer.status, answer.end), (206, BodyEnd::Complete), "{}", cluster.logs());
        start.elapsed()
    };
    (0..PULLS).map(one).min().unwrap_or_default()
}

#[test]
fn clients_that_stop_reading_hold_up_nobody() {
    let mut options = ClusterOptions::new(3, Generation::V2_1);
    options.node_mbit = Some(NODE_MBIT);
    options.log_level = "INFO";
    let cluster = Cluster::with_spegel(options);
    let [holder, mirror, other] = cluster.nodes.as_slice() else { panic!("three nodes") };
    let spec = ImageSpec::new("stalled", "1", &[STALLED_LAYER, OTHER_LAYER]).single();
    let image = cluster.held_image(&spec, &[holder], mirror);
    let [stalled, moving] = [0, 1].map(|n| image.blob_path(&image.layers[n]));
    for (what, node) in [("mirroring", mirror), ("serving", holder)] {
        let alone = pull(&cluster, other, node, &moving);
        let (mut clients, mut buffer) = (ask(other, node, &stalled), vec![0; 1 << 20]);
        thread::sleep(SETTLE);
        let held = node.netns().socket_bytes();
        let cpu = node.spegel_cpu_seconds();
        thread::sleep(SETTLE);
        let cpu = (node.spegel_cpu_seconds() - cpu) / SETTLE.as_secs_f64();
        let beside = pull(&cluster, other, node, &moving);
        println!(
            "{what}: {held:?}; a pull took {beside:?}, alone {alone:?}; stalled they cost {cpu:.2} CPU seconds a second"
        );
        assert!(held.all() <= HELD_BYTES_MAX, "{what}: sockets hold {held:?}, not {HELD_BYTES_MAX}");
        assert!(
            cpu <= STALLED_CPU_MAX,
            "{what}: {cpu:.2} CPU seconds a second while no client reads, not {STALLED_CPU_MAX}: \
             something asks again and again for what is not ready. `perf top -p` or `strace -c -f -p` on the mirror \
             says what; look first at the wakers in io/src/zero_copy/stream.rs and pipe.rs and io/src/mirror/relay.rs"
        );
        let slower = beside.as_secs_f64() / alone.as_secs_f64();
        assert!(slower <= SLOWER_MAX, "{what}: a pull took {slower:.2} times as long");
        for client in clients.iter_mut().step_by(STALLED / 4) {
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let mut left = STALLED_LAYER;
            while left > 0 {
                match client.read(&mut buffer).expect("it is served on") {
                    0 => break,
                    read => left = left.saturating_sub(read as u64),
                }
            }
            // The head is longer than the byte that was not asked for.
            assert_eq!(left, 0, "{what}: a client that had stopped did not get the rest");
        }
        drop(clients);
    }
}
