//! Making a container's cgroup, and giving it away.
//!
//! Owns the way there: what is above it has controllers and no processes (cgroup-v2.rst, `No Internal Process
//! Constraint`). [`remove`](super::remove) takes it away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kata_agent_proto::{Failed, FailureKind};

use crate::boot;

/// Where the hierarchy is mounted.
pub(super) const ROOT: &str = "/sys/fs/cgroup";

/// Files that come with a cgroup that is given away, where the kernel does not list them itself.
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];

fn failed(path: &Path, error: &io::Error) -> Failed {
    Failed::new(
        FailureKind::Container,
        format!("linux.cgroupsPath: {}: {error}", path.display()),
    )
}

/// Makes the cgroup with this directory, and those above it.
pub(super) fn make(path: &Path) -> Result<(), Failed> {
    let way = path.strip_prefix(ROOT).unwrap_or(path);
    let mut directory = PathBuf::from(ROOT);
    let mut names = way.components().peekable();
    while let Some(name) = names.next() {
        directory.push(name);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && names.peek().is_some() => {}
            other => other.map_err(|error| failed(&directory, &error))?,
        }
        if names.peek().is_some() {
            boot::enable_controllers(&directory);
        }
    }
    Ok(())
}

/// Gives a cgroup to a user, who may then make others in it (config-linux.md#cgroup-ownership).
pub(super) fn give(path: &Path, uid: u32) -> Result<(), Failed> {
    let listed = fs::read_to_string("/sys/kernel/cgroup/delegate");
    let listed = listed.unwrap_or_else(|_| DELEGATED.join("\n"));
    for file in [""].into_iter().chain(listed.lines()) {
        let path = path.join(file);
        match std::os::unix::fs::chown(&path, Some(uid), None) {
            // Not every cgroup has all of them.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(|error| failed(&path, &error))?,
        }
    }
    Ok(())
}
