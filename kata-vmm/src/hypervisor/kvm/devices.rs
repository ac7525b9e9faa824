//! Which virtio devices a machine has, in the order of their places.
//!
//! Owns that order and what each device is made of. It must not know where they are attached.

use kata_virtio::balloon::Balloon;
use kata_virtio::rng::Rng;
use kata_virtio::vsock::Vsock;

use crate::control::LaunchError;
use crate::hypervisor::devices::{Named, disks, nets};
use crate::hypervisor::shelf::Shelf;
use crate::hypervisor::vm::{Files, failure};
use crate::machine::Machine;

/// Every device. Disks are first, so that the root's name does not depend on the others.
pub(super) fn all(
    machine: &Machine,
    files: &Files,
    shelf: &Shelf,
    vsock: Vsock,
) -> Result<Vec<Named>, LaunchError> {
    let mut devices = disks(machine, files)?;
    devices.extend(shelf.device(machine)?);
    devices.extend(nets(machine, files)?);
    devices.push(("vsock".to_owned(), Box::new(vsock)));
    let rng = Rng::new().map_err(|cause| failure("make the entropy device", &cause))?;
    devices.push(("rng".to_owned(), Box::new(rng)));
    // Nobody inflates it so far; it is there for the pages that the guest reports as free.
    let (balloon, _) = Balloon::new().map_err(|cause| failure("make the balloon", &cause))?;
    devices.push(("balloon".to_owned(), Box::new(balloon)));
    Ok(devices)
}
