//! The superblock: making one, and checking that of an image from elsewhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zerocopy::{FromBytes, IntoBytes};

use super::BLOCK_BYTES;
use super::crc32c::crc32c;
use super::format::{self, COMPAT_CHECKSUM, MAGIC, SUPERBLOCK_OFFSET};

/// What an image says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Size of the filesystem in blocks; the file may be longer.
    pub blocks: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// Its UUID.
    pub uuid: [u8; 16],
}

/// Why a file is not a usable image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// It cannot be read.
    #[error("cannot read the superblock")]
    Read(#[source] io::Error),
    /// It has no EROFS magic number.
    #[error("no EROFS superblock")]
    Magic,
    /// Its block size is none that Linux mounts on x86.
    #[error("the block size 2^{bits} is not between 512 and 4096 bytes")]
    BlockSize {
        /// Logarithm of the block size.
        bits: u8,
    },
    /// Its checksum is wrong.
    #[error("the superblock's checksum is wrong")]
    Checksum,
    /// The file is shorter than the filesystem.
    #[error("the file has {file_bytes} bytes, the filesystem {needed_bytes}")]
    Truncated {
        /// Size of the file.
        file_bytes: u64,
        /// Size of the filesystem.
        needed_bytes: u64,
    },
}

pub(crate) fn has_magic(head: &[u8]) -> bool {
    head.get(MAGIC_RANGE)
        .is_some_and(|magic| *magic == MAGIC.to_le_bytes())
}

const MAGIC_RANGE: std::ops::Range<usize> = 1024..1028;

impl Superblock {
    /// Reads and checks the superblock of an image: magic, block size, checksum where there is one, and that the
    /// file is as long as it says. Contents are not looked at.
    ///
    /// # Errors
    ///
    /// When it cannot be read or a check fails.
    pub fn read(image: &File) -> Result<Self, SuperblockError> {
        Self::read_stored(image).map(|(superblock, _)| superblock)
    }

    /// [`read`](Self::read), with all fields as they are stored.
    pub(super) fn read_stored(image: &File) -> Result<(Self, format::Superblock), SuperblockError> {
        let file_bytes = image.metadata().map_err(SuperblockError::Read)?.len();
        let mut block = vec![0; 4096];
        let count = read_up_to(image, &mut block).map_err(SuperblockError::Read)?;
        block.truncate(count);
        Self::parse(&block, file_bytes)
    }

    fn parse(block: &[u8], file_bytes: u64) -> Result<(Self, format::Superblock), SuperblockError> {
        let tail = block.get(MAGIC_RANGE.start..).unwrap_or_default();
        let (stored, _) = format::Superblock::read_from_prefix(tail).map_err(|_| SuperblockError::Magic)?;
        if stored.magic.get() != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let bits = stored.block_bits;
        if !(9..=12).contains(&bits) {
            return Err(SuperblockError::BlockSize { bits });
        }
        let block_bytes = 1_u64 << bits;
        let blocks = u64::from(stored.blocks.get());
        let needed_bytes = blocks * block_bytes;
        if file_bytes < needed_bytes {
            return Err(SuperblockError::Truncated {
                file_bytes,
                needed_bytes,
            });
        }
        if stored.feature_compat.get() & COMPAT_CHECKSUM != 0 && !checksum_matches(&stored, tail, block_bytes)
        {
            return Err(SuperblockError::Checksum);
        }
        let superblock = Self {
            block_bytes,
            blocks,
            inodes: stored.inodes.get(),
            uuid: stored.uuid,
        };
        Ok((superblock, stored))
    }
}

fn read_up_to(image: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match image.read_at(&mut buffer[count..], count as u64)? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

/// The checksum covers what is left of its block, or a whole block if those are small, with itself as zero.
fn checksum_matches(stored: &format::Superblock, tail: &[u8], block_bytes: u64) -> bool {
    let covered = if block_bytes > SUPERBLOCK_OFFSET {
        block_bytes - SUPERBLOCK_OFFSET
    } else {
        block_bytes
    };
    let Some(rest) = usize::try_from(covered)
        .ok()
        .and_then(|covered| tail.get(size_of::<format::Superblock>()..covered))
    else {
        return false;
    };
    checksum(*stored, rest) == stored.checksum.get()
}

fn checksum(superblock: format::Superblock, rest: &[u8]) -> u32 {
    let unsummed = format::Superblock {
        checksum: 0.into(),
        ..superblock
    };
    crc32c(crc32c(!0, unsummed.as_bytes()), rest)
}

/// The image's first block.
pub(super) fn first_block(superblock: format::Superblock) -> Vec<u8> {
    let rest = vec![0; FIRST_BLOCK_REST];
    let superblock = format::Superblock {
        checksum: checksum(superblock, &rest).into(),
        ..superblock
    };
    let mut block = vec![0; MAGIC_RANGE.start];
    block.extend(superblock.as_bytes());
    block.extend(rest);
    block
}

const FIRST_BLOCK_REST: usize = 4096 - 1024 - size_of::<format::Superblock>();
const _: () = assert!(BLOCK_BYTES == 4096 && SUPERBLOCK_OFFSET == 1024);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn block() -> Vec<u8> {
        let mut superblock = format::Superblock::new_zeroed();
        superblock.magic = MAGIC.into();
        superblock.feature_compat = COMPAT_CHECKSUM.into();
        superblock.block_bits = 12;
        superblock.blocks = 3.into();
        first_block(superblock)
    }

    #[test]
    fn what_is_made_is_accepted() {
        let (superblock, _) = Superblock::parse(&block(), 3 * 4096).unwrap();
        assert_eq!((superblock.block_bytes, superblock.blocks), (4096, 3));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        for index in 1024..4096 {
            let mut block = block();
            block[index] ^= 0x40;
            // The bit that says whether there is a checksum is not protected by it.
            assert!(Superblock::parse(&block, 1 << 50).is_err(), "byte {index}");
        }
    }

    #[test]
    fn a_short_file_is_truncated() {
        let error = Superblock::parse(&block(), 3 * 4096 - 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the file has 12287 bytes, the filesystem 12288"
        );
        assert!(matches!(
            Superblock::parse(&block()[..1030], 1 << 20),
            Err(SuperblockError::Magic)
        ));
        assert!(matches!(Superblock::parse(&[], 0), Err(SuperblockError::Magic)));
    }
}
