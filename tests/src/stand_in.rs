//! A program of the test's own that answers in a namespace: a liar, a registry in trouble, something that is
//! no mirror at all.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::netns::NetNs;

/// How long a client may take to send a request, or to take the answer to one.
const PATIENCE: Duration = Duration::from_secs(20);
/// No client of a test sends a longer head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What listens.
#[derive(Debug)]
pub struct StandIn {
    asked: Arc<AtomicU32>,
}

impl StandIn {
    /// Listens inside the namespace, and answers every connection on a thread of its own. Ends with the
    /// process: when the namespace is gone nobody connects any more.
    #[must_use]
    pub fn start(
        netns: &NetNs,
        address: SocketAddr,
        answer: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = netns.enter(|| TcpListener::bind(address)).expect("the address is free");
        let asked = Arc::new(AtomicU32::new(0));
        let (count, answer) = (asked.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let answer = answer.clone();
                thread::spawn(move || {
                    let timed = stream.set_read_timeout(Some(PATIENCE));
                    if timed.and_then(|()| stream.set_write_timeout(Some(PATIENCE))).is_ok() {
                        answer(stream);
                    }
                });
            }
        });
        Self { asked }
    }

    /// Connections so far.
    #[must_use]
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The head of an HTTP request, or nothing if the client goes away before its end.
#[must_use]
pub fn request_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(read) => head.extend_from_slice(&buffer[..read]),
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Answers a request with this status and no content, as an HTTP server in trouble; one for each connection, so
/// that [`StandIn::asked`] counts requests.
pub fn answer_status(stream: &mut TcpStream, status: &str) {
    if request_head(stream).is_some() {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let _gone_away = stream.write_all(answer.as_bytes());
    }
}

/// Says nothing until the client goes away or loses patience.
pub fn stay_silent(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while match stream.read(&mut buffer) {
        Ok(read) => read > 0,
        Err(error) => error.kind() == ErrorKind::Interrupted,
    } {}
}
