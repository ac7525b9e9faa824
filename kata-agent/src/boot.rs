//! The first process of a guest: file systems, modules, cgroups, loopback.
//!
//! Owns what a fresh kernel needs before the agent can listen. Runs once, before any thread or task.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

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
pub(crate) const CONTROLLERS: [&str; 8] =
    ["cpu", "memory", "pids", "io", "cpuset", "hugetlb", "rdma", "misc"];

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
        load_module(&directory.join(name), "").map_err(|source| BootError::Module {
            name: name.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Loads one module, with parameters as `key=value`. One that is loaded stays as it is.
pub(crate) fn load_module(path: &Path, parameters: &str) -> io::Result<()> {
    let parameters = std::ffi::CString::new(parameters)?;
    match rustix::system::finit_module(File::open(path)?, &parameters, 0) {
        Err(Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// How long the host is left to do what it boots a guest for, before what only helps later is loaded.
const QUIET: Duration = Duration::from_millis(500);

/// Loads the modules for devices that were found, as `found` lists them: the start of a device's modalias,
/// then file names. Each takes milliseconds of a processor that has better things to do at the start.
///
/// A module that does not load is a line on the console: the guest works without.
pub(crate) async fn load_found() {
    tokio::time::sleep(QUIET).await;
    let directory = Path::new("/lib/modules");
    let found = fs::read_to_string(directory.join("found")).unwrap_or_default();
    let devices = modaliases(&[
        Path::new("/sys/bus/virtio/devices"),
        Path::new("/sys/bus/acpi/devices"),
    ]);
    for name in files_for(&found, &devices) {
        if let Err(cause) = load_module(&directory.join(name), "") {
            crate::warn(&format!("cannot load module {name}: {cause}"));
        }
        // One at a time, so that the host is not kept waiting.
        tokio::task::yield_now().await;
    }
}

/// The names of all devices on these buses, as modules are found by them.
fn modaliases(buses: &[&Path]) -> Vec<String> {
    buses
        .iter()
        .filter_map(|bus| fs::read_dir(bus).ok())
        .flatten()
        .flatten()
        .filter_map(|device| fs::read_to_string(device.path().join("modalias")).ok())
        .collect()
}

/// Which files the list names for these devices, in its order.
fn files_for<'a>(found: &'a str, devices: &[String]) -> Vec<&'a str> {
    found
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(device, _)| devices.iter().any(|alias| alias.starts_with(device)))
        .flat_map(|(_, files)| files.split_whitespace())
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_loaded_in_the_order_of_the_list() {
        let found =
            "virtio:d00000005 ring.ko balloon.ko\nacpi:QEMU0001: panic.ko\nvirtio:d00000004 rng.ko\nodd\n";
        let devices = ["virtio:d00000004v554D4551\n", "virtio:d00000005v554D4551\n"].map(str::to_owned);
        assert_eq!(files_for(found, &devices), ["ring.ko", "balloon.ko", "rng.ko"]);
        assert_eq!(files_for(found, &[]), [""; 0]);
    }

    #[test]
    fn buses_that_are_not_there_have_no_devices() {
        let bus = tempfile::tempdir().unwrap();
        fs::create_dir(bus.path().join("virtio0")).unwrap();
        fs::write(bus.path().join("virtio0/modalias"), "virtio:d00000013v0\n").unwrap();
        fs::create_dir(bus.path().join("silent")).unwrap();
        let devices = modaliases(&[Path::new("/no/such/bus"), bus.path()]);
        assert_eq!(devices, ["virtio:d00000013v0\n"]);
    }
}
