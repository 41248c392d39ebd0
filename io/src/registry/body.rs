//! A response body of a length that is known beforehand.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::Stream;
use http_body::{Frame, SizeHint};

/// The source gave fewer bytes than the response promised. The server then ends the connection,
/// which tells containerd to ask again from where it is.
#[derive(Debug)]
pub(crate) struct Truncated;

impl fmt::Display for Truncated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("response body ended early")
    }
}

impl std::error::Error for Truncated {}

/// Chunks up to a length promised in `Content-Length`: an error if there are fewer, and the rest
/// left alone if there are more.
pub(crate) struct Exact<S> {
    chunks: S,
    remaining: u64,
    ending: bool,
}

impl<S> Exact<S> {
    pub(crate) const fn new(chunks: S, length: u64) -> Self {
        Self { chunks, remaining: length, ending: false }
    }
}

impl<S: Stream<Item = Bytes> + Unpin> http_body::Body for Exact<S> {
    type Data = Bytes;
    type Error = Truncated;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Truncated>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        if self.ending {
            return Poll::Ready(Some(Err(Truncated)));
        }
        let Some(mut chunk) = ready!(Pin::new(&mut self.chunks).poll_next(cx)) else {
            // hyper throws away what it has buffered when a body fails, but flushes when it
            // has to wait for one: let it, so that the client keeps every byte it was given.
            self.ending = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        chunk.truncate(most);
        self.remaining -= chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::BodyExt;

    use super::*;

    async fn collect(chunks: &[&'static str], length: u64) -> (String, bool) {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Bytes::from(*chunk)).collect();
        let mut body = Exact::new(stream::iter(chunks), length);
        let mut text = String::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap()),
                Err(Truncated) => return (text, false),
            }
        }
        (text, true)
    }

    #[tokio::test]
    async fn body_is_exactly_as_long_as_promised() {
        assert_eq!(collect(&["ab", "", "c"], 3).await, ("abc".into(), true));
        assert_eq!(collect(&["ab", "cd"], 3).await, ("abc".into(), true));
        assert_eq!(collect(&["ab"], 3).await, ("ab".into(), false));
        assert_eq!(collect(&[], 1).await, (String::new(), false));
        assert_eq!(collect(&[], 0).await, (String::new(), true));
    }
}
