//! The device served as vhost-user, against the vhost crate's frontend over one memfd.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use kata_virtio::mock::vsock::{Guest, Socket, SocketState};
use kata_virtio::vhost_user::{self, Served};
use kata_virtio::vsock::packet::Shutdown;
use kata_virtio::vsock::{Handle, Vsock};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const DEADLINE: Duration = Duration::from_secs(20);
const USER_ADDRESS: u64 = 0x7000_0000_0000;
const GUEST_PORT: u32 = 1024;

/// A machine monitor with the mock as its guest.
struct Monitor {
    guest: Guest,
    frontend: Frontend,
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    signals: Epoll,
    kicked: u32,
}

impl Monitor {
    /// Negotiates as QEMU does and starts the queues.
    fn start(stream: UnixStream) -> Self {
        let mut frontend = Frontend::from_stream(stream, 3);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol_bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(features, kata_virtio::COMMON_FEATURES | protocol_bit);
        let offered = frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE;
        assert!(offered.contains(wanted));
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(frontend.get_queue_num().unwrap(), 3);
        let event = || EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        let mut monitor = Self {
            guest: Guest::new(3).unwrap(),
            frontend,
            kicks: [event(), event()],
            calls: [event(), event()],
            signals: Epoll::new().unwrap(),
            kicked: 0,
        };
        for call in &monitor.calls {
            let event = EpollEvent::new(EventSet::IN, 0);
            monitor
                .signals
                .ctl(ControlOperation::Add, call.as_raw_fd(), event)
                .unwrap();
        }
        monitor.start_queues([0, 0]);
        monitor
    }

    /// The messages of a (re)start, with the queues at these positions.
    fn start_queues(&mut self, positions: [u16; 2]) {
        let frontend = &mut self.frontend;
        frontend
            .set_features(kata_virtio::COMMON_FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
            .unwrap();
        let (file, bytes) = self.guest.memory_file();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: u64::try_from(bytes).unwrap(),
            userspace_addr: USER_ADDRESS,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let [rx, tx, _] = self.guest.queues();
        for (index, queue) in [rx, tx].into_iter().enumerate() {
            frontend.set_vring_num(index, queue.size()).unwrap();
            frontend.set_vring_base(index, positions[index]).unwrap();
            let [desc, avail, used] = queue.addresses().map(|address| USER_ADDRESS + address);
            let config = VringConfigData {
                queue_max_size: queue.size(),
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: desc,
                used_ring_addr: used,
                avail_ring_addr: avail,
                log_addr: None,
            };
            frontend.set_vring_addr(index, &config).unwrap();
            frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
            frontend.set_vring_call(index, &self.calls[index]).unwrap();
        }
        for index in 0..2 {
            frontend.set_vring_enable(index, true).unwrap();
        }
    }

    /// Stops the queues; returns their positions.
    fn stop_queues(&mut self) -> [u16; 2] {
        for index in 0..2 {
            self.frontend.set_vring_enable(index, false).unwrap();
        }
        [0, 1].map(|index| u16::try_from(self.frontend.get_vring_base(index).unwrap()).unwrap())
    }

    fn kick(&mut self) {
        let [rx, tx, _] = self.guest.queues();
        for (queue, kick) in [rx, tx].into_iter().zip(&self.kicks) {
            if queue.wants_kick() {
                kick.write(1).unwrap();
                self.kicked += 1;
            }
        }
    }

    /// Lets the guest work at each signal of the device until the condition holds.
    fn run_until(&mut self, mut holds: impl FnMut(&mut Guest) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.guest.pump();
            let done = holds(&mut self.guest);
            self.kick();
            if done {
                return;
            }
            assert!(Instant::now() < deadline, "the condition does not hold in time");
            let mut events = [EpollEvent::default(); 2];
            self.signals.wait(20, &mut events).unwrap();
            for call in &self.calls {
                match call.read() {
                    Ok(_) => {}
                    Err(cause) => assert_eq!(cause.kind(), ErrorKind::WouldBlock),
                }
            }
        }
    }

    fn connected(&mut self, handle: &Handle, host_port: u32) -> (UnixStream, Socket) {
        let (host, stream) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(DEADLINE)).unwrap();
        self.guest.listen(GUEST_PORT);
        handle.connect(host_port, GUEST_PORT, stream);
        let socket = Socket {
            guest_port: GUEST_PORT,
            host_port,
        };
        self.run_until(|guest| guest.state(socket) == SocketState::Open);
        (host, socket)
    }
}

fn served() -> (Served, Handle, Monitor) {
    let (device, handle) = Vsock::new(3).unwrap();
    let (served, fd) = vhost_user::serve(device).unwrap();
    (served, handle, Monitor::start(UnixStream::from(fd)))
}

fn read_exactly(mut host: &UnixStream, bytes: usize) -> Vec<u8> {
    let mut got = vec![0; bytes];
    host.read_exact(&mut got).unwrap();
    got
}

