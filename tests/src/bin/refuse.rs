//! Runs a program for which the kernel refuses some system calls, as a sandbox does:
//! `refuse ERRNO CALL[,CALL...] PROGRAM [ARGUMENT...]`.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

fn main() -> ExitCode {
    // Nothing but an error comes back.
    let Err(error) = run();
    eprintln!("refuse: {error}");
    ExitCode::FAILURE
}

fn run() -> Result<std::convert::Infallible, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [errno, calls, program, arguments @ ..] = arguments.as_slice() else {
        return Err("an errno, system calls and a program are needed".into());
    };
    let errno = match errno.as_str() {
        "ENOSYS" => libc::ENOSYS,
        "EPERM" => libc::EPERM,
        other => return Err(format!("{other} is not known here").into()),
    };
    let number = |call: &str| match call {
        "sendfile" => Ok(libc::SYS_sendfile),
        "splice" => Ok(libc::SYS_splice),
        other => Err(format!("{other} is not known here")),
    };
    let refused = calls.split(',').map(|call| Ok((number(call)?, Vec::new())));
    let refused = refused.collect::<Result<BTreeMap<_, _>, String>>()?;
    let answer = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(refused, SeccompAction::Allow, answer, env::consts::ARCH.try_into()?)?;
    apply_filter(&BpfProgram::try_from(filter)?)?;
    Err(Command::new(program).args(arguments).exec().into())
}
