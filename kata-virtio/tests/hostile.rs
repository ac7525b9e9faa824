//! What a hostile driver can try: each row of the threat table in `vsock`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use kata_virtio::Device;
use kata_virtio::mock::Buffer;
use kata_virtio::mock::vsock::{Machine, Socket, SocketState};
use kata_virtio::vsock::packet::{HEADER_BYTES, Header, Op, Shutdown};
use kata_virtio::vsock::{Counters, Handle, Vsock};

const SOCKET: Socket = Socket {
    guest_port: 1024,
    host_port: 9,
};

struct Bed {
    machine: Machine,
    handle: Handle,
    host: UnixStream,
}

/// A machine with one open connection.
fn bed() -> Bed {
    let (device, handle) = Vsock::new(3).unwrap();
    let mut machine = Machine::new(device).unwrap();
    machine.guest.listen(SOCKET.guest_port);
    let (host, stream) = UnixStream::pair().unwrap();
    handle.connect(SOCKET.host_port, SOCKET.guest_port, stream);
    machine
        .run_until(|guest| guest.state(SOCKET) == SocketState::Open && guest.credit(SOCKET) > 0)
        .unwrap();
    machine.step();
    Bed {
        machine,
        handle,
        host,
    }
}

impl Bed {
    fn send(&mut self, change: impl FnOnce(&mut Header)) {
        let mut header = self
            .machine
            .guest
            .header(SOCKET, Op::CreditUpdate, Shutdown::empty(), 0);
        change(&mut header);
        self.send_bytes(&header.to_bytes());
    }

    fn send_bytes(&mut self, bytes: &[u8]) {
        assert!(self.machine.guest.send_raw(bytes, &[HEADER_BYTES]));
        self.machine.work();
    }

    fn counters(&self) -> Counters {
        self.handle.counters()
    }

    /// Operations and ports of what the device answered.
    fn answers(&mut self) -> Vec<(u16, u32)> {
        self.machine.work();
        let headers = self.machine.guest.pump();
        headers
            .iter()
            .map(|header| (header.op, header.dst_port))
            .collect()
    }

    fn still_works(&mut self) {
        self.host.write_all(b"ping").unwrap();
        self.machine
            .run_until(|guest| guest.take(SOCKET) == b"ping")
            .unwrap();
        self.machine.guest.write(SOCKET, b"pong");
        self.machine.step();
        let mut pong = [0; 4];
        self.host.read_exact(&mut pong).unwrap();
        assert_eq!(&pong, b"pong");
    }
}

const RESET: u16 = 3;

#[test]
fn malformed_chains_are_returned_unused_and_counted() {
    let mut bed = bed();
    bed.send_bytes(&[0; HEADER_BYTES - 1]);
    bed.send_bytes(&[1]);
    let long = bed
        .machine
        .guest
        .header(SOCKET, Op::ReadWrite, Shutdown::empty(), 5000);
    bed.send_bytes(&[&long.to_bytes()[..], &[0; 4999]].concat());
    let outside = Buffer {
        address: 1 << 40,
        len: 44,
        writable: false,
    };
    let only_writable = Buffer {
        address: 0x10_0000,
        len: 100,
        writable: true,
    };
    let at_the_end_of_addresses = Buffer {
        address: u64::MAX - 10,
        ..outside
    };
    for buffer in [outside, only_writable, at_the_end_of_addresses] {
        assert!(bed.machine.guest.send_chain(&[buffer], false));
        bed.machine.work();
    }
    assert_eq!(bed.counters().packets_malformed, 6);
    assert_eq!(bed.answers(), []);
    bed.still_works();
}

#[test]
fn a_header_that_breaks_a_rule_is_reset_or_dropped() {
    let mut bed = bed();
    bed.send(|header| header.src_cid = 4);
    assert_eq!(bed.answers(), [], "nobody is answered in another's name");
    bed.send(|header| header.dst_cid = 7);
    bed.send(|header| header.kind = 2);
    bed.send(|header| header.op = 99);
    bed.send(|header| header.op = 0);
    assert_eq!(bed.answers(), [(RESET, SOCKET.guest_port); 4]);
    bed.send(|header| {
        header.op = Op::Reset.number();
        header.src_port = 5;
    });
    assert_eq!(bed.answers(), [], "a reset is never answered");
    assert_eq!(bed.counters().packets_malformed, 5);
    assert_eq!(bed.counters().connections_open, 1);
}

