//! Decompression of what is small enough to be in memory, told apart by its first bytes.

use std::io::{self, Read};

/// Most bytes of a kernel or module when unpacked.
const MAX_UNPACKED_BYTES: u64 = 1 << 30;

/// Why a kernel or a module cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// A format that is not read here.
    #[error("compression with {format} is not supported")]
    Unsupported {
        /// Its name.
        format: &'static str,
    },
    /// The data is broken.
    #[error("the {format} data is broken")]
    Broken {
        /// Name of the format.
        format: &'static str,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
    /// The unpacked data is larger than anything honest.
    #[error("more than {limit} bytes when unpacked")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
}

/// A way of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Xz,
    Zstd,
    Lz4,
    Other(&'static str),
}

/// First bytes, as in Linux `lib/decompress.c`.
const MAGICS: [(&[u8], Format); 9] = [
    (&[0x1f, 0x8b], Format::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Format::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
    (&[0x02, 0x21, 0x4c, 0x18], Format::Lz4),
    (&[0x04, 0x22, 0x4d, 0x18], Format::Other("lz4 frames")),
    (b"BZh", Format::Other("bzip2")),
    (&[0x5d, 0, 0], Format::Other("lzma")),
    (&[0x89, b'L', b'Z', b'O'], Format::Other("lzo")),
    (&[0x1f, 0x9e], Format::Other("gzip (old)")),
];

pub(super) fn recognize(bytes: &[u8]) -> Option<Format> {
    MAGICS
        .iter()
        .find(|(magic, _)| bytes.starts_with(magic))
        .map(|(_, format)| *format)
}

/// Unpacks one stream; what follows it is ignored (the kernel's build puts the unpacked size there).
pub(super) fn decompress(format: Format, bytes: &[u8]) -> Result<Vec<u8>, DecompressError> {
    match format {
        Format::Gzip => read("gzip", flate2::bufread::GzDecoder::new(bytes)),
        Format::Xz => read("xz", liblzma::bufread::XzDecoder::new(bytes)),
        Format::Zstd => {
            let decoder = zstd::Decoder::with_buffer(bytes);
            let decoder = decoder.map_err(|source| DecompressError::Broken {
                format: "zstd",
                source,
            })?;
            read("zstd", decoder.single_frame())
        }
        Format::Lz4 => lz4(bytes).map_err(|source| DecompressError::Broken {
            format: "lz4",
            source,
        }),
        Format::Other(format) => Err(DecompressError::Unsupported { format }),
    }
}

/// Most bytes of a block, unpacked (lz4 `doc/lz4_Frame_format.md`, Legacy frame).
const LZ4_BLOCK_BYTES: usize = 8 << 20;

/// Lz4's legacy frame, which the kernel's build writes: blocks, each behind its packed size. Memory is bounded by what
/// is packed: a block is unpacked into a buffer of fixed size.
fn lz4(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_BLOCK_BYTES];
    let mut rest = bytes.get(4..).unwrap_or_default();
    while let Some((size, after)) = rest.split_first_chunk::<4>() {
        let size = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX);
        // Nothing comes after the unpacked size, which the build puts behind the last block.
        if after.is_empty() {
            break;
        }
        let packed = after.get(..size).ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = lz4_flex::block::decompress_into(packed, &mut block).map_err(io::Error::other)?;
        unpacked.extend_from_slice(block.get(..length).unwrap_or_default());
        rest = &after[size..];
    }
    Ok(unpacked)
}

fn read(format: &'static str, decoder: impl Read) -> Result<Vec<u8>, DecompressError> {
    let mut unpacked = Vec::new();
    let read = decoder.take(MAX_UNPACKED_BYTES + 1).read_to_end(&mut unpacked);
    read.map_err(|source| DecompressError::Broken { format, source })?;
    if unpacked.len() as u64 > MAX_UNPACKED_BYTES {
        return Err(DecompressError::TooLarge {
            limit: MAX_UNPACKED_BYTES,
        });
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel's build packs: blocks of 8 MiB, then the unpacked size.
    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
        for block in bytes.chunks(LZ4_BLOCK_BYTES) {
            let block = lz4_flex::block::compress(block);
            packed.extend(u32::try_from(block.len()).expect("small").to_le_bytes());
            packed.extend(block);
        }
        packed.extend(u32::try_from(bytes.len()).expect("small").to_le_bytes());
        packed
    }

    #[test]
    fn lz4_of_several_blocks_is_unpacked() {
        let bytes: Vec<u8> = (0..LZ4_BLOCK_BYTES + 1000)
            .map(|at| u8::try_from(at / 999 % 251).expect("a byte"))
            .collect();
        let packed = packed(&bytes);
        assert_eq!(recognize(&packed), Some(Format::Lz4));
        assert!(decompress(Format::Lz4, &packed).expect("whole") == bytes);
    }

    #[test]
    fn broken_lz4_is_told() {
        let good = packed(&[7; 5000]);
        let mut wild = good.clone();
        wild[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let cut = good[..good.len() - 8].to_vec();
        for (name, bytes) in [("a size beyond the end", wild), ("cut", cut)] {
            let error = decompress(Format::Lz4, &bytes).expect_err(name);
            assert_eq!(error.to_string(), "the lz4 data is broken", "{name}");
        }
    }
}
