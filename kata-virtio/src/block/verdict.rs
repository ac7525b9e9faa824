//! What a request comes to: the work that it asks for, or why it is refused (VIRTIO 1.2 §5.2.6.2).
//!
//! Pure: judges the driver's claims against what the disk is. Whatever leaves here lies within the disk.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::layout::{
    DATA_BYTES_MAX, DISCARD_RANGES_MAX, DISCARD_SECTORS_MAX, Layout, SECTOR_BYTES, ZERO_RANGES_MAX,
    ZERO_SECTORS_MAX,
};
use super::request::Request;

/// Bytes of a serial (§5.2.6, `VIRTIO_BLK_T_GET_ID`).
pub(super) const SERIAL_BYTES: usize = 20;

/// Bytes of a range in a discard (§5.2.6, `virtio_blk_discard_write_zeroes`).
pub(super) const RANGE_BYTES: usize = 16;

/// A sound request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Fill its writable buffers from this offset, in bytes.
    Read { offset: u64 },
    /// Write its readable buffers at this offset, in bytes.
    Write { offset: u64 },
    /// Make everything durable that was reported as written.
    Flush,
    /// Say what the disk is called.
    Serial,
    /// Discard the ranges in its readable buffers; so many are there.
    Discard { ranges: usize },
    /// Write zeroes to the ranges in its readable buffers; so many are there.
    WriteZeroes { ranges: usize },
}

impl Work {
    /// Bytes of the disk that it is about; `ranges` are those in its ranges.
    pub(super) fn bytes(self, request: &Request, ranges: u64) -> u64 {
        match self {
            Self::Read { .. } => request.writable_bytes(),
            Self::Write { .. } => request.readable_bytes(),
            Self::Discard { .. } | Self::WriteZeroes { .. } => ranges,
            Self::Flush | Self::Serial => 0,
        }
    }

    /// Those of its `bytes` that are moved, or may be: not every disk has a better way to write zeroes.
    pub(super) fn moves(self, bytes: u64) -> u64 {
        match self {
            Self::Discard { .. } => 0,
            _ => bytes,
        }
    }

    /// Whether the disk is another afterwards.
    pub(super) fn writes(self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. }
        )
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// `VIRTIO_BLK_S_UNSUPP`.
    #[error("a request of unknown type {0}")]
    Unknown(u32),
    /// `VIRTIO_BLK_S_UNSUPP`.
    #[error("flags {0:#x} that are unknown or do not belong there")]
    Flags(u32),
    /// From here on `VIRTIO_BLK_S_IOERR`.
    #[error("{bytes} bytes from sector {sector}, of {sectors}")]
    OutOfRange {
        /// The first.
        sector: u64,
        /// Length.
        bytes: u64,
        /// The disk has so many.
        sectors: u64,
    },
    /// See the layout of the request.
    #[error("data of {0} bytes")]
    Length(u64),
    /// Data to read in a write, or the other way round.
    #[error("data in the wrong direction")]
    Direction,
    /// The disk is read-only.
    #[error("a write to a read-only disk")]
    ReadOnly,
    /// More than the configuration space says.
    #[error("{0} ranges at once")]
    TooMany(u64),
    /// Data outside of guest memory.
    #[error("data outside of guest memory")]
    Memory,
    /// Direct I/O has a unit, which the driver is told (`blk_size`).
    #[error("not in whole blocks of {0} bytes")]
    Alignment(u32),
}

impl Refusal {
    /// Whether the driver asked for what this device does not have, rather than for what no device does.
    pub(super) fn is_unsupported(self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Flags(_))
    }
}

/// A stretch of the disk, from a request's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// Where it begins, in bytes.
    pub(super) offset: u64,
    /// Its length, in bytes.
    pub(super) bytes: u64,
    /// It need not stay allocated.
    pub(super) unmap: bool,
}

/// What a disk does for a driver that has chosen `features`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judge {
    /// The disk.
    pub(super) layout: Layout,
    /// What the driver chose.
    pub(super) features: u64,
    /// The unit of positions and lengths, in bytes: more than a sector for direct I/O.
    pub(super) unit: u32,
}

