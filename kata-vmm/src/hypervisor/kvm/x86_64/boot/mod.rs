//! Everything a guest kernel finds in memory when it starts.
//!
//! [`load`] reads like the list of it: kernel, initramfs, command line, memory map, hardware tables, and the
//! structure of the kernel's boot protocol that names them all.
//! Owns the order and the placing. It must not know KVM.
//!
//! Kernel and initramfs are read from the page cache straight into guest memory. They come from a file that
//! is not trusted: whatever is wrong with it is a [`BootError`] that names it.

use std::fs::File;

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{self, Slot};

mod acpi;
mod bzimage;
mod elf;
mod image;
mod kernel;
pub(super) mod linux;
mod memory_map;
mod mp_table;
mod pvh;

pub(in crate::hypervisor::kvm) use image::ImageError;
pub(in crate::hypervisor::kvm) use kernel::KernelError;

use image::Image;
use kernel::{Kernel, Protocol};

/// What a guest is booted from and with.
#[derive(Debug, Clone, Copy)]
pub(in crate::hypervisor::kvm) struct Boot<'a> {
    /// New memory, all zero, laid out as [`memory_ranges`](layout::memory_ranges) says.
    pub(in crate::hypervisor::kvm) memory: &'a GuestMemoryMmap,
    /// An ELF or a bzImage.
    pub(in crate::hypervisor::kvm) kernel: &'a File,
    /// What is to be unpacked as the first file system; an empty file is none.
    pub(in crate::hypervisor::kvm) initramfs: &'a File,
    /// The kernel's words, at most 2047 bytes.
    pub(in crate::hypervisor::kvm) command_line: &'a str,
    /// How many processors the tables list, at most [`MAX_VCPUS`](layout::MAX_VCPUS).
    pub(in crate::hypervisor::kvm) vcpus: u8,
    /// The virtio-mmio devices that the tables list.
    pub(in crate::hypervisor::kvm) virtio: &'a [Slot],
    /// ACPI tables, rather than an MP table and devices on the command line.
    pub(in crate::hypervisor::kvm) acpi: bool,
}

/// Where the boot processor starts, and in what state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::hypervisor::kvm) enum Entry {
    /// 32-bit protected mode, no paging (PVH).
    Pvh {
        /// The guest address of the first instruction.
        rip: u64,
        /// The guest address of the start information.
        start_info: u64,
    },
    /// 64-bit mode, low memory mapped to itself (the Linux protocol).
    Long {
        /// The guest address of the first instruction.
        rip: u64,
        /// The guest address of the zero page.
        zero_page: u64,
    },
}

/// A guest that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(in crate::hypervisor::kvm) enum BootError {
    /// Less memory than any kernel needs.
    #[error("the guest's low memory ends at {end:#x}")]
    Memory {
        /// Where it ends, in bytes.
        end: u64,
    },
    /// More processors than the tables can list.
    #[error("{vcpus} processors; the machine has 1 to {}", layout::MAX_VCPUS)]
    Vcpus {
        /// How many were asked for.
        vcpus: u8,
    },
    /// A command line that the kernel would cut off.
    #[error("the kernel's command line has {bytes} bytes or a zero in it; {} are kept", layout::COMMAND_LINE_BYTES - 1)]
    CommandLine {
        /// Its length.
        bytes: usize,
    },
    /// The kernel.
    #[error("the kernel cannot be loaded")]
    Kernel(#[from] KernelError),
    /// The initramfs.
    #[error("the initramfs cannot be loaded")]
    Initramfs(#[source] ImageError),
    /// No room for the initramfs.
    #[error(
        "the initramfs of {bytes:#x} bytes does not fit between the kernel's end, {start:#x}, and {end:#x}"
    )]
    InitramfsSize {
        /// Its size.
        bytes: u64,
        /// Where the kernel ends.
        start: u64,
        /// Where it would have to end.
        end: u64,
    },
    /// Guest memory is not as it was said to be.
    #[error("the {what} cannot be written to guest memory at {address:#x}")]
    Write {
        /// What.
        what: &'static str,
        /// The guest address.
        address: u64,
        /// What failed.
        #[source]
        cause: GuestMemoryError,
    },
}

/// Something in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    start: u64,
    /// In bytes.
    size: u64,
}

