//! Every address of the machine, in one table.
//!
//! ```text
//!  0x0000_0500  GDT                            while booting by the 64-bit protocol
//!  0x0000_7000  start info, or the zero page   one page, plus the memory map of PVH in the next
//!  0x0000_9000  page tables                    six pages: the first 4 GiB, identity
//!  0x0002_0000  command line                   up to 2047 bytes and a zero
//!  0x0009_fc00  MP table                       the last KiB below 640 KiB, where kernels look (MP 1.4 §4)
//!  0x000a_0000  (nothing; a PC's video memory)
//!  0x000e_0000  ACPI tables                    where kernels look (ACPI 6.5 §5.2.5.1)
//!  0x0010_0000  kernel and ordinary memory; the initramfs ends where low memory ends
//!  0xc000_0000  the gap: 1 GiB without memory
//!  0xd000_0000    virtio-mmio                  0x1000 each
//!  0xfec0_0000    IO-APIC                      24 pins (KVM)
//!  0xfee0_0000    local APICs
//!  0xfffb_c000    KVM's identity map, TSS      Intel only (KVM api.rst 4.41, 4.35)
//!  0x1_0000_0000  memory again
//! ```
//!
//! Owns the numbers and the arithmetic of the gap. It must not know KVM, nor who writes what there.

use vm_memory::GuestAddress;

/// Where memory is interrupted for devices.
pub(in crate::hypervisor::kvm) const GAP_START: u64 = 0xc000_0000;
/// Where memory goes on.
pub(in crate::hypervisor::kvm) const GAP_END: u64 = 0x1_0000_0000;

/// The descriptor table of the 64-bit boot protocol.
pub(super) const GDT: u64 = 0x500;
/// `hvm_start_info` of PVH, or `boot_params` of the Linux protocol ("zero page"): never both.
pub(super) const BOOT_INFO: u64 = 0x7000;
/// The memory map that PVH's start info points to.
pub(super) const PVH_MEMORY_MAP: u64 = 0x8000;
/// The root of the page tables; five more pages follow.
pub(super) const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes of a command line with its final zero: what x86 kernels keep of it (`COMMAND_LINE_SIZE`).
pub(super) const COMMAND_LINE_BYTES: usize = 2048;
/// The MP table; memory below it is the guest's.
pub(super) const MP_TABLE: u64 = 0x9_fc00;
/// Where the first 640 KiB end.
pub(super) const BASE_MEMORY_END: u64 = 0xa_0000;
/// The ACPI tables.
pub(super) const ACPI_TABLES: u64 = 0xe_0000;
/// Where ordinary memory goes on, and where kernels may be.
pub(super) const HIGH_MEMORY: u64 = 0x10_0000;

/// The IO-APIC (KVM's in-kernel one is nowhere else).
pub(super) const IO_APIC: u32 = 0xfec0_0000;
/// Its pins.
pub(in crate::hypervisor::kvm) const IO_APIC_PINS: u32 = 24;
/// The local APICs' page (Intel SDM 3A §11.4.1).
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;
/// For `KVM_SET_IDENTITY_MAP_ADDR`: one page that Intel processors without "unrestricted guest" need.
pub(in crate::hypervisor::kvm) const IDENTITY_MAP: u64 = 0xfffb_c000;
/// For `KVM_SET_TSS_ADDR`: three pages, after the identity map's.
pub(in crate::hypervisor::kvm) const TSS: usize = 0xfffb_d000;

/// COM1's first of eight ports.
pub(in crate::hypervisor::kvm) const COM1_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub(in crate::hypervisor::kvm) const COM1_GSI: u32 = 4;
/// The RTC's index port; the data port follows.
pub(in crate::hypervisor::kvm) const RTC_PORT: u16 = 0x70;
/// The RTC's interrupt, which nobody raises but drivers ask for.
#[cfg(test)]
const RTC_GSI: u32 = 8;
/// The keyboard controller's command and status port. It answers reads with 0 (ready), and
/// [`KEYBOARD_RESET`] written to it resets the machine: how kernels without ACPI do it.
pub(in crate::hypervisor::kvm) const KEYBOARD_PORT: u16 = 0x64;
/// Written to [`KEYBOARD_PORT`]: pulse the processor's reset line.
pub(in crate::hypervisor::kvm) const KEYBOARD_RESET: u8 = 0xfe;
/// ACPI's sleep control register, one byte (ACPI 6.5 §4.8.3.7).
pub(in crate::hypervisor::kvm) const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI's sleep status register, one byte; reads as 0, writes are ignored.
pub(in crate::hypervisor::kvm) const SLEEP_STATUS_PORT: u16 = 0x601;
/// The sleep type of S5, soft off.
pub(in crate::hypervisor::kvm) const SLEEP_TYPE_S5: u8 = 5;
/// Written to [`SLEEP_CONTROL_PORT`] to power off: the type of S5 in bits 2 to 4 with SLP_EN, bit 5.
pub(in crate::hypervisor::kvm) const POWER_OFF: u8 = SLEEP_TYPE_S5 << 2 | 1 << 5;
/// ACPI's reset register, one byte.
pub(in crate::hypervisor::kvm) const RESET_PORT: u16 = 0x602;
/// Written to [`RESET_PORT`] to reset.
pub(in crate::hypervisor::kvm) const RESET: u8 = 1;
/// pvpanic, one byte (QEMU docs/specs/pvpanic): reads tell the events it knows, writes tell which came.
pub(in crate::hypervisor::kvm) const PANIC_PORT: u16 = 0x505;

