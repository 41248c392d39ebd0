use spegel_core::{ByteRange, ContentRange};

use crate::bytes::Bytes;

/// `Range` of requests and `Content-Range` of answers: whatever is accepted lies within the
/// content and is understood again when it is passed on. Eight bytes of size, then the header.
pub fn range_header(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let size = bytes.number();
    let Ok(header) = std::str::from_utf8(bytes.rest()) else { return };
    if let Ok(Some(range)) = ByteRange::parse(header) {
        assert_eq!(ByteRange::parse(&range.to_string()), Ok(Some(range)));
        for size in [size, size >> 32, 0, 1, u64::MAX] {
            let Ok((offset, length)) = range.resolve(size) else { continue };
            assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= size));
            let answer = ContentRange::new(offset, length, size).expect("a part of the content");
            assert_eq!(answer.to_string().parse(), Ok(answer));
        }
    }
    if let Ok(range) = header.parse::<ContentRange>() {
        assert!(range.length() > 0);
        assert!(range.first().checked_add(range.length()).is_some_and(|end| end <= range.size()));
        assert_eq!(range.to_string().parse(), Ok(range));
    }
}
