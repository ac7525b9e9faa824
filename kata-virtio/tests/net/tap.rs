//! Real taps, each in a network namespace of its own: nothing of the host is touched.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kata_virtio::mock::net::{Machine, Received};
use kata_virtio::net::{Features, FrameHeader, HEADER_BYTES, Net, Tap, TapError};
use kata_virtio::{COMMON_FEATURES, Device};
use rustix::thread::UnshareFlags;

use crate::bed::{pattern, skip};

const TRANSFER: usize = 64 << 20;
const PORT: u16 = 5001;
const DEADLINE: Duration = Duration::from_secs(60);

/// Whether taps and namespaces can be made here.
fn possible(name: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        skip(name, "taps and network namespaces need root");
        return false;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        skip(name, "the program ip is not installed");
        return false;
    }
    true
}

/// Runs in a network namespace of its own: `body` gets a tap there, named and addressed; what it returns
/// is the thread's result. The tap is also sent to the caller.
fn in_namespace<T: Send + 'static>(
    queues: u16,
    address: &'static str,
    body: impl FnOnce() -> T + Send + 'static,
) -> (JoinHandle<T>, Tap) {
    let (sender, taps): (Sender<Tap>, Receiver<Tap>) = channel();
    let thread = thread::spawn(move || {
        #[expect(deprecated, reason = "NEWNET touches no descriptor table")]
        rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
        let tap = Tap::open("kata%d", queues).unwrap();
        assert_eq!(tap.name(), Some("kata0"));
        ip(&["addr", "add", address, "dev", "kata0"]);
        ip(&["link", "set", "kata0", "up"]);
        ip(&["link", "set", "lo", "up"]);
        sender.send(tap).unwrap();
        body()
    });
    let tap = taps.recv_timeout(DEADLINE).unwrap();
    (thread, tap)
}

/// Runs `ip` in the calling thread's namespace.
fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

/// A driver that hands what it receives to another.
struct Port {
    machine: Machine,
    waiting: VecDeque<Received>,
    largest: usize,
    unfinished: usize,
}

impl Port {
    fn new(tap: Tap, features: u64) -> Self {
        let device = Net::new(tap).unwrap();
        let mut machine = Machine::with_features(device, features).unwrap();
        machine.guest.offer(0, 256, 2048);
        Self {
            machine,
            waiting: VecDeque::new(),
            largest: 0,
            unfinished: 0,
        }
    }

    /// Takes what the device delivered; returns whether there was anything.
    fn collect(&mut self, into: &mut VecDeque<Received>) -> bool {
        let frames = self.machine.guest.receive(0);
        let any = !frames.is_empty();
        for received in &frames {
            self.largest = self.largest.max(received.frame.len());
            self.unfinished += usize::from(received.header.flags & 1);
        }
        into.extend(frames);
        self.machine.guest.offer(0, 256, 2048);
        any
    }

    fn pass_on(&mut self) {
        while let Some(Received { header, frame }) = self.waiting.front() {
            if !self
                .machine
                .guest
                .send(0, header, frame, &[HEADER_BYTES, HEADER_BYTES + 1000])
            {
                return;
            }
            self.waiting.pop_front();
        }
    }
}

/// A cable between two devices, until `done`.
fn connect(left: &mut Port, right: &mut Port, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(
            Instant::now() < deadline,
            "the transfer hangs: {:?}",
            left.machine.device
        );
        left.machine.step();
        right.machine.step();
        let mut any = left.collect(&mut right.waiting);
        any |= right.collect(&mut left.waiting);
        left.pass_on();
        right.pass_on();
        if !any && left.waiting.is_empty() && right.waiting.is_empty() {
            left.machine.wait(Duration::from_millis(1)).unwrap();
        }
    }
}

/// Sends and receives at once; returns whether what came was right.
fn exchange(stream: TcpStream) -> bool {
    let mut sink = stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        let block = pattern(251 * 256);
        let mut left = TRANSFER;
        while left > 0 {
            let now = left.min(block.len());
            sink.write_all(&block[..now]).unwrap();
            left -= now;
        }
        sink.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut stream = stream;
    let (mut buffer, mut total, mut right) = (vec![0; 251 * 256], 0, true);
    let expected = pattern(2 * 251 * 256);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        right &= buffer[..count] == expected[total % 251..][..count];
        total += count;
    }
    sending.join().unwrap();
    right && total == TRANSFER
}

fn tcp_both_ways(features: u64) -> (Port, Port) {
    let here = Ipv4Addr::new(10, 9, 0, 1);
    let (listening, listener) = channel();
    let (server, left) = in_namespace(1, "10.9.0.1/24", move || {
        let socket = TcpListener::bind((here, PORT)).unwrap();
        listening.send(()).unwrap();
        exchange(socket.accept().unwrap().0)
    });
    listener.recv_timeout(DEADLINE).unwrap();
    let (client, right) = in_namespace(1, "10.9.0.2/24", move || {
        exchange(TcpStream::connect((here, PORT)).unwrap())
    });
    let (mut left, mut right) = (Port::new(left, features), Port::new(right, features));
    let start = Instant::now();
    connect(&mut left, &mut right, || {
        server.is_finished() && client.is_finished()
    });
    eprintln!("{} MiB each way in {:?}", TRANSFER >> 20, start.elapsed());
    assert!(server.join().unwrap() && client.join().unwrap());
    (left, right)
}

