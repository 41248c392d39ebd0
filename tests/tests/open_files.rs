//! A mirror takes as many connections as the system lets it, and outlives it when there are more.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use spegel_tests::{HttpClient, Process, spegel_binary, wait_for};

const SOFT: u32 = 64;
const HARD: u32 = 200;
const CONNECTIONS: usize = 300;
const PATIENCE: Duration = Duration::from_secs(20);

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    listener.local_addr().expect("it is bound")
}

fn answers(address: SocketAddr) -> Result<(), String> {
    match HttpClient::connect(address, PATIENCE)?.get("/livez", &[])?.status {
        200 => Ok(()),
        status => Err(format!("{status}")),
    }
}

#[test]
fn limit_of_open_files_is_raised_and_outlived() {
    let dir = tempfile::tempdir().expect("/tmp is writable");
    let content = dir.path().join("content");
    fs::create_dir_all(content.join("blobs")).expect("the directory is ours");
    let address = free_address();
    let script = format!(
        "ulimit -Sn {SOFT}; ulimit -Hn {HARD}; exec {} registry --bootstrap-kind=dns \
         --dns-bootstrap-domain=localhost --containerd-content-path={} --containerd-sock={} \
         --registry-addr={address} --router-addr=127.0.0.1:0 --metrics-addr=127.0.0.1:0",
        spegel_binary().display(),
        content.display(),
        dir.path().join("none.sock").display(),
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let mirror = Process::spawn("spegel", command, &dir.path().join("log"));
    wait_for("the mirror answers", PATIENCE, || answers(address)).expect("it starts");
    let limits = fs::read_to_string(format!("/proc/{}/limits", mirror.pid())).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let soft = line.split_whitespace().nth(3).unwrap_or_default();
    assert_eq!(soft, HARD.to_string(), "{line}");

    let connect = |_| TcpStream::connect(address).expect("the kernel queues it");
    let idle: Vec<TcpStream> = (0..CONNECTIONS).map(connect).collect();
    let open = fs::read_dir(format!("/proc/{}/fd", mirror.pid())).expect("it runs").count();
    assert!(open > SOFT as usize, "{open} are open, no more than before it was raised");
    drop(idle);
    wait_for("the mirror answers again", PATIENCE, || answers(address)).expect("it outlives its limit");
}
