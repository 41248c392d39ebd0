//! Every input that was worth keeping still passes, on stable, without a fuzzer.

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// More and the ordinary tests become slow, and nobody can say what each file is for.
const FILES_MAX: usize = 100;

fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let files: BTreeMap<_, _> = fs::read_dir(&dir)
        .expect("a corpus for each target")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            (path.display().to_string(), fs::read(&path).expect("a file"))
        })
        .collect();
    assert!((1..=FILES_MAX).contains(&files.len()), "{}: {} files", dir.display(), files.len());
    files
}

fn replay<T>(target: &str, body: impl Fn(&[u8]) -> T) {
    for (name, data) in corpus(target) {
        let outcome = catch_unwind(AssertUnwindSafe(|| body(&data)));
        assert!(outcome.is_ok(), "{name} fails, see above");
    }
}

#[test]
fn manifest() {
    replay("manifest", spegel_fuzz::manifest);
}

#[test]
fn reference() {
    replay("reference", spegel_fuzz::reference);
}

#[test]
fn range_header() {
    replay("range_header", spegel_fuzz::range_header);
}

#[test]
fn control_message() {
    replay("control_message", spegel_fuzz::control_message);
}

#[test]
fn hosts_toml() {
    replay("hosts_toml", spegel_fuzz::hosts_toml);
}

#[test]
fn http_request() {
    replay("http_request", spegel_fuzz::http_request);
}

#[test]
fn http_answer() {
    replay("http_answer", spegel_fuzz::http_answer);
}

#[test]
fn node_inputs() {
    replay("node_inputs", |data| {
        let fingerprint = spegel_fuzz::node_inputs_fingerprint(data);
        assert_eq!(fingerprint, spegel_fuzz::node_inputs_fingerprint(data), "equal inputs, equal outputs");
    });
}
