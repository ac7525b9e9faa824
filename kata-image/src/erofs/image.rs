//! The growing image file: blocks are appended and hashed, blocks of zeros left as holes, last pieces of files
//! kept for their inodes. Knows nothing of what the blocks mean.
//!
//! Last pieces wait in a buffer, and where they are more than it holds, in the output file itself, behind the last
//! byte that the image may have: that costs neither memory nor a second file, and the end of the work cuts it off.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{BLOCK_BYTES, Error, Limits};
use crate::progress::{Progress, Stage};
use crate::tree::Content;

pub(super) const BLOCK: usize = 4096;
/// The largest inode without attributes.
const INODE_BYTES: usize = 64;
const BUFFER_BYTES: usize = 1 << 20;
/// How often progress is reported.
const REPORT_BYTES: u64 = 4 << 20;
const REPORT_ENTRIES: u64 = 512;

/// Whether a last piece fits behind its inode: all of it must lie in one block.
pub(super) fn fits_inline(xattr_bytes: usize, tail_bytes: usize) -> bool {
    tail_bytes > 0 && INODE_BYTES + xattr_bytes + tail_bytes <= BLOCK
}

/// Contents of a file, with the holes that are known without reading.
pub(crate) trait Contents: Read {
    /// Skips zeros that come next: at most `most` bytes, and a multiple of 4096.
    fn skip_hole(&mut self, most: u64) -> io::Result<u64>;
}

pub(crate) struct Image<'a> {
    out: &'a File,
    limits: Limits,
    progress: &'a mut dyn FnMut(Progress),
    reported: Progress,
    /// Whole blocks that are not written yet.
    buffer: Vec<u8>,
    /// Where the buffer will be written.
    buffer_block: u64,
    tails: Tails,
    /// Of all blocks that are not zeros, and of their places; `None` where the source has a digest.
    digest: Option<Sha256>,
    /// The block after the last that was hashed: as long as it is the next, its place need not be.
    hashed_block: u64,
    xattrs_left_out: u64,
}

/// Last pieces of files, one behind the other.
struct Tails {
    /// Those that are not in the file.
    buffer: Vec<u8>,
    /// How many bytes of them are in the file.
    in_file: u64,
    /// Where in the file they are.
    file_offset: u64,
}

impl Tails {
    /// Appends a piece and tells its place.
    fn push(&mut self, out: &File, contents: &mut impl Read, bytes: usize) -> Result<u64, StoreFileError> {
        if self.buffer.len() + bytes > BUFFER_BYTES {
            out.write_all_at(&self.buffer, self.file_offset + self.in_file)
                .map_err(StoreFileError::Write)?;
            self.in_file += self.buffer.len() as u64;
            self.buffer.clear();
        }
        let start = self.buffer.len();
        self.buffer.resize(start + bytes, 0);
        contents
            .read_exact(&mut self.buffer[start..])
            .map_err(StoreFileError::Read)?;
        Ok(self.in_file + start as u64)
    }

    fn read(&self, out: &File, place: u64, bytes: &mut [u8]) -> io::Result<()> {
        match place.checked_sub(self.in_file).map(usize::try_from) {
            Some(Ok(start)) => {
                bytes.copy_from_slice(&self.buffer[start..start + bytes.len()]);
                Ok(())
            }
            _ => out.read_exact_at(bytes, self.file_offset + place),
        }
    }
}

/// Which side of a copy failed.
#[derive(Debug)]
pub(crate) enum StoreFileError {
    Read(io::Error),
    Write(io::Error),
    TooLarge { limit: u64 },
}

impl<'a> Image<'a> {
    pub(super) fn new(out: &'a File, limits: Limits, progress: &'a mut dyn FnMut(Progress)) -> Self {
        let reported = Progress {
            stage: Stage::Reading,
            done_bytes: 0,
            total_bytes: None,
            entries: 0,
        };
        let tails = Tails {
            buffer: Vec::new(),
            in_file: 0,
            file_offset: max_blocks(limits) * BLOCK_BYTES,
        };
        Self {
            out,
            limits,
            progress,
            reported,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            buffer_block: 1,
            tails,
            digest: Some(Sha256::new()),
            hashed_block: 0,
            xattrs_left_out: 0,
        }
    }

