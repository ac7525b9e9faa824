//! Guest memory handed to io_uring: the one place of the device that is not safe Rust.
//!
//! Owns the ring and what the kernel has of it. Knows neither requests nor queues; the addresses of guest
//! memory are those of [`Vectors`]. What it upholds: while a ring works on a [`Vectors`], the ring owns it,
//! unmoved and unchanged, and keeps the file open that the task is for; a ring that ends waits for what the
//! kernel was given; what was only started never gets there.
#![expect(
    unsafe_code,
    reason = "io_uring takes addresses, which stay its own until it has finished"
)]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{EnterFlags, IoUring, opcode, squeue};

use super::disk::Target;
use crate::vectors::Vectors;

/// `RWF_DSYNC` (uapi linux/fs.h): a write that is durable when it is done.
const DURABLE: i32 = 2;

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

/// What the kernel works on: memory, and the file where it is not the ring's own.
type Busy = (Vectors, Option<Arc<File>>);

/// One io_uring, for one file of its own or for any.
///
/// ```text
///   free ── start ──► waiting ── submit ──► owned by the kernel ── finished ──► free
/// ```
pub(super) struct Ring {
    ring: ManuallyDrop<IoUring>,
    /// What the kernel works on, by token.
    busy: ManuallyDrop<Vec<Option<Busy>>>,
    in_flight: usize,
    unsubmitted: bool,
}

impl Ring {
    /// A ring, for `file` if there is one, that takes `size` tasks at once; `event` becomes readable when some are
    /// finished.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or this process may not use it.
    pub(super) fn new(file: Option<&File>, event: BorrowedFd<'_>, size: u16) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(size.into())?;
        if let Some(file) = file {
            ring.submitter().register_files(&[file.as_raw_fd()])?;
        }
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
    pub(super) fn start(&mut self, token: u16, target: Target, vectors: Vectors) -> Result<(), Vectors> {
        let Some(place @ None) = self.busy.get_mut(usize::from(token)) else {
            return Err(vectors);
        };
        let Ok(count) = u32::try_from(vectors.count()) else {
            return Err(vectors);
        };
        let (task, file) = match target {
            Target::Own(task) => (task, None),
            Target::Extent(file, task) => (task, Some(file)),
        };
        let (vectors, file) = place.insert((vectors, file));
        let list = vectors.as_ptr().cast();
        let (fd, flags) = match file {
            // The number of the only file that is registered.
            None => (Fd(0), squeue::Flags::FIXED_FILE),
            Some(file) => (Fd(file.as_raw_fd()), squeue::Flags::empty()),
        };
        let entry: squeue::Entry = match task {
            Task::Read { offset } => opcode::Readv::new(fd, list, count).offset(offset).build(),
            Task::Write { offset, durable } => opcode::Writev::new(fd, list, count)
                .offset(offset)
                .rw_flags(if durable { DURABLE } else { 0 })
                .build(),
            Task::Flush => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.flags(flags).user_data(token.into());
        // SAFETY: the list, the memory behind it and the file are in `busy` or are the ring's own; `busy` gives
        // them out only when the kernel has finished this token.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => {
                self.in_flight += 1;
                self.unsubmitted = true;
                Ok(())
            }
            Err(_full) => Err(place.take().map(|(vectors, _)| vectors).unwrap_or_default()),
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
        let (vectors, _file) = self.busy.get_mut(usize::from(token))?.take()?;
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
