//! Reads choices off a byte string, for targets that need more than the bytes themselves. Explicit
//! rather than derived, so that a corpus file means the same after a dependency's update.

/// What is left of the input. At its end every choice is the first one.
pub(crate) struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    /// An index into something of `count` elements; 0 if it has none.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()).checked_rem(count).unwrap_or(0)
    }

    pub(crate) fn number(&mut self) -> u64 {
        let mut number = [0; 8];
        for byte in &mut number {
            *byte = self.byte();
        }
        u64::from_be_bytes(number)
    }

    /// A byte of length and as many bytes, or as there are.
    pub(crate) fn some(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (some, rest) = self.0.split_at(length);
        self.0 = rest;
        some
    }

    pub(crate) const fn rest(self) -> &'a [u8] {
        self.0
    }
}