    /// An image whose source has a digest: its blocks need none.
    pub(crate) fn of_known_source(
        out: &'a File,
        limits: Limits,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        Self {
            digest: None,
            ..Self::new(out, limits, progress)
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Says how many bytes the source has.
    pub(crate) fn expect(&mut self, total_bytes: Option<u64>) {
        self.reported.total_bytes = total_bytes;
    }

    /// Tells the caller how far reading is, now and then.
    pub(crate) fn report(&mut self, done_bytes: u64, entries: usize) {
        let entries = entries as u64;
        let last = self.reported;
        if done_bytes >= last.done_bytes + REPORT_BYTES || entries >= last.entries + REPORT_ENTRIES {
            self.reported = Progress {
                done_bytes,
                entries,
                ..last
            };
            (self.progress)(self.reported);
        }
    }

    /// Tells the caller about the metadata that follows the contents.
    pub(super) fn report_metadata(&mut self, done_bytes: u64, total_bytes: u64, entries: usize) {
        let (stage, total_bytes) = (Stage::Writing, Some(total_bytes));
        (self.progress)(Progress {
            stage,
            done_bytes,
            total_bytes,
            entries: entries as u64,
        });
    }

    /// Whether so many entries, which take so much memory, are within bounds.
    pub(crate) fn check_limits(&self, entries: usize, metadata_bytes: usize) -> Result<(), Error> {
        let limits = self.limits;
        if entries > limits.entries {
            let limit = limits.entries;
            return Err(Error::TooManyEntries { limit });
        }
        if metadata_bytes > limits.metadata_bytes {
            let limit = limits.metadata_bytes;
            return Err(Error::TooMuchMetadata { limit });
        }
        Ok(())
    }

    /// Notes an attribute that no image can hold.
    pub(crate) fn skip_xattr(&mut self, path: &Path, name: &OsStr) {
        self.xattrs_left_out += 1;
        log::debug!(
            "{}: extended attribute {} is left out",
            path.display(),
            name.display()
        );
    }

    pub(super) fn xattrs_left_out(&self) -> u64 {
        self.xattrs_left_out
    }

    /// The block that is appended next.
    pub(super) fn next_block(&self) -> u64 {
        self.buffer_block + (self.buffer.len() / BLOCK) as u64
    }

    /// The most blocks that the image may have.
    pub(super) fn max_blocks(&self) -> u64 {
        max_blocks(self.limits)
    }

    /// Copies a file's contents into the image; `xattr_bytes` is what its inode carries besides them.
    pub(crate) fn store(
        &mut self,
        contents: &mut impl Contents,
        size_bytes: u64,
        xattr_bytes: usize,
    ) -> Result<Content, StoreFileError> {
        let too_large = StoreFileError::TooLarge {
            limit: self.limits.image_bytes,
        };
        if self.next_block().saturating_add(size_bytes.div_ceil(BLOCK_BYTES)) > self.max_blocks() {
            return Err(too_large);
        }
        let Ok(first_block) = u32::try_from(self.next_block()) else {
            return Err(too_large);
        };
        let tail_bytes = usize::try_from(size_bytes % BLOCK_BYTES).unwrap_or(BLOCK);
        if !fits_inline(xattr_bytes, tail_bytes) {
            self.append_from(contents, size_bytes)?;
            return Ok(Content {
                size_bytes,
                first_block,
                tail: None,
            });
        }
        self.append_from(contents, size_bytes - tail_bytes as u64)?;
        let tail = self.tails.push(self.out, contents, tail_bytes)?;
        Ok(Content {
            size_bytes,
            first_block,
            tail: Some(tail),
        })
    }

    /// The last piece of a file whose [`Content::tail`] this is.
    pub(super) fn tail(&self, place: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.tails.read(self.out, place, bytes)
    }

    fn append_from(&mut self, contents: &mut impl Contents, bytes: u64) -> Result<(), StoreFileError> {
        let mut left = bytes;
        while left > 0 {
            let skipped = self.skip_hole(contents, left)?;
            left -= skipped;
            if left == 0 {
                break;
            }
            let start = self.buffer.len();
            let room = BUFFER_BYTES - start;
            let count = usize::try_from(left).unwrap_or(room).min(room);
            self.buffer.resize(start + count, 0);
            contents
                .read_exact(&mut self.buffer[start..])
                .map_err(StoreFileError::Read)?;
            left -= count as u64;
            self.flush_if_full().map_err(StoreFileError::Write)?;
        }
        self.pad().map_err(StoreFileError::Write)
    }

    /// Leaves out the zeros that come next.
    fn skip_hole(&mut self, contents: &mut impl Contents, most: u64) -> Result<u64, StoreFileError> {
        if !self.buffer.len().is_multiple_of(BLOCK) {
            return Ok(0);
        }
        let skipped = contents.skip_hole(most).map_err(StoreFileError::Read)?;
        if skipped > 0 {
            self.flush().map_err(StoreFileError::Write)?;
            self.buffer_block += skipped / BLOCK_BYTES;
        }
        Ok(skipped)
    }

    /// Appends bytes; blocks need not be filled at once.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BUFFER_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            self.flush_if_full()?;
        }
        Ok(())
    }