#[test]
fn payloads_that_are_not_allowed_are_not_read() {
    let mut bed = bed();
    bed.send(|header| {
        header.op = Op::ReadWrite.number();
        header.len = u32::MAX;
    });
    bed.send(|header| header.len = 1);
    assert_eq!(
        bed.counters().packets_malformed,
        2,
        "too long, and short of its one byte"
    );
    let header = bed
        .machine
        .guest
        .header(SOCKET, Op::CreditUpdate, Shutdown::empty(), 1);
    bed.send_bytes(&[&header.to_bytes()[..], b"x"].concat());
    assert_eq!(bed.counters().packets_malformed, 3);
    assert_eq!(bed.answers(), [(RESET, SOCKET.guest_port); 2]);
}

#[test]
fn an_unknown_connection_is_reset() {
    let mut bed = bed();
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::ReadWrite,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        bed.send(|header| {
            header.op = op.number();
            header.src_port = 4321;
        });
    }
    assert_eq!(bed.answers(), [(RESET, 4321); 5]);
    bed.still_works();
}

#[test]
fn an_operation_that_does_not_fit_ends_the_connection() {
    for op in [Op::Request, Op::Response] {
        let mut bed = bed();
        bed.send(|header| header.op = op.number());
        assert_eq!(bed.answers(), [(RESET, SOCKET.guest_port)]);
        assert_eq!(bed.host.read(&mut [0]).unwrap(), 0);
        assert_eq!(bed.counters().connections_open, 0);
    }
}

#[test]
fn payload_after_its_own_shutdown_ends_the_connection() {
    let mut bed = bed();
    bed.send(|header| {
        header.op = Op::Shutdown.number();
        header.flags = Shutdown::SEND.bits();
    });
    bed.send(|header| header.op = Op::ReadWrite.number());
    assert_eq!(bed.answers(), [(RESET, SOCKET.guest_port)]);
    assert_eq!(bed.counters().connections_open, 0);
}

#[test]
fn more_than_the_credit_ends_the_connection_and_is_not_kept() {
    let mut bed = bed();
    let header = bed
        .machine
        .guest
        .header(SOCKET, Op::ReadWrite, Shutdown::empty(), 65536);
    let packet = [&header.to_bytes()[..], &[7; 65536]].concat();
    for _ in 0..40 {
        bed.send_bytes(&packet);
        assert!(bed.counters().bytes_buffered <= 256 << 10);
    }
    assert!(
        bed.answers().contains(&(RESET, SOCKET.guest_port)),
        "40 packets of 64 KiB do not fit"
    );
    assert!(bed.counters().packets_malformed >= 1);
    let mut got = Vec::new();
    let mut host = bed.host.try_clone().unwrap();
    let reader = std::thread::spawn(move || host.read_to_end(&mut got).map(|_| got));
    bed.machine
        .run_until(|_| bed.handle.counters().connections_open == 0)
        .unwrap();
    let got = reader.join().unwrap().unwrap();
    assert!(
        got.len() >= 256 << 10 && got.iter().all(|&byte| byte == 7),
        "what was within the credit arrives"
    );
}

#[test]
fn credit_that_makes_no_sense_stops_the_hosts_bytes() {
    let mut bed = bed();
    bed.send(|header| header.fwd_cnt = 1_000_000);
    bed.host.write_all(b"ping").unwrap();
    bed.machine.device.poll().unwrap();
    let ask = (Op::CreditRequest.number(), SOCKET.guest_port);
    assert_eq!(bed.answers(), [ask], "nothing but the question");
    bed.machine
        .run_until(|guest| guest.take(SOCKET) == b"ping")
        .unwrap();
    bed.send(|header| header.buf_alloc = 0);
    bed.host.write_all(b"ping").unwrap();
    bed.machine.device.poll().unwrap();
    assert_eq!(bed.answers(), [ask]);
}

#[test]
fn a_chain_of_thousands_of_buffers_is_cut_off() {
    let mut bed = bed();
    let empty = Buffer {
        address: 0x10_0000,
        len: 0,
        writable: false,
    };
    let header = bed
        .machine
        .guest
        .header(SOCKET, Op::CreditRequest, Shutdown::empty(), 0);
    let memory = bed.machine.guest.memory();
    vm_memory::Bytes::write_slice(&*memory, &header.to_bytes(), vm_memory::GuestAddress(0xb000)).unwrap();
    let mut buffers = vec![empty; 250];
    buffers[0] = Buffer {
        address: 0xb000,
        len: 44,
        ..empty
    };
    assert!(bed.machine.guest.send_chain(&buffers, true));
    bed.machine.work();
    assert_eq!(bed.counters().packets_malformed, 1);
    bed.still_works();
}

