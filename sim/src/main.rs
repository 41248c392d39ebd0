//! Replays one scenario from one seed and prints its trace: `spegel-sim SCENARIO SEED`.
#![expect(clippy::print_stdout, reason = "the trace is what it is for")]

use std::{env, process::ExitCode};

use spegel_sim::scenarios;

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let (name, seed) = (args.next().unwrap_or_default(), args.next().and_then(|seed| seed.parse().ok()));
    let (Some(scenario), Some(seed)) = (scenarios::named(&name), seed) else {
        let names: Vec<_> = scenarios::all().map(|(name, _)| name).collect();
        eprintln!("usage: make sim SCENARIO=NAME SEED=NUMBER, where NAME is one of: {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    let outcome = scenario.replay(seed);
    println!("{}", outcome.trace.text());
    for pull in &outcome.pulls {
        println!("{pull:?}");
    }
    println!("trace hash {}", outcome.trace.hash());
    match outcome.error {
        None => ExitCode::SUCCESS,
        Some(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
