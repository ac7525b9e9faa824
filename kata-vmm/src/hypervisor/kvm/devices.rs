//! Which virtio devices a machine has, in the order of their places.
//!
//! Owns that order and what each device is made of. It must not know where they are attached.

use std::fs::File;

use kata_virtio::Device;
use kata_virtio::balloon::Balloon;
use kata_virtio::block::Block;
use kata_virtio::rng::Rng;
use kata_virtio::vsock::Vsock;

use crate::control::LaunchError;
use crate::hypervisor::vm::{Files, failure};
use crate::machine::{Disk, Machine};

/// A device with its name for messages and figures.
pub(super) type Named = (String, Box<dyn Device>);

/// Every device. Disks are first, so that the root's name does not depend on the others.
pub(super) fn all(machine: &Machine, files: &Files, vsock: Vsock) -> Result<Vec<Named>, LaunchError> {
    let mut devices: Vec<Named> = Vec::with_capacity(machine.disks.len() + 3);
    for disk in &machine.disks {
        devices.push(block(disk, File::from(files.duplicate(disk.image)?))?);
    }
    devices.push(("vsock".to_owned(), Box::new(vsock)));
    let rng = Rng::new().map_err(|cause| failure("make the entropy device", &cause))?;
    devices.push(("rng".to_owned(), Box::new(rng)));
    // Nobody inflates it so far; it is there for the pages that the guest reports as free.
    let (balloon, _) = Balloon::new().map_err(|cause| failure("make the balloon", &cause))?;
    devices.push(("balloon".to_owned(), Box::new(balloon)));
    Ok(devices)
}

fn block(disk: &Disk, image: File) -> Result<Named, LaunchError> {
    let name = format!("block {}", disk.serial);
    let device = Block::new(image)
        .read_only(disk.read_only)
        .serial(&disk.serial)
        .build()
        .map_err(|cause| failure(&format!("make the device {name}"), &cause))?;
    Ok((name, Box::new(device)))
}
