//! Where connections come from: the kernel in production, turmoil in the simulator.

use std::{any::Any, future::Future, io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::zero_copy::Kernel;

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sized + 'static {
    /// The kernel's socket, where the stream is one and the kernel may move its bytes.
    fn socket(&self) -> Option<&TcpStream> {
        // By its type, because turmoil's streams can have no implementation of their own: neither
        // they nor this trait are the simulator's.
        (self as &dyn Any).downcast_ref()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// Accepts connections.
pub trait Listener: Send + 'static {
    /// What an accepted connection is.
    type Stream: Stream;

    /// Waits for the next connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

/// Opens connections.
pub trait Dialer: Clone + Send + Sync + 'static {
    /// What an opened connection is.
    type Stream: Stream;

    /// Connects to `addr`. Has no timeout of its own: the caller drops the future.
    fn dial(&self, addr: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = Self::accept(self).await?;
        // Answers are written head first, body next: without this a small body waits for the
        // client's delayed acknowledgement of the head.
        stream.set_nodelay(true)?;
        Ok((stream, from))
    }
}

/// Dials over the kernel's TCP.
#[derive(Clone, Debug, Default)]
pub struct TcpDialer {
    kernel: Kernel,
}

impl TcpDialer {
    /// Connections that hold no more than what `kernel` allows beside those that are served.
    #[must_use]
    pub const fn new(kernel: Kernel) -> Self {
        Self { kernel }
    }
}

impl Dialer for TcpDialer {
    type Stream = TcpStream;

    async fn dial(&self, addr: SocketAddr) -> io::Result<TcpStream> {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(received_max) = self.kernel.received_max() {
            // Before it connects, or the first answer may be as large as the kernel likes.
            socket.set_recv_buffer_size(u32::try_from(received_max).unwrap_or(u32::MAX))?;
        }
        let stream = socket.connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
