//! The disk: sequential and random, reading and writing, past the guest's page cache.
//!
//! Everything that was read in a timed phase is compared; everything that was written is compared by the
//! host when the guest is done.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use device_guest::pattern::{self, Author, Places, SECTOR_BYTES};
use device_guest::phase::{
    DEPTH, DISK_BYTES, LARGE_BYTES, Outcome, REQUESTS, REQUESTS_AT_DEPTH, SMALL_BYTES, Seed,
};
use rustix::fs::OFlags;

use crate::{Control, Failure};

const DISK: &str = "/dev/vda";

/// Alignment of memory that is good for any disk, in bytes.
const ALIGNMENT: usize = 4096;

/// What is done with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It must be what this author wrote.
    Read(Author),
    /// By this author.
    Write(Author),
}

pub(crate) fn measure(control: &mut Control) -> Result<(), Failure> {
    let flags = i32::try_from(OFlags::DIRECT.bits())?;
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(DISK)
        .map_err(|error| format!("{DISK}: {error}"))?;
    let disk = Arc::new(disk);
    control.phase("block_sequential_read", || {
        one_by_one(&disk, LARGE_BYTES, sequential(), Way::Read(Author::Host))
    })?;
    control.phase("block_random_read", || {
        one_by_one(&disk, SMALL_BYTES, random(), Way::Read(Author::Host))
    })?;
    control.phase("block_random_read_at_depth", || {
        at_depth(&disk, Way::Read(Author::Host))
    })?;
    control.phase("block_sequential_write", || {
        one_by_one(&disk, LARGE_BYTES, sequential(), Way::Write(Author::Sequential))
    })?;
    control.phase("block_random_write", || {
        one_by_one(&disk, SMALL_BYTES, random(), Way::Write(Author::Random))
    })?;
    control.phase("block_random_write_at_depth", || {
        at_depth(&disk, Way::Write(Author::Random))
    })
}

/// Positions of a whole pass, in blocks of [`LARGE_BYTES`].
fn sequential() -> impl Iterator<Item = u64> {
    0..DISK_BYTES / LARGE_BYTES as u64
}

/// Positions of [`REQUESTS`], in blocks of [`SMALL_BYTES`].
fn random() -> impl Iterator<Item = u64> {
    Places::new(Seed::Single as u64, DISK_BYTES / SMALL_BYTES as u64).take(REQUESTS)
}

/// Requests one after the other; only they are timed, not what fills and compares them.
fn one_by_one(
    disk: &File,
    bytes: usize,
    places: impl Iterator<Item = u64>,
    way: Way,
) -> Result<Outcome, Failure> {
    let mut room = Room::new(bytes);
    let mut times = Vec::new();
    for place in places {
        times.push(request(disk, room.bytes_mut(), place, way)?);
    }
    let total: Duration = times.iter().sum();
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    outcome(times.len(), bytes, total, median)
}

/// [`DEPTH`] threads, each with requests one after the other.
fn at_depth(disk: &Arc<File>, way: Way) -> Result<Outcome, Failure> {
    let barrier = Arc::new(Barrier::new(DEPTH + 1));
    let threads: Vec<_> = (0..DEPTH as u64)
        .map(|number| {
            let (disk, barrier) = (Arc::clone(disk), Arc::clone(&barrier));
            let blocks = DISK_BYTES / SMALL_BYTES as u64;
            let places = Places::new(Seed::Overlapping as u64 + number, blocks);
            std::thread::spawn(move || {
                let mut room = Room::new(SMALL_BYTES);
                pattern::fill(room.bytes_mut(), 0, Author::Random);
                barrier.wait();
                for place in places.take(REQUESTS_AT_DEPTH / DEPTH) {
                    request(&disk, room.bytes_mut(), place, way)?;
                }
                Ok::<(), Failure>(())
            })
        })
        .collect();
    barrier.wait();
    let begin = Instant::now();
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    outcome(REQUESTS_AT_DEPTH, SMALL_BYTES, begin.elapsed(), Duration::ZERO)
}

/// One request; what it took. Stamps are cheap enough to be written and compared at depth as well.
fn request(disk: &File, bytes: &mut [u8], place: u64, way: Way) -> Result<Duration, Failure> {
    let offset = place * u64::try_from(bytes.len())?;
    let sector = offset / SECTOR_BYTES as u64;
    match way {
        Way::Read(author) => {
            let begin = Instant::now();
            disk.read_exact_at(bytes, offset)?;
            let took = begin.elapsed();
            match bytes.len() {
                LARGE_BYTES => pattern::check(bytes, sector, author)?,
                _ => pattern::check_stamps(bytes, sector, author)?,
            }
            Ok(took)
        }
        Way::Write(author) => {
            pattern::stamp(bytes, sector, author);
            let begin = Instant::now();
            disk.write_all_at(bytes, offset)?;
            Ok(begin.elapsed())
        }
    }
}

fn outcome(requests: usize, bytes: usize, total: Duration, median: Duration) -> Result<Outcome, Failure> {
    Ok(Outcome {
        requests: requests.try_into()?,
        bytes: (requests * bytes).try_into()?,
        nanoseconds: total.as_nanos().try_into()?,
        median: median.as_nanos().try_into()?,
    })
}

/// Memory that a disk takes as it is.
struct Room {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Room {
    /// Filled as the sectors from 0 on.
    fn new(bytes: usize) -> Self {
        let memory = vec![0; bytes + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let mut room = Self { memory, start, bytes };
        pattern::fill(room.bytes_mut(), 0, Author::Sequential);
        room
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.bytes]
    }
}
