//! Which functions hold the memory: one allocation in so many bytes is noted with the functions that made it, until
//! it is freed. What was allocated before the start is not seen.

use std::{
    cell::Cell,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use crate::{
    encode::encode,
    table::{LIVE_MAX, Table},
};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// One allocation in this many bytes is noted. More and a process of some megabytes has nothing to show; fewer and
/// walking the stack slows it down.
pub(crate) const SAMPLE_BYTES: usize = 128 * 1024;

/// Functions noted of a stack, from the innermost. Fewer and who asked is not seen; more only costs memory.
const DEPTH_MAX: usize = 64;

/// Slots by which an address is known not to have been noted, without a lock. Fewer and many frees wait for each
/// other; more only costs memory, once it is looked at.
const SLOTS: usize = 1 << 16;

const _: () = assert!(LIVE_MAX < u16::MAX as usize, "a slot counts all that may fall into it");

static IS_SAMPLING: AtomicBool = AtomicBool::new(false);
/// How many noted addresses fall into each slot.
static NOTED: [AtomicU16; SLOTS] = [const { AtomicU16::new(0) }; SLOTS];
static TABLE: Mutex<Table> = Mutex::new(Table::new());

thread_local! {
    /// Bytes until the next allocation that is noted; 0 if that has not been drawn.
    static LEFT: Cell<usize> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
    /// Whether this thread is noting: what it allocates meanwhile is the profile's own.
    static IS_NOTING: Cell<bool> = const { Cell::new(false) };
}

/// Begins to note allocations, for the rest of the process.
pub fn start() {
    IS_SAMPLING.store(true, Ordering::Relaxed);
}

/// What is held, and what has been allocated since the start, as `profile.proto`; `None` before [`start`]. Reads this
/// program's symbols, which takes a moment.
#[must_use]
pub fn profile(now_unix_ns: i64) -> Option<Vec<u8>> {
    if !IS_SAMPLING.load(Ordering::Relaxed) {
        return None;
    }
    let _noting = Noting::begin()?;
    let stacks = lock().stacks();
    Some(encode(&stacks, now_unix_ns))
}

/// Memory was handed out.
#[inline]
pub(crate) fn allocated(pointer: *mut u8, size: usize) {
    if IS_SAMPLING.load(Ordering::Relaxed) && !pointer.is_null() {
        count(pointer.addr(), size);
    }
}

/// Memory is about to be taken back.
#[inline]
pub(crate) fn freed(pointer: *mut u8) {
    if IS_SAMPLING.load(Ordering::Relaxed) && slot(pointer.addr()).load(Ordering::Relaxed) > 0 {
        forget(pointer.addr());
    }
}

fn count(address: usize, size: usize) {
    let is_due = LEFT.with(|left| {
        let before = if left.get() == 0 { draw() } else { left.get() };
        let is_due = size >= before;
        left.set(if is_due { draw() } else { before - size });
        is_due
    });
    if is_due {
        note(address, size);
    }
}

#[cold]
fn note(address: usize, size: usize) {
    let Some(_noting) = Noting::begin() else { return };
    let _undisturbed = Undisturbed::begin();
    let (mut frames, mut depth) = ([0; DEPTH_MAX], 0);
    backtrace::trace(|frame| {
        frames[depth] = frame.ip().addr();
        depth += 1;
        depth < DEPTH_MAX
    });
    if lock().allocated(address, size, &frames[..depth]) {
        slot(address).fetch_add(1, Ordering::Relaxed);
    }
}

#[cold]
fn forget(address: usize) {
    let Some(_noting) = Noting::begin() else { return };
    if lock().freed(address) {
        slot(address).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A thread is noting, until this is dropped.
struct Noting;

impl Noting {
    fn begin() -> Option<Self> {
        // Made only if it is the first: dropping another would end the first.
        if IS_NOTING.replace(true) { None } else { Some(Self) }
    }
}

impl Drop for Noting {
    fn drop(&mut self) {
        IS_NOTING.set(false);
    }
}

/// The signal of the other profile waits until this is dropped: it walks the stack as well, with a lock that a thread
/// cannot have twice.
struct Undisturbed(Option<SigSet>);

impl Undisturbed {
    fn begin() -> Self {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGPROF);
        Self(signals.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok())
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // It was in force before.
            let _ = before.thread_set_mask();
        }
    }
}

fn lock() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Neighbouring allocations fall into different slots, and those of the same alignment into all of them.
fn slot(address: usize) -> &'static AtomicU16 {
    let hash = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &NOTED[(hash >> 48) as usize % SLOTS]
}

