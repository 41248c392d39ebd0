//! Whoever starts the program wrongly gets exit status 1 and one line that says what is wrong where, and
//! nothing is changed.
#![allow(clippy::disallowed_methods, reason = "real parts run on the real clock; nothing here is simulated")]
#![allow(clippy::print_stdout, reason = "what an operator reads is worth reading when a test passes too")]

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use spegel_tests::{Process, spegel_binary};
use tempfile::TempDir;

/// Nothing here waits for anything: a program that still runs has accepted what is wrong.
const END_MAX: Duration = Duration::from_secs(5);
/// A line on a terminal or in `kubectl logs`; longer and the point is lost.
const LINE_CHARS_MAX: usize = 700;

/// A directory with a content store in which the mirror would start.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("/tmp is writable");
        fs::create_dir_all(dir.path().join("content/blobs/sha256")).expect("the directory is ours");
        fs::create_dir_all(dir.path().join("content/ingest")).expect("the directory is ours");
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Flags of a mirror that starts, with some replaced or added.
    fn mirror(&self, changed: &[&str]) -> Vec<String> {
        let mut flags = vec![
            "--bootstrap-kind=dns".to_owned(),
            "--dns-bootstrap-domain=localhost".to_owned(),
            format!("--containerd-content-path={}", self.path("content").display()),
            format!("--containerd-sock={}", self.path("none.sock").display()),
            "--registry-addr=127.0.0.1:0".to_owned(),
            "--router-addr=127.0.0.1:0".to_owned(),
            "--metrics-addr=127.0.0.1:0".to_owned(),
        ];
        for change in changed.iter().filter(|change| change.starts_with("--")) {
            let name = change.split('=').next().expect("a split has a first part");
            flags.retain(|flag| flag.split('=').next() != Some(name));
        }
        let changed = changed.iter().map(|flag| (*flag).to_owned());
        ["registry".to_owned()].into_iter().chain(flags).chain(changed).collect()
    }

    fn refused(&self, args: &[String], says: &[&str]) {
        refused(self.0.path(), Command::new(spegel_binary()).args(args), says);
    }

    fn mirror_refused(&self, changed: &[&str], says: &[&str]) {
        self.refused(&self.mirror(changed), says);
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn refused(dir: &Path, command: &mut Command, says: &[&str]) {
    let errors = dir.join("stderr");
    let output = File::create(&errors).expect("the directory is ours");
    let spoken = format!("{command:?}");
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .spawn()
        .expect("the binary starts");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            break status;
        }
        if start.elapsed() > END_MAX {
            let _gone = child.kill();
            let _status = child.wait();
            panic!("{spoken} was accepted");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = fs::read_to_string(&errors).expect("the file is ours");
    println!("{}", text.trim_end());
    assert_eq!(status.code(), Some(1), "{spoken}: {text}");
    assert_eq!(text.lines().count(), 1, "{spoken}: one line, not\n{text}");
    assert!(text.chars().count() <= LINE_CHARS_MAX, "{spoken}: too long: {text}");
    assert!(!text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "{spoken}: {text}");
    // What a JSON line quotes is escaped once more.
    let plain = serde_json::from_str::<serde_json::Value>(&text)
        .map_or_else(|_| text.clone(), |line| line["error"].as_str().unwrap_or_default().to_owned());
    for word in says {
        assert!(plain.contains(word), "{spoken} does not say {word:?}: {plain}");
    }
}

#[test]
fn unknown_command_or_flag_is_named() {
    let place = Place::new();
    place.refused(&[], &["no command was given", "registry", "--help"]);
    place.refused(&words("nonsense"), &["nonsense", "--help"]);
    place.mirror_refused(&["--nonsense"], &["--nonsense", "--help"]);
    place.mirror_refused(&["surplus"], &["surplus"]);
}

#[test]
fn value_of_the_wrong_type_is_named_with_its_flag() {
    let place = Place::new();
    for (flag, value) in [
        ("--registry-addr", "5000"),
        ("--metrics-addr", ":99999"),
        ("--router-addr", "foo:1"),
        ("--http-bootstrap-addr", "nonsense"),
        ("--mirror-resolve-timeout", "soon"),
        ("--mirror-resolve-timeout", "-1s"),
        ("--mirror-resolve-retries", "-1"),
        ("--mirror-resolve-retries", "99999999999"),
        ("--debug-web-enabled", "maybe"),
        ("--log-level", "LOUD"),
    ] {
        place.mirror_refused(&[&format!("{flag}={value}")], &[flag, value]);
    }
    for (command, flag, value) in [
        ("configuration", "--resolve-tags", "maybe"),
        ("configuration", "--prepend-existing", "maybe"),
        ("cleanup", "--addr", "nonsense"),
        ("cleanup-wait --probe-endpoint=a:1", "--threshold", "x"),
        ("cleanup-wait --probe-endpoint=a:1", "--period", "x"),
        ("cleanup-wait", "--probe-endpoint", "host"),
        ("cleanup-wait", "--probe-endpoint", "host:0"),
        ("version", "--format", "xml"),
    ] {
        place.refused(&words(&format!("{command} {flag}={value}")), &[flag, value]);
    }
}

#[test]
fn value_in_the_environment_is_checked_like_a_flag() {
    let place = Place::new();
    let mut command = Command::new(spegel_binary());
    let flags = place.mirror(&[]).into_iter().filter(|flag| !flag.starts_with("--registry-addr"));
    refused(place.0.path(), command.args(flags).env("REGISTRY_ADDR", "5000"), &["--registry-addr", "5000"]);
    let mut command = Command::new(spegel_binary());
    let flags = place.mirror(&[]);
    refused(place.0.path(), command.args(flags).env("REGISTRY_FILTERS", "a,("), &["--registry-filters", "("]);
}

#[test]
fn bootstrap_without_its_kind_or_companion_is_explained() {
    let place = Place::new();
    place.refused(&words("registry"), &["--bootstrap-kind", "dns, http or static"]);
    place.mirror_refused(&["--bootstrap-kind=gossip"], &["gossip", "dns, http or static"]);
    place.mirror_refused(&["--dns-bootstrap-domain="], &["--dns-bootstrap-domain"]);
    place.mirror_refused(&["--dns-bootstrap-domain=a:5001"], &["--dns-bootstrap-domain", "a:5001"]);
    place.mirror_refused(&["--bootstrap-kind=http"], &["--http-bootstrap-url"]);
    place.mirror_refused(
        &["--bootstrap-kind=http", "--http-bootstrap-url=ftp://x"],
        &["--http-bootstrap-url", "ftp://x"],
    );
    place.mirror_refused(&["--bootstrap-kind=static"], &["--static-bootstrap-peers"]);
    place.mirror_refused(
        &["--bootstrap-kind=static", "--static-bootstrap-peers=x"],
        &["--static-bootstrap-peers", "\"x\"", "/ip4/"],
    );
}

#[test]
fn filter_that_makes_no_sense_is_quoted() {
    let place = Place::new();
    place.mirror_refused(&["--registry-filters", "("], &["--registry-filters", "\"(\"", "unclosed group"]);
    place.mirror_refused(&["--registry-filters=a{1,2000000}"], &["a{1,2000000}", "size limit"]);
    place.mirror_refused(
        &["--mirrored-registries=docker.io"],
        &["--mirrored-registries", "docker.io", "https://"],
    );
    place.mirror_refused(&["--mirrored-registries=https://docker.io/v2"], &["https://docker.io/v2", "path"]);
}

#[test]
fn identity_that_cannot_be_read_is_left_alone() {
    let place = Place::new();
    let (data, key) = (place.path("data"), place.path("data/private.key"));
    fs::create_dir(&data).expect("the directory is ours");
    let flag = format!("--data-dir={}", data.display());
    for garbage in ["garbage", "", "-----BEGIN PRIVATE KEY-----\n####\n-----END PRIVATE KEY-----\n"] {
        fs::write(&key, garbage).expect("the directory is ours");
        place.mirror_refused(&[&flag], &["private.key", "delete it"]);
        assert_eq!(fs::read_to_string(&key).expect("the file is still there"), garbage);
    }
    // A directory stands for what root, too, cannot read.
    fs::remove_file(&key).and_then(|()| fs::create_dir(&key)).expect("the directory is ours");
    place.mirror_refused(&[&flag], &["private.key", "--data-dir"]);
    let file = place.path("file");
    fs::write(&file, "").expect("the directory is ours");
    place.mirror_refused(&[&format!("--data-dir={}", file.display())], &["file", "--data-dir"]);
}

#[test]
fn content_path_without_a_content_store_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).expect("the directory is ours");
    fs::write(place.path("file"), "").expect("the directory is ours");
    for name in ["empty", "nowhere", "file"] {
        let flag = format!("--containerd-content-path={}", place.path(name).display());
        place.mirror_refused(&[&flag], &[name, "--containerd-content-path"]);
    }
}

