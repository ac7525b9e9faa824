//! A file of the kernel that tells when it changes, as cgroup.events and memory.events do.
//!
//! Owns the waiting: such a file is signalled as a priority event (cgroup-v2.rst, `[Un]populated
//! Notification`). inotify would do, too, but its instances are counted per user, and a container's user may be
//! ours. Must not know what is in the file.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// See the module.
pub(crate) struct Watched {
    file: File,
    changes: AsyncFd<OwnedFd>,
}

impl Watched {
    /// Watches a file from here on.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let changes = sys::watch(file.try_clone()?.into(), Interest::PRIORITY)?;
        Ok(Watched { file, changes })
    }

    /// What the file says now. A change after this is one that [`Watched::changed`] tells.
    pub(crate) fn text(&self) -> io::Result<String> {
        let mut text = String::new();
        let mut file = &self.file;
        file.rewind()?;
        file.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Returns after a change, or sometimes without one.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        self.changes.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

/// The number behind a name, in lines of a name and a number.
pub(crate) fn number_of(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
