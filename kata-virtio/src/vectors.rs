//! Guest memory handed to the kernel by address, for the devices that move bytes between it and a
//! descriptor without a copy of their own.
//!
//! Owns addresses of guest memory (as `iovec`s) and the system calls that take them and return when they
//! are done: `preadv`, `pwritev`, `writev`. Knows neither requests nor frames nor queues. What it upholds:
//!
//! - Addresses come from [`Vectors::load`] alone, which finds each in guest memory or refuses all.
//! - A [`Vectors`] keeps the guest memory mapped that its addresses are in.
//! - Bytes that are not the guest's are in a list only while one call lasts.
//!
//! The kernel copies to and from guest memory while the guest may change it. No Rust reference to that
//! memory ever exists, so that is no data race of this program. What must not change between a look at it
//! and its use is copied out first ([`Vectors::empty`]).
#![expect(
    unsafe_code,
    reason = "preadv, pwritev and writev take addresses, and guest memory must not become a slice"
)]

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, Permissions};

use crate::Memory;

/// Most stretches that one system call takes (`UIO_MAXIOV`, uapi linux/uio.h).
pub(crate) const VECTORS_MAX: usize = 1024;

unsafe extern "C" {
    fn preadv(fd: c_int, vectors: *const Vector, count: c_int, offset: i64) -> isize;
    fn pwritev(fd: c_int, vectors: *const Vector, count: c_int, offset: i64) -> isize;
    fn writev(fd: c_int, vectors: *const Vector, count: c_int) -> isize;
}

/// `struct iovec` (readv(2)).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Vector {
    address: *mut c_void,
    bytes: usize,
}

/// The buffers of one request or frame, as the kernel takes them; kept between those for its allocation.
#[derive(Debug, Default)]
pub(crate) struct Vectors {
    list: Vec<Vector>,
    /// Those before it are done.
    first: usize,
    /// Keeps what the list points to.
    memory: Option<Arc<Memory>>,
}

