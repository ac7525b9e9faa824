//! What is behind a disk, a file or block device or a shelf of them: its size and units, and everything that
//! is done to it in the worker's own thread.
//!
//! Knows no requests and no queues. Positions here lie within the disk: others have checked that.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;

use rustix::fs::{AtFlags, FallocateFlags, OFlags, StatxFlags, fallocate};
use rustix::io::Errno;

use super::extents::SHELF_BYTES;
use super::kernel::Task;
use super::layout::SECTOR_BYTES;
use super::shelf::Shelf;
use super::verdict::Range;
use crate::vectors::Vectors;

/// The unit of direct I/O where the file system does not tell: no disk has a larger one.
const DIRECT_UNIT: u32 = 4096;

/// What is moved at a time by way of memory that the kernel takes; a multiple of every unit.
const BOUNCE_BYTES: usize = 1 << 20;

/// What is written at a time where a file system cannot write zeroes by itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What the bytes of a disk are.
#[derive(Debug)]
pub(super) enum Backing {
    /// Those of one file or block device.
    File(File),
    /// Those of several files, which come and go; they are only read.
    Shelf(Shelf),
}

/// The file that a task is for.
#[derive(Debug)]
pub(super) enum Target {
    /// The only one of the disk.
    Own(Task),
    /// One of a shelf, where the task is at another place.
    Extent(Arc<File>, Task),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) backing: Backing,
    /// Sectors of 512 bytes.
    pub(super) sectors: u64,
    /// Logical block, in bytes.
    pub(super) block_bytes: u32,
    /// Physical block, in bytes.
    pub(super) physical_block_bytes: u32,
    /// The host's cache is passed by.
    pub(super) direct: bool,
    /// Alignment of memory in direct I/O, in bytes; 1 without.
    memory_unit: usize,
}

impl Disk {
    /// Looks at the file and, for direct I/O, changes its flags.
    ///
    /// # Errors
    /// When it is no disk: neither a file nor a block device, or without direct I/O where it is asked for.
    pub(super) fn open(mut file: File, direct: bool) -> io::Result<Self> {
        let (bytes, block_device) = size(&mut file)?;
        let (mut block_bytes, mut physical_block_bytes) = match block_device {
            true => (
                rustix::fs::ioctl_blksszget(&file)?,
                rustix::fs::ioctl_blkpbszget(&file)?,
            ),
            false => (512, 4096),
        };
        let mut memory_unit = 1;
        if direct {
            let flags = rustix::fs::fcntl_getfl(&file)?;
            rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT)?;
            let (memory, offset) = direct_units(&file);
            memory_unit = usize::try_from(memory).unwrap_or(usize::MAX);
            block_bytes = block_bytes.max(offset);
        }
        physical_block_bytes = physical_block_bytes.max(block_bytes);
        let blocks = bytes / u64::from(block_bytes);
        Ok(Self {
            backing: Backing::File(file),
            sectors: blocks * (u64::from(block_bytes) / SECTOR_BYTES),
            block_bytes,
            physical_block_bytes,
            direct,
            memory_unit,
        })
    }

    /// A disk of whatever is on the shelf.
    pub(super) fn of_shelf(shelf: Shelf) -> Self {
        Self {
            backing: Backing::Shelf(shelf),
            sectors: SHELF_BYTES / SECTOR_BYTES,
            block_bytes: 512,
            physical_block_bytes: 4096,
            direct: false,
            memory_unit: 1,
        }
    }

    /// Its only file.
    ///
    /// # Errors
    /// On a shelf, of which nothing is written.
    pub(super) fn file(&self) -> io::Result<&File> {
        match &self.backing {
            Backing::File(file) => Ok(file),
            Backing::Shelf(_) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    /// The one file that has everything that a task of so many bytes is about.
    pub(super) fn target(&self, task: Task, bytes: u64) -> Option<Target> {
        let shelf = match &self.backing {
            Backing::File(_) => return Some(Target::Own(task)),
            Backing::Shelf(shelf) => shelf,
        };
        let Task::Read { offset } = task else {
            return None;
        };
        let (file, offset) = shelf.whole(offset, bytes)?;
        Some(Target::Extent(file, Task::Read { offset }))
    }

    /// The unit of positions and lengths, in bytes.
    pub(super) fn unit(&self) -> u32 {
        if self.direct { self.block_bytes } else { 512 }
    }

    /// Whether the kernel takes these buffers as they are.
    pub(super) fn takes(&self, vectors: &Vectors) -> bool {
        self.memory_unit == 1 || vectors.aligned(self.memory_unit)
    }

    /// Carries a task out.
    pub(super) fn carry_out(&self, task: Task, vectors: &mut Vectors) -> io::Result<()> {
        let file = match &self.backing {
            Backing::File(file) => file,
            Backing::Shelf(shelf) => return of_shelf(shelf, task, 0, vectors),
        };
        if let Task::Flush = task {
            return file.sync_data();
        }
        let moved = again(|| move_once(file, task, vectors, 0))?;
        self.carry_on(task, moved, vectors)?;
        match task {
            Task::Write { durable: true, .. } => file.sync_data(),
            _ => Ok(()),
        }
    }

    /// Carries out the rest of a task that has moved so many bytes already.
    pub(super) fn carry_on(&self, task: Task, moved: usize, vectors: &mut Vectors) -> io::Result<()> {
        if let Task::Flush = task {
            return Ok(());
        }
        let file = match &self.backing {
            Backing::File(file) => file,
            Backing::Shelf(shelf) => return of_shelf(shelf, task, moved, vectors),
        };
        let (mut moved, mut done) = (moved, 0);
        loop {
            vectors.advance(moved);
            if vectors.is_done() {
                return Ok(());
            }
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += u64::try_from(moved).unwrap_or(u64::MAX);
            moved = again(|| move_once(file, task, vectors, done))?;
            if let Task::Write { durable: true, .. } = task {
                file.sync_data()?;
            }
        }
    }

    /// Carries a task out by way of memory that the kernel takes.
    pub(super) fn bounce(&self, task: Task, vectors: &mut Vectors) -> io::Result<()> {
        let file = self.file()?;
        let most = usize::try_from(vectors.bytes()).map_or(BOUNCE_BYTES, |bytes| bytes.min(BOUNCE_BYTES));
        let mut room = Aligned::new(most, self.memory_unit);
        let mut done = 0;
        while !vectors.is_done() {
            let left = usize::try_from(vectors.bytes()).map_or(most, |bytes| bytes.min(most));
            let bytes = &mut room.bytes_mut()[..left];
            match task {
                Task::Read { offset } => {
                    file.read_exact_at(bytes, offset + done)?;
                    vectors.fill(bytes);
                }
                Task::Write { offset, .. } => {
                    vectors.empty(bytes);
                    file.write_all_at(bytes, offset + done)?;
                }
                Task::Flush => return file.sync_data(),
            }
            done += u64::try_from(left).unwrap_or(u64::MAX);
        }
        match task {
            Task::Write { durable: true, .. } => file.sync_data(),
            _ => Ok(()),
        }
    }

    /// Gives the blocks of a range back; what is read there afterwards is zeroes.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where there is no way.
    pub(super) fn discard(&self, range: Range) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let file = self.file()?;
        again(|| Ok(fallocate(file, hole, range.offset, range.bytes)?))
    }

    /// Makes a range read as zeroes, in the cheapest way that there is.
    ///
    /// # Errors
    /// What the last way met.
    pub(super) fn zero(&self, range: Range) -> io::Result<()> {
        let way = match range.unmap {
            true => FallocateFlags::PUNCH_HOLE,
            false => FallocateFlags::ZERO_RANGE,
        };
        let mode = way | FallocateFlags::KEEP_SIZE;
        let file = self.file()?;
        match again(|| Ok(fallocate(file, mode, range.offset, range.bytes)?)) {
            Err(cause) if cause.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                self.write_zeroes(range)
            }
            result => result,
        }
    }

    fn write_zeroes(&self, range: Range) -> io::Result<()> {
        let file = self.file()?;
        let mut done = 0;
        let aligned = Aligned::new(if self.direct { ZEROES.len() } else { 0 }, self.memory_unit);
        let zeroes = if self.direct { aligned.bytes() } else { &ZEROES };
        while done < range.bytes {
            let len = usize::try_from(range.bytes - done).map_or(zeroes.len(), |left| left.min(zeroes.len()));
            file.write_all_at(&zeroes[..len], range.offset + done)?;
            done += u64::try_from(len).unwrap_or(u64::MAX);
        }
        Ok(())
    }
}

