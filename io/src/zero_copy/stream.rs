//! The connection as the HTTP library sees it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::{
    is_placeholder,
    lane::{Lane, disagreement},
    shares::Connected,
};
use crate::net::Stream;

/// A stream that sends what is next in the lane wherever it is given a placeholder. Must be given
/// every frame uncopied and in order, which is so for a library that writes vectored.
pub(crate) struct ZeroCopy<S> {
    stream: S,
    lane: Lane,
    /// What the kernel was told that the socket may hold unsent.
    unsent_max: usize,
    _connected: Connected,
}

impl<S: Stream> ZeroCopy<S> {
    pub(crate) fn new(stream: S, lane: Lane) -> Self {
        let connected = lane.kernel().connect();
        Self { stream, lane, unsent_max: 0, _connected: connected }
    }

    /// Tells the kernel where that has changed.
    fn bound_unsent(&mut self) {
        let unsent_max = self.lane.kernel().unsent_max();
        if unsent_max != self.unsent_max
            && let Some(socket) = self.stream.socket()
        {
            self.unsent_max = unsent_max;
            // A kernel that knows no such bound holds as much as it likes.
            let _ =
                SockRef::from(socket).set_tcp_notsent_lowat(u32::try_from(unsent_max).unwrap_or(u32::MAX));
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, left: usize) -> Poll<io::Result<usize>> {
        let Some(socket) = self.stream.socket() else { return Poll::Ready(Err(disagreement())) };
        loop {
            ready!(socket.poll_write_ready(cx))?;
            match socket.try_io(Interest::WRITABLE, || self.lane.send(socket, left, self.unsent_max)) {
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
        self.bound_unsent();
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
