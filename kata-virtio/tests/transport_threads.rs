//! virtio-mmio between threads: interrupts and kicks are never lost, several vCPUs share the registers,
//! the end leaves nothing behind; and the socket device end to end behind it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use kata_virtio::mock::vsock::{Guest, Socket, SocketState};
use kata_virtio::mock::{Act, Driver, Echo, Registers};
use kata_virtio::rng::Rng;
use kata_virtio::vsock::{Handle, Vsock};
use kata_virtio::{Kind, Memory};

const DEADLINE: Duration = Duration::from_secs(20);
const GUEST_PORT: u32 = 1024;

#[test]
fn ten_thousand_requests_lose_no_kick_and_no_interrupt() {
    let (device, director) = Echo::new().unwrap();
    let mut driver = Driver::new(device).unwrap();
    for request in 0..10_000u32 {
        let queue = u16::try_from(request % 2).unwrap();
        let sent = request.to_le_bytes();
        assert_eq!(driver.request(queue, &[&sent], &[4]).unwrap(), sent);
    }
    assert_eq!(director.story().requests, 10_000);
}

/// Linux turns a disk's write cache on or off so, and asks at once which of the two it has now.
#[test]
fn what_is_written_to_the_configuration_is_read_at_once_however_busy_the_device_is() {
    let (device, director) = Echo::new().unwrap();
    let mut driver = Driver::new(device).unwrap();
    for value in 1..=3 {
        director.direct(Act::Hold);
        let (read, is_read) = mpsc::channel();
        let shown = thread::scope(|scope| {
            // The device goes on once somebody has read, or is waiting for it.
            let director = &director;
            scope.spawn(move || {
                let _ = is_read.recv_timeout(Duration::from_millis(100));
                director.release();
            });
            driver.registers.write_config(3, &[100 + value]);
            let shown = driver.registers.config(3, 1);
            read.send(()).unwrap_or_default();
            shown
        });
        assert_eq!(shown, [100 + value]);
    }
}

#[test]
fn nobody_waits_for_a_configuration_write_of_a_device_that_panicked() {
    let (device, director) = Echo::new().unwrap();
    let mut driver = Driver::new(device).unwrap();
    director.direct(Act::Hold);
    director.direct(Act::Panic);
    thread::scope(|scope| {
        scope.spawn(|| director.release());
        driver.registers.write_config(3, &[100]);
        driver.registers.write_config(3, &[101]);
    });
    assert_eq!(driver.registers.config(3, 1), [4]);
}

#[test]
fn some_configuration_may_be_written_before_there_is_a_driver() {
    let (device, director) = Echo::new().unwrap();
    let mut driver = Driver::new(device).unwrap();
    driver.registers.reset();
    for (offset, bytes) in [(7, 2), (4, 8), (0, 1)] {
        driver.registers.write_config(offset, &[9; 8][..bytes]);
    }
    assert_eq!(director.story().config_writes, []);
    driver.registers.write_config(8, &[9; 4]);
    assert_eq!(driver.registers.config(7, 5), [8, 9, 9, 9, 9]);
}

#[test]
fn other_vcpus_at_the_registers_disturb_nothing() {
    let (device, director) = Echo::new().unwrap();
    let driver = Mutex::new(Driver::new(device).unwrap());
    let done = AtomicBool::new(false);
    let config_changes = thread::scope(|scope| {
        // One looks at everything and writes what it must not, one asks for other configurations.
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let registers = &mut driver.lock().unwrap().registers;
                for offset in (0x030..0x100).step_by(4).filter(|&offset| offset != 0x064) {
                    registers.read(offset);
                }
                registers.write(0x038, 4);
                registers.write(0x080, 0xdead_0000);
                registers.write_config(0, &[3; 8]);
            }
        });
        scope.spawn(|| {
            for change in 0..100 {
                director.direct(Act::Configure(vec![change; 16]));
            }
        });
        let mut config_changes = 0;
        for request in 0..1000u32 {
            let chain = {
                let mut driver = driver.lock().unwrap();
                let chain = driver.rings.offer(0, &[&request.to_le_bytes()], &[4]).unwrap();
                driver.rings.queue(0).ask_for_signal();
                driver.registers.notify(0);
                chain
            };
            let mut driver = driver.lock().unwrap();
            loop {
                if let Some(used) = driver.rings.used(0) {
                    assert_eq!(used, (chain.head, 4));
                    assert_eq!(driver.rings.written(&chain, 4), request.to_le_bytes());
                    break;
                }
                config_changes += driver.registers.wait().unwrap() >> 1;
            }
        }
        done.store(true, Ordering::SeqCst);
        config_changes
    });
    let mut driver = driver.into_inner().unwrap();
    let last = driver.registers.interrupted().unwrap_or_default() >> 1;
    assert!(config_changes + last > 0, "the other configurations are told");
    assert_eq!(driver.registers.status() & 64, 0);
}

