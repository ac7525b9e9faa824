//! Connections between a mock guest and Unix streams, through real virtqueues.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown as Direction;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;

use kata_virtio::Device;
use kata_virtio::mock::vsock::{Machine, Socket, SocketState};
use kata_virtio::vsock::packet::{HEADER_BYTES, Op, Shutdown};
use kata_virtio::vsock::{Handle, Vsock};

const GUEST_PORT: u32 = 1024;

fn machine() -> (Machine, Handle) {
    let (device, handle) = Vsock::new(3).unwrap();
    let mut machine = Machine::new(device).unwrap();
    machine.guest.listen(GUEST_PORT);
    (machine, handle)
}

/// A connection that the host opened.
fn dialed(machine: &mut Machine, handle: &Handle, host_port: u32) -> (UnixStream, Socket) {
    let (host, stream) = UnixStream::pair().unwrap();
    (host, dialed_from(stream, machine, handle, host_port))
}

/// A connection that the host opened, of which the device has this end of a stream.
fn dialed_from(stream: UnixStream, machine: &mut Machine, handle: &Handle, host_port: u32) -> Socket {
    handle.connect(host_port, GUEST_PORT, stream);
    let socket = Socket {
        guest_port: GUEST_PORT,
        host_port,
    };
    machine
        .run_until(|guest| guest.accepted().contains(&socket))
        .unwrap();
    machine.step();
    socket
}

/// Bytes that differ at every place of a stream and between streams.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .collect()
}

fn would_block(result: io::Result<usize>) -> bool {
    result.is_err_and(|cause| cause.kind() == ErrorKind::WouldBlock)
}

#[test]
fn the_host_connects_and_bytes_written_before_are_delivered() {
    let (mut machine, handle) = machine();
    let (mut host, stream) = UnixStream::pair().unwrap();
    host.write_all(b"early").unwrap();
    drop(host);
    handle.connect(9, GUEST_PORT, stream);
    let socket = Socket {
        guest_port: GUEST_PORT,
        host_port: 9,
    };
    machine
        .run_until(|guest| {
            guest.received(socket) == b"early" && guest.host_shutdown(socket) == Shutdown::all()
        })
        .unwrap();
}

#[test]
fn the_guest_connects_where_somebody_answers() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut answer = Some(theirs);
    let (device, handle) = Vsock::new(3).unwrap();
    let device = device.on_dial(move |port| (port == 5000).then(|| answer.take())?);
    let mut machine = Machine::new(device).unwrap();
    let [good, bad] = [5000, 5001].map(|host_port| Socket {
        guest_port: 1,
        host_port,
    });
    machine.guest.connect(good);
    machine.guest.connect(bad);
    machine
        .run_until(|guest| guest.state(good) == SocketState::Open && guest.state(bad) == SocketState::Reset)
        .unwrap();
    machine.guest.write(good, b"hello");
    machine.step();
    let mut hello = [0; 5];
    ours.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    assert_eq!(handle.counters().connections_refused, 1);
    assert_eq!(handle.counters().connections_open, 1);
}

#[test]
fn without_anybody_to_answer_the_guest_is_refused() {
    let (mut machine, _handle) = machine();
    let socket = Socket {
        guest_port: 1,
        host_port: 1,
    };
    machine.guest.connect(socket);
    machine
        .run_until(|guest| guest.state(socket) == SocketState::Reset)
        .unwrap();
}

#[test]
fn a_port_where_the_guest_does_not_listen_closes_the_stream() {
    let (mut machine, handle) = machine();
    let (mut host, stream) = UnixStream::pair().unwrap();
    host.write_all(b"nobody reads this").unwrap();
    handle.connect(9, 77, stream);
    machine
        .run_until(|_| handle.counters().connections_refused == 1)
        .unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0, "an end of file, not ECONNRESET");
    assert_eq!(handle.counters().connections_open, 0);
}

#[test]
fn a_pair_of_ports_in_use_closes_the_second_stream() {
    let (mut machine, handle) = machine();
    let (mut first, socket) = dialed(&mut machine, &handle, 9);
    let (mut second, stream) = UnixStream::pair().unwrap();
    handle.connect(9, GUEST_PORT, stream);
    machine
        .run_until(|_| handle.counters().connections_refused == 1)
        .unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    first.write_all(b"alive").unwrap();
    machine
        .run_until(|guest| guest.received(socket) == b"alive")
        .unwrap();
}