/// Puts everything into guest memory.
///
/// # Errors
/// [`BootError`]; memory may then be partly written.
pub(in crate::hypervisor::kvm) fn load(boot: &Boot<'_>) -> Result<Entry, BootError> {
    let low_end = memory_map::low_end(boot.memory);
    if low_end <= layout::HIGH_MEMORY {
        return Err(BootError::Memory { end: low_end });
    }
    if boot.vcpus == 0 || boot.vcpus > layout::MAX_VCPUS {
        return Err(BootError::Vcpus { vcpus: boot.vcpus });
    }
    let image = Image::new(boot.kernel).map_err(KernelError::from)?;
    let kernel = kernel::load(&image, boot.memory, low_end)?;
    let initramfs = load_initramfs(boot, &kernel, low_end)?;
    write_command_line(boot)?;
    let rsdp = write_hardware_tables(boot)?;
    let map = memory_map::memory_map(boot.memory);
    match kernel.protocol {
        Protocol::Pvh { entry } => {
            let info = pvh::start_info(initramfs, rsdp, map.len());
            write(boot.memory, "start information", layout::BOOT_INFO, &info)?;
            let map = pvh::memory_map(&map);
            write(boot.memory, "memory map", layout::PVH_MEMORY_MAP, &map)?;
            Ok(Entry::Pvh {
                rip: entry.into(),
                start_info: layout::BOOT_INFO,
            })
        }
        Protocol::Linux { entry, header } => {
            let page = linux::zero_page(header, initramfs, rsdp, &map);
            write(boot.memory, "zero page", layout::BOOT_INFO, page.as_slice())?;
            let descriptors = linux::DESCRIPTORS.map(u64::to_le_bytes).concat();
            write(boot.memory, "descriptor table", layout::GDT, &descriptors)?;
            write(
                boot.memory,
                "page tables",
                layout::PAGE_TABLES,
                &linux::page_tables(),
            )?;
            Ok(Entry::Long {
                rip: entry,
                zero_page: layout::BOOT_INFO,
            })
        }
    }
}

/// As high in low memory as its pages and the kernel's limit allow: out of the way of a kernel that moves or
/// grows.
fn load_initramfs(boot: &Boot<'_>, kernel: &Kernel, low_end: u64) -> Result<Option<Placed>, BootError> {
    let image = Image::new(boot.initramfs).map_err(BootError::Initramfs)?;
    let size = image.bytes();
    if size == 0 {
        return Ok(None);
    }
    let end = match &kernel.protocol {
        Protocol::Linux {
            header: Some(header), ..
        } => low_end.min(u64::from(header.initrd_addr_max) + 1),
        _ => low_end,
    };
    let refusal = BootError::InitramfsSize {
        bytes: size,
        start: kernel.end,
        end,
    };
    match end.checked_sub(size).map(|start| start & !0xfff) {
        Some(start) if start >= kernel.end => {
            image
                .copy("contents", (0, size), boot.memory, start)
                .map_err(BootError::Initramfs)?;
            Ok(Some(Placed { start, size }))
        }
        _ => Err(refusal),
    }
}

/// What tells the kernel of processors and devices; the RSDP's guest address, if there is one.
fn write_hardware_tables(boot: &Boot<'_>) -> Result<Option<u64>, BootError> {
    if boot.acpi {
        let tables = acpi::tables(boot.vcpus, boot.virtio);
        write(boot.memory, "ACPI tables", layout::ACPI_TABLES, &tables)?;
        Ok(Some(layout::ACPI_TABLES))
    } else {
        let table = mp_table::table(boot.vcpus);
        write(boot.memory, "MP table", layout::MP_TABLE, &table)?;
        Ok(None)
    }
}

fn write_command_line(boot: &Boot<'_>) -> Result<(), BootError> {
    let bytes = boot.command_line.as_bytes();
    if bytes.len() >= layout::COMMAND_LINE_BYTES || bytes.contains(&0) {
        return Err(BootError::CommandLine { bytes: bytes.len() });
    }
    // Its final zero is there already.
    write(boot.memory, "command line", layout::COMMAND_LINE, bytes)
}

/// The low and the high 32 bits, as several tables want them.
fn halves(number: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

fn write(memory: &GuestMemoryMmap, what: &'static str, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|cause| BootError::Write { what, address, cause })
}

#[cfg(test)]
mod tests;
