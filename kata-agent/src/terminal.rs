//! Terminals of a container's processes: making one in the container, and giving one to its user.
//!
//! A terminal belongs to the container's own `/dev/pts`, so that its name means something there. Its other side is
//! the user's, so that `/dev/stdout` opens; its group stays what the file system says (`gid=`, as tty(4) has it).
//! Must not know streams or processes of the API.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::reaper::Child;
use crate::worker::root::Root;

/// Type of the file system of terminals (linux/magic.h).
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Makes a terminal in the container `id`, and returns our side and the container's.
///
/// # Errors
/// Not running, when its init has ended; or that it has no terminals.
pub(crate) fn open(id: &str, init: &Child, size: Winsize) -> Result<(OwnedFd, OwnedFd), Failed> {
    open_in(init.pid(), size).map_err(|error| match init.has_ended() {
        true => Failed::new(FailureKind::NotRunning, id),
        false => Failed::new(FailureKind::Container, format!("terminal: {error}")),
    })
}

fn open_in(pid: i32, size: Winsize) -> io::Result<(OwnedFd, OwnedFd)> {
    let root = Root::open(Path::new(&format!("/proc/{pid}/root")))?;
    let ours = root.open_device(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY)?;
    // Anything else in its place is the container's doing.
    if rustix::fs::fstatfs(&ours)?.f_type != DEVPTS_SUPER_MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "/dev/pts of the container has no terminals",
        ));
    }
    rustix::pty::unlockpt(&ours)?;
    let theirs = other_side(&ours)?;
    rustix::termios::tcsetwinsize(&ours, size)?;
    Ok((ours, theirs))
}

/// The container's side, without a path, and without making it anybody's controlling terminal.
fn other_side(ours: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    Ok(rustix::pty::ioctl_tiocgptpeer(ours, flags)?)
}

/// Gives the other side of a terminal to the user of a process that has it.
pub(crate) fn give(ours: impl AsFd, pid: i32) -> io::Result<()> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let user = user_of(&status).ok_or(io::ErrorKind::InvalidData)?;
    rustix::fs::fchown(other_side(ours)?, Some(Uid::from_raw(user)), None)?;
    Ok(())
}

/// The effective user, from the text of proc(5) `status`.
fn user_of(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_is_the_second_number() {
        assert_eq!(user_of("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"), Some(2));
        assert_eq!(user_of("Uid:\t1\n"), None);
        assert_eq!(user_of(""), None);
    }
}
