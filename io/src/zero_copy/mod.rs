//! Bodies that the kernel moves: from a file to a socket, or from one socket to another by way of a
//! pipe, without passing through this process.
//!
//! The HTTP library stays in charge of everything that it knows: parsing, keep-alive, pipelining,
//! lengths, ends. It is given a body of frames as always, but their bytes are a *placeholder*:
//! slices of the right length out of a region that nobody ever reads or writes. What they stand
//! for waits in the connection's [`Lane`], in the same order. Below the library, [`ZeroCopy`]
//! knows such a slice by its address and lets the kernel send what is first in the lane instead.
//! That is all there is of our own between a response and the socket, and it fails closed: where
//! slices and lane do not fit together, the connection ends.
//!
//! Decides nothing about what is sent or to whom. Used by the registry for local content and by the
//! mirror for that of other nodes.

mod copy;
mod lane;
mod load;
mod pipe;
mod shares;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tracing::warn;

use self::shares::{Connected, Shares};
pub(crate) use self::{lane::Lane, load::load, pipe::Pipe, stream::ZeroCopy};

/// Most bytes that one frame stands for. Smaller costs a turn through the HTTP library more often;
/// larger is looked up in the page cache at once, and loaded at once for a client that may have
/// gone.
pub(crate) const SEGMENT_BYTES_MAX: usize = 1024 * 1024;

/// The least for which the kernel's way is worth its calls: below, copying is as cheap.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 32 * 1024;

/// Memory that is never touched, so that it takes address space alone.
static REGION: LazyLock<&'static [u8]> = LazyLock::new(|| vec![0; SEGMENT_BYTES_MAX].leak());

/// A frame that stands for `length` bytes.
fn placeholder(length: usize) -> Bytes {
    Bytes::from_static(&REGION[..length])
}

fn is_placeholder(bytes: &[u8]) -> bool {
    REGION.as_ptr_range().contains(&bytes.as_ptr())
}

/// What the kernel does for this process; clones share it.
#[derive(Clone, Debug)]
pub struct Kernel(Arc<Abilities>);

/// A way of the kernel to move bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    /// From a file to a socket.
    Sendfile,
    /// From one socket to another by way of a pipe.
    Splice,
}

#[derive(Debug)]
struct Abilities {
    /// Which calls it, or the sandbox around it, has refused.
    refuses: [AtomicBool; 2],
    /// Pipes that may still be opened.
    pipes: Arc<Semaphore>,
    /// Whether it was said that the system gives none.
    told_of_pipes: AtomicBool,
    shares: Shares,
}

impl Default for Kernel {
    fn default() -> Self {
        Self::new()
    }
}

impl Kernel {
    /// A kernel that can do everything, until it says otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self::with_pipes(pipe::PIPES_MAX)
    }

    pub(crate) fn with_pipes(most: usize) -> Self {
        let pipes = Arc::new(Semaphore::new(most));
        Self(Arc::new(Abilities {
            refuses: Default::default(),
            pipes,
            told_of_pipes: AtomicBool::new(false),
            shares: Shares::default(),
        }))
    }

    #[cfg(test)]
    pub(crate) fn pipes_left(&self) -> usize {
        self.0.pipes.available_permits()
    }

    #[cfg(test)]
    pub(crate) fn refuse(&self) {
        self.0.refuses.iter().for_each(|refuses| refuses.store(true, Ordering::Relaxed));
    }

    /// Most bytes that a connection to another node may have received and not passed on; `None` if that
    /// is for the kernel to say.
    pub(crate) fn received_max(&self) -> Option<usize> {
        self.0.shares.received_max()
    }

    fn unsent_max(&self) -> usize {
        self.0.shares.unsent_max()
    }

    fn connect(&self) -> Connected {
        self.0.shares.connect()
    }

    fn moves_bytes(&self, by: Call) -> bool {
        !self.0.refuses[by as usize].load(Ordering::Relaxed)
    }

    /// Notes that the system gave no pipe of use. Unlike a call that is refused, the next one may be given.
    fn lacks_pipes(&self, error: &io::Error) {
        if !self.0.told_of_pipes.swap(true, Ordering::Relaxed) {
            warn!(
                %error,
                "the system gives no pipe of 64 KiB (see fs.pipe-user-pages-soft and the limit of open files): while \
                 it is so, bytes from other nodes are copied"
            );
        }
    }

    /// Whether the error means that it never will: bytes are copied from here on.
    fn refused(&self, by: Call, error: &io::Error) -> bool {
        let refused = matches!(
            rustix::io::Errno::from_io_error(error),
            Some(
                rustix::io::Errno::NOSYS
                    | rustix::io::Errno::INVAL
                    | rustix::io::Errno::PERM
                    | rustix::io::Errno::ACCESS
                    | rustix::io::Errno::OPNOTSUPP
            )
        );
        if refused && !self.0.refuses[by as usize].swap(true, Ordering::Relaxed) {
            let (call, from) = match by {
                Call::Sendfile => ("sendfile", "files"),
                Call::Splice => ("splice", "other nodes"),
            };
            warn!(call, %error, "the kernel does not move bytes from {from} to clients here: they are copied");
        }
        refused
    }
}
