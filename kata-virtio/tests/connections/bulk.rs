//! Many bytes, many connections, and sides that do not read: turns, credit and bounded memory.

use super::*;

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
