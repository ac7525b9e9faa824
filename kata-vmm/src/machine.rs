//! What a machine is made of: the value the SDK plans and the monitor builds.
//!
//! A machine names no paths of guest assets: kernel, initramfs and disks are [`FdIndex`]es into the
//! descriptors that travel with the message, opened by the parent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Position of a descriptor in the list that travels with [`Request::Launch`](crate::control::Request::Launch).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdIndex(pub usize);

/// A size in MiB (2^20 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MiB(pub u32);

impl MiB {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        (self.0 as u64) << 20
    }
}

/// One microVM, complete: what [`Request::Launch`](crate::control::Request::Launch) carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Name for logs and process titles; no meaning.
    pub name: String,
    /// Virtual processors, 1 to 32.
    pub vcpus: u8,
    /// Guest memory, a file in memory that the devices share.
    pub memory: MiB,
    /// What runs in it.
    pub boot: Boot,
    /// ACPI tables, by which distribution kernels find processors and devices. Without them a guest is told by
    /// an MP table and words of its command line, for kernels that have no ACPI.
    pub acpi: bool,
    /// Block devices, in order; the guest finds them by serial.
    pub disks: Vec<Disk>,
    /// The serial of one more block device: a large read-only one without content, on which files are shown
    /// that come while the machine runs ([`Request::AddExtent`](crate::control::Request::AddExtent)).
    #[serde(default)]
    pub shelf: Option<String>,
    /// Network cards, in order; the guest finds them by address.
    #[serde(default)]
    pub nets: Vec<Net>,
    /// The vsock device; the guest's own address (3 or above).
    pub guest_cid: u32,
    /// Ports of the host that the guest may dial; every other is refused.
    pub host_ports: Vec<u32>,
    /// The hypervisor that was selected, see [`select`](crate::hypervisor::select).
    pub hypervisor: Hypervisor,
    /// The opened `/dev/kvm`, for [`Hypervisor::Kvm`].
    pub kvm: Option<FdIndex>,
}

impl Machine {
    /// Every descriptor it refers to.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = FdIndex> {
        let boot = match self.boot {
            Boot::Kernel { kernel, initramfs } => [Some(kernel), Some(initramfs)],
            Boot::Program { program } => [Some(program), None],
        };
        boot.into_iter()
            .flatten()
            .chain(self.kvm)
            .chain(self.disks.iter().map(|disk| disk.image))
            .chain(self.nets.iter().flat_map(|net| net.queues.iter().copied()))
    }
}

/// What the machine starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boot {
    /// A Linux kernel with an initramfs.
    Kernel {
        /// An uncompressed ELF (PVH) or a bzImage.
        kernel: FdIndex,
        /// A cpio archive.
        initramfs: FdIndex,
    },
    /// A program in place of a guest, for [`Hypervisor::Process`].
    Program {
        /// The executable.
        program: FdIndex,
    },
}

/// A block device backed by a file or block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What the guest knows it by: 1 to 20 bytes of `[a-z0-9-]` (VIRTIO 1.2 §5.2.6.1).
    pub serial: String,
    /// The opened image.
    pub image: FdIndex,
    /// Whether the guest may write.
    pub read_only: bool,
}

/// A network card on a tap of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// The tap's opened queues (with `IFF_VNET_HDR` and `IFF_NO_PI`), one for each pair of the card's.
    pub queues: Vec<FdIndex>,
    /// The card's own address: of one station, not a group.
    pub mac: [u8; 6],
    /// The largest packet in bytes, without its Ethernet header, that the network takes; `None` leaves it to
    /// the guest.
    pub mtu: Option<u16>,
}

impl Net {
    /// The address as it is written, e.g. `02:00:00:00:00:01`.
    #[must_use]
    pub fn address(&self) -> String {
        let bytes: Vec<String> = self.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(":")
    }
}

/// A hypervisor with what it needs to start: the outcome of a selection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hypervisor {
    /// The monitor itself, with hardware virtualization by `/dev/kvm`.
    Kvm,
    /// QEMU as a child of the monitor.
    Qemu {
        /// The executable.
        binary: PathBuf,
        /// How it runs guest instructions.
        accelerator: Accelerator,
    },
    /// No machine at all: the guest program as a process in namespaces. For tests; isolates little.
    Process,
}

/// How QEMU runs guest instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accelerator {
    /// Hardware virtualization by `/dev/kvm`.
    Kvm,
    /// Software emulation (QEMU's Tiny Code Generator).
    Tcg,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmExit {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself: a kernel panic (the guest command line says `panic=-1`) or a triple fault.
    GuestReset,
    /// The guest kernel says that it panicked (its device is pvpanic).
    GuestPanic,
    /// A virtual processor stopped for a reason that has no remedy.
    VcpuStopped(Box<VcpuReport>),
    /// The hypervisor process ended by itself.
    HypervisorDied {
        /// Its exit code, if it exited.
        code: Option<i32>,
        /// The signal that killed it.
        signal: Option<i32>,
        /// The last lines that it wrote to standard error.
        stderr_tail: String,
    },
    /// The monitor killed it because it was asked to.
    Killed,
}

/// A virtual processor that stopped, as it was then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("virtual processor {index} stopped: {reason}\n{registers}")]
pub struct VcpuReport {
    /// Which, from 0.
    pub index: u8,
    /// What KVM said: the exit's name with its details.
    pub reason: String,
    /// Its registers, a line each; empty when KVM does not give them any more.
    pub registers: String,
}

/// A running machine's figures, all of them counted since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// Whether its processors are held.
    pub paused: bool,
    /// How often its processors came back to the monitor, by kind; empty where another process runs them.
    pub exits: BTreeMap<String, u64>,
    /// Guest memory that is backed by memory of the host, in bytes; `None` where the monitor does not know.
    pub resident_bytes: Option<u64>,
    /// The devices that the monitor serves.
    pub devices: Vec<DeviceInfo>,
}

/// A device's figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// What it is, e.g. `block rootfs`.
    pub name: String,
    /// Counts and sizes by name.
    pub figures: BTreeMap<String, u64>,
}

impl DeviceInfo {
    /// The figures of a device of this name.
    pub(crate) fn new(name: &str, figures: Vec<(&'static str, u64)>) -> Self {
        Self {
            name: name.to_owned(),
            figures: figures
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }
}

/// What the hypervisor process reports of itself after the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Product and version, e.g. `QEMU 7.2.22`.
    pub version: String,
    /// Machine type, e.g. `microvm`.
    pub machine_type: String,
    /// Processes beside the monitor that belong to this machine.
    pub pids: Vec<u32>,
    /// From the monitor's start of the launch to the first guest instruction allowed to run.
    pub launch_time: Duration,
}
