//! Guest memory handed to the kernel: the one place of the device that is not safe Rust.
//!
//! Owns addresses of guest memory (as `iovec`s) and the system calls that take them: `preadv`, `pwritev`
//! and io_uring. Knows neither requests nor queues. What it upholds:
//!
//! - A [`Vectors`] keeps the guest memory mapped that its addresses are in.
//! - While a ring works on a [`Vectors`], the ring owns it, unmoved and unchanged; a ring that ends waits
//!   for what the kernel was given; what was only started never gets there.
//!
//! The kernel copies to and from guest memory while the guest may change it. No Rust reference to that
//! memory ever exists, so that is no data race of this program.
#![expect(
    unsafe_code,
    reason = "preadv, pwritev and io_uring take addresses, and guest memory must not become a slice"
)]

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use vm_memory::{GuestMemory, GuestMemoryBackend, GuestMemoryError, Permissions};

use super::request::Part;
use crate::Memory;

/// `RWF_DSYNC` (uapi linux/fs.h): a write that is durable when it is done.
const DURABLE: i32 = 2;

unsafe extern "C" {
    fn preadv(fd: c_int, vectors: *const Vector, count: c_int, offset: i64) -> isize;
    fn pwritev(fd: c_int, vectors: *const Vector, count: c_int, offset: i64) -> isize;
}

/// `struct iovec` (readv(2)).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Vector {
    address: *mut c_void,
    bytes: usize,
}

/// The buffers of one request, as the kernel takes them; kept between requests for its allocation.
#[derive(Debug, Default)]
pub(super) struct Vectors {
    list: Vec<Vector>,
    /// Those before it are done.
    first: usize,
    /// Keeps what the list points to.
    memory: Option<Arc<Memory>>,
}

