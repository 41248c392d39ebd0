//! What happened, one line for each input and output, and a hash over all lines that must be
//! the same each time a seed is run.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest as _, Sha256};
use spegel_core::{Input, Output};

/// Lines kept to be shown when a scenario fails.
const TAIL_LINES: usize = 60;

/// The trace of one run, shared by its nodes.
#[derive(Clone, Debug, Default)]
pub struct Trace(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    hash: Sha256,
    all: Vec<String>,
}

impl Trace {
    /// Notes what reached a node.
    pub fn input(&self, node: &str, input: &Input) {
        self.line(node, "<-", &format!("{input:?}"));
    }

    /// Notes what a node wants done.
    pub fn output(&self, node: &str, output: &Output) {
        self.line(node, "->", &format!("{output:?}"));
    }

    /// Notes something the scenario does or sees.
    pub fn note(&self, node: &str, what: &str) {
        self.line(node, "--", what);
    }

    fn line(&self, node: &str, direction: &str, what: &str) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let line = format!("{:>10.3}s {node:<8} {direction} {what}", at.as_secs_f64());
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.hash.update(line.as_bytes());
        lines.all.push(line);
    }

    /// A hash over all lines so far.
    #[must_use]
    pub fn hash(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.hash.clone().finalize().iter().take(8).fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
    }

    /// All lines.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all.join("\n")
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.all[lines.all.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}
