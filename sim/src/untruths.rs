//! Scenarios in which what a node is told is not so: what time it is, where others are, what
//! language they speak.

use std::time::Duration;

use spegel_core::Notice;

use crate::{
    fault::{Dns, Fault},
    image::Image,
    incidents::ATTEMPTS_PER_HOUR_MAX,
    scenario::{Outcome, Scenario},
    scenarios::{Named, expect_first_tries, name, seconds},
};

/// Every scenario of this file, for replay by name.
pub(crate) const ALL: &[Named] = &[
    ("clocks_step", clocks_step),
    ("member_list_is_a_lie", member_list_is_a_lie),
    ("two_releases_side_by_side", two_releases_side_by_side),
];

/// Bytes of each layer.
const LAYER_BYTES: usize = 100_000;

// --- clocks ---------------------------------------------------------------------------------------

const HOUR: i64 = 3600;
const YEAR: i64 = 366 * 24 * HOUR;

/// From the epoch of the simulation to 1970, where a clock without a battery begins.
const TO_1970: i64 = -1_800_000_000;

/// A node whose mirror ends, and starts again by a clock that is so wrong.
struct Step {
    node: usize,
    ends_at: u64,
    /// Says farewell, or dies.
    farewell: bool,
    starts_at_ms: u64,
    ahead_seconds: i64,
}

const fn step(node: usize, ends_at: u64, starts_at_ms: u64, ahead_seconds: i64) -> Step {
    Step { node, ends_at, farewell: false, starts_at_ms, ahead_seconds }
}

/// The others take the earlier life for alive, suspect it, have declared it down, or were told
/// goodbye; its clock was right, or ahead, and is corrected or set back too far.
const STEPS: &[Step] = &[
    step(1, 20, 20_300, -HOUR),
    step(2, 25, 28_000, TO_1970),
    step(3, 30, 55_000, TO_1970),
    step(4, 35, 35_300, 5 * YEAR),
    step(5, 40, 40_300, 170 * YEAR),
    Step { node: 4, ends_at: 60, farewell: true, starts_at_ms: 62_000, ahead_seconds: 0 },
    step(5, 70, 70_300, TO_1970),
];

/// This machine sleeps, for long enough to be declared down.
const SLEEPER: usize = 7;
const SLEEPS_AT: Duration = seconds(45);
const SLEEPS_FOR: Duration = seconds(40);

/// These are there all the time.
const OBSERVERS: [usize; 2] = [6, 8];

/// Until when each node that is back must be a member to all, and what it holds be found.
const MEMBER_AGAIN_MAX: Duration = seconds(3);

/// After a sleep it is found out at first that one is taken for dead: by the first probe.
const AWAKE_AGAIN_MAX: Duration = seconds(6);

fn held_by(n: usize) -> String {
    format!("registry.test/of-n{n}:1")
}

