//! Files into a container and out of it, between its root and the stream that is this worker's standard input.
//!
//! The root is the container's as its own processes see it, with all of its mounts; the process is the guest's root
//! user, or the container's where that has users of its own. Owns the way in; what is copied and how is not known here.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kata_agent_proto::files::{self, Policy, Root};
use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{Gid, Uid};
use rustix::process::{Resource, Rlimit};
use rustix::thread::LinkNameSpaceType;

use crate::order::{Copy, Direction};

/// Everything is kept: what the files can do, they can do in the guest only.
const POLICY: Policy = Policy {
    owners: true,
    privileges: true,
    limit_bytes: None,
};

/// Copies to the end.
pub(super) fn copy(order: &Copy) -> Result<(), Failed> {
    let container = PathBuf::from(format!("/proc/{}", order.init_pid));
    let root = Root::of(&container.join("root"))
        .map_err(|_| Failed::new(FailureKind::NotRunning, "the container has ended"))?;
    become_its_root(&container)
        .map_err(|error| Failed::new(FailureKind::Container, format!("user namespace: {error}")))?;
    keep_many_directories_open();
    let stream = std::io::stdin().as_fd().try_clone_to_owned();
    let stream = stream.map_err(|error| Failed::new(FailureKind::Container, format!("stream: {error}")))?;
    let stream = File::from(stream);
    // A path without a slash in front begins at the root as well.
    let path = Path::new("/").join(OsStr::from_bytes(&order.path));
    let name = (!order.name.is_empty()).then_some(order.name.as_slice());
    let nobody = &mut |_, _| {};
    let copied = match order.direction {
        Direction::In => files::receive(&root, &path, name, POLICY, &stream, nobody),
        Direction::Out => files::send(&root, &path, &stream, nobody),
    };
    copied.map(drop).map_err(|error| error.failed())
}

/// Owners are numbers of the container's user namespace, where it has one.
fn become_its_root(container: &Path) -> std::io::Result<()> {
    let theirs = File::open(container.join("ns/user"))?;
    if theirs.metadata()?.ino() == std::fs::metadata("/proc/self/ns/user")?.ino() {
        return Ok(());
    }
    // What the guest's root may as a member of its groups is not for a container's.
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::move_into_link_name_space(theirs.as_fd(), Some(LinkNameSpaceType::User))?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}

/// A deep tree is walked with a descriptor for each of its levels.
fn keep_many_directories_open() {
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    // With fewer it fails where they are used up, and says so.
    let _ = rustix::process::setrlimit(Resource::Nofile, most);
}
