//! Giving a volume to a group, as Kubernetes' `fsGroup` has it.
//!
//! Everything in the volume gets the group, and its members may do what the owner's group may; directories hand the
//! group on to what is made in them. No link is followed.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags};

use crate::order::Group;

/// What the group may do with files, and with directories besides.
const READ: u32 = 0o440;
const READ_WRITE: u32 = 0o660;
const DIRECTORY: u32 = 0o2110;

/// Gives everything below a directory to a group.
pub(super) fn give(root: &Path, group: &Group, read_only: bool) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let bits = if read_only { READ } else { READ_WRITE };
    let stat = rustix::fs::fstat(&root)?;
    let wanted = bits | DIRECTORY;
    if !group.always && stat.st_gid == group.id && stat.st_mode & wanted == wanted {
        return Ok(());
    }
    walk(&root, Gid::from_raw(group.id), bits)
}

fn walk(directory: &OwnedFd, group: Gid, bits: u32) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(directory, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&found)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {}
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                walk(
                    &rustix::fs::openat(directory, name, flags, Mode::empty())?,
                    group,
                    bits,
                )?;
            }
            _ => settle(&found, group, stat.st_mode | bits)?,
        }
    }
    // Last, so that a walk that was cut short is found by its root.
    let stat = rustix::fs::fstat(directory)?;
    settle(directory, group, stat.st_mode | bits | DIRECTORY)
}

/// The group comes first: changing it takes bits of the mode away.
fn settle(file: &OwnedFd, group: Gid, mode: u32) -> io::Result<()> {
    rustix::fs::chownat(file, c"", None, Some(group), AtFlags::EMPTY_PATH)?;
    // A descriptor of a path alone has a mode only by that name.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn everything_but_what_links_lead_to_is_the_groups() {
        let dir = tempfile::tempdir().expect("a directory");
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).expect("made");
        fs::write(volume.join("a/b/file"), "x").expect("written");
        fs::write(&outside, "x").expect("written");
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).expect("set");
        symlink(&outside, volume.join("link")).expect("linked");
        // Without root, a process may only give to groups that it is in.
        let own = fs::metadata(&volume).expect("there").gid();
        let id = if rustix::process::geteuid().is_root() {
            4711
        } else {
            own
        };
        let mut group = Group { id, always: true };
        give(&volume, &group, false).expect("given");
        let mode = |path: &Path| {
            let found = fs::metadata(path).expect("there");
            (found.gid() == id, found.mode() & 0o7777)
        };
        assert_eq!(mode(&volume.join("a/b/file")), (true, 0o664));
        assert_eq!(mode(&volume.join("a/b")), (true, 0o2775));
        assert_eq!(mode(&volume), (true, 0o2775));
        assert_eq!(mode(&outside).1, 0o600);
        // Where the root is right already, what is below is not looked at.
        fs::set_permissions(volume.join("a/b/file"), fs::Permissions::from_mode(0o600)).expect("set");
        group.always = false;
        give(&volume, &group, false).expect("nothing to do");
        assert_eq!(mode(&volume.join("a/b/file")).1, 0o600);
        group.always = true;
        give(&volume, &group, true).expect("given");
        assert_eq!(mode(&volume.join("a/b/file")).1, 0o640);
    }
}
