//! The host's side of a device behind vhost-user: when it is listened to, and what its failures do.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kata_virtio::mock::{MEMORY_BYTES, Rings};
use kata_virtio::vhost_user::{self, Served};
use kata_virtio::{COMMON_FEATURES, Device, Kind, Memory, Meter, Signals};
use rustix::event::{EventfdFlags, eventfd};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

const DEADLINE: Duration = Duration::from_secs(20);
const USER_ADDRESS: u64 = 0x7000_0000_0000;
const FEATURES: u64 = COMMON_FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What the device does, and was asked.
#[derive(Default)]
struct Told {
    polls: AtomicU64,
    resets: AtomicU64,
    /// Its polls fail.
    fails: AtomicBool,
    /// A request is in flight for ever.
    hangs: AtomicBool,
}

/// A device of one queue whose host always has something for a guest that takes nothing.
struct Probe {
    event: OwnedFd,
    told: Arc<Told>,
}

impl Device for Probe {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![16]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn poll(&mut self) -> io::Result<()> {
        self.told.polls.fetch_add(1, Ordering::Relaxed);
        match self.told.fails.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    fn process(&mut self, _: &Memory, _: &mut [&mut Queue]) -> Signals {
        Signals::default()
    }

    fn reset(&mut self) {
        self.told.resets.fetch_add(1, Ordering::Relaxed);
    }

    fn settled(&self) -> bool {
        !self.told.hangs.load(Ordering::Relaxed)
    }

    fn meter(&self) -> Arc<dyn Meter> {
        Arc::clone(&self.told) as Arc<dyn Meter>
    }
}

impl Meter for Told {
    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![("polls", self.polls.load(Ordering::Relaxed))]
    }
}

impl Told {
    fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    fn wait_for_polls(&self, more_than: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.polls() <= more_than {
            assert!(Instant::now() < deadline, "the host's side is not looked at");
            std::thread::yield_now();
        }
    }
}

/// A machine monitor with the mock's queue.
struct Monitor {
    rings: Rings,
    frontend: Frontend,
    kick: EventFd,
    call: EventFd,
}

impl Monitor {
    fn new(stream: UnixStream) -> Self {
        let mut frontend = Frontend::from_stream(stream, 1);
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        Self {
            rings: Rings::new(&[16]).unwrap(),
            frontend,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
        }
    }

    fn start(&mut self) {
        let frontend = &mut self.frontend;
        frontend.set_features(FEATURES).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: u64::try_from(MEMORY_BYTES).unwrap(),
            userspace_addr: USER_ADDRESS,
            mmap_offset: 0,
            mmap_handle: self.rings.memory_file().as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        frontend.set_vring_num(0, 16).unwrap();
        frontend.set_vring_base(0, 0).unwrap();
        let [desc, avail, used] = self.rings.queue(0).addresses().map(|at| USER_ADDRESS + at);
        let config = VringConfigData {
            queue_max_size: 16,
            queue_size: 16,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        frontend.set_vring_addr(0, &config).unwrap();
        frontend.set_vring_kick(0, &self.kick).unwrap();
        frontend.set_vring_call(0, &self.call).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
    }

    /// Time in which a worker that spins shows it.
    fn talk(&mut self) {
        for _ in 0..500 {
            self.frontend.get_features().unwrap();
        }
    }
}

fn served() -> (Served, Monitor, Arc<Told>) {
    let told = Arc::new(Told::default());
    let device = Probe {
        event: eventfd(1, EventfdFlags::CLOEXEC).unwrap(),
        told: Arc::clone(&told),
    };
    let (served, fd) = vhost_user::serve(device).unwrap();
    (served, Monitor::new(UnixStream::from(fd)), told)
}

#[test]
fn the_host_is_not_listened_to_while_no_queue_runs() {
    let (_served, mut monitor, told) = served();
    monitor.talk();
    assert_eq!(told.polls(), 0);
    for _ in 0..2 {
        let before = told.polls();
        monitor.start();
        told.wait_for_polls(before);
        monitor.frontend.get_vring_base(0).unwrap();
        let stopped = told.polls();
        monitor.talk();
        assert!(told.polls() <= stopped + 1, "the worker spins");
    }
}

#[test]
fn a_host_that_cannot_be_followed_is_left_alone_until_a_new_driver_comes() {
    let (_served, mut monitor, told) = served();
    told.fails.store(true, Ordering::Relaxed);
    monitor.start();
    told.wait_for_polls(0);
    monitor.talk();
    assert_eq!(told.polls(), 1, "the worker spins");
    monitor.frontend.get_vring_base(0).unwrap();
    told.fails.store(false, Ordering::Relaxed);
    monitor.start();
    told.wait_for_polls(1);
    assert_eq!(told.resets.load(Ordering::Relaxed), 1);
}

#[test]
fn a_request_that_hangs_does_not_hold_the_frontend() {
    let (served, mut monitor, told) = served();
    monitor.start();
    told.wait_for_polls(0);
    told.hangs.store(true, Ordering::Relaxed);
    let begin = Instant::now();
    monitor.frontend.get_vring_base(0).unwrap_err();
    let waited = begin.elapsed();
    assert!((5..15).contains(&waited.as_secs()), "{waited:?}");
    drop(monitor);
    served.wait().unwrap_err();
}
