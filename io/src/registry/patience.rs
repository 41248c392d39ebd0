//! Gives up on clients that take no bytes. HTTP libraries leave that to the application, and
//! without it a client that stops reading holds its connection, its pull and their buffers for
//! as long as its kernel acknowledges probes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::net::Stream;

/// A stream on which a write fails once the other side has taken nothing for a while.
pub(super) struct Patient<S> {
    stream: S,
    write_stall_max: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: Stream> Patient<S> {
    pub(super) const fn new(stream: S, write_stall_max: Duration) -> Self {
        Self { stream, write_stall_max, stalled: None }
    }

    fn bound<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let write_stall_max = self.write_stall_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(write_stall_max)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: Stream> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: Stream> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bound(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.bound(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::timeout,
    };

    use super::*;

    #[tokio::test]
    async fn only_a_client_that_takes_nothing_is_given_up() {
        let stall_max = Duration::from_millis(200);
        let (near, mut far) = duplex(10);
        let mut near = Patient::new(near, stall_max);
        let writing = tokio::spawn(async move {
            let slow = near.write_all(&[0; 60]).await;
            (slow, near.write_all(&[0; 60]).await)
        });
        // Longer in all than the bound, but never without a byte for so long.
        for _ in 0..6 {
            sleep(Duration::from_millis(60)).await;
            far.read_exact(&mut [0; 10]).await.unwrap();
        }
        let (slow, stuck) = timeout(Duration::from_secs(10), writing).await.unwrap().unwrap();
        slow.unwrap();
        assert_eq!(stuck.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
