//! The buffers of one descriptor chain in one direction (VIRTIO 1.2 §2.7.4, §2.7.5), for the devices
//! whose requests are streams of bytes or ranges of memory.
//!
//! Owns the walk over the chain and its bound; knows no device. What it holds are the driver's claims:
//! an address is checked when it is used, or by [`Buffers::check`]. The walk over stretches of a chain is every
//! device's.

use std::ops::Range;

use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

/// A chain that no request can be read from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// No buffer of the direction that this queue has.
    #[error("chain without a buffer for the {0}")]
    Empty(Direction),
    /// More buffers than the queue has descriptors (forbidden by VIRTIO 1.2 §2.7.5.3.1).
    #[error("chain of more than {0} buffers")]
    TooManyBuffers(u16),
    /// It ends in a loop or outside of its table, or is longer than 2³² bytes.
    #[error("chain that does not end")]
    Endless,
    /// A buffer outside of guest memory.
    #[error("buffer outside of guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Who writes a buffer is not who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The driver wrote it, the device reads.
    Readable,
    /// The device may write it.
    Writable,
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Readable => "device to read",
            Self::Writable => "device to write",
        })
    }
}

/// See the module; kept between chains for its allocation.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    parts: Vec<(GuestAddress, usize)>,
    bytes: usize,
}

impl Buffers {
    /// Takes the buffers of `chain` that have this direction; at most `most` descriptors are looked at.
    pub(crate) fn load<M: GuestMemory>(
        &mut self,
        chain: DescriptorChain<&M>,
        most: u16,
        direction: Direction,
    ) -> Result<(), ChainError> {
        self.parts.clear();
        self.bytes = 0;
        let mut ended = false;
        for (seen, descriptor) in (0u16..).zip(chain) {
            ended = !descriptor.has_next();
            if seen == most {
                return Err(ChainError::TooManyBuffers(most));
            }
            let len = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
            if descriptor.is_write_only() == (direction == Direction::Writable) && len > 0 {
                self.parts.push((descriptor.addr(), len));
                self.bytes = self.bytes.saturating_add(len);
            }
        }
        // The iterator stops in silence at what it cannot follow.
        if !ended {
            return Err(ChainError::Endless);
        }
        if self.bytes == 0 {
            return Err(ChainError::Empty(direction));
        }
        Ok(())
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Address and bytes of each.
    pub(crate) fn parts(&self) -> &[(GuestAddress, usize)] {
        &self.parts
    }

    /// Whether all of them are in guest memory.
    pub(crate) fn check<M: GuestMemory>(&self, memory: &M) -> Result<(), ChainError> {
        match self
            .parts
            .iter()
            .find(|&&(address, len)| !memory.check_range(address, len, Permissions::ReadWrite))
        {
            Some(&(address, _)) => Err(GuestMemoryError::InvalidGuestAddress(address).into()),
            None => Ok(()),
        }
    }

    /// Reads `into` from the bytes that begin `from` bytes into the buffers; the caller stays within
    /// [`bytes`](Self::bytes).
    pub(crate) fn read<M: GuestMemory>(
        &self,
        memory: &M,
        from: usize,
        into: &mut [u8],
    ) -> Result<(), ChainError> {
        self.pieces(from, into.len(), |address, range| {
            memory.read_slice(&mut into[range], address)
        })
    }

    /// Writes `bytes` to the beginning of the buffers; the caller stays within [`bytes`](Self::bytes).
    pub(crate) fn write<M: GuestMemory>(&self, memory: &M, bytes: &[u8]) -> Result<(), ChainError> {
        self.pieces(0, bytes.len(), |address, range| {
            memory.write_slice(&bytes[range], address)
        })
    }

    /// As [`pieces`], of these buffers.
    fn pieces(
        &self,
        from: usize,
        len: usize,
        piece: impl FnMut(GuestAddress, Range<usize>) -> Result<(), GuestMemoryError>,
    ) -> Result<(), ChainError> {
        Ok(pieces(&self.parts, from, len, piece)?)
    }
}

/// Calls `piece` for each stretch of `len` bytes that begin `from` bytes into the parts (address, bytes): the
/// stretch's address, and which of those bytes it is. Ends early where the parts do.
///
/// # Errors
/// What `piece` says, or an address beyond all.
pub(crate) fn pieces(
    parts: &[(GuestAddress, usize)],
    from: usize,
    len: usize,
    mut piece: impl FnMut(GuestAddress, Range<usize>) -> Result<(), GuestMemoryError>,
) -> Result<(), GuestMemoryError> {
    let (mut skip, mut done) = (from, 0);
    for &(address, size) in parts {
        if done == len {
            break;
        }
        if skip >= size {
            skip -= size;
            continue;
        }
        let count = (size - skip).min(len - done);
        let start = address
            .checked_add(u64::try_from(skip).unwrap_or(u64::MAX))
            .ok_or(GuestMemoryError::GuestAddressOverflow)?;
        piece(start, done..done + count)?;
        done += count;
        skip = 0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    use super::*;

    /// Buffers of these sizes with gaps between them.
    fn buffers(sizes: &[usize]) -> Buffers {
        let mut address = 0x1000;
        let mut buffers = Buffers::default();
        for &size in sizes {
            buffers.parts.push((GuestAddress(address), size));
            buffers.bytes += size;
            address += u64::try_from(size).unwrap() + 3;
        }
        buffers
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    proptest! {
        /// However the driver cuts its buffers, bytes go in and come out the same, from any place on.
        #[test]
        fn bytes_survive_any_cut(sizes in prop::collection::vec(1usize..120, 1..12), from in 0usize..1400) {
            let (memory, buffers) = (memory(), buffers(&sizes));
            let bytes: Vec<u8> = (0..buffers.bytes()).map(|index| u8::try_from(index % 251).unwrap()).collect();
            buffers.check(&memory).unwrap();
            buffers.write(&memory, &bytes).unwrap();
            let from = from.min(bytes.len());
            let mut read = vec![0; bytes.len() - from];
            buffers.read(&memory, from, &mut read).unwrap();
            prop_assert_eq!(&read, &bytes[from..]);
        }
    }

    #[test]
    fn buffers_outside_of_memory_are_an_error() {
        let mut outside = buffers(&[64, 64]);
        outside.parts[1].0 = GuestAddress(0xfff0);
        assert!(matches!(outside.check(&memory()), Err(ChainError::Memory(_))));
        let read = outside.read(&memory(), 60, &mut [0; 68]);
        assert!(matches!(read, Err(ChainError::Memory(_))));
        outside.parts[0] = (GuestAddress(u64::MAX - 3), 64);
        let read = outside.read(&memory(), 8, &mut [0; 8]);
        assert!(matches!(
            read,
            Err(ChainError::Memory(GuestMemoryError::GuestAddressOverflow))
        ));
    }
}
