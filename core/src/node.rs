//! stub
/// stub
#[derive(Debug)]
pub struct Node;
