//! Handles what happens on several threads, with the same outcome as one event after the other.
//!
//! Nothing that a process wants done has consequences sooner than [`Scenario::lookahead`] later.
//! So each process can handle what is planned for it within a stretch of time no longer than that
//! on its own. What they want done is done afterwards, in the order in which the other driver,
//! [`World::run`], would have got to it: the random numbers drawn and the events planned on the
//! way are the same. This is conservative parallel simulation. All that is not for one process
//! alone happens between two stretches.

use std::{
    collections::VecDeque,
    hint,
    ops::ControlFlow,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use spegel_core::Output;

use super::{
    EVENTS_PER_MOMENT_MAX, Fault, Index, Scenario, World,
    event::Event,
    machine::{Arrival, Process},
};

/// How often a thread looks for work, or for the work of others to be done, before it lets other
/// programs have its core. Less and each stretch begins with a call of the kernel; more and a
/// loaded machine waits for nothing.
const SPINS: u32 = 2000;

/// What one process has to handle in a stretch. Each node has one, used for all stretches: making
/// them anew, and handing them from thread to thread, takes as long as what many of them are for.
#[derive(Debug)]
struct Job {
    node: Index,
    process: Option<Box<Process>>,
    /// It is one of this stretch, and no thread has begun it.
    is_todo: bool,
    base: Instant,
    /// What comes for it, when, and as the how manieth event planned.
    arrivals: VecDeque<(Duration, u64, Arrival)>,
    /// When it wants to be called; this far into the stretch, or after it.
    wake: Option<Duration>,
    /// The end of the stretch, when it is not called any more.
    until: Duration,
    steps: Vec<Step>,
    outputs: VecDeque<Output>,
    stands_still: bool,
}

/// One call of a core.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: Duration,
    /// Events of a moment come before wakes, in the order in which they were planned; wakes in
    /// the order of nodes.
    order: (bool, u64),
    node: Index,
    outputs: usize,
}

impl Job {
    const fn new(node: Index, base: Instant) -> Self {
        Self {
            node,
            process: None,
            is_todo: false,
            base,
            arrivals: VecDeque::new(),
            wake: None,
            until: Duration::ZERO,
            steps: Vec::new(),
            outputs: VecDeque::new(),
            stands_still: false,
        }
    }

    /// Does it, unless another thread has.
    fn begin(&mut self) -> bool {
        let begins = std::mem::take(&mut self.is_todo);
        if begins {
            self.run();
        }
        begins
    }

    fn run(&mut self) {
        let Some(process) = &mut self.process else {
            // Not for a process that may be there in a later stretch.
            return self.arrivals.clear();
        };
        let (mut moment, mut in_this_moment) = (Duration::ZERO, 0);
        loop {
            let arrives_at = self.arrivals.front().map(|(at, ..)| *at);
            let wake = self.wake.filter(|at| *at < self.until);
            let (at, order) = if let Some(at) = wake.filter(|wake| arrives_at.is_none_or(|at| *wake < at)) {
                for input in process.late(at) {
                    process.node.handle(self.base + at, input);
                }
                if process.is_due(self.base + at) {
                    process.node.handle_timeout(self.base + at);
                }
                (at, (true, self.node as u64))
            } else if let Some((at, planned, arrival)) = self.arrivals.pop_front() {
                let Some(input) = process.receive(arrival) else { continue };
                process.node.handle(self.base + at, input);
                (at, (false, planned))
            } else {
                return;
            };
            let before = self.outputs.len();
            self.outputs.extend(std::iter::from_fn(|| process.node.poll_output()));
            let outputs = self.outputs.len() - before;
            self.steps.push(Step { at, order, node: self.node, outputs });
            self.wake = process.wakes_at(self.base, Duration::ZERO).map(|due| due.max(at));
            in_this_moment = if at > moment { 0 } else { in_this_moment + 1 };
            moment = at;
            if in_this_moment > EVENTS_PER_MOMENT_MAX {
                self.stands_still = true;
                return;
            }
        }
    }
}