/// Eight nodes with an image each. Mirrors are restarted after their machines' clocks were set
/// back by an hour, to 1970, or put right again after having been ahead by years; one machine
/// sleeps for 40 s without noticing. Each is a full member again seconds later, what it holds is
/// found, and nothing that is still said of its earlier life harms it.
#[must_use]
pub fn clocks_step() -> Scenario {
    let mut scenario = Scenario::new("clocks_step", seconds(120))
        .light()
        .nodes(8)
        .fault(Duration::ZERO, Fault::CutUpstream)
        .fault(SLEEPS_AT, Fault::Suspend { node: name(SLEEPER), pause: SLEEPS_FOR });
    for n in 1..=8 {
        let image = Image::new(&held_by(n), 1, LAYER_BYTES, n as u64);
        scenario = scenario.image(image).preload(&name(n), &held_by(n));
    }
    for (turn, step) in STEPS.iter().enumerate() {
        let (node, ends_at) = (name(step.node), seconds(step.ends_at));
        let starts_at = Duration::from_millis(step.starts_at_ms);
        let end = match step.farewell {
            true => Fault::Stop { node: node.clone() },
            false => Fault::Crash { node: node.clone() },
        };
        scenario = scenario
            .fault(ends_at, end)
            .fault(ends_at, Fault::StepClock { node: node.clone(), ahead_seconds: step.ahead_seconds })
            .fault(starts_at, Fault::Start { node: node.clone() })
            // It pulls, and is pulled from, by one that has not done so before.
            .pull(starts_at + MEMBER_AGAIN_MAX, &node, &held_by(8))
            .pull(starts_at + MEMBER_AGAIN_MAX, &name(OBSERVERS[turn / 5]), &held_by(step.node));
    }
    scenario
        .pull(SLEEPS_AT + SLEEPS_FOR + AWAKE_AGAIN_MAX, &name(8), &held_by(SLEEPER))
        .pull(SLEEPS_AT + SLEEPS_FOR + AWAKE_AGAIN_MAX, &name(SLEEPER), &held_by(8))
        .expect(|outcome| {
            expect_first_tries(outcome, STEPS.len() * 2 + 2, seconds(1))?;
            for step in STEPS {
                let last = STEPS.iter().rfind(|other| other.node == step.node);
                let is_last = last.is_some_and(|last| last.starts_at_ms == step.starts_at_ms);
                let back_at = Duration::from_millis(step.starts_at_ms);
                expect_member_again(outcome, step.node, back_at, MEMBER_AGAIN_MAX, is_last)?;
            }
            expect_member_again(outcome, SLEEPER, SLEEPS_AT + SLEEPS_FOR, AWAKE_AGAIN_MAX, true)
        })
}

/// Those that were there all the time took note of a node by then; if this was its last life, nobody
/// lost it after.
fn expect_member_again(
    outcome: &Outcome,
    node: usize,
    back_at: Duration,
    within: Duration,
    for_good: bool,
) -> Result<(), String> {
    let me = &outcome.reports.get(&name(node)).ok_or_else(|| format!("n{node} does not run at the end"))?.me;
    for observer in OBSERVERS.map(name) {
        let of_observer = outcome.notices.iter().filter(|(at, who, _)| *who == observer && *at >= back_at);
        let mut up_at = None;
        for (at, _, notice) in of_observer {
            let is_up = matches!(notice, Notice::MemberUp { member } if member.peer == me.peer);
            let is_down = matches!(notice, Notice::MemberDown { peer } if *peer == me.peer);
            if is_down && up_at.is_some() && for_good {
                return Err(format!("{observer} took n{node} for dead again at {at:?}"));
            }
            if is_up {
                up_at = up_at.or(Some(*at));
            }
        }
        if up_at.is_none_or(|at| at > back_at + within) {
            return Err(format!("{observer} took note of n{node}, back at {back_at:?}, at {up_at:?}"));
        }
    }
    Ok(())
}

// --- addresses ------------------------------------------------------------------------------------

/// DNS knows of nobody for so long.
const EMPTY_FOR: Duration = seconds(300);

/// Until when the cluster has formed all the same: two nodes find each other within minutes after DNS
/// began to say something, the last halves by one of the re-checks, each several minutes apart.
const FORMED_BY: Duration = seconds(2400);

/// Most dials in an hour of a node that is told addresses without end: thirty for each attempt.
const DIALS_PER_HOUR_MAX: u64 = 30 * ATTEMPTS_PER_HOUR_MAX;

