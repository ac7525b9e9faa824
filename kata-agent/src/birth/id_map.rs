//! Mounts that show their files with other owners (mount_setattr(2), `ID-mapped mounts`).
//!
//! The kernel takes a mapping from a user namespace; one is made for it that nothing ever runs in.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use kata_agent_proto::{Failed, FailureKind};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{WaitId, WaitIdOptions};
use rustix::thread::ThreadNameSpaceType;

use super::options::{Recursive, attribute};
use super::plan::{Mount, Namespaces};
use crate::sys::{self, Birth, MountAttributes};

/// Maps the owners in a mount that is nowhere yet: by its own mappings, else by those of the container.
pub(super) fn apply(
    mount: &Mount,
    tree: &OwnedFd,
    recursive: Recursive,
    container: &Namespaces,
) -> Result<(), Failed> {
    let (uid_map, gid_map) = match (mount.uid_map.is_empty(), mount.gid_map.is_empty()) {
        (true, true) => (&container.uid_map, &container.gid_map),
        _ => (&mount.uid_map, &mount.gid_map),
    };
    if uid_map.is_empty() || gid_map.is_empty() {
        let text = format!("{}.uidMappings, {0}.gidMappings: none to map by", mount.field);
        return Err(Failed::new(FailureKind::Invalid, text));
    }
    let failed = |kind: FailureKind, error: std::io::Error| {
        Failed::new(kind, format!("{}.options: idmap: {error}", mount.field))
    };
    let namespace = user_namespace(uid_map, gid_map).map_err(|error| failed(FailureKind::Invalid, error))?;
    let attributes = MountAttributes {
        set: attribute::IDMAP,
        user_namespace: u64::from(namespace.as_raw_fd().cast_unsigned()),
        ..MountAttributes::default()
    };
    // Which file systems can do that is the kernel's to say.
    sys::mount_setattr(tree, recursive, &attributes)
        .map_err(|error| failed(FailureKind::Unsupported, error.into()))
}

fn user_namespace(uid_map: &str, gid_map: &str) -> std::io::Result<OwnedFd> {
    let (waits, holds) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork_child(ThreadNameSpaceType::USER.bits())? {
        Birth::Child => {
            drop(holds);
            // Until the other side is gone.
            let _ = File::from(waits).read(&mut [0]);
            sys::exit_now(0)
        }
        Birth::Parent { pid, pidfd } => {
            let write = |file: &str, map: &str| std::fs::write(format!("/proc/{pid}/{file}"), map);
            let namespace = write("uid_map", uid_map)
                .and_then(|()| write("gid_map", gid_map))
                .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
            drop(holds);
            match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
                Ok(_) | Err(Errno::CHILD) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(namespace?.into())
        }
    }
}
