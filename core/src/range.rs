//! stub
/// stub
#[derive(Clone, Debug)]
pub struct ByteRange;
/// stub
#[derive(Clone, Debug)]
pub struct RangeError;
