//! What was noted of the heap: which allocations are alive, and which stacks made them.

use std::collections::BTreeMap;

use crate::heap::SAMPLE_BYTES;

/// Most allocations noted at a time: some eight gigabytes' worth. Fewer and a process that leaks is seen in part;
/// more costs some 50 bytes each.
pub(crate) const LIVE_MAX: usize = 60_000;

/// Most stacks told apart; others count together as one that is unknown. Fewer and what is rare is lost; more costs
/// half a kilobyte each.
const STACKS_MAX: usize = 8192;

/// Allocations, estimated from those that were noted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    /// What one noted allocation stands for: the smaller it is, the more of its kind went unnoticed.
    fn of(size: usize) -> Self {
        let chance = -(-(size as f64) / SAMPLE_BYTES as f64).exp_m1();
        if chance <= 0.0 {
            return Self::default();
        }
        Self { objects: (1.0 / chance).round() as u64, bytes: (size as f64 / chance).round() as u64 }
    }

    fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }

    fn take(&mut self, other: Self) {
        self.objects = self.objects.saturating_sub(other.objects);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// One way to an allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stack {
    /// Return addresses, the innermost first.
    pub(crate) frames: Vec<usize>,
    pub(crate) live: Amount,
    pub(crate) allocated: Amount,
}

#[derive(Debug)]
pub(crate) struct Table {
    /// By address: the stack, and the size.
    live: BTreeMap<usize, (usize, usize)>,
    stacks: Vec<Stack>,
    by_frames: BTreeMap<Vec<usize>, usize>,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self { live: BTreeMap::new(), stacks: Vec::new(), by_frames: BTreeMap::new() }
    }

    /// Whether there was room for it.
    pub(crate) fn allocated(&mut self, address: usize, size: usize, frames: &[usize]) -> bool {
        if self.live.len() >= LIVE_MAX {
            return false;
        }
        let stack = self.stack(frames);
        let amount = Amount::of(size);
        self.stacks[stack].live.add(amount);
        self.stacks[stack].allocated.add(amount);
        let Some((stack, size)) = self.live.insert(address, (stack, size)) else { return true };
        // It was freed while nobody looked, and is counted where its address is already.
        self.stacks[stack].live.take(Amount::of(size));
        false
    }

    /// Whether it had been noted.
    pub(crate) fn freed(&mut self, address: usize) -> bool {
        let Some((stack, size)) = self.live.remove(&address) else { return false };
        self.stacks[stack].live.take(Amount::of(size));
        true
    }

    pub(crate) fn stacks(&self) -> Vec<Stack> {
        self.stacks.clone()
    }

    fn stack(&mut self, frames: &[usize]) -> usize {
        let known = |frames: &[usize]| self.by_frames.get(frames).copied();
        let frames = if self.stacks.len() < STACKS_MAX || known(frames).is_some() { frames } else { &[] };
        known(frames).unwrap_or_else(|| {
            self.stacks.push(Stack { frames: frames.to_vec(), ..Stack::default() });
            self.by_frames.insert(frames.to_vec(), self.stacks.len() - 1);
            self.stacks.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noted_allocation_stands_for_those_that_were_not() {
        assert_eq!(Amount::of(0), Amount::default());
        let small = Amount::of(1);
        assert!(small.objects.abs_diff(SAMPLE_BYTES as u64) <= 1, "{small:?}");
        let large = Amount::of(SAMPLE_BYTES * 100);
        assert_eq!(large, Amount { objects: 1, bytes: SAMPLE_BYTES as u64 * 100 });
    }

    #[test]
    fn stacks_and_allocations_are_bounded() {
        let mut table = Table::new();
        for number in 0..LIVE_MAX {
            assert!(table.allocated(number, 1, &[number]));
        }
        assert!(!table.allocated(LIVE_MAX, 1, &[0]));
        assert_eq!(table.stacks().len(), STACKS_MAX + 1, "the last is that of all others");
        assert!(table.freed(0) && !table.freed(0));
        assert_eq!(table.stacks()[0].live, Amount::default());
        assert_ne!(table.stacks()[0].allocated, Amount::default());
        assert!(table.allocated(0, 1, &[1]), "there is room again");
    }

    #[test]
    fn address_whose_end_was_missed_counts_once() {
        let mut table = Table::new();
        assert!(table.allocated(7, 100, &[1]));
        assert!(!table.allocated(7, 200, &[2]));
        let live: Vec<_> = table.stacks().iter().map(|stack| stack.live).collect();
        assert_eq!(live, [Amount::default(), Amount::of(200)]);
        assert!(table.freed(7) && !table.freed(7));
    }
}
