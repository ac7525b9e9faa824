//! A shelf: files that a disk gets and loses while it is in use, each an extent of it.
//!
//! Owns the files and who may change the list of them; reads are all that is done to them. Knows no requests.
//! A read holds the file that it is about, so that an extent can be taken away at any time: a request that was
//! begun before ends well, a later one fails.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::disk::{again, size};
use super::extents::{Extent, Extents, Piece};
use super::layout::SECTOR_BYTES;
use crate::vectors::Vectors;

/// What is copied at a time where a read is of more than one piece.
const COPY_BYTES: usize = 128 << 10;

/// Why an extent could not be added or taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShelfError {
    /// What should be behind it cannot be read.
    #[error("cannot use the file as an extent")]
    File(#[source] io::Error),
    /// The descriptor cannot be read from.
    #[error("the file is not open for reading")]
    Access,
    /// Less than a sector.
    #[error("a file of {bytes} bytes has no sector")]
    Empty {
        /// Its size.
        bytes: u64,
    },
    /// All places were given out.
    #[error("no room for {bytes} bytes")]
    Full {
        /// What was to be added.
        bytes: u64,
    },
    /// There is none at this place.
    #[error("no extent begins at {offset}")]
    Unknown {
        /// In bytes.
        offset: u64,
    },
    /// A state that no shelf has been in, or not with these files.
    #[error("extents that no shelf can have had, or other files")]
    State,
}

/// All of a shelf but its files, for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShelfState {
    /// In the order of their offsets.
    pub extents: Vec<Extent>,
    /// Where the next one begins, in bytes.
    pub next: u64,
}

// Whoever changes a field changes what others have kept: their form needs another version.
const _: () = assert!(size_of::<ShelfState>() == 32 && size_of::<Extent>() == 16);

/// The host's side of a disk of extents; clones are of the same shelf.
///
/// ```
/// use kata_virtio::block::{Block, Shelf};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let shelf = Shelf::new();
/// let disk = Block::of_shelf(&shelf).serial("shelf").build()?;
/// // Later, while a driver uses the disk:
/// let extent = shelf.add(std::fs::File::open("/proc/self/exe")?)?;
/// assert_eq!(extent.offset, 1 << 20);
/// shelf.remove(extent.offset)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Shelf(Arc<Mutex<Extents<Arc<File>>>>);

impl Default for Shelf {
    fn default() -> Self {
        Self::new()
    }
}

impl Shelf {
    /// One without extents.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Extents::new())))
    }

    /// Goes on where another shelf was: `files` are those of its extents, in their order.
    ///
    /// # Errors
    /// [`ShelfError::State`], and what [`add`](Self::add) says of a file.
    pub fn restore(state: &ShelfState, files: Vec<File>) -> Result<Self, ShelfError> {
        if files.len() != state.extents.len() {
            return Err(ShelfError::State);
        }
        let mut list = Vec::with_capacity(files.len());
        for (extent, file) in state.extents.iter().zip(files) {
            let (file, bytes) = readable(file)?;
            if bytes != extent.bytes {
                return Err(ShelfError::State);
            }
            list.push((*extent, Arc::new(file)));
        }
        let extents = Extents::restore(list, state.next).ok_or(ShelfError::State)?;
        Ok(Self(Arc::new(Mutex::new(extents))))
    }

    /// Gives a file a place on the disk, where no other has ever been. Its size is what it has now, in whole
    /// sectors; a part that is cut off later is an I/O error.
    ///
    /// # Errors
    /// All but [`ShelfError::Unknown`].
    pub fn add(&self, file: File) -> Result<Extent, ShelfError> {
        let (file, bytes) = readable(file)?;
        let added = self.extents().add(bytes, Arc::new(file));
        added.ok_or(ShelfError::Full { bytes })
    }

    /// Takes the extent away that begins there; its file is closed once no request is about it any more.
    ///
    /// # Errors
    /// [`ShelfError::Unknown`].
    pub fn remove(&self, offset: u64) -> Result<(), ShelfError> {
        let removed = self.extents().remove(offset);
        removed.map(drop).ok_or(ShelfError::Unknown { offset })
    }

    /// All of it but the files.
    #[must_use]
    pub fn state(&self) -> ShelfState {
        let extents = self.extents();
        ShelfState {
            extents: extents.iter().collect(),
            next: extents.next(),
        }
    }

    /// How many there are, and how many bytes they have together.
    pub(super) fn figures(&self) -> (u64, u64) {
        let extents = self.extents();
        extents
            .iter()
            .fold((0, 0), |(count, bytes), extent| (count + 1, bytes + extent.bytes))
    }

    /// The file that has all of these bytes, and where in it they begin.
    pub(super) fn whole(&self, offset: u64, bytes: u64) -> Option<(Arc<File>, u64)> {
        self.extents().whole(offset, bytes)
    }

    /// Fills what is left of the vectors from `offset` on.
    ///
    /// # Errors
    /// When some of it is nobody's, in which case nothing was moved, or a file ends before its extent.
    pub(super) fn read(&self, offset: u64, vectors: &mut Vectors) -> io::Result<()> {
        if let Some((file, at)) = self.whole(offset, vectors.bytes()) {
            return fill(&file, at, vectors);
        }
        let pieces = self.extents().pieces(offset, vectors.bytes());
        let nobodys = || io::Error::new(io::ErrorKind::NotFound, "no extent is there");
        pieces
            .ok_or_else(nobodys)?
            .iter()
            .try_for_each(|piece| copy(piece, vectors))
    }

    /// Nothing panics while it is held.
    fn extents(&self) -> MutexGuard<'_, Extents<Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file, if it can be an extent, with the bytes of its whole sectors.
fn readable(mut file: File) -> Result<(File, u64), ShelfError> {
    let access = rustix::fs::fcntl_getfl(&file).map_err(|cause| ShelfError::File(cause.into()))?;
    if access & OFlags::RWMODE == OFlags::WRONLY {
        return Err(ShelfError::Access);
    }
    let (bytes, _) = size(&mut file).map_err(ShelfError::File)?;
    match bytes / SECTOR_BYTES * SECTOR_BYTES {
        0 => Err(ShelfError::Empty { bytes }),
        whole => Ok((file, whole)),
    }
}

/// Fills all vectors from one file.
fn fill(file: &File, mut offset: u64, vectors: &mut Vectors) -> io::Result<()> {
    while !vectors.is_done() {
        let moved = again(|| vectors.read(file, offset))?;
        if moved == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        vectors.advance(moved);
        offset += u64::try_from(moved).unwrap_or(u64::MAX);
    }
    Ok(())
}

/// Fills as much of the vectors as the piece has.
fn copy(piece: &Piece<Arc<File>>, vectors: &mut Vectors) -> io::Result<()> {
    let (mut left, mut from) = match piece {
        Piece::Zeroes(bytes) => (*bytes, None),
        Piece::File { file, offset, bytes } => (*bytes, Some((file, *offset))),
    };
    let mut room = vec![0; usize::try_from(left).map_or(COPY_BYTES, |left| left.min(COPY_BYTES))];
    while left > 0 {
        let count = usize::try_from(left).map_or(room.len(), |left| left.min(room.len()));
        let bytes = &mut room[..count];
        let moved = u64::try_from(count).unwrap_or(u64::MAX);
        if let Some((file, offset)) = &mut from {
            file.read_exact_at(bytes, *offset)?;
            *offset += moved;
        }
        vectors.fill(bytes);
        left -= moved;
    }
    Ok(())
}
