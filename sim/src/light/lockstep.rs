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

/// What one process has to handle in a stretch.
#[derive(Debug)]
pub(super) struct Job {
    node: Index,
    process: Option<Box<Process>>,
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
    job: usize,
    outputs: usize,
}

impl Job {
    fn new(node: Index, base: Instant, wake: Option<Duration>) -> Self {
        Self {
            node,
            process: None,
            base,
            arrivals: VecDeque::new(),
            wake,
            until: Duration::ZERO,
            steps: Vec::new(),
            outputs: VecDeque::new(),
            stands_still: false,
        }
    }

    fn run(&mut self) {
        let Some(process) = &mut self.process else { return };
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
            self.steps.push(Step { at, order, node: self.node, job: 0, outputs });
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
    slots: Vec<Mutex<Slot>>,
    /// The first job that nobody has looked at, of so many.
    next: AtomicUsize,
    count: AtomicUsize,
    done: AtomicUsize,
    over: AtomicBool,
}

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Empty,
    Todo(Job),
    Done(Job),
}

/// Says that there is no more work, however the thread that gives it, or one that does it, ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Lends a crew of so many threads, this one among them, for clusters of so many nodes.
pub(super) fn with_crew<T>(threads: usize, nodes: usize, lead: impl FnOnce(&Crew) -> T) -> T {
    let crew = Crew {
        helpers: threads.saturating_sub(1),
        slots: (0..nodes).map(|_| Mutex::default()).collect(),
        next: AtomicUsize::new(0),
        count: AtomicUsize::new(0),
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
    fn slot(&self, at: usize) -> MutexGuard<'_, Slot> {
        self.slots[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, jobs: &mut Vec<Job>) {
        let count = jobs.len();
        if self.helpers == 0 || count < 2 {
            return jobs.iter_mut().for_each(Job::run);
        }
        for (at, job) in jobs.drain(..).enumerate() {
            *self.slot(at) = Slot::Todo(job);
        }
        // A helper may see the new count with the old place, and begin there: whatever slot it
        // looks at is filled, and what it takes is not there for another.
        self.done.store(0, Ordering::Release);
        self.count.store(count, Ordering::Release);
        self.next.store(0, Ordering::Release);
        while self.work() {}
        let mut spins = 0;
        while self.done.load(Ordering::Acquire) < count {
            assert!(!self.over.load(Ordering::Acquire), "a helper panicked");
            wait(&mut spins);
        }
        for at in 0..count {
            let Slot::Done(job) = std::mem::take(&mut *self.slot(at)) else {
                unreachable!("all jobs are done")
            };
            jobs.push(job);
        }
    }

    /// Does one job; `false` if there is none left.
    fn work(&self) -> bool {
        if self.next.load(Ordering::Acquire) >= self.count.load(Ordering::Acquire) {
            return false;
        }
        let at = self.next.fetch_add(1, Ordering::AcqRel);
        if at >= self.count.load(Ordering::Acquire) {
            return false;
        }
        let taken = std::mem::take(&mut *self.slot(at));
        match taken {
            Slot::Todo(mut job) => {
                job.run();
                *self.slot(at) = Slot::Done(job);
                self.done.fetch_add(1, Ordering::AcqRel);
            }
            Slot::Done(job) => *self.slot(at) = Slot::Done(job),
            Slot::Empty => {}
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
        let mut jobs = Vec::new();
        let mut job_of = vec![None; self.machines.len()];
        while let Some(at) = self.next_at() {
            in_this_moment = if at > self.now { 0 } else { in_this_moment + 1 };
            if in_this_moment > EVENTS_PER_MOMENT_MAX {
                return Some(Self::stands_still(at));
            }
            self.now = at;
            let until = self.gather(at, &mut jobs, &mut job_of);
            if jobs.is_empty() {
                if let Some(event) = self.events.pop_at(until) {
                    self.now = until;
                    self.happen(event);
                }
            } else {
                for job in &mut jobs {
                    job_of[job.node] = None;
                    job.until = until;
                    job.process = self.machines[job.node].process.take();
                }
                crew.run(&mut jobs);
                if self.carry_out_all(&mut jobs).is_break() {
                    return Some(Self::stands_still(self.now));
                }
                jobs.clear();
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
    fn gather(&mut self, at: Duration, jobs: &mut Vec<Job>, job_of: &mut [Option<usize>]) -> Duration {
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
                    let job = self.job(node, jobs, job_of);
                    jobs[job].arrivals.push_back((at, planned, arrival));
                }
            } else if wake_at.is_some()
                && let Some(node) = self.wakes.first()
            {
                self.job(node, jobs, job_of);
            } else {
                return until;
            }
        }
    }

    /// The job of a node, which has its wish to be called from here on.
    fn job(&mut self, node: Index, jobs: &mut Vec<Job>, job_of: &mut [Option<usize>]) -> usize {
        *job_of[node].get_or_insert_with(|| {
            jobs.push(Job::new(node, self.base, self.wakes.take(node)));
            jobs.len() - 1
        })
    }

    /// Does what the processes want done, in the order of time.
    fn carry_out_all(&mut self, jobs: &mut [Job]) -> ControlFlow<()> {
        let mut steps = Vec::new();
        for (at, job) in jobs.iter_mut().enumerate() {
            self.machines[job.node].process = job.process.take();
            steps.extend(job.steps.iter().map(|step| Step { job: at, ..*step }));
            if job.stands_still {
                return ControlFlow::Break(());
            }
        }
        steps.sort_by_key(|step| (step.at, step.order));
        for step in steps {
            self.now = step.at;
            for _ in 0..step.outputs {
                let output = jobs[step.job].outputs.pop_front().expect("it was counted");
                self.carry_out(step.node, output);
            }
        }
        for job in jobs {
            // What it has sent since counts for a while.
            let timeout_at = self.machines[job.node].process.as_ref().and_then(|process| process.timeout_at);
            self.wakes.wish(job.node, job.wake.into_iter().chain(timeout_at).min());
        }
        ControlFlow::Continue(())
    }
}
