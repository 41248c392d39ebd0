//! `make bench`: what bytes and requests cost, beside nginx doing the same on the same files in the same run.
//!
//! Rounds alternate between the two, so that whatever else the machine does falls on both. Each line of the
//! table has the middle, the smallest and the largest of its rounds; a ratio is that of one round.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it prints figures of the real clock")]

mod bare;
mod load;
mod memory;
mod nginx;
mod table;

use std::net::SocketAddr;
use std::panic;
use std::process::{self, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use spegel_tests::{
    Cluster, ClusterOptions, Generation, Image, ImageSpec, Node, REGISTRY, clean_up, clean_up_on_signal,
    digest_of, interrupted, percentile, spegel_binary,
};

use crate::bare::Bare;
use crate::load::Target;
use crate::nginx::Nginx;
use crate::table::{Goal, Table};

const BLOB_BYTES: u64 = 1 << 30;
/// How often the blob is moved for one figure: on the fastest machines that is still some tenths of a second.
const BLOBS_PER_FIGURE: u32 = 2;
const ROUNDS: usize = 7;
/// Requests for one figure of the manifest rate.
const MANIFESTS: u32 = 20_000;
const MISSES: usize = 500;
/// The first ones open connections between the mirrors.
const MISSES_WARM_UP: usize = 50;
const SETTLE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    clean_up_on_signal();
    panic::set_hook(Box::new(|info| {
        wait_if_interrupted();
        eprintln!("\nThe benchmark stopped: {info}");
        clean_up();
        process::exit(1);
    }));
    let ended = bench();
    wait_if_interrupted();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe benchmark failed: {error}");
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

fn bench() -> Result<(), String> {
    let _there = spegel_binary();
    let mut options = ClusterOptions::new(4, Generation::V2_1);
    options.log_level = "INFO";
    let cluster = Cluster::with_spegel(options);
    // `bench NAME...` measures only what is named.
    let named: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);
    let [holder, mirror, ..] = cluster.nodes.as_slice() else {
        return Err("four nodes were asked for".to_owned());
    };
    let mut table = Table::default();

    let nginx = Nginx::start(holder, &cluster.dir().join("nginx"))?;
    if wanted("idle") {
        thread::sleep(SETTLE);
        memory::idle(&cluster.nodes, &nginx, &mut table)?;
    }
    if wanted("misses") {
        misses(&cluster, holder, &nginx, &mut table)?;
    }

    let image =
        cluster.held_image(&ImageSpec::new("bench/app", "1", &[BLOB_BYTES]).single(), &[holder], mirror);
    // So that neither side has to read it from the disk.
    let file = holder.blob_file(&image.layers[0]);
    std::fs::read(&file).map_err(|error| error.to_string())?;
    let reference = Target::new(nginx.address(), &nginx.add(&file)?);
    let stage = Stage { holder, mirror, image: &image, nginx: &nginx, reference };
    if wanted("manifests") {
        manifests(&stage, &mut table)?;
    }
    if wanted("bytes") {
        bytes(&stage, &mut table)?;
    }
    if wanted("memory") {
        memory::measure(&stage, &mut table)?;
    }
    table.print();
    Ok(())
}

/// Who has the image and who asks for it, and the reference beside the one who has it.
struct Stage<'a> {
    holder: &'a Node,
    mirror: &'a Node,
    image: &'a Image,
    nginx: &'a Nginx,
    /// The blob, as nginx serves it.
    reference: Target,
}

impl Stage<'_> {
    /// The blob, as the mirror of a node gives it.
    fn blob_of(&self, node: &Node) -> Target {
        Target::new(node.mirror_address(), &self.image.blob_path(&self.image.layers[0]))
    }
}

/// What a layer costs that nobody has, beside a file that is not there.
fn misses(cluster: &Cluster, holder: &Node, nginx: &Nginx, table: &mut Table) -> Result<(), String> {
    let (mut own, mut reference) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        let node = &cluster.nodes[round % cluster.nodes.len()];
        for (address, from, halves_and_worst) in
            [(nginx.address(), holder, &mut reference), (node.mirror_address(), node, &mut own)]
        {
            let samples = miss_often(from, address, round)?;
            for (percents, percent) in halves_and_worst.iter_mut().zip([50, 99]) {
                percents.push(percentile(&samples, percent).as_secs_f64() * 1000.0);
            }
        }
    }
    let [half, worst] = own;
    let [reference_half, reference_worst] = reference;
    table.compare("miss, 4 nodes, p50", "ms", Goal::MiddleAtMost(1.0), half, reference_half);
    table.compare("miss, 4 nodes, p99", "ms", Goal::MiddleAtMost(3.0), worst, reference_worst);
    Ok(())
}

