//! An uncompressed kernel: an ELF file with the segments of an x86-64 executable.
//!
//! It is read here rather than by the loader crate, which moves the file's position, checks neither the
//! machine nor the ranges, and knows no segment's place before it has written it.
//! Owns the parsing of headers and notes, and the checks that need the file alone.
//! It must not know guest memory.
//!
//! | a hostile kernel file                             | what happens |
//! |---|---|
//! | headers, segments or notes beyond the file's end  | `Truncated`, before anything is written |
//! | tables of absurd sizes                            | refused; at most 64 headers and 64 KiB of notes are read |
//! | segments on top of each other, on tables, outside of memory | refused with the segment's number |
//! | an entry point outside of its segments            | refused |
//! | code that does anything at all                    | it runs in the guest, as every kernel does |

use super::image::Image;
use super::kernel::KernelError;

/// Bytes of the file header.
const HEADER: usize = 64;
/// Bytes of a program header.
const PROGRAM_HEADER: usize = 56;
/// More program headers than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// More bytes of notes than any kernel has.
const MAX_NOTES: u64 = 64 << 10;
/// `EM_X86_64` (System V ABI, AMD64 supplement §4.1).
const MACHINE: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// The owners of notes. Every Linux since 5.8 has notes of its own (include/linux/elfnote-lto.h).
const XEN: &[u8] = b"Xen\0";
const LINUX: &[u8] = b"Linux\0";
/// The note with PVH's entry point (Xen, public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// What is loaded, and where it starts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Elf {
    /// In the order of their addresses; they do not overlap.
    pub(super) segments: Vec<Segment>,
    /// The entry that is taken; it is in one of them.
    pub(super) entry: Entry,
}

/// Where a kernel starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// PVH's, in 32-bit mode.
    Pvh(u32),
    /// The file's own, in 64-bit mode.
    Long(u64),
}

/// What the notes tell.
#[derive(Debug, Default)]
struct Notes {
    pvh: Option<u32>,
    linux: bool,
}

impl Notes {
    /// Linux is entered by its own protocol, also where it has PVH's entry: there it first asks 256 times whether Xen
    /// is the hypervisor (arch/x86/platform/pvh/enlighten.c), and each question is an exit.
    fn entry(&self, of_file: u64) -> Entry {
        match self.pvh {
            Some(entry) if !self.linux => Entry::Pvh(entry),
            _ => Entry::Long(of_file),
        }
    }
}

/// A part of the file that goes to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::hypervisor::kvm) struct Segment {
    /// Which program header it is, from 0.
    pub(super) number: usize,
    /// The guest address of its start.
    pub(super) address: u64,
    /// Where it starts in the file.
    pub(super) offset: u64,
    /// How much of it comes from the file.
    pub(super) file_bytes: u64,
    /// How much memory it takes; what is not from the file is zero.
    pub(super) memory_bytes: u64,
}

impl Segment {
    /// Where it ends. Checked when it was parsed.
    pub(super) fn end(&self) -> u64 {
        self.address.saturating_add(self.memory_bytes)
    }
}

/// Whether a file that starts like this is an ELF.
pub(super) fn recognize(start: &[u8]) -> bool {
    start.starts_with(b"\x7fELF")
}

/// Reads the headers and notes.
pub(super) fn parse(image: &Image<'_>) -> Result<Elf, KernelError> {
    let mut header = [0; HEADER];
    image.read("ELF header", 0, &mut header)?;
    let header = Fields(&header);
    // Class 64, little-endian, version 1.
    if header.0[4..7] != [2, 1, 1] || header.u16(18) != MACHINE {
        return Err(KernelError::NotX86 {
            machine: header.u16(18),
        });
    }
    let (offset, size, count) = (header.u64(32), header.u16(54), header.u16(56));
    if usize::from(size) != PROGRAM_HEADER || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(KernelError::ProgramHeaders { count, size });
    }
    let mut table = vec![0; usize::from(count) * PROGRAM_HEADER];
    image.read("program header table", offset, &mut table)?;

    let mut segments = Vec::new();
    let mut notes = Notes::default();
    for (number, header) in table.chunks_exact(PROGRAM_HEADER).map(Fields).enumerate() {
        match header.u32(0) {
            PT_LOAD if header.u64(40) > 0 => segments.push(segment(image, number, &header)?),
            PT_NOTE => read_notes(image, &header, &mut notes)?,
            _ => {}
        }
    }
    segments.sort_by_key(|segment| segment.address);
    let entry = notes.entry(header.u64(24));
    check(Elf { segments, entry })
}

