//! Waiting for the real world, always with an end, and the arithmetic of what was measured.

use std::thread;
use std::time::{Duration, Instant};

/// Between two looks. Longer and a figure of some milliseconds drowns in it; shorter and the looking itself
/// takes a core from what is measured.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Looks until `look` gives a value, and says how long that took.
///
/// # Errors
/// After `within`, with `what` and the last thing `look` complained about.
pub fn wait_for<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<(T, Duration), String> {
    let start = Instant::now();
    loop {
        let error = match look() {
            Ok(value) => return Ok((value, start.elapsed())),
            Err(error) => error,
        };
        if start.elapsed() >= within {
            return Err(format!("{what}: not within {within:?}; last seen: {error}"));
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

/// The value that `percent` of the samples do not exceed.
///
/// # Panics
/// Without samples.
#[must_use]
pub fn percentile(samples: &[Duration], percent: usize) -> Duration {
    assert!(!samples.is_empty(), "no samples");
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
