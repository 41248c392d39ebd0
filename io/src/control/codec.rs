//! How a control message travels: its length as four big-endian bytes, then the message, once in
//! each direction of a stream. Knows nothing of what a message says; libp2p's request-response
//! calls it, in the task of the connection.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};
use tokio::time::{Instant, timeout_at};

/// The one protocol that mirror nodes speak with each other. The number grows when streams change;
/// messages carry their own version.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/spegel/control/1");

pub(super) use spegel_core::MESSAGE_SIZE_MAX;

/// Bytes set aside before any of a message has arrived. The length is a claim of the peer: memory
/// follows what arrives, not what is claimed. Smaller and long messages are copied more often.
const READ_AHEAD_BYTES: usize = 4096;

/// A message on its way out, or one that arrived (which has no deadline).
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) message: Vec<u8>,
    /// When nobody waits for the reply any more; the stream ends then, so that a peer which never
    /// answers does not use up the connection's streams.
    pub(super) deadline: Option<Instant>,
}

/// One stream's codec: libp2p clones a fresh one for each.
#[derive(Clone, Debug, Default)]
pub(super) struct Codec {
    deadline: Option<Instant>,
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, stream: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        Ok(Request { message: read(stream).await?, deadline: None })
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, stream: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        until(self.deadline, read(stream)).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        stream: &mut T,
        request: Request,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        self.deadline = request.deadline;
        until(self.deadline, write(stream, &request.message)).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        stream: &mut T,
        reply: Vec<u8>,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(stream, &reply).await
    }
}

async fn until<T>(deadline: Option<Instant>, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match deadline {
        // A request that waited for its connection until its time was over is not sent at all.
        Some(deadline) if deadline.elapsed() > Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        Some(deadline) => {
            timeout_at(deadline, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        }
        None => work.await,
    }
}

async fn read<T: AsyncRead + Unpin>(stream: &mut T) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length);
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > MESSAGE_SIZE_MAX {
        let text = format!("message of {size} bytes is larger than {MESSAGE_SIZE_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut message = Vec::with_capacity(size.min(READ_AHEAD_BYTES));
    stream.take(u64::from(length)).read_to_end(&mut message).await?;
    if message.len() < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}

async fn write<T: AsyncWrite + Unpin>(stream: &mut T, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    if message.len() > MESSAGE_SIZE_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // One write, so that length, message and libp2p's negotiation leave in one frame.
    let mut bytes = Vec::with_capacity(4 + message.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};

    use super::*;

    fn read_bytes(bytes: &[u8]) -> io::Result<Vec<u8>> {
        block_on(read(&mut Cursor::new(bytes)))
    }

    #[test]
    fn messages_of_every_size_up_to_the_bound_round_trip() {
        for size in [0, 1, READ_AHEAD_BYTES, READ_AHEAD_BYTES + 1, MESSAGE_SIZE_MAX] {
            let message = vec![7; size];
            let mut wire = Cursor::new(Vec::new());
            block_on(write(&mut wire, &message)).unwrap();
            assert_eq!(read_bytes(&wire.into_inner()).unwrap(), message);
        }
    }

    #[test]
    fn longer_messages_are_refused_both_ways_before_any_memory_is_used() {
        let mut wire = Cursor::new(Vec::new());
        assert!(block_on(write(&mut wire, &vec![0; MESSAGE_SIZE_MAX + 1])).is_err());
        assert!(wire.into_inner().is_empty());
        for length in [u32::try_from(MESSAGE_SIZE_MAX).unwrap() + 1, u32::MAX] {
            assert_eq!(read_bytes(&length.to_be_bytes()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn cut_messages_are_errors() {
        for bytes in [&b""[..], b"\0\0\0", b"\0\0\0\x02", b"\0\0\0\x02a"] {
            assert_eq!(read_bytes(bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn bytes_after_the_message_are_left_alone() {
        assert_eq!(read_bytes(b"\0\0\0\x01ab").unwrap(), b"a");
    }
}
