//! A blocking HTTP/1.1 client small enough to time: one connection, kept open, and it tells how a body ended.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longer than any promised figure, so that a test fails by its own assertion and not by this.
const IO_TIMEOUT: Duration = Duration::from_secs(60);
/// No test reads a body that does not fit in memory.
const BODY_BYTES_MAX: u64 = 1 << 30;

/// How the body ended; containerd survives `Short` and not `Reset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// As long as announced.
    Complete,
    /// Closed early by FIN.
    Short,
    /// Closed by RST.
    Reset,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub end: BodyEnd,
    /// From the request's last byte to the answer's headers.
    pub to_headers: Duration,
    /// From the request's last byte to the end of the body.
    pub elapsed: Duration,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header, or an empty string.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// An open connection.
#[derive(Debug)]
pub struct HttpClient {
    stream: BufReader<TcpStream>,
}

impl HttpClient {
    /// Connects from whatever namespace the calling thread is in.
    ///
    /// # Errors
    /// If nothing accepts within `timeout`.
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, String> {
        let stream = TcpStream::connect_timeout(&address, timeout)
            .map_err(|error| format!("connect to {address}: {error}"))?;
        let configured = stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(IO_TIMEOUT)))
            .and_then(|()| stream.set_write_timeout(Some(IO_TIMEOUT)));
        configured.map_err(|error| format!("{address}: {error}"))?;
        Ok(Self { stream: BufReader::with_capacity(64 * 1024, stream) })
    }

    /// GET; the connection can be used again if the body was complete.
    ///
    /// # Errors
    /// If no complete headers came back.
    pub fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        self.request("GET", path, headers)
    }

    /// Any method without a body.
    ///
    /// # Errors
    /// If no complete headers came back.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        self.send(method, path, headers)?;
        self.receive(method == "HEAD")
    }

    /// Sends a request without reading the answer: for a client that is slow, or goes away.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<(), String> {
        let mut request = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request.push_str("Host: mirror\r\n");
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .map_err(|error| format!("{method} {path}: {error}"))
    }

    /// Reads the answer to a request that was [`Self::send`].
    ///
    /// # Errors
    /// If no complete headers came back.
    pub fn receive(&mut self, bodiless: bool) -> Result<Answer, String> {
        let start = Instant::now();
        let (status, headers) = self.read_head()?;
        let to_headers = start.elapsed();
        let length = headers.get("content-length").and_then(|length| length.parse().ok());
        let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding.contains("chunked"));
        let (body, end) = if bodiless || status == 204 || status == 304 {
            (Vec::new(), BodyEnd::Complete)
        } else if chunked {
            self.read_chunks()
        } else {
            self.read_body(length)
        };
        Ok(Answer { status, headers, body, end, to_headers, elapsed: start.elapsed() })
    }

    /// Reads at most `bytes` of whatever arrives: how a slow reader reads.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn read_some(&mut self, bytes: usize) -> Result<usize, String> {
        let mut buffer = vec![0; bytes];
        self.stream.read(&mut buffer).map_err(|error| error.to_string())
    }

    fn read_line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err("closed before an answer".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(format!("reading the answer's head: {error}")),
        }
    }

    fn read_head(&mut self) -> Result<(u16, BTreeMap<String, String>), String> {
        let first = self.read_line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| format!("not an HTTP answer: {first}"))?;
        let mut headers = BTreeMap::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| format!("not a header: {line}"))?;
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }

    fn read_body(&mut self, length: Option<u64>) -> (Vec<u8>, BodyEnd) {
        let mut body = Vec::new();
        let outcome = self.stream.by_ref().take(length.unwrap_or(BODY_BYTES_MAX)).read_to_end(&mut body);
        let end = match outcome {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => BodyEnd::Reset,
            Err(_) => BodyEnd::Short,
            Ok(_) if length.is_none_or(|length| body.len() as u64 == length) => BodyEnd::Complete,
            Ok(_) => BodyEnd::Short,
        };
        (body, end)
    }

    fn read_chunks(&mut self) -> (Vec<u8>, BodyEnd) {
        let mut body = Vec::new();
        loop {
            let Ok(line) = self.read_line() else { return (body, BodyEnd::Short) };
            let Ok(size) = u64::from_str_radix(line.split(';').next().unwrap_or_default(), 16) else {
                return (body, BodyEnd::Short);
            };
            let (chunk, end) = self.read_body(Some(size));
            body.extend(chunk);
            if end != BodyEnd::Complete {
                return (body, end);
            }
            let _line_end = self.read_line();
            if size == 0 {
                return (body, BodyEnd::Complete);
            }
        }
    }
}