/// DNS says nothing for five minutes, then something else each time, up to a thousand addresses
/// of which six at most are right. The cluster forms through those, and each node finds what one
/// of them has; nobody asks or dials more than so often.
#[must_use]
pub fn member_list_is_a_lie() -> Scenario {
    let image = held_by(1);
    let mut scenario = Scenario::new("member_list_is_a_lie", FORMED_BY + seconds(60))
        .light()
        .nodes(6)
        .dns(Dns::Lie { empty_for: EMPTY_FOR, entries_max: 1000 })
        .quiet_from(Duration::ZERO)
        .image(Image::new(&image, 1, LAYER_BYTES, 1))
        .preload("n1", &image)
        .fault(Duration::ZERO, Fault::CutUpstream);
    for n in 2..=6 {
        scenario = scenario.pull(FORMED_BY + seconds(n as u64), &name(n), &image);
    }
    scenario.expect(|outcome| {
        expect_first_tries(outcome, 5, seconds(1))?;
        for (node, work) in &outcome.work {
            if work.resolves > ATTEMPTS_PER_HOUR_MAX || work.dials > DIALS_PER_HOUR_MAX {
                return Err(format!("{node} looked for others too often: {work:?}"));
            }
        }
        Ok(())
    })
}

// --- releases -------------------------------------------------------------------------------------

/// How many requests of an unknown kind must at least have been answered as such.
const UNSUPPORTED_MIN: u64 = 20;

/// Half of ten nodes are of a later release, whose messages and records have fields that the others
/// do not know, who send requests and replies of unknown kinds, and records in unknown states. Each
/// half finds what the other has; then the other half is upgraded, node by node, while pulls go
/// on. Nobody is blamed for being newer.
#[must_use]
pub fn two_releases_side_by_side() -> Scenario {
    // Each held by one of the older and one of the later half, for another to pull.
    let images = ["registry.test/old:1", "registry.test/new:1", "registry.test/both:1"];
    let mut scenario = Scenario::new("two_releases_side_by_side", seconds(90))
        .light()
        .nodes(10)
        .fault(Duration::ZERO, Fault::CutUpstream);
    for (n, image) in images.iter().enumerate() {
        scenario = scenario.image(Image::new(image, 1, LAYER_BYTES, n as u64));
    }
    scenario = scenario
        .preload("n1", images[0])
        .preload("n10", images[1])
        .preload("n2", images[2])
        .preload("n9", images[2]);
    for n in 6..=10 {
        scenario = scenario.fault(Duration::ZERO, Fault::Upgrade { node: name(n) });
    }
    // Across the halves.
    for n in 2..=5 {
        scenario = scenario.pull(seconds(10 + n as u64), &name(n), images[1]);
    }
    for n in 6..=9 {
        scenario = scenario.pull(seconds(10 + n as u64), &name(n), images[0]);
    }
    // A rolling upgrade of the older half, with a pull by each half while a node is away and when
    // it is back.
    for n in 1..=5 {
        let (at, other) = (seconds(20 + 10 * n as u64), name(n % 5 + 1));
        scenario = scenario
            .fault(at, Fault::Stop { node: name(n) })
            .fault(at, Fault::Upgrade { node: name(n) })
            .fault(at + seconds(2), Fault::Start { node: name(n) });
        if n < 5 && n != 1 {
            scenario = scenario.pull(at + seconds(1), &other, images[2]);
        }
        let later = name(5 + n);
        if n < 4 {
            scenario = scenario.pull(at + Duration::from_millis(1500), &later, images[2]);
        }
    }
    scenario.expect(|outcome| {
        expect_first_tries(outcome, 14, seconds(2))?;
        for (at, node, notice) in &outcome.notices {
            let blames = matches!(notice, Notice::MessageMalformed { .. } | Notice::PeerShunned { .. });
            if blames {
                return Err(format!("{node} blames another for being newer, at {at:?}: {notice:?}"));
            }
        }
        let downs =
            outcome.notices.iter().filter(|(_, _, it)| matches!(it, Notice::MemberDown { .. })).count();
        // Each of five restarts is a departure to nine nodes.
        if downs > 5 * 9 {
            return Err(format!("{downs} times somebody was taken for dead, not 45"));
        }
        if outcome.unsupported < UNSUPPORTED_MIN {
            return Err(format!("only {} requests of tomorrow were answered", outcome.unsupported));
        }
        Ok(())
    })
}
