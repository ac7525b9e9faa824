//! The block device's request path, driven through real virtqueues by the mock driver, in one thread: 4 KiB
//! at random and 128 KiB in sequence from the page cache, one request at a time and 32 at once; of a file, and of
//! the same file on a shelf of many.
//!
//! `cargo bench -p benches --bench block`. The mock's own work is part of every figure.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::fs::File;
use std::io::Write;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kata_virtio::block::{Block, Engine, Shelf};
use kata_virtio::mock::Buffer;
use kata_virtio::mock::block::{Disk, header, kind};

const DISK_BYTES: u64 = 64 << 20;
const ENGINES: [(&str, Engine); 2] = [("plain", Engine::Plain), ("io_uring", Engine::IoUring)];

/// Files on a shelf beside the one that is read, half of them before it.
const OTHERS: usize = 200;

fn file() -> File {
    let mut file: File = tempfile::tempfile().unwrap();
    for _ in 0..DISK_BYTES >> 20 {
        file.write_all(&vec![7; 1 << 20]).unwrap();
    }
    file
}

/// A disk, and the sector where its 64 MiB begin.
fn disk(engine: Engine, on_shelf: bool) -> (Disk, u64) {
    if !on_shelf {
        return (
            Disk::new(Block::new(file()).engine(engine).build().unwrap()).unwrap(),
            0,
        );
    }
    let shelf = Shelf::new();
    let other = tempfile::tempfile().unwrap();
    other.set_len(4096).unwrap();
    let add_others = || {
        for _ in 0..OTHERS / 2 {
            shelf.add(other.try_clone().unwrap()).unwrap();
        }
    };
    add_others();
    let extent = shelf.add(file()).unwrap();
    add_others();
    let device = Block::of_shelf(&shelf).engine(engine).build().unwrap();
    (Disk::new(device).unwrap(), extent.offset / 512)
}

/// Buffers that a driver uses again and again.
fn chains(disk: &mut Disk, count: usize, bytes: u32) -> Vec<[Buffer; 3]> {
    let rings = &mut disk.bench.rings;
    let chain = |_| {
        [
            rings.readable(&header(kind::IN, 0)),
            rings.writable(bytes),
            rings.writable(1),
        ]
    };
    (0..count).map(chain).collect()
}

fn round(disk: &mut Disk, chains: &[[Buffer; 3]], mut sector: impl FnMut() -> u64) {
    for chain in chains {
        disk.bench
            .rings
            .write(chain[0].address + 8, &sector().to_le_bytes());
        disk.bench.rings.queue(0).add(chain).unwrap();
    }
    let mut left = chains.len();
    while left > 0 {
        disk.bench.work();
        while disk.bench.rings.used(0).is_some() {
            left -= 1;
        }
    }
}

fn reads(c: &mut Criterion) {
    for (what, bytes, random) in [("random", 4u32 << 10, true), ("sequential", 128 << 10, false)] {
        let mut group = c.benchmark_group(format!("block/{what}"));
        for at_once in [1usize, 32] {
            group.throughput(Throughput::Elements(at_once.try_into().unwrap()));
            let contenders = ENGINES.map(|(name, engine)| (name, engine, false));
            for (name, engine, on_shelf) in contenders.into_iter().chain([("shelf", Engine::Plain, true)]) {
                let (mut disk, start) = disk(engine, on_shelf);
                let chains = chains(&mut disk, at_once, bytes);
                let (step, mut next) = (u64::from(bytes / 512), 1u64);
                let places = DISK_BYTES / u64::from(bytes);
                let id = BenchmarkId::new(name, format!("{bytes}x{at_once}"));
                group.bench_function(id, |b| {
                    b.iter(|| {
                        round(&mut disk, &chains, || {
                            // A linear congruence visits all places in an order of its own.
                            next = if random {
                                next.wrapping_mul(5).wrapping_add(3)
                            } else {
                                next + 1
                            };
                            start + next % places * step
                        });
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(block, reads);
criterion_main!(block);
