//! The way of bytes that the kernel was to move and did not.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

use bytes::Bytes;

/// How much is copied at once. Smaller costs system calls; larger is held by each client that is
/// slow.
const COPY_BYTES_MAX: usize = 64 * 1024;

/// The next bytes of a pipe.
pub(super) fn from_pipe(pipe: impl AsFd, length: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; length.min(COPY_BYTES_MAX)];
    let read = rustix::io::read(pipe, &mut buffer)?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    buffer.truncate(read);
    Ok(buffer.into())
}

/// The next bytes of a file, and moves `offset` past them.
pub(super) fn from_file(file: &File, offset: &mut u64, length: usize) -> io::Result<Bytes> {
    let mut buffer = vec![0; length.min(COPY_BYTES_MAX)];
    let read = file.read_at(&mut buffer, *offset)?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    buffer.truncate(read);
    *offset += read as u64;
    Ok(buffer.into())
}