/// Bytes of a virtio-mmio register window.
const SLOT_BYTES: u64 = 0x1000;
/// Where the first is.
const SLOTS: u64 = 0xd000_0000;
/// The interrupts they get, in order: 0 to 4 and 8 belong to a PC's timer, keyboard, cascade, serial ports
/// and RTC, and edge-triggered interrupts cannot be shared.
const SLOT_GSIS: [u32; MAX_VIRTIO_SLOTS] =
    [5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
/// How many virtio devices the machine can have: one per pin that is left on the IO-APIC.
pub(in crate::hypervisor::kvm) const MAX_VIRTIO_SLOTS: usize = 18;
/// How many processors it can have: the MP table has room for 32 and the legacy APIC destinations for 254.
pub(in crate::hypervisor::kvm) const MAX_VCPUS: u8 = 32;

/// Where one virtio-mmio device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::hypervisor::kvm) struct Slot {
    /// The guest address of its registers.
    pub(in crate::hypervisor::kvm) base: u64,
    /// Their size in bytes.
    pub(in crate::hypervisor::kvm) size: u64,
    /// Its interrupt: the IO-APIC's pin, edge-triggered.
    pub(in crate::hypervisor::kvm) gsi: u32,
}

/// More devices than the machine has interrupts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("device {index}: the machine has interrupts for {MAX_VIRTIO_SLOTS} virtio devices")]
pub(in crate::hypervisor::kvm) struct NoSlot {
    /// The device's number, from 0.
    pub(in crate::hypervisor::kvm) index: usize,
}

/// The place of device `index`, from 0.
///
/// # Errors
/// From [`MAX_VIRTIO_SLOTS`] on.
pub(in crate::hypervisor::kvm) fn virtio_slot(index: usize) -> Result<Slot, NoSlot> {
    let gsi = *SLOT_GSIS.get(index).ok_or(NoSlot { index })?;
    Ok(Slot {
        base: SLOTS + SLOT_BYTES * u64::try_from(index).map_err(|_| NoSlot { index })?,
        size: SLOT_BYTES,
        gsi,
    })
}

/// Where `bytes` of memory are: below the gap, and what does not fit there above it.
pub(in crate::hypervisor::kvm) fn memory_ranges(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(GAP_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(GAP_END), bytes - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_goes_around_the_gap() {
        let ranges = |bytes| -> Vec<(u64, u64)> {
            memory_ranges(bytes)
                .into_iter()
                .map(|(start, size)| (start.0, size))
                .collect()
        };
        assert_eq!(ranges(128 * MIB), [(0, 128 * MIB)]);
        assert_eq!(ranges(3 * GIB - MIB), [(0, 3 * GIB - MIB)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ranges(3 * GIB + MIB), [(0, 3 * GIB), (4 * GIB, MIB)]);
        assert_eq!(ranges(512 * GIB), [(0, 3 * GIB), (4 * GIB, 509 * GIB)]);
    }

    /// For sizes of every magnitude: nothing lost, nothing in the gap, nothing twice.
    #[test]
    fn no_size_loses_memory_or_enters_the_gap() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..10_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let bytes = ((seed >> (seed % 40 + 16)) & !0xfff) + 0x1000;
            let ranges = memory_ranges(bytes);
            assert_eq!(ranges.iter().map(|range| range.1).sum::<u64>(), bytes);
            let mut end = 0;
            for (start, size) in ranges {
                assert!(start.0 >= end && size > 0, "{bytes:#x}");
                end = start.0 + size;
                assert!(end <= GAP_START || start.0 >= GAP_END, "{bytes:#x}");
            }
        }
    }

    #[test]
    fn slots_are_apart_and_their_interrupts_their_own() {
        let slots: Vec<Slot> = (0..MAX_VIRTIO_SLOTS)
            .map(|index| virtio_slot(index).unwrap())
            .collect();
        for (index, slot) in slots.iter().enumerate() {
            assert!(slot.base >= GAP_START && slot.base + slot.size <= u64::from(IO_APIC));
            assert!(slot.gsi < IO_APIC_PINS && ![0, 1, 2, COM1_GSI, RTC_GSI].contains(&slot.gsi));
            for other in &slots[index + 1..] {
                assert!(slot.base + slot.size <= other.base && slot.gsi != other.gsi);
            }
        }
        let refusal = virtio_slot(MAX_VIRTIO_SLOTS).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "device 18: the machine has interrupts for 18 virtio devices"
        );
    }

    /// What stands in low memory, in order and apart.
    #[test]
    fn tables_do_not_meet() {
        let tables = [
            (GDT, 32),
            (BOOT_INFO, 0x1000),
            (PVH_MEMORY_MAP, 0x1000),
            (PAGE_TABLES, 0x6000),
            (COMMAND_LINE, COMMAND_LINE_BYTES as u64),
            (MP_TABLE, 0x400),
            (ACPI_TABLES, 0x2_0000),
        ];
        for pair in tables.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        assert_eq!(MP_TABLE + 0x400, BASE_MEMORY_END);
        assert_eq!(ACPI_TABLES + 0x2_0000, HIGH_MEMORY);
    }
}
