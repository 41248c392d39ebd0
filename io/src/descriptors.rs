//! How many files and sockets this process may have open. Raised once, at start.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit to what the process may grant itself; gives what it is, `None` if there is none.
/// The usual 1024 is what programs of the age of `select` can bear, and four for each of a thousand
/// clients, two of them a pipe's, are beyond it.
///
/// # Errors
///
/// The system's, which leaves the limit as it was.
pub fn raise_limit() -> io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum)
}