/// Bytes until the next allocation that is noted: each byte is as likely to be it as any other, so that no pattern of
/// allocations hides from it. Never 0.
fn draw() -> usize {
    let random = RANDOM.with(|random| {
        // xorshift64; nobody guesses at it, and threads differ by where they are.
        let mut state = match random.get() {
            0 => (std::ptr::from_ref(random).addr() as u64) | 1,
            state => state,
        };
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        random.set(state);
        state
    });
    // 53 bits, as many as a float has, above 0 and at most 1.
    let uniform = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    ((-uniform.ln() * SAMPLE_BYTES as f64) as usize).max(1)
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, thread};

    use pprof::protos::{Message as _, Profile};

    use super::*;

    const MIB: usize = 1 << 20;

    #[inline(never)]
    fn hold_for_the_profile(bytes: usize) -> Vec<u8> {
        black_box(vec![1; bytes])
    }

    #[expect(clippy::vec_box, reason = "an allocation for each is what is wanted")]
    #[inline(never)]
    fn hold_small_ones(count: usize) -> Vec<Box<[u8; 256]>> {
        (0..count).map(|_| black_box(Box::new([1; 256]))).collect()
    }

    #[inline(never)]
    fn grow_for_the_profile(into: &mut Vec<u8>) {
        into.reserve_exact(black_box(24 * MIB));
    }

    /// Bytes that functions of this name hold, and have ever allocated.
    fn held_by(name: &str) -> (usize, usize) {
        let profile = Profile::decode(&*profile(0).expect("it was started")).unwrap();
        let text = |number: i64| profile.string_table[usize::try_from(number).unwrap()].as_str();
        let is_meant = |id: &u64| {
            let location = &profile.location[usize::try_from(*id).unwrap() - 1];
            location.line.iter().any(|line| {
                let function = &profile.function[usize::try_from(line.function_id).unwrap() - 1];
                text(function.name).contains(name)
            })
        };
        let samples = profile.sample.iter().filter(|sample| sample.location_id.iter().any(is_meant));
        samples.fold((0, 0), |(live, all), sample| {
            let bytes = |value: usize| usize::try_from(sample.value[value]).unwrap();
            (live + bytes(3), all + bytes(1))
        })
    }

    #[test]
    fn what_is_allocated_while_noting_is_never_noted() {
        let noting = Noting::begin().expect("it is the first");
        assert!((0..3).all(|_| Noting::begin().is_none()), "as often as it is tried");
        drop(noting);
        assert!(Noting::begin().is_some());
    }

    fn is_about(bytes: usize, expected: usize) -> bool {
        bytes.abs_diff(expected) < expected / 2
    }

    #[test]
    fn memory_is_told_by_who_holds_it_and_no_longer_when_it_is_freed() {
        start();
        let large = hold_for_the_profile(32 * MIB);
        let (live, all) = held_by("hold_for_the_profile");
        assert_eq!(held_by("heap::note"), (0, 0), "what notes is not what holds");
        assert!(is_about(live, 32 * MIB) && all >= live, "{live} of {all}");
        let moved = thread::spawn(move || drop(large));
        moved.join().unwrap();
        let (live, all) = held_by("hold_for_the_profile");
        assert!(live == 0 && is_about(all, 32 * MIB), "{live} of {all}");
    }

    #[test]
    fn many_small_ones_are_estimated_from_a_few() {
        start();
        let small = hold_small_ones(64 * 1024);
        let (live, _) = held_by("hold_small_ones");
        assert!(is_about(live, 16 * MIB), "{live}");
        drop(small);
        let (live, _) = held_by("hold_small_ones");
        assert!(live < MIB, "{live}");
    }

    #[test]
    fn grown_memory_is_of_who_grew_it() {
        start();
        let mut grown = Vec::with_capacity(MIB);
        grown.push(1);
        grow_for_the_profile(&mut grown);
        let (live, _) = held_by("grow_for_the_profile");
        assert!(is_about(live, 24 * MIB), "{live}");
    }
}