#[test]
fn the_host_half_closes_and_still_receives() {
    let (mut machine, handle) = machine();
    let (mut host, socket) = dialed(&mut machine, &handle, 9);
    host.write_all(b"question").unwrap();
    host.shutdown(Direction::Write).unwrap();
    machine
        .run_until(|guest| guest.host_shutdown(socket) == Shutdown::SEND)
        .unwrap();
    assert_eq!(machine.guest.received(socket), b"question");
    machine.guest.write(socket, b"answer");
    machine.step();
    machine.guest.shutdown(socket, Shutdown::SEND);
    machine
        .run_until(|guest| guest.state(socket) == SocketState::Reset)
        .unwrap();
    let mut answer = String::new();
    host.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(handle.counters().connections_open, 0);
}

#[test]
fn the_guest_half_closes_and_still_receives() {
    let (mut machine, handle) = machine();
    let (mut host, socket) = dialed(&mut machine, &handle, 9);
    machine.guest.write(socket, b"question");
    machine.step();
    machine.guest.shutdown(socket, Shutdown::SEND);
    machine.step();
    let mut question = String::new();
    host.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    host.write_all(b"answer").unwrap();
    machine
        .run_until(|guest| guest.received(socket) == b"answer")
        .unwrap();
    drop(host);
    machine
        .run_until(|guest| guest.state(socket) == SocketState::Reset)
        .unwrap();
    assert_eq!(handle.counters().connections_open, 0);
}

#[test]
fn the_guest_closing_at_once_loses_nothing_that_it_sent() {
    let (mut machine, handle) = machine();
    let (mut host, socket) = dialed(&mut machine, &handle, 9);
    // More than a socket buffer, so that the device holds the end of it.
    let sent = pattern(1, 400 << 10);
    machine.guest.write(socket, &sent);
    machine
        .run_until(|guest| guest.unsent(socket) == 0 && handle.counters().bytes_buffered > 0)
        .unwrap();
    machine.guest.shutdown(socket, Shutdown::all());
    machine
        .run_until(|guest| guest.state(socket) == SocketState::Reset)
        .unwrap();
    assert_eq!(handle.counters().connections_open, 1, "it lingers");
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        host.read_to_end(&mut got).map(|_| got)
    });
    machine
        .run_until(|_| handle.counters().connections_open == 0)
        .unwrap();
    assert_eq!(handle.counters().bytes_buffered, 0);
    assert!(reader.join().unwrap().unwrap() == sent);
}

