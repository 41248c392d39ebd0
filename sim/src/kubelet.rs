//! How pulls are begun again after a failure, by containerd and by the kubelet: the same for both
//! drivers.

use std::time::Duration;

/// How often containerd asks again for a body that ended early without any progress.
pub(crate) const RESUMES_MAX: u32 = 5;

/// How often the kubelet tries. It would never give up; a scenario must.
pub(crate) const TRIES_MAX: u32 = 5;

/// How long the kubelet waits after the first failure.
const RETRY_DELAY: Duration = Duration::from_secs(10);

/// How long the kubelet waits after so many failures: twice as long after each. (Its longest wait,
/// five minutes, comes after more than [`TRIES_MAX`].)
pub(crate) fn retry_delay(failures: u32) -> Duration {
    RETRY_DELAY * 2_u32.pow(failures.saturating_sub(1))
}
