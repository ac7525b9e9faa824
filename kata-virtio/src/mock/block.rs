//! A guest's driver for the block device, on the mock's queues; what a hostile one does, as told by a
//! string of bytes, is what the fuzzer runs.

use std::fs::File;
use std::io;

use super::bench::Bench;
use super::ring::Buffer;
use super::rings::{Chain, MEMORY_BYTES};
use crate::Device;
use crate::block::{Block, Engine, Extent, Shelf};

/// Types of requests (VIRTIO 1.2 §5.2.6).
pub mod kind {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Make durable.
    pub const FLUSH: u32 = 4;
    /// Ask for the serial.
    pub const GET_ID: u32 = 8;
    /// Give blocks back.
    pub const DISCARD: u32 = 11;
    /// Fill with zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Status: done.
pub const OK: u8 = 0;
/// Status: failed.
pub const IOERR: u8 = 1;
/// Status: not known.
pub const UNSUPP: u8 = 2;
/// What a status is before the device writes it.
pub const UNTOUCHED: u8 = 0xee;

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The last byte that the device may write.
    pub status: u8,
    /// All others, written or not.
    pub data: Vec<u8>,
    /// How many bytes the device says it has written.
    pub used: u32,
}

/// The first sixteen bytes of a request.
#[must_use]
pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// A range in a discard or a write of zeroes.
#[must_use]
pub fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// A block device with a driver in front of it, in one thread.
#[derive(Debug)]
pub struct Disk {
    /// Queues and device.
    pub bench: Bench<Block>,
}

impl Disk {
    /// The driver chooses all that is offered.
    ///
    /// # Errors
    /// When the guest's memory cannot be had.
    pub fn new(device: Block) -> io::Result<Self> {
        let bench = Bench::new(device)?;
        Ok(Self { bench })
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    /// What [`Bench::run_until`] meets; so do all requests.
    pub fn read(&mut self, sector: u64, bytes: u32) -> io::Result<Answer> {
        self.request(0, &[&header(kind::IN, sector)], &[bytes, 1])
    }

    /// Writes.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn write(&mut self, sector: u64, data: &[u8]) -> io::Result<Answer> {
        self.request(0, &[&header(kind::OUT, sector), data], &[1])
    }

    /// A request without data, of any type.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn ask(&mut self, kind: u32) -> io::Result<Answer> {
        self.request(0, &[&header(kind, 0)], &[1])
    }

    /// A request on a queue, cut in any way.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> io::Result<Answer> {
        let chain = self
            .bench
            .rings
            .offer(queue, readable, writable)
            .ok_or(io::ErrorKind::StorageFull)?;
        let used = |head| move |rings: &mut super::Rings| rings.used(queue).filter(|(used, _)| *used == head);
        let (_, used) = self.bench.run_until(used(chain.head))?;
        Ok(self.answer(&chain, used))
    }

    /// The answer in a chain that was returned with `used` bytes written.
    #[must_use]
    pub fn answer(&self, chain: &Chain, used: u32) -> Answer {
        let mut data = self.bench.rings.written(chain, u32::MAX);
        let status = data.pop().unwrap_or(UNTOUCHED);
        Answer { status, data, used }
    }
}

/// Sectors of the fuzzer's disk.
const SECTORS: u64 = 64;

/// Sectors from one possible beginning of an extent to the next.
const EXTENT_SECTORS: u64 = 2048;

/// Runs the script `data` against a device and checks what must hold whatever a driver does: no panic, no
/// change to the size of the file, each chain returned exactly once, nothing in flight after a reset. The disk
/// is a file, or a shelf on which extents come and go.
///
/// # Panics
/// When it does not hold.
pub fn run_script(data: &[u8]) {
    let Some((&first, script)) = data.split_first() else {
        return;
    };
    let Some(mut stage) = Stage::new(first) else {
        return;
    };
    let mut script = Script(script);
    while let Some(action) = script.byte() {
        stage.act(action % 8, &mut script);
    }
    stage.end();
}

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn number(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }
}

struct Stage {
    disk: Disk,
    file: File,
    read_only: bool,
    /// Where there is one, what is on it.
    shelf: Option<(Shelf, Vec<Extent>)>,
    offered: u64,
    returned: u64,
    broken: bool,
}

