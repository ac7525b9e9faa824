//! The first process of a guest: file systems, modules, cgroups, loopback.
//!
//! Owns what a fresh kernel needs before the agent can listen. Runs once, before any thread or task.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::guest::boot_time_ns;
use crate::sys;

/// When each step was done, CLOCK_BOOTTIME in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeline {
    pub(crate) modules_ns: u64,
    pub(crate) mounts_ns: u64,
}

/// Why the guest cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file system could not be mounted.
    #[error("cannot mount {target}")]
    Mount {
        /// Where.
        target: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kernel module could not be loaded.
    #[error("cannot load module {name}")]
    Module {
        /// Its file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The root could not be made one that can be left behind.
    #[error("cannot set up the root")]
    Root(#[source] io::Error),
    /// The loopback interface is down.
    #[error("cannot bring the loopback interface up")]
    Loopback(#[source] io::Error),
}

/// What every guest has mounted: target, type, flags, data.
const MOUNTS: [(&str, &str, MountFlags, &std::ffi::CStr); 6] = [
    ("/dev", "devtmpfs", MountFlags::NOSUID, c"mode=0755"),
    ("/proc", "proc", SAFE, c""),
    ("/sys", "sysfs", SAFE, c""),
    ("/sys/fs/cgroup", "cgroup2", SAFE, c"nsdelegate"),
    (
        "/run",
        "tmpfs",
        MountFlags::NOSUID.union(MountFlags::NODEV),
        c"mode=0755",
    ),
    (
        "/tmp",
        "tmpfs",
        MountFlags::NOSUID.union(MountFlags::NODEV),
        c"mode=1777",
    ),
];

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Controllers that containers are limited by.
pub(crate) const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "cpuset"];

/// Sets the guest up.
pub(crate) fn set_up() -> Result<Timeline, BootError> {
    leave_rootfs().map_err(BootError::Root)?;
    load_modules(Path::new("/lib/modules"))?;
    let modules_ns = boot_time_ns();
    for (target, fstype, flags, data) in MOUNTS {
        mount(target, fstype, flags, data).map_err(|source| BootError::Mount { target, source })?;
    }
    enable_controllers(Path::new("/sys/fs/cgroup"));
    hurry_grace_periods();
    sys::loopback_up().map_err(BootError::Loopback)?;
    Ok(Timeline {
        modules_ns,
        mounts_ns: boot_time_ns(),
    })
}

fn mount(target: &str, fstype: &str, flags: MountFlags, data: &std::ffi::CStr) -> io::Result<()> {
    fs::create_dir_all(target)?;
    match rustix::mount::mount(fstype, target, fstype, flags, data) {
        // The kernel mounted it already.
        Err(Errno::BUSY) => Ok(()),
        other => Ok(other?),
    }
}

/// Making a container moves processes between cgroups and makes namespaces, each of which waits for RCU
/// grace periods (admin-guide/kernel-parameters.txt, `rcupdate.rcu_expedited`).
fn hurry_grace_periods() {
    // A kernel without the switch is only slower.
    let _ = fs::write("/sys/kernel/rcu_expedited", "1");
}

/// Puts a bind mount of the initial root over itself: pivot_root(2) refuses to leave the kernel's
/// first mount, but not one upon it.
fn leave_rootfs() -> io::Result<()> {
    fs::create_dir_all("/.root")?;
    rustix::mount::mount_bind("/", "/.root")?;
    rustix::process::chdir("/.root")?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Loads the modules named in `order`, one file name a line, if there is such a list.
fn load_modules(directory: &Path) -> Result<(), BootError> {
    let order = fs::read_to_string(directory.join("order")).unwrap_or_default();
    for name in order.lines().filter(|line| !line.is_empty()) {
        load_module(&directory.join(name)).map_err(|source| BootError::Module {
            name: name.to_owned(),
            source,
        })?;
    }
    Ok(())
}

fn load_module(path: &Path) -> io::Result<()> {
    match rustix::system::finit_module(File::open(path)?, c"", 0) {
        Err(Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// Enables the controllers that the kernel has, for the cgroups below.
pub(crate) fn enable_controllers(cgroup: &Path) {
    let present = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    for controller in present
        .split_whitespace()
        .filter(|name| CONTROLLERS.contains(name))
    {
        // A limit that needs a controller which is not enabled fails where it is asked for.
        let _ = fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}
