//! Where paths begin: the root of a container, or the host's own.
//!
//! Owns the following of paths that people name. In a container's root the kernel resolves them as if it were `/`
//! (openat2(2), `RESOLVE_IN_ROOT`): no link and no `..` leads out of it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::FilesError;

/// Links that are followed in one path (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// How often a path is tried whose `..` met a rename or a mount anywhere in the system.
const TRIES_MAX: usize = 10_000;

/// See the module.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    resolve: ResolveFlags,
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    pub(super) name: OsString,
}

impl Root {
    /// This process's own root.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn own() -> Result<Self, FilesError> {
        let directory = open(Path::new("/"))?;
        Ok(Root {
            directory,
            resolve: ResolveFlags::empty(),
        })
    }

    /// A directory that is somebody else's root; `/proc/<pid>/root` is one.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn of(path: &Path) -> Result<Self, FilesError> {
        Ok(Root {
            directory: open(path)?,
            resolve: ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS),
        })
    }

    /// Opens what an absolute path leads to, without reading from it.
    pub(super) fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        open_within(&self.directory, path, flags, Mode::empty(), self.resolve)
    }

    /// A directory by its path.
    pub(super) fn directory(&self, path: &Path) -> Result<OwnedFd, FilesError> {
        self.resolve(path, OFlags::DIRECTORY)
            .map_err(FilesError::of(path, "open the directory"))
    }

    /// The place that a path names, with the links of its last part followed if asked.
    pub(super) fn place(&self, path: &Path, follow: bool) -> Result<Place, FilesError> {
        let mut at = path.to_path_buf();
        for _ in 0..LINKS_MAX {
            let Some(Component::Normal(name)) = at.components().next_back() else {
                // Its last part is no name of its own: it is a directory.
                break;
            };
            let (name, above) = (name.to_owned(), parent(&at));
            let directory = self.directory(&above)?;
            let target = match follow {
                true => rustix::fs::readlinkat(&directory, &name, Vec::new()).ok(),
                false => None,
            };
            match target {
                Some(target) => at = above.join(OsStr::from_bytes(target.as_bytes())),
                None => return Ok(Place { directory, name }),
            }
        }
        Err(FilesError::NotADirectory(path.to_path_buf()))
    }
}

/// Opens a path below a directory that confines it, as openat2(2) does.
///
/// The kernel refuses a `..` with EAGAIN when it cannot tell whether somebody moved a directory meanwhile, and every
/// rename and mount of the system makes it doubt: the same call is to be made again.
///
/// # Errors
/// As of openat2(2); EAGAIN only when renames and mounts never cease.
pub fn open_within(
    directory: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    for _ in 0..TRIES_MAX {
        match rustix::fs::openat2(&directory, path, flags, mode, resolve) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

fn open(path: &Path) -> Result<OwnedFd, FilesError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(FilesError::of(path, "open the directory"))
}

/// What a path's last part is in.
fn parent(path: &Path) -> PathBuf {
    path.parent()
        .map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

/// Whether a path asks for a directory by how it is written: by a slash, `.` or `..` at its end.
pub(super) fn asks_for_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let last = bytes.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    matches!(last, b"" | b"." | b"..")
}

/// What kind of file a descriptor is of.
pub(super) fn kind(fd: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// While anything is renamed in the system, the kernel has doubts of every `..`.
    #[test]
    fn renames_elsewhere_do_not_disturb_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = |below: &str| directory.path().join(below);
        fs::create_dir_all(path("a/b")).unwrap();
        fs::write(path("a/c"), "text").unwrap();
        let root = Root::of(directory.path()).unwrap();
        let (one, other) = (path("one"), path("other"));
        fs::create_dir(&one).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    fs::rename(&one, &other).unwrap();
                    fs::rename(&other, &one).unwrap();
                }
            });
            let failed = (0..20_000).filter_map(|_| {
                root.resolve(Path::new("/a/b/../b/../../a/c"), OFlags::empty())
                    .err()
            });
            let failed = failed.collect::<Vec<_>>();
            over.store(true, Ordering::Relaxed);
            assert_eq!(failed, []);
        });
    }
}
