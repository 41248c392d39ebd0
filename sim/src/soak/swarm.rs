//! Runs plan after plan on all cores, counts what they went through, and shrinks what fails.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use spegel_io::clock;

use super::{
    draw::draw,
    plan::{Failure, Plan},
    shrink::shrink,
};
use crate::scenario::Driver;

/// Each so many runs is run twice, and both must leave the same trace.
const TWICE_EACH: u64 = 8;

/// Most runs, and most time, spent on making one failure small.
const SHRINK_TRIES_MAX: usize = 3000;
const SHRINK_TIME_MAX: Duration = Duration::from_secs(60);

/// Most failures of one kind that are shrunk; further ones are counted.
const SHRUNK_PER_KIND_MAX: u64 = 1;

/// What to run.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// The first seed; the others follow.
    pub first_seed: u64,
    /// When to stop, whichever comes first.
    pub runs_max: u64,
    /// When to stop, whichever comes first.
    pub time_max: Duration,
    /// Where plans that fail are left; nowhere if `None`.
    pub folder: Option<PathBuf>,
}

/// What the runs came to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Runs by the light driver.
    pub light_runs: u64,
    /// Runs by the whole driver.
    pub whole_runs: u64,
    /// Virtual time of all runs.
    pub simulated: Duration,
    /// The same, times the nodes of each.
    pub node_time: Duration,
    /// Pulls that ended.
    pub pulls: u64,
    /// Faults injected, by kind.
    pub faults: BTreeMap<String, u64>,
    /// Runs repeated to compare their traces.
    pub repeated: u64,
    /// What failed, by seed.
    pub failures: BTreeMap<u64, String>,
    kinds: BTreeMap<String, u64>,
}

impl Swarm {
    /// Runs it; `tell` is given a line for each failure.
    ///
    /// # Panics
    ///
    /// When a failing plan cannot be written to the folder.
    pub fn run(&self, tell: impl Fn(&str) + Sync) -> Totals {
        let (next, totals) = (AtomicU64::new(0), Mutex::new(Totals::default()));
        let began = clock::now();
        let workers = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let run = next.fetch_add(1, Ordering::Relaxed);
                        if run >= self.runs_max || began.elapsed() >= self.time_max {
                            return;
                        }
                        self.run_one(
                            self.first_seed.wrapping_add(run),
                            run % TWICE_EACH == 0,
                            &totals,
                            &tell,
                        );
                    }
                });
            }
        });
        totals.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_one(&self, seed: u64, twice: bool, totals: &Mutex<Totals>, tell: &impl Fn(&str)) {
        let plan = draw(seed);
        let failure = plan.check(twice, |outcome| lock(totals).pulls += outcome.pulls.len() as u64).err();
        lock(totals).count(&plan, twice);
        let Some(failure) = failure else { return };
        let is_first = {
            let mut totals = lock(totals);
            totals.failures.insert(seed, failure.0.clone());
            let count = totals.kinds.entry(failure.kind()).or_default();
            *count += 1;
            *count <= SHRUNK_PER_KIND_MAX
        };
        tell(&format!("seed {seed} failed: {}", failure.0));
        if is_first {
            self.keep(&plan, &failure, tell);
        }
    }

    /// Shrinks a failing plan and leaves it in the folder.
    fn keep(&self, plan: &Plan, failure: &Failure, tell: &impl Fn(&str)) {
        let Some(folder) = &self.folder else { return };
        let small = shrink_run(plan, failure);
        let what = small.failure().unwrap_or_else(|| failure.clone());
        let path = folder.join(format!("{}.toml", plan.seed));
        let comment = what.0.replace('\n', " ");
        let text = format!("# {comment}\n\n{}", small.text());
        let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, text));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        tell(&format!(
            "seed {} shrunk from {} to {}: {}\n  replay: make soak REPLAY={}",
            plan.seed,
            Size(plan),
            Size(&small),
            what.0,
            path.display()
        ));
    }
}

/// Makes a failing plan small by running what is left of it.
#[must_use]
fn shrink_run(plan: &Plan, failure: &Failure) -> Plan {
    let (kind, began) = (failure.kind(), clock::now());
    let fails = |plan: &Plan| is_in_time(began) && plan.failure().is_some_and(|it| it.kind() == kind);
    shrink(plan, SHRINK_TRIES_MAX, fails)
}

fn is_in_time(began: Instant) -> bool {
    began.elapsed() < SHRINK_TIME_MAX
}

/// How large a plan is, for a person.
struct Size<'a>(&'a Plan);

impl fmt::Display for Size<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(plan) = self;
        write!(
            f,
            "{} nodes, {} images, {} pulls, {} faults in {:?}",
            plan.nodes.len(),
            plan.images.len(),
            plan.pulls.len(),
            plan.troubles.len(),
            plan.ends_at
        )
    }
}

fn lock(totals: &Mutex<Totals>) -> std::sync::MutexGuard<'_, Totals> {
    totals.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Totals {
    fn count(&mut self, plan: &Plan, twice: bool) {
        match plan.driver {
            Driver::Light => self.light_runs += 1,
            Driver::Whole => self.whole_runs += 1,
        }
        self.repeated += u64::from(twice);
        self.simulated += plan.ends_at;
        self.node_time += plan.ends_at * u32::try_from(plan.nodes.len()).unwrap_or(u32::MAX);
        for trouble in &plan.troubles {
            *self.faults.entry(trouble.fault.kind()).or_default() += 1;
        }
    }

    /// Runs in all.
    #[must_use]
    pub const fn runs(&self) -> u64 {
        self.light_runs + self.whole_runs
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = |time: Duration| time.as_secs_f64() / 3600.0;
        writeln!(
            f,
            "{} runs ({} light, {} whole; {} of them twice), {:.1} simulated hours ({:.1} node hours), {} pulls",
            self.runs(),
            self.light_runs,
            self.whole_runs,
            self.repeated,
            hours(self.simulated),
            hours(self.node_time),
            self.pulls
        )?;
        let faults: Vec<_> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(f, "{} faults: {}", self.faults.values().sum::<u64>(), faults.join(", "))?;
        for (kind, count) in &self.kinds {
            writeln!(f, "failed {count} times: {kind}")?;
        }
        let seeds: Vec<_> = self.failures.keys().map(u64::to_string).collect();
        write!(
            f,
            "{} failing seeds{}{}",
            seeds.len(),
            if seeds.is_empty() { "" } else { ": " },
            seeds.join(" ")
        )
    }
}
