//! Gives one range of guest memory back to the host.
//!
//! Owns the two calls that do it and decides between them; knows no queue. How a region is mapped says
//! which call is right:
//!
//! | region | call | what the guest finds then |
//! |---|---|---|
//! | shared mapping of a file | a hole in the file | zeroes |
//! | private mapping of a file | the private copy is dropped | what the file has |
//! | private mapping of nothing | the pages are dropped | zeroes |
//! | read-only, or shared and of nothing | none | what it had |

use std::io;
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use super::pages::Range;
use crate::Memory;

/// Memory that was not given back.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiscardError {
    /// The guest has no memory there.
    #[error("no guest memory at {start:#x}")]
    Outside {
        /// Guest physical address.
        start: u64,
    },
    /// The guest may not change this memory, or it has no owner that could take it.
    #[error("memory at {start:#x} cannot be given back")]
    NotOurs {
        /// Guest physical address.
        start: u64,
    },
    /// The host refuses.
    #[error("memory at {start:#x} was not given back: {cause}")]
    Host {
        /// Guest physical address.
        start: u64,
        /// What the host says.
        cause: io::Error,
    },
}

/// What became of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The host has it.
    Discarded,
    /// The guest would not find what it must find, so it still has it.
    Kept,
}

/// What the guest must find in memory that it gave away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// It does not care.
    Anything,
    /// Zeroes.
    Zeroes,
    /// What it left there.
    Unchanged,
}

/// The part of `range` that begins where it begins and lies in one region, or in none: in none it ends
/// where the next region begins.
pub(super) fn first_piece(memory: &Memory, range: Range) -> Range {
    let inside = memory.find_region(GuestAddress(range.start));
    let end = match inside {
        Some(region) => region.last_addr().raw_value().checked_add(1),
        None => memory
            .iter()
            .map(|region| region.start_addr().raw_value())
            .filter(|&start| start > range.start)
            .min(),
    };
    Range {
        end: end.map_or(range.end, |end| end.min(range.end)),
        ..range
    }
}

/// Gives a [piece](first_piece) back, if the guest then finds there what it must.
pub(super) fn discard(memory: &Memory, piece: Range, after: After) -> Result<Fate, DiscardError> {
    let start = piece.start;
    let (region, at) = memory
        .to_region_addr(GuestAddress(start))
        .ok_or(DiscardError::Outside { start })?;
    let writable = i64::from(region.prot()) & i64::from(ProtFlags::WRITE.bits()) != 0;
    let private = i64::from(region.flags()) & i64::from(MapFlags::PRIVATE.bits()) != 0;
    if after == After::Unchanged {
        return Ok(Fate::Kept);
    }
    if !writable {
        return Err(DiscardError::NotOurs { start });
    }
    let given = match region.file_offset() {
        Some(_) if private && after == After::Zeroes => return Ok(Fate::Kept),
        Some(file) if !private => punch(file, at, piece.bytes()),
        None if !private => return Err(DiscardError::NotOurs { start }),
        _ => drop_pages(region, at, piece.bytes()),
    };
    given
        .map(|()| Fate::Discarded)
        .map_err(|cause| DiscardError::Host { start, cause })
}

/// A hole in the file; its size stays.
fn punch(file: &vm_memory::FileOffset, at: MemoryRegionAddress, bytes: u64) -> io::Result<()> {
    let offset = file
        .start()
        .checked_add(at.raw_value())
        .ok_or(io::ErrorKind::InvalidInput)?;
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file.file(), mode, offset, bytes)?;
    Ok(())
}

/// The mapping forgets its pages.
#[expect(unsafe_code, reason = "madvise changes what an address holds")]
fn drop_pages(region: &GuestRegionMmap, at: MemoryRegionAddress, bytes: u64) -> io::Result<()> {
    let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Both ends have to be in this mapping: the neighbour in address space is somebody else's.
    let last = u64::try_from(bytes)
        .ok()
        .and_then(|bytes| at.raw_value().checked_add(bytes)?.checked_sub(1))
        .filter(|&last| last < region.len())
        .ok_or(io::ErrorKind::InvalidInput)?;
    debug_assert!(last >= at.raw_value());
    let address = region.get_host_address(at).map_err(io::Error::other)?;
    let address = NonNull::new(address).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the range is inside of the region's mapping, as checked above, and the mapping outlives the
    // call because `region` is borrowed. What is there is the guest's memory: it changes at any time, so
    // nobody in this process holds a reference to it or relies on what it has (vm-memory hands out volatile
    // slices only). `LinuxDontNeed` unmaps nothing: later reads give zeroes or the file's bytes.
    unsafe { rustix::mm::madvise(address.as_ptr().cast(), bytes, Advice::LinuxDontNeed) }?;
    Ok(())
}
