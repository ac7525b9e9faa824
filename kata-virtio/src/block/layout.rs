//! What the driver is told of the disk: features and configuration space (VIRTIO 1.2 §5.2.3, §5.2.4).
//!
//! Owns their layout and the limits in them. Pure; knows no file.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::COMMON_FEATURES;

/// The unit of every position and length in the protocol, whatever the disk's blocks are.
pub(super) const SECTOR_BYTES: u64 = 512;

/// Entries of each queue.
pub(super) const QUEUE_SIZE: u16 = 256;

/// Data segments of a request, as offered: what fits a queue with header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes of a data segment, as offered. With as many segments as there may be, no request has more than
/// 16 MiB: nobody waits long behind one that is carried out in the worker's thread.
const SEGMENT_BYTES_MAX: u32 = 64 << 10;

/// Bytes of data of one read or write: what fits the segments.
pub(super) const DATA_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;

/// Sectors of one range to discard: 256 MiB, which file systems unmap without a noticeable wait.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 19;

/// Ranges of one discard.
pub(super) const DISCARD_RANGES_MAX: u32 = 16;

/// Sectors of one write of zeroes: 8 MiB, since where the file system has no better way they are written.
pub(super) const ZERO_SECTORS_MAX: u32 = 1 << 14;

/// Ranges of one write of zeroes.
pub(super) const ZERO_RANGES_MAX: u32 = 1;

/// Where the driver's choice of write-back or write-through is (§5.2.4, `writeback`).
pub(super) const WRITEBACK_OFFSET: usize = 32;

/// What is known of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Sectors of 512 bytes.
    pub(super) sectors: u64,
    /// The unit in which it is best addressed, in bytes; a power of two.
    pub(super) block_bytes: u32,
    /// The unit in which it is stored, in bytes, where that is larger.
    pub(super) physical_block_bytes: u32,
    /// Nothing is written.
    pub(super) read_only: bool,
    /// Queues.
    pub(super) queues: u16,
}

impl Layout {
    /// The features to offer.
    pub(super) fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
        ];
        if self.queues > 1 {
            bits.push(VIRTIO_BLK_F_MQ);
        }
        bits.extend(match self.read_only {
            true => [VIRTIO_BLK_F_RO].as_slice(),
            false => &[
                VIRTIO_BLK_F_CONFIG_WCE,
                VIRTIO_BLK_F_DISCARD,
                VIRTIO_BLK_F_WRITE_ZEROES,
            ],
        });
        bits.into_iter().fold(COMMON_FEATURES, |all, bit| all | 1 << bit)
    }

    /// The configuration space.
    pub(super) fn config(&self, writeback: bool) -> Vec<u8> {
        let mut space = Vec::with_capacity(60);
        space.extend(self.sectors.to_le_bytes());
        space.extend(SEGMENT_BYTES_MAX.to_le_bytes());
        space.extend(SEGMENTS_MAX.to_le_bytes());
        // A geometry of cylinders is not offered.
        space.extend([0; 4]);
        space.extend(self.block_bytes.to_le_bytes());
        let exponent = (self.physical_block_bytes / self.block_bytes.max(1))
            .max(1)
            .ilog2();
        // Physical blocks start with the disk; one of them is the least and the best to move at once.
        space.extend([u8::try_from(exponent).unwrap_or(0), 0]);
        let blocks = 1u16.checked_shl(exponent).unwrap_or(1);
        space.extend(blocks.to_le_bytes());
        space.extend(u32::from(blocks).to_le_bytes());
        space.extend([u8::from(writeback), 0]);
        space.extend(self.queues.to_le_bytes());
        let alignment = self.block_bytes / 512;
        let writable = |number: u32| if self.read_only { 0 } else { number };
        for number in [
            writable(DISCARD_SECTORS_MAX),
            writable(DISCARD_RANGES_MAX),
            writable(alignment),
            writable(ZERO_SECTORS_MAX),
            writable(ZERO_RANGES_MAX),
        ] {
            space.extend(number.to_le_bytes());
        }
        // Zeroes may be written by unmapping.
        space.extend([u8::from(!self.read_only), 0, 0, 0]);
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VIRTIO 1.2 §5.2.4, field by field.
    #[test]
    fn the_configuration_space_has_the_layout_of_the_specification() {
        let layout = Layout {
            sectors: 0x0102_0304_0506,
            block_bytes: 512,
            physical_block_bytes: 4096,
            read_only: false,
            queues: 3,
        };
        let space = layout.config(true);
        assert_eq!(space.len(), 60);
        let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        assert_eq!(space[..8], 0x0102_0304_0506u64.to_le_bytes());
        assert_eq!((word(8), word(12), word(16), word(20)), (64 << 10, 254, 0, 512));
        assert_eq!(space[24..32], [3, 0, 8, 0, 8, 0, 0, 0]);
        assert_eq!((space[WRITEBACK_OFFSET], space[33]), (1, 0));
        assert_eq!(space[34..36], [3, 0]);
        assert_eq!((word(36), word(40), word(44)), (1 << 19, 16, 1));
        assert_eq!((word(48), word(52), word(56)), (1 << 14, 1, 1));
    }

    #[test]
    fn a_disk_that_is_not_written_offers_no_way_to_write() {
        let layout = Layout {
            sectors: 8,
            block_bytes: 4096,
            physical_block_bytes: 4096,
            read_only: true,
            queues: 1,
        };
        let offers = |bit: u32| layout.features() >> bit & 1 == 1;
        assert!(offers(VIRTIO_BLK_F_RO) && offers(VIRTIO_BLK_F_FLUSH));
        for bit in [
            VIRTIO_BLK_F_CONFIG_WCE,
            VIRTIO_BLK_F_DISCARD,
            VIRTIO_BLK_F_WRITE_ZEROES,
            VIRTIO_BLK_F_MQ,
        ] {
            assert!(!offers(bit), "{bit}");
        }
        assert_eq!(layout.config(false)[36..], [0; 24]);
    }
}
