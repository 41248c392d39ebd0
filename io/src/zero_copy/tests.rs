use std::{fs::File, io::Write as _, sync::Arc};

use axum::{Router, body::Body, extract::Request, routing::get};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
};

use super::*;

async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn file(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

async fn received(mut far: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn frames_are_replaced_by_what_they_stand_for() {
    let (near, far) = connection().await;
    let lane = Lane::new(Kernel::new());
    let mut near = ZeroCopy::new(near, lane.clone());
    let file = file(b"0123456789");
    let frames = [
        Bytes::from_static(b"head "),
        lane.file(Arc::clone(&file), 2, 3).unwrap(),
        Bytes::from_static(b" between "),
        lane.file(Arc::clone(&file), 0, 1).unwrap(),
        lane.file(Arc::clone(&file), 9, 1).unwrap(),
    ];
    let mut frames: Vec<&[u8]> = frames.iter().map(|frame| &frame[..]).collect();
    while !frames.is_empty() {
        let slices: Vec<_> = frames.iter().map(|frame| io::IoSlice::new(frame)).collect();
        let mut written = near.write_vectored(&slices).await.unwrap();
        assert!(written > 0);
        frames.retain_mut(|frame| {
            let gone = written.min(frame.len());
            written -= gone;
            *frame = &frame[gone..];
            !frame.is_empty()
        });
    }
    drop(near);
    assert_eq!(received(far).await, b"head 234 between 09");
}

#[tokio::test]
async fn frame_that_fits_no_segment_is_never_sent() {
    for (segment, frame) in [(None, 5), (Some(5), 4), (Some(4), 5)] {
        let (near, far) = connection().await;
        let lane = Lane::new(Kernel::new());
        if let Some(length) = segment {
            lane.file(file(b"0123456789"), 0, length).unwrap();
        }
        let mut near = ZeroCopy::new(near, lane);
        let error = near.write(&placeholder(frame)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{segment:?}, {frame}");
        drop(near);
        assert_eq!(received(far).await, b"", "{segment:?}, {frame}");
    }
    // No socket, so that there is nothing that the kernel could send to.
    let (near, _far) = duplex(10);
    let lane = Lane::new(Kernel::new());
    let frame = lane.file(file(b"0123456789"), 0, 5).unwrap();
    assert!(ZeroCopy::new(near, lane).write(&frame).await.is_err());
}

#[tokio::test]
async fn file_without_the_promised_bytes_is_an_error() {
    let (near, far) = connection().await;
    let lane = Lane::new(Kernel::new());
    let frame = lane.file(file(b"01234"), 3, 5).unwrap();
    let mut near = ZeroCopy::new(near, lane);
    assert_eq!(near.write(&frame).await.unwrap(), 2);
    let error = near.write(&frame[2..]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    drop(near);
    assert_eq!(received(far).await, b"34");
}

#[test]
fn frames_that_get_lost_are_noticed() {
    let lane = Lane::new(Kernel::new());
    let file = file(b"0");
    let added = (0..100).take_while(|_| lane.file(Arc::clone(&file), 0, 1).is_ok()).count();
    assert_eq!(added, 16, "more than the HTTP library holds");
}

/// A body whose frames were made for no lane, or for another connection's.
#[tokio::test]
async fn response_with_frames_of_nobody_ends_with_fin_before_its_body() {
    let other = Lane::new(Kernel::new());
    let stray = other.file(file(&[1; 1000]), 0, 1000).unwrap();
    let router = Router::new().route("/", get(move |_: Request| async move { Body::from(stray) }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let server =
        crate::registry::serve(listener, router, Kernel::new(), shutdown, std::time::Duration::from_secs(1));
    let server = tokio::spawn(server);
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // A second request stays unread.
    stream.write_all(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2)).await.unwrap();
    let answer = String::from_utf8(received(stream).await).unwrap();
    assert!(answer.contains("content-length: 1000"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{} bytes beyond the head", answer.len());
    server.abort();
}
