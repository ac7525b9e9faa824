//! What happens in a child between fork and exec.
//!
//! Owns the death of the child with its parent, and which descriptors the child keeps.
//! It must not know what the child is.

#![expect(
    unsafe_code,
    reason = "code between fork and exec has no safe form in the standard library"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

/// Makes the child die with this thread (SIGKILL, prctl(2) `PR_SET_PDEATHSIG`), start in a session of its
/// own, and keep exactly `kept` beside its standard streams, under the numbers they have here.
pub(super) fn arm(command: &mut Command, kept: Vec<OwnedFd>) {
    let parent = getpid();
    let prepare = move || prepare(parent, &kept);
    // SAFETY: `prepare` only makes system calls: it neither allocates nor takes a lock, so it is sound in
    // the child of a process with other threads.
    unsafe { command.pre_exec(prepare) };
}

fn prepare(parent: Pid, kept: &[OwnedFd]) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != Some(parent) {
        // The parent ended before the signal was asked for: nobody would ever kill this child.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    rustix::process::setsid()?;
    close_others_on_exec();
    for fd in kept {
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(())
}

/// Marks every descriptor above the standard streams: the program that embeds this library may have opened
/// some without close-on-exec. Before Linux 5.11 it does nothing, and only what is ours is marked.
fn close_others_on_exec() {
    // SAFETY: with CLOSE_RANGE_CLOEXEC no descriptor is closed before exec, when all owners end.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}
