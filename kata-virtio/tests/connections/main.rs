//! Connections between a mock guest and Unix streams, through real virtqueues.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bulk;

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
