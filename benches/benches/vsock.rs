//! The socket device's packet path, driven through real virtqueues by the mock driver, in one thread:
//! payload bytes each way, and the round trip of a connection (request, response, shutdown, reset).
//!
//! `cargo bench -p benches --bench vsock`. The mock's own work is part of every figure.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kata_virtio::mock::vsock::{Machine, Socket, SocketState};
use kata_virtio::vsock::packet::{HEADER_BYTES, Shutdown};
use kata_virtio::vsock::{Handle, Vsock};

const SOCKET: Socket = Socket {
    guest_port: 1024,
    host_port: 9,
};

fn machine() -> (Machine, Handle) {
    let (device, handle) = Vsock::new(3).unwrap();
    let mut machine = Machine::new(device).unwrap();
    machine.guest.listen(SOCKET.guest_port);
    (machine, handle)
}

fn connect(machine: &mut Machine, handle: &Handle) -> UnixStream {
    let (host, stream) = UnixStream::pair().unwrap();
    handle.connect(SOCKET.host_port, SOCKET.guest_port, stream);
    while machine.guest.state(SOCKET) != SocketState::Open {
        machine.step();
    }
    machine.step();
    host
}

fn payloads(c: &mut Criterion) {
    let mut group = c.benchmark_group("vsock");
    for bytes in [4 << 10, 64 << 10] {
        let payload = vec![7; bytes];
        let mut sink = vec![0; bytes];
        group.throughput(Throughput::Bytes(bytes.try_into().unwrap()));
        let (mut machine, handle) = machine();
        let mut host = connect(&mut machine, &handle);
        // As Linux sends: long payloads in pieces of 32 KiB.
        machine.guest.cuts = vec![HEADER_BYTES, HEADER_BYTES + (32 << 10)];
        group.bench_with_input(
            BenchmarkId::new("guest_to_host", bytes),
            &payload,
            |b, payload| {
                b.iter(|| {
                    machine.guest.write(SOCKET, payload);
                    machine.step();
                    host.read_exact(&mut sink).unwrap();
                });
            },
        );
        group.bench_with_input(
            BenchmarkId::new("host_to_guest", bytes),
            &payload,
            |b, payload| {
                b.iter(|| {
                    host.write_all(payload).unwrap();
                    while machine.guest.received(SOCKET).len() < payload.len() {
                        machine.step();
                    }
                    black_box(machine.guest.take(SOCKET));
                });
            },
        );
    }
    group.finish();
}

fn connections(c: &mut Criterion) {
    let (mut machine, handle) = machine();
    c.bench_function("vsock/connect_and_close", |b| {
        b.iter(|| {
            let host = connect(&mut machine, &handle);
            machine.guest.shutdown(SOCKET, Shutdown::all());
            while machine.guest.state(SOCKET) == SocketState::Open {
                machine.step();
            }
            host
        });
    });
}

criterion_group!(benches, payloads, connections);
criterion_main!(benches);
