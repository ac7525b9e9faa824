//! The nodes of a container: the default devices, those of its specification, the names beside them, and its console.
//!
//! Owns what every container has (config-linux.md#default-devices). Where nodes cannot be made, in a user namespace, the
//! agent's own are put in their place.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::mounts::{attach, clone_tree};
use super::plan::Device;
use crate::rootfs::root::Root;

/// Character devices by their numbers.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Names for what is somewhere else.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// How nodes come into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By mknod(2), which a user namespace forbids.
    Make,
    /// By putting the agent's node there.
    Borrow,
}

/// Makes the default devices and links, but where `/dev` is somebody's own, and then the asked ones.
pub(super) fn make_all(root: &Root, devices: &[Device], way: Way, defaults: bool) -> Result<(), Failed> {
    let default = |(path, major, minor): (&str, u32, u32)| Device {
        field: format!("linux.devices: {path}"),
        path: PathBuf::from(path),
        kind: FileType::CharacterDevice,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    if defaults {
        DEFAULTS
            .into_iter()
            .map(default)
            .filter(|one| devices.iter().all(|asked| asked.path != one.path))
            .try_for_each(|one| make(root, &one, way))?;
        make_links(root).map_err(|error| Failed::new(FailureKind::Container, format!("/dev: {error}")))?;
    }
    devices.iter().try_for_each(|device| make(root, device, way))
}

fn make_links(root: &Root) -> Result<(), Errno> {
    let directory = root.resolve(
        Path::new("/dev"),
        OFlags::PATH | OFlags::DIRECTORY,
        ResolveFlags::empty(),
    )?;
    let core = Path::new("/proc/kcore")
        .exists()
        .then_some(("core", "/proc/kcore"));
    for (name, target) in LINKS.into_iter().chain(core) {
        match rustix::fs::symlinkat(target, &directory, name) {
            // The image has its own.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn failed(device: &Device, error: impl std::fmt::Display) -> Failed {
    let text = format!("{}: {}: {error}", device.field, device.path.display());
    Failed::new(FailureKind::Container, text)
}

fn make(root: &Root, device: &Device, way: Way) -> Result<(), Failed> {
    let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return Err(failed(device, "no name"));
    };
    root.create_directories(parent)
        .map_err(|error| failed(device, error))?;
    let parent = root
        .resolve(parent, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty())
        .map_err(|error| failed(device, error))?;
    let number = rustix::fs::makedev(device.major, device.minor);
    let is_it = |stat: rustix::fs::Stat| {
        let kind = FileType::from_raw_mode(stat.st_mode);
        kind == device.kind && (kind == FileType::Fifo || stat.st_rdev == number)
    };
    match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_it(stat) => return own(&parent, device, name, way),
        Ok(_) => {
            let text = format!(
                "{}.path: {}: something else is there",
                device.field,
                device.path.display()
            );
            return Err(Failed::new(FailureKind::Invalid, text));
        }
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failed(device, error)),
    }
    if way == Way::Borrow && device.kind != FileType::Fifo {
        return borrow(root, device, number);
    }
    rustix::fs::mknodat(
        &parent,
        name,
        device.kind,
        Mode::from_raw_mode(device.mode),
        number,
    )
    .map_err(|error| failed(device, error))?;
    own(&parent, device, name, Way::Make)
}

fn own(parent: &OwnedFd, device: &Device, name: &std::ffi::OsStr, way: Way) -> Result<(), Failed> {
    if way == Way::Borrow && device.kind != FileType::Fifo {
        // The agent's node is as it is.
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .and_then(|()| rustix::fs::chmodat(parent, name, Mode::from_raw_mode(device.mode), AtFlags::empty()))
        .map_err(|error| failed(device, error))
}

/// Puts the agent's node in place of one that cannot be made.
fn borrow(root: &Root, device: &Device, number: u64) -> Result<(), Failed> {
    let theirs = rustix::fs::stat(&device.path);
    if !theirs
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == device.kind && stat.st_rdev == number)
    {
        let text = format!(
            "{}: {}: in a user namespace only devices that the guest has under the same name",
            device.field,
            device.path.display()
        );
        return Err(Failed::new(FailureKind::Unsupported, text));
    }
    root.touch(&device.path).map_err(|error| failed(device, error))?;
    let place = root.resolve(&device.path, OFlags::PATH, ResolveFlags::empty());
    place
        .and_then(|place| attach(&clone_tree(CWD, &device.path, false)?, &place))
        .map_err(|error| failed(device, error))
}

/// Puts the container's side of its terminal at `/dev/console`.
pub(super) fn place_console(root: &Root, terminal: &OwnedFd) -> Result<(), Failed> {
    let path = Path::new("/dev/console");
    let failed = |error: &dyn std::fmt::Display| {
        Failed::new(
            FailureKind::Container,
            format!("process.terminal: /dev/console: {error}"),
        )
    };
    root.touch(path).map_err(|error| failed(&error))?;
    let placed = root
        .resolve(path, OFlags::PATH, ResolveFlags::empty())
        .and_then(|place| attach(&clone_tree(terminal, Path::new(""), false)?, &place));
    placed.map_err(|error| failed(&error))
}
