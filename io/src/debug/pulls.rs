//! The part of the page that tells of the last pulls.

use std::time::Duration;

use spegel_core::{FetchError, PullKind, RefuseReason};

use super::{
    html::Html,
    page::{bytes, duration},
};
use crate::mirror::{Failure, PullEnd, PullRecord};

/// The last pulls, latest first.
pub(super) fn section(html: &mut Html, pulls: &[PullRecord], now_unix_ms: u64) {
    html.raw("<section aria-labelledby=\"pulls\">\n<h2 id=\"pulls\">Recent pulls</h2>\n");
    html.table(
        "What containerd asked for and this node did not have, latest first",
        ["What", "Asked", "From", "Bytes", "Took", "Retries", "End"],
        pulls.iter().map(|pull| row(pull, now_unix_ms)),
        "Nothing has been asked for that this node did not have.",
    );
    html.raw("</section>\n");
}

fn row(pull: &PullRecord, now_unix_ms: u64) -> [String; 7] {
    let age = Duration::from_millis(now_unix_ms.saturating_sub(pull.began_unix_ms));
    let kind = match pull.kind {
        PullKind::Manifest => "manifest",
        PullKind::Blob => "blob",
        PullKind::Head => "head",
    };
    [
        format!("{} ({kind})", pull.name),
        format!("{}\u{a0}ago", duration(age)),
        from(pull),
        bytes(pull.bytes()),
        duration(pull.took),
        pull.attempts_made.saturating_sub(1).to_string(),
        end(pull.end),
    ]
}

fn from(pull: &PullRecord) -> String {
    let told = pull.attempts.iter().map(|attempt| {
        let gave = if attempt.bytes > 0 { format!(" {}", bytes(attempt.bytes)) } else { String::new() };
        let failed = attempt.failure.map_or_else(String::new, |failure| format!(" ({})", why(failure)));
        format!("{}{gave}{failed}", attempt.addr)
    });
    let mut told: Vec<String> = told.collect();
    let more = pull.attempts_made as usize - pull.attempts.len();
    if more > 0 {
        told.push(format!("{more} more"));
    }
    if told.is_empty() { "nobody".to_owned() } else { told.join(", then ") }
}

fn why(failure: Failure) -> String {
    match failure {
        Failure::Fetch(FetchError::Connect) => "no connection".to_owned(),
        Failure::Fetch(FetchError::NotFound) => "does not have it".to_owned(),
        Failure::Fetch(FetchError::Refused { status }) => format!("refused with {status}"),
        Failure::Fetch(FetchError::Malformed) => "the answer made no sense".to_owned(),
        Failure::Fetch(FetchError::WrongContent) => "sent wrong content".to_owned(),
        Failure::Fetch(FetchError::Interrupted) => "the connection broke".to_owned(),
        Failure::Left(reason) => format!("left: {}", reason.replace('_', " ")),
    }
}

fn end(end: PullEnd) -> String {
    let reason = |reason: RefuseReason| reason.as_str().replace('_', " ");
    match end {
        PullEnd::Complete => "complete".to_owned(),
        PullEnd::Refused(why) => format!("left to the registry: {}", reason(why)),
        PullEnd::Truncated(why) => format!("the rest left to the registry: {}", reason(why)),
        PullEnd::Abandoned => "the client left".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use spegel_core::{AttemptId, PeerId};

    use super::*;

    #[test]
    fn pull_tells_from_whom_how_much_and_why_it_went_on() {
        let peer = |number| PeerId::from_public_key([number; 32]);
        let mut pull = PullRecord::begun("a.test/b:<1>".to_owned(), PullKind::Blob, 5_000);
        pull.asked(AttemptId(0), peer(1), "10.0.0.1:5000".parse().unwrap());
        pull.failed(AttemptId(0), FetchError::Refused { status: 429 });
        pull.asked(AttemptId(1), peer(2), "10.0.0.2:5000".parse().unwrap());
        pull.gave(AttemptId(1), 2048);
        pull.asked(AttemptId(2), peer(3), "10.0.0.3:5000".parse().unwrap());
        pull.left(peer(2), "peer_down");
        pull.gave(AttemptId(2), 1024);
        pull.end = PullEnd::Truncated(RefuseReason::HoldersExhausted);
        pull.took = Duration::from_millis(1500);
        let expected = [
            "a.test/b:<1> (blob)",
            "7.0 s ago",
            "10.0.0.1:5000 (refused with 429), then 10.0.0.2:5000 2.0 KiB (left: peer down), then \
             10.0.0.3:5000 1.0 KiB",
            "3.0 KiB",
            "1.5 s",
            "2",
            "the rest left to the registry: holders exhausted",
        ];
        assert_eq!(row(&pull, 12_000).map(|cell| cell.replace('\u{a0}', " ")), expected);
        for attempt in 3..20 {
            pull.asked(AttemptId(attempt), peer(4), "10.0.0.4:5000".parse().unwrap());
        }
        assert!(from(&pull).ends_with(", then 12 more"), "{}", from(&pull));
        let mut html = Html::default();
        section(&mut html, &[pull], 12_000);
        let html = html.finish();
        assert!(html.contains("a.test/b:&lt;1&gt; (blob)"), "{html}");
    }

    #[test]
    fn pull_that_was_refused_says_why() {
        let mut pull = PullRecord::begun(String::new(), PullKind::Head, 0);
        pull.end = PullEnd::Refused(RefuseReason::NobodyHasIt);
        let row = row(&pull, 0);
        assert_eq!(
            (row[2].as_str(), row[5].as_str(), row[6].as_str()),
            ("nobody", "0", "left to the registry: nobody has it")
        );
    }
}