impl Judge {
    /// What a request comes to.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn judge(&self, request: &Request) -> Result<Work, Refusal> {
        let (readable, writable) = (request.readable_bytes(), request.writable_bytes());
        match request.kind {
            VIRTIO_BLK_T_IN if readable > 0 => Err(Refusal::Direction),
            VIRTIO_BLK_T_IN => {
                let offset = self.data(request.sector, writable)?;
                Ok(Work::Read { offset })
            }
            VIRTIO_BLK_T_OUT => {
                self.may_write()?;
                if writable > 0 {
                    return Err(Refusal::Direction);
                }
                let offset = self.data(request.sector, readable)?;
                Ok(Work::Write { offset })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Work::Flush),
            VIRTIO_BLK_T_GET_ID if usize::try_from(writable).is_ok_and(|room| room < SERIAL_BYTES) => {
                Err(Refusal::Length(writable))
            }
            VIRTIO_BLK_T_GET_ID => Ok(Work::Serial),
            VIRTIO_BLK_T_DISCARD if self.has(VIRTIO_BLK_F_DISCARD) => {
                let ranges = self.ranges(readable, DISCARD_RANGES_MAX)?;
                Ok(Work::Discard { ranges })
            }
            VIRTIO_BLK_T_WRITE_ZEROES if self.has(VIRTIO_BLK_F_WRITE_ZEROES) => {
                let ranges = self.ranges(readable, ZERO_RANGES_MAX)?;
                Ok(Work::WriteZeroes { ranges })
            }
            // §5.2.6.2: writes to a read-only disk fail, and not for being unknown.
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if self.layout.read_only => {
                Err(Refusal::ReadOnly)
            }
            unknown => Err(Refusal::Unknown(unknown)),
        }
    }

    /// A range out of the data of a discard (`zeroes` is false) or a write of zeroes.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn range_of(&self, bytes: [u8; RANGE_BYTES], zeroes: bool) -> Result<Range, Refusal> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let sector = u64::from(word(4)) << 32 | u64::from(word(0));
        let (sectors, flags) = (word(8), word(12));
        let known = if zeroes {
            VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        } else {
            0
        };
        if flags & !known != 0 {
            return Err(Refusal::Flags(flags));
        }
        let most = if zeroes {
            ZERO_SECTORS_MAX
        } else {
            DISCARD_SECTORS_MAX
        };
        let length = u64::from(sectors) * SECTOR_BYTES;
        if sectors > most {
            return Err(Refusal::Length(length));
        }
        Ok(Range {
            offset: self.range(sector, length)?,
            bytes: length,
            unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        })
    }

    fn has(&self, feature: u32) -> bool {
        self.features >> feature & 1 == 1
    }

    fn may_write(&self) -> Result<(), Refusal> {
        match self.layout.read_only {
            true => Err(Refusal::ReadOnly),
            false => Ok(()),
        }
    }

    fn ranges(&self, bytes: u64, most: u32) -> Result<usize, Refusal> {
        self.may_write()?;
        let ranges = usize::try_from(bytes).unwrap_or(usize::MAX) / RANGE_BYTES;
        if bytes == 0 || !bytes.is_multiple_of(16) {
            return Err(Refusal::Length(bytes));
        }
        let within = u32::try_from(ranges).is_ok_and(|ranges| ranges <= most);
        within.then_some(ranges).ok_or(Refusal::TooMany(bytes / 16))
    }

    /// The offset of a read or write that lies within the disk and is not too large.
    fn data(&self, sector: u64, bytes: u64) -> Result<u64, Refusal> {
        match bytes > DATA_BYTES_MAX {
            true => Err(Refusal::Length(bytes)),
            false => self.range(sector, bytes),
        }
    }

    /// The offset of a stretch that lies within the disk.
    fn range(&self, sector: u64, bytes: u64) -> Result<u64, Refusal> {
        let sectors = self.layout.sectors;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Refusal::Length(bytes));
        }
        let end = sector.checked_add(bytes / SECTOR_BYTES);
        if end.is_none_or(|end| end > sectors) {
            return Err(Refusal::OutOfRange {
                sector,
                bytes,
                sectors,
            });
        }
        let offset = sector * SECTOR_BYTES;
        let unit = u64::from(self.unit.max(1));
        if !offset.is_multiple_of(unit) || !bytes.is_multiple_of(unit) {
            return Err(Refusal::Alignment(self.unit));
        }
        Ok(offset)
    }
}
