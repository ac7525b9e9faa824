//! How requests reach the disk: at once in this thread, or through io_uring.
//!
//! ```text
//!                    ┌─ Plain: preadv, pwritev, fdatasync ───────────► done
//!   begin(task) ─────┤
//!                    └─ Ring: begun ── submit ──► in the kernel ──► finished()
//! ```
//!
//! Owns the disk and the choice between the two; knows no queues. What moves less than it should is
//! carried on with; a file that ends before its disk does is an error. What the kernel gives back undone
//! is carried out in this thread.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::kernel::{Ring, Task};
use crate::vectors::Vectors;

/// Whether the kernel has not carried a task out for reasons of its own, rather than the disk's: a signal,
/// a lack of room, or the end of the thread that submitted it, as after a pause.
fn is_given_back(cause: &io::Error) -> bool {
    let code = cause.raw_os_error();
    [Errno::INTR, Errno::AGAIN, Errno::CANCELED]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&code)
}

/// Requests that the kernel works on at the same time.
pub(super) const IN_FLIGHT_MAX: u16 = 128;

/// How requests reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// io_uring for direct I/O, where requests wait for the disk; plain where the page cache answers.
    #[default]
    Auto,
    /// io_uring; it is an error when this process may not use it.
    IoUring,
    /// System calls in the worker's thread, one request after the other.
    Plain,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Executor {
    pub(super) disk: Disk,
    ring: Option<Ring>,
    /// Tasks in the ring, by token.
    tasks: Vec<Task>,
    free: Vec<u16>,
    spare: Vec<Vectors>,
}

/// A task that the ring has finished.
#[derive(Debug)]
pub(super) struct Finished {
    /// What [`Executor::begin`] gave.
    pub(super) token: u16,
    /// Whether it succeeded.
    pub(super) result: io::Result<()>,
    /// Some of it was carried out in this thread.
    pub(super) here: bool,
}

/// What became of a task.
#[derive(Debug)]
pub(super) enum Begun {
    /// It is over.
    Done(io::Result<()>),
    /// It will be [`finished`](Executor::finished) under this token.
    Running(u16),
}

impl Executor {
    /// # Errors
    /// When `engine` is io_uring, and it cannot be had.
    pub(super) fn new(disk: Disk, engine: Engine, event: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = || Ring::new(disk.file().ok(), event, IN_FLIGHT_MAX);
        let ring = match engine {
            Engine::Plain => None,
            Engine::IoUring => Some(ring()?),
            // What the page cache has, a system call copies at once, and a ring has nothing to wait for.
            // Direct I/O waits for the disk: there the ring lets many requests wait together. The
            // benchmark `block` compares the two.
            Engine::Auto if !disk.direct => None,
            Engine::Auto => ring()
                .inspect_err(|cause| {
                    log::info!("block: no io_uring, requests are carried out in turn: {cause}")
                })
                .ok(),
        };
        Ok(Self {
            disk,
            ring,
            tasks: vec![Task::Flush; IN_FLIGHT_MAX.into()],
            free: (0..IN_FLIGHT_MAX).rev().collect(),
            spare: Vec::new(),
        })
    }

    /// Which of the two it is.
    pub(super) fn engine(&self) -> Engine {
        match self.ring {
            Some(_) => Engine::IoUring,
            None => Engine::Plain,
        }
    }

    /// Empty vectors, to be filled for a task.
    pub(super) fn vectors(&mut self) -> Vectors {
        self.spare.pop().unwrap_or_default()
    }

