//! From a directory or an archive to a layer's bytes: packed and hashed in one pass, plain and packed.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{BuildError, LayerCompression, directory};
use crate::archive::{self, Compression, Recognized};
use crate::layout::unpacker;
use crate::oci::{Descriptor, Digest, media_type};

/// A layer in a file without a name.
pub(super) struct Packed {
    pub(super) descriptor: Descriptor,
    /// Of the archive when it is unpacked.
    pub(super) diff_id: Digest,
    pub(super) file: File,
}

/// The same on every machine, and a fair trade of time for size.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;
const BUFFER_BYTES: usize = 256 << 10;
/// Enough to recognize an archive.
const HEAD_BYTES: u64 = 512;

/// A layer of everything in a directory.
pub(super) fn directory(
    path: &Path,
    owner: Option<(u32, u32)>,
    compression: LayerCompression,
    temporary: &Path,
    report: &mut dyn FnMut(u64),
) -> Result<Packed, BuildError> {
    pack(compression, temporary, |output| {
        directory::write(path, owner, output, report)
    })
}

/// A layer of an archive: a packed one as it is.
pub(super) fn archive(
    path: &Path,
    compression: LayerCompression,
    temporary: &Path,
    report: &mut dyn FnMut(u64),
) -> Result<Packed, BuildError> {
    let read_error = |source| BuildError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let mut head = Vec::new();
    (&file)
        .take(HEAD_BYTES)
        .read_to_end(&mut head)
        .map_err(read_error)?;
    file.rewind().map_err(read_error)?;
    let Recognized::Readable(packing) = archive::recognize(&head) else {
        return Err(BuildError::NotAnArchive {
            path: path.to_path_buf(),
        });
    };
    let again = file.try_clone().map_err(read_error)?;
    check_archive(path, unpacker(packing, again).map_err(read_error)?)?;
    file.rewind().map_err(read_error)?;
    match packing {
        Compression::None => pack(compression, temporary, |output| {
            copy(&mut file, output, report).map_err(|error| error.of(path, temporary))
        }),
        packing => keep(path, file, packing, temporary, report),
    }
}

/// Walks over an archive, so that a broken one is noticed here and not where the image is used.
fn check_archive(path: &Path, input: Box<dyn Read>) -> Result<(), BuildError> {
    let mut members = archive::Members::new(input);
    let failed = |source| BuildError::Archive {
        path: path.to_path_buf(),
        source,
    };
    while members.next().map_err(failed)?.is_some() {}
    Ok(())
}

fn pack(
    compression: LayerCompression,
    temporary: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), BuildError>,
) -> Result<Packed, BuildError> {
    let write_error = |source| BuildError::Write {
        path: temporary.to_path_buf(),
        source,
    };
    let file = tempfile::tempfile_in(temporary).map_err(write_error)?;
    let packed = Hashed::new(BufWriter::with_capacity(BUFFER_BYTES, file));
    let (media_type, plain_hasher, packed) = match compression {
        LayerCompression::None => {
            let mut plain = Hashed::new(packed);
            fill(&mut plain)?;
            (media_type::OCI_LAYER, plain.hasher, plain.output)
        }
        LayerCompression::Gzip => {
            // No name, no time, and no system in its header.
            let builder = flate2::GzBuilder::new().operating_system(GZIP_UNKNOWN_SYSTEM);
            let mut plain = Hashed::new(builder.write(packed, flate2::Compression::new(GZIP_LEVEL)));
            fill(&mut plain)?;
            let packed = plain.output.finish().map_err(write_error)?;
            (media_type::OCI_LAYER_GZIP, plain.hasher, packed)
        }
        LayerCompression::Zstd => {
            let mut encoder = zstd::Encoder::new(packed, ZSTD_LEVEL).map_err(write_error)?;
            encoder.include_checksum(true).map_err(write_error)?;
            let mut plain = Hashed::new(encoder);
            fill(&mut plain)?;
            let packed = plain.output.finish().map_err(write_error)?;
            (media_type::OCI_LAYER_ZSTD, plain.hasher, packed)
        }
    };
    let size = packed.bytes;
    let file = packed
        .output
        .into_inner()
        .map_err(|error| write_error(error.into_error()))?;
    Ok(Packed {
        descriptor: Descriptor {
            media_type: media_type.into(),
            digest: Digest::finish(packed.hasher),
            size,
            platform: None,
            annotations: Default::default(),
        },
        diff_id: Digest::finish(plain_hasher),
        file,
    })
}

/// RFC 1952, section 2.3.1.
const GZIP_UNKNOWN_SYSTEM: u8 = 255;

/// A copy of a packed archive, of which both digests are taken.
fn keep(
    path: &Path,
    file: File,
    packing: Compression,
    temporary: &Path,
    report: &mut dyn FnMut(u64),
) -> Result<Packed, BuildError> {
    let read_error = |source| BuildError::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut packed = pack(LayerCompression::None, temporary, |output| {
        let mut file = &file;
        copy(&mut file, output, report).map_err(|error| error.of(path, temporary))
    })?;
    let mut input = &packed.file;
    input.rewind().map_err(read_error)?;
    let mut plain = Hashed::new(io::sink());
    let input = input.try_clone().map_err(read_error)?;
    let mut unpacked = unpacker(packing, input).map_err(read_error)?;
    io::copy(&mut unpacked, &mut plain).map_err(read_error)?;
    packed.diff_id = Digest::finish(plain.hasher);
    packed.descriptor.media_type = match packing {
        Compression::Zstd => media_type::OCI_LAYER_ZSTD.into(),
        Compression::Gzip | Compression::None => media_type::OCI_LAYER_GZIP.into(),
    };
    Ok(packed)
}

/// Which side of a copy failed.
pub(super) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl CopyError {
    pub(super) fn of(self, from: &Path, to: &Path) -> BuildError {
        match self {
            Self::Read(source) => BuildError::Read {
                path: from.to_path_buf(),
                source,
            },
            Self::Write(source) => BuildError::Write {
                path: to.to_path_buf(),
                source,
            },
        }
    }
}

/// Copies to the end, telling how many bytes have gone.
pub(super) fn copy(
    input: &mut dyn Read,
    output: &mut dyn Write,
    report: &mut dyn FnMut(u64),
) -> Result<(), CopyError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = 0;
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        output.write_all(&buffer[..count]).map_err(CopyError::Write)?;
        done += count as u64;
        report(done);
    }
}

/// Counts and hashes what passes.
struct Hashed<W> {
    output: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(output: W) -> Self {
        let hasher = Sha256::new();
        let bytes = 0;
        Self {
            output,
            hasher,
            bytes,
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.output.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