impl Stage {
    fn new(choice: u8) -> Option<Self> {
        let file = rustix::fs::memfd_create("fuzz-disk", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
        let file = File::from(file);
        file.set_len(SECTORS * 512).ok()?;
        let shelf = (choice & 4 != 0).then(|| (Shelf::new(), Vec::new()));
        let read_only = choice & 1 == 1 || shelf.is_some();
        let engine = if choice & 2 == 0 {
            Engine::Plain
        } else {
            Engine::IoUring
        };
        let device = match &shelf {
            Some((shelf, _)) => Block::of_shelf(shelf),
            None => Block::new(file.try_clone().ok()?),
        };
        let device = device
            .read_only(read_only)
            .serial("fuzz")
            .queues(2)
            .engine(engine);
        Some(Self {
            disk: Disk::new(device.build().ok()?).ok()?,
            file,
            read_only,
            shelf,
            offered: 0,
            returned: 0,
            broken: false,
        })
    }

    fn act(&mut self, action: u8, script: &mut Script<'_>) {
        match action {
            0..=2 => self.offer_request(script),
            3 => self.offer_buffers(script),
            4 => self.work(),
            5 => {
                let index = u16::from_le_bytes([script.number(), script.number()]);
                self.disk.bench.rings.queue(0).corrupt_avail_index(index);
                // What it makes of that is anyone's guess: only that it survives.
                self.disk.bench.work();
                self.reset();
            }
            6 if self.shelf.is_some() => self.change_shelf(script.number()),
            6 => {
                let offset = usize::from(script.number() % 60);
                self.disk.bench.device.write_config(offset, &[script.number()]);
            }
            _ => self.reset(),
        }
    }

    /// A file comes, of the size that touches the next or of another, or one goes.
    fn change_shelf(&mut self, choice: u8) {
        let Some((shelf, extents)) = &mut self.shelf else {
            return;
        };
        if choice & 1 == 1 && !extents.is_empty() {
            let gone = extents.swap_remove(usize::from(choice >> 1) % extents.len());
            assert!(shelf.remove(gone.offset).is_ok(), "an extent is lost");
            assert!(shelf.remove(gone.offset).is_err(), "an extent was there twice");
            return;
        }
        let file = rustix::fs::memfd_create("fuzz-extent", rustix::fs::MemfdFlags::CLOEXEC);
        let bytes = match choice & 2 {
            0 => EXTENT_SECTORS * 512,
            _ => SECTORS * 512 - u64::from(choice),
        };
        let file = file.map(File::from).and_then(|file| {
            rustix::fs::ftruncate(&file, bytes)?;
            Ok(file)
        });
        let Ok(file) = file else { return };
        extents.extend(shelf.add(file));
        assert_eq!(shelf.state().extents.len(), extents.len());
    }

    /// Something that looks like a request.
    fn offer_request(&mut self, script: &mut Script<'_>) {
        let kinds = [0, 1, 4, 8, 11, 13, 2, u32::MAX];
        let kind = kinds[usize::from(script.number() % 8)];
        let sector = match script.number() {
            255 => u64::MAX,
            near if self.shelf.is_none() => u64::from(near % 80),
            // Before, at and behind where extents begin.
            near => (u64::from(near / 80) * EXTENT_SECTORS + u64::from(near % 80)).saturating_sub(40),
        };
        let head = header(kind, sector);
        let cut = usize::from(script.number() % 17);
        let (one, two) = head.split_at(cut);
        let data = match script.number() % 4 {
            0 => vec![],
            1 => vec![script.number(); 512 * usize::from(script.number() % 9)],
            2 => range(
                u64::from(script.number() % 80),
                u32::from(script.number()),
                u32::from(script.number() % 4),
            )
            .to_vec(),
            _ => vec![1; script.number().into()],
        };
        let room = u32::from(script.number()) * [1, 512, 20, 0][usize::from(script.number() % 4)];
        let queue = u16::from(script.number() % 2);
        let rings = &mut self.disk.bench.rings;
        let offered = match script.number() % 2 {
            0 => rings.offer(queue, &[one, two, &data], &[room, 1]),
            _ => rings.offer_indirect(queue, &[one, two, &data], &[room, 1]),
        };
        self.offered += u64::from(offered.is_some());
    }

    /// Any buffers at all.
    fn offer_buffers(&mut self, script: &mut Script<'_>) {
        let end = u64::try_from(MEMORY_BYTES).unwrap_or(0);
        let places = [0x20_0000, 0x20_0400, end - 8, end, u64::MAX - 15, 0x1000];
        let buffers: Vec<_> = (0..script.number() % 6)
            .map(|_| Buffer {
                address: places[usize::from(script.number() % 6)],
                len: [0, 1, 16, 512, 1 << 20, u32::MAX][usize::from(script.number() % 6)],
                writable: script.number() % 2 == 1,
            })
            // The rings themselves are no place to write to: the checks here read them.
            .filter(|buffer| !(buffer.writable && buffer.address == 0x1000))
            .collect();
        let queue = u16::from(script.number() % 2);
        let offered = self.disk.bench.rings.queue(queue).add(&buffers);
        self.offered += u64::from(offered.is_some());
    }

    fn work(&mut self) {
        let signals = self.disk.bench.step();
        self.broken |= signals.is_ok_and(|signals| signals.needs_reset);
        self.collect();
    }

    fn collect(&mut self) {
        for queue in 0..2 {
            while self.disk.bench.rings.used(queue).is_some() {
                self.returned += 1;
            }
        }
        assert!(self.returned <= self.offered, "a chain was returned twice");
    }

    fn reset(&mut self) {
        self.disk.bench.reset();
        assert!(self.disk.bench.device.drained());
        (self.offered, self.returned, self.broken) = (0, 0, false);
    }

    fn end(mut self) {
        let mut rounds = 0;
        while !self.broken && self.returned < self.offered {
            self.work();
            rounds += 1;
            assert!(rounds < 1_000_000, "chains are lost");
        }
        let bytes = self.file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        assert_eq!(bytes, SECTORS * 512, "the file keeps its size");
        if self.read_only {
            assert_eq!(self.disk.bench.device.counters().writes, 0);
        }
    }
}
