//! Removes what a cluster leaves on the machine: processes, mounts, namespaces, files.
//!
//! It works by name alone, so the same few lines serve `Drop`, Ctrl-C and the leftovers of a run that was
//! killed: everything is called `sp<pid>x<n>`, and a pid that is gone owns nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

const NETNS_DIR: &str = "/run/netns";
const NETNS_CONFIG_DIR: &str = "/etc/netns";
/// Below it a directory for each controller.
const CGROUP_DIR: &str = "/sys/fs/cgroup";

/// Where clusters keep their files: a short path, since a unix socket's may have 108 bytes.
pub(crate) fn base_dir() -> PathBuf {
    PathBuf::from("/tmp/spegel-tests")
}

pub(crate) fn cluster_name(n: u32) -> String {
    format!("sp{}x{n}", process::id())
}

/// Whose the name is, if it is one of ours.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("sp")?.split_once('x')?.0.parse().ok()
}

/// The cluster a name (`sp12x0` or `sp12x0-n1`) belongs to.
fn cluster_of(name: &str) -> &str {
    name.split_once('-').map_or(name, |(cluster, _)| cluster)
}

fn names_in(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Names of what clusters of this process have left: namespaces and directories. Empty when all is well.
#[must_use]
pub fn leftovers() -> Vec<String> {
    let all = [names_in(NETNS_DIR), names_in(NETNS_CONFIG_DIR), names_in(base_dir())].concat();
    all.into_iter().filter(|name| owner(name) == Some(process::id())).collect()
}

/// Removes the leftovers of test processes that died without cleaning up. Once in a process is enough.
pub(crate) fn sweep_dead() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        let dead = |name: &str| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        sweep(dead);
    });
}

/// Removes one cluster of this process.
pub(crate) fn sweep_cluster(cluster: &str) {
    sweep(|name| cluster_of(name) == cluster);
}

fn sweep(chosen: impl Fn(&str) -> bool) {
    let namespaces: Vec<String> = names_in(NETNS_DIR).into_iter().filter(|name| chosen(name)).collect();
    kill_inside(&namespaces);
    for name in names_in(base_dir()).into_iter().filter(|name| chosen(name)) {
        let dir = base_dir().join(name);
        unmount_below(&dir);
        let _gone = fs::remove_dir_all(&dir);
    }
    if !namespaces.is_empty() {
        let batch: String = namespaces.iter().map(|name| format!("netns delete {name}\n")).collect();
        crate::netns::ip_batch_forced(&batch);
    }
    for controller in names_in(CGROUP_DIR) {
        let groups = Path::new(CGROUP_DIR).join(controller);
        names_in(&groups)
            .iter()
            .filter(|name| chosen(name))
            .for_each(|name| remove_group(&groups.join(name)));
    }
    for name in names_in(NETNS_CONFIG_DIR).into_iter().filter(|name| chosen(name)) {
        let _gone = fs::remove_dir_all(Path::new(NETNS_CONFIG_DIR).join(name));
    }
}

/// A control group is removed as an empty directory would be, those below it first.
fn remove_group(group: &Path) {
    let below = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).for_each(|path| remove_group(&path));
    let _gone = fs::remove_dir(group);
}

/// Kills every process whose network namespace is one of these, and waits until they are gone.
fn kill_inside(namespaces: &[String]) {
    let inodes: BTreeSet<u64> = namespaces
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS_DIR).join(name)).ok())
        .map(|metadata| metadata.ino())
        .collect();
    for _ in 0..200 {
        let pids: Vec<i32> = names_in("/proc")
            .iter()
            .filter_map(|name| name.parse().ok())
            .filter(|pid| is_inside(*pid, &inodes))
            .collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A zombie's namespaces are gone already, so it does not count.
fn is_inside(pid: i32, inodes: &BTreeSet<u64>) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|metadata| inodes.contains(&metadata.ino()))
}

fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| Path::new(at).starts_with(dir));
    for at in below {
        let _gone = umount2(Path::new(at), MntFlags::MNT_DETACH);
    }
}

/// Removes every cluster of this process: for a program that is about to end without dropping them.
pub fn clean_up() {
    // Another thread may be starting things while this stops them, hence twice.
    for _ in 0..2 {
        sweep(|name| owner(name) == Some(process::id()));
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether a signal is ending this process: what fails from then on fails because of it.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Removes every cluster of this process on SIGINT or SIGTERM and exits. For programs; tests have `Drop`.
pub fn clean_up_on_signal() {
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
            let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        INTERRUPTED.store(true, Ordering::Relaxed);
        clean_up();
        process::exit(130);
    });
}
