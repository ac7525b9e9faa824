//! Releasing what a container had: its cgroup, mounts and files.
//!
//! Runs after every process of the container was killed; waits until the cgroup is empty, which is the
//! kernel's word that they are gone. The hooks that follow a container's end run when all of it but its record is gone.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;

use kata_agent_proto::Failed;
use rustix::event::{PollFd, PollFlags};

use super::{cgroup, storage, verity};
use crate::birth::hooks;
use crate::order::Remove;
use crate::rootfs::file_failure;

/// Removes all of it; goes on after a failure and reports the first.
pub(super) fn remove(order: &Remove) -> Result<(), Failed> {
    let mut results =
        vec![remove_cgroup(&order.cgroup, &order.base).map_err(|error| file_failure(&order.cgroup, &error))];
    for mount_point in order.mount_points.iter().rev().map(Path::new) {
        results.push(storage::unmount(mount_point).map_err(|error| file_failure(mount_point, &error)));
    }
    for mount_point in &order.verified {
        verity::sweep(&verity::name_of(mount_point));
    }
    for serial in &order.partitioned {
        results.push(storage::sweep(serial));
    }
    hooks::run_all(&order.poststop, &order.state, "stopped");
    // A mount that is still there must not be emptied.
    if results.iter().all(Result::is_ok) {
        results.push(remove_directory(&order.bundle).map_err(|error| file_failure(&order.bundle, &error)));
    }
    results.into_iter().collect()
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn remove_cgroup(path: &Path, base: &Path) -> io::Result<()> {
    match File::open(path.join("cgroup.events")) {
        Ok(events) => {
            wait_until_empty(events)?;
            remove_tree(path)?;
        }
        // Its making may have ended on the way to it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Those above it that were made on the way, unless another container is in them.
    let above = path
        .ancestors()
        .skip(1)
        .take_while(|above| above.starts_with(cgroup::ROOT));
    for above in above.take_while(|above| *above != base) {
        let _ = fs::remove_dir(above);
    }
    Ok(())
}

/// cgroup.events is signalled as a priority event whenever it changes (cgroup-v2.rst, `[Un]populated
/// Notification`).
fn wait_until_empty(mut events: File) -> io::Result<()> {
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if !text.contains("populated 1") {
            return Ok(());
        }
        rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], None)?;
    }
}

/// Cgroups can only be removed from the leaves.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
