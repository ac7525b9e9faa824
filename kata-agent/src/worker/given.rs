//! Devices of the guest that a request gives to its container.
//!
//! A request names a device of the guest, and where it is to be in the container; the specification may describe it
//! as the host knew it. Owns the change of both to what the guest has. Must not know how a node is made.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use kata_agent_proto::{Failed, FailureKind};
use serde_json::{Value, json};

use super::storage;
use crate::limits::Limits;
use crate::order::Device;

/// Who may use a node of which the specification says nothing.
const FILE_MODE: u32 = 0o660;

/// A device node's kind and numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    block: bool,
    major: u32,
    minor: u32,
}

/// Puts the devices into a specification, and allows them.
///
/// # Errors
/// No such disk, for a serial; invalid, for a path that is no device.
pub(super) fn give(devices: &[Device], spec: &mut Value, limits: &mut Limits) -> Result<(), Failed> {
    for device in devices {
        let path = match (device.vm_path.as_str(), device.kind.as_str()) {
            ("", "blk") => storage::wait_for_disk(&device.id)?,
            ("", kind) => {
                return Err(Failed::new(
                    FailureKind::Unsupported,
                    format!("a device of type {kind:?} without a path"),
                ));
            }
            (path, _) => path.to_owned(),
        };
        let node = wait_for(Path::new(&path))?;
        // Without a place in the container it was only to be waited for.
        if !device.container_path.is_empty() {
            let before = describe(spec, &device.container_path, node);
            limits.allow_device(node.block, (node.major, node.minor), before);
        }
    }
    Ok(())
}

/// What a path of the guest is, as soon as it is there.
fn wait_for(path: &Path) -> Result<Node, Failed> {
    let deadline = Instant::now() + storage::DISK_WAIT;
    loop {
        match fs::metadata(path) {
            Ok(found) => {
                let kind = found.file_type();
                let is_device = kind.is_block_device() || kind.is_char_device();
                let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
                return is_device
                    .then_some(Node {
                        block: kind.is_block_device(),
                        major,
                        minor,
                    })
                    .ok_or_else(|| {
                        Failed::new(FailureKind::Invalid, format!("{} is no device", path.display()))
                    });
            }
            Err(_) if Instant::now() < deadline => std::thread::sleep(storage::DISK_POLL),
            Err(_) => return Err(Failed::new(FailureKind::NoSuchDisk, path.to_string_lossy())),
        }
    }
}

/// Describes the device at a path of the container, and returns the numbers that it had there before.
fn describe(spec: &mut Value, container_path: &str, node: Node) -> Option<(u32, u32)> {
    let kind = if node.block { "b" } else { "c" };
    let numbers = |device: &Value| Some((number(&device["major"])?, number(&device["minor"])?));
    if !spec["linux"]["devices"].is_array() {
        spec["linux"]["devices"] = json!([]);
    }
    let list = spec["linux"]["devices"].as_array_mut()?;
    if let Some(device) = list.iter_mut().find(|device| device["path"] == container_path) {
        let before = numbers(device);
        device["type"] = json!(kind);
        device["major"] = json!(node.major);
        device["minor"] = json!(node.minor);
        return before;
    }
    list.push(json!({
        "path": container_path,
        "type": kind,
        "major": node.major,
        "minor": node.minor,
        "fileMode": FILE_MODE,
        "uid": 0,
        "gid": 0,
    }));
    None
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: Node = Node {
        block: false,
        major: 1,
        minor: 5,
    };

    #[test]
    fn what_the_host_said_of_a_device_becomes_what_the_guest_has() {
        let mut spec = json!({ "linux": { "devices": [
            { "path": "/dev/given", "type": "b", "major": 8, "minor": 3, "fileMode": 0o600 },
        ] } });
        assert_eq!(describe(&mut spec, "/dev/given", ZERO), Some((8, 3)));
        let device = &spec["linux"]["devices"][0];
        assert_eq!((&device["type"], &device["major"]), (&json!("c"), &json!(1)));
        assert_eq!(device["fileMode"], 0o600, "the rest stays");
        assert_eq!(describe(&mut spec, "/dev/other", ZERO), None);
        assert_eq!(spec["linux"]["devices"].as_array().map(Vec::len), Some(2));
        let mut nothing = json!({});
        assert_eq!(describe(&mut nothing, "/dev/given", ZERO), None);
        assert_eq!(nothing["linux"]["devices"][0]["minor"], 5);
    }

    #[test]
    fn a_path_is_a_device_or_a_failure_by_kind() {
        assert_eq!(wait_for(Path::new("/dev/zero")), Ok(ZERO));
        let failed = wait_for(Path::new("/dev")).expect_err("a directory");
        assert_eq!(failed.kind, FailureKind::Invalid);
        let failed = wait_for(Path::new("/dev/no-such-device")).expect_err("nothing");
        assert_eq!(failed.kind, FailureKind::NoSuchDisk);
    }
}
