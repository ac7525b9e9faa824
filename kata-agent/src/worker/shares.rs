//! Mounts that one container makes and another one sees.
//!
//! What is mounted at a path of the one is taken as it is, and put to a path of the other, each found from within its
//! own container. Owns the way there and back. Only in a process of one thread.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::thread::LinkNameSpaceType;

use crate::order::Share;

/// Shares mounts of other containers with the one whose init this is.
pub(super) fn give(init: i32, shares: &[Share]) -> Result<(), Failed> {
    if shares.is_empty() {
        return Ok(());
    }
    let failed = |what: &str, error: io::Error| Failed::new(FailureKind::Mount, format!("{what}: {error}"));
    let own = File::open("/proc/self/ns/mnt").map_err(|error| failed("mount namespace", error))?;
    let target = name_space(init).map_err(|error| failed("mount namespace", error))?;
    for share in shares {
        let given = name_space(share.source_pid)
            .and_then(|source| Ok((source, enter(&own)?)))
            .and_then(|(source, ())| take(&source, &share.source_path))
            .and_then(|tree| put(&target, &tree, &share.path));
        let back = enter(&own);
        given.map_err(|error| failed(&format!("sharing {} at {}", share.source_path, share.path), error))?;
        back.map_err(|error| failed("mount namespace", error))?;
    }
    Ok(())
}

fn name_space(pid: i32) -> io::Result<File> {
    File::open(format!("/proc/{pid}/ns/mnt"))
}

/// Afterwards the root is the namespace's own, so that no path leads out of its container.
fn enter(name_space: &File) -> io::Result<()> {
    let kind = Some(LinkNameSpaceType::Mount);
    Ok(rustix::thread::move_into_link_name_space(
        name_space.as_fd(),
        kind,
    )?)
}

fn take(source: &File, path: &str) -> io::Result<std::os::fd::OwnedFd> {
    enter(source)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

fn put(target: &File, tree: &std::os::fd::OwnedFd, path: &str) -> io::Result<()> {
    enter(target)?;
    fs::create_dir_all(Path::new(path))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", CWD, path, flags)?)
}