fn move_once(file: &File, task: Task, vectors: &Vectors, done: u64) -> io::Result<usize> {
    match task {
        Task::Read { offset } => vectors.read(file, offset + done),
        Task::Write { offset, .. } => vectors.write(file, offset + done),
        Task::Flush => Ok(0),
    }
}

/// Carries out the rest of a task on a shelf that has moved so many bytes already.
fn of_shelf(shelf: &Shelf, task: Task, moved: usize, vectors: &mut Vectors) -> io::Result<()> {
    match task {
        Task::Read { offset } => {
            vectors.advance(moved);
            shelf.read(offset + u64::try_from(moved).unwrap_or(u64::MAX), vectors)
        }
        // Nothing was written that would have to be made durable.
        Task::Flush => Ok(()),
        Task::Write { .. } => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
    }
}

/// Repeats what a signal has interrupted.
pub(super) fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The bytes of a regular file or block device, and whether it is a block device.
///
/// # Errors
/// When it is neither.
pub(super) fn size(file: &mut File) -> io::Result<(u64, bool)> {
    let metadata = file.metadata()?;
    let block_device = metadata.file_type().is_block_device();
    if !metadata.is_file() && !block_device {
        let what = "neither a regular file nor a block device";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let bytes = match block_device {
        true => device_bytes(file)?,
        false => metadata.len(),
    };
    Ok((bytes, block_device))
}

/// The position in the file is others' too: it stays.
fn device_bytes(file: &mut File) -> io::Result<u64> {
    let before = file.stream_position()?;
    let bytes = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(before))?;
    Ok(bytes)
}

/// Units of direct I/O in memory and in the file, in bytes (statx(2), `STATX_DIOALIGN`).
fn direct_units(file: &File) -> (u32, u32) {
    let units = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .map(|stat| (stat.stx_dio_mem_align, stat.stx_dio_offset_align));
    match units {
        Ok((memory @ 1.., offset @ 1..)) if offset.is_power_of_two() => (memory, offset.max(512)),
        Ok(_) | Err(_) => (DIRECT_UNIT, DIRECT_UNIT),
    }
}

/// Bytes at an address that is a multiple of `unit`.
struct Aligned {
    room: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize, unit: usize) -> Self {
        let room = vec![0; len + unit];
        let start = room.as_ptr().align_offset(unit).min(unit);
        Self { room, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.start + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.start..self.start + self.len]
    }
}