#[test]
fn the_guest_that_receives_no_more_makes_the_hosts_writes_fail() {
    let (mut machine, handle) = machine();
    let (mut host, socket) = dialed(&mut machine, &handle, 9);
    machine.guest.shutdown(socket, Shutdown::RECEIVE);
    machine.step();
    machine.step();
    assert_eq!(
        host.write(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe,
        "or a writer would wait for ever"
    );
    machine.guest.write(socket, b"still sending");
    machine.step();
    let mut got = [0; 13];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still sending");
}

#[test]
fn a_host_that_is_gone_ends_the_connection_and_the_books_stay_right() {
    let (mut machine, handle) = machine();
    let (host, socket) = dialed(&mut machine, &handle, 9);
    drop(host);
    machine
        .run_until(|guest| guest.host_shutdown(socket) == Shutdown::all())
        .unwrap();
    machine.guest.write(socket, &pattern(2, 1 << 20));
    machine.run_until(|guest| guest.unsent(socket) == 0).unwrap();
    machine.guest.shutdown(socket, Shutdown::all());
    machine
        .run_until(|guest| guest.state(socket) == SocketState::Reset)
        .unwrap();
    assert_eq!(handle.counters().connections_open, 0);
    assert_eq!(handle.counters().bytes_buffered, 0);
}

#[test]
fn a_host_that_goes_with_bytes_unread_gives_their_credit_back() {
    let (mut machine, handle) = machine();
    let (host, socket) = dialed(&mut machine, &handle, 9);
    machine.guest.write(socket, &pattern(2, 2 << 20));
    machine
        .run_until(|_| handle.counters().bytes_buffered == 256 << 10)
        .unwrap();
    drop(host);
    machine.run_until(|guest| guest.unsent(socket) == 0).unwrap();
    assert_eq!(handle.counters().bytes_buffered, 0);
}

#[test]
fn ports_can_be_used_again_after_a_connection() {
    let (mut machine, handle) = machine();
    for round in 0..50u8 {
        let (mut host, socket) = dialed(&mut machine, &handle, 9);
        host.write_all(&[round]).unwrap();
        machine
            .run_until(|guest| guest.received(socket) == [round])
            .unwrap();
        machine.guest.shutdown(socket, Shutdown::all());
        machine
            .run_until(|guest| guest.state(socket) == SocketState::Reset)
            .unwrap();
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(handle.counters().connections_total, 50);
    assert_eq!(handle.counters().connections_open, 0);
}

#[test]
fn sixty_four_mebibytes_each_way_arrive_unchanged() {
    const TOTAL: usize = 64 << 20;
    /// What the guest can send ahead for certain: its credit without the quarter that the device need not
    /// have told it of. More than [`STREAM`] holds.
    const LATE: usize = 192 << 10;
    /// Linux takes twice as much, and half of that again for the last write: unix(7), socket(7). How
    /// little fits depends on the sizes of the writes, so nothing may count on that.
    const STREAM: usize = 32 << 10;
    let (mut machine, handle) = machine();
    let (host, stream) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&stream, STREAM).unwrap();
    let socket = dialed_from(stream, &mut machine, &handle, 9);
    let (close, closed) = mpsc::channel();
    let up = pattern(3, TOTAL);
    let down = pattern(4, TOTAL);
    let (reader, writer) = (host.try_clone().unwrap(), host);
    let to_guest = down.clone();
    let writing = thread::spawn(move || {
        (&writer).write_all(&to_guest).unwrap();
        writer.shutdown(Direction::Write).unwrap();
    });
    let reading = thread::spawn(move || {
        let mut got = Vec::with_capacity(TOTAL);
        // The end of the stream is taken after the guest has closed its socket.
        (&reader)
            .take(u64::try_from(TOTAL - LATE).unwrap())
            .read_to_end(&mut got)
            .unwrap();
        closed.recv().unwrap();
        (&reader).read_to_end(&mut got).unwrap();
        got
    });
    machine.guest.write(socket, &up);
    let mut shut = false;
    machine
        .run_until(|guest| {
            if guest.unsent(socket) == 0 && !shut {
                guest.shutdown(socket, Shutdown::SEND);
                shut = true;
            }
            guest.state(socket) == SocketState::Reset
        })
        .unwrap();
    assert_eq!(handle.counters().connections_open, 1, "it lingers");
    close.send(()).unwrap();
    machine
        .run_until(|_| handle.counters().connections_open == 0)
        .unwrap();
    writing.join().unwrap();
    assert!(reading.join().unwrap() == up, "guest to host");
    assert!(machine.guest.received(socket) == down, "host to guest");
    let counters = handle.counters();
    let total = u64::try_from(TOTAL).unwrap();
    assert_eq!(
        (counters.bytes_from_guest, counters.bytes_to_guest),
        (total, total)
    );
    assert_eq!((counters.packets_malformed, counters.connections_open), (0, 0));
}

#[test]
fn two_hundred_fifty_six_connections_at_once_keep_their_bytes_apart() {
    const COUNT: u32 = 256;
    const EACH: usize = 20_000;
    let (mut machine, handle) = machine();
    let mut hosts = Vec::new();
    for port in 0..COUNT {
        let (host, stream) = UnixStream::pair().unwrap();
        handle.connect(port, GUEST_PORT, stream);
        (&host).write_all(&pattern(port, EACH)).unwrap();
        hosts.push(host);
    }
    let socket = |host_port| Socket {
        guest_port: GUEST_PORT,
        host_port,
    };
    machine
        .run_until(|guest| (0..COUNT).all(|port| guest.received(socket(port)).len() == EACH))
        .unwrap();
    for port in 0..COUNT {
        assert!(machine.guest.received(socket(port)) == pattern(port, EACH));
        machine.guest.write(socket(port), &pattern(!port, EACH));
    }
    machine
        .run_until(|guest| (0..COUNT).all(|port| guest.unsent(socket(port)) == 0))
        .unwrap();
    machine.step();
    for (port, mut host) in (0..).zip(hosts) {
        let mut got = vec![0; EACH];
        host.read_exact(&mut got).unwrap();
        assert!(got == pattern(!port, EACH));
    }
    assert_eq!(handle.counters().connections_open, u64::from(COUNT));
}

#[test]
fn connections_take_turns() {
    const COUNT: u32 = 8;
    let (mut machine, handle) = machine();
    let hosts: Vec<_> = (0..COUNT)
        .map(|port| dialed(&mut machine, &handle, port).0)
        .collect();
    machine.guest.hold_receive_buffers(true);
    for host in &hosts {
        (&*host).write_all(&[1; 120_000]).unwrap();
    }
    machine.device.poll().unwrap();
    machine.work();
    let mut sent = [0u32; 8];
    while let Some((header, payload)) = machine.guest.receive() {
        if header.op == Op::ReadWrite.number() {
            assert!(!payload.is_empty());
            sent[usize::try_from(header.src_port).unwrap()] += 1;
        }
    }
    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
    assert!(
        *least >= 8 && most - least <= 1,
        "packets per connection: {sent:?}"
    );
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_and_memory_is_bounded() {
    let (mut machine, handle) = machine();
    let (mut host, socket) = dialed(&mut machine, &handle, 9);
    let sent = pattern(5, 4 << 20);
    machine.guest.write(socket, &sent);
    machine.run_until(|guest| guest.credit(socket) == 0).unwrap();
    for _ in 0..100 {
        machine.step();
    }
    assert_eq!(
        handle.counters().bytes_buffered,
        256 << 10,
        "the credit, and no more"
    );
    assert!(machine.guest.unsent(socket) > 3 << 20);
    let reader = thread::spawn(move || {
        let mut got = vec![0; 4 << 20];
        host.read_exact(&mut got).map(|()| got)
    });
    machine
        .run_until(|_| handle.counters().bytes_from_guest == 4 << 20 && handle.counters().bytes_buffered == 0)
        .unwrap();
    assert!(reader.join().unwrap().unwrap() == sent);
}

#[test]
fn a_guest_without_receive_buffers_stops_the_host() {
    let (mut machine, handle) = machine();
    let (host, socket) = dialed(&mut machine, &handle, 9);
    host.set_nonblocking(true).unwrap();
    machine.guest.hold_receive_buffers(true);
    let mut written = 0;
    let block = [7; 64 << 10];
    for _ in 0..200 {
        match (&host).write(&block) {
            Ok(count) => written += count,
            Err(cause) => assert_eq!(cause.kind(), ErrorKind::WouldBlock),
        }
        machine.step();
    }
    assert!(would_block((&host).write(&block)), "the host is stopped");
    assert!(
        written < 2 << 20,
        "128 buffers of 4 KiB, a read-ahead and the socket's buffer: {written}"
    );
    machine.guest.hold_receive_buffers(false);
    machine
        .run_until(|guest| guest.received(socket).len() == written)
        .unwrap();
    assert_eq!(handle.counters().connections_open, 1);
}

#[test]
fn a_guest_that_does_not_read_stops_the_host() {
    let (mut machine, handle) = machine();
    machine.guest.grant(64 << 10, false);
    let (host, socket) = dialed(&mut machine, &handle, 9);
    host.set_nonblocking(true).unwrap();
    let mut written = 0;
    for _ in 0..200 {
        written += (&host).write(&[7; 4096]).unwrap_or(0);
        machine.step();
    }
    assert!(would_block((&host).write(&[7; 4096])), "the host is stopped");
    assert_eq!(
        machine.guest.received(socket).len(),
        64 << 10,
        "the guest's credit"
    );
    let mut got = 0;
    machine
        .run_until(|guest| {
            got += guest.take(socket).len();
            got == written
        })
        .unwrap();
}

#[test]
fn a_payload_may_be_cut_anywhere() {
    let (mut machine, handle) = machine();
    let (mut host, socket) = dialed(&mut machine, &handle, 9);
    let cuts: [&[usize]; 5] = [
        &[],
        &[HEADER_BYTES],
        &[HEADER_BYTES, HEADER_BYTES + 32768],
        &[1, 43, 45, 46, 5000],
        &[HEADER_BYTES + 1],
    ];
    for (seed, cuts) in (0..).zip(cuts) {
        machine.guest.cuts = cuts.to_vec();
        let sent = pattern(seed, 60_000);
        machine.guest.write(socket, &sent);
        machine.run_until(|guest| guest.unsent(socket) == 0).unwrap();
        let mut got = vec![0; sent.len()];
        host.read_exact(&mut got).unwrap();
        assert!(got == sent, "cut at {cuts:?}");
    }
    assert_eq!(handle.counters().packets_malformed, 0);
}

#[test]
fn the_unix_socket_face_speaks_the_published_protocol() {
    let name = format!("kata-virtio-face-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let (device, handle) = Vsock::new(3).unwrap();
    let mut machine = Machine::new(device.listen(listener)).unwrap();
    machine.guest.listen(GUEST_PORT);

    let mut refused = UnixStream::connect_addr(&address).unwrap();
    refused.write_all(b"CONNECT 77\n").unwrap();
    let mut nonsense = UnixStream::connect_addr(&address).unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    nonsense.write_all(&[b'x'; 32]).unwrap();
    let mut client = UnixStream::connect_addr(&address).unwrap();
    client.write_all(b"CONNECT 10").unwrap();
    machine.step();
    client.write_all(b"24\nfirst bytes").unwrap();
    let mut accepted = Vec::new();
    machine
        .run_until(|guest| {
            accepted.extend(guest.accepted());
            accepted
                .first()
                .is_some_and(|&socket| guest.received(socket) == b"first bytes")
        })
        .unwrap();
    let socket = accepted[0];
    let greeting = format!("OK {}\n", socket.host_port);
    let mut line = vec![0; greeting.len()];
    client.read_exact(&mut line).unwrap();
    assert_eq!(line, greeting.as_bytes());
    machine.guest.write(socket, &pattern(6, 1 << 16));
    machine.run_until(|guest| guest.unsent(socket) == 0).unwrap();
    let mut got = vec![0; 1 << 16];
    client.read_exact(&mut got).unwrap();
    assert!(got == pattern(6, 1 << 16));

    let mut nothing = Vec::new();
    assert_eq!(refused.read_to_end(&mut nothing).unwrap(), 0, "refused");
    assert!(nonsense.read_to_end(&mut nothing).is_err() || nothing.is_empty());
    assert_eq!(handle.counters().connections_open, 1);
}

#[test]
fn a_reset_ends_connections_delivers_what_was_sent_and_starts_anew() {
    let (mut machine, handle) = machine();
    let (mut full, full_socket) = dialed(&mut machine, &handle, 9);
    let (mut idle, _) = dialed(&mut machine, &handle, 10);
    let sent = pattern(7, 400 << 10);
    machine.guest.write(full_socket, &sent);
    machine
        .run_until(|_| {
            handle.counters().bytes_from_guest == 400 << 10 && handle.counters().bytes_buffered > 0
        })
        .unwrap();
    machine.reset().unwrap();
    machine.guest.listen(GUEST_PORT);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    let (mut fresh, socket) = dialed(&mut machine, &handle, 9);
    fresh.write_all(b"anew").unwrap();
    machine
        .run_until(|guest| guest.received(socket) == b"anew")
        .unwrap();
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        full.read_to_end(&mut got).map(|_| got)
    });
    machine
        .run_until(|_| handle.counters().connections_open == 1)
        .unwrap();
    assert!(reader.join().unwrap().unwrap() == sent);
}

#[test]
fn a_device_that_is_dropped_closes_what_waits() {
    let (device, handle) = Vsock::new(3).unwrap();
    let (mut before, stream) = UnixStream::pair().unwrap();
    handle.connect(1, 1, stream);
    drop(device);
    assert_eq!(before.read(&mut [0]).unwrap(), 0);
    let (mut after, stream) = UnixStream::pair().unwrap();
    handle.connect(1, 1, stream);
    assert_eq!(after.read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_driver_is_told_of_a_transport_reset() {
    let (mut machine, handle) = machine();
    let memory = machine.guest.memory();
    let (mut host, _) = dialed(&mut machine, &handle, 9);
    let announce = |machine: &mut Machine| {
        let event = &mut machine.queues[2];
        machine.device.announce_reset(&*memory, event).unwrap()
    };
    assert_eq!(announce(&mut machine), None, "no buffer was offered");
    machine.guest.offer_event_buffer();
    assert_eq!(announce(&mut machine), Some(true));
    assert_eq!(machine.guest.event(), Some(0));
    assert_eq!(host.read(&mut [0]).unwrap(), 0, "connections are over");
}
