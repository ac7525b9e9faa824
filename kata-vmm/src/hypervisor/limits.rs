//! Which machines are refused before anything is started.
//!
//! Owns the limits of all hypervisors, each with its reason. Pure: it must not open or start anything.

use std::collections::HashSet;

use crate::control::LaunchError;
use crate::machine::{FdIndex, Machine, MiB, Net};

/// Most virtual processors.
const VCPUS_MAX: u8 = 32;

/// Below it a distribution kernel ends in a panic for want of memory.
const MEMORY_MIN: MiB = MiB(64);

/// 1 TiB: within the guest-physical addresses of the model that software emulation offers; on KVM the host's
/// processor may have fewer, which is checked at launch.
const MEMORY_MAX: MiB = MiB(1 << 20);

/// The first address that is not reserved (VIRTIO 1.2 §5.10.4).
const GUEST_CID_MIN: u32 = 3;

/// VIRTIO 1.2 §5.2.6.1: `VIRTIO_BLK_T_GET_ID` answers 20 bytes.
const SERIAL_BYTES_MAX: usize = 20;

/// What no hypervisor accepts.
pub(super) fn check(machine: &Machine, files: usize) -> Result<(), LaunchError> {
    if !(1..=VCPUS_MAX).contains(&machine.vcpus) {
        let reason = format!("a machine has 1 to {VCPUS_MAX} of them");
        return Err(unsupported(
            format!("{} virtual processors", machine.vcpus),
            reason,
        ));
    }
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&machine.memory) {
        let reason = format!("a machine has {} to {} MiB", MEMORY_MIN.0, MEMORY_MAX.0);
        return Err(unsupported(format!("memory of {} MiB", machine.memory.0), reason));
    }
    if !(GUEST_CID_MIN..u32::MAX).contains(&machine.guest_cid) {
        let reason = "0 to 2 and 4294967295 are reserved";
        return Err(unsupported(format!("guest cid {}", machine.guest_cid), reason));
    }
    check_serials(machine)?;
    check_nets(&machine.nets)?;
    for FdIndex(index) in machine.descriptors() {
        if index >= files {
            let reason = format!("{files} came with the message");
            return Err(unsupported(format!("descriptor {index}"), reason));
        }
    }
    Ok(())
}

fn check_serials(machine: &Machine) -> Result<(), LaunchError> {
    let mut seen = HashSet::new();
    let disks = machine.disks.iter().map(|disk| &disk.serial);
    for serial in disks.chain(&machine.shelf) {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if serial.is_empty() || serial.len() > SERIAL_BYTES_MAX || !serial.bytes().all(word) {
            let reason = format!("it is not 1 to {SERIAL_BYTES_MAX} bytes of a-z, 0-9 and -");
            return Err(unsupported(format!("disk serial {serial:?}"), reason));
        }
        if !seen.insert(serial) {
            let reason = "another disk has it";
            return Err(unsupported(format!("disk serial {serial:?}"), reason));
        }
    }
    Ok(())
}

fn check_nets(nets: &[Net]) -> Result<(), LaunchError> {
    let mut seen = HashSet::new();
    for net in nets {
        let refusal = |reason: &str| unsupported(format!("network card {}", net.address()), reason);
        // IEEE 802 §8.2: the lowest bit of the first byte says that it is a group's.
        if net.mac[0] & 1 == 1 || net.mac == [0; 6] {
            return Err(refusal("it is no address of one station"));
        }
        if net.queues.is_empty() {
            return Err(refusal("it has no tap"));
        }
        if !seen.insert(net.mac) {
            return Err(refusal("another card has it"));
        }
    }
    Ok(())
}

/// Shorthand for [`LaunchError::Unsupported`].
pub(super) fn unsupported(operation: impl Into<String>, reason: impl Into<String>) -> LaunchError {
    LaunchError::Unsupported {
        operation: operation.into(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Boot, Disk, Hypervisor};

    fn net(mac: [u8; 6]) -> Net {
        Net {
            queues: vec![FdIndex(1)],
            mac,
            mtu: None,
        }
    }

    fn machine() -> Machine {
        let disk = |serial: &str| Disk {
            serial: serial.to_owned(),
            image: FdIndex(1),
            read_only: true,
        };
        Machine {
            name: "test".to_owned(),
            vcpus: 1,
            memory: MiB(64),
            boot: Boot::Program { program: FdIndex(0) },
            acpi: true,
            disks: vec![disk("rootfs"), disk("a-name-of-20-bytes-x")],
            shelf: Some("shelf".to_owned()),
            nets: vec![net([2, 0, 0, 0, 0, 1]), net([2, 0, 0, 0, 0, 2])],
            guest_cid: 3,
            host_ports: Vec::new(),
            hypervisor: Hypervisor::Process,
            kvm: None,
        }
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_its_reason() {
        check(&machine(), 2).unwrap();
        type Spoil = fn(&mut Machine);
        let table: [(Spoil, &str); 16] = [
            (
                |m| m.vcpus = 0,
                "0 virtual processors is not supported: a machine has 1 to 32 of them",
            ),
            (
                |m| m.vcpus = 33,
                "33 virtual processors is not supported: a machine has 1 to 32 of them",
            ),
            (
                |m| m.memory = MiB(63),
                "memory of 63 MiB is not supported: a machine has 64 to 1048576 MiB",
            ),
            (
                |m| m.memory = MiB(u32::MAX),
                "memory of 4294967295 MiB is not supported: a machine has 64 to 1048576 MiB",
            ),
            (
                |m| m.guest_cid = 2,
                "guest cid 2 is not supported: 0 to 2 and 4294967295 are reserved",
            ),
            (
                |m| m.guest_cid = u32::MAX,
                "guest cid 4294967295 is not supported: 0 to 2 and 4294967295 are reserved",
            ),
            (
                |m| m.disks[0].serial = String::new(),
                "disk serial \"\" is not supported: it is not 1 to 20 bytes of a-z, 0-9 and -",
            ),
            (
                |m| m.disks[0].serial = "x,readonly=off".to_owned(),
                "disk serial \"x,readonly=off\" is not supported: it is not 1 to 20 bytes of a-z, 0-9 and -",
            ),
            (
                |m| m.disks[0].serial = "a-name-of-21-bytes-xx".to_owned(),
                "disk serial \"a-name-of-21-bytes-xx\" is not supported: it is not 1 to 20 bytes of a-z, 0-9 and -",
            ),
            (
                |m| m.disks[1].serial = "rootfs".to_owned(),
                "disk serial \"rootfs\" is not supported: another disk has it",
            ),
            (
                |m| m.shelf = Some("rootfs".to_owned()),
                "disk serial \"rootfs\" is not supported: another disk has it",
            ),
            (
                |m| m.shelf = Some("a,b".to_owned()),
                "disk serial \"a,b\" is not supported: it is not 1 to 20 bytes of a-z, 0-9 and -",
            ),
            (
                |m| m.nets[0].mac[0] = 1,
                "network card 01:00:00:00:00:01 is not supported: it is no address of one station",
            ),
            (
                |m| m.nets[0].queues.clear(),
                "network card 02:00:00:00:00:01 is not supported: it has no tap",
            ),
            (
                |m| m.nets[1].mac[5] = 1,
                "network card 02:00:00:00:00:01 is not supported: another card has it",
            ),
            (
                |m| m.disks[1].image = FdIndex(2),
                "descriptor 2 is not supported: 2 came with the message",
            ),
        ];
        for (spoil, expected) in table {
            let mut machine = machine();
            spoil(&mut machine);
            assert_eq!(check(&machine, 2).unwrap_err().to_string(), expected);
        }
    }
}
