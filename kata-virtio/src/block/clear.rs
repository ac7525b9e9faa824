//! Discards and writes of zeroes (VIRTIO 1.2 §5.2.6): their ranges out of a request, and what is done to
//! the disk for them, in the worker's thread.
//!
//! All ranges are copied once and judged before the first is touched: the driver can change them no more.

use std::io;

use vm_memory::Bytes;

use super::disk::Disk;
use super::request::Request;
use super::verdict::{Judge, RANGE_BYTES, Range, Refusal, Work};
use crate::Memory;

/// The ranges of the request that is looked at; kept between requests for its allocation.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    list: Vec<Range>,
}

impl Ranges {
    /// Takes the ranges that `work` has in `request`; none when it has none.
    ///
    /// # Errors
    /// Why the request is refused.
    pub(super) fn load(
        &mut self,
        memory: &Memory,
        request: &Request,
        work: Work,
        judge: &Judge,
    ) -> Result<(), Refusal> {
        self.list.clear();
        let (count, zeroes) = match work {
            Work::Discard { ranges } => (ranges, false),
            Work::WriteZeroes { ranges } => (ranges, true),
            _ => return Ok(()),
        };
        let mut bytes = vec![0; count * RANGE_BYTES];
        let mut left = bytes.as_mut_slice();
        for &(address, len) in request.readable() {
            let (now, later) = left.split_at_mut(len.min(left.len()));
            memory.read_slice(now, address).map_err(|_| Refusal::Memory)?;
            left = later;
        }
        let (ranges, _) = bytes.as_chunks();
        for &range in ranges {
            self.list.push(judge.range_of(range, zeroes)?);
        }
        Ok(())
    }

    /// Bytes of all ranges.
    pub(super) fn bytes(&self) -> u64 {
        self.list.iter().map(|range| range.bytes).sum()
    }

    /// Discards the ranges or, with `zeroes`, fills them; afterwards it is on the disk if `durable`.
    ///
    /// # Errors
    /// What the first range met that could not be done.
    pub(super) fn clear(&self, disk: &Disk, zeroes: bool, durable: bool) -> io::Result<()> {
        for &range in &self.list {
            match zeroes {
                true => disk.zero(range)?,
                false => disk.discard(range)?,
            }
        }
        match durable {
            true => disk.file()?.sync_data(),
            false => Ok(()),
        }
    }
}