// SAFETY: the addresses belong to the mapping that `memory` keeps, which is as good on any thread.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Looks up `parts` of guest memory.
    ///
    /// # Errors
    /// When they are not in it; nothing is kept then.
    pub(super) fn load(&mut self, memory: &Arc<Memory>, parts: &[Part]) -> Result<(), GuestMemoryError> {
        self.clear();
        for &(address, len) in parts {
            for slice in GuestMemory::get_slices(&**memory, address, len, Permissions::ReadWrite)? {
                let slice = slice.inspect_err(|_| self.list.clear())?;
                self.list.push(Vector {
                    address: slice.ptr_guard_mut().as_ptr().cast(),
                    bytes: slice.len(),
                });
            }
        }
        self.memory = Some(Arc::clone(memory));
        Ok(())
    }

    /// Forgets the buffers.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.first = 0;
        self.memory = None;
    }

    /// Whether nothing is left to do.
    pub(super) fn is_done(&self) -> bool {
        self.rest().is_empty()
    }

    /// Whether all addresses and lengths are multiples of `unit`.
    pub(super) fn aligned(&self, unit: usize) -> bool {
        let aligned =
            |vector: &Vector| vector.address.addr().is_multiple_of(unit) && vector.bytes.is_multiple_of(unit);
        self.rest().iter().all(aligned)
    }

    /// Takes note that the first `bytes` are done.
    pub(super) fn advance(&mut self, mut bytes: usize) {
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
    pub(super) fn read(&self, file: &File, offset: u64) -> io::Result<usize> {
        let (rest, count, offset) = (self.rest(), self.count()?, position(offset)?);
        // SAFETY: `rest` has `count` elements, whose stretches of mapped memory `self.memory` keeps, and
        // which no Rust reference points into.
        let read = unsafe { preadv(file.as_raw_fd(), rest.as_ptr(), count, offset) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Writes at `offset` of the file, once; returns how many bytes went.
    ///
    /// # Errors
    /// What pwritev(2) says.
    pub(super) fn write(&self, file: &File, offset: u64) -> io::Result<usize> {
        let (rest, count, offset) = (self.rest(), self.count()?, position(offset)?);
        // SAFETY: as in `read`; here the kernel only reads from the stretches.
        let written = unsafe { pwritev(file.as_raw_fd(), rest.as_ptr(), count, offset) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Bytes that are left.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = self.rest().iter().map(|vector| vector.bytes);
        bytes.map(|bytes| u64::try_from(bytes).unwrap_or(u64::MAX)).sum()
    }

    /// Copies to the first `bytes.len()` bytes that are left, or to all, and takes note of it.
    pub(super) fn fill(&mut self, mut bytes: &[u8]) {
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
    pub(super) fn empty(&mut self, mut bytes: &mut [u8]) {
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

    fn count(&self) -> io::Result<c_int> {
        c_int::try_from(self.rest().len()).map_err(|_| io::ErrorKind::InvalidInput.into())
    }
}

fn position(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Whether two memories are the same mappings: only then can one be kept for the other.
pub(super) fn same(one: &Memory, other: &Memory) -> bool {
    one.num_regions() == other.num_regions() && one.iter().zip(other.iter()).all(|(a, b)| std::ptr::eq(a, b))
}

/// What a ring is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Fill the vectors from this offset.
    Read {
        /// In bytes.
        offset: u64,
    },
    /// Write the vectors at this offset.
    Write {
        /// In bytes.
        offset: u64,
        /// It is durable when it is done.
        durable: bool,
    },
    /// `fdatasync`.
    Flush,
}

/// One io_uring for one file.
///
/// ```text
///   free ── start ──► waiting ── submit ──► owned by the kernel ── finished ──► free
/// ```
pub(super) struct Ring {
    ring: ManuallyDrop<IoUring>,
    /// What the kernel works on, by token.
    busy: ManuallyDrop<Vec<Option<Vectors>>>,
    in_flight: usize,
    unsubmitted: bool,
}

impl Ring {
    /// A ring for `file` that takes `size` tasks at once; `event` becomes readable when some are finished.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or this process may not use it.
    pub(super) fn new(file: &File, event: BorrowedFd<'_>, size: u16) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(size.into())?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring: ManuallyDrop::new(ring),
            busy: ManuallyDrop::new((0..size).map(|_| None).collect()),
            in_flight: 0,
            unsubmitted: false,
        })
    }

    /// Tasks that are not finished.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Takes a task; it begins with the next [`submit`](Self::submit).
    ///
    /// # Errors
    /// The vectors, when the token is busy or there is no room.
    pub(super) fn start(&mut self, token: u16, task: Task, vectors: Vectors) -> Result<(), Vectors> {
        let Some(place @ None) = self.busy.get_mut(usize::from(token)) else {
            return Err(vectors);
        };
        let Ok(count) = u32::try_from(vectors.rest().len()) else {
            return Err(vectors);
        };
        let vectors = place.insert(vectors);
        let list = vectors.rest().as_ptr().cast();
        let entry: squeue::Entry = match task {
            Task::Read { offset } => opcode::Readv::new(Fixed(0), list, count).offset(offset).build(),
            Task::Write { offset, durable } => opcode::Writev::new(Fixed(0), list, count)
                .offset(offset)
                .rw_flags(if durable { DURABLE } else { 0 })
                .build(),
            Task::Flush => opcode::Fsync::new(Fixed(0)).flags(FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(token.into());
        // SAFETY: the list and the memory behind it are in `busy`, which gives them out only when the
        // kernel has finished this token.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => {
                self.in_flight += 1;
                self.unsubmitted = true;
                Ok(())
            }
            Err(_full) => Err(place.take().unwrap_or_default()),
        }
    }

    /// Lets the kernel begin with what was started.
    ///
    /// # Errors
    /// When it does not; the tasks stay.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while self.unsubmitted {
            match self.ring.submit() {
                Ok(_) => self.unsubmitted = !self.ring.submission().is_empty(),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// The next task that is finished: its token, how many bytes it moved, and its vectors.
    pub(super) fn finished(&mut self) -> Option<(u16, io::Result<usize>, Vectors)> {
        let entry = self.ring.completion().next()?;
        let token = u16::try_from(entry.user_data()).ok()?;
        let vectors = self.busy.get_mut(usize::from(token))?.take()?;
        self.in_flight -= 1;
        let result = entry.result();
        let moved = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        Some((token, moved, vectors))
    }

    /// Tasks that were started and not submitted.
    pub(super) fn waiting(&mut self) -> usize {
        self.ring.submission().len()
    }

    /// Waits until something of what was submitted is finished. Submits nothing, so that it needs nothing
    /// of the kernel that could be lacking.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: without an argument and with nothing to submit, the kernel reads no memory of ours.
        let woken = unsafe { self.ring.submitter().enter::<()>(0, 1, flags, None) };
        match woken {
            Ok(_) => Ok(()),
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    /// Waits for everything that was submitted, whatever comes of it; the rest never reaches the kernel if
    /// the ring ends now.
    ///
    /// # Errors
    /// When it cannot be waited for: the kernel may still work on it.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        while self.in_flight > self.waiting() {
            let waited = self.wait();
            let mut some = false;
            while self.finished().is_some() {
                some = true;
            }
            // The kernel may have waited for room for what is finished now.
            if !some {
                waited?;
            }
        }
        Ok(())
    }

    /// Whether finished tasks make the event readable from now on.
    pub(super) fn signal(&mut self, wanted: bool) {
        let completions = self.ring.completion();
        match wanted {
            true => completions.enable_eventfd(),
            false => completions.disable_eventfd(),
        }
    }

    /// Whether finished tasks wait to be taken.
    pub(super) fn has_finished(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Err(cause) = self.settle() {
            // The kernel may still write there: that memory is never given back.
            log::error!("block: {} requests are abandoned: {cause}", self.in_flight);
            return;
        }
        // SAFETY: nothing uses it after the drop.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
        // SAFETY: the kernel has finished all of it that it was ever given, and nothing uses it after the drop.
        unsafe { ManuallyDrop::drop(&mut self.busy) };
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
