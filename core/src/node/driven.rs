//! A machine as the dispatcher drives it: looked at again only after something was done with it.
//!
//! Most inputs concern one machine or two. A node has a few megabytes of memory in which the
//! others' state is spread, none of it in a cache by the time of its next input.

use std::{
    ops::{Deref, DerefMut},
    time::Instant,
};

/// What the dispatcher asks every machine for.
pub(super) trait Machine {
    type Event;

    /// The next event.
    fn poll_event(&mut self) -> Option<Self::Event>;

    /// When something is due.
    fn poll_timeout(&self) -> Option<Instant>;
}

/// A machine, and what is known of it without a look at it. Whoever gets it to change it has
/// touched it.
#[derive(Debug)]
pub(super) struct Driven<M> {
    machine: Box<M>,
    due: Option<Instant>,
    is_touched: bool,
}

impl<M: Machine> Driven<M> {
    pub(super) fn new(machine: M) -> Self {
        Self { machine: Box::new(machine), due: None, is_touched: true }
    }

    /// Whether anything of it may be other than it was at [`Self::settle`].
    pub(super) const fn is_touched(&self) -> bool {
        self.is_touched
    }

    /// The next event: none of a machine that was not touched.
    pub(super) fn poll_event(&mut self) -> Option<M::Event> {
        if self.is_touched { self.machine.poll_event() } else { None }
    }

    /// It has no events left.
    pub(super) fn settle(&mut self) {
        if self.is_touched {
            self.due = self.machine.poll_timeout();
            self.is_touched = false;
        }
        debug_assert_eq!(self.due, self.machine.poll_timeout());
    }

    /// When it is due, as of [`Self::settle`].
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it is due at `now`, as of [`Self::settle`].
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }
}

impl<M> Deref for Driven<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.machine
    }
}

impl<M> DerefMut for Driven<M> {
    fn deref_mut(&mut self) -> &mut M {
        self.is_touched = true;
        &mut self.machine
    }
}
