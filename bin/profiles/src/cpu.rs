//! Where the processor's time goes: the process is interrupted as often as it used up some of that, and what it was
//! doing is noted.

use std::{env, path::Path, sync::OnceLock};

use nix::sys::signal::{Signal, raise};
use pprof::{ProfilerGuard, ProfilerGuardBuilder, protos::Message as _};

/// How often to look, in Hz of processor time. Less often and a short profile shows little; more often and what is
/// seen is the looking. Go does the same.
const FREQUENCY_HZ: i32 = 100;

/// How long a profile takes if nobody says, in seconds; Go's tools expect that.
pub const SECONDS_DEFAULT: u64 = 30;

/// Longest profile, in seconds. Shorter and what happens once a minute is missed; longer and the tool gives up
/// waiting.
pub const SECONDS_MAX: u64 = 60;

/// Where samples that do not fit in memory go, beside the usual place: a container on nothing has no `/tmp`, but
/// always this.
const SPILL_DIR: &str = "/dev/shm";

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// There is no directory for samples that do not fit in memory.
    #[error("neither {} nor {SPILL_DIR} takes files: mount something there, or set TMPDIR", env::temp_dir().display())]
    Spill,
    /// One is being made, or signals cannot be had.
    #[error("no profile can be made: {0}")]
    Profiler(#[from] pprof::Error),
}

/// A profile that is being made, until it is dropped.
pub struct CpuProfile(ProfilerGuard<'static>);

impl std::fmt::Debug for CpuProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CpuProfile")
    }
}

impl CpuProfile {
    /// Begins to look.
    ///
    /// # Errors
    ///
    /// [`CpuError`] if another is being made, or the system does not let it.
    pub fn start() -> Result<Self, CpuError> {
        if !has_spill_dir() {
            return Err(CpuError::Spill);
        }
        warm_up();
        Ok(Self(ProfilerGuardBuilder::default().frequency(FREQUENCY_HZ).build()?))
    }

    /// What was seen, as `profile.proto`. Reads this program's symbols, which takes a moment.
    ///
    /// # Errors
    ///
    /// [`CpuError`] if that cannot be put together.
    pub fn finish(self) -> Result<Vec<u8>, CpuError> {
        Ok(self.0.report().build()?.pprof()?.encode_to_vec())
    }
}

/// The profiler reads the tables of this program, for which it allocates, when the first signal comes: if that
/// interrupts a thread which is allocating itself, both wait for ever. So the first is sent here, to a thread that is
/// not.
fn warm_up() {
    static IS_WARM: OnceLock<()> = OnceLock::new();
    IS_WARM.get_or_init(|| {
        // The timer's own signals come a second of processor time later.
        if let Ok(guard) = ProfilerGuardBuilder::default().frequency(1).build() {
            // A signal of a number that exists, to this thread: it is handled before this returns.
            let _ = raise(Signal::SIGPROF);
            drop(guard);
        }
    });
}

/// The profiler remembers for ever where it could not write, so it is not asked before there is a place.
fn has_spill_dir() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    let takes_files = |dir: &Path| tempfile::tempfile_in(dir).is_ok();
    *HAS.get_or_init(|| {
        takes_files(&env::temp_dir())
            || (takes_files(Path::new(SPILL_DIR))
                && tempfile::env::override_temp_dir(Path::new(SPILL_DIR)).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[inline(never)]
    fn burn_for_the_profile(rounds: u64) -> u64 {
        (0..rounds).fold(1_u64, |sum, round| black_box(sum.wrapping_mul(6_364_136_223_846_793_005) ^ round))
    }

    #[test]
    fn busy_function_is_in_the_profile() {
        let profile = CpuProfile::start().unwrap();
        assert!(matches!(CpuProfile::start(), Err(CpuError::Profiler(_))), "one at a time");
        for _ in 0..60 {
            black_box(burn_for_the_profile(1_000_000));
        }
        let profile = pprof::protos::Profile::decode(&*profile.finish().unwrap()).unwrap();
        let seen = profile.string_table.iter().any(|name| name.contains("burn_for_the_profile"));
        assert!(seen, "{} samples: {:?}", profile.sample.len(), profile.string_table);
    }
}
