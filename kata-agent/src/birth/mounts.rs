//! Mounting what a specification lists, in the root of a container that is not entered yet.
//!
//! Every destination is resolved by the kernel as if the root were `/` ([`Root`]), and what is mounted there goes by
//! descriptors, so no link in an image leads anything out of it. Owns the order of what happens to one mount.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Display;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags};

use super::copy_up;
use super::options::{Change, Options, Propagation, Recursive, attribute};
use super::plan::Mount;
use crate::rootfs::root::Root;
use crate::sys::{self, MountAttributes};

/// File systems that must be where they are asked for, and not where a link in the image leads.
const AT_THEIR_PLACE: [&str; 2] = ["proc", "sysfs"];

/// The root of a container, and what is needed to mount in it.
pub(super) struct Tree<'a> {
    pub(super) root: Root,
    /// The container's cgroup, as the agent sees it; none where the container has a cgroup namespace.
    pub(super) cgroup: Option<&'a Path>,
    /// Where relative sources begin.
    pub(super) bundle: &'a Path,
    /// Sources that had to be opened before a user namespace was entered, by the field of the mount.
    pub(super) sources: BTreeMap<String, OwnedFd>,
    /// Whether it has a user namespace.
    pub(super) has_users: bool,
    /// Mounts that become read-only once everything in them is made.
    sealed: Vec<(String, OwnedFd)>,
}

/// A failure of a mount, by the part of it that is the cause.
fn failed(mount: &Mount, part: &str, what: impl Display) -> Failed {
    Failed::new(FailureKind::Mount, format!("{}{part}: {what}", mount.field))
}

/// The source of a bind mount, as a mount that is nowhere yet.
pub(super) fn open_source(mount: &Mount, bundle: &Path) -> Result<OwnedFd, Failed> {
    let path = bundle.join(&mount.source);
    clone_tree(CWD, &path, mount.options.bind == Some(true))
        .map_err(|error| failed(mount, ".source", format_args!("{}: {error}", mount.source)))
}

/// A copy of what is mounted at a place, that is nowhere yet; with what is mounted below it, or without.
pub(super) fn clone_tree(at: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    rustix::mount::open_tree(at, path, flags)
}

/// Puts a mount that is nowhere yet at a place.
pub(super) fn attach(tree: &OwnedFd, place: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", place, "", flags)
}

pub(super) fn change(mount: &impl AsFd, recursive: bool, change: Change) -> Result<(), Errno> {
    if change.is_empty() {
        return Ok(());
    }
    let Change { set, clear } = change;
    let attributes = MountAttributes {
        set,
        clear,
        ..MountAttributes::default()
    };
    sys::mount_setattr(mount, recursive, &attributes)
}

pub(super) fn propagate(mount: &impl AsFd, propagation: Propagation) -> Result<(), Errno> {
    let attributes = MountAttributes {
        propagation: propagation.kind,
        ..MountAttributes::default()
    };
    sys::mount_setattr(mount, propagation.recursive, &attributes)
}

pub(super) fn make_read_only(mount: &impl AsFd, recursive: bool) -> Result<(), Errno> {
    let read_only = Change {
        set: attribute::RDONLY,
        clear: 0,
    };
    change(mount, recursive, read_only)
}

/// mount(2) refuses a file system where another root of it is mounted; move_mount(2) does not.
fn mount_on_its_like(kind: &str, options: Change, place: &OwnedFd) -> Result<(), Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mounted = rustix::mount::fsmount(&context, flags, MountAttrFlags::empty())?;
    change(&mounted, false, options)?;
    attach(&mounted, place)
}

