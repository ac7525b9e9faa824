//! The device served as vhost-user, against the vhost crate's frontend over one memfd.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kata_virtio::mock::net::{Guest, Received};
use kata_virtio::net::{FrameHeader, HEADER_BYTES, MAX_FRAME_BYTES, Net};
use kata_virtio::vhost_user::{self, Served};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bed::{MAC, pattern, sockets, tcp4_segments};

const DEADLINE: Duration = Duration::from_secs(20);
const USER_ADDRESS: u64 = 0x7000_0000_0000;

/// A machine monitor with the mock as its guest; it keeps the control queue to itself, as QEMU does.
struct Monitor {
    guest: Guest,
    frontend: Frontend,
    features: u64,
    pairs: usize,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
}

impl Monitor {
    fn start(stream: UnixStream, pairs: usize) -> Self {
        let queues = 2 * pairs;
        let mut frontend = Frontend::from_stream(stream, u64::try_from(queues + 1).unwrap());
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        frontend.get_protocol_features().unwrap();
        let protocol = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE;
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            guest: Guest::new(pairs).unwrap(),
            frontend,
            features,
            pairs,
            kicks: (0..queues).map(|_| event()).collect(),
            calls: (0..queues).map(|_| event()).collect(),
        }
    }

    /// The messages of a start, with these queues at these positions.
    fn start_queues(&mut self, positions: &[u16]) {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_features(self.features | protocol).unwrap();
        let (file, bytes) = self.guest.memory_file();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: u64::try_from(bytes).unwrap(),
            userspace_addr: USER_ADDRESS,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).unwrap();
        let queues = self.guest.queues();
        for (index, (queue, position)) in queues.into_iter().zip(positions).enumerate() {
            self.frontend.set_vring_num(index, queue.size()).unwrap();
            self.frontend.set_vring_base(index, *position).unwrap();
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
            self.frontend.set_vring_addr(index, &config).unwrap();
            self.frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
            self.frontend.set_vring_call(index, &self.calls[index]).unwrap();
        }
        self.enable(2 * self.pairs, true);
    }

    fn enable(&mut self, queues: usize, enable: bool) {
        for index in 0..queues {
            self.frontend.set_vring_enable(index, enable).unwrap();
        }
    }

    fn stop_queues(&mut self) -> Vec<u16> {
        self.enable(2 * self.pairs, false);
        let bases = (0..2 * self.pairs).map(|index| self.frontend.get_vring_base(index).unwrap());
        bases.map(|base| u16::try_from(base).unwrap()).collect()
    }

    fn kick(&mut self) {
        for (queue, kick) in self.guest.queues().into_iter().zip(&self.kicks) {
            if queue.wants_kick() {
                kick.write(1).unwrap();
            }
        }
    }

    /// Waits for the device's signals until the guest has received a frame.
    fn received(&mut self, pair: usize) -> Vec<Received> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let frames = self.guest.receive(pair);
            if !frames.is_empty() {
                return frames;
            }
            assert!(Instant::now() < deadline, "no frame in time");
            wait_readable(&self.calls[2 * pair]);
            self.calls[2 * pair].read().unwrap();
        }
    }
}

/// Waits within the deadline.
fn wait_readable(fd: &impl AsRawFd) {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        match epoll.wait(1000, &mut [EpollEvent::default()]) {
            Ok(0) => {}
            Ok(_) => return,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::Interrupted),
        }
    }
    panic!("no event in time");
}

/// The next frame that reaches the host.
fn taken(host: &OwnedFd) -> Received {
    wait_readable(host);
    let mut buffer = vec![0; HEADER_BYTES + MAX_FRAME_BYTES];
    let bytes = rustix::io::read(host, &mut buffer[..]).unwrap();
    let (header, frame) = buffer[..bytes].split_first_chunk().unwrap();
    Received {
        header: FrameHeader::from_bytes(header),
        frame: frame.to_vec(),
    }
}