#[test]
fn a_thread_for_each_start_and_none_at_the_end() {
    // Its own process: other tests have threads and descriptors too.
    if std::env::var_os("KATA_VIRTIO_ALONE").is_none() {
        let itself = std::env::current_exe().unwrap();
        let status = std::process::Command::new(itself)
            .args(["--exact", "a_thread_for_each_start_and_none_at_the_end"])
            .env("KATA_VIRTIO_ALONE", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    // A thread that was joined is listed for a moment longer.
    let come_to = |count| {
        let start = std::time::Instant::now();
        while threads() != count && start.elapsed().as_secs() < 60 {
            std::thread::yield_now();
        }
        assert_eq!(threads(), count);
    };
    let before = (descriptors(), threads());
    let mut driver = Driver::at_reset(Rng::new().unwrap()).unwrap();
    assert_eq!(threads(), before.1, "no thread before the driver is ready");
    for _ in 0..20 {
        driver.initialise(u64::MAX).unwrap();
        assert_eq!(driver.request(0, &[], &[8]).unwrap().len(), 8);
        come_to(before.1 + 1);
        driver.registers.mmio.pause().unwrap();
        come_to(before.1);
        driver.registers.mmio.resume().unwrap();
    }
    drop(driver);
    come_to(before.1);
    assert_eq!(descriptors(), before.0);
}

/// The mock's socket guest behind registers.
struct Machine {
    guest: Guest,
    registers: Registers,
    handle: Handle,
}

impl Machine {
    fn start(device: Vsock, handle: Handle) -> Self {
        let guest = Guest::new(3).unwrap();
        let memory = Memory::clone(&guest.memory());
        let registers = Registers::new(Box::new(device), memory).unwrap();
        let mut machine = Self {
            guest,
            registers,
            handle,
        };
        machine.initialise();
        machine
    }

    fn initialise(&mut self) {
        self.registers.negotiate(u64::MAX).unwrap();
        for (index, queue) in (0..).zip(self.guest.queues()) {
            assert!(self.registers.set_up(index, queue));
        }
        self.registers.go().unwrap();
    }

    fn kick(&mut self) {
        for (index, queue) in (0..).zip(self.guest.queues()) {
            if queue.wants_kick() {
                self.registers.kick(index).unwrap();
            }
        }
    }

    fn run_until(&mut self, mut holds: impl FnMut(&mut Guest) -> bool) {
        loop {
            self.guest.pump();
            let done = holds(&mut self.guest);
            self.kick();
            if done {
                return;
            }
            for queue in self.guest.queues() {
                queue.ask_for_signal();
            }
            // What came before it asked gives no signal any more.
            self.guest.pump();
            let done = holds(&mut self.guest);
            self.kick();
            if done {
                return;
            }
            self.registers.wait().unwrap();
        }
    }

    fn connected(&mut self, host_port: u32) -> (UnixStream, Socket) {
        let (host, stream) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(DEADLINE)).unwrap();
        host.set_write_timeout(Some(DEADLINE)).unwrap();
        self.guest.listen(GUEST_PORT);
        self.handle.connect(host_port, GUEST_PORT, stream);
        let socket = Socket {
            guest_port: GUEST_PORT,
            host_port,
        };
        self.run_until(|guest| guest.state(socket) == SocketState::Open);
        (host, socket)
    }
}

fn machine() -> Machine {
    let (device, handle) = Vsock::new(3).unwrap();
    Machine::start(device, handle)
}

#[test]
fn the_socket_device_carries_bytes_both_ways() {
    let mut machine = machine();
    assert_eq!(machine.registers.mmio.kind(), Kind::Vsock);
    assert_eq!(machine.registers.config(0, 8), 3u64.to_le_bytes());
    let (host, socket) = machine.connected(9);
    let down: Vec<u8> = (0..=255).cycle().take(4 << 20).collect();
    let up: Vec<u8> = (0..=254).cycle().take(4 << 20).collect();
    machine.guest.write(socket, &up);
    let got = thread::scope(|scope| {
        scope.spawn(|| (&host).write_all(&down).unwrap());
        let reader = scope.spawn(|| {
            let mut got = vec![0; 4 << 20];
            (&host).read_exact(&mut got).unwrap();
            got
        });
        machine.run_until(|guest| guest.received(socket).len() == 4 << 20 && guest.unsent(socket) == 0);
        reader.join().unwrap()
    });
    assert!(machine.guest.received(socket) == down);
    assert!(got == up);
}

#[test]
fn connections_survive_a_pause_and_end_with_a_reset() {
    let mut machine = machine();
    let (mut host, socket) = machine.connected(9);
    machine.registers.mmio.pause().unwrap();
    host.write_all(b"while paused").unwrap();
    machine.guest.write(socket, b"me too");
    machine.kick();
    machine.registers.mmio.resume().unwrap();
    machine.run_until(|guest| guest.received(socket) == b"while paused");
    let mut got = [0; 6];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"me too");

    machine.registers.reset();
    assert_eq!(host.read(&mut [0]).unwrap(), 0, "the connection is over");
}

#[test]
fn what_the_guest_sent_before_the_end_is_delivered() {
    let mut machine = machine();
    let (host, socket) = machine.connected(9);
    let sent: Vec<u8> = (0..=255).cycle().take(400 << 10).collect();
    machine.guest.write(socket, &sent);
    let handle = machine.handle.clone();
    machine.run_until(|guest| guest.unsent(socket) == 0 || handle.counters().bytes_from_guest == 400 << 10);
    let ending = thread::spawn(move || drop(machine));
    let mut got = Vec::new();
    (&host).read_to_end(&mut got).unwrap();
    assert!(got == sent, "{} of {}", got.len(), sent.len());
    ending.join().unwrap();
}
