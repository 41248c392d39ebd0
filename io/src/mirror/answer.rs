//! Whether the head of a peer's answer makes sense for what it was asked. Pure; nothing that a
//! peer says reaches the client before it was read here.

use http::{HeaderMap, HeaderValue, StatusCode, header, response};
use spegel_core::{
    ByteRange, ContentRange, FetchError,
    oci::{Digest, MANIFEST_SIZE_MAX},
};

use crate::distribution::{BACKLOG_HEADER, ContentRequest, DIGEST_HEADER};

/// Part of some content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) length: u64,
    pub(super) size: u64,
}

/// What the client has been promised by the head of the first answer that was forwarded. Later
/// answers must fit into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Promise {
    pub(super) digest: Digest,
    pub(super) span: Span,
}

/// An answer that makes sense.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// What it carries, were it not for `begin`.
    pub(super) promise: Promise,
    /// Offset within what the client asked for at which this answer's body begins.
    pub(super) begin: u64,
    /// What the peer had to send to other nodes; `None` if it does not say.
    pub(super) backlog_bytes: Option<u64>,
    content_type: HeaderValue,
}

/// What to ask a peer for, given how much of it the client has. Manifests are small and Go's
/// nodes ignore ranges of them: they are asked for whole.
pub(super) fn range_to_ask(
    request: &ContentRequest,
    promise: Option<&Promise>,
    skip: u64,
) -> Option<ByteRange> {
    match promise {
        Some(Promise { span, .. }) if skip > 0 && !request.wanted.is_manifest() => {
            let end = span.first + span.length;
            Some(ByteRange::FromTo(span.first.saturating_add(skip).min(end - 1), end - 1))
        }
        Some(_) | None => request.range,
    }
}

/// Reads the head of an answer to a request for `asked`, the client having `skip` bytes.
pub(super) fn read(
    request: &ContentRequest,
    promise: Option<&Promise>,
    skip: u64,
    asked: Option<ByteRange>,
    head: &response::Parts,
) -> Result<Answer, FetchError> {
    let manifest = request.wanted.is_manifest();
    match head.status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
        StatusCode::NOT_FOUND => return Err(FetchError::NotFound),
        status => return Err(FetchError::Refused { status: status.as_u16() }),
    }
    let span = span(asked, head).ok_or(FetchError::Malformed)?;
    let digest = match only(&head.headers, DIGEST_HEADER) {
        Some(digest) => digest.parse().map_err(|_| FetchError::Malformed)?,
        None if manifest => return Err(FetchError::Malformed),
        None => request.wanted.digest().ok_or(FetchError::Malformed)?,
    };
    if request.wanted.digest().is_some_and(|wanted| wanted != digest)
        || (manifest && span.size > MANIFEST_SIZE_MAX)
    {
        return Err(FetchError::Malformed);
    }
    let content_type = match head.headers.get(header::CONTENT_TYPE) {
        Some(content_type) => content_type.clone(),
        None if manifest => return Err(FetchError::Malformed),
        None => HeaderValue::from_static("application/octet-stream"),
    };
    let resumed = skip > 0 && !manifest;
    let begin = if resumed { skip } else { 0 };
    let backlog_bytes = only(&head.headers, BACKLOG_HEADER).and_then(|bytes| bytes.parse().ok());
    let carried = Promise { digest, span };
    let Some(promise) = promise else {
        return if resumed {
            Err(FetchError::Malformed)
        } else {
            Ok(Answer { promise: carried, begin, backlog_bytes, content_type })
        };
    };
    let expected = Span {
        first: promise.span.first + begin,
        length: promise.span.length.checked_sub(begin).ok_or(FetchError::Malformed)?,
        size: promise.span.size,
    };
    if carried != (Promise { digest: promise.digest, span: expected }) {
        return Err(FetchError::Malformed);
    }
    Ok(Answer { promise: *promise, begin, backlog_bytes, content_type })
}

