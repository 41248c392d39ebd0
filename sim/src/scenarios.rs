//! Faults of every kind, then healing, then a deadline by which all must be well.

use crate::{incidents, scenario::Scenario};

/// Every scenario there is, for replay by name.
#[must_use]
pub fn all() -> Vec<Scenario> {
    incidents::all()
}

/// The scenario of this name.
#[must_use]
pub fn named(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name() == name)
}