#[test]
fn port_in_use_is_named_with_its_flag() {
    let place = Place::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports");
    let addr = taken.local_addr().expect("it is bound").to_string();
    for flag in ["--registry-addr", "--metrics-addr", "--router-addr", "--http-bootstrap-addr"] {
        place.mirror_refused(&[&format!("{flag}={addr}")], &[flag, &addr, "another"]);
    }
    // An address of documentation, which no host has.
    place.mirror_refused(&["--registry-addr=192.0.2.1:5000"], &["--registry-addr", "192.0.2.1:5000"]);
    let certs = format!("--containerd-registry-config-path={}", place.path("certs").display());
    place.refused(&["cleanup".to_owned(), format!("--addr={addr}"), certs], &["--addr", &addr, "another"]);
}

#[test]
fn configuration_that_cannot_be_merged_changes_nothing() {
    let place = Place::new();
    let certs = place.path("certs");
    fs::create_dir_all(certs.join("docker.io")).expect("the directory is ours");
    let broken = "server = 'x'\n[host.'http://a']\ncapabilities = = []\n";
    fs::write(certs.join("docker.io/hosts.toml"), broken).expect("the directory is ours");
    let path = format!("--containerd-registry-config-path={}", certs.display());
    let configuration = |rest: &[&str]| -> Vec<String> {
        ["configuration", &path].into_iter().chain(rest.iter().copied()).map(str::to_owned).collect()
    };
    place.refused(
        &configuration(&[
            "--mirror-targets=http://a",
            "--mirrored-registries=https://docker.io",
            "--prepend-existing",
        ]),
        &["docker.io/hosts.toml:3", "--prepend-existing", "Nothing was changed"],
    );
    place.refused(&configuration(&[]), &["--mirror-targets", "http://"]);
    place.refused(&configuration(&["--mirror-targets"]), &["--mirror-targets", "http://"]);
    place
        .refused(&configuration(&["--mirror-targets=nonsense"]), &["--mirror-targets", "nonsense", "scheme"]);
    place.refused(
        &configuration(&["--mirror-targets=http://a", "--mirrored-registries", "x", "https://y/z"]),
        &["--mirrored-registries", "\"x\"", "\"https://y/z\""],
    );
    let text = fs::read_to_string(certs.join("docker.io/hosts.toml")).expect("the file is still there");
    assert_eq!(text, broken);
    assert_eq!(fs::read_dir(&certs).expect("a directory").count(), 1, "nothing else is there");
}

