//! What a kernel can do for a sandbox, and which of it every sandbox needs. A table; asks no file.

use std::fmt;

use super::configuration::{Configuration, Setting};

/// Something that a guest may want of its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// An entry for monitors that boot the ELF file itself (Xen PVH direct boot).
    Pvh,
    /// Machines described by ACPI.
    Acpi,
    /// An initramfs.
    Initramfs,
    /// The serial console.
    SerialConsole,
    /// `/dev`, `/proc`, `/sys` and file systems in memory.
    KernelFilesystems,
    /// Namespaces of processes, mounts, networks, names and queues.
    Namespaces,
    /// Control groups.
    Cgroups,
    /// Filters of system calls.
    Seccomp,
    /// virtio devices at addresses in memory.
    VirtioMmio,
    /// The same, named on the command line.
    VirtioMmioCommandLine,
    /// virtio devices on PCI.
    VirtioPci,
    /// virtio disks.
    VirtioBlock,
    /// virtio network cards.
    VirtioNet,
    /// Sockets to the host.
    Vsock,
    /// The host's random numbers.
    VirtioRandom,
    /// Memory that goes back to the host.
    VirtioBalloon,
    /// Directories of the host.
    VirtioFs,
    /// Read-only images.
    Erofs,
    /// A writable half above an image.
    Overlay,
    /// Writable disks.
    Ext4,
    /// Disks whose every block is checked.
    Verity,
}

/// Whether a kernel has a [`Feature`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ability {
    /// It is part of the kernel.
    BuiltIn,
    /// It is there once modules are loaded.
    Module,
    /// It is not there.
    Missing,
    /// The kernel's configuration was not found.
    Unknown,
}

impl Feature {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Pvh,
        Self::Acpi,
        Self::Initramfs,
        Self::SerialConsole,
        Self::KernelFilesystems,
        Self::Namespaces,
        Self::Cgroups,
        Self::Seccomp,
        Self::VirtioMmio,
        Self::VirtioMmioCommandLine,
        Self::VirtioPci,
        Self::VirtioBlock,
        Self::VirtioNet,
        Self::Vsock,
        Self::VirtioRandom,
        Self::VirtioBalloon,
        Self::VirtioFs,
        Self::Erofs,
        Self::Overlay,
        Self::Ext4,
        Self::Verity,
    ];

    /// The options of the kernel's configuration that it takes, all of them, without `CONFIG_`.
    #[must_use]
    pub const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Pvh => &["PVH"],
            Self::Acpi => &["ACPI"],
            Self::Initramfs => &["BLK_DEV_INITRD"],
            Self::SerialConsole => &["SERIAL_8250_CONSOLE"],
            Self::KernelFilesystems => &["PROC_FS", "SYSFS", "DEVTMPFS", "TMPFS"],
            Self::Namespaces => &["NAMESPACES", "UTS_NS", "IPC_NS", "PID_NS", "NET_NS"],
            Self::Cgroups => &["CGROUPS"],
            Self::Seccomp => &["SECCOMP_FILTER"],
            Self::VirtioMmio => &["VIRTIO_MMIO"],
            Self::VirtioMmioCommandLine => &["VIRTIO_MMIO_CMDLINE_DEVICES"],
            Self::VirtioPci => &["VIRTIO_PCI"],
            Self::VirtioBlock => &["VIRTIO_BLK"],
            Self::VirtioNet => &["VIRTIO_NET"],
            Self::Vsock => &["VSOCKETS", "VIRTIO_VSOCKETS"],
            Self::VirtioRandom => &["HW_RANDOM_VIRTIO"],
            Self::VirtioBalloon => &["VIRTIO_BALLOON"],
            Self::VirtioFs => &["FUSE_FS", "VIRTIO_FS"],
            Self::Erofs => &["EROFS_FS"],
            Self::Overlay => &["OVERLAY_FS"],
            Self::Ext4 => &["EXT4_FS"],
            Self::Verity => &["BLK_DEV_DM", "DM_VERITY"],
        }
    }

    /// Whether no sandbox runs without it.
    #[must_use]
    pub const fn is_needed(self) -> bool {
        matches!(
            self,
            Self::Pvh
                | Self::Acpi
                | Self::Initramfs
                | Self::SerialConsole
                | Self::KernelFilesystems
                | Self::Namespaces
                | Self::Cgroups
                | Self::VirtioMmio
                | Self::VirtioBlock
                | Self::Vsock
                | Self::Erofs
                | Self::Overlay
        )
    }

    /// What a configuration makes of it: no better than the least of its options.
    pub(super) fn in_configuration(self, configuration: &Configuration) -> Ability {
        let settings = self.options().iter().map(|option| configuration.setting(option));
        match settings.min() {
            Some(Setting::BuiltIn) => Ability::BuiltIn,
            Some(Setting::Module) => Ability::Module,
            Some(Setting::Missing) | None => Ability::Missing,
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "PVH entry",
            Self::Acpi => "ACPI",
            Self::Initramfs => "initramfs",
            Self::SerialConsole => "serial console",
            Self::KernelFilesystems => "kernel file systems",
            Self::Namespaces => "namespaces",
            Self::Cgroups => "control groups",
            Self::Seccomp => "seccomp",
            Self::VirtioMmio => "virtio-mmio",
            Self::VirtioMmioCommandLine => "virtio-mmio on the command line",
            Self::VirtioPci => "virtio-pci",
            Self::VirtioBlock => "virtio-blk",
            Self::VirtioNet => "virtio-net",
            Self::Vsock => "vsock",
            Self::VirtioRandom => "virtio-rng",
            Self::VirtioBalloon => "virtio-balloon",
            Self::VirtioFs => "virtio-fs",
            Self::Erofs => "EROFS",
            Self::Overlay => "overlay",
            Self::Ext4 => "ext4",
            Self::Verity => "dm-verity",
        })
    }
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "built in",
            Self::Module => "module",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_is_no_better_than_its_least_option() {
        let of = |text| Feature::Vsock.in_configuration(&Configuration::parse(text).unwrap());
        assert_eq!(
            of("CONFIG_VSOCKETS=y\nCONFIG_VIRTIO_VSOCKETS=y\n"),
            Ability::BuiltIn
        );
        assert_eq!(
            of("CONFIG_VSOCKETS=y\nCONFIG_VIRTIO_VSOCKETS=m\n"),
            Ability::Module
        );
        assert_eq!(of("CONFIG_VSOCKETS=y\n"), Ability::Missing);
    }

    #[test]
    fn the_list_of_all_has_each_once() {
        let mut names: Vec<String> = Feature::ALL.iter().map(ToString::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Feature::ALL.len());
        assert_eq!(Feature::ALL.last(), Some(&Feature::Verity));
    }
}
