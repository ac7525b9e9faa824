//! System calls of making a container and its processes.
//!
//! As everything in [`sys`](super): one operation a function, each with its invariant.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{check, last_errno, new_fd};

/// Which side of a fork this is.
pub(crate) enum Birth {
    /// The new process.
    Child,
    /// The old process.
    Parent {
        /// The new one's id, in the old one's PID namespace.
        pid: i32,
        /// The new one itself.
        pidfd: OwnedFd,
    },
}

/// Splits the process in two, with the child in a cgroup and in the PID namespace for children
/// (clone3(2)). Handlers of signals are not the child's. Only while this is the only thread.
pub(crate) fn fork_into(cgroup: &impl AsFd) -> rustix::io::Result<Birth> {
    let signal = u64::from(libc::SIGCHLD.cast_unsigned());
    clone(0, signal, Some(cgroup.as_fd()))
}

/// Splits the process in two, with the child in new namespaces (flags of clone(2)). Only while this is the only thread.
pub(crate) fn fork_child(namespaces: u32) -> rustix::io::Result<Birth> {
    let signal = u64::from(libc::SIGCHLD.cast_unsigned());
    clone(u64::from(namespaces), signal, None)
}

/// Splits the process in two, with the child in new namespaces (flags of clone(2)) and, if there is one, in a cgroup.
/// The child is a child of this process's parent. Only while this is the only thread.
pub(crate) fn fork_sibling(namespaces: u32, cgroup: Option<BorrowedFd<'_>>) -> rustix::io::Result<Birth> {
    let parent = u64::from(libc::CLONE_PARENT.cast_unsigned());
    // The signal of a sibling's end is this process's own.
    clone(parent | u64::from(namespaces), 0, cgroup)
}

fn clone(flags: u64, signal: u64, cgroup: Option<BorrowedFd<'_>>) -> rustix::io::Result<Birth> {
    // libc's constants of these two have the type of the older calls, which is too short for them.
    const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    let mut pidfd: u64 = u64::MAX;
    // A struct clone_args of version 2: flags, pidfd, child_tid, parent_tid, exit_signal, stack,
    // stack_size, tls, set_tid, set_tid_size, cgroup.
    let mut args = [0_u64; 11];
    args[0] = flags | CLONE_CLEAR_SIGHAND | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    args[1] = (&raw mut pidfd).expose_provenance() as u64;
    args[4] = signal;
    if let Some(cgroup) = cgroup {
        args[0] |= CLONE_INTO_CGROUP;
        args[10] = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: without CLONE_VM the child has a copy of everything, and no other thread holds a lock in
    // it; `args` has the announced size and `pidfd` is a place for the descriptor.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    match i32::try_from(pid) {
        Ok(0) => Ok(Birth::Child),
        Ok(pid) if pid > 0 => Ok(Birth::Parent {
            pid,
            pidfd: new_fd(pidfd)?,
        }),
        _ => Err(last_errno()),
    }
}

/// Leaves namespaces for new ones (flags of unshare(2)). Only while this is the only thread.
pub(crate) fn unshare(namespaces: u32) -> rustix::io::Result<()> {
    // SAFETY: unshare of namespaces touches no memory of this process.
    match unsafe { libc::unshare(namespaces.cast_signed()) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// What changes of a mount: a `struct mount_attr` (mount_setattr(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct MountAttributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// One of MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, or none.
    pub(crate) propagation: u64,
    /// The descriptor of a user namespace, with MOUNT_ATTR_IDMAP.
    pub(crate) user_namespace: u64,
}

/// Changes a mount, with those below it or without.
pub(crate) fn mount_setattr(
    mount: &impl AsFd,
    recursive: bool,
    attributes: &MountAttributes,
) -> rustix::io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (fd, path, at) = (mount.as_fd().as_raw_fd(), c"".as_ptr(), &raw const *attributes);
    // SAFETY: `attributes` has the layout and the announced size of a struct mount_attr, and the path ends with a null
    // byte.
    match unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            path,
            flags,
            at,
            size_of_val(attributes),
        )
    } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// How a process is scheduled: a `struct sched_attr` of its first version (sched_setattr(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Scheduling {
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// Sets how this process is scheduled.
pub(crate) fn set_scheduling(mut scheduling: Scheduling) -> io::Result<()> {
    scheduling.size = u32::try_from(size_of::<Scheduling>()).unwrap_or(0);
    // SAFETY: the structure says its own size.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const scheduling, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets this process's priority for input and output (ioprio_set(2)): a class, and a level in it.
pub(crate) fn set_io_priority(class: i32, level: i32) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    const CLASS_SHIFT: i32 = 13;
    // SAFETY: no memory is involved.
    match unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            WHO_PROCESS,
            0,
            (class << CLASS_SHIFT) | level,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets this process's execution domain (personality(2)).
pub(crate) fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::personality(domain) }).map(drop)
}

/// Loads a filter of system calls for this process, instruction by instruction (seccomp(2)).
pub(crate) fn load_filter(instructions: &[u64], flags: u32) -> io::Result<()> {
    const SET_MODE_FILTER: u32 = 1;
    let count = u16::try_from(instructions.len()).map_err(io::Error::other)?;
    // A struct sock_fprog: the number, then the address, at its own alignment.
    let program = [u64::from(count), instructions.as_ptr().expose_provenance() as u64];
    // SAFETY: `program` has that layout where numbers are little-endian, and the instructions have the announced number.
    match unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, program.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