#[test]
fn configuration_directory_that_cannot_be_written_is_named() {
    let place = Place::new();
    // Root writes everywhere but here.
    for (dir, advice) in [("/proc/certs.d", "--containerd-registry-config-path"), ("/sys/kernel", "writable")]
    {
        let args = format!("configuration --mirror-targets=http://a --containerd-registry-config-path={dir}");
        place.refused(&words(&args), &[dir, advice]);
    }
}

#[test]
fn required_flags_are_named() {
    let place = Place::new();
    place.refused(&words("cleanup"), &["--addr"]);
    place.refused(&words("cleanup-wait"), &["--probe-endpoint"]);
}

#[test]
fn help_and_version_are_no_errors() {
    for args in ["--help", "registry --help", "version", "--version", "version --format=json"] {
        let mut command = Command::new(spegel_binary());
        let output = command.args(words(args)).output().expect("the binary starts");
        assert!(output.status.success(), "{args}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args}");
    }
}

#[test]
fn mirror_of_these_tests_starts_when_nothing_is_wrong() {
    let place = Place::new();
    let mut command = Command::new(spegel_binary());
    command.args(place.mirror(&[]));
    let log = place.path("log");
    let mut process = Process::spawn("spegel", command, &log);
    let running = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.contains("mirror is running").then_some(()).ok_or(text)
    };
    spegel_tests::wait_for("it runs", END_MAX, running).expect("the flags are right");
    assert!(process.exited().is_none());
}
