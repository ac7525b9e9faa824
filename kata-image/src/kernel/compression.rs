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
    Other(&'static str),
}

/// First bytes, as in Linux `lib/decompress.c`.
const MAGICS: [(&[u8], Format); 9] = [
    (&[0x1f, 0x8b], Format::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Format::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
    (&[0x02, 0x21, 0x4c, 0x18], Format::Other("lz4")),
    (&[0x04, 0x22, 0x4d, 0x18], Format::Other("lz4")),
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
        Format::Other(format) => Err(DecompressError::Unsupported { format }),
    }
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
