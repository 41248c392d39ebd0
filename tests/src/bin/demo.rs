//! `make demo`: three nodes, a slow registry that is then cut off, and pulls that go on working.
//!
//! It tells what happens as it happens, and removes everything at the end, on failure and on Ctrl-C.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it tells a story, on the real clock")]

use std::panic;
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{
    Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, Puller, clean_up, clean_up_on_signal,
    interrupted, mib, spegel_binary, wait_for,
};

const UPSTREAM_MBIT: u32 = 200;
const LAYERS: [u64; 4] = [mib(16); 4];

fn main() -> ExitCode {
    clean_up_on_signal();
    // A missing part panics with a sentence that says what to do; a backtrace would bury it. Whichever thread it
    // was, the story is over.
    panic::set_hook(Box::new(|info| {
        wait_if_interrupted();
        eprintln!("\nThe demo stopped: {}", message(info.payload()));
        clean_up();
        process::exit(1);
    }));
    let ended = demo();
    wait_if_interrupted();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// After Ctrl-C everything fails, and says nothing; the thread that cleans up ends the process.
fn wait_if_interrupted() {
    while interrupted() {
        thread::sleep(Duration::from_millis(10));
    }
}

fn demo() -> Result<(), String> {
    let _there = spegel_binary();
    let started = Instant::now();
    let mut options = ClusterOptions::new(3, Generation::V2_1);
    options.upstream_mbit = Some(UPSTREAM_MBIT);
    let cluster = Cluster::new(options);
    println!(
        "Three nodes with containerd 2.1 and a registry, whose link carries {UPSTREAM_MBIT} Mbit/s for all of them \
         ({:.1} s).",
        started.elapsed().as_secs_f64()
    );
    let image = cluster.image(&ImageSpec::new("demo/app", "1.0", &LAYERS));
    let name = image.by_tag();
    println!("The image {name} has {} layers, {} MiB.\n", image.layers.len(), image.size_bytes() / mib(1));

    let result = story(&cluster, &image, &name);
    result.map_err(|error| format!("{error}\n{}", cluster.logs()))?;
    println!("\nEverything is removed again. It took {:.0} s.", started.elapsed().as_secs_f64());
    Ok(())
}

fn story(cluster: &Cluster, image: &Image, name: &str) -> Result<(), String> {
    let [first, second, third] = cluster.nodes.as_slice() else {
        return Err("three nodes were asked for".to_owned());
    };

    let started = Instant::now();
    cluster.nodes.iter().for_each(|node| cluster.spawn_spegel(node));
    for node in &cluster.nodes {
        node.wait_ready(Duration::from_secs(20))?;
    }
    println!(
        "Spegel runs on each node and they have found each other ({:.1} s).",
        started.elapsed().as_secs_f64()
    );

    println!("\nThe kubelet of n1 asks for {name}. No node has it, so it comes from the registry:");
    let from_registry = pull(cluster, first, image)?;

    let shared = || {
        let answer = second.get(&image.tag_path(), &[])?;
        if answer.status == 200 { Ok(()) } else { Err(format!("the mirror of n2 says {}", answer.status)) }
    };
    let ((), waited) = wait_for("n2 learns that n1 has the image", Duration::from_secs(10), shared)?;
    println!("\n{} ms later n2's mirror can find it. Now the registry is cut off.", waited.as_millis());
    cluster.upstream.cut();

    println!("\nThe kubelet of n2 asks for it, by tag:");
    let from_peer = pull(cluster, second, image)?;
    println!("\nThe kubelet of n3 asks for it while n1 is gone as well (its network link is down):");
    first.link_down();
    let with_failure = pull(cluster, third, image)?;

    println!("\n  from the registry      {:>6.2} s", from_registry.as_secs_f64());
    println!("  from a peer            {:>6.2} s", from_peer.as_secs_f64());
    println!("  and with a peer gone   {:>6.2} s", with_failure.as_secs_f64());
    Ok(())
}

fn pull(cluster: &Cluster, node: &Node, image: &Image) -> Result<Duration, String> {
    let sent = || cluster.nodes.iter().map(|node| node.netns().link_bytes().sent).collect::<Vec<_>>();
    let (before, upstream_before) = (sent(), cluster.upstream.link_bytes().sent);
    let took = node
        .pull(Puller::Cri, &image.by_tag())
        .map_err(|error| format!("{} could not pull: {error}", node.name))?;
    node.verify(image)?;
    let (after, upstream_after) = (sent(), cluster.upstream.link_bytes().sent);

    println!("  {} has it after {:.2} s, every digest verified.", node.name, took.as_secs_f64());
    let of = |name: &str, bytes: u64| {
        if bytes >= mib(1) {
            println!("    {:>4} MiB from {name}", bytes / mib(1));
        }
    };
    of("the registry", upstream_after - upstream_before);
    for (peer, bytes) in
        cluster.nodes.iter().zip(before.iter().zip(&after).map(|(before, after)| after - before))
    {
        if peer.name != node.name {
            of(&peer.name, bytes);
        }
    }
    Ok(took)
}

fn message(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("for no stated reason")
}
