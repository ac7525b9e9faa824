//! What one turn does and what it leaves to the next: bounds of work, fairness between queues, rates.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kata_virtio::block::Block;
use kata_virtio::mock::Buffer;
use kata_virtio::mock::block::{Disk, IOERR, OK, header, kind, range};
use kata_virtio::{Device, Rate, RateLimit};
use rustix::fs::MemfdFlags;

use super::*;

const MIB: u64 = 1 << 20;

/// A disk of 64 MiB of holes.
fn wide(change: impl Fn(Builder) -> Builder) -> Disk {
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(64 * MIB).unwrap();
    Disk::new(change(Block::new(file)).build().unwrap()).unwrap()
}

/// The buffers of a request for so many bytes of the disk, all of them at the same place in memory.
fn large(disk: &mut Disk, kind: u32, bytes: u64) -> Vec<Buffer> {
    let rings = &mut disk.bench.rings;
    let (head, status) = (rings.readable(&header(kind, 0)), rings.writable(1));
    let address = rings.place(1 << 20);
    let piece = |at: u64| Buffer {
        address,
        len: u32::try_from((bytes - at).min(MIB)).unwrap(),
        writable: kind == self::kind::IN,
    };
    let mut buffers = vec![head];
    buffers.extend((0..bytes).step_by(1 << 20).map(piece));
    buffers.push(status);
    buffers
}

fn status(disk: &mut Disk, buffers: &[Buffer]) -> u8 {
    offered(disk, buffers);
    let status = buffers.last().unwrap().address;
    disk.bench.rings.read(status, 1)[0]
}

#[test]
fn a_request_has_no_more_than_its_segments_hold() {
    for engine in ENGINES {
        let mut disk = wide(|builder| builder.engine(engine));
        let config = disk.bench.device.config();
        let word = |at: usize| u64::from(u32::from_le_bytes(config[at..at + 4].try_into().unwrap()));
        assert_eq!(disk.bench.device.features() >> 1 & 3, 3, "size_max and seg_max");
        let most = word(8) * word(12);
        assert!(most <= 16 * MIB, "{most}");
        for kind in [kind::IN, kind::OUT] {
            let buffers = large(&mut disk, kind, most);
            assert_eq!(status(&mut disk, &buffers), OK);
            let buffers = large(&mut disk, kind, most + 512);
            assert_eq!(status(&mut disk, &buffers), IOERR);
        }
    }
}

/// Requests that are answered by the first turn, of many that wait.
fn answered_at_once(disk: &mut Disk, offer: impl Fn(&mut Disk)) -> usize {
    for _ in 0..30 {
        offer(disk);
    }
    disk.bench.step().unwrap();
    let mut used = || std::iter::from_fn(|| disk.bench.rings.used(0)).count();
    let first = used();
    disk.bench
        .run_until(|rings| {
            let queue = std::iter::from_fn(|| rings.used(0));
            Some(queue.count()).filter(|&count| count > 0)
        })
        .unwrap();
    first
}

#[test]
fn a_turn_ends_after_so_many_bytes_and_the_rest_follows() {
    let plain = |builder: Builder| builder.engine(Engine::Plain);
    let moved = answered_at_once(&mut wide(plain), |disk| {
        let buffers = large(disk, kind::IN, 2 * MIB);
        disk.bench.rings.queue(0).add(&buffers).unwrap();
    });
    assert_eq!(moved, 2, "4 MiB");
    let zeroed = answered_at_once(&mut wide(plain), |disk| {
        let request: [&[u8]; 2] = [&header(kind::WRITE_ZEROES, 0), &range(0, 4096, 0)];
        disk.bench.rings.offer(0, &request, &[1]).unwrap();
    });
    assert_eq!(zeroed, 2, "4 MiB");
    let flushed = answered_at_once(&mut wide(plain), |disk| {
        disk.bench
            .rings
            .offer(0, &[&header(kind::FLUSH, 0)], &[1])
            .unwrap();
    });
    assert_eq!(flushed, 16);
}

#[test]
fn zeroes_count_for_the_rate_as_what_is_written() {
    let limit = RateLimit {
        operations: None,
        bytes: Some(Rate {
            per_second: MIB,
            burst: MIB,
        }),
    };
    let mut disk = wide(|builder| builder.rate_limit(limit));
    let request: [&[u8]; 2] = [&header(kind::WRITE_ZEROES, 0), &range(0, 2048, 0)];
    for _ in 0..2 {
        disk.bench.rings.offer(0, &request, &[1]).unwrap();
    }
    disk.bench.step().unwrap();
    assert!(disk.bench.rings.used(0).is_some());
    assert!(disk.bench.rings.used(0).is_none(), "the burst is used up");
    assert_eq!(disk.bench.device.counters().throttled, 1);
}

/// Offers a read on each queue that has room; the first asks for more than the second.
fn fill(disk: &mut Disk) {
    for (queue, bytes) in [(0, 4096), (1, 512)] {
        let head = disk.bench.rings.readable(&header(kind::IN, 0));
        let (data, status) = (disk.bench.rings.writable(bytes), disk.bench.rings.writable(1));
        while disk.bench.rings.queue(queue).add(&[head, data, status]).is_some() {}
    }
}

/// Answers on each of two queues that are always full, after so many on both.
fn share(disk: &mut Disk, total: usize) -> [usize; 2] {
    let mut answers = [0; 2];
    let deadline = Instant::now() + Duration::from_secs(20);
    while answers.iter().sum::<usize>() < total {
        assert!(Instant::now() < deadline, "{answers:?}");
        fill(disk);
        disk.bench.step().unwrap();
        for (queue, answers) in (0..).zip(&mut answers) {
            *answers += std::iter::from_fn(|| disk.bench.rings.used(queue)).count();
        }
    }
    answers
}

#[test]
fn full_queues_both_advance() {
    let operations = RateLimit {
        operations: Some(Rate {
            per_second: 500,
            burst: 10,
        }),
        bytes: None,
    };
    let bytes = RateLimit {
        operations: None,
        bytes: Some(Rate {
            per_second: MIB,
            burst: 16 << 10,
        }),
    };
    for engine in ENGINES {
        for limit in [operations, bytes, RateLimit::default()] {
            let mut disk = wide(|builder| builder.engine(engine).queues(2).rate_limit(limit));
            let [one, two] = share(&mut disk, 300);
            assert!(one >= 15 && two >= 15, "{engine:?}, {limit:?}: {one} and {two}");
        }
    }
}

/// Counts what the library underneath would say of heads.
struct Lines(AtomicU64);

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        let unlimited = record.target().starts_with("virtio_queue") || line.contains("broken");
        self.0.fetch_add(unlimited.into(), Ordering::SeqCst);
    }

    fn flush(&self) {}
}

static LINES: Lines = Lines(AtomicU64::new(0));

#[test]
fn heads_out_of_range_do_not_drive_the_log() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let (mut disk, _) = disk(|builder| builder);
    for _ in 0..1000 {
        disk.bench.rings.publish(0, 256);
        assert!(disk.bench.step().unwrap().needs_reset);
        disk.bench.reset();
    }
    assert!(LINES.0.load(Ordering::SeqCst) < 100);
    assert_eq!(disk.read(1, 512).unwrap().status, OK);
}
