//! What a connection's frames stand for, in their order.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf, Bytes};
use rustix::{fs::sendfile, io::write};
use tokio::net::TcpStream;

use super::{Call, Kernel, SEGMENT_BYTES_MAX, copy, pipe::Pipe, placeholder};

/// Most segments that wait on one connection. The HTTP library holds no more than 16 frames, so
/// more means that frames get lost on the way.
const SEGMENTS_MAX: usize = 16;

/// What one connection still has to send by way of the kernel; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    kernel: Kernel,
    segments: Arc<Mutex<VecDeque<Segment>>>,
}

/// What one frame stands for.
#[derive(Debug)]
struct Segment {
    source: Source,
    /// What was taken from the source because the kernel does not move it; goes first.
    copied: Bytes,
    /// Bytes to be sent, with those that were copied.
    remaining: usize,
}

#[derive(Debug)]
enum Source {
    File { file: Arc<File>, offset: u64 },
    Pipe(Arc<Pipe>),
}

impl Lane {
    pub(crate) fn new(kernel: Kernel) -> Self {
        Self { kernel, segments: Arc::default() }
    }

    /// Whether it makes sense to add anything that is moved like this.
    pub(crate) fn is_open(&self, by: Call) -> bool {
        self.kernel.moves_bytes(by)
    }

    /// Adds a part of a file, no longer than [`SEGMENT_BYTES_MAX`], and gives the frame that stands
    /// for it. The frame must be the next one of the connection.
    ///
    /// # Errors
    ///
    /// When frames given before have got lost.
    pub(crate) fn file(&self, file: Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
        self.add(Source::File { file, offset }, length)
    }

    /// Adds what a pipe was just filled with. As [`Lane::file`].
    pub(crate) fn pipe(&self, pipe: &Arc<Pipe>, length: usize) -> io::Result<Bytes> {
        self.add(Source::Pipe(Arc::clone(pipe)), length)
    }

    /// A pipe for such bytes; `None` if they have to be copied.
    pub(crate) fn open_pipe(&self) -> Option<Arc<Pipe>> {
        if self.is_open(Call::Splice) { Pipe::open(&self.kernel) } else { None }
    }

    /// Whether an error of the kernel means that bytes have to be copied from here on.
    pub(crate) fn refused(&self, by: Call, error: &io::Error) -> bool {
        self.kernel.refused(by, error)
    }

    fn add(&self, source: Source, length: usize) -> io::Result<Bytes> {
        assert!(length <= SEGMENT_BYTES_MAX, "{length} bytes are more than a frame can stand for");
        let mut segments = self.segments();
        if segments.len() >= SEGMENTS_MAX {
            return Err(disagreement());
        }
        if length > 0 {
            segments.push_back(Segment { source, copied: Bytes::new(), remaining: length });
        }
        Ok(placeholder(length))
    }

    pub(super) const fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Sends of the first segment what the socket takes, up to so many bytes, given how many of its
    /// frame are left.
    pub(super) fn send(&self, socket: &TcpStream, left: usize, most: usize) -> io::Result<usize> {
        let mut segments = self.segments();
        let first = segments.front_mut().filter(|first| first.remaining == left);
        let sent = first.ok_or_else(disagreement)?.send(socket, most, &self.kernel)?;
        if sent == left {
            segments.pop_front();
        }
        Ok(sent)
    }

    fn segments(&self) -> MutexGuard<'_, VecDeque<Segment>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frames and segments do not fit together. Nobody knows what the client would get, so it must get
/// nothing more.
pub(super) fn disagreement() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the frames of a response are not those that were made for it")
}

impl Segment {
    fn send(&mut self, socket: &TcpStream, most: usize, kernel: &Kernel) -> io::Result<usize> {
        let most = self.remaining.min(most);
        if self.copied.is_empty() {
            let by = self.source.call();
            let moved = if kernel.moves_bytes(by) { Some(self.source.send(socket, most)) } else { None };
            match moved {
                Some(Err(error)) if kernel.refused(by, &error) => {}
                Some(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(Ok(sent)) => {
                    self.remaining -= sent;
                    return Ok(sent);
                }
                Some(Err(error)) => return Err(error),
                None => {}
            }
            self.copied = self.source.read(most)?;
        }
        let sent = write(socket, &self.copied)?;
        self.copied.advance(sent);
        self.remaining -= sent;
        Ok(sent)
    }
}

impl Source {
    const fn call(&self) -> Call {
        match self {
            Self::File { .. } => Call::Sendfile,
            Self::Pipe(_) => Call::Splice,
        }
    }

    fn send(&mut self, socket: &TcpStream, length: usize) -> io::Result<usize> {
        match self {
            Self::File { file, offset } => Ok(sendfile(socket, &**file, Some(offset), length)?),
            Self::Pipe(pipe) => pipe.empty(socket, length),
        }
    }

    fn read(&mut self, length: usize) -> io::Result<Bytes> {
        match self {
            Self::File { file, offset } => copy::from_file(file, offset, length),
            Self::Pipe(pipe) => pipe.read(length),
        }
    }
}
