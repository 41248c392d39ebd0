//! Local content out of real files, which the kernel sends.

use std::{fs, os::unix::fs::FileExt, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::{content::ContentDir, zero_copy::SEGMENT_BYTES_MAX};

/// More than sockets hold, so that a client which does not read stops the server in mid-body.
const LONG: usize = 32 << 20;

struct Files {
    dir: TempDir,
    node: Node<ContentDir>,
}

impl Files {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        let node = Node::start_on(ContentDir::new(dir.path()), Trust::default(), Kernel::new()).await;
        Self { dir, node }
    }

    fn add(&self, content: &[u8]) -> Digest {
        let digest = Digest::sha256_of(content);
        fs::write(self.path(&digest), content).unwrap();
        self.node.serving.perform(&Output::ServeContent { digest, size: content.len() as u64 });
        digest
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    /// A client that has sent so many requests, and been sent something, of which it has read nothing.
    async fn begin(&self, digest: &Digest, requests: usize) -> TcpStream {
        let keep_alive = request("GET", &blob_uri(digest), "").replace("Connection: close\r\n", "");
        let stream = connect(self.node.addr, &keep_alive.repeat(requests)).await;
        stream.peek(&mut [0]).await.unwrap();
        stream
    }
}

/// Whether the body is the beginning of what it should be, and ended with FIN.
fn is_clean_part(answer: &Seen, bytes: &[u8]) -> bool {
    bytes.starts_with(&answer.body) && answer.clean
}

#[tokio::test]
async fn file_is_served_whole_and_in_parts() {
    let files = Files::start().await;
    for length in [0, 1, 40_000, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MAX + 1, 3 * SEGMENT_BYTES_MAX + 12_345] {
        let bytes = content(length);
        let digest = files.add(&bytes);
        let whole = ask(files.node.addr, "GET", &blob_uri(&digest), "").await;
        assert_eq!((whole.status, whole.body == bytes, whole.clean), (200, true, true), "{length} bytes");
        for first in [1, 39_999, SEGMENT_BYTES_MAX - 1, SEGMENT_BYTES_MAX, length.saturating_sub(33_000)] {
            if first < length {
                let range = format!("Range: bytes={first}-\r\n");
                let part = ask(files.node.addr, "GET", &blob_uri(&digest), &range).await;
                let right = part.body == bytes[first..];
                assert_eq!((part.status, right), (206, true), "{length} bytes from {first}");
            }
        }
    }
}

#[tokio::test]
async fn answers_on_one_connection_follow_each_other() {
    let files = Files::start().await;
    let (long, small) = (content(2_500_000), content(500));
    let (long_digest, small_digest) = (files.add(&long), files.add(&small));
    let part = "Range: bytes=5-1500004\r\n";
    let requests = [
        ("GET", blob_uri(&long_digest), "", 200, Some(&long[..])),
        ("HEAD", blob_uri(&long_digest), "", 200, None),
        ("GET", blob_uri(&small_digest), "", 200, Some(&small[..])),
        ("GET", blob_uri(&long_digest), part, 206, Some(&long[5..1_500_005])),
        ("HEAD", blob_uri(&long_digest), part, 206, None),
        ("GET", "/livez".to_owned(), "", 200, Some(&[][..])),
        ("GET", blob_uri(&long_digest), "", 200, Some(&long[..])),
    ];
    let texts: Vec<_> = requests
        .iter()
        .map(|(method, uri, headers, ..)| request(method, uri, headers).replace("Connection: close\r\n", ""))
        .collect();
    // All at once, and each after the answer to the one before.
    for pipelined in [true, false] {
        let mut stream = TcpStream::connect(files.node.addr).await.unwrap();
        if pipelined {
            stream.write_all(texts.concat().as_bytes()).await.unwrap();
        }
        for (text, (method, uri, headers, status, body)) in texts.iter().zip(&requests) {
            if !pipelined {
                stream.write_all(text.as_bytes()).await.unwrap();
            }
            let (head, found) = read_answer(&mut stream, body.is_some()).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {uri} {headers}: {head}");
            assert!(found == body.unwrap_or_default(), "{method} {uri} {headers}: other bytes");
        }
    }
}

#[tokio::test]
async fn file_deleted_in_mid_body_is_served_to_its_end() {
    let files = Files::start().await;
    let bytes = content(LONG);
    let digest = files.add(&bytes);
    let mut stream = files.begin(&digest, 1).await;
    fs::remove_file(files.path(&digest)).unwrap();
    let (_, body) = read_answer(&mut stream, true).await;
    assert!(body == bytes, "{} bytes", body.len());
}

#[tokio::test]
async fn file_shorter_than_containerd_says_is_a_miss() {
    let mut files = Files::start().await;
    let digest = files.add(&content(100_000));
    fs::File::options().write(true).open(files.path(&digest)).unwrap().set_len(99_999).unwrap();
    let answer = ask(files.node.addr, "GET", &blob_uri(&digest), "X-Spegel-Mirrored: true\r\n").await;
    assert_eq!(answer.status, 404);
    assert_eq!(files.node.input().await, Input::ContentUnreadable { digest });
}

#[tokio::test]
async fn file_cut_short_in_mid_body_ends_with_fin() {
    let mut files = Files::start().await;
    let bytes = content(LONG);
    let digest = files.add(&bytes);
    // A second request is on its way already: unread bytes must not turn FIN into RST.
    let mut stream = files.begin(&digest, 2).await;
    let left = LONG - 100_000;
    fs::File::options().write(true).open(files.path(&digest)).unwrap().set_len(left as u64).unwrap();
    let answer = read_to_end(&mut stream).await;
    let length = answer.body.len();
    assert!(length <= left, "{length} bytes of {left} that are there");
    assert!(is_clean_part(&answer, &bytes), "{length} bytes, {}", answer.clean);
    assert!(length + 2 * SEGMENT_BYTES_MAX > left, "{length} bytes of {left} that are there");
    assert_eq!(files.node.input().await, Input::ContentUnreadable { digest });
}

#[tokio::test]
async fn bytes_written_over_are_those_that_are_sent() {
    // Nothing is read ahead into this process: what a client gets is what the file has when it
    // takes it.
    let files = Files::start().await;
    let bytes = content(LONG);
    let digest = files.add(&bytes);
    let mut stream = files.begin(&digest, 1).await;
    let file = fs::File::options().write(true).open(files.path(&digest)).unwrap();
    file.write_all_at(&[0xee; 1000], LONG as u64 - 1000).unwrap();
    let (_, body) = read_answer(&mut stream, true).await;
    assert!(body.ends_with(&[0xee; 1000]) && body[..LONG - 1000] == bytes[..LONG - 1000]);
}

#[tokio::test]
async fn client_that_vanishes_leaves_no_file_open() {
    let files = Files::start().await;
    let digest = files.add(&content(LONG));
    let file = files.path(&digest);
    let open = || {
        let all = fs::read_dir("/proc/self/fd").unwrap();
        all.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).filter(|path| *path == file).count()
    };
    let streams = [files.begin(&digest, 1).await, files.begin(&digest, 2).await];
    assert_eq!(open(), 2);
    drop(streams);
    let closed = async {
        while open() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, closed).await.expect("the files are closed");
}

