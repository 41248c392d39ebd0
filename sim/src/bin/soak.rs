//! Runs the swarm, or replays a plan: `soak MINUTES [FIRST_SEED]`, `soak replay PATH`.
#![expect(clippy::print_stdout, reason = "the report is what it is for")]

use std::{env, fs, panic, path::PathBuf, process::ExitCode, time::Duration};

use spegel_io::clock;
use spegel_sim::{
    soak::{Plan, Swarm},
    trace::Trace,
};

/// Where failing plans are left.
const FOLDER: &str = "target/soak";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["replay", path] => replay(path),
        [minutes] => swarm(minutes, &clock::unix_ms().to_string()),
        [minutes, seed] => swarm(minutes, seed),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: make soak MINUTES=10 [SEED=NUMBER], or make soak REPLAY=PATH");
    ExitCode::FAILURE
}

fn swarm(minutes: &str, first_seed: &str) -> ExitCode {
    let (Ok(minutes), Ok(first_seed)) = (minutes.parse::<f64>(), first_seed.parse()) else { return usage() };
    let time_max = Duration::from_secs_f64(minutes.max(0.0) * 60.0);
    println!("seeds from {first_seed} for {time_max:?}");
    // A panic of a run is reported with its seed.
    panic::set_hook(Box::new(|_| {}));
    let swarm = Swarm { first_seed, runs_max: u64::MAX, time_max, folder: Some(PathBuf::from(FOLDER)) };
    let totals = swarm.run(|line| println!("{line}"));
    println!("{totals}");
    if totals.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(path: &str) -> ExitCode {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{path}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let plan = match Plan::parse(&text) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("{path}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (outcome, result) = plan.run(Trace::whole());
    if let Some(outcome) = outcome {
        println!("{}", outcome.trace.text());
        for pull in &outcome.pulls {
            println!("{pull:?}");
        }
        println!("trace hash {}", outcome.trace.hash());
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.0);
            ExitCode::FAILURE
        }
    }
}
