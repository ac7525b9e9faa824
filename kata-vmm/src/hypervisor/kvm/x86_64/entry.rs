//! The registers a boot processor starts with. Pure.
//!
//! Owns the two states that the boot protocols ask for. It must not know vCPUs.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::boot::Entry;
use super::layout::{GDT, PAGE_TABLES};

/// Protected mode, and the extension type bit that is always 1 (Intel SDM 3A §2.5).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always 1; interrupts are off.
const RFLAGS: u64 = 2;

/// `__BOOT_CS` and `__BOOT_DS` of the Linux protocol; PVH leaves selectors open.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

/// General registers.
pub(super) fn general(entry: &Entry) -> kvm_regs {
    let registers = kvm_regs {
        rflags: RFLAGS,
        ..kvm_regs::default()
    };
    match *entry {
        Entry::Pvh { rip, start_info } => kvm_regs {
            rip,
            rbx: start_info,
            ..registers
        },
        Entry::Long { rip, zero_page } => kvm_regs {
            rip,
            rsi: zero_page,
            ..registers
        },
    }
}

/// Control registers and segments, on top of what the processor has after reset.
///
/// PVH (Xen docs/misc/pvh): flat 32-bit segments, a task segment of 0x67, paging off, CR4 zero.
/// Linux (boot.rst, "64-bit Boot Protocol"): paging on, low memory mapped to itself, a table with both segments.
pub(super) fn special(entry: &Entry, reset: &kvm_sregs) -> kvm_sregs {
    let long = matches!(entry, Entry::Long { .. });
    let data = segment(DATA, 0x3, false);
    let mut registers = kvm_sregs {
        cs: segment(CODE, 0xb, long),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: kvm_segment {
            limit: 0x67,
            type_: 0xb,
            present: 1,
            ..kvm_segment::default()
        },
        cr0: CR0_PE | CR0_ET,
        cr4: 0,
        ..*reset
    };
    if long {
        registers.cr0 |= CR0_PG;
        registers.cr3 = PAGE_TABLES;
        registers.cr4 = CR4_PAE;
        registers.efer = EFER_LME | EFER_LMA;
        registers.gdt.base = GDT;
        registers.gdt.limit = 31;
    }
    registers
}

/// A flat segment, as the processor caches its descriptor (Intel SDM 3A §3.4.5).
fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::boot::linux::DESCRIPTORS;
    use super::*;

    /// A descriptor as it stands in memory (Intel SDM 3A figure 3-8).
    fn encode(segment: &kvm_segment) -> u64 {
        let limit = u64::from(segment.limit >> 12);
        let access = u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
        let flags = u64::from(segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3);
        (limit & 0xffff) | access << 40 | (limit >> 16) << 48 | flags << 52
    }

    #[test]
    fn long_mode_and_its_descriptor_table_agree() {
        let entry = Entry::Long {
            rip: 0x100_0200,
            zero_page: 0x7000,
        };
        let registers = special(&entry, &kvm_sregs::default());
        assert_eq!(encode(&registers.cs), DESCRIPTORS[usize::from(CODE / 8)]);
        assert_eq!(encode(&registers.ds), DESCRIPTORS[usize::from(DATA / 8)]);
        assert_eq!(usize::from(registers.gdt.limit) + 1, DESCRIPTORS.len() * 8);
        assert_eq!(registers.cr0, 0x8000_0011);
        assert_eq!((registers.cr4, registers.efer), (0x20, 0x500));
        let general = general(&entry);
        assert_eq!(
            (general.rip, general.rsi, general.rflags),
            (0x100_0200, 0x7000, 2)
        );
    }

    #[test]
    fn pvh_starts_in_flat_protected_mode_without_paging() {
        let entry = Entry::Pvh {
            rip: 0x100_0a30,
            start_info: 0x7000,
        };
        let registers = special(&entry, &kvm_sregs::default());
        assert_eq!((registers.cr0, registers.cr4, registers.efer), (0x11, 0, 0));
        assert_eq!(encode(&registers.cs), 0x00cf_9b00_0000_ffff);
        assert_eq!(encode(&registers.ss), 0x00cf_9300_0000_ffff);
        assert_eq!(
            (registers.tr.limit, registers.tr.type_, registers.tr.s),
            (0x67, 0xb, 0)
        );
        let general = general(&entry);
        assert_eq!(
            (general.rip, general.rbx, general.rflags),
            (0x100_0a30, 0x7000, 2)
        );
    }
}
