//! One child process: its log, its signals, what it costs.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// `/proc/PID/stat` counts in these (`USER_HZ`, fixed on Linux for every architecture that matters).
const TICKS_PER_SECOND: f64 = 100.0;

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    ///
    /// # Panics
    /// If it can't be started.
    #[must_use]
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("the log directory exists");
        let errors = output.try_clone().expect("a file can be duplicated");
        let child = command
            // Ctrl-C at a terminal goes to the whole group; who dies when is for this program to say.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("can't start {name}: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal; a process that is gone takes none.
    pub fn signal(&self, signal: Signal) {
        let _gone = signal::kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// What the process ended with, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours to wait for")
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If it still runs after `within`.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus, String> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            if start.elapsed() > within {
                return Err(format!("{} still runs after {within:?}; see {}", self.name, self.log.display()));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.exited().is_none() {
            self.signal(Signal::SIGKILL);
            let _status = self.child.wait();
        }
    }

    /// User and system time so far.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // The command's name is in parentheses and may hold spaces; utime and stime are the 12th and 13th after.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = |n| rest.split_whitespace().nth(n).and_then(|t: &str| t.parse::<u32>().ok()).unwrap_or(0);
        f64::from(ticks(11) + ticks(12)) / TICKS_PER_SECOND
    }

    /// Resident memory.
    #[must_use]
    pub fn rss_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|kib| kib.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// The last `lines` of the log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs to the end and gives what was printed.
///
/// # Errors
/// If it can't be started or fails, with what it said.
pub(crate) fn run(mut command: Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let signal = output.status.signal().map(|s| format!(" (signal {s})")).unwrap_or_default();
    Err(format!("{command:?} failed{signal}: {}", said.trim()))
}
