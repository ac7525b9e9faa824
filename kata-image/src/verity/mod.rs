//! Hash trees for images, as Linux's dm-verity reads them: with the root hash from a trusted place, every block that
//! is read is proved to be the image's. Owns the form on disk (cryptsetup's wiki, "DMVerity": format 1, the one that
//! `veritysetup` writes, with SHA-256 and blocks of 4096 bytes); knows nothing of images but that they are blocks.
//!
//! ```text
//!  block 0      1 …
//! ┌────────────┬───────────┬───────────┬─────┬──────────────────────────────┐
//! │ superblock │ top level │ level     │ ... │ lowest level: the hashes     │
//! │            │ (a block) │ below     │     │ of the image's blocks        │
//! └────────────┴───────────┴───────────┴─────┴──────────────────────────────┘
//!   root hash = hash of the top block, and any hash is SHA-256(salt, block)
//! ```
//!
//! The salt is given or follows from the image's digest, so the same image gives the same tree on every machine.

mod superblock;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use crate::oci::Digest;

/// Bytes of a block, of the image and of the tree.
pub const BLOCK_BYTES: u64 = 4096;

const BLOCK: usize = 4096;
const HASH_BYTES: usize = 32;
const HASHES_PER_BLOCK: u64 = (BLOCK / HASH_BYTES) as u64;
/// What is read at once.
const READ_BLOCKS: usize = 64;

/// Makes equal blocks of different images hash differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Salt(Vec<u8>);

impl Salt {
    /// The most bytes that the superblock holds.
    pub const MAX_BYTES: usize = 256;

    /// A salt of the caller's choice; none is allowed too. `None` when it is longer than [`MAX_BYTES`](Self::MAX_BYTES).
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= Self::MAX_BYTES).then(|| Self(bytes.to_vec()))
    }

    /// The salt of an image with this digest: 32 bytes.
    #[must_use]
    pub fn of(image: &Digest) -> Self {
        let hasher = Sha256::new_with_prefix("dm-verity salt of ").chain_update(image.as_str());
        Self(hasher.finalize().to_vec())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A hash tree that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashTree {
    /// What proves the image and everything in the tree but the superblock.
    pub root_hash: [u8; HASH_BYTES],
    /// Blocks of the image.
    pub data_blocks: u64,
    /// Blocks of the file with the tree, the superblock's too.
    pub hash_blocks: u64,
}

/// Why no hash tree was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerityError {
    /// The image is empty or no whole number of blocks.
    #[error("an image of {size_bytes} bytes is no whole number of 4096-byte blocks, or none")]
    Size {
        /// Size of the image.
        size_bytes: u64,
    },
    /// The image cannot be read.
    #[error("cannot read the image at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The tree cannot be written, or not be read back.
    #[error("cannot write the hash tree")]
    Write(#[source] io::Error),
}

/// Writes the hash tree of `image` to `out`, which must be open for reading and writing and is truncated first.
/// Memory is less than 1 MiB; the tree is one 128th of the image.
///
/// The kernel is told `hash_start_block` 1, and the values of the [`HashTree`]; `veritysetup open` reads all but the
/// root hash from the superblock.
///
/// # Errors
///
/// When the image is no whole number of blocks or cannot be read, or the output cannot be written.
pub fn write(image: &File, out: &File, salt: &Salt) -> Result<HashTree, VerityError> {
    let size_bytes = image
        .metadata()
        .map_err(|source| VerityError::Read { offset: 0, source })?
        .len();
    if size_bytes == 0 || !size_bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(VerityError::Size { size_bytes });
    }
    let data_blocks = size_bytes / BLOCK_BYTES;
    out.set_len(0).map_err(VerityError::Write)?;
    let superblock = superblock::encode(data_blocks, salt);
    out.write_all_at(&superblock, 0).map_err(VerityError::Write)?;
    let levels = Level::plan(data_blocks);
    let hasher = Sha256::new_with_prefix(salt.as_bytes());
    let read_error = |(offset, source)| VerityError::Read { offset, source };
    let write_error = |(_, source)| VerityError::Write(source);
    let (mut below, mut is_image) = (
        Level {
            first: 0,
            blocks: data_blocks,
        },
        true,
    );
    for level in &levels {
        let source = if is_image { image } else { out };
        let mut writer = LevelWriter::new(out, level);
        hash_blocks(source, below, &hasher, |hash| writer.push(hash)).map_err(|error| match error {
            HashError::Read(error) if is_image => read_error(error),
            HashError::Read(error) => write_error(error),
            HashError::Write(source) => VerityError::Write(source),
        })?;
        writer.finish().map_err(VerityError::Write)?;
        (below, is_image) = (*level, false);
    }
    let mut root_hash = [0; HASH_BYTES];
    let source = if is_image { image } else { out };
    hash_blocks(source, below, &hasher, |hash| {
        root_hash = hash;
        Ok(())
    })
    .map_err(|error| match error {
        HashError::Read(error) => read_error(error),
        HashError::Write(source) => VerityError::Write(source),
    })?;
    let hash_blocks = 1 + levels.iter().map(|level| level.blocks).sum::<u64>();
    Ok(HashTree {
        root_hash,
        data_blocks,
        hash_blocks,
    })
}

