//! Where the bytes of local content come from.

use std::{future::Future, io};

use bytes::Bytes;
use spegel_core::oci::Digest;

/// Opens content by its digest.
pub trait ContentStore: Clone + Send + Sync + 'static {
    /// Content that is open.
    type Blob: Blob;

    /// Opens the content of `digest`; content of another size than `size` is an error.
    fn open(&self, digest: &Digest, size: u64) -> impl Future<Output = io::Result<Self::Blob>> + Send;
}

/// Content that is open: it stays readable even if it is deleted meanwhile.
pub trait Blob: Send + Sync + 'static {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Reads at most `length` bytes at `offset`; nothing only at the end.
    fn read_at(&self, offset: u64, length: usize) -> impl Future<Output = io::Result<Bytes>> + Send;
}
