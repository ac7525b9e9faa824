//! Files that the host puts into the guest piece by piece, for containers to mount.
//!
//! Owns the directory for them, and that no path leads out of it: not by `..`, not by a link, and not into
//! anything that is mounted there, which also keeps it to memory, where nothing waits. A file has its name only
//! when it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use kata_agent_proto::agent::CopyFileRequest;
use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

/// Everything is below it, as in Kata's guests.
const BASE: &str = "/run/kata-containers";
/// Before the name of a file that is not complete.
const PARTIAL: &str = ".partial-";

/// Takes one piece, a directory or a link.
///
/// # Errors
/// Invalid for a path, offset or size without meaning; the guest's own otherwise.
pub(crate) fn copy_file(request: &CopyFileRequest) -> Result<(), Failed> {
    copy_into(Path::new(BASE), request)
}

fn invalid(what: impl Into<String>) -> Failed {
    Failed::new(FailureKind::Invalid, what)
}

fn copy_into(base: &Path, request: &CopyFileRequest) -> Result<(), Failed> {
    let path = Path::new(&request.path);
    let below = path.strip_prefix(base).ok().filter(|below| {
        let plain = below
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        // What is canonical is written in only one way.
        let canonical: PathBuf = below.components().collect();
        plain && base.join(canonical).as_os_str() == path.as_os_str()
    });
    let (below, name) = below
        .and_then(|below| Some((below, below.file_name()?)))
        .ok_or_else(|| invalid(format!("path {:?} is not below {}", request.path, base.display())))?;
    let failure = |error: io::Error| match error.raw_os_error() {
        Some(libc::EXDEV) => Failed::new(
            FailureKind::Unsupported,
            format!("{}: copying into a mounted file system", request.path),
        ),
        _ => Failed::new(FailureKind::Guest, format!("{}: {error}", request.path)),
    };
    std::fs::create_dir_all(base).map_err(failure)?;
    let parent = below.parent().unwrap_or(Path::new(""));
    let parent = make_directories(base, parent, request.dir_mode).map_err(failure)?;
    let target = Target {
        parent,
        name,
        partial: partial_name(name),
        request,
    };
    match FileType::from_raw_mode(request.file_mode) {
        FileType::Directory => target.directory().map_err(failure),
        FileType::Symlink => target.link().map_err(failure),
        // Without a type in its mode it is a file.
        FileType::RegularFile | FileType::Unknown => {
            let (offset, size) = extent(request)?;
            target.piece(offset, size).map_err(failure)
        }
        other => Err(Failed::new(
            FailureKind::Unsupported,
            format!("copying a {other:?}"),
        )),
    }
}

/// Where the piece begins, and how long the file is to be.
fn extent(request: &CopyFileRequest) -> Result<(u64, u64), Failed> {
    let number = |number: i64, what: &str| {
        u64::try_from(number).map_err(|_| invalid(format!("{what} {number} of {}", request.path)))
    };
    let offset = number(request.offset, "offset")?;
    let size = number(request.file_size, "size")?;
    let end = offset.checked_add(u64::try_from(request.data.len()).unwrap_or(u64::MAX));
    if end.is_none_or(|end| end > size) {
        return Err(invalid(format!("{} has {size} bytes and not more", request.path)));
    }
    Ok((offset, size))
}

fn partial_name(name: &OsStr) -> OsString {
    let mut partial = OsString::from(PARTIAL);
    partial.push(name);
    partial
}

/// Opens a directory below the base, after making what is missing of it.
fn make_directories(base: &Path, below: &Path, mode: u32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut reached = rustix::fs::open(base, flags, Mode::empty())?;
    for part in below.components() {
        let step = |from: &OwnedFd| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            rustix::fs::openat2(from, part.as_os_str(), flags, Mode::empty(), resolve)
        };
        reached = match step(&reached) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&reached, part.as_os_str(), Mode::RWXU)?;
                let made = step(&reached)?;
                rustix::fs::fchmod(&made, Mode::from_raw_mode(mode & 0o7777))?;
                made
            }
            other => other?,
        };
    }
    Ok(reached)
}

struct Target<'a> {
    parent: OwnedFd,
    name: &'a OsStr,
    partial: OsString,
    request: &'a CopyFileRequest,
}

impl Target<'_> {
    fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.request.file_mode & 0o7777)
    }

    /// A negative number leaves the owner as it is, as with chown(2).
    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        let number = |number: i32| u32::try_from(number).ok();
        (
            number(self.request.uid).map(Uid::from_raw),
            number(self.request.gid).map(Gid::from_raw),
        )
    }

    fn directory(&self) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.parent, self.name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        self.settle(rustix::fs::openat(&self.parent, self.name, flags, Mode::empty())?)
    }

    /// The owner comes first: changing it takes bits of the mode away.
    fn settle(&self, file: OwnedFd) -> io::Result<()> {
        let (uid, gid) = self.owner();
        rustix::fs::fchown(&file, uid, gid)?;
        Ok(rustix::fs::fchmod(&file, self.mode())?)
    }

    fn link(&self) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        self.forget_partial()?;
        let to = OsStr::from_bytes(&self.request.data);
        rustix::fs::symlinkat(to, &self.parent, &self.partial)?;
        let (uid, gid) = self.owner();
        rustix::fs::chownat(&self.parent, &self.partial, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        self.complete()
    }

    fn forget_partial(&self) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.parent, &self.partial, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn complete(&self) -> io::Result<()> {
        Ok(rustix::fs::renameat(
            &self.parent,
            &self.partial,
            &self.parent,
            self.name,
        )?)
    }

    fn piece(&self, offset: u64, size: u64) -> io::Result<()> {
        let mut flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if offset == 0 {
            // What an earlier attempt left.
            flags |= OFlags::TRUNC;
        }
        let file = rustix::fs::openat(&self.parent, &self.partial, flags, Mode::RUSR | Mode::WUSR)?;
        let file = File::from(file);
        let length = file.metadata()?.len();
        if offset > length {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a piece at {offset} after {length} bytes"),
            ));
        }
        file.write_all_at(&self.request.data, offset)?;
        if file.metadata()?.len() < size {
            return Ok(());
        }
        self.settle(file.into())?;
        self.complete()
    }
}

#[cfg(test)]
mod tests;
