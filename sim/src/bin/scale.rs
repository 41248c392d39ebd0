//! Simulates an hour of growing clusters and prints what it costs each node: `scale NODES`.
//!
//! Each size runs in a process of its own, so that memory and CPU time are its own. Fails if an
//! invariant was broken, a pull failed, or idle nodes of larger clusters say more.
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::{
    collections::BTreeMap,
    env, fs,
    num::NonZeroUsize,
    process::{Command, ExitCode, Stdio},
    thread::available_parallelism,
    time::Instant,
};

use spegel_core::Node;
use spegel_io::clock;
use spegel_sim::scale::{self, Costs, Rates, Size, Spread};
use tikv_jemalloc_ctl::thread;
use tikv_jemallocator::Jemalloc;

/// It keeps count of what each thread frees, and can be told to use huge pages throughout.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// An hour.
const QUARTERS: u32 = 4;

/// The sizes to compare with, beside the one that was asked for.
const SMALLER: [usize; 2] = [100, 300];

/// How much more an idle node may say in the largest cluster than in the smallest. What is not
/// growth but chance is a few of a hundred.
const IDLE_GROWTH_MAX: f64 = 1.1;

/// Memory is looked up all over gigabytes, which huge pages make faster by a tenth, and it is the
/// kernel's again when the process ends: giving it back sooner costs another tenth.
const MALLOC_CONF: &str = "thp:always,metadata_thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1";

/// Ticks of a second in `/proc/self/stat`.
const TICKS: f64 = 100.0;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let nodes = |text: &String| text.parse::<usize>().ok().filter(|nodes| *nodes >= 20);
    match args.as_slice() {
        [only, text] if only == "--only" => nodes(text).map_or_else(usage, |nodes| one(nodes, QUARTERS)),
        [only, text, quarters] if only == "--only" => nodes(text)
            .zip(quarters.parse().ok())
            .map_or_else(usage, |(nodes, quarters)| one(nodes, quarters)),
        [text] => nodes(text).map_or_else(usage, compare),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: make sim-scale NODES=1000 (at least 20)");
    ExitCode::FAILURE
}

/// One size: figures to the parent, a name and a number in each line.
fn one(nodes: usize, quarters: u32) -> ExitCode {
    let began = clock::now();
    let threads = available_parallelism().map_or(1, NonZeroUsize::get);
    let costs = scale::run(Size { nodes, quarters, seed: 1 }, threads, freed);
    for (name, figure) in figures(&costs) {
        println!("{name}\t{figure}");
    }
    println!("run, seconds of wall time\t{}", began.elapsed().as_secs_f64());
    println!("run, seconds of CPU time\t{}", cpu_seconds());
    if let Some(error) = &costs.error {
        eprintln!("{nodes} nodes: {error}");
    }
    if costs.pulls_failed > 0 {
        eprintln!("{nodes} nodes: {} pulls failed", costs.pulls_failed);
    }
    if costs.error.is_some() || costs.pulls_failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Drops a core, and tells how many bytes of memory it had.
fn freed(node: Node) -> usize {
    let freed_by_now = thread::deallocatedp::read().expect("jemalloc keeps statistics");
    let before = freed_by_now.get();
    drop(node);
    usize::try_from(freed_by_now.get() - before).expect("a core fits into memory")
}

fn figures(costs: &Costs) -> Vec<(String, f64)> {
    let mut figures = Vec::new();
    let mut spread = |name: &str, spread: Spread| {
        let Spread { mean, p50, p99, max } = spread;
        for (which, figure) in [("mean", mean), ("p50", p50), ("p99", p99), ("max", max)] {
            figures.push((format!("{name}, {which}"), figure));
        }
    };
    for (when, Rates { messages, bytes }) in [("idle", costs.idle), ("wave", costs.wave)] {
        spread(&format!("{when}: messages/s"), messages);
        spread(&format!("{when}: bytes/s"), bytes);
    }
    spread("directory entries as an owner", costs.entries);
    spread("keys held", costs.held);
    spread("memory of the core, KiB", scaled(costs.memory_bytes, 1.0 / 1024.0));
    spread("pull, ms", scaled(costs.pull_seconds, 1000.0));
    figures.push(("pulls of images".to_owned(), costs.pulls as f64));
    figures.push(("pulls that failed".to_owned(), costs.pulls_failed as f64));
    figures.push(("bodies from peers".to_owned(), costs.from_peers as f64));
    figures.push(("requests upstream".to_owned(), costs.from_upstream as f64));
    figures.push(("all see all after, s".to_owned(), costs.joined_seconds.unwrap_or(f64::NAN)));
    figures
}

fn scaled(spread: Spread, factor: f64) -> Spread {
    let Spread { mean, p50, p99, max } = spread;
    Spread { mean: mean * factor, p50: p50 * factor, p99: p99 * factor, max: max * factor }
}

/// CPU time that this process has used so far.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in brackets, may have blanks; user and system time are the 12th
    // and 13th fields after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// A column of the table, and whether all went well.
type Column = (Vec<(String, f64)>, bool);

fn run_alone(nodes: usize) -> Column {
    let program = env::current_exe().expect("a program that runs knows where it is");
    let mut command = Command::new(program);
    command.args(["--only", &nodes.to_string()]).stdout(Stdio::piped());
    command.env("_RJEM_MALLOC_CONF", MALLOC_CONF);
    let child = command.spawn();
    let output = child.and_then(|child| child.wait_with_output()).expect("this program can be run again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    let figures = lines.filter_map(|(name, figure)| Some((name.to_owned(), figure.parse().ok()?)));
    (figures.collect(), output.status.success())
}

fn compare(nodes: usize) -> ExitCode {
    let began: Instant = clock::now();
    let smaller: Vec<_> = SMALLER.into_iter().filter(|smaller| *smaller < nodes).collect();
    let sizes: Vec<_> = smaller.into_iter().chain([nodes]).collect();
    let columns: Vec<_> = sizes.iter().map(|nodes| run_alone(*nodes)).collect();
    println!("{:<42}{}", "nodes", sizes.iter().map(|size| format!("{size:>12}")).collect::<String>());
    for (row, (name, _)) in columns[0].0.iter().enumerate() {
        let figure = |(figures, _): &Column| figures.get(row).map_or(f64::NAN, |(_, figure)| *figure);
        println!(
            "{name:<42}{}",
            columns.iter().map(|it| format!("{:>12.1}", figure(it))).collect::<String>()
        );
    }
    println!("wall time of all: {:.1} s", began.elapsed().as_secs_f64());
    let mut is_well = columns.iter().all(|(_, is_well)| *is_well);
    for name in ["idle: messages/s, mean", "idle: bytes/s, mean"] {
        let of =
            |(figures, _): &Column| figures.iter().cloned().collect::<BTreeMap<_, _>>().get(name).copied();
        let (Some(small), Some(large)) = (columns.first().and_then(of), columns.last().and_then(of)) else {
            is_well = false;
            continue;
        };
        if large > small * IDLE_GROWTH_MAX {
            eprintln!("{name}: grows with the cluster from {small:.2} to {large:.2}");
            is_well = false;
        }
    }
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
