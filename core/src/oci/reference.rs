//! stub
use std::{fmt, str::FromStr};

/// stub
#[derive(Clone, Debug)]
pub struct ImageName;
/// stub
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceError;
/// stub
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository(String);
/// stub
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);
/// stub
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// stub
    Tag(Tag),
    /// stub
    Digest(super::Digest),
}
impl Repository {
    /// stub
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl Tag {
    /// stub
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl FromStr for Repository {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-/".contains(&c);
        (!text.is_empty() && text.len() < 256 && text.bytes().all(good) && !text.ends_with('/'))
            .then(|| Self(text.into()))
            .ok_or(ReferenceError)
    }
}
impl FromStr for Tag {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let good = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        (!text.is_empty() && text.len() <= 128 && text.bytes().all(good) && !text.starts_with(['.', '-']))
            .then(|| Self(text.into()))
            .ok_or(ReferenceError)
    }
}
impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stub")
    }
}
impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
