//! Terminals of a container's processes.
//!
//! A terminal belongs to the container's own `/dev/pts`, so that its name means something there. Its other side becomes
//! the user's with the standard streams, so that `/dev/stdout` opens; its group stays what the file system says (`gid=`,
//! as tty(4) has it). Must not know streams or processes of the API.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::reaper::Child;
use crate::rootfs::root::Root;

/// Type of the file system of terminals (linux/magic.h).
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Makes a terminal in the container `id`, and returns our side and the container's.
///
/// # Errors
/// Not running, when its init has ended; or that it has no terminals.
pub(crate) fn open(id: &str, init: &Child, size: Winsize) -> Result<(OwnedFd, OwnedFd), Failed> {
    let root = Root::open(Path::new(&format!("/proc/{}/root", init.pid())));
    root.and_then(|root| open_in(&root, size))
        .map_err(|error| match init.has_ended() {
            true => Failed::new(FailureKind::NotRunning, id),
            false => Failed::new(FailureKind::Container, format!("terminal: {error}")),
        })
}

/// Makes a terminal in the file system of terminals that is in a root.
pub(crate) fn open_in(root: &Root, size: Winsize) -> io::Result<(OwnedFd, OwnedFd)> {
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
