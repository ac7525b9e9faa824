//! Memory going back to the host, driven through real virtqueues by the mock driver, in one thread: a
//! report as Linux makes them, an inflation of scattered and of neighbouring pages; of memory that is
//! resident, and of memory that has gone before.
//!
//! `cargo bench -p benches --bench balloon`. The mock's own work is part of every figure; making memory
//! resident is not.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kata_virtio::Device;
use kata_virtio::balloon::{Balloon, F_PAGE_POISON, INFLATE_QUEUE, REPORTING_QUEUE};
use kata_virtio::mock::{Bench, Buffer};
use std::cell::RefCell;

const FIRST: u64 = 16 << 20;
const HUGE_PAGE: u32 = 2 << 20;

fn balloon() -> RefCell<Bench<Balloon>> {
    let (device, _) = Balloon::new().unwrap();
    let features = device.features() & !F_PAGE_POISON;
    RefCell::new(Bench::with_features(device, features).unwrap())
}

/// Offers the chain and runs the device until it is returned.
fn run(bench: &RefCell<Bench<Balloon>>, queue: u16, buffers: &[Buffer]) -> u16 {
    let mut bench = bench.borrow_mut();
    let head = bench.rings.queue(queue).add(buffers).unwrap();
    while bench.rings.used(queue).is_none() {
        bench.step().unwrap();
    }
    head
}

fn fill(bench: &RefCell<Bench<Balloon>>, bytes: u32) {
    let bench = bench.borrow();
    bench.rings.write(FIRST, &vec![1; bytes.try_into().unwrap()]);
}

/// Sixteen free blocks of 2 MiB, with gaps where the memory of the mock suffices.
fn reports(c: &mut Criterion) {
    let mut group = c.benchmark_group("balloon/report");
    let bytes = 16 * HUGE_PAGE;
    group.throughput(Throughput::Bytes(bytes.into()));
    let bench = balloon();
    let buffers: Vec<Buffer> = (0..16)
        .map(|index| Buffer {
            address: FIRST + u64::from(index * HUGE_PAGE),
            len: HUGE_PAGE,
            writable: true,
        })
        .collect();
    group.bench_function("resident", |b| {
        b.iter_batched(
            || fill(&bench, bytes),
            |()| run(&bench, REPORTING_QUEUE, &buffers),
            BatchSize::PerIteration,
        );
    });
    group.bench_function("gone", |b| b.iter(|| run(&bench, REPORTING_QUEUE, &buffers)));
    group.finish();
}

/// 256 pages, as many as Linux puts into a request.
fn inflations(c: &mut Criterion) {
    let mut group = c.benchmark_group("balloon/inflate");
    group.throughput(Throughput::Bytes(256 * 4096));
    for (name, step) in [("neighbours", 1u32), ("scattered", 2)] {
        let bench = balloon();
        let pages = (0..256).rev().map(|index| 4096 + index * step);
        let numbers: Vec<u8> = pages.flat_map(u32::to_le_bytes).collect();
        let buffer = bench.borrow_mut().rings.readable(&numbers);
        group.bench_with_input(BenchmarkId::new(name, "resident"), &buffer, |b, &buffer| {
            b.iter_batched(
                || fill(&bench, 2 << 20),
                |()| run(&bench, INFLATE_QUEUE, &[buffer]),
                BatchSize::PerIteration,
            );
        });
        group.bench_with_input(BenchmarkId::new(name, "gone"), &buffer, |b, &buffer| {
            b.iter(|| run(&bench, INFLATE_QUEUE, &[buffer]));
        });
    }
    group.finish();
}

criterion_group!(benches, reports, inflations);
criterion_main!(benches);
