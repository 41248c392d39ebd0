//! Replays the seeds that failed once: `sim/seeds/README.md`.

use std::{fs, path::Path};

use spegel_sim::{scenarios, soak::Plan};

#[test]
fn seeds_that_failed_once_do_not_fail_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut replayed = 0;
    for file in fs::read_dir(folder).expect("sim/seeds is part of the sources") {
        let path = file.expect("a folder just opened can be read").path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name == "README.md" || path.is_dir() {
            continue;
        }
        let scenario = scenarios::named(name).unwrap_or_else(|| panic!("no scenario is called {name}"));
        let text = fs::read_to_string(&path).expect("a seed file is text");
        let seeds = text.lines().filter_map(|line| line.split('#').next()).map(str::trim);
        let seeds: Vec<u64> = seeds
            .filter(|seed| !seed.is_empty())
            .map(|seed| seed.parse().unwrap_or_else(|_| panic!("{name}: {seed} is no seed")))
            .collect();
        replayed += seeds.len();
        scenario.run_seeds(seeds);
    }
    assert!(replayed > 0, "there are seeds");
}

#[test]
fn plans_of_the_swarm_that_failed_once_do_not_fail_again() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/swarm");
    let mut replayed = 0;
    for file in fs::read_dir(folder).expect("sim/seeds/swarm is part of the sources") {
        let path = file.expect("a folder just opened can be read").path();
        let text = fs::read_to_string(&path).expect("a plan is text");
        let plan = Plan::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let failure = plan.check(true, |_| {}).err();
        assert_eq!(failure, None, "replay: make soak REPLAY={}", path.display());
        replayed += 1;
    }
    assert!(replayed > 0, "there are plans");
}

#[test]
fn scenarios_are_replayed_by_their_own_name() {
    for (name, scenario) in scenarios::all() {
        assert_eq!(scenario().name(), name);
    }
}
