//! The swarm: random clusters, workloads and faults drawn from a seed, judged by what must hold
//! for every run, and shrunk to the least that still fails.
//!
//! [`draw`] makes a [`Plan`] of a seed, [`judge`] says what was wrong with its run, [`shrink`]
//! makes a failing plan small. A plan is a file that a person can read, edit and replay.

mod draw;
mod judge;
mod plan;
mod shrink;
mod swarm;

pub use self::{
    draw::draw,
    plan::{Failure, Plan},
    shrink::shrink,
    swarm::{Swarm, Totals},
};
