//! A layout in a directory. Links may lead about in it, and never out of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::Files;

/// How often a link's `..` is tried that met a rename or a mount anywhere in the system.
const TRIES_MAX: usize = 10_000;

/// The directory, held open: what is renamed over it later is another.
pub(super) struct Directory(OwnedFd);

impl Directory {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Opens what a name leads to. The kernel refuses a `..` with EAGAIN while it cannot tell whether somebody moved
    /// a directory (openat2(2)): the same call is to be made again.
    fn within(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..TRIES_MAX {
            match openat2(&self.0, name, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => std::thread::yield_now(),
                opened => return opened,
            }
        }
        Err(Errno::AGAIN)
    }
}

impl Files for Directory {
    fn read(&self, name: &str, offset: u64) -> io::Result<Option<Box<dyn Read + Send>>> {
        let file = match self.within(name) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            ));
        }
        (&file).seek(SeekFrom::Start(offset))?;
        Ok(Some(Box::new(file)))
    }
}
