//! Bytes in and out of descriptor chains, and chains back to the driver (VIRTIO 1.2 §2.7).
//!
//! The driver may cut a frame wherever it likes. Nothing is allocated before its length was checked.
//! Knows no frame.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::Memory;
use crate::queue::Chains;

/// Most buffers of one frame: as many as a frame of 64 KiB has in pieces of a cache line.
const PARTS_MAX: usize = 1024;

/// A chain that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChainError {
    /// Not as many bytes as there must be.
    #[error("chain of {got} bytes where {wanted} are needed")]
    Short { got: usize, wanted: usize },
    /// More bytes than anything needs.
    #[error("chain of {got} bytes where {most} are enough")]
    Long { got: usize, most: usize },
    /// More buffers than the queue has descriptors (forbidden by VIRTIO 1.2 §2.7.5.3.1).
    #[error("chain of more than {0} buffers")]
    TooManyBuffers(u16),
    /// More pieces than a frame needs.
    #[error("frame in more than {PARTS_MAX} buffers")]
    TooManyParts,
    /// It ends in a loop or outside of its table, or is longer than 2³² bytes.
    #[error("chain that does not end")]
    Endless,
    /// A buffer outside of guest memory.
    #[error("buffer outside of guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// Which buffers of a chain are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Those that the driver wrote.
    Readable,
    /// Those that the device writes.
    Writable,
}

/// The buffers of some chains, one after the other; kept between frames for its allocation.
#[derive(Debug, Default)]
pub(super) struct Parts {
    parts: Vec<(GuestAddress, usize)>,
    bytes: usize,
}

impl Parts {
    /// These, for tests of what is done with them.
    #[cfg(test)]
    pub(super) fn of(parts: Vec<(GuestAddress, usize)>) -> Self {
        let bytes = parts.iter().map(|(_, len)| len).sum();
        Self { parts, bytes }
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.bytes = 0;
    }

    /// Bytes in all of them.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the buffers of a chain; returns their bytes. Adds nothing where it fails, which it does when
    /// they have fewer bytes than `least`.
    pub(super) fn append<M: GuestMemory>(
        &mut self,
        chain: DescriptorChain<&M>,
        side: Side,
        most_buffers: u16,
        least: usize,
    ) -> Result<usize, ChainError> {
        let (parts, bytes) = (self.parts.len(), self.bytes);
        let added = self.push_all(chain, side, most_buffers).and_then(|()| {
            let got = self.bytes - bytes;
            if got < least {
                return Err(ChainError::Short { got, wanted: least });
            }
            Ok(got)
        });
        if added.is_err() {
            self.parts.truncate(parts);
            self.bytes = bytes;
        }
        added
    }

    fn push_all<M: GuestMemory>(
        &mut self,
        chain: DescriptorChain<&M>,
        side: Side,
        most_buffers: u16,
    ) -> Result<(), ChainError> {
        let (mut seen, mut ended) = (0, false);
        for descriptor in chain {
            seen += 1;
            ended = !descriptor.has_next();
            if seen > most_buffers {
                return Err(ChainError::TooManyBuffers(most_buffers));
            }
            let len = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
            if descriptor.is_write_only() == (side == Side::Writable) && len > 0 {
                if self.parts.len() == PARTS_MAX {
                    return Err(ChainError::TooManyParts);
                }
                self.parts.push((descriptor.addr(), len));
                self.bytes = self.bytes.saturating_add(len);
            }
        }
        // The iterator stops in silence at what it cannot follow.
        if ended { Ok(()) } else { Err(ChainError::Endless) }
    }

    /// Address and bytes of each.
    pub(super) fn as_slice(&self) -> &[(GuestAddress, usize)] {
        &self.parts
    }

    /// Copies all bytes into the beginning of `into`; returns how many.
    pub(super) fn gather<M: GuestMemory>(&self, memory: &M, into: &mut [u8]) -> Result<usize, ChainError> {
        if self.bytes > into.len() {
            return Err(ChainError::Long {
                got: self.bytes,
                most: into.len(),
            });
        }
        let mut rest = into;
        for &(address, len) in &self.parts {
            let (now, later) = rest.split_at_mut(len);
            memory.read_slice(now, address)?;
            rest = later;
        }
        Ok(self.bytes)
    }

    /// Copies `from` into the buffers, as far as they reach.
    pub(super) fn scatter<M: GuestMemory>(&self, memory: &M, from: &[u8]) -> Result<(), ChainError> {
        let mut rest = from;
        for &(address, len) in &self.parts {
            let (now, later) = rest.split_at(len.min(rest.len()));
            if now.is_empty() {
                break;
            }
            memory.write_slice(now, address)?;
            rest = later;
        }
        Ok(())
    }
}

