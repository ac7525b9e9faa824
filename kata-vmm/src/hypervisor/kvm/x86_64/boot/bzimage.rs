//! A kernel that decompresses itself: setup header and payload of a bzImage
//! (Linux Documentation/arch/x86/boot.rst).
//!
//! It starts slower than the same kernel uncompressed, by the time of its decompression.
//! Owns the header's checks. It must not know guest memory.

use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::image::Image;
use super::kernel::KernelError;

/// The header as the kernel has it, to be handed back to it in the zero page.
pub(super) type SetupHeader = setup_header;

/// The 64-bit entry, from where the payload is loaded (boot.rst, "64-bit Boot Protocol").
pub(super) const ENTRY_64: u64 = 0x200;

/// Where the header is in the file and in the zero page.
const HEADER_OFFSET: u64 = 0x1f1;
/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// The version that has `xloadflags`.
const VERSION: u16 = 0x020c;
/// `loadflags`: the payload is loaded above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: it has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Bytes of a sector of the setup code.
const SECTOR: u64 = 512;

/// What is loaded, and how.
#[derive(Debug)]
pub(super) struct BzImage {
    /// The kernel's header.
    pub(super) header: SetupHeader,
    /// Where the payload is in the file, and its size in bytes.
    pub(super) payload: (u64, u64),
    /// The guest address that the kernel prefers.
    pub(super) address: u64,
    /// How much memory it needs there to decompress itself.
    pub(super) memory_bytes: u64,
}

/// Reads the header; `None` if the file is no bzImage.
pub(super) fn parse(image: &Image<'_>) -> Result<Option<BzImage>, KernelError> {
    if image.bytes() < HEADER_OFFSET + size_of::<SetupHeader>() as u64 {
        return Ok(None);
    }
    let mut header = SetupHeader::default();
    image.read("setup header", HEADER_OFFSET, header.as_mut_slice())?;
    if header.header != MAGIC {
        return Ok(None);
    }
    check(&header)?;
    // Of old, 0 means 4.
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = (sectors + 1) * SECTOR;
    image.check("payload", offset, ENTRY_64 + 1)?;
    Ok(Some(BzImage {
        payload: (offset, image.bytes() - offset),
        address: header.pref_address,
        memory_bytes: u64::from(header.init_size),
        header,
    }))
}

fn check(header: &SetupHeader) -> Result<(), KernelError> {
    let reason = if header.version < VERSION {
        "of before boot protocol 2.12, which has no 64-bit entry point"
    } else if header.loadflags & LOADED_HIGH == 0 {
        "that loads below 1 MiB"
    } else if header.xloadflags & XLF_KERNEL_64 == 0 {
        "without a 64-bit entry point"
    } else {
        return Ok(());
    };
    Err(KernelError::BzImage { reason })
}
