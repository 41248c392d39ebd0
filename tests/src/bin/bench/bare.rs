//! The least that mirroring can cost: a loop that splices one socket to another by way of a pipe, and does
//! nothing else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::pipe2;
use spegel_tests::Node;

const PORT: u16 = 8081;
/// What the mirror's own pipes hold.
const PIPE_BYTES: i32 = 1 << 20;

/// A relay on a thread of this process, in a node's namespace, that ends with the process.
#[derive(Debug)]
pub(crate) struct Bare {
    address: SocketAddr,
    cpu_nanos: Arc<AtomicU64>,
}

impl Bare {
    /// Relays everything that connects to the node to `server`.
    pub(crate) fn start(node: &Node, server: SocketAddr) -> Result<Self, String> {
        let address = SocketAddr::new(node.address(), PORT);
        let listener =
            node.netns().enter(|| TcpListener::bind(address)).map_err(|error| error.to_string())?;
        let cpu_nanos = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&cpu_nanos);
        // Threads inherit the namespace of the one that starts them.
        node.netns().enter(|| {
            thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    if let Err(error) = relay(client, server) {
                        eprintln!("the bare relay failed: {error}");
                    }
                    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
                    let nanos = now.unwrap_or_default().as_nanos();
                    counted.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Release);
                }
            })
        });
        Ok(Self { address, cpu_nanos })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Processor time up to the end of the last connection.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        // The client may see the end of the connection a little before the relay does.
        thread::sleep(Duration::from_millis(20));
        Duration::from_nanos(self.cpu_nanos.load(Ordering::Acquire)).as_secs_f64()
    }
}

fn relay(mut client: TcpStream, server: SocketAddr) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut request = [0; 4096];
    let length = client.read(&mut request).map_err(text)?;
    let mut server = TcpStream::connect(server).map_err(text)?;
    server.write_all(&request[..length]).map_err(text)?;
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|error| error.to_string())?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).map_err(|error| error.to_string())?;
    let flags = SpliceFFlags::SPLICE_F_MOVE;
    loop {
        let most = usize::try_from(PIPE_BYTES).unwrap_or_default();
        let mut held = splice(&server, None, &write, None, most, flags).map_err(|error| error.to_string())?;
        if held == 0 {
            return Ok(());
        }
        while held > 0 {
            held -= splice(&read, None, &client, None, held, flags).map_err(|error| error.to_string())?;
        }
    }
}