/// Blocks that lie together in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    first: u64,
    blocks: u64,
}

impl Level {
    /// The levels of a tree, the lowest first. The highest has one block and stands behind the superblock; an image of
    /// one block needs none.
    fn plan(data_blocks: u64) -> Vec<Self> {
        let mut counts = Vec::new();
        let mut blocks = data_blocks;
        while blocks > 1 {
            blocks = blocks.div_ceil(HASHES_PER_BLOCK);
            counts.push(blocks);
        }
        let mut first = 1;
        let mut levels = Vec::new();
        for blocks in counts.into_iter().rev() {
            levels.push(Self { first, blocks });
            first += blocks;
        }
        levels.reverse();
        levels
    }
}

/// Which side failed; of a read, where.
enum HashError {
    Read((u64, io::Error)),
    Write(io::Error),
}

/// Hashes each block.
fn hash_blocks(
    source: &File,
    level: Level,
    salted: &Sha256,
    mut take: impl FnMut([u8; HASH_BYTES]) -> io::Result<()>,
) -> Result<(), HashError> {
    let mut buffer = vec![0; READ_BLOCKS * BLOCK];
    let mut done = 0;
    while done < level.blocks {
        let count = usize::try_from(level.blocks - done)
            .unwrap_or(READ_BLOCKS)
            .min(READ_BLOCKS);
        let offset = (level.first + done) * BLOCK_BYTES;
        let blocks = &mut buffer[..count * BLOCK];
        source
            .read_exact_at(blocks, offset)
            .map_err(|error| HashError::Read((offset, error)))?;
        for block in blocks.chunks(BLOCK) {
            let hash = salted.clone().chain_update(block).finalize();
            take(hash.into()).map_err(HashError::Write)?;
        }
        done += count as u64;
    }
    Ok(())
}

/// Writes hashes block by block; what is left of the last one is zeros.
struct LevelWriter<'a> {
    out: &'a File,
    next: u64,
    block: Vec<u8>,
}

impl<'a> LevelWriter<'a> {
    fn new(out: &'a File, level: &Level) -> Self {
        Self {
            out,
            next: level.first,
            block: Vec::with_capacity(BLOCK),
        }
    }

    fn push(&mut self, hash: [u8; HASH_BYTES]) -> io::Result<()> {
        self.block.extend(hash);
        if self.block.len() == BLOCK {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn finish(mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        self.block.resize(BLOCK, 0);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all_at(&self.block, self.next * BLOCK_BYTES)?;
        self.next += 1;
        self.block.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_level_stands_first() {
        let level = |first, blocks| Level { first, blocks };
        assert_eq!(Level::plan(1), []);
        assert_eq!(Level::plan(2), [level(1, 1)]);
        assert_eq!(Level::plan(128), [level(1, 1)]);
        assert_eq!(Level::plan(129), [level(2, 2), level(1, 1)]);
        assert_eq!(
            Level::plan(128 * 128 + 1),
            [level(4, 129), level(2, 2), level(1, 1)]
        );
    }

    #[test]
    fn only_whole_blocks_have_a_tree() {
        let out = tempfile::tempfile().unwrap();
        for size_bytes in [0, 1, 4095, 4097] {
            let image = tempfile::tempfile().unwrap();
            image.set_len(size_bytes).unwrap();
            let error = write(&image, &out, &Salt(Vec::new())).unwrap_err();
            let expected =
                format!("an image of {size_bytes} bytes is no whole number of 4096-byte blocks, or none");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn every_image_has_its_own_salt() {
        let (one, other) = (Salt::of(&Digest::of(b"1")), Salt::of(&Digest::of(b"2")));
        assert_ne!(one, other);
        assert_eq!(one.as_bytes().len(), 32);
        assert!(Salt::new(&[0; 256]).is_some() && Salt::new(&[0; 257]).is_none());
    }
}