/// Threads that share the jobs of a stretch.
#[derive(Debug)]
pub(super) struct Crew {
    helpers: usize,
    /// Of each node.
    jobs: Vec<Mutex<Job>>,
    /// Whose jobs there are in this stretch, in the first so many places.
    nodes: Vec<AtomicUsize>,
    count: AtomicUsize,
    /// The first place that nobody has looked at.
    next: AtomicUsize,
    done: AtomicUsize,
    over: AtomicBool,
}

/// Says that there is no more work, however the thread that gives it, or one that does it, ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Lends a crew of so many threads, this one among them, for clusters of so many nodes whose clocks
/// began at `base`.
pub(super) fn with_crew<T>(threads: usize, nodes: usize, base: Instant, lead: impl FnOnce(&Crew) -> T) -> T {
    let crew = Crew {
        helpers: threads.saturating_sub(1),
        jobs: (0..nodes).map(|node| Mutex::new(Job::new(node, base))).collect(),
        nodes: (0..nodes).map(|_| AtomicUsize::new(0)).collect(),
        count: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        (0..crew.helpers).for_each(|_| drop(scope.spawn(|| crew.help())));
        let _ends = Ends(&crew.over);
        lead(&crew)
    })
}

impl Crew {
    fn job(&self, node: Index) -> MutexGuard<'_, Job> {
        self.jobs[node].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the jobs of these nodes.
    fn run(&self, nodes: &[Index]) {
        if self.helpers == 0 || nodes.len() < 2 {
            for node in nodes {
                self.job(*node).begin();
            }
            return;
        }
        for (place, node) in self.nodes.iter().zip(nodes) {
            place.store(*node, Ordering::Relaxed);
        }
        // A helper may see the new count with the old place, and begin there: whose job it finds
        // is one of this stretch, and what it has begun is not begun again.
        self.done.store(0, Ordering::Release);
        self.count.store(nodes.len(), Ordering::Release);
        self.next.store(0, Ordering::Release);
        while self.work() {}
        let mut spins = 0;
        while self.done.load(Ordering::Acquire) < nodes.len() {
            assert!(!self.over.load(Ordering::Acquire), "a helper panicked");
            wait(&mut spins);
        }
    }

    /// Does one job; `false` if there is none left.
    fn work(&self) -> bool {
        if self.next.load(Ordering::Acquire) >= self.count.load(Ordering::Acquire) {
            return false;
        }
        let place = self.next.fetch_add(1, Ordering::AcqRel);
        if place >= self.count.load(Ordering::Acquire) {
            return false;
        }
        let mut job = self.job(self.nodes[place].load(Ordering::Relaxed));
        if job.begin() {
            drop(job);
            self.done.fetch_add(1, Ordering::AcqRel);
        }
        true
    }

    fn help(&self) {
        let _ends = Ends(&self.over);
        let mut spins = 0;
        while !self.over.load(Ordering::Acquire) {
            if self.work() {
                spins = 0;
            } else {
                wait(&mut spins);
            }
        }
    }
}

fn wait(spins: &mut u32) {
    *spins += 1;
    if *spins < SPINS {
        hint::spin_loop();
    } else {
        thread::yield_now();
    }
}

/// Whether nothing in a plan changes what processes may do within a stretch.
pub(super) fn suits(plan: &Scenario) -> bool {
    let is_plain = |fault: &Fault| {
        matches!(
            fault,
            Fault::StartContainerd { .. } | Fault::Start { .. } | Fault::Stop { .. } | Fault::Vanish { .. }
        )
    };
    !plan.lookahead.is_zero() && plan.faults.iter().all(|(_, fault)| is_plain(fault))
}

