use spegel_io::peer::parse_head;

/// The head of another node's answer: it is understood as soon as all of it is there and not
/// before, whatever follows, and nothing is read beyond it.
pub fn http_answer(data: &[u8]) {
    let Ok(Some((head, length))) = parse_head(data) else { return };
    assert!(length <= data.len() && !head.status.is_informational());
    for end in [0, length / 2, length - 1] {
        assert!(!matches!(parse_head(&data[..end]), Ok(Some(_))), "understood before it is there: {end}");
    }
    for followed in [&data[..length], &[data, b"HTTP/1.1 200 OK\r\n\r\n"].concat()] {
        let (again, same) = parse_head(followed).expect("still good").expect("still whole");
        assert_eq!((again.status, again.headers, same), (head.status, head.headers.clone(), length));
    }
}