fn segment(image: &Image<'_>, number: usize, header: &Fields<'_>) -> Result<Segment, KernelError> {
    let segment = Segment {
        number,
        offset: header.u64(8),
        address: header.u64(24),
        file_bytes: header.u64(32),
        memory_bytes: header.u64(40),
    };
    image.check("segment", segment.offset, segment.file_bytes)?;
    if segment.file_bytes > segment.memory_bytes
        || segment.address.checked_add(segment.memory_bytes).is_none()
    {
        return Err(KernelError::Segment { segment });
    }
    Ok(segment)
}

fn check(elf: Elf) -> Result<Elf, KernelError> {
    if let Some(pair) = elf
        .segments
        .windows(2)
        .find(|pair| pair[0].end() > pair[1].address)
    {
        return Err(KernelError::SegmentsOverlap {
            first: pair[0].number,
            second: pair[1].number,
        });
    }
    let entry = match elf.entry {
        Entry::Pvh(entry) => entry.into(),
        Entry::Long(entry) => entry,
    };
    let holds = |segment: &Segment| (segment.address..segment.end()).contains(&entry);
    if elf.segments.iter().any(holds) {
        Ok(elf)
    } else {
        Err(KernelError::Entry { entry })
    }
}

fn read_notes(image: &Image<'_>, header: &Fields<'_>, notes: &mut Notes) -> Result<(), KernelError> {
    let (offset, bytes, alignment) = (header.u64(8), header.u64(32), header.u64(48));
    let length = match usize::try_from(bytes) {
        Ok(length) if bytes <= MAX_NOTES => length,
        _ => return Err(KernelError::NotesTooLong { bytes }),
    };
    let mut segment = vec![0; length];
    image.read("note segment", offset, &mut segment)?;
    // Four bytes, except in segments that say eight (System V gABI, "Note Section").
    parse_notes(&segment, if alignment == 8 { 8 } else { 4 }, notes)
}

fn parse_notes(mut segment: &[u8], alignment: usize, notes: &mut Notes) -> Result<(), KernelError> {
    while let Some((header, rest)) = segment.split_at_checked(12) {
        let header = Fields(header);
        let beyond = || KernelError::Notes { bytes: segment.len() };
        let (name, rest) = padded(rest, header.u32(0), alignment).ok_or_else(beyond)?;
        let (description, rest) = padded(rest, header.u32(4), alignment).ok_or_else(beyond)?;
        notes.linux |= name == LINUX;
        if header.u32(8) == XEN_ELFNOTE_PHYS32_ENTRY && name == XEN {
            notes.pvh = match description {
                [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => Some(u32::from_le_bytes([*a, *b, *c, *d])),
                _ => return Err(KernelError::PvhNote),
            };
        }
        segment = rest;
    }
    Ok(())
}

/// The first `length` bytes, and what follows their padding. The padding of the last note may be missing.
fn padded(bytes: &[u8], length: u32, alignment: usize) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(length).ok()?;
    let (field, _) = bytes.split_at_checked(length)?;
    let end = length.next_multiple_of(alignment).min(bytes.len());
    Some((field, &bytes[end..]))
}

/// Little-endian numbers in a header whose length was checked.
#[derive(Debug)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|index| self.0[offset + index])
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }
}
