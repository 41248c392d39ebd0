//! Byte ranges (RFC 9110, section 14): what part of a body a client wants, and what part a
//! peer says it sends. Pure parsing; called by the registry for requests and by the peer
//! client for answers. Never touches a body.

use std::{fmt, str::FromStr};

/// The one range of a `Range` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=first-last`, both inclusive, `first <= last`.
    FromTo(u64, u64),
    /// `bytes=first-`
    From(u64),
    /// `bytes=-n`: the last `n` bytes.
    Suffix(u64),
}

/// A header is not a byte range. A server ignores such a `Range` (RFC 9110, section 14.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a byte range: expected bytes=first-last, bytes=first- or bytes=-length")]
pub struct RangeError;

/// A range has no byte in common with the content: answered with 416.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range lies outside the content")]
pub struct Unsatisfiable;

impl ByteRange {
    /// Reads a `Range` header. `None` where it is well-formed but asks for something that a
    /// server may ignore: another unit, or several ranges.
    ///
    /// # Errors
    ///
    /// [`RangeError`] when it is neither.
    pub fn parse(header: &str) -> Result<Option<Self>, RangeError> {
        let (unit, set) = header.split_once('=').ok_or(RangeError)?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Ok(None);
        }
        let ranges = set.split(',').map(str::trim).filter(|range| !range.is_empty());
        let ranges = ranges.map(Self::parse_one).collect::<Result<Vec<_>, _>>()?;
        match ranges[..] {
            [] => Err(RangeError),
            [range] => Ok(Some(range)),
            [..] => Ok(None),
        }
    }

    fn parse_one(range: &str) -> Result<Self, RangeError> {
        let (first, last) = range.split_once('-').ok_or(RangeError)?;
        match (first, last) {
            ("", length) => number(length).map(Self::Suffix),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                if first <= last { Ok(Self::FromTo(first, last)) } else { Err(RangeError) }
            }
        }
    }

    /// The offset and length that the range means for content of `size` bytes; the length is
    /// never 0.
    ///
    /// # Errors
    ///
    /// [`Unsatisfiable`] when that is nothing.
    pub const fn resolve(self, size: u64) -> Result<(u64, u64), Unsatisfiable> {
        match self {
            Self::FromTo(first, last) if first < size => {
                let last = if last < size { last } else { size - 1 };
                Ok((first, last - first + 1))
            }
            Self::From(first) if first < size => Ok((first, size - first)),
            Self::Suffix(length) if length > 0 && size > 0 => {
                let length = if length < size { length } else { size };
                Ok((size - length, length))
            }
            Self::FromTo(..) | Self::From(_) | Self::Suffix(_) => Err(Unsatisfiable),
        }
    }
}

/// As in a `Range` header.
impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FromTo(first, last) => write!(f, "bytes={first}-{last}"),
            Self::From(first) => write!(f, "bytes={first}-"),
            Self::Suffix(length) => write!(f, "bytes=-{length}"),
        }
    }
}

/// The part of some content that a 206 carries: `first..first + length` of `size` bytes, never
/// empty and never beyond the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    first: u64,
    length: u64,
    size: u64,
}

impl ContentRange {
    /// `length` bytes from `first` on; `None` unless that is a part of `size` bytes.
    #[must_use]
    pub const fn new(first: u64, length: u64, size: u64) -> Option<Self> {
        match first.checked_add(length) {
            Some(end) if length > 0 && end <= size => Some(Self { first, length, size }),
            Some(_) | None => None,
        }
    }

    /// Offset of the first byte.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// How many bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Size of the whole content.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }
}

/// Reads a `Content-Range` header that names first byte, last byte and size.
impl FromStr for ContentRange {
    type Err = RangeError;

    fn from_str(header: &str) -> Result<Self, RangeError> {
        let (unit, rest) = header.trim().split_once(' ').ok_or(RangeError)?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return Err(RangeError);
        }
        let (range, size) = rest.trim().split_once('/').ok_or(RangeError)?;
        let (first, last) = range.split_once('-').ok_or(RangeError)?;
        let (first, last) = (number(first)?, number(last)?);
        let length = last.checked_sub(first).and_then(|span| span.checked_add(1)).ok_or(RangeError)?;
        Self::new(first, length, number(size)?).ok_or(RangeError)
    }
}

/// As in a `Content-Range` header.
impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}-{}/{}", self.first, self.first + self.length - 1, self.size)
    }
}

