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

/// What is answered to each file, in order: status, length, and whether a body of that length follows.
/// `None` where that depends on how far the server had come.
fn http_answers_to(name: &str) -> Option<&'static [(u16, usize, bool)]> {
    const LONG: (u16, usize, bool) = (200, 400_000, true);
    const SHORT: (u16, usize, bool) = (200, 700, true);
    const PULLED: (u16, usize, bool) = (200, 300_000, true);
    /// The request that the target adds.
    const LIVE: (u16, usize, bool) = (200, 0, false);
    const NONSENSE: (u16, usize, bool) = (400, 0, false);
    Some(match name {
        "bare_newlines" | "blob_whole" | "expect_continue" => &[LONG, LIVE],
        "blobs_pipelined" => &[LONG, SHORT, (200, 400_000, false), (206, 1, true), LIVE],
        "body_with_get" | "chunked_body_with_get" | "upgrade" => &[LONG, SHORT, LIVE],
        "close_in_between" | "http_1_0" => &[LONG],
        "half_a_head" | "no_http" => &[NONSENSE],
        "http_2" => &[],
        "http_2_after_an_error" => return None,
        "length_and_coding" => &[(405, 96, true)],
        "many_headers" => &[(431, 0, false)],
        "nobody_has_it" => &[(404, 168, true), LONG, LIVE],
        "nonsense_after_a_pull" => &[PULLED, NONSENSE],
        "pulls_pipelined" => &[PULLED, (206, 299_993, true), (200, 300_000, false), LONG, PULLED, LIVE],
        "ranges" => {
            &[(206, 1, true), (206, 1, true), (206, 299_996, true), (416, 96, true), LONG, LONG, LIVE]
        }
        other => panic!("{other}: say here what is answered to it"),
    })
}

#[test]
fn http_request() {
    for (path, data) in corpus("http_request") {
        let name = Path::new(&path).file_name().and_then(|name| name.to_str()).expect("a name");
        let answers = spegel_fuzz::http_request_answers(&data);
        let found: Vec<_> = answers.iter().map(|it| (it.status, it.length, it.has_body)).collect();
        if let Some(expected) = http_answers_to(name) {
            assert_eq!(found, expected, "{name}");
        }
    }
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
