//! Pipes, through which the kernel moves bytes from one socket to another.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::task::AtomicWaker;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream, sync::OwnedSemaphorePermit};

use super::{Kernel, copy};

/// Most pipes at once, of two descriptors each. Fewer and a node that starts many pods copies what
/// the kernel could move; more and they leave no descriptors to others.
pub(super) const PIPES_MAX: usize = 512;

/// How many of them may be large. All pipes together must stay below the 64 MiB that the kernel
/// grants to those of one user, or it makes them too small to be of use.
const PIPES_LARGE_MAX: usize = 32;

/// What a large pipe holds. Less costs system calls and wakes the process more often; more the
/// kernel refuses.
const PIPE_LARGE_BYTES: usize = 1024 * 1024;

/// What another pipe holds: that of a client among very many, each of which gets little. Also what
/// every pipe has where the kernel grants no more, and the least for which one is worth its calls.
const PIPE_BYTES: usize = 64 * 1024;

/// A pipe that is filled from one socket, then emptied into another, by turns: so that a socket
/// which has nothing to give is not mistaken for a pipe that is full.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in it.
    held: AtomicUsize,
    emptied: AtomicWaker,
    _permit: OwnedSemaphorePermit,
}

impl Pipe {
    /// `None` where there are too many, or the system has none to give: bytes are copied then.
    pub(super) fn open(kernel: &Kernel) -> Option<Arc<Self>> {
        let permit = Arc::clone(&kernel.0.pipes).try_acquire_owned().ok()?;
        let open = PIPES_MAX.saturating_sub(kernel.0.pipes.available_permits());
        let capacity = if open > PIPES_LARGE_MAX { PIPE_BYTES } else { PIPE_LARGE_BYTES };
        let (read, write) = open_holding(capacity).inspect_err(|error| kernel.lacks_pipes(error)).ok()?;
        let (held, emptied) = (AtomicUsize::new(0), AtomicWaker::new());
        Some(Arc::new(Self { read, write, held, emptied, _permit: permit }))
    }

    /// Waits until nothing is in it.
    pub(crate) fn poll_emptied(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_empty() {
            return Poll::Ready(());
        }
        self.emptied.register(cx.waker());
        if self.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn is_empty(&self) -> bool {
        self.held.load(Ordering::Acquire) == 0
    }

    /// Fills it, while it is empty, with what the socket has received, up to so many bytes. None
    /// is the end of what the socket receives.
    pub(crate) fn poll_fill(
        &self,
        cx: &mut Context<'_>,
        socket: &TcpStream,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        assert!(self.is_empty(), "pipes are filled and emptied by turns");
        loop {
            ready!(socket.poll_read_ready(cx))?;
            let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
            let fill = || Ok(splice(socket, None, &self.write, None, most, flags)?);
            match socket.try_io(Interest::READABLE, fill) {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Ok(filled) => {
                    self.held.store(filled, Ordering::Release);
                    return Poll::Ready(Ok(filled));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Lets the socket take up to so many bytes out of it.
    pub(super) fn empty(&self, socket: &TcpStream, most: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let taken = splice(&self.read, None, socket, None, most, flags)?;
        self.taken(taken);
        Ok(taken)
    }

    /// Copies bytes out of it.
    pub(super) fn read(&self, most: usize) -> io::Result<Bytes> {
        let bytes = copy::from_pipe(&self.read, most)?;
        self.taken(bytes.len());
        Ok(bytes)
    }

    fn taken(&self, bytes: usize) {
        if self.held.fetch_sub(bytes, Ordering::AcqRel) == bytes {
            self.emptied.wake();
        }
    }
}

fn open_holding(capacity: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    resize(&write, capacity)?;
    Ok((read, write))
}

/// Makes a pipe hold so much, or leaves it as it is where that will do.
fn resize(pipe: &OwnedFd, capacity: usize) -> io::Result<()> {
    match fcntl_setpipe_size(pipe, capacity) {
        Ok(_) => Ok(()),
        // More than `fs.pipe-max-size`, or than the kernel grants to all pipes of one user: then those
        // that are opened may be of a page or two.
        Err(_) if fcntl_getpipe_size(pipe)? >= PIPE_BYTES => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel grants to nobody, not even to root.
    const REFUSED: usize = 1 << 31;

    #[test]
    fn pipe_that_cannot_grow_is_used_as_it_is() {
        let (_read, write) = open_holding(REFUSED).unwrap();
        assert!(fcntl_getpipe_size(&write).unwrap() >= PIPE_BYTES);
    }

    #[test]
    fn pipe_too_small_to_be_of_use_is_none() {
        let (_read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let holds = fcntl_setpipe_size(&write, 4096).unwrap();
        assert!(holds < PIPE_BYTES, "{holds}");
        assert!(resize(&write, REFUSED).is_err());
        resize(&write, PIPE_BYTES).unwrap();
        assert!(resize(&write, REFUSED).is_ok());
    }
}