/// How long each miss takes on one connection, from a node to a server on the same node.
fn miss_often(from: &Node, server: SocketAddr, round: usize) -> Result<Vec<Duration>, String> {
    let mut client = from.connect(server)?;
    let mut samples = Vec::new();
    for n in 0..MISSES_WARM_UP + MISSES {
        let digest = digest_of(format!("nobody has {round} {n}").as_bytes());
        let answer = client.get(&format!("/v2/miss/blobs/{digest}?ns={REGISTRY}"), &[])?;
        if answer.status != 404 {
            return Err(format!("{server}: {} where nobody has it", answer.status));
        }
        samples.push(answer.elapsed);
    }
    Ok(samples.split_off(MISSES_WARM_UP))
}

/// What a manifest costs that is here, on a connection that stays open.
fn manifests(stage: &Stage<'_>, table: &mut Table) -> Result<(), String> {
    let Stage { holder, mirror, image, nginx, .. } = *stage;
    let manifest = image.needed.iter().find(|blob| blob.is_manifest).ok_or("an image has a manifest")?;
    let own = Target::new(holder.mirror_address(), &image.blob_path(manifest));
    let reference = Target::new(nginx.address(), &nginx.add(&manifest.path)?);
    let (mut own_rates, mut reference_rates) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let rate = |target: &Target, pid: u32| {
            let before = cpu_seconds(pid);
            target.ask_often(mirror, MANIFESTS)?;
            Ok::<_, String>(f64::from(MANIFESTS) / (cpu_seconds(pid) - before))
        };
        reference_rates.push(rate(&reference, nginx.pid())?);
        own_rates.push(rate(&own, memory::pid(holder)?)?);
    }
    let what = "manifests per CPU second";
    table.compare(what, "1/s", Goal::RatioAtLeast(0.5), own_rates, reference_rates);
    Ok(())
}

/// What moving a blob costs and how long it takes.
fn bytes(stage: &Stage<'_>, table: &mut Table) -> Result<(), String> {
    let Stage { holder, mirror, image, nginx, ref reference } = *stage;
    let bare = Bare::start(mirror, nginx.address())?;
    let (holder_pid, mirror_pid) = (memory::pid(holder)?, memory::pid(mirror)?);
    let cpu_of = |pid: u32| move || cpu_seconds(pid);
    let targets: [(Target, &dyn Fn() -> f64); 4] = [
        (reference.clone().all_but_a_byte(), &cpu_of(nginx.pid())),
        (stage.blob_of(holder).all_but_a_byte().of_local_content(), &cpu_of(holder_pid)),
        (stage.blob_of(mirror).all_but_a_byte(), &cpu_of(mirror_pid)),
        (reference.at(bare.address()).all_but_a_byte().closing(), &|| bare.cpu_seconds()),
    ];
    let (mut cpu, mut speed) = ([const { Vec::new() }; 4], [const { Vec::new() }; 4]);
    for _ in 0..ROUNDS {
        for (n, (target, cpu_seconds)) in targets.iter().enumerate() {
            let (before, start) = (cpu_seconds(), Instant::now());
            let mut moved = 0;
            for _ in 0..BLOBS_PER_FIGURE {
                moved += target.download(mirror)?;
            }
            let took = start.elapsed().as_secs_f64();
            if moved != (image.layers[0].size - 1) * u64::from(BLOBS_PER_FIGURE) {
                return Err(format!("{moved} bytes came from {target:?}"));
            }
            #[expect(clippy::cast_precision_loss, reason = "a few figures are shown")]
            let gib = moved as f64 / f64::from(1 << 30);
            cpu[n].push((cpu_seconds() - before) / gib);
            speed[n].push(gib / took);
        }
    }
    let [nginx_cpu, serve_cpu, mirror_cpu, bare_cpu] = cpu;
    let [nginx_speed, serve_speed, mirror_speed, bare_speed] = speed;
    table.compare("serve, CPU", "s/GiB", Goal::RatioAtMost(1.1), serve_cpu, nginx_cpu.clone());
    table.compare("serve, throughput", "GiB/s", Goal::RatioAtLeast(0.95), serve_speed, nginx_speed.clone());
    table.compare("mirror, CPU", "s/GiB", Goal::RatioAtMost(1.2), mirror_cpu.clone(), nginx_cpu.clone());
    table.compare("mirror, throughput", "GiB/s", Goal::None, mirror_speed, nginx_speed.clone());
    table.compare("a bare splice loop instead, CPU", "s/GiB", Goal::None, bare_cpu.clone(), nginx_cpu);
    table.compare("a bare splice loop instead, throughput", "GiB/s", Goal::None, bare_speed, nginx_speed);
    table.compare("mirror, CPU, beside that loop", "s/GiB", Goal::None, mirror_cpu, bare_cpu);
    Ok(())
}

/// Processor time of all threads of a process, those that have ended included.
fn cpu_seconds(pid: u32) -> f64 {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).expect("the process runs");
    Duration::from(clock.now().expect("the process runs")).as_secs_f64()
}