// SAFETY: the addresses belong to the mapping that `memory` keeps, which is as good on any thread.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Looks up `parts` of guest memory: address, and bytes.
    ///
    /// # Errors
    /// When they are not in it; nothing is kept then.
    pub(crate) fn load(
        &mut self,
        memory: &Arc<Memory>,
        parts: &[(GuestAddress, usize)],
    ) -> Result<(), GuestMemoryError> {
        self.clear();
        self.look_up(memory, parts).inspect_err(|_| self.list.clear())?;
        self.memory = Some(Arc::clone(memory));
        Ok(())
    }

    fn look_up(&mut self, memory: &Memory, parts: &[(GuestAddress, usize)]) -> Result<(), GuestMemoryError> {
        for &(address, len) in parts {
            for slice in GuestMemory::get_slices(memory, address, len, Permissions::ReadWrite)? {
                let slice = slice?;
                self.list.push(Vector {
                    address: slice.ptr_guard_mut().as_ptr().cast(),
                    bytes: slice.len(),
                });
            }
        }
        Ok(())
    }

    /// Forgets the buffers.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.first = 0;
        self.memory = None;
    }

    /// Whether nothing is left to do.
    pub(crate) fn is_done(&self) -> bool {
        self.rest().is_empty()
    }

    /// Whether all addresses and lengths are multiples of `unit`.
    pub(crate) fn aligned(&self, unit: usize) -> bool {
        let aligned =
            |vector: &Vector| vector.address.addr().is_multiple_of(unit) && vector.bytes.is_multiple_of(unit);
        self.rest().iter().all(aligned)
    }

    /// Takes note that the first `bytes` are done.
    pub(crate) fn advance(&mut self, mut bytes: usize) {
        while let Some(vector) = self.list.get_mut(self.first) {
            let done = vector.bytes.min(bytes);
            vector.address = vector.address.wrapping_byte_add(done);
            vector.bytes -= done;
            bytes -= done;
            if vector.bytes > 0 {
                return;
            }
            self.first += 1;
        }
    }

    fn rest(&self) -> &[Vector] {
        self.list.get(self.first..).unwrap_or_default()
    }

    /// Reads from `offset` of the file, once; returns how many bytes came.
    ///
    /// # Errors
    /// What preadv(2) says.
    pub(crate) fn read(&self, file: &File, offset: u64) -> io::Result<usize> {
        let (rest, count, offset) = (self.rest(), self.call_count()?, position(offset)?);
        // SAFETY: `rest` has `count` elements, whose stretches of mapped memory `self.memory` keeps, and
        // which no Rust reference points into.
        let read = unsafe { preadv(file.as_raw_fd(), rest.as_ptr(), count, offset) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Writes at `offset` of the file, once; returns how many bytes went.
    ///
    /// # Errors
    /// What pwritev(2) says.
    pub(crate) fn write(&self, file: &File, offset: u64) -> io::Result<usize> {
        let (rest, count, offset) = (self.rest(), self.call_count()?, position(offset)?);
        // SAFETY: as in `read`; here the kernel only reads from the stretches.
        let written = unsafe { pwritev(file.as_raw_fd(), rest.as_ptr(), count, offset) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Writes `head` and behind it what is left, once and as one message; returns how many bytes went.
    /// There must be fewer than [`VECTORS_MAX`] stretches.
    ///
    /// # Errors
    /// What writev(2) says.
    pub(crate) fn send(&mut self, fd: BorrowedFd<'_>, head: &[u8]) -> io::Result<usize> {
        let count = c_int::try_from(self.count() + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        let first = Vector {
            address: head.as_ptr().cast_mut().cast(),
            bytes: head.len(),
        };
        self.list.insert(self.first, first);
        let rest = self.rest();
        // SAFETY: `rest` has `count` elements, which the kernel only reads from: the first is `head`, which
        // is borrowed until the end of the call, the others are as in `read`.
        let sent = unsafe { writev(fd.as_raw_fd(), rest.as_ptr(), count) };
        let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error());
        self.list.remove(self.first);
        sent
    }

    /// Bytes that are left.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = self.rest().iter().map(|vector| vector.bytes);
        bytes.map(|bytes| u64::try_from(bytes).unwrap_or(u64::MAX)).sum()
    }

    /// Copies to the first `bytes.len()` bytes that are left, or to all, and takes note of it.
    pub(crate) fn fill(&mut self, mut bytes: &[u8]) {
        while let Some((vector, (now, later))) =
            self.next_of(bytes.len()).map(|(v, n)| (v, bytes.split_at(n)))
        {
            // SAFETY: `now` is no longer than the stretch, which is mapped, and which no slice overlaps.
            unsafe {
                vector
                    .address
                    .cast::<u8>()
                    .copy_from_nonoverlapping(now.as_ptr(), now.len())
            };
            self.advance(now.len());
            bytes = later;
        }
    }

    /// Copies the first `bytes.len()` bytes that are left, or all, and takes note of it.
    pub(crate) fn empty(&mut self, mut bytes: &mut [u8]) {
        while let Some((vector, count)) = self.next_of(bytes.len()) {
            let (now, later) = bytes.split_at_mut(count);
            // SAFETY: `now` is no longer than the stretch, which is mapped, and which no slice overlaps.
            unsafe {
                vector
                    .address
                    .cast::<u8>()
                    .copy_to_nonoverlapping(now.as_mut_ptr(), now.len())
            };
            self.advance(count);
            bytes = later;
        }
    }

    /// The next stretch, and how many of `most` bytes are in it.
    fn next_of(&self, most: usize) -> Option<(Vector, usize)> {
        let vector = *self.rest().first()?;
        Some((vector, vector.bytes.min(most))).filter(|_| most > 0)
    }

    /// Stretches that are left.
    pub(crate) fn count(&self) -> usize {
        self.rest().len()
    }

    /// The array of `iovec`s that are left, as long as nothing else is done with them.
    pub(crate) fn as_ptr(&self) -> *const c_void {
        self.rest().as_ptr().cast()
    }

    fn call_count(&self) -> io::Result<c_int> {
        c_int::try_from(self.count()).map_err(|_| io::ErrorKind::InvalidInput.into())
    }
}

fn position(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The memory that a device last worked in, kept so that addresses in it can be.
#[derive(Debug, Default)]
pub(crate) struct Kept(Option<Arc<Memory>>);

impl Kept {
    /// This memory, as it can be shared.
    pub(crate) fn keep(&mut self, memory: &Memory) -> Arc<Memory> {
        match &self.0 {
            Some(kept) if same(kept, memory) => Arc::clone(kept),
            _ => Arc::clone(self.0.insert(Arc::new(memory.clone()))),
        }
    }

    /// Keeps it no longer.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }
}

/// Whether two memories are the same mappings: only then can one be kept for the other.
fn same(one: &Memory, other: &Memory) -> bool {
    one.num_regions() == other.num_regions() && one.iter().zip(other.iter()).all(|(a, b)| std::ptr::eq(a, b))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use vm_memory::Bytes;

    use super::*;

    fn memory(bytes: usize) -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), bytes)]).unwrap()
    }

    #[test]
    fn a_list_that_cannot_be_found_leaves_nothing_behind() {
        let memory = Arc::new(memory(0x2000));
        let mut vectors = Vectors::default();
        let good = (GuestAddress(0x1000), 16);
        for bad in [(0x1ff8, 9), (0x2000, 1), (u64::MAX - 3, 64)] {
            vectors.load(&memory, &[good]).unwrap();
            let (address, len) = bad;
            let refused = vectors.load(&memory, &[good, (GuestAddress(address), len)]);
            assert!(refused.is_err() && vectors.is_done(), "{bad:x?}");
            assert_eq!(Arc::strong_count(&memory), 1, "{bad:x?}");
        }
    }

    #[test]
    fn a_message_is_its_head_and_what_is_left_and_can_be_sent_again() {
        let memory = Arc::new(memory(0x2000));
        memory.write_slice(b"0123456789", GuestAddress(0x1000)).unwrap();
        let mut vectors = Vectors::default();
        let parts = [(0x1000, 2), (0x1002, 3), (0x1005, 5)].map(|(at, len)| (GuestAddress(at), len));
        vectors.load(&memory, &parts).unwrap();
        let (here, there) = std::os::unix::net::UnixDatagram::pair().unwrap();
        for (skipped, left) in [
            (0, "0123456789"),
            (1, "123456789"),
            (1, "23456789"),
            (4, "6789"),
            (3, "9"),
        ] {
            vectors.advance(skipped);
            for head in ["head ", ""] {
                let sent = vectors.send(here.as_fd(), head.as_bytes()).unwrap();
                let mut message = [0; 32];
                let taken = there.recv(&mut message).unwrap();
                assert_eq!(
                    (sent, &message[..taken]),
                    (taken, format!("{head}{left}").as_bytes())
                );
            }
        }
        vectors.advance(1);
        assert!(vectors.is_done());
    }

    #[test]
    fn a_memory_is_kept_until_there_is_another() {
        let (first, second) = (memory(0x1000), memory(0x1000));
        let mut kept = Kept::default();
        let one = kept.keep(&first);
        assert!(Arc::ptr_eq(&one, &kept.keep(&first.clone())));
        let other = kept.keep(&second);
        assert!(!Arc::ptr_eq(&one, &other) && same(&other, &second) && !same(&one, &second));
        kept.forget();
        assert_eq!((Arc::strong_count(&one), Arc::strong_count(&other)), (1, 1));
    }
}
