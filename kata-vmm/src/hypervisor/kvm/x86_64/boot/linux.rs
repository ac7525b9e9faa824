//! The Linux 64-bit boot protocol (Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): the zero
//! page, the descriptor table and the page tables that a kernel finds.
//!
//! Owns the bytes of the three. It must not know how their contents were chosen.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};

use super::memory_map::Range;
use super::{Placed, halves};
use crate::hypervisor::kvm::x86_64::layout::{COMMAND_LINE, COMMAND_LINE_BYTES, PAGE_TABLES};

/// "HdrS", `boot_flag`, and the version whose fields an ELF kernel is given.
const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
const VERSION: u16 = 0x020f;
/// Without its final zero.
const COMMAND_LINE_SIZE: u32 = 2047;
const _: () = assert!(COMMAND_LINE_SIZE as usize + 1 == COMMAND_LINE_BYTES);
/// A boot loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;

/// Page table entry: present, writable.
const PRESENT_WRITABLE: u64 = 0b11;
/// Directory entry: maps 2 MiB.
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 0x1000;
/// How many GiB are mapped: everything that the kernel, its tables and the initramfs can be in.
const MAPPED_GIB: u64 = 4;

/// The descriptors: none, none, `__BOOT_CS` (0x10), `__BOOT_DS` (0x18), both flat.
pub(in crate::hypervisor::kvm::x86_64) const DESCRIPTORS: [u64; 4] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// The zero page.
pub(super) fn zero_page(
    header: Option<setup_header>,
    initramfs: Option<Placed>,
    rsdp: Option<u64>,
    map: &[Range],
) -> boot_params {
    let mut header = header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: MAGIC,
        version: VERSION,
        cmdline_size: COMMAND_LINE_SIZE,
        ..setup_header::default()
    });
    let mut page = boot_params {
        acpi_rsdp_addr: rsdp.unwrap_or(0),
        ..boot_params::default()
    };
    header.type_of_loader = UNDEFINED_LOADER;
    (header.cmd_line_ptr, page.ext_cmd_line_ptr) = halves(COMMAND_LINE);
    if let Some(Placed { start, size }) = initramfs {
        (header.ramdisk_image, page.ext_ramdisk_image) = halves(start);
        (header.ramdisk_size, page.ext_ramdisk_size) = halves(size);
    }
    page.hdr = header;
    let mut table = page.e820_table;
    for (entry, range) in table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.size,
            r#type: range.kind as u32,
        };
        page.e820_entries += 1;
    }
    page.e820_table = table;
    page
}

/// The page tables, for [`PAGE_TABLES`]: the root, one table of directories, and four directories of 2 MiB
/// pages, which every x86-64 processor has, where 1 GiB pages are a feature.
pub(super) fn page_tables() -> Vec<u8> {
    let table = |index: u64| (PAGE_TABLES + index * PAGE) | PRESENT_WRITABLE;
    let mut entries = vec![0_u64; 512 * 2];
    entries[0] = table(1);
    for (entry, directory) in entries[512..].iter_mut().zip(0..MAPPED_GIB) {
        *entry = table(2 + directory);
    }
    entries.extend((0..MAPPED_GIB * 512).map(|page| page << 21 | PRESENT_WRITABLE | LARGE));
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}
