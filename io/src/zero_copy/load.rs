//! Brings parts of files into memory before the kernel is asked to send them. `sendfile` waits for
//! the disk, and would make every other connection of its thread wait as well.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    num::NonZeroU64,
    os::unix::fs::FileExt,
    sync::Arc,
};

use rustix::{
    fs::{Advice, fadvise},
    io::{Errno, ReadWriteFlags, preadv2},
};
use tokio::task::spawn_blocking;

/// Distance of the bytes that are asked for to see whether a part is in memory. Smaller costs a
/// system call each; larger overlooks holes, and one that is overlooked stops a thread for as long
/// as the disk takes. The kernel reads and drops files in pieces of about this size.
const PROBE_STRIDE: u64 = 128 * 1024;

/// How far beyond a part that had to be loaded the disk is asked to read on meanwhile. Less and
/// disk and network take turns; more is read for nothing when the client goes.
const READ_AHEAD_BYTES: u64 = 4 * 1024 * 1024;

/// The smallest page of any machine.
const PAGE_BYTES: u64 = 4096;

/// Waits until a part of a file can be sent without waiting for the disk.
///
/// # Errors
///
/// Those of reading; `UnexpectedEof` if the file ends before the part does.
pub(crate) async fn load(file: &Arc<File>, offset: u64, length: u64) -> io::Result<()> {
    let Some(last) = (offset + length).checked_sub(1) else { return Ok(()) };
    if is_in_memory(file, offset, last)? {
        return Ok(());
    }
    let file = Arc::clone(file);
    spawn_blocking(move || {
        // Advice that is not taken only makes this slower.
        let _ = fadvise(&*file, offset, NonZeroU64::new(length + READ_AHEAD_BYTES), Advice::WillNeed);
        positions(offset, last, PAGE_BYTES).try_for_each(|at| file.read_exact_at(&mut [0], at))
    })
    .await?
}

/// False also where it cannot be found out.
fn is_in_memory(file: &File, first: u64, last: u64) -> io::Result<bool> {
    for at in positions(first, last, PROBE_STRIDE) {
        let mut byte = [0];
        let read = loop {
            match preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) {
                Err(Errno::INTR) => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// From the first to the last, both included.
fn positions(first: u64, last: u64, stride: u64) -> impl Iterator<Item = u64> {
    let stride = usize::try_from(stride).expect("strides are small");
    (first..last).step_by(stride).chain([last])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(length: usize) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; length]).unwrap();
        Arc::new(file)
    }

    #[test]
    fn both_ends_and_nothing_beyond_are_asked_for() {
        let all = |first, last, stride| positions(first, last, stride).collect::<Vec<_>>();
        assert_eq!(all(0, 0, 4), [0]);
        assert_eq!(all(3, 8, 4), [3, 7, 8]);
        assert_eq!(all(0, 8, 4), [0, 4, 8]);
    }

    #[tokio::test]
    async fn part_is_loaded_if_it_is_all_there() {
        let file = file(1_000_000);
        for (offset, length) in [(0, 1_000_000), (999_999, 1), (5, 0), (1_000_000, 0)] {
            load(&file, offset, length).await.unwrap();
        }
        for (offset, length) in [(0, 1_000_001), (1_000_000, 1), (5_000_000, 5)] {
            let error = load(&file, offset, length).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {length}");
        }
    }

    #[tokio::test]
    async fn what_the_kernel_has_dropped_is_loaded_again() {
        let file = file(1 << 20);
        assert!(is_in_memory(&file, 0, (1 << 20) - 1).unwrap(), "it has just been written");
        file.sync_all().unwrap();
        fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
        assert!(!is_in_memory(&file, 0, (1 << 20) - 1).unwrap(), "it has just been dropped");
        load(&file, 0, 1 << 20).await.unwrap();
        assert!(is_in_memory(&file, 0, (1 << 20) - 1).unwrap());
    }
}
