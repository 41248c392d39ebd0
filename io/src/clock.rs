//! The only place where time is read. Both clocks are tokio's where a runtime is paused or
//! simulated, so that the simulator decides what time it is.

use std::time::{Instant, SystemTime};

/// The time on the core's axis.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Milliseconds since the UNIX epoch; 0 if the clock stands before it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one reading of wall time, handed to the core as data")]
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
