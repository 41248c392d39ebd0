//! A beginning for the time axis of unit tests: only differences matter to the machines.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin; no test reads the clock again")]
pub(crate) fn start() -> Instant {
    Instant::now()
}
