//! A client that costs next to nothing, so that the figures are those of the server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use spegel_tests::Node;

const PATIENCE: Duration = Duration::from_secs(60);
/// What is thrown away by one system call.
const DISCARD_BYTES: usize = 1 << 20;
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What is asked for, and where.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    address: SocketAddr,
    request: String,
}

impl Target {
    pub(crate) fn new(address: SocketAddr, path: &str) -> Self {
        Self { address, request: format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n") }
    }

    /// The same, asked of another.
    pub(crate) fn at(&self, address: SocketAddr) -> Self {
        Self { address, request: self.request.clone() }
    }

    /// Asked as one node asks another, so that nothing but local content can be the answer.
    pub(crate) fn of_local_content(mut self) -> Self {
        self.request = self.request.replace("\r\n\r\n", "\r\nX-Spegel-Mirrored: true\r\n\r\n");
        self
    }

    /// Without the first byte: a mirror that delivers a whole layer again and again, which its containerd then
    /// never has, takes its peer for a liar.
    pub(crate) fn all_but_a_byte(mut self) -> Self {
        self.request = self.request.replace("\r\n\r\n", "\r\nRange: bytes=1-\r\n\r\n");
        self
    }

    /// On a connection that the server closes: for a relay that knows no other end.
    pub(crate) fn closing(mut self) -> Self {
        self.request = self.request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        self
    }

    /// Connects from a node and sends the request.
    pub(crate) fn ask(&self, from: &Node) -> Result<TcpStream, String> {
        let connected = from.netns().enter(|| TcpStream::connect(self.address));
        let mut stream = connected.map_err(|error| format!("{}: {error}", self.address))?;
        let sent = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.write_all(self.request.as_bytes()));
        sent.map_err(|error| format!("{}: {error}", self.address))?;
        Ok(stream)
    }

    /// Downloads it and gives the length of its body; the bytes stay in the kernel.
    pub(crate) fn download(&self, from: &Node) -> Result<u64, String> {
        let mut stream = self.ask(from)?;
        let (length, there) = read_head(&mut stream)?;
        discard(&stream, length - there)?;
        Ok(length)
    }

    /// Downloads it so many times, one after the other on one connection.
    pub(crate) fn ask_often(&self, from: &Node, times: u32) -> Result<(), String> {
        let mut stream = self.ask(from)?;
        for n in 1..=times {
            let (length, there) = read_head(&mut stream)?;
            discard(&stream, length - there)?;
            if n < times {
                stream.write_all(self.request.as_bytes()).map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

/// Reads the head of an answer: the length of the body, and how much of that is read already.
pub(crate) fn read_head(stream: &mut TcpStream) -> Result<(u64, u64), String> {
    let mut bytes = [0; HEAD_BYTES_MAX];
    let mut filled = 0;
    let end = loop {
        if let Some(end) = bytes[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err("closed before an answer".to_owned()),
            Ok(read) => filled += read,
            Err(error) => return Err(error.to_string()),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    if !head.starts_with("http/1.1 20") {
        return Err(format!("not what was asked for: {head}"));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    Ok((length.ok_or("no length")?, (filled - end) as u64))
}

/// Takes so many bytes off the socket without copying them.
pub(crate) fn discard(stream: &TcpStream, length: u64) -> Result<(), String> {
    let mut buffer = vec![0; DISCARD_BYTES];
    let mut left = length;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(DISCARD_BYTES);
        match recv(stream.as_raw_fd(), &mut buffer[..most], MsgFlags::MSG_TRUNC) {
            Ok(0) => return Err(format!("{left} bytes are missing")),
            Ok(read) => left -= read as u64,
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