#[tokio::test]
async fn kernel_that_moves_no_bytes_is_done_without() {
    let files = Files::start().await;
    let bytes = content(LONG);
    let digest = files.add(&bytes);
    // In mid-body, with frames on their way, and from the beginning.
    let mut stream = files.begin(&digest, 1).await;
    files.node.kernel.refuse();
    let (_, body) = read_answer(&mut stream, true).await;
    assert!(body == bytes, "{} bytes", body.len());
    let answer = ask(files.node.addr, "GET", &blob_uri(&digest), "").await;
    assert!(answer.body == bytes && answer.clean, "{} bytes", answer.body.len());
}

#[tokio::test]
async fn body_cut_off_by_the_end_of_the_process_ends_with_fin() {
    let files = Files::start().await;
    let bytes = content(LONG);
    let digest = files.add(&bytes);
    let mut stream = files.begin(&digest, 2).await;
    files.node.shutdown.cancel();
    tokio::time::sleep(DRAIN_MAX).await;
    let answer = read_to_end(&mut stream).await;
    let length = answer.body.len();
    assert!(length < LONG, "the body came to its end");
    assert!(is_clean_part(&answer, &bytes), "{length} bytes, {}", answer.clean);
    timeout(PATIENCE, files.node.server).await.expect("the server ends").unwrap();
}
