//! stub
/// stub
#[derive(Clone, Debug)]
pub struct ImageName;
/// stub
#[derive(Clone, Debug)]
pub struct Reference;
/// stub
#[derive(Clone, Debug)]
pub struct ReferenceError;
/// stub
#[derive(Clone, Debug)]
pub struct Repository;
/// stub
#[derive(Clone, Debug)]
pub struct Tag;
