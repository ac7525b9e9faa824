//! Writing read-only [EROFS] images: uncompressed, 4 KiB blocks, the same bytes for the same input.
//!
//! This module owns the format on disk (Linux `fs/erofs/erofs_fs.h`); what goes into an image is decided by
//! the tree it is given, and who uses images it does not know.
//!
//! ```text
//!  block 0      1 …                    …                  meta_blkaddr …
//! ┌────────────┬──────────────────────┬──────────────────┬───────────────────────────────────────┐
//! │ superblock │ file contents, in    │ blocks of large  │ inodes; behind each its xattrs and    │
//! │ (written   │ the order they were  │ directories and  │ the last piece of its contents, where │
//! │ last)      │ read                 │ links            │ that fits into one block              │
//! └────────────┴──────────────────────┴──────────────────┴───────────────────────────────────────┘
//! ```
//!
//! Contents are copied while the source is read, and blocks of zeros become holes of the image file. In memory
//! are the names and metadata, which [`Limits::metadata_bytes`] bounds.
//!
//! [EROFS]: https://docs.kernel.org/filesystems/erofs.html

mod crc32c;
mod dirents;
mod format;
mod image;
mod inode;
mod layout;
mod metadata;
mod read;
mod read_inode;
mod superblock;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::archive::ArchiveError;
use crate::progress::{Progress, Stage};
use crate::source::Source;
use crate::tree::{self, EntryError};

pub(crate) use image::{Contents, Image, StoreFileError};
pub(crate) use metadata::write as write_metadata;
pub use read::ReadError;
pub(crate) use read::{StoredFile, read_tree};
pub(crate) use superblock::has_magic;
pub use superblock::{Superblock, SuperblockError};

/// Bytes of a block; images are a whole number of them.
pub const BLOCK_BYTES: u64 = 4096;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image.
    pub size_bytes: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Extended attributes of the source that belong to its own filesystem (neither `user.`, `trusted.` and
    /// `security.` nor access control lists) and were left out.
    pub xattrs_left_out: u64,
}

/// Bounds on what is written, against hostile sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of the image, and of a compressed archive's unpacked bytes. At most 16 TiB, which is what the format can address. Space on the disk is what bounds
    /// an image in practice: a small archive can ask for all of it, and where it ends, so does the conversion.
    pub image_bytes: u64,
    /// Files, directories and everything else, those that a later entry of an archive replaces too.
    pub entries: usize,
    /// Memory while the image is made: names, targets of symbolic links, names and values of extended attributes, and
    /// some 350 bytes for each entry. What a later entry of an archive replaces counts too. Besides these there is
    /// what reading takes: a decompressor's window (zstd: at most 128 MiB, 8 MiB or less in practice), some MiB of
    /// buffers, and some tens of MiB for what one entry may say about itself.
    pub metadata_bytes: usize,
}

impl Default for Limits {
    /// 128 GiB, eight million entries and 256 MiB of metadata, which is enough for some 700,000 files with
    /// ordinary names.
    fn default() -> Self {
        Self {
            image_bytes: 128 << 30,
            entries: 8 << 20,
            metadata_bytes: 256 << 20,
        }
    }
}

/// Why no image was written. What the output file then holds is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source, or something in it, cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A file changed while it was read.
    #[error("{} changed while it was read", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The source was said to be an archive, but its first bytes are not those of one.
    #[error("{} is not a tar archive, plain or compressed with gzip or zstd", .path.display())]
    NotAnArchive {
        /// The file.
        path: PathBuf,
    },
    /// The archive is broken.
    #[error("the archive {} is broken", .path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ArchiveError,
    },
    /// The source holds an entry that cannot stand in a filesystem.
    #[error("{} holds an entry that is refused", .path.display())]
    Entry {
        /// The source.
        path: PathBuf,
        /// The entry and what is wrong with it.
        #[source]
        source: EntryError,
    },
    /// The source holds more entries than [`Limits::entries`].
    #[error("more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: usize,
    },
    /// The source's metadata takes more memory than [`Limits::metadata_bytes`].
    #[error("more than {limit} bytes of names, link targets and extended attributes")]
    TooMuchMetadata {
        /// The limit in bytes.
        limit: usize,
    },
    /// With this entry the image would exceed [`Limits::image_bytes`].
    #[error("{} makes the image larger than {limit} bytes", .path.display())]
    TooLarge {
        /// The entry.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A ready image is not one.
    #[error("{} is not a usable EROFS image", .path.display())]
    Superblock {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SuperblockError,
    },
    /// An image of a layer is broken.
    #[error("{} is not an image of a layer, or is damaged", .path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ReadError,
    },
    /// The output cannot be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
}

/// Writes `source` as an EROFS image to `out`, which must be open for reading and writing and is truncated first.
/// A source that is an image already is checked and copied.
///
/// # Errors
///
/// When the source cannot be read or holds what no image can hold, when it exceeds the default [`Limits`], or when
/// the output cannot be written.
pub fn write(source: &Source, out: &File, progress: &mut dyn FnMut(Progress)) -> Result<Summary, Error> {
    write_within(source, out, &Limits::default(), progress)
}

/// [`write()`] with bounds of the caller's choice.
///
/// # Errors
///
/// As [`write()`].
pub fn write_within(
    source: &Source,
    out: &File,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, Error> {
    out.set_len(0).map_err(Error::Write)?;
    if let Source::Erofs(path) = source {
        return copy(path, out, progress);
    }
    let mut image = Image::new(out, *limits, progress);
    let tree = match source {
        Source::Directory(path) => tree::directory::read(path, &mut image)?,
        Source::Archive(path) | Source::Erofs(path) => tree::archive::read(path, &mut image)?,
    };
    metadata::write(image, &tree, [0; 32])
}

fn copy(path: &Path, out: &File, progress: &mut dyn FnMut(Progress)) -> Result<Summary, Error> {
    let read_error = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let image = File::open(path).map_err(read_error)?;
    let superblock = Superblock::read(&image).map_err(|source| Error::Superblock {
        path: path.to_path_buf(),
        source,
    })?;
    let total_bytes = image.metadata().map_err(read_error)?.len();
    let mut buffer = vec![0; 1 << 20];
    let mut done_bytes = 0;
    loop {
        let count = image.read_at(&mut buffer, done_bytes).map_err(read_error)?;
        if count == 0 {
            break;
        }
        out.write_all_at(&buffer[..count], done_bytes)
            .map_err(Error::Write)?;
        done_bytes += count as u64;
        let (stage, total_bytes) = (Stage::Reading, Some(total_bytes));
        progress(Progress {
            stage,
            done_bytes,
            total_bytes,
            entries: superblock.inodes,
        });
    }
    Ok(Summary {
        size_bytes: done_bytes,
        inodes: superblock.inodes,
        xattrs_left_out: 0,
    })
}
