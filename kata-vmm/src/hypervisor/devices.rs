//! The disks and network cards of a machine, as our devices: the same ones for every hypervisor.
//!
//! Owns what each is made of, and the rules for the descriptors behind it. It must not know where a device
//! is attached.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use kata_virtio::Device;
use kata_virtio::block::Block;
use kata_virtio::net::{Net as NetDevice, Tap};
use rustix::fs::OFlags;

use super::limits::unsupported;
use super::vm::{Files, failure};
use crate::control::LaunchError;
use crate::machine::{Disk, Machine, Net};

/// A device with its name for messages and figures.
pub(super) type Named = (String, Box<dyn Device>);

/// A machine's disks, in its order.
pub(super) fn disks(machine: &Machine, files: &Files) -> Result<Vec<Named>, LaunchError> {
    let disk = |disk: &Disk| block(disk, files.duplicate(disk.image)?, machine.vcpus);
    machine.disks.iter().map(disk).collect()
}

/// A machine's network cards, in its order.
pub(super) fn nets(machine: &Machine, files: &Files) -> Result<Vec<Named>, LaunchError> {
    let net = |net: &Net| {
        let queues: Result<_, _> = net.queues.iter().map(|index| files.duplicate(*index)).collect();
        card(net, queues?)
    };
    machine.nets.iter().map(net).collect()
}

/// A descriptor that cannot write is what keeps a read-only image from being written, so it has exactly the
/// access that the disk says.
fn block(disk: &Disk, image: OwnedFd, vcpus: u8) -> Result<Named, LaunchError> {
    let access = rustix::fs::fcntl_getfl(&image)
        .map_err(|cause| failure("look at a disk image", &io::Error::from(cause)))?
        & OFlags::RWMODE;
    let (wanted, words) = match disk.read_only {
        true => (OFlags::RDONLY, "reading only"),
        false => (OFlags::RDWR, "reading and writing"),
    };
    if access != wanted {
        let reason = format!("its descriptor is not opened for {words}");
        return Err(unsupported(format!("disk {:?}", disk.serial), reason));
    }
    let device = Block::new(File::from(image))
        .read_only(disk.read_only)
        .serial(&disk.serial)
        .queues(vcpus.into())
        .build()
        .map_err(|cause| failure(&format!("use the image of disk {:?}", disk.serial), &cause))?;
    Ok((format!("block {}", disk.serial), Box::new(device)))
}

fn card(net: &Net, queues: Vec<OwnedFd>) -> Result<Named, LaunchError> {
    let name = format!("net {}", net.address());
    let failed = |cause: &dyn std::error::Error| failure(&format!("use the tap of {name}"), cause);
    let tap = Tap::from_fds(queues).map_err(|cause| failed(&cause))?;
    let mut device = NetDevice::new(tap).map_err(|cause| failed(&cause))?.mac(net.mac);
    if let Some(mtu) = net.mtu {
        device = device.mtu(mtu).map_err(|cause| failed(&cause))?;
    }
    Ok((name, Box::new(device)))
}
