//! The three descriptors that a process begins with.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// The standard streams of a worker, and so of the process that it makes, or of a process in a container.
pub(crate) struct Streams {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Streams {
    /// One descriptor for all three.
    pub(crate) fn all(stream: OwnedFd) -> io::Result<Self> {
        Ok(Streams {
            stdin: stream.try_clone()?,
            stdout: stream.try_clone()?,
            stderr: stream,
        })
    }

    /// Streams that lead nowhere.
    pub(crate) fn null() -> io::Result<Self> {
        let open = |write: bool| {
            File::options()
                .read(!write)
                .write(write)
                .open("/dev/null")
                .map(OwnedFd::from)
        };
        Ok(Streams {
            stdin: open(false)?,
            stdout: open(true)?,
            stderr: open(true)?,
        })
    }
}
