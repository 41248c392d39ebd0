//! What the mirror holds when many transfers run at once.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use spegel_tests::{Image, Node};

use crate::load::{Target, discard, read_head};
use crate::table::{Goal, Table};

const PARALLEL: usize = 64;
/// How long the parallel transfers run: all of 64 GB would say no more.
const PARALLEL_FOR: Duration = Duration::from_secs(8);
const SLOW: usize = 1000;
/// How long slow clients are watched, and how much each takes meanwhile.
const SLOW_FOR: Duration = Duration::from_secs(5);
const SLOW_BYTES: u64 = 64 * 1024;
/// Memory of an earlier measurement is given back by then.
const PAUSE: Duration = Duration::from_secs(12);

/// The mirror's process on a node.
pub(crate) fn pid(node: &Node) -> Result<u32, String> {
    node.spegel_pid().ok_or_else(|| format!("{}: the mirror does not run", node.name))
}

#[expect(clippy::cast_precision_loss, reason = "a few figures are shown")]
pub(crate) fn resident_mb(node: &Node) -> f64 {
    node.spegel_rss_bytes() as f64 / 1e6
}

/// The most that was resident since [`forget_peak`].
fn peak_mb(pid: u32) -> Result<f64, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| error.to_string())?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
    let kib: f64 = peak.and_then(|kib| kib.parse().ok()).ok_or("no VmHWM")?;
    Ok(kib * 1024.0 / 1e6)
}

fn forget_peak(pid: u32) -> Result<(), String> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").map_err(|error| error.to_string())
}

#[derive(Clone, Copy, Debug, Default)]
struct Descriptors {
    all: u32,
    pipes: u32,
}

fn descriptors(pid: u32) -> Result<Descriptors, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).map_err(|error| error.to_string())?;
    let mut found = Descriptors::default();
    for link in entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()) {
        found.all += 1;
        found.pipes += u32::from(link.to_string_lossy().starts_with("pipe:"));
    }
    Ok(found)
}

pub(crate) fn measure(holder: &Node, mirror: &Node, image: &Image, table: &mut Table) -> Result<(), String> {
    let path = image.blob_path(&image.layers[0]);
    for (what, node) in [("serving", holder), ("mirroring", mirror)] {
        let target = Target::new(node.mirror_address(), &path).all_but_a_byte();
        let pid = pid(node)?;
        thread::sleep(PAUSE);
        forget_peak(pid)?;
        let (moved, cut) = in_parallel(&target, mirror)?;
        let name = format!("memory, {PARALLEL} transfers, {what}");
        table.add(&name, "MB", Goal::at_most(30.0), vec![peak_mb(pid)?]);
        #[expect(clippy::cast_precision_loss, reason = "a few figures are shown")]
        let rate = moved as f64 / PARALLEL_FOR.as_secs_f64() / f64::from(1 << 30);
        table.add(&format!("{PARALLEL} transfers, {what}, throughput"), "GiB/s", Goal::none(), vec![rate]);
        table.add(
            &format!("{PARALLEL} transfers, {what}, ended early"),
            "",
            Goal::at_most(0.0),
            vec![cut.into()],
        );
        thread::sleep(PAUSE);
        forget_peak(pid)?;
        let most = slowly(&target, mirror, pid)?;
        let cut = node.metric("spegel_pull_truncations_total", "")?;
        table.add(&format!("{SLOW} slow clients, {what}, cut off"), "", Goal::at_most(0.0), vec![cut]);
        let name = format!("memory, {SLOW} slow clients, {what}");
        table.add(&name, "MB", Goal::at_most(60.0), vec![peak_mb(pid)?]);
        table.add(
            &format!("descriptors, {SLOW} slow clients, {what}"),
            "",
            Goal::none(),
            vec![most.all.into()],
        );
        table.add(
            &format!("ends of pipes, {SLOW} slow clients, {what}"),
            "",
            Goal::none(),
            vec![most.pipes.into()],
        );
    }
    Ok(())
}

/// Runs transfers for a while, and gives the bytes that came and how many transfers ended early.
fn in_parallel(target: &Target, from: &Node) -> Result<(u64, u32), String> {
    let until = Instant::now() + PARALLEL_FOR;
    let one = || {
        let mut stream = target.ask(from)?;
        let (length, mut there) = read_head(&mut stream)?;
        while there < length && Instant::now() < until {
            let next = (length - there).min(1 << 22);
            // On a machine that is too busy the peer may be taken to have stalled.
            if discard(&stream, next).is_err() {
                return Ok((there, 1));
            }
            there += next;
        }
        Ok::<_, String>((there, 0))
    };
    let results: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..PARALLEL).map(|_| scope.spawn(one)).collect();
        clients.into_iter().map(|client| client.join().expect("clients do not panic")).collect()
    });
    let (mut moved, mut cut) = (0, 0);
    for result in results {
        let (bytes, ended_early) = result?;
        moved += bytes;
        cut += ended_early;
    }
    Ok((moved, cut))
}

/// Keeps clients that take next to nothing, and gives the most descriptors seen.
fn slowly(target: &Target, from: &Node, pid: u32) -> Result<Descriptors, String> {
    let mut clients = Vec::new();
    // One after the other: what is measured is what they hold, not how they crowd in.
    for _ in 0..SLOW {
        let mut client = target.ask(from)?;
        let (_, there) = read_head(&mut client)?;
        discard(&client, SLOW_BYTES.saturating_sub(there))?;
        clients.push(client);
    }
    thread::sleep(SLOW_FOR);
    descriptors(pid)
}
