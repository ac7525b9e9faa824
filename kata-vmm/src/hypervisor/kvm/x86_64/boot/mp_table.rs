//! The MultiProcessor table (Intel MultiProcessor Specification 1.4), for kernels without ACPI.
//!
//! Owns the bytes from [`MP_TABLE`] on: the floating pointer, and the table right after it.
//! It must not know guest memory.

use crate::hypervisor::kvm::x86_64::layout::{IO_APIC, IO_APIC_PINS, LOCAL_APIC, MP_TABLE};

/// Bytes of the floating pointer and of the table's header (§4.1, §4.2).
const POINTER_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;
/// Version 1.4.
const REVISION: u8 = 4;
/// What a local APIC and an IO-APIC say of themselves.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// A processor's flags: enabled, and the one that boots (§4.3.1).
const ENABLED: u8 = 1;
const BOOTS: u8 = 2;
/// A processor as of old, with FPU and APIC: kernels ask CPUID.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 0x201;
/// Interrupt types (§4.3.3).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
/// The one bus.
const ISA: u8 = 0;
/// All local APICs.
const EVERY: u8 = 0xff;

/// The floating pointer and the table, for [`MP_TABLE`]: less than 1 KiB for every machine.
pub(super) fn table(vcpus: u8) -> Vec<u8> {
    let (count, entries) = entries(vcpus);
    let mut table = Vec::with_capacity(HEADER_BYTES + entries.len());
    table.extend(b"PCMP");
    table.extend(&(HEADER_BYTES + entries.len()).to_le_bytes()[..2]);
    table.extend([REVISION, 0]);
    table.extend(b"KATARS  ");
    table.extend(b"KATAVMM     ");
    table.extend([0; 6]);
    table.extend(&count.to_le_bytes()[..2]);
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);

    let mut bytes = Vec::with_capacity(POINTER_BYTES + table.len());
    bytes.extend(b"_MP_");
    bytes.extend(&(MP_TABLE + POINTER_BYTES as u64).to_le_bytes()[..4]);
    // One paragraph, this revision, the checksum, a table rather than a default, no IMCR.
    bytes.extend([1, REVISION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes.extend(table);
    bytes
}

/// What makes a sum of zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

/// How many, and their bytes: processors, bus, IO-APIC, its pins, the local APICs' pins (§4.3).
fn entries(vcpus: u8) -> (usize, Vec<u8>) {
    let mut bytes = Vec::new();
    for id in 0..vcpus {
        let boots = if id == 0 { BOOTS } else { 0 };
        bytes.extend([0, id, LOCAL_APIC_VERSION, ENABLED | boots]);
        bytes.extend(SIGNATURE.to_le_bytes());
        bytes.extend(FEATURES.to_le_bytes());
        bytes.extend([0; 8]);
    }
    bytes.extend([1, ISA]);
    bytes.extend(b"ISA   ");
    let io_apic = vcpus;
    bytes.extend([2, io_apic, IO_APIC_VERSION, ENABLED]);
    bytes.extend(IO_APIC.to_le_bytes());
    for pin in (0..).take(IO_APIC_PINS as usize) {
        // As the bus has it, and ISA's are edge-triggered, active high.
        bytes.extend([3, INT, 0, 0, ISA, pin, io_apic, pin]);
    }
    bytes.extend([4, EXTINT, 0, 0, ISA, 0, 0, 0]);
    bytes.extend([4, NMI, 0, 0, ISA, 0, EVERY, 1]);
    let count = usize::from(vcpus) + 2 + IO_APIC_PINS as usize + 2;
    (count, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::kvm::x86_64::layout::{BASE_MEMORY_END, MAX_VCPUS};

    fn u16_at(bytes: &[u8], offset: usize) -> u16 {
        u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
    }

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    #[test]
    fn every_table_is_whole_and_fits() {
        for vcpus in 1..=MAX_VCPUS {
            let bytes = table(vcpus);
            assert!(MP_TABLE + bytes.len() as u64 <= BASE_MEMORY_END, "{vcpus}");
            let (pointer, table) = bytes.split_at(POINTER_BYTES);
            assert_eq!(&pointer[..4], b"_MP_");
            assert_eq!(u64::from(u32_at(pointer, 4)), MP_TABLE + 16);
            assert_eq!(checksum(pointer), 0);
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(usize::from(u16_at(table, 4)), table.len());
            assert_eq!(checksum(table), 0);
            assert_eq!(u32_at(table, 36), 0xfee0_0000);
            walk(vcpus, table);
        }
    }

    /// Entries by their types' lengths, in ascending order of type (§4.3).
    fn walk(vcpus: u8, table: &[u8]) {
        let (mut offset, mut found, mut last) = (HEADER_BYTES, [0_u16; 5], 0);
        while offset < table.len() {
            let kind = usize::from(table[offset]);
            assert!(kind >= last && kind < 5, "entry {kind} at {offset}");
            if kind == 0 {
                assert_eq!(u16::from(table[offset + 1]), found[0]);
                assert_eq!(table[offset + 3], if found[0] == 0 { 3 } else { 1 });
            }
            found[kind] += 1;
            last = kind;
            offset += if kind == 0 { 20 } else { 8 };
        }
        assert_eq!(offset, table.len());
        assert_eq!(found, [vcpus.into(), 1, 1, 24, 2]);
        assert_eq!(u16_at(table, 34), found.iter().sum::<u16>());
    }
}
