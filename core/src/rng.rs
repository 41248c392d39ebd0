//! The node's only source of chance: one seed, split by name so that drawing more in one
//! machine does not change what another draws.

use std::time::Duration;

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};
use sha2::{Digest as _, Sha256};

/// A deterministic random number generator.
#[derive(Debug)]
pub(crate) struct Rng(ChaCha8Rng);

impl Rng {
    /// The generator of the machine called `name` in the node seeded with `seed`.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let key = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(name.as_bytes()).finalize();
        Self(ChaCha8Rng::from_seed(key.into()))
    }

    /// Any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { self.0.random_range(0..bound) }
    }

    /// A duration between 0.5 and 1 times `duration`, so that nodes that started together
    /// do not act together.
    pub(crate) fn jittered(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(self.0.random_range(0.5..1.0))
    }

    /// Puts `items` in random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// The generator itself, for libraries that want one.
    pub(crate) fn into_inner(self) -> ChaCha8Rng {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_and_name_draw_the_same() {
        let draw = |seed, name| {
            let mut rng = Rng::new(seed, name);
            [rng.number(), rng.number()]
        };
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let mut rng = Rng::new(7, "jitter");
        let whole = Duration::from_secs(10);
        for _ in 0..1000 {
            let drawn = rng.jittered(whole);
            assert!(whole / 2 <= drawn && drawn <= whole, "{drawn:?}");
        }
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }
}
