//! How much this node still has to send to other nodes, which it says with each answer: nobody else can
//! know what all of them want of it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes of bodies under way to other nodes; clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backlog(Arc<AtomicU64>);

/// A body's part of it, until dropped.
#[derive(Debug)]
pub(crate) struct Owed {
    backlog: Backlog,
    bytes: u64,
}

impl Backlog {
    /// Adds a body of so many bytes, and says how many there were: of two at once, one comes second.
    pub(crate) fn owe(&self, bytes: u64) -> (Owed, u64) {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        (Owed { backlog: self.clone(), bytes }, before)
    }
}

impl Owed {
    pub(crate) fn sent(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.backlog.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.sent(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_or_given_up_is_owed_no_more() {
        let backlog = Backlog::default();
        let ((mut first, none), (second, ten)) = (backlog.owe(10), backlog.owe(5));
        assert_eq!((none, ten), (0, 10));
        assert_eq!(backlog.owe(0).1, 15);
        first.sent(3);
        first.sent(100);
        assert_eq!(backlog.owe(0).1, 5);
        drop((first, second));
        assert_eq!(backlog.owe(0).1, 0);
    }
}