    /// Whether a task can be begun.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Tasks that are not finished.
    pub(super) fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, Ring::in_flight)
    }

    /// Begins a task; one for the ring waits for [`submit`](Self::submit).
    pub(super) fn begin(&mut self, task: Task, vectors: Vectors) -> Begun {
        if !self.disk.takes(&vectors) {
            return self.at_once(task, vectors, Disk::bounce);
        }
        let Some(ring) = &mut self.ring else {
            return self.at_once(task, vectors, Disk::carry_out);
        };
        // What is in more than one file is copied together in this thread.
        let Some(target) = self.disk.target(task, vectors.bytes()) else {
            return self.at_once(task, vectors, Disk::carry_out);
        };
        let Some(token) = self.free.pop() else {
            return self.at_once(task, vectors, Disk::carry_out);
        };
        match ring.start(token, target, vectors) {
            Ok(()) => {
                if let Some(place) = self.tasks.get_mut(usize::from(token)) {
                    *place = task;
                }
                Begun::Running(token)
            }
            Err(vectors) => {
                self.free.push(token);
                self.at_once(task, vectors, Disk::carry_out)
            }
        }
    }

    fn at_once(
        &mut self,
        task: Task,
        mut vectors: Vectors,
        carry_out: fn(&Disk, Task, &mut Vectors) -> io::Result<()>,
    ) -> Begun {
        let result = carry_out(&self.disk, task, &mut vectors);
        self.keep(vectors);
        Begun::Done(result)
    }

    /// Lets the kernel begin.
    ///
    /// # Errors
    /// When it does not; the tasks stay.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.ring.as_mut().map_or(Ok(()), Ring::submit)
    }

    /// The next task that is over.
    pub(super) fn finished(&mut self) -> Option<Finished> {
        let (token, moved, mut vectors) = self.ring.as_mut()?.finished()?;
        let task = self.tasks.get(usize::from(token)).copied().unwrap_or(Task::Flush);
        let (result, here) = self.conclude(task, moved, &mut vectors);
        self.free.push(token);
        self.keep(vectors);
        Some(Finished { token, result, here })
    }

    /// Carries out here what the kernel has left of a task; says whether it has left anything.
    fn conclude(
        &self,
        task: Task,
        moved: io::Result<usize>,
        vectors: &mut Vectors,
    ) -> (io::Result<()>, bool) {
        match moved {
            Ok(moved) => {
                let here =
                    task != Task::Flush && u64::try_from(moved).is_ok_and(|moved| moved < vectors.bytes());
                (self.disk.carry_on(task, moved, vectors), here)
            }
            Err(cause) if is_given_back(&cause) => (self.disk.carry_out(task, vectors), true),
            Err(cause) => (Err(cause), false),
        }
    }

    /// Gives all tasks up: waits for those that the kernel has, whatever comes of them, and never submits
    /// the others. Without a new ring for those that follow, they are carried out in this thread.
    ///
    /// # Errors
    /// When they cannot be waited for: the kernel may still work on them.
    pub(super) fn settle(&mut self, event: BorrowedFd<'_>) -> io::Result<()> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        ring.settle()?;
        if ring.waiting() > 0 {
            let fresh = Ring::new(self.disk.file().ok(), event, IN_FLIGHT_MAX);
            self.ring = fresh
                .inspect_err(|cause| {
                    log::warn!("block: no io_uring any more, requests are carried out in turn: {cause}");
                })
                .ok();
        }
        self.free = (0..IN_FLIGHT_MAX).rev().collect();
        Ok(())
    }

    /// Whether finished tasks make the event readable from now on.
    pub(super) fn signal(&mut self, wanted: bool) {
        if let Some(ring) = &mut self.ring {
            ring.signal(wanted);
        }
    }

    /// Whether finished tasks wait to be taken.
    pub(super) fn has_finished(&mut self) -> bool {
        self.ring.as_mut().is_some_and(Ring::has_finished)
    }

    fn keep(&mut self, mut vectors: Vectors) {
        vectors.clear();
        if self.spare.len() < usize::from(IN_FLIGHT_MAX) {
            self.spare.push(vectors);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::MemfdFlags;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::Memory;

    fn executor() -> (Executor, File, OwnedFd) {
        let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&[7; 4096], 0).unwrap();
        let disk = Disk::open(file.try_clone().unwrap(), false).unwrap();
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let executor = Executor::new(disk, Engine::IoUring, event.as_fd()).unwrap();
        (executor, file, event)
    }

    #[test]
    fn what_was_not_submitted_before_a_reset_never_reaches_the_disk() {
        let (mut executor, file, event) = executor();
        let before = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        for submitted in [0, 3] {
            for number in 0..IN_FLIGHT_MAX {
                let (vectors, _) = vectors();
                let offset = if number < submitted { 0 } else { 512 };
                let begun = executor.begin(
                    Task::Write {
                        offset,
                        durable: false,
                    },
                    vectors,
                );
                assert!(matches!(begun, Begun::Running(_)), "{begun:?}");
                if number + 1 == submitted {
                    executor.submit().unwrap();
                }
            }
            executor.settle(event.as_fd()).unwrap();
            assert!(executor.in_flight() == 0 && executor.finished().is_none());
            let (vectors, memory) = vectors();
            let begun = executor.begin(Task::Read { offset: 512 }, vectors);
            assert!(matches!(begun, Begun::Running(_)), "{begun:?}");
            executor.submit().unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while executor.finished().is_none() {
                assert!(Instant::now() < deadline);
            }
            assert_eq!(memory.read_obj::<[u8; 32]>(GuestAddress(0)).unwrap(), [7; 32]);
            let after = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            assert_eq!((submitted, &after[512..]), (submitted, &before[512..]));
        }
    }

    fn vectors() -> (Vectors, Arc<Memory>) {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
        let mut vectors = Vectors::default();
        vectors.load(&memory, &[(GuestAddress(0), 512)]).unwrap();
        (vectors, memory)
    }

    #[test]
    fn what_was_begun_of_an_extent_is_finished_after_it_was_taken_away() {
        let (_, file, event) = executor();
        let shelf = crate::block::Shelf::new();
        let extent = shelf.add(file).unwrap();
        let disk = Disk::of_shelf(shelf.clone());
        let mut executor = Executor::new(disk, Engine::IoUring, event.as_fd()).unwrap();
        let task = Task::Read {
            offset: extent.offset + 512,
        };
        let (first, memory) = vectors();
        let begun = executor.begin(task, first);
        assert!(matches!(begun, Begun::Running(_)), "{begun:?}");
        shelf.remove(extent.offset).unwrap();
        let (late, _) = vectors();
        let begun = executor.begin(task, late);
        assert!(matches!(begun, Begun::Done(Err(_))), "{begun:?}");
        executor.submit().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let finished = loop {
            if let Some(finished) = executor.finished() {
                break finished;
            }
            assert!(Instant::now() < deadline);
        };
        assert!(finished.result.is_ok() && !finished.here, "{finished:?}");
        assert_eq!(memory.read_obj::<[u8; 32]>(GuestAddress(0)).unwrap(), [7; 32]);
    }

    #[test]
    fn what_the_kernel_gives_back_is_carried_out_here() {
        let (executor, _, _) = executor();
        for cause in [Errno::INTR, Errno::AGAIN, Errno::CANCELED] {
            let (mut vectors, memory) = vectors();
            let outcome = executor.conclude(Task::Read { offset: 0 }, Err(cause.into()), &mut vectors);
            assert!(matches!(outcome, (Ok(()), true)), "{outcome:?}");
            assert_eq!(memory.read_obj::<[u8; 32]>(GuestAddress(0)).unwrap(), [7; 32]);
        }
        let (mut vectors, _) = vectors();
        let outcome = executor.conclude(Task::Read { offset: 0 }, Err(Errno::IO.into()), &mut vectors);
        assert!(matches!(outcome, (Err(_), false)), "{outcome:?}");
    }
}
