//! A request out of a descriptor chain (VIRTIO 1.2 §5.2.6).
//!
//! Owns the layout of a request and nothing else: what it finds are the driver's claims. Knows guest
//! memory, not the disk.
//!
//! ```text
//!   device reads:  type u32 · reserved u32 · sector u64 · data of a write …
//!   device writes: data of a read … · status u8
//! ```
//!
//! The driver may cut both halves into descriptors wherever it likes (§2.7.4.3), but all that the device
//! writes comes after all that it reads (§2.7.4.2).

use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions};

/// Bytes of a request's header.
const HEADER_BYTES: usize = 16;

/// Descriptors of one chain that are looked at: twice what [`super::layout`] offers as `seg_max`, since
/// drivers may use more, and half of what one system call takes (`UIO_MAXIOV`).
pub(super) const DESCRIPTORS_MAX: usize = 512;

/// A chain that holds no request, or no place for the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// Not even a header.
    #[error("header of {0} bytes")]
    Header(usize),
    /// Nowhere to write the status.
    #[error("no byte for the status")]
    Status,
    /// The status, or a descriptor, is not in guest memory.
    #[error("status outside of guest memory")]
    Outside,
    /// A buffer for the device to read behind one to write.
    #[error("a buffer to read behind a buffer to write")]
    Order,
    /// See [`DESCRIPTORS_MAX`].
    #[error("more than {DESCRIPTORS_MAX} descriptors")]
    TooLong,
    /// It ends in a loop, outside of its table, or is longer than 2³² bytes.
    #[error("the chain does not end")]
    Endless,
}

/// Bytes of the driver: address and length.
pub(super) type Part = (GuestAddress, usize);

/// See the module; kept between requests for its allocation.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// What is asked for (§5.2.6, `VIRTIO_BLK_T_*`).
    pub(super) kind: u32,
    /// The first sector, of 512 bytes.
    pub(super) sector: u64,
    /// Where the answer goes, a byte of guest memory.
    pub(super) status: GuestAddress,
    parts: Vec<Part>,
    /// How many of the parts are for the device to read.
    split: usize,
    readable_bytes: u64,
    writable_bytes: u64,
}

impl Request {
    /// Takes the request in `chain`.
    ///
    /// # Errors
    /// When there is none that could be answered.
    pub(super) fn load<M: GuestMemory>(
        &mut self,
        memory: &M,
        chain: DescriptorChain<&M>,
    ) -> Result<(), Malformed> {
        let mut header = Header::default();
        (self.split, self.readable_bytes, self.writable_bytes) = (0, 0, 0);
        self.parts.clear();
        let mut ended = false;
        for (seen, descriptor) in chain.enumerate() {
            if seen == DESCRIPTORS_MAX {
                return Err(Malformed::TooLong);
            }
            ended = !descriptor.has_next();
            let len = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
            match descriptor.is_write_only() {
                true => self.take_writable(descriptor.addr(), len),
                false if self.writable_bytes > 0 => return Err(Malformed::Order),
                false => {
                    let taken = header.take(memory, descriptor.addr(), len)?;
                    self.take_readable(descriptor.addr(), taken, len);
                }
            }
        }
        if !ended {
            return Err(Malformed::Endless);
        }
        (self.kind, self.sector) = header.parse()?;
        self.take_status(memory)
    }

    /// Data for the device to read.
    pub(super) fn readable(&self) -> &[Part] {
        self.parts.get(..self.split).unwrap_or_default()
    }

    /// Room for the device to write, without the status.
    pub(super) fn writable(&self) -> &[Part] {
        self.parts.get(self.split..).unwrap_or_default()
    }

    /// Bytes of [`readable`](Self::readable).
    pub(super) fn readable_bytes(&self) -> u64 {
        self.readable_bytes
    }

    /// Bytes of [`writable`](Self::writable).
    pub(super) fn writable_bytes(&self) -> u64 {
        self.writable_bytes
    }

    fn take_readable(&mut self, address: GuestAddress, taken: usize, len: usize) {
        let Some(left @ 1..) = len.checked_sub(taken) else {
            return;
        };
        self.parts.push((address.unchecked_add(count(taken)), left));
        self.readable_bytes += count(left);
        self.split = self.parts.len();
    }

    fn take_writable(&mut self, address: GuestAddress, len: usize) {
        if len > 0 {
            self.parts.push((address, len));
            self.writable_bytes += count(len);
        }
    }

    /// The status is the last byte of all.
    fn take_status<M: GuestMemory>(&mut self, memory: &M) -> Result<(), Malformed> {
        let last = self.parts.get_mut(self.split..).and_then(<[Part]>::last_mut);
        let (address, len) = last.ok_or(Malformed::Status)?;
        *len -= 1;
        self.status = address.checked_add(count(*len)).ok_or(Malformed::Outside)?;
        if *len == 0 {
            self.parts.pop();
        }
        self.writable_bytes -= 1;
        let inside = memory.check_range(self.status, 1, Permissions::Write);
        inside.then_some(()).ok_or(Malformed::Outside)
    }
}

/// The header, gathered from as many descriptors as it takes. It is copied once, then judged: the driver
/// can change it no more.
#[derive(Debug, Default)]
struct Header {
    bytes: [u8; HEADER_BYTES],
    filled: usize,
}

impl Header {
    /// Takes what is missing from a buffer; returns how much that was.
    fn take<M: GuestMemory>(
        &mut self,
        memory: &M,
        address: GuestAddress,
        len: usize,
    ) -> Result<usize, Malformed> {
        let taken = len.min(HEADER_BYTES - self.filled);
        let room = &mut self.bytes[self.filled..self.filled + taken];
        if taken > 0 && memory.read_slice(room, address).is_err() {
            return Err(Malformed::Header(self.filled));
        }
        self.filled += taken;
        Ok(taken)
    }

    fn parse(&self) -> Result<(u32, u64), Malformed> {
        let [a, b, c, d, _, _, _, _, sector @ ..] = self.bytes;
        if self.filled < HEADER_BYTES {
            return Err(Malformed::Header(self.filled));
        }
        Ok((u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector)))
    }
}

/// Lengths of one chain are below 2³² together.
fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
