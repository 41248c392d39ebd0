//! stub
/// stub
#[derive(Clone, Debug, Default)]
pub struct Filters;
/// stub
#[derive(Clone, Debug)]
pub struct FilterError;
