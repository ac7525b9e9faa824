//! Creating a container: storages, checks, configuration, cgroup, limits, and its first process.
//!
//! Owns the order of these steps. A failure leaves nothing mounted; what it leaves of the cgroup goes with the place.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use kata_agent_proto::{Failed, FailureKind, annotation};
use serde_json::{Value, json};

use super::{cgroup, etc, given, shares, storage};
use crate::birth::{self, Place};
use crate::order::Create;
use crate::rootfs::root::Root;
use crate::rootfs::{self, file_failure};
use crate::spec::json::{number, strings};
use crate::sys;

/// Creates the container and returns the id of its init, which waits to be started.
pub(super) fn create(mut order: Create) -> Result<i32, Failed> {
    let start = inherited(order.start).map_err(|error| file_failure(Path::new("start"), &error))?;
    let mounted = storage::mount_all(&order.storages)?;
    given::give(&order.devices, &mut order.spec, &mut order.limits)?;
    order.limits.allow_devices_of(&order.spec);
    let root = open_root(&order.spec)?;
    make_directories(&order.spec, &root)?;
    etc::complete(&root, &order.hostname, &order.dns)?;
    let config = order.bundle.join("config.json");
    std::fs::write(&config, order.spec.to_string()).map_err(|error| file_failure(&config, &error))?;
    cgroup::make(&order.cgroup)?;
    // Nothing runs without its limits, and no program without its device rules.
    let [figures, devices] = std::mem::take(&mut order.limits).in_two_steps();
    figures.apply(&order.cgroup)?;
    give_cgroup(&order)?;
    let idle = strings(&order.spec["process"]["args"]).is_empty();
    if idle {
        order.spec["process"]["args"] = json!(["pause"]);
    }
    let place = Place {
        state: &order.state,
        user: order.user.as_ref(),
        traits: Arc::new(order.traits),
        bundle: &order.bundle,
        cgroup: &order.cgroup,
        start,
        console: order.console.as_deref(),
        idle,
    };
    let pid = birth::make(&order.spec, place).map_err(|failed| explain(failed, &order.cgroup))?;
    devices.apply(&order.cgroup)?;
    shares::give(pid, &order.shares)?;
    mounted.keep();
    Ok(pid)
}

/// A descriptor that came with the order and goes no further than the process that is made.
fn inherited(number: i32) -> std::io::Result<OwnedFd> {
    let descriptor = sys::take_fd(number)?;
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

fn open_root(spec: &Value) -> Result<Root, Failed> {
    let path = spec["root"]["path"].as_str().unwrap_or_default();
    Root::open(Path::new(path)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failed::new(FailureKind::NoSuchDirectory, path),
        _ => Failed::new(FailureKind::Invalid, format!("root.path: {path:?}: {error}")),
    })
}

/// What an image calls its volumes: here the root is writable, and they are directories in it.
fn make_directories(spec: &Value, root: &Root) -> Result<(), Failed> {
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    let mounts: Vec<&str> = mounts.filter_map(|mount| mount["destination"].as_str()).collect();
    let asked = spec["annotations"][annotation::DIRECTORIES]
        .as_str()
        .unwrap_or_default();
    for path in asked.lines().map(Path::new) {
        if mounts.iter().any(|mount| path.starts_with(mount)) {
            continue;
        }
        root.create_directories(path)
            .map_err(|error| file_failure(path, &error))?;
    }
    Ok(())
}

/// A process that was killed for want of memory could not say so.
fn explain(failed: Failed, cgroup: &Path) -> Failed {
    let events = std::fs::read_to_string(cgroup.join("memory.events")).unwrap_or_default();
    match crate::watched::number_of(&events, "oom_kill") {
        None | Some(0) => failed,
        Some(_) => Failed::new(
            FailureKind::Invalid,
            "linux.resources.memory.limit: the first process was killed for want of memory",
        ),
    }
}

/// Gives the cgroup to the user of its first process, where that sees it as its own and may write to it.
fn give_cgroup(order: &Create) -> Result<(), Failed> {
    let linux = &order.spec["linux"];
    let has_new = |kind: &str| {
        let mut list = linux["namespaces"].as_array().into_iter().flatten();
        list.any(|one| one["type"] == kind && one["path"].is_null())
    };
    let mut mounts = order.spec["mounts"].as_array().into_iter().flatten();
    let writable = mounts.any(|mount| {
        let read_only = strings(&mount["options"]).iter().any(|option| option == "ro");
        mount["source"] == "cgroup" && mount["destination"] == "/sys/fs/cgroup" && !read_only
    });
    if !writable || !has_new("cgroup") {
        return Ok(());
    }
    let uid = match &order.user {
        Some(user) => {
            let root = order.spec["root"]["path"].as_str().unwrap_or_default();
            rootfs::accounts_of(Path::new(root), true)?.resolve(user)?.uid
        }
        None => number(&order.spec["process"]["user"]["uid"]),
    };
    let mapped = if has_new("user") {
        outside(&linux["uidMappings"], uid)
    } else {
        Some(uid)
    };
    match mapped {
        None | Some(0) => Ok(()),
        Some(uid) => cgroup::give(&order.cgroup, uid),
    }
}

/// A user of a namespace as others know it.
fn outside(mappings: &Value, uid: u32) -> Option<u32> {
    let mut mappings = mappings.as_array()?.iter();
    mappings.find_map(|one| {
        let above = uid.checked_sub(number(&one["containerID"]))?;
        (above < number(&one["size"])).then(|| number(&one["hostID"]).saturating_add(above))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_outside_of_its_namespace() {
        let mappings = json!([
            { "containerID": 0, "hostID": 1000, "size": 10 }, { "containerID": 20, "hostID": 5, "size": 1 },
        ]);
        let found = [0, 9, 10, 20, 21].map(|uid| outside(&mappings, uid));
        assert_eq!(found, [Some(1000), Some(1009), None, Some(5), None]);
    }
}
