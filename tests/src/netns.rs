//! One network namespace: commands and sockets inside it, its link's shape and counters.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::process::run;

/// Bytes over a namespace's link since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkBytes {
    pub received: u64,
    pub sent: u64,
}

/// Kernel memory of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketBytes {
    /// Not read yet by the process.
    pub received: u64,
    /// Not acknowledged yet by the other side.
    pub to_send: u64,
    /// Set aside for more.
    pub reserved: u64,
}

impl SocketBytes {
    /// All of it.
    #[must_use]
    pub const fn all(self) -> u64 {
        self.received + self.to_send + self.reserved
    }
}

/// A network namespace that already exists; `sweep` removes it.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    handle: File,
}

impl NetNs {
    pub(crate) fn open(name: &str) -> Self {
        let path = format!("/run/netns/{name}");
        let handle = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self { name: name.to_owned(), handle }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace. Sockets it opens stay inside for their whole life, so
    /// they can be handed out.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("entering a namespace needs root");
            work()
        };
        let joined = thread::scope(|scope| scope.spawn(inside).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A command that will run inside; it sees `/etc/netns/NAME/hosts` as `/etc/hosts`. Its pid is the
    /// program's own (`ip netns exec` replaces itself).
    #[must_use]
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.into());
        command
    }

    /// The same for a program that runs containers: `ip netns exec` puts a `/sys` of the namespace over the
    /// machine's, where the control groups are.
    pub(crate) fn command_with_cgroups(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "nsenter"]).arg(format!("--net=/run/netns/{}", self.name));
        let files = format!("/etc/netns/{}", self.name);
        let script = format!(
            "for file in hosts resolv.conf; do mount --bind {files}/$file /etc/$file || exit 1; done; exec \"$0\" \"$@\""
        );
        command.args(["sh", "-c", &script]).arg(program.into());
        command
    }

    /// Runs a program inside to its end.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let mut command = self.command(program);
        command.args(args);
        run(command)
    }

    /// Limits what leaves through `link`; `None` lifts the limit.
    pub(crate) fn shape(&self, link: &str, mbit: Option<u32>) {
        let _none_yet = self.run("tc", &["qdisc", "del", "dev", link, "root"]);
        if let Some(mbit) = mbit {
            let rate = format!("{mbit}mbit");
            // The burst must hold a 64 KiB segment, or nothing passes at all.
            let shape = [
                "qdisc", "add", "dev", link, "root", "tbf", "rate", &rate, "burst", "128kb", "latency",
                "100ms",
            ];
            self.run("tc", &shape).expect("tbf is in the kernel");
        }
    }

    /// What passed the namespace's `eth0`.
    #[must_use]
    pub fn link_bytes(&self) -> LinkBytes {
        let table = self.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap_or_default();
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix("eth0:")).unwrap_or_default();
        let column = |n| line.split_whitespace().nth(n).and_then(|v: &str| v.parse().ok()).unwrap_or(0);
        LinkBytes { received: column(0), sent: column(8) }
    }

    /// A TCP counter of this namespace as `nstat` names it without the `Tcp` (`OutRsts`, `PassiveOpens`, …).
    /// `OutRsts` is how a connection that ended by RST is told from one that ended by FIN.
    #[must_use]
    pub fn tcp_counter(&self, name: &str) -> u64 {
        let table = self.enter(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap_or_default();
        let mut rows = table.lines().filter_map(|line| line.strip_prefix("Tcp:"));
        let names = rows.next().unwrap_or_default().split_whitespace();
        let values = rows.next().unwrap_or_default().split_whitespace();
        let value = names.zip(values).find(|(column, _)| *column == name).and_then(|(_, v)| v.parse().ok());
        value.unwrap_or_else(|| panic!("no counter Tcp{name}"))
    }

    /// What the TCP connections of this namespace hold of the kernel's memory.
    #[must_use]
    pub fn socket_bytes(&self) -> SocketBytes {
        let table = self.run("ss", &["-tmnH"]).unwrap_or_else(|error| panic!("{error}"));
        // skmem:(r0,rb131072,t0,tb87040,f0,w0,o0,bl0,d0): received, to be sent, reserved.
        let sum = |field: &str| {
            let of = |memory: &str| {
                memory.split(',').find_map(|part| part.strip_prefix(field)?.parse::<u64>().ok())
            };
            table.split("skmem:(").skip(1).filter_map(of).sum()
        };
        SocketBytes { received: sum("r"), to_send: sum("w"), reserved: sum("f") }
    }

    /// Loads an nftables ruleset.
    ///
    /// # Errors
    /// If nft refuses it.
    pub fn nft(&self, ruleset: &str) -> Result<(), String> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]);
        feed(command, ruleset)
    }
}

/// Applies a batch of `ip` commands, in `netns` if given.
pub(crate) fn ip_batch(netns: Option<&str>, batch: &str) {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]);
    if let Err(error) = feed(command, batch) {
        panic!("{error}\nwhile applying in {netns:?}:\n{batch}");
    }
}

fn feed(mut command: Command, input: &str) -> Result<(), String> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = piped.map_err(|error| format!("{command:?}: {error}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(input.as_bytes()).map_err(|error| format!("{command:?}: {error}"))?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// The same, going on after a failure: for removal, where a thing that is gone is what was wanted.
pub(crate) fn ip_batch_forced(batch: &str) {
    let mut command = Command::new("ip");
    command.args(["-force", "-batch", "-"]);
    let _gone = feed(command, batch);
}
