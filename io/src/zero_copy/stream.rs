//! The connection as the HTTP library sees it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::{
    is_placeholder,
    lane::{Lane, disagreement},
};
use crate::net::Stream;

/// A stream that sends what is next in the lane wherever it is given a placeholder. Must be given
/// every frame uncopied and in order, which is so for a library that writes vectored.
pub(crate) struct ZeroCopy<S> {
    stream: S,
    lane: Lane,
}

impl<S: Stream> ZeroCopy<S> {
    pub(crate) const fn new(stream: S, lane: Lane) -> Self {
        Self { stream, lane }
    }

    fn poll_send(&self, cx: &mut Context<'_>, left: usize) -> Poll<io::Result<usize>> {
        let Some(socket) = self.stream.socket() else { return Poll::Ready(Err(disagreement())) };
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_io(Interest::WRITABLE, || self.lane.send(socket, left)) {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl<S: Stream> AsyncRead for ZeroCopy<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: Stream> AsyncWrite for ZeroCopy<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let plain = slices.iter().take_while(|slice| !is_placeholder(slice)).count();
        match slices.first() {
            Some(first) if plain == 0 => self.poll_send(cx, first.len()),
            Some(_) | None => Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..plain]),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
