//! Where the processor's time and the memory of this process go, as `go tool pprof` reads it. Knows nothing of
//! mirrors, and decides nothing but how often it looks. The debug page serves what it gives, if a flag says so;
//! until then nothing is looked at.
//!
//! A crate of its own because a global allocator takes unsafe code, which is forbidden everywhere else.

mod allocator;
pub mod cpu;
mod encode;
pub mod heap;
mod http;
mod table;

pub use self::{allocator::Allocator, http::router};

/// In tests the crate measures itself.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;