fn span(asked: Option<ByteRange>, head: &response::Parts) -> Option<Span> {
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    let length: u64 = only(&head.headers, header::CONTENT_LENGTH.as_str())?.parse().ok()?;
    let Some(asked) = asked else {
        return (head.status == StatusCode::OK).then_some(Span { first: 0, length, size: length });
    };
    if head.status != StatusCode::PARTIAL_CONTENT {
        return None;
    }
    let range: ContentRange = only(&head.headers, header::CONTENT_RANGE.as_str())?.parse().ok()?;
    let same = asked.resolve(range.size()) == Ok((range.first(), range.length())) && length == range.length();
    same.then(|| Span { first: range.first(), length, size: range.size() })
}

/// The value of a header that is there exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).into_iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

impl Answer {
    /// The head of the response to the client.
    pub(super) fn client_head(&self, request: &ContentRequest) -> (StatusCode, HeaderMap) {
        let Promise { digest, span } = self.promise;
        let mut headers = HeaderMap::new();
        let digest = HeaderValue::try_from(digest.to_string()).expect("a digest is visible ASCII");
        headers.insert(header::CONTENT_TYPE, self.content_type.clone());
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(span.length));
        headers.insert(DIGEST_HEADER, digest);
        if !request.wanted.is_manifest() {
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        let range = request.range.and_then(|_| ContentRange::new(span.first, span.length, span.size));
        let Some(range) = range else { return (StatusCode::OK, headers) };
        let range = HeaderValue::try_from(range.to_string()).expect("digits are visible ASCII");
        headers.insert(header::CONTENT_RANGE, range);
        (StatusCode::PARTIAL_CONTENT, headers)
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;
    use crate::distribution::Wanted;

    fn digest() -> Digest {
        Digest::sha256_of(b"content")
    }

    fn request(wanted: Wanted, range: Option<ByteRange>) -> ContentRequest {
        let repository = "library/alpine".parse().unwrap();
        ContentRequest { registry: "docker.io".into(), repository, wanted, range, head: false }
    }

    fn blob(range: Option<ByteRange>) -> ContentRequest {
        request(Wanted::Blob(digest()), range)
    }

    fn head(status: u16, headers: &[(&str, &str)]) -> response::Parts {
        let mut builder = Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn promise(first: u64, length: u64, size: u64) -> Promise {
        Promise { digest: digest(), span: Span { first, length, size } }
    }

    #[test]
    fn whole_blob_needs_only_its_length() {
        let answer = read(&blob(None), None, 0, None, &head(200, &[("content-length", "9")])).unwrap();
        assert_eq!((answer.promise, answer.begin, answer.backlog_bytes), (promise(0, 9, 9), 0, None));
        let (status, headers) = answer.client_head(&blob(None));
        assert_eq!((status, &headers[header::CONTENT_LENGTH]), (StatusCode::OK, &"9".parse().unwrap()));
    }

    #[test]
    fn backlog_that_makes_no_sense_counts_as_none() {
        for (text, backlog_bytes) in
            [("0", Some(0)), ("16777216", Some(1 << 24)), ("-1", None), ("99999999999999999999", None)]
        {
            let head = head(200, &[("content-length", "9"), ("x-spegel-backlog", text)]);
            assert_eq!(read(&blob(None), None, 0, None, &head).unwrap().backlog_bytes, backlog_bytes);
        }
    }

    #[test]
    fn answers_that_contradict_the_request_are_malformed() {
        let other = Digest::sha256_of(b"other").to_string();
        let range = Some(ByteRange::FromTo(2, 4));
        let length = ("content-length", "3");
        type Case<'a> = (Option<ByteRange>, u16, &'a [(&'a str, &'a str)]);
        let cases: [Case<'_>; 11] = [
            (None, 200, &[]),
            (None, 200, &[("content-length", "x")]),
            (None, 200, &[length, ("transfer-encoding", "chunked")]),
            (None, 200, &[length, ("docker-content-digest", &other)]),
            (None, 200, &[length, ("docker-content-digest", "sha256:00")]),
            (None, 206, &[length, ("content-range", "bytes 0-2/3")]),
            (range, 200, &[length]),
            (range, 206, &[length]),
            (range, 206, &[length, ("content-range", "bytes 3-5/9")]),
            (range, 206, &[("content-length", "4"), ("content-range", "bytes 2-4/9")]),
            (range, 206, &[length, ("content-range", "bytes 2-4/9"), ("content-range", "bytes 2-4/9")]),
        ];
        for (asked, status, headers) in cases {
            let answer = read(&blob(asked), None, 0, asked, &head(status, headers));
            assert_eq!(answer.unwrap_err(), FetchError::Malformed, "{headers:?}");
        }
    }

    #[test]
    fn refusals_keep_their_status() {
        let answer = |status| read(&blob(None), None, 0, None, &head(status, &[])).unwrap_err();
        assert_eq!(answer(404), FetchError::NotFound);
        assert_eq!(answer(401), FetchError::Refused { status: 401 });
        assert_eq!(answer(302), FetchError::Refused { status: 302 });
        assert_eq!(answer(503), FetchError::Refused { status: 503 });
    }

    #[test]
    fn manifest_needs_digest_and_media_type_and_a_sane_size() {
        let tag = request(Wanted::Tag("v1".parse().unwrap()), None);
        let (digest_text, too_large) = (digest().to_string(), (MANIFEST_SIZE_MAX + 1).to_string());
        let all = [
            ("content-length", "3"),
            ("docker-content-digest", digest_text.as_str()),
            ("content-type", "application/vnd.oci.image.index.v1+json"),
        ];
        assert_eq!(read(&tag, None, 0, None, &head(200, &all)).unwrap().promise, promise(0, 3, 3));
        for missing in 0..3 {
            let mut some = all.to_vec();
            some.remove(missing);
            assert_eq!(read(&tag, None, 0, None, &head(200, &some)).unwrap_err(), FetchError::Malformed);
        }
        let large = [("content-length", too_large.as_str()), all[1], all[2]];
        assert_eq!(read(&tag, None, 0, None, &head(200, &large)).unwrap_err(), FetchError::Malformed);
        // The client has been told a digest: a tag that moved meanwhile is another manifest.
        let moved = Promise { digest: Digest::sha256_of(b"other"), ..promise(0, 3, 3) };
        let answer = read(&tag, Some(&moved), 1, None, &head(200, &all));
        assert_eq!(answer.unwrap_err(), FetchError::Malformed);
        assert_eq!(read(&tag, Some(&promise(0, 3, 3)), 1, None, &head(200, &all)).unwrap().begin, 0);
    }

    #[test]
    fn resumed_range_is_absolute_and_must_be_what_remains() {
        let request = blob(Some(ByteRange::Suffix(4)));
        let promise = promise(6, 4, 10);
        let asked = range_to_ask(&request, Some(&promise), 1);
        assert_eq!(asked, Some(ByteRange::FromTo(7, 9)));
        assert_eq!(range_to_ask(&request, Some(&promise), 0), Some(ByteRange::Suffix(4)));
        assert_eq!(range_to_ask(&request, None, 0), Some(ByteRange::Suffix(4)));
        let good = head(206, &[("content-length", "3"), ("content-range", "bytes 7-9/10")]);
        let answer = read(&request, Some(&promise), 1, asked, &good).unwrap();
        assert_eq!((answer.promise, answer.begin), (promise, 1));
        let (status, headers) = answer.client_head(&request);
        assert_eq!(status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(headers[header::CONTENT_RANGE], "bytes 6-9/10");
        let grown = head(206, &[("content-length", "3"), ("content-range", "bytes 7-9/11")]);
        assert_eq!(read(&request, Some(&promise), 1, asked, &grown).unwrap_err(), FetchError::Malformed);
        // Beyond the end, or before anything was promised: orders that make no sense.
        assert_eq!(range_to_ask(&request, Some(&promise), 9), Some(ByteRange::FromTo(9, 9)));
        assert_eq!(read(&request, Some(&promise), 9, asked, &good).unwrap_err(), FetchError::Malformed);
        assert_eq!(read(&request, None, 1, asked, &good).unwrap_err(), FetchError::Malformed);
    }
}
