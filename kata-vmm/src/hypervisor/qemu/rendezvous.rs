//! A socket that QEMU connects to by itself, where it takes no connection that it is given.
//!
//! QEMU passes descriptors only over what it knows to be a Unix socket, which for a socket of `-chardev` is one
//! with a path (QEMU `chardev/char-socket.c`, `QEMU_CHAR_FEATURE_FD_PASS`), and its vhost-user network card
//! insists on that (`net/vhost-user.c`); disk and vsock do not.
//!
//! ```text
//!  made: listener at a path of its own ─► path gone, a descriptor of its place stays
//!                                            │ QEMU inherits it, connects to /proc/self/fd/N
//!                                            ▼
//!                                         arrived ─► device served
//! ```
//!
//! Nobody else can connect: the path is gone before QEMU starts. It must not know devices.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::time::Timespec;

/// Directories that others may have made under our name; more of them are no accident.
const ATTEMPTS: u32 = 1000;

/// Our side of it.
#[derive(Debug)]
pub(super) struct Rendezvous {
    listener: UnixListener,
}

impl Rendezvous {
    /// A socket, and what QEMU inherits of it.
    ///
    /// # Errors
    /// When the directory for temporary files cannot be written, or no descriptors are left.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let directory = Directory::new(&std::env::temp_dir())?;
        let path = directory.0.join("socket");
        let listener = UnixListener::bind(&path)?;
        let place = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok((Self { listener }, place))
    }

    /// Readable when QEMU has connected.
    pub(super) fn source(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Whether QEMU has connected.
    pub(super) fn has_arrived(&self) -> bool {
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
    }

    /// The socket with its one connection.
    pub(super) fn into_listener(self) -> UnixListener {
        self.listener
    }
}

/// A directory that only we can enter; dropped, it is removed with the socket.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new(parent: &Path) -> io::Result<Self> {
        let mut last = io::ErrorKind::AlreadyExists.into();
        for number in 0..ATTEMPTS {
            let path = parent.join(format!("kata-vmm-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(cause) = std::fs::remove_dir_all(&self.0) {
            log::warn!("{} stays: {cause}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn who_has_the_place_can_connect_although_the_path_is_gone() {
        let (rendezvous, place) = Rendezvous::new().unwrap();
        let path = std::fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd())).unwrap();
        assert!(
            path.to_string_lossy().ends_with(" (deleted)"),
            "{}",
            path.display()
        );
        assert!(!rendezvous.has_arrived());
        let mut theirs = UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd())).unwrap();
        assert!(rendezvous.has_arrived());
        let (mut ours, _) = rendezvous.into_listener().accept().unwrap();
        theirs.write_all(b"x").unwrap();
        let mut byte = [0];
        ours.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
