//! What virtio-mmio costs, with the mock as the driver: a request from its kick to its used buffer, on
//! the device's thread and without any thread; registers; an initialisation; a pause.
//!
//! `cargo bench -p benches --bench transport`. The mock's own work is part of every figure. Between
//! threads two events are written and two are waited for: on an idle machine that is what wakes cost.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kata_virtio::mock::{Bench, Driver, Echo};
use kata_virtio::rng::{REQUEST_QUEUE, Rng};

const QUEUE: u16 = 0;

/// Requests in flight.
const DEPTHS: [usize; 2] = [1, 8];

fn echo() -> Echo {
    Echo::new().unwrap().0
}

fn round_trips(c: &mut Criterion) {
    let mut group = c.benchmark_group("transport/kick_to_used");
    for depth in DEPTHS {
        group.throughput(Throughput::Elements(depth.try_into().unwrap()));
        let mut bench = Bench::new(echo()).unwrap();
        group.bench_with_input(BenchmarkId::new("no_thread", depth), &depth, |b, &depth| {
            b.iter(|| {
                for _ in 0..depth {
                    bench.rings.offer(QUEUE, &[&[1; 16]], &[16]).unwrap();
                }
                bench.work();
                for _ in 0..depth {
                    black_box(bench.rings.used(QUEUE).unwrap());
                }
            });
        });
        let mut driver = Driver::new(echo()).unwrap();
        group.bench_with_input(BenchmarkId::new("thread", depth), &depth, |b, &depth| {
            b.iter(|| {
                for _ in 0..depth {
                    driver.rings.offer(QUEUE, &[&[1; 16]], &[16]).unwrap();
                }
                driver.kick(QUEUE).unwrap();
                for _ in 0..depth {
                    black_box(driver.wait_used(QUEUE).unwrap());
                }
            });
        });
    }
    group.finish();
}

fn entropy(c: &mut Criterion) {
    let mut group = c.benchmark_group("rng/no_thread");
    for bytes in [64, 64 << 10] {
        let mut bench = Bench::new(Rng::new().unwrap()).unwrap();
        group.throughput(Throughput::Bytes(bytes.into()));
        group.bench_with_input(BenchmarkId::from_parameter(bytes), &bytes, |b, &bytes| {
            b.iter(|| {
                bench.rings.offer(REQUEST_QUEUE, &[], &[bytes]).unwrap();
                bench.work();
                black_box(bench.rings.used(REQUEST_QUEUE).unwrap());
            });
        });
    }
    group.finish();
}

fn registers(c: &mut Criterion) {
    let mut driver = Driver::new(echo()).unwrap();
    c.bench_function("transport/read_interrupt_status", |b| {
        b.iter(|| black_box(driver.registers.read(0x060)));
    });
    c.bench_function("transport/initialise", |b| {
        b.iter(|| driver.initialise(u64::MAX).unwrap());
    });
    c.bench_function("transport/pause_and_resume", |b| {
        b.iter(|| {
            driver.registers.mmio.pause().unwrap();
            driver.registers.mmio.resume().unwrap();
        });
    });
}

criterion_group!(benches, round_trips, entropy, registers);
criterion_main!(benches);
