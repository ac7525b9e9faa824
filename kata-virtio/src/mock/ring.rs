//! The driver's side of a split virtqueue (VIRTIO 1.2 §2.7).
//!
//! Owns the descriptors of one queue in guest memory; knows nothing of what the buffers hold.
#![expect(
    clippy::expect_used,
    reason = "a driver that cannot reach its own memory is a broken test"
)]

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const IN_MEMORY: &str = "the rings are in guest memory";

/// A stretch of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it, rather than reads.
    pub writable: bool,
}

/// See the module.
#[derive(Debug)]
pub struct DriverQueue {
    memory: Arc<GuestMemoryMmap>,
    size: u16,
    start: u64,
    free: Vec<u16>,
    chains: Vec<Vec<u16>>,
    next_avail: u16,
    kicked: u16,
    last_used: u16,
}

impl DriverQueue {
    /// Bytes that the rings of a queue of `size` entries take.
    #[must_use]
    pub fn ring_bytes(size: u16) -> u64 {
        let size = u64::from(size);
        (16 * size + 6 + 2 * size).next_multiple_of(4) + 6 + 8 * size
    }

    /// Puts empty rings at guest address `start`, a multiple of 16; `size` is a power of two.
    #[must_use]
    pub fn new(memory: Arc<GuestMemoryMmap>, start: u64, size: u16) -> Self {
        let bytes = usize::try_from(Self::ring_bytes(size)).expect("rings are small");
        memory
            .write_slice(&vec![0; bytes], GuestAddress(start))
            .expect(IN_MEMORY);
        Self {
            memory,
            size,
            start,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            next_avail: 0,
            kicked: 0,
            last_used: 0,
        }
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest addresses of the descriptor table, the available ring and the used ring.
    #[must_use]
    pub fn addresses(&self) -> [u64; 3] {
        let avail = self.start + 16 * u64::from(self.size);
        let used = (avail + 6 + 2 * u64::from(self.size)).next_multiple_of(4);
        [self.start, avail, used]
    }

    /// The device's side, as a transport sets it up, with or without `VIRTIO_RING_F_EVENT_IDX`.
    #[must_use]
    pub fn device_side(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        let [desc, avail, used] = self.addresses().map(GuestAddress);
        queue.try_set_desc_table_address(desc).expect("aligned");
        queue.try_set_avail_ring_address(avail).expect("aligned");
        queue.try_set_used_ring_address(used).expect("aligned");
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    /// Makes a chain of `buffers` available; returns its head, `None` when there are not enough
    /// descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        if buffers.is_empty() || buffers.len() > self.free.len() {
            return None;
        }
        let taken = self.free.split_off(self.free.len() - buffers.len());
        for (position, (&index, buffer)) in taken.iter().zip(buffers).enumerate() {
            self.write_descriptor(self.start, index, buffer, taken.get(position + 1).copied());
        }
        Some(self.offer(taken))
    }

    /// The same by one indirect descriptor; its table is written at guest address `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        let index = self.free.pop()?;
        let len = u16::try_from(buffers.len()).ok()?;
        for (position, buffer) in (0..len).zip(buffers) {
            self.write_descriptor(
                table,
                position,
                buffer,
                Some(position + 1).filter(|&next| next < len),
            );
        }
        let indirect = flags(VRING_DESC_F_INDIRECT);
        self.write_raw(
            self.start,
            index,
            Descriptor::new(table, u32::from(len) * 16, indirect, 0),
        );
        Some(self.offer(vec![index]))
    }

    /// The next chain that the device has returned: its head and the bytes written to it.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        let used = self.addresses()[2];
        if self.load(used + 2) == self.last_used {
            return None;
        }
        let element = used + 4 + 8 * u64::from(self.last_used % self.size);
        let head: u32 = self.memory.read_obj(GuestAddress(element)).expect(IN_MEMORY);
        let len: u32 = self.memory.read_obj(GuestAddress(element + 4)).expect(IN_MEMORY);
        self.last_used = self.last_used.wrapping_add(1);
        let head = u16::try_from(head).expect("the device returns heads that it was given");
        self.free.append(&mut self.chains[usize::from(head)]);
        Some((head, len))
    }

    /// Asks for a signal at the next chain that the device returns (`used_event`).
    pub fn ask_for_signal(&mut self) {
        let [_, avail, _] = self.addresses();
        self.store(avail + 4 + 2 * u64::from(self.size), self.last_used);
    }

    /// Whether the device wants to hear of what was added since the last call (`avail_event`).
    pub fn wants_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let event = self.load(self.addresses()[2] + 4 + 8 * u64::from(self.size));
        let added = self.next_avail.wrapping_sub(self.kicked);
        let wants = self.next_avail.wrapping_sub(event).wrapping_sub(1) < added;
        self.kicked = self.next_avail;
        wants
    }

    /// Writes any index into the available ring, as a broken driver would.
    pub fn corrupt_avail_index(&mut self, index: u16) {
        let [_, avail, _] = self.addresses();
        self.store(avail + 2, index);
    }

    /// Descriptors that are not in use.
    #[must_use]
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    fn offer(&mut self, taken: Vec<u16>) -> u16 {
        let head = taken[0];
        self.chains[usize::from(head)] = taken;
        let [_, avail, _] = self.addresses();
        self.store(avail + 4 + 2 * u64::from(self.next_avail % self.size), head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.store(avail + 2, self.next_avail);
        head
    }

    fn write_descriptor(&self, table: u64, index: u16, buffer: &Buffer, next: Option<u16>) {
        let mut bits = if buffer.writable { VRING_DESC_F_WRITE } else { 0 };
        bits |= if next.is_some() { VRING_DESC_F_NEXT } else { 0 };
        let descriptor = Descriptor::new(buffer.address, buffer.len, flags(bits), next.unwrap_or(0));
        self.write_raw(table, index, descriptor);
    }

    fn write_raw(&self, table: u64, index: u16, descriptor: Descriptor) {
        let address = GuestAddress(table + 16 * u64::from(index));
        self.memory
            .write_obj(RawDescriptor::from(descriptor), address)
            .expect(IN_MEMORY);
    }

    fn store(&self, address: u64, value: u16) {
        self.memory
            .store(value, GuestAddress(address), Ordering::Release)
            .expect(IN_MEMORY);
    }

    fn load(&self, address: u64) -> u16 {
        self.memory
            .load(GuestAddress(address), Ordering::Acquire)
            .expect(IN_MEMORY)
    }
}

fn flags(bits: u32) -> u16 {
    u16::try_from(bits).expect("descriptor flags have 16 bits")
}
