//! Reading tar archives as a stream of members. Owns the format (ustar, GNU, PAX) and its decompression;
//! knows nothing of trees or images, and never creates anything on the host.
//!
//! Fields of a header are decoded by the `tar` crate; the walk over members is ours, because that crate's
//! PAX reader ends a record at the first newline, which cuts binary extended attributes, and because it
//! reads extension records of any size into memory.

mod acl;
mod decoder;
mod members;
mod pax;
mod sparse;
mod unpack;

use std::io;
use std::path::PathBuf;

pub(crate) use members::{Member, MemberKind, Members, read_error};
pub(crate) use unpack::{BytesRead, Packed, Unpacked};

/// What is wrong with a tar archive. Entries are named as the archive names them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The archive cannot be read, or its compression is broken.
    #[error("the archive cannot be read or decompressed")]
    Read(#[source] io::Error),
    /// The archive ends before its end marker (a block of zeros).
    #[error("the archive ends in the middle")]
    Truncated,
    /// A header's checksum does not match.
    #[error("a header at byte {offset} of the archive has a wrong checksum")]
    Checksum {
        /// Where, in bytes of the unpacked archive.
        offset: u64,
    },
    /// A header's field is no number, or one that does not fit.
    #[error("{}: the header's {field} is not valid", .entry.display())]
    Field {
        /// The entry.
        entry: PathBuf,
        /// The field.
        field: &'static str,
    },
    /// A PAX record does not follow its grammar.
    #[error("a PAX record at byte {offset} of the archive is malformed")]
    Pax {
        /// Where, in bytes of the unpacked archive.
        offset: u64,
    },
    /// A long name, a PAX header or a sparse map is larger than any honest one.
    #[error("{what} of {bytes} bytes at byte {offset} of the archive is more than the limit of {limit}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// Where, in bytes of the unpacked archive.
        offset: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// The map of a sparse file contradicts itself.
    #[error("{}: the map of this sparse file is not valid", .entry.display())]
    Sparse {
        /// The entry.
        entry: PathBuf,
    },
    /// An access control list in text form does not follow its grammar or names a user without a number.
    #[error("{}: the access control list is not valid or names a user or group without its number", .entry.display())]
    Acl {
        /// The entry.
        entry: PathBuf,
    },
    /// A kind of entry that no filesystem image can hold.
    #[error("{}: entries of type {kind:?} are not supported", .entry.display())]
    Kind {
        /// The entry.
        entry: PathBuf,
        /// The type flag.
        kind: char,
    },
    /// A compressed archive unpacks to more than it may.
    #[error("{packed_bytes} bytes of the archive unpack to more than the limit of {limit} bytes")]
    Bomb {
        /// Bytes of the archive as stored that were read.
        packed_bytes: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// More than padding follows the end marker.
    #[error("more than {limit} bytes follow the archive's end marker")]
    Trailing {
        /// The most that is accepted.
        limit: u64,
    },
}

/// How an archive's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What a file's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recognized {
    Readable(Compression),
    Unsupported(&'static str),
    Unknown,
}

/// First bytes of what is read here and of what is commonly met instead.
const MAGICS: [(&[u8], Recognized); 5] = [
    (&[0x1f, 0x8b], Recognized::Readable(Compression::Gzip)),
    (&[0x28, 0xb5, 0x2f, 0xfd], Recognized::Readable(Compression::Zstd)),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Recognized::Unsupported("xz")),
    (b"BZh", Recognized::Unsupported("bzip2")),
    (&[0x04, 0x22, 0x4d, 0x18], Recognized::Unsupported("lz4")),
];

pub(crate) fn recognize(head: &[u8]) -> Recognized {
    if members::is_header(head) {
        return Recognized::Readable(Compression::None);
    }
    if is_skippable_frame(head) {
        return Recognized::Readable(Compression::Zstd);
    }
    let by_magic = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
    by_magic.map_or(Recognized::Unknown, |(_, recognized)| *recognized)
}

/// Frames without contents may stand before those of zstd (RFC 8878 section 3.1.2).
fn is_skippable_frame(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}