#[test]
fn bytes_go_both_ways_and_a_hang_up_ends_it() {
    let (served, handle, mut monitor) = served();
    let (host, socket) = monitor.connected(&handle, 9);
    let down: Vec<u8> = (0..=255).cycle().take(4 << 20).collect();
    let (to_guest, reader) = (down.clone(), host.try_clone().unwrap());
    let writing = thread::spawn(move || (&host).write_all(&to_guest).map(|()| host));
    let up: Vec<u8> = (0..=254).cycle().take(4 << 20).collect();
    monitor.guest.write(socket, &up);
    let reading = thread::spawn(move || read_exactly(&reader, 4 << 20));
    monitor.run_until(|guest| guest.received(socket).len() == 4 << 20 && guest.unsent(socket) == 0);
    assert!(monitor.guest.received(socket) == down);
    assert!(reading.join().unwrap() == up);
    let host = writing.join().unwrap().unwrap();
    assert!(
        monitor.kicked < 1500,
        "kicks are suppressed: {} for {:?}",
        monitor.kicked,
        handle.counters()
    );
    drop(monitor);
    served.wait().unwrap();
    assert_eq!((&host).read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_configuration_space_is_the_cid() {
    let (_served, _handle, mut monitor) = served();
    let mut read = |offset, bytes: &[u8]| {
        let flags = VhostUserConfigFlags::empty();
        let size = u32::try_from(bytes.len()).unwrap();
        monitor
            .frontend
            .get_config(offset, size, flags, bytes)
            .map(|(_, config)| config)
    };
    assert_eq!(read(0, &[0; 8]).unwrap(), 3u64.to_le_bytes());
    assert_eq!(read(4, &[0; 4]).unwrap(), [0; 4]);
}

#[test]
fn a_pause_keeps_connections_and_a_reset_ends_them() {
    let (_served, handle, mut monitor) = served();
    let (host, socket) = monitor.connected(&handle, 9);
    let positions = monitor.stop_queues();
    (&host).write_all(b"while paused").unwrap();
    monitor.start_queues(positions);
    monitor.run_until(|guest| guest.received(socket) == b"while paused");
    monitor.guest.write(socket, b"resumed");
    monitor.kick();
    assert_eq!(read_exactly(&host, 7), b"resumed");

    monitor.stop_queues();
    monitor.guest.reset().unwrap();
    monitor.start_queues([0, 0]);
    assert_eq!((&host).read(&mut [0]).unwrap(), 0, "the connection is over");
    let (host, socket) = monitor.connected(&handle, 9);
    monitor.guest.write(socket, b"anew");
    monitor.kick();
    assert_eq!(read_exactly(&host, 4), b"anew");
}

#[test]
fn the_reset_message_ends_connections() {
    let (_served, handle, mut monitor) = served();
    let (host, _) = monitor.connected(&handle, 9);
    monitor.frontend.reset_device().unwrap();
    assert_eq!((&host).read(&mut [0]).unwrap(), 0);
    monitor.stop_queues_quietly();
    monitor.guest.reset().unwrap();
    monitor.start_queues([0, 0]);
    monitor.connected(&handle, 9);
}

impl Monitor {
    /// After a reset message the rings are disabled and features are forgotten.
    fn stop_queues_quietly(&mut self) {
        for index in 0..2 {
            self.frontend.get_vring_base(index).unwrap();
        }
    }
}

#[test]
fn what_the_guest_sent_before_the_end_is_delivered() {
    let (served, handle, mut monitor) = served();
    let (host, socket) = monitor.connected(&handle, 9);
    let sent: Vec<u8> = (0..=255).cycle().take(400 << 10).collect();
    monitor.guest.write(socket, &sent);
    monitor.run_until(|_| {
        handle.counters().bytes_from_guest == 400 << 10 && handle.counters().bytes_buffered > 0
    });
    drop(monitor);
    let ending = thread::spawn(move || served.wait());
    let mut got = Vec::new();
    (&host).read_to_end(&mut got).unwrap();
    assert!(got == sent);
    ending.join().unwrap().unwrap();
}

#[test]
fn dropping_stops_everything_and_leaves_nothing() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    // Its own process: other tests open descriptors too.
    if std::env::var_os("KATA_VIRTIO_ALONE").is_none() {
        let itself = std::env::current_exe().unwrap();
        let status = std::process::Command::new(itself)
            .args(["--exact", "dropping_stops_everything_and_leaves_nothing"])
            .env("KATA_VIRTIO_ALONE", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let before = (descriptors(), threads());
    for _ in 0..20 {
        let (served, handle, mut monitor) = served();
        let (mut host, socket) = monitor.connected(&handle, 9);
        monitor.guest.shutdown(socket, Shutdown::SEND);
        monitor.kick();
        drop(served);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }
    // A thread that was joined is listed for a moment longer.
    let start = std::time::Instant::now();
    while (descriptors(), threads()) != before && start.elapsed().as_secs() < 60 {
        std::thread::yield_now();
    }
    assert_eq!((descriptors(), threads()), before);
}

#[test]
fn a_frontend_that_talks_nonsense_is_an_error() {
    let (device, _handle) = Vsock::new(3).unwrap();
    let (served, fd) = vhost_user::serve(device).unwrap();
    let mut stream = UnixStream::from(fd);
    stream.write_all(&[0xff; 64]).unwrap();
    let error = served.wait().unwrap_err();
    assert!(error.to_string().starts_with("vhost-user frontend: "), "{error}");
}