/// A descriptor as a path, for calls that want one.
fn path_of(place: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", place.as_raw_fd())
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: Root, bundle: &'a Path, cgroup: Option<&'a Path>) -> Self {
        Tree {
            root,
            cgroup,
            bundle,
            sources: BTreeMap::new(),
            has_users: false,
            sealed: Vec::new(),
        }
    }

    /// Mounts everything, in order.
    ///
    /// # Errors
    /// The first that cannot be mounted, by its field.
    pub(super) fn mount_all(&mut self, mounts: &[Mount]) -> Result<(), Failed> {
        mounts.iter().try_for_each(|mount| self.mount(mount))
    }

    /// Makes read-only what had to be written to until now.
    pub(super) fn seal(&mut self) -> Result<(), Failed> {
        for (field, mount) in self.sealed.drain(..) {
            make_read_only(&mount, false)
                .map_err(|error| Failed::new(FailureKind::Mount, format!("{field}.options: ro: {error}")))?;
        }
        Ok(())
    }

    fn mount(&mut self, mount: &Mount) -> Result<(), Failed> {
        let options = &mount.options;
        if options.remount {
            return self.remount(mount);
        }
        let attached = match mount.kind.as_str() {
            _ if options.bind.is_some() => self.bind(mount, None)?,
            "cgroup" | "cgroup2" => match self.cgroup {
                Some(own) => self.bind(mount, Some((own, false)))?,
                None => self.file_system(mount, "cgroup2")?,
            },
            kind => self.file_system(mount, kind)?,
        };
        for propagation in &options.propagation {
            propagate(&attached, *propagation).map_err(|error| failed(mount, ".options", error))?;
        }
        Ok(())
    }

    /// A directory or file that exists, or the container's own cgroup.
    fn bind(&mut self, mount: &Mount, agents: Option<(&Path, Recursive)>) -> Result<OwnedFd, Failed> {
        let tree = match (agents, self.sources.remove(&mount.field)) {
            (Some((agents, recursive)), _) => {
                clone_tree(CWD, agents, recursive).map_err(|error| failed(mount, ".source", error))?
            }
            (None, Some(opened)) => opened,
            (None, None) => open_source(mount, self.bundle)?,
        };
        let options = &mount.options;
        change(&tree, false, options.change)
            .and_then(|()| change(&tree, true, options.recursive_change))
            .map_err(|error| failed(mount, ".options", error))?;
        let place = self.place(mount, is_directory(&tree))?;
        attach(&tree, &place).map_err(|error| self.at_destination(mount, error))?;
        Ok(tree)
    }

    fn file_system(&mut self, mount: &Mount, kind: &str) -> Result<OwnedFd, Failed> {
        let Options {
            data,
            copy_up: copies,
            recursive_change,
            ..
        } = &mount.options;
        let place = self.place(mount, true)?;
        let mut flags = mount.options.mount_flags();
        // What is mounted or made in it later needs a place.
        let sealed =
            flags.contains(MountFlags::RDONLY) && (kind == "tmpfs" || mount.destination == Path::new("/dev"));
        flags.set(MountFlags::RDONLY, flags.contains(MountFlags::RDONLY) && !sealed);
        let source = if mount.source.is_empty() {
            kind
        } else {
            &mount.source
        };
        // The plan has no text with a null byte.
        let data = CString::new(data.as_str()).unwrap_or_default();
        let data = (!data.is_empty()).then_some(data.as_c_str());
        match rustix::mount::mount(source, path_of(&place), kind, flags, data) {
            Ok(()) => {}
            // The agent's cgroups are there already, below a /sys that is the agent's.
            Err(Errno::BUSY) if kind == "cgroup2" && self.has_users && data.is_none() => {
                mount_on_its_like(kind, mount.options.change, &place)
                    .map_err(|error| self.at_destination(mount, error))?;
            }
            // It shows a network, and that of the sandbox is not the container's users' to show anew.
            Err(Errno::PERM) if kind == "sysfs" && self.has_users => {
                return self.bind(mount, Some((Path::new("/sys"), true)));
            }
            Err(error) => {
                let at = mount.destination.display();
                return Err(failed(
                    mount,
                    "",
                    format_args!("{kind} {source:?} at {at}: {error}"),
                ));
            }
        }
        let mounted = self.existing(mount)?;
        change(&mounted, true, *recursive_change).map_err(|error| failed(mount, ".options", error))?;
        if *copies {
            copy_up::copy(&place, &mounted)
                .map_err(|error| failed(mount, ".options", format_args!("tmpcopyup: {error}")))?;
        }
        if sealed {
            let again = mounted.try_clone().map_err(|error| failed(mount, "", error))?;
            self.sealed.push((mount.field.clone(), again));
        }
        Ok(mounted)
    }

    fn remount(&mut self, mount: &Mount) -> Result<(), Failed> {
        let place = self.existing(mount)?;
        let options = &mount.options;
        let done = if options.bind.is_some() {
            change(&place, false, options.change)
                .and_then(|()| change(&place, true, options.recursive_change))
        } else {
            let data = CString::new(options.data.as_str()).unwrap_or_default();
            rustix::mount::mount_remount(path_of(&place), options.mount_flags(), data.as_c_str())
        };
        done.map_err(|error| failed(mount, ".options", error))
    }

    /// The destination, which must exist.
    fn existing(&self, mount: &Mount) -> Result<OwnedFd, Failed> {
        self.resolve(mount)
            .map_err(|error| self.at_destination(mount, error))
    }

    fn resolve(&self, mount: &Mount) -> Result<OwnedFd, Errno> {
        let mut resolve = ResolveFlags::empty();
        resolve.set(
            ResolveFlags::NO_SYMLINKS,
            AT_THEIR_PLACE.contains(&mount.kind.as_str()),
        );
        self.root.resolve(&mount.destination, OFlags::PATH, resolve)
    }

    /// The destination, which is made where it is missing.
    fn place(&self, mount: &Mount, directory: bool) -> Result<OwnedFd, Failed> {
        match self.resolve(mount) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(|error| self.at_destination(mount, error)),
        }
        let path = &mount.destination;
        let made = match (directory, path.parent()) {
            (false, Some(parent)) => self
                .root
                .create_directories(parent)
                .and_then(|()| self.root.touch(path)),
            _ => self.root.create_directories(path),
        };
        made.map_err(|error| failed(mount, ".destination", format_args!("{}: {error}", path.display())))?;
        self.existing(mount)
    }

    fn at_destination(&self, mount: &Mount, error: Errno) -> Failed {
        failed(
            mount,
            ".destination",
            format_args!("{}: {error}", mount.destination.display()),
        )
    }

    /// Hides paths: a file behind the null device, a directory behind an empty one. What is not there needs no hiding.
    pub(super) fn mask(&self, index: usize, path: &Path) -> Result<(), Failed> {
        let Some(place) = self.present("linux.maskedPaths", index, path)? else {
            return Ok(());
        };
        let masked = if is_directory(&place) {
            let flags = MountFlags::RDONLY;
            rustix::mount::mount(
                "tmpfs",
                path_of(&place),
                "tmpfs",
                flags,
                Some(c"nr_blocks=1,nr_inodes=1"),
            )
        } else {
            clone_tree(CWD, Path::new("/dev/null"), false).and_then(|null| attach(&null, &place))
        };
        masked.map_err(|error| at_path("linux.maskedPaths", index, path, error))
    }

    /// Makes paths read-only, with all that is mounted below them.
    pub(super) fn protect(&self, index: usize, path: &Path) -> Result<(), Failed> {
        let Some(place) = self.present("linux.readonlyPaths", index, path)? else {
            return Ok(());
        };
        clone_tree(&place, Path::new(""), true)
            .and_then(|tree| make_read_only(&tree, true).map(|()| tree))
            .and_then(|tree| attach(&tree, &place))
            .map_err(|error| at_path("linux.readonlyPaths", index, path, error))
    }

    fn present(&self, field: &str, index: usize, path: &Path) -> Result<Option<OwnedFd>, Failed> {
        match self.root.resolve(path, OFlags::PATH, ResolveFlags::empty()) {
            Ok(place) => Ok(Some(place)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(at_path(field, index, path, error)),
        }
    }
}

fn at_path(field: &str, index: usize, path: &Path, error: Errno) -> Failed {
    Failed::new(
        FailureKind::Mount,
        format!("{field}[{index}]: {}: {error}", path.display()),
    )
}

pub(super) fn is_directory(place: &OwnedFd) -> bool {
    let stat = rustix::fs::statat(place, "", AtFlags::EMPTY_PATH);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// The root file system as a mount of its own, at its place.
pub(super) fn mount_root(path: &Path) -> Result<OwnedFd, Errno> {
    let tree = clone_tree(CWD, path, true)?;
    let private = Propagation {
        kind: libc::MS_PRIVATE,
        recursive: false,
    };
    propagate(&tree, private)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    attach(&tree, &rustix::fs::open(path, flags, Mode::empty())?)?;
    Ok(tree)
}
