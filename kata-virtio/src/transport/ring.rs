//! Where a queue is, as its driver says it (VIRTIO 1.2 §4.2.2, §2.7), and whether it can be there.
//!
//! Pure but for guest memory's layout: the queue itself is made from it when the driver is ready.

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::Memory;

/// A 64-bit register pair of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Area {
    /// Descriptor table.
    Descriptors,
    /// Available ring.
    Driver,
    /// Used ring.
    Device,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ring {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) ready: bool,
    areas: [u64; 3],
}

impl Ring {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            ready: false,
            areas: [0; 3],
        }
    }

    /// Addresses of descriptor table, available ring and used ring.
    pub(super) fn areas(&self) -> [u64; 3] {
        self.areas
    }

    /// Writes the lower or upper half of an address.
    pub(super) fn place(&mut self, area: Area, upper: bool, half: u32) {
        let address = match area {
            Area::Descriptors => &mut self.areas[0],
            Area::Driver => &mut self.areas[1],
            Area::Device => &mut self.areas[2],
        };
        *address = if upper {
            u64::from(half) << 32 | *address & u64::from(u32::MAX)
        } else {
            *address >> 32 << 32 | u64::from(half)
        };
    }

    /// Whether a queue may have this size (VIRTIO 1.2 §2.7, §4.2.2.2).
    pub(super) fn accepts(&self, size: u32) -> Option<u16> {
        u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= self.max_size)
    }

    /// Whether the areas lie in memory, aligned as §2.7 wants. The queue's own check is not used: it
    /// writes a log line whenever a driver fails it.
    pub(super) fn is_valid(&self, memory: &Memory) -> bool {
        let size = usize::from(self.size);
        let [descriptors, driver, device] = self.areas;
        let lies = |address: u64, align: u64, bytes: usize| {
            address.is_multiple_of(align)
                && memory.check_range(GuestAddress(address), bytes, Permissions::ReadWrite)
        };
        // An available ring at 0 is what the queue takes for no ring.
        driver != 0
            && lies(descriptors, 16, 16 * size)
            && lies(driver, 2, 6 + 2 * size)
            && lies(device, 4, 6 + 8 * size)
    }

    /// The device's side of it.
    ///
    /// # Errors
    /// When it is not valid.
    pub(super) fn queue(&self, event_idx: bool) -> Result<Queue, Error> {
        let mut queue = Queue::new(self.max_size)?;
        queue.try_set_size(self.size)?;
        let [descriptors, driver, device] = self.areas.map(GuestAddress);
        queue.try_set_desc_table_address(descriptors)?;
        queue.try_set_avail_ring_address(driver)?;
        queue.try_set_used_ring_address(device)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(self.ready);
        Ok(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    fn ring(areas: [u64; 3]) -> Ring {
        Ring {
            areas,
            ..Ring::new(16)
        }
    }

    #[test]
    fn halves_make_an_address_in_any_order() {
        let mut ring = Ring::new(16);
        ring.place(Area::Device, true, 0x1234);
        ring.place(Area::Device, false, 0xffff_0000);
        ring.place(Area::Device, true, 1);
        assert_eq!(ring.areas(), [0, 0, 0x1_ffff_0000]);
    }

    #[test]
    fn sizes_are_powers_of_two_up_to_the_largest() {
        let accepted: Vec<u32> = (0..100)
            .filter(|&size| Ring::new(16).accepts(size).is_some())
            .collect();
        assert_eq!(accepted, [1, 2, 4, 8, 16]);
        assert_eq!(Ring::new(16).accepts(0x1_0010), None);
    }

    #[test]
    fn areas_are_aligned_and_in_memory() {
        let last = |bytes: u64| 0x1_0000 - bytes;
        assert!(ring([0, 0x1000, 0x2000]).is_valid(&memory()));
        assert!(ring([last(256), last(38), 0x2000]).is_valid(&memory()));
        for bad in [
            [8, 0x1000, 0x2000],
            [0, 0, 0x2000],
            [0, 0x1001, 0x2000],
            [0, 0x1000, 0x2002],
            [last(240), 0x1000, 0x2000],
            [0, last(36), 0x2000],
            [0, 0x1000, last(132)],
            [!15, 0x1000, 0x2000],
            [0, u64::MAX - 1, 0x2000],
            [0, 0x1000, !3],
        ] {
            assert!(!ring(bad).is_valid(&memory()), "{bad:x?}");
        }
    }
}
