//! The network device's frame path, driven through real virtqueues by the mock driver, in one thread:
//! frames of 64 bytes and unsegmented ones of 64 KiB, each way.
//!
//! `cargo bench -p benches --bench net`. The host's side is a socket in place of a tap: the mock's work
//! and the socket's are part of every figure.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::os::unix::net::UnixDatagram;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kata_virtio::mock::net::Machine;
use kata_virtio::net::{FrameHeader, HEADER_BYTES, Net, Tap};

/// Frames in one round: as many as a socket of datagrams holds anywhere.
const ROUND: usize = 8;

/// Bytes of a receive buffer, as Linux' driver makes them for mergeable frames.
const RECEIVE_BUFFER_BYTES: u32 = 1536;

/// Where Linux' driver cuts a frame: the header on its own, payload in pages.
fn cuts(frame: usize) -> Vec<usize> {
    (0..frame.div_ceil(4096))
        .map(|page| HEADER_BYTES + page * 4096)
        .collect()
}

fn header(frame: usize) -> FrameHeader {
    if frame <= 1514 {
        return FrameHeader::default();
    }
    FrameHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54.into(),
        gso_size: 1448.into(),
        csum_start: 34.into(),
        csum_offset: 16.into(),
        num_buffers: 0.into(),
    }
}

fn machine() -> (Machine, UnixDatagram) {
    let (host, device) = UnixDatagram::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let device = Net::new(Tap::from_sockets(vec![device.into()]).unwrap()).unwrap();
    (Machine::new(device).unwrap(), host)
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("net");
    for bytes in [64, 65_226] {
        let (frame, header, cuts) = (vec![7; bytes], header(bytes), cuts(bytes));
        let (mut machine, host) = machine();
        let mut sink = vec![0; 70_000];
        group.throughput(Throughput::Elements(ROUND.try_into().unwrap()));
        group.bench_function(BenchmarkId::new("guest_to_host", bytes), |b| {
            b.iter(|| {
                for _ in 0..ROUND {
                    assert!(machine.guest.send(0, &header, &frame, &cuts));
                }
                let mut taken = 0;
                while taken < ROUND {
                    machine.step();
                    while host.recv(&mut sink).is_ok() {
                        taken += 1;
                    }
                }
            });
        });
        let message = [&header.to_bytes()[..], &frame].concat();
        group.bench_function(BenchmarkId::new("host_to_guest", bytes), |b| {
            b.iter(|| {
                machine.guest.offer(0, 256, RECEIVE_BUFFER_BYTES);
                let (mut sent, mut received) = (0, 0);
                while received < ROUND {
                    while sent < ROUND && host.send(&message).is_ok() {
                        sent += 1;
                    }
                    machine.step();
                    received += machine
                        .guest
                        .receive_each(0, |_, frame| assert_eq!(frame.len(), bytes));
                    machine.guest.offer(0, 256, RECEIVE_BUFFER_BYTES);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
