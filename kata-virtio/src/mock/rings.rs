//! A guest's memory with the queues of one device in it.
//!
//! Owns where buffers are; knows nothing of what they hold, nor who serves the queues. Places are handed
//! out one after the other, and from the beginning again after [`MEMORY_BYTES`]: whoever keeps a buffer
//! for longer than that finds others' bytes in it.
#![expect(
    clippy::expect_used,
    reason = "a driver that cannot reach its own memory is a broken test"
)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::ring::{Buffer, DriverQueue};
use crate::Memory;

/// The guest's memory: one region at guest address 0, in a memfd.
pub const MEMORY_BYTES: usize = 64 << 20;

const FIRST_RING: u64 = 0x1000;
const IN_MEMORY: &str = "the mock's buffers are in guest memory";

/// A chain that was offered to the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its first descriptor, which names it when it is used.
    pub head: u16,
    /// Its buffers, those that the device reads first.
    pub buffers: Vec<Buffer>,
}

/// See the module.
#[derive(Debug)]
pub struct Rings {
    memory: Arc<Memory>,
    file: File,
    queues: Vec<DriverQueue>,
    start: u64,
    next: u64,
}

impl Rings {
    /// Memory, and a queue of each of these sizes in it.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(sizes: &[u16]) -> io::Result<Self> {
        let file = rustix::fs::memfd_create("mock-rings", rustix::fs::MemfdFlags::CLOEXEC)?;
        let file = File::from(file);
        file.set_len(u64::try_from(MEMORY_BYTES).unwrap_or(u64::MAX))?;
        let region = (
            GuestAddress(0),
            MEMORY_BYTES,
            Some(FileOffset::new(file.try_clone()?, 0)),
        );
        let memory = Memory::from_ranges_with_files([region]).map_err(io::Error::other)?;
        let mut rings = Self {
            memory: Arc::new(memory),
            file,
            queues: Vec::new(),
            start: 0,
            next: 0,
        };
        rings.lay_out(sizes);
        Ok(rings)
    }

    /// Makes all queues empty again, as a driver does after a reset.
    pub fn renew(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(DriverQueue::size).collect();
        self.lay_out(&sizes);
    }

    fn lay_out(&mut self, sizes: &[u16]) {
        self.queues.clear();
        self.start = FIRST_RING;
        for &size in sizes {
            let queue = DriverQueue::new(Arc::clone(&self.memory), self.start, size);
            self.queues.push(queue);
            self.start = (self.start + DriverQueue::ring_bytes(size)).next_multiple_of(0x1000);
        }
        self.next = self.start;
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }

    /// The memfd behind it.
    #[must_use]
    pub fn memory_file(&self) -> &File {
        &self.file
    }

    /// A queue, by its number.
    ///
    /// # Panics
    /// When the device has no such queue.
    pub fn queue(&mut self, index: u16) -> &mut DriverQueue {
        &mut self.queues[usize::from(index)]
    }

    /// All queues.
    #[must_use]
    pub fn queues(&self) -> &[DriverQueue] {
        &self.queues
    }

    /// The address of `bytes` bytes of memory, a multiple of 16.
    ///
    /// # Panics
    /// When there is not so much memory.
    pub fn place(&mut self, bytes: u32) -> u64 {
        let end = u64::try_from(MEMORY_BYTES).expect("memory has an end");
        if self.next + u64::from(bytes) > end {
            self.next = self.start;
        }
        let place = self.next;
        self.next = (place + u64::from(bytes)).next_multiple_of(16);
        assert!(place + u64::from(bytes) <= end, "{IN_MEMORY}");
        place
    }

    /// Writes to memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect(IN_MEMORY);
    }

    /// Reads from memory.
    #[must_use]
    pub fn read(&self, address: u64, bytes: u32) -> Vec<u8> {
        let mut read = vec![0; usize::try_from(bytes).expect(IN_MEMORY)];
        self.memory
            .read_slice(&mut read, GuestAddress(address))
            .expect(IN_MEMORY);
        read
    }

    /// A new buffer with these bytes, for the device to read.
    pub fn readable(&mut self, bytes: &[u8]) -> Buffer {
        let len = u32::try_from(bytes.len()).expect(IN_MEMORY);
        let address = self.place(len);
        self.write(address, bytes);
        Buffer {
            address,
            len,
            writable: false,
        }
    }

    /// A new buffer of `len` bytes, all 0xee, for the device to write.
    pub fn writable(&mut self, len: u32) -> Buffer {
        let address = self.place(len);
        self.write(address, &vec![0xee; usize::try_from(len).expect(IN_MEMORY)]);
        Buffer {
            address,
            len,
            writable: true,
        }
    }

    /// Offers a chain of buffers with these bytes to read, followed by buffers of these sizes to write;
    /// `None` when there are not enough descriptors.
    pub fn offer(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Option<Chain> {
        let buffers = self.buffers(readable, writable);
        let head = self.queue(queue).add(&buffers)?;
        Some(Chain { head, buffers })
    }

    /// The same by one indirect descriptor.
    pub fn offer_indirect(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Option<Chain> {
        let buffers = self.buffers(readable, writable);
        let table = self.place(u32::try_from(16 * buffers.len()).expect(IN_MEMORY));
        let head = self.queue(queue).add_indirect(table, &buffers)?;
        Some(Chain { head, buffers })
    }

    /// The next chain that the device has returned: its head and the bytes written to it.
    pub fn used(&mut self, queue: u16) -> Option<(u16, u32)> {
        self.queue(queue).used()
    }

    /// The first `bytes` bytes of what the device wrote to a chain's buffers.
    #[must_use]
    pub fn written(&self, chain: &Chain, bytes: u32) -> Vec<u8> {
        let mut written = Vec::new();
        let mut left = bytes;
        for buffer in chain.buffers.iter().filter(|buffer| buffer.writable) {
            let len = left.min(buffer.len);
            written.append(&mut self.read(buffer.address, len));
            left -= len;
        }
        written
    }

    /// Writes any descriptor into a queue's table, as a broken driver would: `flags` and `next` as in
    /// VIRTIO 1.2 §2.7.5.
    pub fn forge(&mut self, queue: u16, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let [table, ..] = self.queue(queue).addresses();
        let descriptor = Descriptor::new(buffer.address, buffer.len, flags, next);
        self.memory
            .write_obj(
                RawDescriptor::from(descriptor),
                GuestAddress(table + 16 * u64::from(index)),
            )
            .expect(IN_MEMORY);
    }

    /// Makes any head available, behind the queue's back: afterwards it is good for such acts only.
    pub fn publish(&mut self, queue: u16, head: u16) {
        let size = self.queue(queue).size();
        let [_, avail, _] = self.queue(queue).addresses();
        let index: u16 = self.memory.read_obj(GuestAddress(avail + 2)).expect(IN_MEMORY);
        self.write(avail + 4 + 2 * u64::from(index % size), &head.to_le_bytes());
        self.write(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    fn buffers(&mut self, readable: &[&[u8]], writable: &[u32]) -> Vec<Buffer> {
        let mut buffers: Vec<Buffer> = readable.iter().map(|bytes| self.readable(bytes)).collect();
        buffers.extend(writable.iter().map(|&len| self.writable(len)));
        buffers
    }
}
