//! A containerd of the test's own: root, state and socket in a temporary directory.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::sleep;

/// How often, and how many times, a containerd that was started is looked at: half a minute.
const START_POLL_INTERVAL: Duration = Duration::from_millis(50);
const START_POLLS_MAX: u32 = 600;

pub(crate) struct Daemon {
    dir: TempDir,
    process: Option<Child>,
}

impl Daemon {
    pub(crate) fn new() -> Self {
        let daemon = Self { dir: TempDir::new().unwrap(), process: None };
        let dir = daemon.dir().display();
        let config = format!(
            r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = "{dir}/containerd.sock"
"#
        );
        fs::write(daemon.dir().join("config.toml"), config).unwrap();
        daemon
    }

    pub(crate) async fn started() -> Self {
        let mut daemon = Self::new();
        daemon.start().await;
        daemon
    }

    pub(crate) async fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir().join("log")).unwrap();
        let binary = containerd();
        let process = Command::new(&binary)
            .arg("--config")
            .arg(self.dir().join("config.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "containerd cannot be started from {}: {error}. These tests need a real one: \
                     apt-get install containerd, or set SPEGEL_CONTAINERD to its path",
                    binary.display()
                )
            });
        self.process = Some(process);
        for _ in 0..START_POLLS_MAX {
            let version = self.ctr_command("default", &["version"]).output();
            if version.expect("ctr is installed beside containerd").status.success() {
                return;
            }
            sleep(START_POLL_INTERVAL).await;
        }
        let log = fs::read_to_string(self.dir().join("log")).unwrap_or_default();
        panic!("containerd did not start; its log:\n{log}");
    }

    /// Kills containerd. Without containers it has no child processes and no mounts.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Lets containerd's sockets live on without anybody behind them.
    pub(crate) fn freeze(&self) {
        let pid = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir().join("containerd.sock")
    }

    pub(crate) fn content_path(&self) -> PathBuf {
        self.dir().join("root/io.containerd.content.v1.content")
    }

    pub(crate) fn ctr(&self, namespace: &str, arguments: &[&str]) {
        self.ctr_with(namespace, arguments, b"");
    }

    /// Runs `ctr` with `input` on its standard input.
    pub(crate) fn ctr_with(&self, namespace: &str, arguments: &[&str], input: &[u8]) {
        let mut command = self.ctr_command(namespace, arguments);
        let mut process = command.stdin(Stdio::piped()).spawn().unwrap();
        process.stdin.take().unwrap().write_all(input).unwrap();
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Imports an image archive as it is, without unpacking it.
    pub(crate) fn import(&self, namespace: &str, archive: &Path) {
        self.ctr(namespace, &["images", "import", "--no-unpack", archive.to_str().unwrap()]);
    }

    fn ctr_command(&self, namespace: &str, arguments: &[&str]) -> Command {
        let beside = containerd().with_file_name("ctr");
        let mut command = Command::new(beside);
        command.arg("--address").arg(self.socket()).args(["--namespace", namespace]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

fn containerd() -> PathBuf {
    env::var_os("SPEGEL_CONTAINERD").map_or_else(|| PathBuf::from("/usr/bin/containerd"), PathBuf::from)
}
