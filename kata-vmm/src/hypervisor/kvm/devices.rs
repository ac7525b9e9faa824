//! Which virtio devices a machine has, in the order of their places.
//!
//! Owns that order and what each device is made of. It must not know where they are attached.

use std::fs::File;

use kata_virtio::Device;
use kata_virtio::rng::Rng;
use kata_virtio::vsock::Vsock;

use crate::control::LaunchError;
use crate::hypervisor::vm::{Files, failure};
use crate::machine::{Disk, Machine};

/// Every device with its name for messages and figures.
pub(super) fn all(
    machine: &Machine,
    files: &Files,
    vsock: Vsock,
) -> Result<Vec<(String, Box<dyn Device>)>, LaunchError> {
    let rng = Rng::new().map_err(|cause| failure("make the entropy device", &cause))?;
    let mut devices: Vec<(String, Box<dyn Device>)> = vec![
        ("vsock".to_owned(), Box::new(vsock)),
        ("rng".to_owned(), Box::new(rng)),
    ];
    Ok(devices)
}
