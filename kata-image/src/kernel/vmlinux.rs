//! The uncompressed kernel inside a bzImage, so that no boot has to unpack it.

use super::compression::{DecompressError, decompress, recognize};

/// Why no kernel could be taken out of a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// It is neither an ELF file nor a bzImage.
    #[error("the file is neither an ELF kernel nor a bzImage")]
    NotAKernel,
    /// The bzImage is from before protocol 2.08 (Linux 2.6.26) and does not say where its payload is.
    #[error("the boot protocol {}.{:02} does not say where the kernel is; 2.08 is needed", .version >> 8, .version & 0xff)]
    Protocol {
        /// Major number in the high byte, minor in the low one.
        version: u16,
    },
    /// The file ends before its payload does.
    #[error("the payload ends at byte {end}, the file at {file_bytes}")]
    Truncated {
        /// Where the payload should end.
        end: u64,
        /// Size of the file.
        file_bytes: u64,
    },
    /// The payload is compressed in a way that is not known.
    #[error("the payload's compression is not known")]
    UnknownCompression,
    /// The payload cannot be unpacked.
    #[error("the payload cannot be unpacked")]
    Decompress(#[from] DecompressError),
    /// What was unpacked is no ELF file.
    #[error("the payload is no ELF file")]
    NotElf,
}

const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Takes the ELF kernel out of a bzImage; what is an ELF file already is returned as it is. The payload is found
/// by the boot protocol's header (Linux `Documentation/arch/x86/boot.rst`, `payload_offset`) and may be
/// compressed with gzip, xz or zstd.
///
/// # Errors
///
/// When this is no kernel, is truncated, or its payload cannot be unpacked.
pub fn extract_vmlinux(bzimage: &[u8]) -> Result<Vec<u8>, ExtractError> {
    if bzimage.starts_with(ELF_MAGIC) {
        return Ok(bzimage.to_vec());
    }
    let payload = payload(bzimage)?;
    if payload.starts_with(ELF_MAGIC) {
        return Ok(payload.to_vec());
    }
    let format = recognize(payload).ok_or(ExtractError::UnknownCompression)?;
    let kernel = decompress(format, payload)?;
    if kernel.starts_with(ELF_MAGIC) {
        Ok(kernel)
    } else {
        Err(ExtractError::NotElf)
    }
}

/// Whether a file is one of the two, without unpacking it.
pub(super) fn check_image(image: &[u8]) -> Result<(), ExtractError> {
    if image.starts_with(ELF_MAGIC) {
        return Ok(());
    }
    payload(image).map(drop)
}

/// Offsets of the real-mode header's fields (boot.rst, "The Real-Mode Kernel Header").
const SETUP_SECTS: usize = 0x1f1;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: u64 = 512;
const FIRST_VERSION_WITH_PAYLOAD: u16 = 0x208;

fn payload(bzimage: &[u8]) -> Result<&[u8], ExtractError> {
    if array(bzimage, HEADER) != Some(*b"HdrS") {
        return Err(ExtractError::NotAKernel);
    }
    let version = array(bzimage, VERSION)
        .map(u16::from_le_bytes)
        .ok_or(ExtractError::NotAKernel)?;
    if version < FIRST_VERSION_WITH_PAYLOAD {
        return Err(ExtractError::Protocol { version });
    }
    let field = |offset| array(bzimage, offset).map(u32::from_le_bytes).map(u64::from);
    let (offset, length) = field(PAYLOAD_OFFSET)
        .zip(field(PAYLOAD_LENGTH))
        .ok_or(ExtractError::NotAKernel)?;
    // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
    let sectors = bzimage
        .get(SETUP_SECTS)
        .map_or(4, |sectors| if *sectors == 0 { 4 } else { *sectors });
    let start = (u64::from(sectors) + 1) * SECTOR_BYTES + offset;
    let end = start + length;
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    let payload = range.and_then(|(start, end)| bzimage.get(start..end));
    payload.ok_or(ExtractError::Truncated {
        end,
        file_bytes: bzimage.len() as u64,
    })
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A bzImage with two setup sectors and this payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[SETUP_SECTS] = 2;
        image[HEADER..HEADER + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend([0xcc; 16]);
        image.extend(payload);
        image.extend(b"signature");
        image
    }

    fn kernel() -> Vec<u8> {
        b"\x7fELF kernel ".repeat(1000)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_compression_gives_the_kernel_whatever_follows_it() {
        for compressed in [
            gzip(&kernel()),
            xz(&kernel()),
            zstd::encode_all(&kernel()[..], 1).unwrap(),
            kernel(),
        ] {
            let with_size = [&compressed[..], &[0, 0, 1, 0]].concat();
            let extracted = extract_vmlinux(&bzimage(&with_size)).unwrap();
            assert!(extracted.starts_with(&kernel()));
        }
        assert_eq!(extract_vmlinux(&kernel()).unwrap(), kernel());
    }

    #[test]
    fn what_cannot_be_extracted_says_why() {
        let check =
            |image: &[u8], text: &str| assert_eq!(extract_vmlinux(image).unwrap_err().to_string(), text);
        check(b"MZ", "the file is neither an ELF kernel nor a bzImage");
        check(&bzimage(b"what"), "the payload's compression is not known");
        check(&bzimage(&gzip(b"no kernel")), "the payload is no ELF file");
        let mut old = bzimage(b"");
        old[VERSION] = 7;
        check(
            &old,
            "the boot protocol 2.07 does not say where the kernel is; 2.08 is needed",
        );
        check(
            &bzimage(&[0; 100])[..1600],
            "the payload ends at byte 1652, the file at 1600",
        );
    }

    #[test]
    fn bzip2_is_unsupported_by_name() {
        let error = extract_vmlinux(&bzimage(b"BZh9")).unwrap_err();
        assert!(matches!(
            &error,
            ExtractError::Decompress(DecompressError::Unsupported { format: "bzip2" })
        ));
    }

    #[test]
    fn broken_payloads_are_broken() {
        for compressed in [
            gzip(&kernel()),
            xz(&kernel()),
            zstd::encode_all(&kernel()[..], 1).unwrap(),
        ] {
            let half = &compressed[..compressed.len() / 2];
            let error = extract_vmlinux(&bzimage(half)).unwrap_err();
            let broken = matches!(&error, ExtractError::Decompress(DecompressError::Broken { .. }));
            assert!(broken, "{error:?}");
        }
    }
}