/// A chain and the bytes written to it.
pub(super) type Filled = (u16, u32);

/// Returns chains that belong together: the driver sees all of them or none (VIRTIO 1.2 §5.1.6.4; a
/// driver that sees the first buffer of a frame looks for the others at once).
pub(super) fn publish(memory: &Memory, queue: &mut Queue, filled: &[Filled]) -> Result<(), QueueError> {
    let Some((&(last_head, last_len), others)) = filled.split_last() else {
        return Ok(());
    };
    let first = queue.next_used();
    let mut position = first;
    for &(head, len) in others {
        if head >= queue.size() {
            return Err(QueueError::InvalidDescriptorIndex);
        }
        let element = [u32::from(head).to_le_bytes(), len.to_le_bytes()].concat();
        let offset = 4 + 8 * u64::from(position % queue.size());
        let address = ring_address(queue.used_ring(), offset)?;
        memory
            .write_slice(&element, address)
            .map_err(QueueError::GuestMemory)?;
        position = position.wrapping_add(1);
    }
    queue.set_next_used(position);
    queue
        .add_used(memory, last_head, last_len)
        .inspect_err(|_| queue.set_next_used(first))
}

/// Whether the driver wants to hear of the chains returned since the queue was at `before` (VIRTIO 1.2
/// §2.7.7.2). As `needs_notification`, which does not count what [`publish`] returned.
pub(super) fn signal_wanted(memory: &Memory, queue: &Queue, before: u16) -> Result<bool, QueueError> {
    let now = queue.next_used();
    if now == before || !queue.event_idx_enabled() {
        return Ok(now != before);
    }
    fence(Ordering::SeqCst);
    let offset = 4 + 2 * u64::from(queue.size());
    let address = ring_address(queue.avail_ring(), offset)?;
    let event: u16 = memory
        .load(address, Ordering::Relaxed)
        .map_err(QueueError::GuestMemory)?;
    let event = u16::from_le(event);
    Ok(now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before))
}

/// Whether the driver has made a chain available.
pub(super) fn has_chain(memory: &Memory, queue: &Queue) -> Result<bool, QueueError> {
    Ok(queue.avail_idx(memory, Ordering::Acquire)?.0 != queue.next_avail())
}

/// Takes the last `count` chains as not taken.
pub(super) fn put_back(queue: &mut Queue, count: usize) {
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    queue.set_next_avail(queue.next_avail().wrapping_sub(count));
}

/// The next chain. When there is none, the driver is asked to kick at the next.
pub(super) fn next_chain<'m>(
    memory: &'m Memory,
    queue: &mut Queue,
) -> Result<Option<DescriptorChain<&'m Memory>>, QueueError> {
    loop {
        if let Some(chain) = queue.next_chain(memory)? {
            return Ok(Some(chain));
        }
        if !queue.enable_notification(memory)? {
            return Ok(None);
        }
    }
}

fn ring_address(ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
    let address = ring.checked_add(offset).ok_or(QueueError::AddressOverflow)?;
    Ok(GuestAddress(address))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn parts(sizes: &[usize]) -> Parts {
        let mut address = 0x1000;
        let mut parts = Parts::default();
        for &size in sizes {
            parts.parts.push((GuestAddress(address), size));
            parts.bytes += size;
            address += u64::try_from(size).unwrap() + 3;
        }
        parts
    }

    fn memory() -> Memory {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    proptest! {
        /// However the driver cuts its buffers, bytes go in and come out the same.
        #[test]
        fn bytes_survive_any_cut(
            sizes in prop::collection::vec(1usize..120, 1..12),
            bytes in prop::collection::vec(any::<u8>(), 1..1500),
        ) {
            let (memory, parts) = (memory(), parts(&sizes));
            parts.scatter(&memory, &bytes).unwrap();
            let mut read = vec![0; parts.bytes()];
            prop_assert_eq!(parts.gather(&memory, &mut read).unwrap(), parts.bytes());
            let common = bytes.len().min(read.len());
            prop_assert_eq!(&read[..common], &bytes[..common]);
            let mut small = vec![0; parts.bytes() - 1];
            let refused = matches!(parts.gather(&memory, &mut small), Err(ChainError::Long { .. }));
            prop_assert!(refused);
        }
    }

    #[test]
    fn buffers_outside_of_memory_are_an_error() {
        let mut outside = parts(&[16]);
        outside.parts[0].0 = GuestAddress(0xfff8);
        let mut into = [0; 16];
        let error = outside.gather(&memory(), &mut into).unwrap_err();
        assert!(matches!(error, ChainError::Memory(_)));
        assert!(outside.scatter(&memory(), &into).is_err());
    }
}