    /// Fills the last block with zeros.
    pub(super) fn pad(&mut self) -> io::Result<()> {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() < BUFFER_BYTES {
            Ok(())
        } else {
            self.flush()
        }
    }

    /// Writes the blocks in the buffer, but not those of zeros.
    fn flush(&mut self) -> io::Result<()> {
        for run in runs(&self.buffer) {
            let end = self.buffer_block + (run.len() / BLOCK) as u64;
            if !starts_with_zeros(run) {
                if let Some(digest) = &mut self.digest {
                    if self.hashed_block != self.buffer_block {
                        digest.update(self.buffer_block.to_le_bytes());
                    }
                    digest.update(run);
                    self.hashed_block = end;
                }
                self.out.write_all_at(run, self.buffer_block * BLOCK_BYTES)?;
            }
            self.buffer_block = end;
        }
        self.buffer.clear();
        Ok(())
    }

    /// Writes the first block, which `first_block` makes from the source's digest or that of all others, and sets the
    /// size.
    pub(super) fn finish(
        mut self,
        source: [u8; 32],
        first_block: impl FnOnce([u8; 32]) -> Vec<u8>,
    ) -> io::Result<u64> {
        self.flush()?;
        let digest = self
            .digest
            .take()
            .map_or(source, |digest| digest.finalize().into());
        self.out.write_all_at(&first_block(digest), 0)?;
        let size_bytes = self.buffer_block * BLOCK_BYTES;
        self.out.set_len(size_bytes)?;
        Ok(size_bytes)
    }
}

fn max_blocks(limits: Limits) -> u64 {
    (limits.image_bytes / BLOCK_BYTES).min(u64::from(u32::MAX))
}

fn starts_with_zeros(blocks: &[u8]) -> bool {
    let length = blocks.len().min(BLOCK);
    blocks[..length] == ZEROS[..length]
}

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Splits whole blocks into runs that are all zeros or have no block of zeros.
fn runs(buffer: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let is_zero = starts_with_zeros(rest);
        let blocks = rest
            .chunks(BLOCK)
            .take_while(|block| starts_with_zeros(block) == is_zero)
            .count();
        let (run, after) = rest.split_at((blocks * BLOCK).min(rest.len()));
        rest = after;
        (!run.is_empty()).then_some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_split_where_zeros_begin_and_end() {
        let block = |byte: u8| vec![byte; BLOCK];
        let buffer = [block(0), block(0), block(1), block(2), block(0)].concat();
        let lengths: Vec<_> = runs(&buffer).map(|run| run.len() / BLOCK).collect();
        assert_eq!(lengths, [2, 2, 1]);
        assert_eq!(runs(&[]).count(), 0);
    }

    #[test]
    fn a_last_piece_shares_its_block_with_inode_and_attributes() {
        assert!(fits_inline(0, 4032));
        assert!(!fits_inline(0, 4033));
        assert!(!fits_inline(12, 4024));
        assert!(!fits_inline(0, 0));
    }
}