impl World<'_> {
    /// Runs as [`World::run`] does, on several threads.
    pub(super) fn run_in_lockstep(&mut self, crew: &Crew) -> Option<String> {
        let (mut checked_at, mut in_this_moment) = (Duration::ZERO, 0);
        let (mut nodes, mut steps) = (Vec::new(), Vec::new());
        while let Some(at) = self.next_at() {
            in_this_moment = if at > self.now { 0 } else { in_this_moment + 1 };
            if in_this_moment > EVENTS_PER_MOMENT_MAX {
                return Some(Self::stands_still(at));
            }
            self.now = at;
            nodes.clear();
            let until = self.gather(at, crew, &mut nodes);
            if nodes.is_empty() {
                if let Some(event) = self.events.pop_at(until) {
                    self.now = until;
                    self.happen(event);
                }
            } else {
                for node in &nodes {
                    let mut job = crew.job(*node);
                    (job.until, job.process) = (until, self.machines[*node].process.take());
                }
                crew.run(&nodes);
                if self.carry_out_all(crew, &nodes, &mut steps).is_break() {
                    return Some(Self::stands_still(self.now));
                }
            }
            if let Some(what) = self.checked(&mut checked_at) {
                return Some(what);
            }
        }
        self.now = self.plan.ends_at;
        None
    }

    /// Takes what is planned for single processes from `at` on, and says until when: for
    /// the lookahead, or to the first event that is for more than one process.
    fn gather(&mut self, at: Duration, crew: &Crew, nodes: &mut Vec<Index>) -> Duration {
        let until = (at + self.plan.lookahead).min(self.plan.ends_at);
        loop {
            let event_at = self.events.next_at().filter(|at| *at < until);
            let wake_at = self.wakes.next_at().filter(|at| *at < until);
            if let Some(at) = event_at.filter(|at| wake_at.is_none_or(|wake_at| *at <= wake_at)) {
                if !self.events.peek().is_some_and(Event::is_for_one) {
                    return at;
                }
                self.now = at;
                let planned = self.events.next_planned();
                let arrival = self.events.pop().and_then(|event| self.arrival(event));
                if let Some((node, arrival)) = arrival {
                    if let Arrival::Input(input) = &arrival {
                        self.watch.input(at, &self.machines[node].name, input);
                    }
                    self.job(node, crew, nodes).arrivals.push_back((at, planned, arrival));
                }
            } else if wake_at.is_some()
                && let Some(node) = self.wakes.first()
            {
                drop(self.job(node, crew, nodes));
            } else {
                return until;
            }
        }
    }

    /// The job of a node, which has its wish to be called from here on.
    fn job<'c>(&mut self, node: Index, crew: &'c Crew, nodes: &mut Vec<Index>) -> MutexGuard<'c, Job> {
        let mut job = crew.job(node);
        if !std::mem::replace(&mut job.is_todo, true) {
            job.wake = self.wakes.take(node);
            nodes.push(node);
        }
        job
    }

    /// Does what the processes want done, in the order of time.
    fn carry_out_all(&mut self, crew: &Crew, nodes: &[Index], steps: &mut Vec<Step>) -> ControlFlow<()> {
        for node in nodes {
            let mut job = crew.job(*node);
            self.machines[*node].process = job.process.take();
            steps.append(&mut job.steps);
            if job.stands_still {
                return ControlFlow::Break(());
            }
        }
        steps.sort_unstable_by_key(|step| (step.at, step.order));
        for step in steps.drain(..) {
            self.now = step.at;
            for _ in 0..step.outputs {
                let output = crew.job(step.node).outputs.pop_front().expect("it was counted");
                self.carry_out(step.node, output);
            }
        }
        for node in nodes {
            // What it has sent since counts for a while.
            let timeout_at = self.machines[*node].process.as_ref().and_then(|process| process.timeout_at);
            self.wakes.wish(*node, crew.job(*node).wake.into_iter().chain(timeout_at).min());
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use spegel_core::ExchangeId;
    use spegel_io::clock;

    use super::*;

    #[test]
    fn what_comes_for_no_process_is_not_kept_for_a_later_one() {
        let mut job = Job::new(0, clock::now());
        let arrival = Arrival::Failure { exchange: ExchangeId(1), cause: "nobody waits for it" };
        job.arrivals.push_back((Duration::ZERO, 1, arrival));
        job.is_todo = true;
        assert!(job.begin() && !job.begin());
        assert!(job.arrivals.is_empty(), "{job:?}");
    }
}
