//! The console's output path, driven through real virtqueues by the mock driver, in one thread: a line of
//! a kernel's log at a time, a program's output, and output that nobody reads.
//!
//! `cargo bench -p benches --bench console`. The mock's own work is part of every figure.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::fs::File;
use std::os::fd::OwnedFd;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kata_virtio::console::{Console, RX_QUEUE, TX_QUEUE};
use kata_virtio::mock::Bench;

fn console(output: OwnedFd) -> Bench<Console> {
    let (device, _) = Console::new(output, None).unwrap();
    Bench::new(device).unwrap()
}

fn output(c: &mut Criterion) {
    let mut group = c.benchmark_group("console");
    for bytes in [80, 32 << 10] {
        let payload = vec![b'x'; bytes];
        group.throughput(Throughput::Bytes(bytes.try_into().unwrap()));
        let sink = File::options().write(true).open("/dev/null").unwrap();
        let (_nobody, pipe) = std::io::pipe().unwrap();
        for (name, fd) in [("to_null", OwnedFd::from(sink)), ("nobody_reads", pipe.into())] {
            let mut bench = console(fd);
            // A buffer that is offered again and again, as a driver's is.
            let buffer = bench.rings.readable(&payload);
            group.bench_with_input(BenchmarkId::new(name, bytes), &buffer, |b, &buffer| {
                b.iter(|| {
                    bench.rings.queue(TX_QUEUE).add(&[buffer]).unwrap();
                    bench.work();
                    bench.rings.used(TX_QUEUE).unwrap()
                });
            });
        }
    }
    group.finish();
}

fn input(c: &mut Criterion) {
    let zero = File::open("/dev/zero").unwrap();
    let sink = File::options().write(true).open("/dev/null").unwrap();
    let (device, _) = Console::new(sink.into(), Some(zero.into())).unwrap();
    let mut bench = Bench::new(device).unwrap();
    let buffer = bench.rings.writable(4096);
    let mut group = c.benchmark_group("console");
    group.throughput(Throughput::Bytes(4096));
    group.bench_function("host_to_guest/4096", |b| {
        b.iter(|| {
            bench.rings.queue(RX_QUEUE).add(&[buffer]).unwrap();
            bench.work();
            bench.rings.used(RX_QUEUE).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, output, input);
criterion_main!(benches);
