//! The kernel's way to memory, in whichever form it comes.
//!
//! Owns the choice of the form, where a kernel may be, and the copy.
//! It must not know what else the guest gets.

use vm_memory::GuestMemoryMmap;

use super::bzimage::{self, SetupHeader};
use super::elf::{self, Elf, Segment};
use super::image::{Image, ImageError};
use crate::hypervisor::kvm::x86_64::layout::HIGH_MEMORY;

/// A kernel in guest memory.
#[derive(Debug)]
pub(super) struct Kernel {
    /// How it starts.
    pub(super) protocol: Protocol,
    /// The first guest address that it does not need.
    pub(super) end: u64,
}

/// How a kernel starts.
#[derive(Debug)]
pub(super) enum Protocol {
    /// PVH, at a 32-bit address (Xen docs/misc/pvh).
    Pvh { entry: u32 },
    /// The Linux 64-bit boot protocol (Linux Documentation/arch/x86/boot.rst). An ELF has no header of its own.
    Linux { entry: u64, header: Option<SetupHeader> },
}

/// A kernel that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(in crate::hypervisor::kvm) enum KernelError {
    /// The file does not give what it promises.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Neither an ELF nor a bzImage.
    #[error("it is neither an ELF nor a bzImage; it starts with {start:02x?}")]
    Unrecognized {
        /// The first bytes.
        start: [u8; 4],
    },
    /// An ELF for another machine.
    #[error("it is no 64-bit little-endian ELF for x86-64, its machine is {machine}")]
    NotX86 {
        /// `e_machine`.
        machine: u16,
    },
    /// A table of program headers that no kernel has.
    #[error("it has {count} program headers of {size} bytes")]
    ProgramHeaders {
        /// `e_phnum`.
        count: u16,
        /// `e_phentsize`.
        size: u16,
    },
    /// A segment that is larger in the file than in memory, or wraps around.
    #[error(
        "its segment {} has {:#x} bytes for {:#x} bytes of memory at {:#x}",
        .segment.number, .segment.file_bytes, .segment.memory_bytes, .segment.address
    )]
    Segment {
        /// The segment.
        segment: Segment,
    },
    /// Two segments want the same memory.
    #[error("its segments {first} and {second} overlap in memory")]
    SegmentsOverlap {
        /// The one with the lower address.
        first: usize,
        /// The other.
        second: usize,
    },
    /// An absurd amount of notes.
    #[error("it has {bytes} bytes of notes")]
    NotesTooLong {
        /// How much.
        bytes: u64,
    },
    /// A note that is longer than its segment.
    #[error("a note ends after its segment, {bytes} bytes before the segment's end")]
    Notes {
        /// Where it starts, counted from the segment's end.
        bytes: usize,
    },
    /// The note with PVH's entry point holds no address.
    #[error("its note with the PVH entry point holds no 32-bit address")]
    PvhNote,
    /// It starts where nothing of it is.
    #[error("its entry point {entry:#x} is in none of its segments")]
    Entry {
        /// The guest address.
        entry: u64,
    },
    /// A bzImage that cannot be started in 64-bit mode.
    #[error("it is a bzImage {reason}")]
    BzImage {
        /// What is missing.
        reason: &'static str,
    },
    /// It does not fit.
    #[error(
        "it needs the memory from {start:#x} to {end:#x}, and the guest has {HIGH_MEMORY:#x} to {limit:#x} for it"
    )]
    Outside {
        /// Where it starts.
        start: u64,
        /// Where it ends.
        end: u64,
        /// Where the guest's low memory ends.
        limit: u64,
    },
}

/// Copies the kernel to guest memory, which is zero and has low memory up to `limit`.
pub(super) fn load(image: &Image<'_>, memory: &GuestMemoryMmap, limit: u64) -> Result<Kernel, KernelError> {
    let mut start = [0; 4];
    image.read("start", 0, &mut start)?;
    if elf::recognize(&start) {
        return load_elf(image, &elf::parse(image)?, memory, limit);
    }
    match bzimage::parse(image)? {
        Some(found) => load_bzimage(image, found, memory, limit),
        None => Err(KernelError::Unrecognized { start }),
    }
}

/// Segments keep their place: PVH has no relocation, and a kernel that wants to be elsewhere moves itself.
/// What a segment has more in memory than in the file needs no work: guest memory is a new memfd.
fn load_elf(
    image: &Image<'_>,
    elf: &Elf,
    memory: &GuestMemoryMmap,
    limit: u64,
) -> Result<Kernel, KernelError> {
    for segment in &elf.segments {
        fits(segment.address, segment.end(), limit)?;
    }
    for segment in &elf.segments {
        let range = (segment.offset, segment.file_bytes);
        image.copy("segment", range, memory, segment.address)?;
    }
    let protocol = match elf.entry {
        elf::Entry::Pvh(entry) => Protocol::Pvh { entry },
        elf::Entry::Long(entry) => Protocol::Linux { entry, header: None },
    };
    let end = elf.segments.last().map_or(0, Segment::end);
    Ok(Kernel { protocol, end })
}

fn load_bzimage(
    image: &Image<'_>,
    found: bzimage::BzImage,
    memory: &GuestMemoryMmap,
    limit: u64,
) -> Result<Kernel, KernelError> {
    let (offset, bytes) = found.payload;
    // It decompresses itself in place, in `init_size` bytes.
    let end = found.address.saturating_add(found.memory_bytes.max(bytes));
    fits(found.address, end, limit)?;
    image.copy("payload", (offset, bytes), memory, found.address)?;
    let protocol = Protocol::Linux {
        entry: found.address + bzimage::ENTRY_64,
        header: Some(found.header),
    };
    Ok(Kernel { protocol, end })
}

fn fits(start: u64, end: u64, limit: u64) -> Result<(), KernelError> {
    if start >= HIGH_MEMORY && end <= limit {
        Ok(())
    } else {
        Err(KernelError::Outside { start, end, limit })
    }
}
