//! What the mirror holds, idle and when many transfers run at once, beside nginx serving the same file to the same
//! clients.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use spegel_tests::Node;

use crate::Stage;
use crate::load::{Target, discard, read_head};
use crate::nginx::Nginx;
use crate::table::{Goal, Table};

/// Of each figure.
const ROUNDS: usize = 5;
/// Between two looks at what is resident where nothing happens.
const IDLE_FOR: Duration = Duration::from_secs(2);
const PARALLEL: usize = 64;
/// How long the parallel transfers run, which are then dropped: all of 64 GB would say no more.
const PARALLEL_FOR: Duration = Duration::from_secs(4);
const SLOW: usize = 1000;
/// How long slow clients are watched, and how much each takes meanwhile.
const SLOW_FOR: Duration = Duration::from_secs(3);
const SLOW_BYTES: u64 = 64 * 1024;
/// What the socket of a slow client holds.
const SLOW_SOCKET_BYTES: usize = 128 * 1024;
/// Connections of an earlier measurement have ended by then. What the process keeps of their memory counts in the next.
const PAUSE: Duration = Duration::from_secs(12);

/// The mirror's process on a node.
pub(crate) fn pid(node: &Node) -> Result<u32, String> {
    node.spegel_pid().ok_or_else(|| format!("{}: the mirror does not run", node.name))
}

/// What is resident.
fn resident_mb(pid: u32) -> Result<f64, String> {
    in_status(pid, "VmRSS:")
}

/// The most that was resident since [`forget_peak`].
fn peak_mb(pid: u32) -> Result<f64, String> {
    in_status(pid, "VmHWM:")
}

fn in_status(pid: u32, name: &str) -> Result<f64, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| error.to_string())?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    let kib: f64 = value.and_then(|kib| kib.parse().ok()).ok_or_else(|| format!("no {name}"))?;
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

/// What is resident where nothing has happened yet; of the mirrors, what the largest has.
pub(crate) fn idle(nodes: &[Node], nginx: &Nginx, table: &mut Table) -> Result<(), String> {
    let (mut own, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        thread::sleep(IDLE_FOR);
        reference.push(resident_mb(nginx.pid())?);
        let mut largest = 0_f64;
        for node in nodes {
            largest = largest.max(resident_mb(pid(node)?)?);
        }
        own.push(largest);
    }
    table.compare("memory, idle", "MB", Goal::EachAtMost(15.0), own, reference);
    Ok(())
}

/// One that serves the file, and what was seen of it, by round.
struct Server {
    pid: u32,
    target: Target,
    /// Of the parallel transfers.
    peak: Vec<f64>,
    rate: Vec<f64>,
    ended_early: Vec<f64>,
    /// Of the slow clients.
    slow_peak: Vec<f64>,
    descriptors: Vec<f64>,
    pipes: Vec<f64>,
    cut_off: Vec<f64>,
}

impl Server {
    fn new(pid: u32, target: Target) -> Self {
        Self {
            pid,
            target: target.all_but_a_byte(),
            peak: Vec::new(),
            rate: Vec::new(),
            ended_early: Vec::new(),
            slow_peak: Vec::new(),
            descriptors: Vec::new(),
            pipes: Vec::new(),
            cut_off: Vec::new(),
        }
    }

    fn parallel_round(&mut self, from: &Node) -> Result<(), String> {
        forget_peak(self.pid)?;
        let (moved, ended_early) = in_parallel(&self.target, from)?;
        self.peak.push(peak_mb(self.pid)?);
        #[expect(clippy::cast_precision_loss, reason = "a few figures are shown")]
        self.rate.push(moved as f64 / PARALLEL_FOR.as_secs_f64() / f64::from(1 << 30));
        self.ended_early.push(ended_early.into());
        Ok(())
    }