#[test]
fn tcp_passes_between_two_devices_with_every_offload() {
    if !possible("tcp_passes_between_two_devices_with_every_offload") {
        return;
    }
    let (left, right) = tcp_both_ways(u64::MAX);
    for port in [left, right] {
        assert!(port.largest > 32 << 10, "unsegmented frames: {}", port.largest);
        assert!(port.unfinished > 0, "frames with incomplete checksums");
        let figures = ["malformed", "dropped_from_guest", "dropped_to_guest"];
        assert_eq!(figures.map(|name| port.machine.figure(name)), [0; 3]);
    }
}

#[test]
fn tcp_passes_between_two_devices_without_any_offload() {
    if !possible("tcp_passes_between_two_devices_without_any_offload") {
        return;
    }
    let (left, right) = tcp_both_ways(COMMON_FEATURES);
    for port in [left, right] {
        assert!(port.largest <= 1514, "the tap segments: {}", port.largest);
        assert_eq!(port.unfinished, 0, "the tap completes checksums");
    }
}

/// A datagram to each of many ports of a neighbour: as many flows.
fn many_flows() {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    for port in 1000..1064 {
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 2), port);
        assert_eq!(socket.send_to(b"one of many", to).unwrap(), 11);
    }
}

#[test]
fn flows_are_spread_over_the_pairs_that_the_driver_uses() {
    if !possible("flows_are_spread_over_the_pairs_that_the_driver_uses") {
        return;
    }
    let (go, wait) = channel::<()>();
    let (sender, tap) = in_namespace(2, "10.9.0.1/24", move || {
        ip(&[
            "neigh",
            "add",
            "10.9.0.2",
            "lladdr",
            "02:00:00:00:00:07",
            "dev",
            "kata0",
        ]);
        while wait.recv().is_ok() {
            many_flows();
        }
    });
    let mut machine = Machine::new(Net::new(tap).unwrap().mac([2, 0, 0, 0, 0, 7])).unwrap();
    let flows = |machine: &mut Machine, pairs: u8| {
        machine.guest.command(&[4, 0, pairs, 0]);
        machine
            .run_until(|machine| machine.guest.answer() == Some(0))
            .unwrap();
        go.send(()).unwrap();
        let mut seen = [0; 2];
        machine
            .run_until(|machine| {
                for (pair, seen) in seen.iter_mut().enumerate() {
                    machine.guest.offer(pair, 256, 2048);
                    let frames = machine.guest.receive(pair);
                    *seen += frames
                        .iter()
                        .filter(|frame| frame.frame.ends_with(b"one of many"))
                        .count();
                }
                seen.iter().sum::<usize>() == 64
            })
            .unwrap();
        seen
    };
    let seen = flows(&mut machine, 2);
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    assert_eq!(flows(&mut machine, 1), [64, 0]);
    let seen = flows(&mut machine, 2);
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    drop(go);
    sender.join().unwrap();
}

#[test]
fn an_interface_that_is_removed_is_a_pulled_cable() {
    if !possible("an_interface_that_is_removed_is_a_pulled_cable") {
        return;
    }
    let (go, wait) = channel::<()>();
    let (remover, tap) = in_namespace(1, "10.9.0.1/24", move || {
        wait.recv().unwrap();
        ip(&["link", "set", "kata0", "down"]);
        wait.recv().unwrap();
        ip(&["link", "delete", "kata0"]);
    });
    let mut machine = Machine::new(Net::new(tap).unwrap()).unwrap();
    machine.guest.offer(0, 16, 2048);
    machine
        .run_until(|machine| machine.figure("frames_to_guest") > 0)
        .unwrap();

    // An interface that is down takes no frames, and is not gone.
    go.send(()).unwrap();
    machine
        .run_until(|machine| {
            machine.guest.send(0, &FrameHeader::default(), &pattern(60), &[]);
            machine.figure("dropped_from_guest") > 0
        })
        .unwrap();
    assert_eq!(machine.device.config()[6], 1);
    go.send(()).unwrap();
    machine
        .run_until(|machine| machine.device.config()[6] == 0)
        .unwrap();
    remover.join().unwrap();
    machine.step();
    assert!(!machine.wait(Duration::ZERO).unwrap(), "it would spin");
    let features = machine.device.features();
    machine.reset(features);
    machine.step();
    assert_eq!(machine.device.config()[6], 0);
}

#[test]
fn a_tap_of_the_wrong_shape_is_refused() {
    if !possible("a_tap_of_the_wrong_shape_is_refused") {
        return;
    }
    let (thread, tap) = in_namespace(1, "10.9.0.1/24", || {
        let twice = Tap::open("kata0", 1).unwrap_err();
        assert!(matches!(twice, TapError::Attach { .. }), "{twice}");
        assert!(matches!(Tap::open("kata1", 0), Err(TapError::NoQueues)));
        let tap = Tap::open("kata1", 3).unwrap();
        assert_eq!(tap.into_fds().len(), 3);
    });
    let again = Tap::from_fds(tap.into_fds()).unwrap();
    assert_eq!(again.name(), Some("kata0"));
    thread.join().unwrap();
    let net = Net::new(again).unwrap();
    assert_ne!(net.features() & Features::GUEST_TSO4.bits(), 0);
}
