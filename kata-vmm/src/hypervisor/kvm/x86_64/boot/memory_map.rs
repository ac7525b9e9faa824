//! What the guest is told of its memory: the e820 map, which PVH's map equals.
//!
//! Owns the split of the first MiB. It must not know the format of either protocol.

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::hypervisor::kvm::x86_64::layout::{ACPI_TABLES, BASE_MEMORY_END, HIGH_MEMORY, MP_TABLE};

/// What a range is for (ACPI 6.5 §15, table 15.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The guest's.
    Usable = 1,
    /// Taken, by tables.
    Reserved = 2,
}

/// A range of guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    /// In bytes.
    pub(super) size: u64,
    pub(super) kind: Kind,
}

/// Where the memory that begins at 0 ends.
pub(super) fn low_end(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().fold(0, |end, region| {
        if region.start_addr().raw_value() == end {
            end + region.len()
        } else {
            end
        }
    })
}

/// The map of a guest with at least 1 MiB of low memory.
pub(super) fn memory_map(memory: &GuestMemoryMmap) -> Vec<Range> {
    let low_end = low_end(memory);
    let range = |start: u64, end: u64, kind| Range {
        start,
        size: end - start,
        kind,
    };
    let mut map = vec![
        range(0, MP_TABLE, Kind::Usable),
        range(MP_TABLE, BASE_MEMORY_END, Kind::Reserved),
        range(ACPI_TABLES, HIGH_MEMORY, Kind::Reserved),
        range(HIGH_MEMORY, low_end, Kind::Usable),
    ];
    for region in memory
        .iter()
        .filter(|region| region.start_addr().raw_value() > low_end)
    {
        let start = region.start_addr().raw_value();
        map.push(range(start, start + region.len(), Kind::Usable));
    }
    map
}
