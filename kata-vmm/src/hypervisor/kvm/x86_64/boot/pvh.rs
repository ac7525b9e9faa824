//! PVH's start information (Xen, public/arch-x86/hvm/start_info.h, version 1).
//!
//! Owns the bytes of the structures. It must not know how their contents were chosen.

use super::Placed;
use super::memory_map::Range;
use crate::hypervisor::kvm::x86_64::layout::{BOOT_INFO, COMMAND_LINE, PVH_MEMORY_MAP};

/// `XEN_HVM_START_MAGIC_VALUE`: "xEn3" with bit 7 of the "E" set.
const MAGIC: u32 = 0x336e_c578;
/// The version with the memory map.
const VERSION: u32 = 1;
/// Bytes of `hvm_start_info`.
const START_INFO_BYTES: u64 = 56;

/// `hvm_start_info`, and right after it the one `hvm_modlist_entry`. For [`BOOT_INFO`].
pub(super) fn start_info(initramfs: Option<Placed>, rsdp: Option<u64>, ranges: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let modules = u32::from(initramfs.is_some());
    for word in [MAGIC, VERSION, 0, modules] {
        bytes.extend(word.to_le_bytes());
    }
    let modlist = if initramfs.is_some() {
        BOOT_INFO + START_INFO_BYTES
    } else {
        0
    };
    for address in [modlist, COMMAND_LINE, rsdp.unwrap_or(0), PVH_MEMORY_MAP] {
        bytes.extend(address.to_le_bytes());
    }
    bytes.extend((ranges as u64).to_le_bytes());
    if let Some(Placed { start, size }) = initramfs {
        for field in [start, size, 0, 0] {
            bytes.extend(field.to_le_bytes());
        }
    }
    bytes
}

/// The array of `hvm_memmap_table_entry`. For [`PVH_MEMORY_MAP`].
pub(super) fn memory_map(map: &[Range]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for range in map {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend(range.size.to_le_bytes());
        bytes.extend((range.kind as u64).to_le_bytes());
    }
    bytes
}
