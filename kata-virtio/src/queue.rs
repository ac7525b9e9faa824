//! Chains off a queue, with the driver's claims about the ring judged before anybody relies on them.
//!
//! Owns the check of heads; knows no device. The library underneath logs an error for each head that it
//! finds out of range when a chain is given back, at a rate that the guest would drive: here such a head
//! is a fault of the queue as soon as it is seen, and costs what its device says about it.

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, Permissions};

/// Bytes of an available ring without its entries: flags, index and `used_event` (VIRTIO 1.2 §2.7.6).
const AVAILABLE_BYTES: usize = 6;

/// The way to take chains off a queue.
pub(crate) trait Chains {
    /// The next chain, if there is one; its head is within the queue, so it can be given back.
    ///
    /// # Errors
    /// When the queue is broken: a head out of range (VIRTIO 1.2 §2.7.13.1), an available index that
    /// jumps, a ring outside of memory. The device gives nothing back then, and asks for a reset.
    fn next_chain<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
    ) -> Result<Option<DescriptorChain<&'m M>>, Error>;
}

impl Chains for Queue {
    fn next_chain<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
    ) -> Result<Option<DescriptorChain<&'m M>>, Error> {
        let Some(chain) = self.iter(memory)?.next() else {
            return is_inside(self, memory).map(|()| None);
        };
        if chain.head_index() >= self.size() {
            return Err(Error::InvalidDescriptorIndex);
        }
        Ok(Some(chain))
    }
}

/// An entry that cannot be read looks like a ring without entries.
fn is_inside<M: GuestMemory>(queue: &Queue, memory: &M) -> Result<(), Error> {
    let start = GuestAddress(queue.avail_ring());
    let bytes = AVAILABLE_BYTES + 2 * usize::from(queue.size());
    match memory.check_range(start, bytes, Permissions::Read) {
        true => Ok(()),
        false => Err(Error::GuestMemory(GuestMemoryError::InvalidGuestAddress(start))),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::Memory;

    const DESCRIPTORS: u64 = 0;
    const AVAILABLE: u64 = 0x100;
    const USED: u64 = 0x200;
    const SIZE: u16 = 4;

    /// A queue on whose ring these heads are, and its memory of a page.
    fn queue(heads: &[u16], available: u64) -> (Queue, Memory) {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(DESCRIPTORS))
            .unwrap();
        queue.try_set_avail_ring_address(GuestAddress(available)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        let count = u16::try_from(heads.len()).unwrap();
        memory.write_obj(count, GuestAddress(available + 2)).unwrap();
        for (at, head) in (available + 4..).step_by(2).zip(heads) {
            // Those beyond the end of memory have no place.
            let _ = memory.write_obj(*head, GuestAddress(at));
        }
        (queue, memory)
    }

    #[test]
    fn chains_come_in_order_until_there_are_none() {
        let (mut queue, memory) = queue(&[2, 0], AVAILABLE);
        let mut next = || queue.next_chain(&memory).unwrap().map(|chain| chain.head_index());
        assert_eq!((next(), next(), next()), (Some(2), Some(0), None));
    }

    #[test]
    fn a_head_out_of_range_is_a_fault() {
        for head in [SIZE, u16::MAX] {
            let (mut queue, memory) = queue(&[head], AVAILABLE);
            let fault = queue.next_chain(&memory).unwrap_err();
            assert!(matches!(fault, Error::InvalidDescriptorIndex), "{fault}");
        }
    }

    #[test]
    fn an_index_that_jumps_is_a_fault() {
        let (mut queue, memory) = queue(&[0; 5], AVAILABLE);
        let fault = queue.next_chain(&memory).unwrap_err();
        assert!(matches!(fault, Error::InvalidAvailRingIndex), "{fault}");
    }

    #[test]
    fn an_entry_outside_of_memory_is_a_fault() {
        let (mut queue, memory) = queue(&[0], 0xffc);
        let fault = queue.next_chain(&memory).unwrap_err();
        assert!(matches!(fault, Error::GuestMemory(_)), "{fault}");
    }
}
