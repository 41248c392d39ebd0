//! `go tool pprof` reads the profiles of a mirror that works, and finds the mirror's functions in them; without the
//! flag, and for a neighbour, there are none.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "figures are worth reading when a test passes too")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use spegel_tests::{Cluster, ClusterOptions, Generation, ImageSpec, METRICS_PORT, Node, mib};

const SECONDS: u32 = 5;
/// Clients that keep the mirror busy while it is looked at: one alone gives ten samples on a loaded machine.
const CLIENTS: usize = 8;

fn status(cluster: &Cluster, asking: &Node, asked: SocketAddr, path: &str) -> u16 {
    let mut client = cluster.expect("connect", asking.connect(asked));
    cluster.expect("an answer", client.get(path, &[("Host", "localhost")])).status
}

/// What Go's tool says of a profile, from the node itself.
fn top(cluster: &Cluster, node: &Node, path: &str, options: &[&str]) -> String {
    let url = format!("http://localhost:{METRICS_PORT}/debug/pprof/{path}");
    let arguments =
        [&["tool", "pprof", "-top", "-cum", "-nodecount=2000", "-nodefraction=0"], options, &[&url]].concat();
    let said = cluster.expect("go tool pprof", node.netns().run("go", &arguments));
    println!("{}", said.lines().take(25).collect::<Vec<_>>().join("\n"));
    said
}

fn finds(what: &str, said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{what} has no {part}:\n{said}");
    }
}

#[test]
fn profiles_are_read_by_go_and_name_the_mirrors_functions() {
    let mut options = ClusterOptions::new(2, Generation::V2_1);
    options.spegel_args.push("--debug-pprof-enabled".to_owned());
    let cluster = Cluster::with_spegel(options);
    let [holder, node] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let image = cluster.held_image(&ImageSpec::new("profile", "1", &[mib(1), 1000]), &[holder], node);

    let done = AtomicBool::new(false);
    let said = thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    cluster.expect("it answers while it is looked at", node.finds(&image.tag_path()));
                }
            });
        }
        let said = top(&cluster, node, &format!("profile?seconds={SECONDS}"), &[]);
        done.store(true, Ordering::Relaxed);
        said
    });
    finds("the profile of the processor", &said, &["Type: cpu", "spegel_io::", "spegel_core::"]);
    let said = top(&cluster, node, "heap", &[]);
    finds("the profile of the heap", &said, &["Type: inuse_space", "spegel"]);
    let said = top(&cluster, node, "heap", &["-sample_index=alloc_space"]);
    finds("the profile of all allocations", &said, &["Type: alloc_space", "spegel_io::"]);
    assert!(!said.contains("heap::note"), "what notes is not what allocates:\n{said}");

    let neighbour = SocketAddr::new(node.address(), METRICS_PORT);
    for path in ["/debug/pprof/profile?seconds=1", "/debug/pprof/heap"] {
        assert_eq!(status(&cluster, holder, neighbour, path), 403, "{path}");
    }
    let local = SocketAddr::new([127, 0, 0, 1].into(), METRICS_PORT);
    assert_eq!(status(&cluster, node, local, "/debug/pprof/profile?seconds=1000"), 400);
}

#[test]
fn nothing_is_looked_at_unless_it_is_asked_for() {
    let cluster = Cluster::with_spegel(ClusterOptions::new(1, Generation::V2_1));
    let local = SocketAddr::new([127, 0, 0, 1].into(), METRICS_PORT);
    for path in ["/debug/pprof/profile?seconds=1", "/debug/pprof/heap"] {
        assert_eq!(status(&cluster, &cluster.nodes[0], local, path), 404, "{path}");
    }
}
