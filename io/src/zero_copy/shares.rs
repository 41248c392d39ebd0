//! Divides the kernel's memory for sockets among the connections of this process.
//!
//! Left alone, each socket of a client that stops reading fills with as much as the kernel allows one:
//! some MiB to be sent, and as much received from another node. A thousand of them exhaust what all
//! sockets of the machine may have together (`net.ipv4.tcp_mem`), and every transfer stands still; or
//! the memory of the pod, to which it is charged. So the more connections there are, the less each may
//! hold. What is on its way counts as neither unsent nor received: links are filled as before.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What all connections together may leave unsent. Since each keeps what it has when others come, it
/// can become some four times as much. Less and a crowd of quick clients costs a system call for every
/// few KiB; more and a crowd of stuck ones takes the pod's memory.
const UNSENT_BYTES: usize = 16 * 1024 * 1024;

/// Most that one connection may leave unsent: as much as the kernel allows by itself. Less and fast
/// transfers that are alone wake the process more often (1 MiB costs a tenth more processor time);
/// more has no effect.
const UNSENT_MAX: usize = 4 * 1024 * 1024;

/// Least that one may leave unsent, however many there are. Less is smaller than what the kernel
/// makes of one packet.
const UNSENT_MIN: usize = 16 * 1024;

/// While there are no more connections, the kernel decides how much may be received: it gives a
/// connection more as long as that makes it faster. Fewer and a transfer on a long fast link is slowed
/// for nothing; more and each that gets stuck may hold some MiB.
const UNBOUNDED_MAX: usize = 16;

/// What all connections to other nodes together may have received and not passed on. Less and
/// transfers on slow links wait for each other's acknowledgements; more takes the pod's memory.
const RECEIVED_BYTES: usize = 16 * 1024 * 1024;

/// Least that one may have received, however many there are. Less and a round trip of 100 ms makes a
/// good peer look like a slow one.
const RECEIVED_MIN: usize = 32 * 1024;

/// How many connections of clients there are; clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares(Arc<AtomicUsize>);

/// One of them, until dropped.
#[derive(Debug)]
pub(crate) struct Connected(Arc<AtomicUsize>);

impl Shares {
    pub(super) fn connect(&self) -> Connected {
        self.0.fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(&self.0))
    }

    /// Most bytes that a connection may leave unsent.
    pub(super) fn unsent_max(&self) -> usize {
        (UNSENT_BYTES / self.connections()).clamp(UNSENT_MIN, UNSENT_MAX)
    }

    /// Most bytes that a connection to another node may have received; `None` if that is for the kernel
    /// to say.
    pub(super) fn received_max(&self) -> Option<usize> {
        let connections = self.connections();
        (connections > UNBOUNDED_MAX).then(|| (RECEIVED_BYTES / connections).max(RECEIVED_MIN))
    }

    /// In powers of two, so that shares do not change with every connection.
    fn connections(&self) -> usize {
        self.0.load(Ordering::Relaxed).next_power_of_two()
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_shrink_with_the_number_of_connections_and_grow_again() {
        let shares = Shares::default();
        assert_eq!((shares.unsent_max(), shares.received_max()), (UNSENT_MAX, None));
        let mut connected = Vec::new();
        let (mut unsent, mut received) = (0, 0);
        for _ in 0..5000 {
            connected.push(shares.connect());
            unsent += shares.unsent_max();
            received += shares.received_max().unwrap_or_default();
            assert_eq!(shares.received_max().is_none(), connected.len() <= UNBOUNDED_MAX);
            if connected.len() == 1024 {
                assert!(unsent <= 6 * UNSENT_BYTES, "{unsent} bytes unsent");
                assert!(received <= 6 * RECEIVED_BYTES, "{received} bytes received");
            }
        }
        assert_eq!((shares.unsent_max(), shares.received_max()), (UNSENT_MIN, Some(RECEIVED_MIN)));
        connected.clear();
        assert_eq!((shares.unsent_max(), shares.received_max()), (UNSENT_MAX, None));
    }
}
