//! Where a copy goes, as `docker cp` has it.
//!
//! | the destination | a file is copied | a directory is copied |
//! |---|---|---|
//! | is not there | it gets that name | it gets that name |
//! | is not there, and ends in `/` | refused | it gets that name |
//! | is a file, or a link to one | it is replaced | refused |
//! | is a directory, or a link to one | it gets its own name in there | it gets its own name in there, or only its contents go there where the source ends in `/.` |
//!
//! What the destination is in has to be there.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::root::{Place, Root, asks_for_directory, kind};
use super::step::check_path;
use super::{FilesError, error::shown};

/// Where the root of a copy goes.
pub(super) enum Target {
    /// Its contents go into this directory, which stays as it is.
    Into(OwnedFd, PathBuf),
    /// It gets a name of its own; beside it the path that is shown.
    Named(Place, PathBuf),
}

/// Finds the place for a root that is a directory or not, by the name of its source.
pub(super) fn find(
    root: &Root,
    path: &Path,
    name: Option<&[u8]>,
    is_directory: bool,
) -> Result<Target, FilesError> {
    let refuse = || FilesError::NotADirectory(path.to_path_buf());
    let found = match root.resolve(path, OFlags::empty()) {
        Ok(found) => found,
        Err(Errno::NOENT) if is_directory || !asks_for_directory(path) => {
            return Ok(Target::Named(root.place(path, false)?, path.to_path_buf()));
        }
        Err(errno) => return Err(FilesError::of(path, "find it")(errno)),
    };
    if kind(&found).map_err(FilesError::of(path, "look at it"))? != FileType::Directory {
        if is_directory || asks_for_directory(path) {
            return Err(refuse());
        }
        return Ok(Target::Named(root.place(path, true)?, path.to_path_buf()));
    }
    match name {
        None if is_directory => Ok(Target::Into(root.directory(path)?, path.to_path_buf())),
        None => Err(refuse()),
        Some(name) => {
            check_path(name)?;
            if name.contains(&b'/') {
                return Err(FilesError::Malformed("a name that is a path"));
            }
            let place = Place {
                directory: root.directory(path)?,
                name: OsStr::from_bytes(name).to_owned(),
            };
            Ok(Target::Named(place, shown(path, name)))
        }
    }
}