#[test]
fn an_indirect_chain_is_taken() {
    let mut bed = bed();
    let header = bed
        .machine
        .guest
        .header(SOCKET, Op::CreditRequest, Shutdown::empty(), 0);
    let memory = bed.machine.guest.memory();
    vm_memory::Bytes::write_slice(&*memory, &header.to_bytes(), vm_memory::GuestAddress(0xb000)).unwrap();
    let half = |address| Buffer {
        address,
        len: 22,
        writable: false,
    };
    assert!(bed.machine.guest.send_chain(&[half(0xb000), half(0xb016)], true));
    assert_eq!(bed.answers(), [(Op::CreditUpdate.number(), SOCKET.guest_port)]);
    assert_eq!(bed.counters().packets_malformed, 0);
}

#[test]
fn a_receive_buffer_without_room_is_returned_empty() {
    let (device, handle) = Vsock::new(3).unwrap();
    let mut machine = Machine::new(device).unwrap();
    machine.guest.hold_receive_buffers(true);
    let [rx, ..] = machine.guest.queues();
    // The 128 good buffers are used up by answers first.
    assert_eq!(rx.free_descriptors(), 0);
    let socket = |port| Socket {
        guest_port: port,
        host_port: 1,
    };
    for port in 0..128 {
        machine.guest.connect(socket(port));
        machine.work();
    }
    while machine.guest.receive().is_some() {}
    let [rx, ..] = machine.guest.queues();
    for len in [0, 43, 44] {
        rx.add(&[Buffer {
            address: 0x10_0000,
            len,
            writable: true,
        }])
        .unwrap();
    }
    let outside = Buffer {
        address: 1 << 40,
        len: 4096,
        writable: true,
    };
    rx.add(&[outside]).unwrap();
    machine.guest.connect(socket(500));
    machine.work();
    assert_eq!(handle.counters().packets_malformed, 4);
    let [rx, ..] = machine.guest.queues();
    let used: Vec<u32> = std::iter::from_fn(|| rx.used()).map(|(_, len)| len).collect();
    assert_eq!(used, [0; 4]);
}

#[test]
fn queues_that_are_broken_stay_dead_until_a_reset() {
    let mut bed = bed();
    let [_, tx, _] = bed.machine.guest.queues();
    tx.corrupt_avail_index(30_000);
    bed.machine.work();
    assert_eq!(
        bed.host.read(&mut [0]).unwrap(),
        0,
        "the host learns that the guest is gone"
    );
    let before = bed.counters();
    for _ in 0..1000 {
        bed.machine.work();
    }
    assert_eq!(bed.counters(), before, "nothing more is done, or logged");
    bed.machine.reset().unwrap();
    bed.machine.guest.listen(SOCKET.guest_port);
    let (host, stream) = UnixStream::pair().unwrap();
    bed.handle.connect(SOCKET.host_port, SOCKET.guest_port, stream);
    bed.host = host;
    bed.machine
        .run_until(|guest| guest.state(SOCKET) == SocketState::Open)
        .unwrap();
    bed.still_works();
}

#[test]
fn a_flood_of_resets_without_receive_buffers_pauses_the_transmit_queue() {
    let mut bed = bed();
    bed.machine.guest.hold_receive_buffers(true);
    let mut sent = 0;
    for port in 2000..4000 {
        let mut header = bed
            .machine
            .guest
            .header(SOCKET, Op::ReadWrite, Shutdown::empty(), 0);
        header.src_port = port;
        if !bed.machine.guest.send_raw(&header.to_bytes(), &[]) {
            break;
        }
        sent += 1;
        bed.machine.work();
    }
    // 128 receive buffers, 256 resets that wait, 128 packets that nobody takes; bed() used few.
    assert!((450..=512).contains(&sent), "the guest is stopped: {sent}");
    while bed.machine.guest.receive().is_some() {}
    bed.machine.guest.hold_receive_buffers(false);
    let mut resets = bed.counters().resets_sent;
    bed.machine
        .run_until(|_| {
            resets = bed.handle.counters().resets_sent;
            resets == sent
        })
        .unwrap();
    bed.still_works();
}

#[test]
fn connections_are_limited() {
    let mut kept = Vec::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    let (device, handle) = Vsock::new(3).unwrap();
    let device = device.on_dial(move |_| {
        let (ours, theirs) = UnixStream::pair().ok()?;
        sender.send(ours).ok()?;
        Some(theirs)
    });
    let mut machine = Machine::new(device).unwrap();
    let socket = |port| Socket {
        guest_port: port,
        host_port: 1,
    };
    for port in 0..1100 {
        machine.guest.connect(socket(port));
        machine.step();
    }
    machine
        .run_until(|guest| (0..1100).all(|port| guest.state(socket(port)) != SocketState::Connecting))
        .unwrap();
    kept.extend(receiver.try_iter());
    assert_eq!((kept.len(), handle.counters().connections_open), (1024, 1024));
    assert_eq!(handle.counters().connections_refused, 76);
}