/// `1*DIGIT`. A number too large for any content counts as the largest there is: it lies beyond
/// the end either way.
fn number(digits: &str) -> Result<u64, RangeError> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RangeError);
    }
    Ok(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_form_is_read() {
        assert_eq!(ByteRange::parse("bytes=0-0"), Ok(Some(ByteRange::FromTo(0, 0))));
        assert_eq!(ByteRange::parse("Bytes = 5-9"), Ok(Some(ByteRange::FromTo(5, 9))));
        assert_eq!(ByteRange::parse("bytes=7-"), Ok(Some(ByteRange::From(7))));
        assert_eq!(ByteRange::parse("bytes=-3"), Ok(Some(ByteRange::Suffix(3))));
        let beyond = "bytes=0-99999999999999999999999";
        assert_eq!(ByteRange::parse(beyond), Ok(Some(ByteRange::FromTo(0, u64::MAX))));
    }

    #[test]
    fn other_units_and_several_ranges_are_ignored() {
        assert_eq!(ByteRange::parse("lines=1-2"), Ok(None));
        assert_eq!(ByteRange::parse("bytes=0-1,4-5"), Ok(None));
        assert_eq!(ByteRange::parse("bytes=0-1, ,"), Ok(Some(ByteRange::FromTo(0, 1))));
    }

    #[test]
    fn malformed_ranges_are_errors() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5",
            "bytes=9-5",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1-2-3",
            "bytes=--1",
        ] {
            assert_eq!(ByteRange::parse(header), Err(RangeError), "{header}");
        }
        assert_eq!(ByteRange::parse("bytes=0-1,x"), Err(RangeError));
    }

    #[test]
    fn ranges_are_resolved_at_their_boundaries() {
        assert_eq!(ByteRange::FromTo(0, 9).resolve(10), Ok((0, 10)));
        assert_eq!(ByteRange::FromTo(0, 10).resolve(10), Ok((0, 10)));
        assert_eq!(ByteRange::FromTo(9, 9).resolve(10), Ok((9, 1)));
        assert_eq!(ByteRange::FromTo(10, 10).resolve(10), Err(Unsatisfiable));
        assert_eq!(ByteRange::From(9).resolve(10), Ok((9, 1)));
        assert_eq!(ByteRange::From(10).resolve(10), Err(Unsatisfiable));
        assert_eq!(ByteRange::From(0).resolve(0), Err(Unsatisfiable));
        assert_eq!(ByteRange::Suffix(0).resolve(10), Err(Unsatisfiable));
        assert_eq!(ByteRange::Suffix(1).resolve(10), Ok((9, 1)));
        assert_eq!(ByteRange::Suffix(11).resolve(10), Ok((0, 10)));
        assert_eq!(ByteRange::Suffix(1).resolve(0), Err(Unsatisfiable));
    }

    #[test]
    fn content_range_must_lie_in_its_content() {
        assert_eq!("bytes 0-9/10".parse(), Ok(ContentRange { first: 0, length: 10, size: 10 }));
        for header in [
            "",
            "bytes",
            "bytes 0-10/10",
            "bytes 5-4/10",
            "bytes */10",
            "bytes 0-9/*",
            "lines 0-9/10",
            "bytes 0-18446744073709551615/18446744073709551615",
        ] {
            assert_eq!(header.parse::<ContentRange>(), Err(RangeError), "{header}");
        }
        let part = ContentRange::new(2, 3, 10).expect("is one");
        assert_eq!((part.first(), part.length(), part.size()), (2, 3, 10));
        assert_eq!(ContentRange::new(0, 0, 10), None);
        assert_eq!(ContentRange::new(u64::MAX, 1, u64::MAX), None);
    }

    fn any_range() -> impl Strategy<Value = ByteRange> {
        prop_oneof![
            (any::<u64>(), any::<u64>()).prop_map(|(a, b)| ByteRange::FromTo(a.min(b), a.max(b))),
            (0..100_u64, 0..100_u64).prop_map(|(a, b)| ByteRange::FromTo(a.min(b), a.max(b))),
            (0..100_u64).prop_map(ByteRange::From),
            (0..100_u64).prop_map(ByteRange::Suffix),
        ]
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(header in ".{0,60}", tail in "[-0-9, ]{0,40}") {
            let _ = ByteRange::parse(&header);
            let _ = ByteRange::parse(&format!("bytes={tail}"));
            let _ = header.parse::<ContentRange>();
            let _ = format!("bytes {tail}").parse::<ContentRange>();
        }

        #[test]
        fn range_text_round_trips(range in any_range()) {
            prop_assert_eq!(ByteRange::parse(&range.to_string()), Ok(Some(range)));
        }

        /// Against the naive reading: keep each byte's index, slice, compare.
        #[test]
        fn resolved_range_is_the_slice(range in any_range(), size in 0..100_u64) {
            let wanted: Vec<u64> = match range {
                ByteRange::FromTo(first, last) => (0..size).filter(|at| (first..=last).contains(at)).collect(),
                ByteRange::From(first) => (0..size).filter(|at| *at >= first).collect(),
                ByteRange::Suffix(length) => (0..size).filter(|at| *at + length >= size).collect(),
            };
            let resolved = range.resolve(size);
            let slice = resolved.map_or(Vec::new(), |(first, length)| (first..first + length).collect());
            prop_assert_eq!(wanted, slice);
            if let Ok((first, length)) = resolved {
                let content = ContentRange::new(first, length, size).unwrap();
                prop_assert_eq!(content.to_string().parse(), Ok(content));
            }
        }
    }
}
