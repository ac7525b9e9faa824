//! The descriptors of the monitor process: none of its caller's, and room for a machine's.
//!
//! Owns what happens to them before the monitor serves. It must not know what they refer to.

#![expect(
    unsafe_code,
    reason = "closing descriptors that no value owns has no safe form"
)]

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Closes every descriptor above the standard streams (`close_range(2)`, Linux 5.9): what the caller had open
/// without close-on-exec, a pipe or a lock perhaps, must not live as long as the machine.
///
/// # Errors
/// The operating system's.
pub(super) fn close_inherited() -> io::Result<()> {
    // SAFETY: no memory is passed. The process has just begun: what is open above the standard streams came
    // through exec and has no owner here, which `main` demands of a program that embeds it.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises the soft limit of open files to the hard one, for the machine's processes too: the usual 1024 is
/// what the streams of a vsock device alone may take.
///
/// # Errors
/// The operating system's.
pub(super) fn raise_limit() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}