fn send_to_guest(host: &OwnedFd, header: &FrameHeader, frame: &[u8]) {
    let message = [&header.to_bytes()[..], frame].concat();
    assert_eq!(rustix::io::write(host, &message), Ok(message.len()));
}

fn served(pairs: usize) -> (Served, Vec<OwnedFd>, Monitor) {
    let (host, tap) = sockets(pairs);
    let device = Net::new(tap).unwrap().mac(MAC).mtu(9000).unwrap();
    let (served, fd) = vhost_user::serve(device).unwrap();
    let mut monitor = Monitor::start(fd.into(), pairs);
    monitor.start_queues(&vec![0; 2 * pairs]);
    (served, host, monitor)
}

#[test]
fn frames_pass_both_ways_on_each_pair() {
    let (served, host, mut monitor) = served(2);
    let (frame, header) = (pattern(60_000), tcp4_segments(60_000));
    for (pair, host) in host.iter().enumerate() {
        assert!(monitor.guest.send(pair, &header, &frame, &[HEADER_BYTES, 5000]));
        monitor.guest.offer(pair, 64, 1526);
        monitor.kick();
        let taken = taken(host);
        assert_eq!(taken.header, header);
        assert!(taken.frame == frame);
        send_to_guest(host, &header, &frame);
        let received = monitor.received(pair);
        assert!(received[0].frame == frame);
        assert_eq!(received[0].header.num_buffers, 40);
    }
    drop(monitor);
    served.wait().unwrap();
}

#[test]
fn the_frontend_reads_the_configuration() {
    let (_served, _host, mut monitor) = served(2);
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = monitor.frontend.get_config(0, 12, flags, &[0; 12]).unwrap();
    assert_eq!(config, [2, 0, 0, 0, 0, 7, 1, 0, 2, 0, 0x28, 0x23]);
}

#[test]
fn a_pair_that_the_frontend_stopped_is_not_served() {
    let (_served, host, mut monitor) = served(2);
    for index in [2, 3] {
        monitor.frontend.set_vring_enable(index, false).unwrap();
    }
    for pair in [1, 0] {
        assert!(
            monitor
                .guest
                .send(pair, &FrameHeader::default(), &pattern(60 + pair), &[])
        );
        monitor.kick();
    }
    assert_eq!(taken(&host[0]).frame, pattern(60), "the turn is over");
    let nothing = rustix::io::read(&host[1], &mut [0; 100][..]);
    assert_eq!(nothing, Err(rustix::io::Errno::AGAIN));
    for index in [2, 3] {
        monitor.frontend.set_vring_enable(index, true).unwrap();
    }
    monitor.kicks[3].write(1).unwrap();
    assert_eq!(taken(&host[1]).frame, pattern(61));
}

#[test]
fn a_pause_loses_nothing_and_a_new_driver_begins_anew() {
    let (_served, host, mut monitor) = served(1);
    monitor.guest.offer(0, 8, 1526);
    monitor.kick();
    send_to_guest(&host[0], &FrameHeader::default(), &pattern(70));
    assert_eq!(monitor.received(0)[0].frame, pattern(70));
    let positions = monitor.stop_queues();
    send_to_guest(&host[0], &FrameHeader::default(), &pattern(71));
    monitor.start_queues(&positions);
    monitor.kicks[0].write(1).unwrap();
    assert_eq!(monitor.received(0)[0].frame, pattern(71));

    monitor.stop_queues();
    monitor.guest.reset();
    monitor.start_queues(&[0, 0]);
    monitor.guest.offer(0, 8, 1526);
    assert!(monitor.guest.send(0, &FrameHeader::default(), &pattern(72), &[]));
    monitor.kick();
    assert_eq!(taken(&host[0]).frame, pattern(72));
    send_to_guest(&host[0], &FrameHeader::default(), &pattern(73));
    assert_eq!(monitor.received(0)[0].frame, pattern(73));
}
