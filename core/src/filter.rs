//! stub
/// stub
#[derive(Clone, Debug, Default)]
pub struct Filters;
/// stub
#[derive(Clone, Debug)]
pub struct FilterError;
impl Filters {
    /// stub
    pub fn allows(&self, registry: &str, _repository: &str, _tag: Option<&str>) -> bool {
        registry != "filtered.test"
    }
}
