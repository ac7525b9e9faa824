//! A copy of a directory tree, for a tmpfs that begins with what it covers.
//!
//! Keeps owners, modes, times, extended attributes, links and nodes. Both trees go by descriptors, and no link is followed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Longest list and value of extended attributes (linux/limits.h).
const XATTR_MAX_BYTES: usize = 64 << 10;

/// Copies what is in a directory, and what it is itself, to another.
pub(super) fn copy(from: &impl AsFd, to: &impl AsFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // A name that is none opens the directory itself, and not what is mounted upon it.
    let from = rustix::fs::openat(from, ".", flags, Mode::empty())?;
    let to = rustix::fs::openat(to, ".", flags, Mode::empty())?;
    copy_directory(&from, &to)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name)?;
        }
    }
    copy_attributes(from, to, &rustix::fs::fstat(from)?)
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &std::ffi::CStr) -> io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let open = |at: &OwnedFd, flags: OFlags| {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o600))
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            copy_directory(&open(from, flags)?, &open(to, flags)?)
        }
        FileType::RegularFile => {
            let mut source = File::from(open(from, OFlags::RDONLY | OFlags::NONBLOCK)?);
            let mut copy = File::from(open(to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
            io::copy(&mut source, &mut copy)?;
            copy_attributes(&source, &copy, &stat)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to, name)?;
            own(to, name, &stat)
        }
        kind => {
            let mode = Mode::from_raw_mode(stat.st_mode);
            rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
            own(to, name, &stat)?;
            Ok(rustix::fs::chmodat(to, name, mode, AtFlags::empty())?)
        }
    }
}

fn own(at: &OwnedFd, name: &std::ffi::CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(rustix::fs::chownat(
        at,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// The owner before the mode, which loses bits by a change of owner; the times last.
fn copy_attributes(from: &impl AsFd, to: &impl AsFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    copy_xattrs(from, to)?;
    let time = |tv_sec: i64, tv_nsec: u64| Timespec {
        tv_sec,
        tv_nsec: i64::try_from(tv_nsec).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::futimens(to, &times)?)
}

fn copy_xattrs(from: &impl AsFd, to: &impl AsFd) -> io::Result<()> {
    let mut names = vec![0; XATTR_MAX_BYTES];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    let names = names.get(..length).unwrap_or_default();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = std::ffi::CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let mut value = vec![0; XATTR_MAX_BYTES];
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(
            to,
            name,
            value.get(..length).unwrap_or_default(),
            XattrFlags::empty(),
        ) {
            // Of another file system, such as an overlay's own.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_with_modes_links_and_times() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub/deep")).expect("made");
        fs::create_dir(&to).expect("made");
        fs::write(from.join("sub/file"), "text").expect("written");
        fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o640)).expect("set");
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1777)).expect("set");
        symlink("/nowhere", from.join("link")).expect("linked");
        copy(
            &File::open(&from).expect("opened"),
            &File::open(&to).expect("opened"),
        )
        .expect("copied");
        assert_eq!(fs::read_to_string(to.join("sub/file")).expect("read"), "text");
        assert_eq!(
            fs::read_link(to.join("link")).expect("a link"),
            std::path::Path::new("/nowhere")
        );
        assert!(to.join("sub/deep").is_dir());
        let (before, after) = (
            fs::metadata(from.join("sub/file")).expect("there"),
            fs::metadata(to.join("sub/file")).expect("there"),
        );
        assert_eq!(
            (before.mode(), before.mtime_nsec()),
            (after.mode(), after.mtime_nsec())
        );
        assert_eq!(fs::metadata(&to).expect("there").mode() & 0o7777, 0o1777);
    }
}
