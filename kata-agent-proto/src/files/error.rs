//! Why files were not copied, with the path that it is about.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::{Failed, FailureKind};

/// See the module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// It does not exist.
    #[error("{}: no such file or directory", .0.display())]
    NoSuchFile(PathBuf),
    /// It leads through what is no directory, or file and directory would have to take each other's place.
    #[error("{}: a file and a directory cannot take each other's place", .0.display())]
    NotADirectory(PathBuf),
    /// Its file system is full.
    #[error("{}: no space left", .0.display())]
    NoSpace(PathBuf),
    /// It cannot be read or made.
    #[error("{}: cannot {operation}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was done with it.
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The user namespace that it comes to does not have its owner.
    #[error("{}: owner {uid}:{gid} does not exist in the user namespace", .path.display())]
    NoSuchOwner {
        /// Which.
        path: PathBuf,
        /// The user that it was to belong to.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// There is more of it than it may be.
    #[error("more than the limit of {0} bytes")]
    TooMuch(u64),
    /// What comes is no stream of files.
    #[error("a broken stream of files: {0}")]
    Malformed(&'static str),
    /// The stream ended or failed before its end.
    #[error("the stream of files broke off")]
    Stream(#[source] io::Error),
}

impl FilesError {
    /// What an answer of the system about a path means.
    pub(super) fn of(path: impl AsRef<Path>, operation: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| {
            let path = path.as_ref().to_path_buf();
            match errno {
                Errno::NOENT => FilesError::NoSuchFile(path),
                Errno::NOTDIR => FilesError::NotADirectory(path),
                Errno::NOSPC | Errno::DQUOT => FilesError::NoSpace(path),
                errno => FilesError::File {
                    path,
                    operation,
                    source: errno.into(),
                },
            }
        }
    }

    /// As the agent's API tells it.
    #[must_use]
    pub fn failed(&self) -> Failed {
        let path = |path: &Path| path.display().to_string();
        let (kind, subject) = match self {
            FilesError::NoSuchFile(at) => (FailureKind::NoSuchFile, path(at)),
            FilesError::NotADirectory(at) => (FailureKind::NotADirectory, path(at)),
            FilesError::NoSpace(at) => (FailureKind::NoSpace, path(at)),
            FilesError::File { source, .. } => (FailureKind::File, format!("{self}: {source}")),
            FilesError::TooMuch(_) | FilesError::NoSuchOwner { .. } => (FailureKind::File, self.to_string()),
            FilesError::Malformed(what) => (FailureKind::Malformed, (*what).to_owned()),
            FilesError::Stream(error) => (FailureKind::Malformed, format!("it broke off: {error}")),
        };
        Failed::new(kind, subject)
    }
}

/// A path as it is shown: the place of the copy, and from there.
pub(super) fn shown(base: &Path, below: &[u8]) -> PathBuf {
    if below.is_empty() {
        base.to_path_buf()
    } else {
        base.join(OsStr::from_bytes(below))
    }
}