    fn slow_round(&mut self, from: &Node, node: Option<&Node>) -> Result<(), String> {
        let cut_off = || node.map_or(Ok(0.0), |node| node.metric("spegel_pull_truncations_total", ""));
        forget_peak(self.pid)?;
        let before = cut_off()?;
        let (most, refused) = slowly(&self.target, from, self.pid)?;
        self.cut_off.push(cut_off()? - before + f64::from(refused));
        self.slow_peak.push(peak_mb(self.pid)?);
        self.descriptors.push(most.all.into());
        self.pipes.push(most.pipes.into());
        Ok(())
    }
}

/// The servers take turns with each load, so that each rests between two of its own measurements.
pub(crate) fn measure(stage: &Stage<'_>, table: &mut Table) -> Result<(), String> {
    let Stage { holder, mirror, nginx, .. } = *stage;
    let of = |node: &Node| Ok::<_, String>(Server::new(pid(node)?, stage.blob_of(node)));
    let mut reference = Server::new(nginx.pid(), stage.reference.clone());
    let (mut serving, mut mirroring) = (of(holder)?, of(mirror)?);
    // First all of these: what a thousand clients leave behind is theirs.
    for _ in 0..ROUNDS {
        thread::sleep(PAUSE);
        for server in [&mut reference, &mut serving, &mut mirroring] {
            server.parallel_round(mirror)?;
        }
    }
    for _ in 0..ROUNDS {
        thread::sleep(PAUSE);
        for (server, node) in
            [(&mut reference, None), (&mut serving, Some(holder)), (&mut mirroring, Some(mirror))]
        {
            server.slow_round(mirror, node)?;
        }
    }
    for (what, server) in [("serving", serving), ("mirroring", mirroring)] {
        let parallel = format!("{PARALLEL} transfers, {what}");
        let slow = format!("{SLOW} slow clients, {what}");
        let name = format!("memory, {parallel}");
        table.compare(&name, "MB", Goal::EachAtMost(30.0), server.peak, reference.peak.clone());
        let name = format!("{parallel}, throughput");
        table.compare(&name, "GiB/s", Goal::None, server.rate, reference.rate.clone());
        table.add(
            &format!("{parallel}, refused or ended early"),
            "",
            Goal::EachAtMost(0.0),
            server.ended_early,
        );
        let name = format!("memory, {slow}");
        table.compare(&name, "MB", Goal::EachAtMost(60.0), server.slow_peak, reference.slow_peak.clone());
        table.add(&format!("{slow}, refused or cut off"), "", Goal::EachAtMost(0.0), server.cut_off);
        let name = format!("descriptors, {slow}");
        table.compare(&name, "", Goal::None, server.descriptors, reference.descriptors.clone());
        table.add(&format!("ends of pipes, {slow}"), "", Goal::None, server.pipes);
    }
    Ok(())
}

/// Runs transfers for a while, and gives the bytes that came and how many transfers were refused or ended early.
fn in_parallel(target: &Target, from: &Node) -> Result<(u64, u32), String> {
    let until = Instant::now() + PARALLEL_FOR;
    let one = || {
        let mut stream = target.ask(from)?;
        // On a machine that is too busy a question to another node may stay without an answer.
        let Ok((length, mut there)) = read_head(&mut stream) else { return Ok((0, 1)) };
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

/// Keeps clients that take next to nothing, and gives the most descriptors seen and how many clients were refused.
fn slowly(target: &Target, from: &Node, pid: u32) -> Result<(Descriptors, u32), String> {
    let (mut clients, mut refused) = (Vec::new(), 0);
    // One after the other: what is measured is what they hold, not how they crowd in.
    for _ in 0..SLOW {
        let mut client = target.ask(from)?;
        // nginx fills what sockets can hold, and a thousand that grow take all memory that the kernel has for them.
        setsockopt(&client, RcvBuf, &SLOW_SOCKET_BYTES).map_err(|error| error.to_string())?;
        if let Ok((_, there)) = read_head(&mut client) {
            discard(&client, SLOW_BYTES.saturating_sub(there))?;
            clients.push(client);
        } else {
            refused += 1;
        }
    }
    thread::sleep(SLOW_FOR);
    Ok((descriptors(pid)?, refused))
}
