//! The block device served as vhost-user, against the vhost crate's frontend over one memfd.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use kata_virtio::Device;
use kata_virtio::block::{Block, Engine};
use kata_virtio::mock::block::{IOERR, OK, header, kind};
use kata_virtio::mock::{Chain, MEMORY_BYTES, Rings};
use kata_virtio::vhost_user::{self, Served};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const USER_ADDRESS: u64 = 0x7000_0000_0000;
const QUEUES: u16 = 3;
const DEADLINE_MS: i32 = 20_000;

/// A machine monitor with the mock's queues.
struct Monitor {
    rings: Rings,
    frontend: Frontend,
    features: u64,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
}

impl Monitor {
    /// Negotiates as QEMU does; no queue runs.
    fn new(stream: UnixStream) -> Self {
        let mut frontend = Frontend::from_stream(stream, QUEUES.into());
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE;
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(frontend.get_queue_num().unwrap(), u64::from(QUEUES));
        let events = || (0..QUEUES).map(|_| EventFd::new(0).unwrap()).collect();
        let mut monitor = Self {
            rings: Rings::new(&[256; QUEUES as usize]).unwrap(),
            frontend,
            features,
            kicks: events(),
            calls: events(),
        };
        monitor.tell_memory();
        monitor
    }

    fn tell_memory(&mut self) {
        self.frontend.set_features(self.features).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: u64::try_from(MEMORY_BYTES).unwrap(),
            userspace_addr: USER_ADDRESS,
            mmap_offset: 0,
            mmap_handle: self.rings.memory_file().as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    fn start(&mut self, queue: u16, position: u16) {
        let (frontend, index) = (&mut self.frontend, usize::from(queue));
        frontend.set_vring_num(index, 256).unwrap();
        frontend.set_vring_base(index, position).unwrap();
        let [desc, avail, used] = self.rings.queue(queue).addresses().map(|at| USER_ADDRESS + at);
        let config = VringConfigData {
            queue_max_size: 256,
            queue_size: 256,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &config).unwrap();
        frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
        frontend.set_vring_call(index, &self.calls[index]).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }

    /// Returns the position.
    fn stop(&mut self, queue: u16) -> u16 {
        let index = usize::from(queue);
        u16::try_from(self.frontend.get_vring_base(index).unwrap()).unwrap()
    }

    fn offer(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Chain {
        self.rings.queue(queue).ask_for_signal();
        let chain = self.rings.offer(queue, readable, writable).unwrap();
        if self.rings.queue(queue).wants_kick() {
            self.kicks[usize::from(queue)].write(1).unwrap();
        }
        chain
    }

    /// Waits for the signal, and for this chain; returns all that was written.
    fn answer(&mut self, queue: u16, chain: &Chain) -> Vec<u8> {
        let call = &self.calls[usize::from(queue)];
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, call.as_raw_fd(), event).unwrap();
        let signals = epoll.wait(DEADLINE_MS, &mut [EpollEvent::default()]).unwrap();
        assert_eq!(signals, 1, "no signal");
        call.read().unwrap();
        assert_eq!(self.rings.used(queue).unwrap().0, chain.head);
        self.rings.written(chain, u32::MAX)
    }

    fn read(&mut self, queue: u16, sector: u64) -> Vec<u8> {
        let chain = self.offer(queue, &[&header(kind::IN, sector)], &[512, 1]);
        self.answer(queue, &chain)
    }

    fn write(&mut self, queue: u16, sector: u64, data: &[u8]) -> u8 {
        let chain = self.offer(queue, &[&header(kind::OUT, sector), data], &[1]);
        self.answer(queue, &chain)[0]
    }
}

fn image() -> File {
    let file = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let sector = |number: u64| number.to_le_bytes().repeat(64);
    (&file)
        .write_all(&(0..2048).flat_map(sector).collect::<Vec<u8>>())
        .unwrap();
    file
}

fn served(engine: Engine) -> (Served, Monitor, File) {
    let file = image();
    let device = Block::new(file.try_clone().unwrap())
        .queues(QUEUES)
        .serial("served")
        .engine(engine);
    let (served, fd) = vhost_user::serve(device.build().unwrap()).unwrap();
    (served, Monitor::new(UnixStream::from(fd)), file)
}

fn sector(number: u64) -> Vec<u8> {
    [number.to_le_bytes().repeat(64), vec![OK]].concat()
}

#[test]
fn features_and_configuration_are_the_device_s() {
    let (_served, mut monitor, file) = served(Engine::Plain);
    let device = Block::new(file).queues(QUEUES).build().unwrap();
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    assert_eq!(monitor.features, device.features() | protocol);
    let flags = VhostUserConfigFlags::WRITABLE;
    let read = |monitor: &mut Monitor, size: u32| {
        let room = vec![0; usize::try_from(size).unwrap()];
        monitor.frontend.get_config(0, size, flags, &room).unwrap().1
    };
    let config = device.config();
    assert_eq!(read(&mut monitor, 60), config);
    // A frontend of a newer version knows more fields.
    assert_eq!(read(&mut monitor, 96), [config, vec![0; 36]].concat());
    monitor.frontend.set_config(32, flags, &[0]).unwrap();
    assert_eq!(read(&mut monitor, 60)[32], 0);
}

#[test]
fn each_queue_starts_on_its_own_and_late_ones_disturb_nobody() {
    for engine in [Engine::Plain, Engine::IoUring] {
        let (served, mut monitor, file) = served(engine);
        monitor.start(0, 0);
        for number in 0..300 {
            assert_eq!(monitor.read(0, number), sector(number));
        }
        monitor.start(2, 0);
        assert_eq!(monitor.write(2, 9, &[9; 512]), OK);
        assert_eq!(monitor.read(0, 9)[..512], [9; 512]);
        let mut bytes = [0; 512];
        file.read_exact_at(&mut bytes, 9 * 512).unwrap();
        assert_eq!(bytes, [9; 512]);
        assert_eq!(monitor.write(2, 2048, &[9; 512]), IOERR);
        drop(monitor);
        served.wait().unwrap();
    }
}

#[test]
fn a_pause_loses_no_request_and_a_new_driver_finds_a_new_device() {
    for engine in [Engine::Plain, Engine::IoUring] {
        let (_served, mut monitor, _file) = served(engine);
        monitor.start(0, 0);
        monitor.start(1, 0);
        for number in 0..50 {
            assert_eq!(monitor.read(1, number), sector(number));
        }
        let chains: Vec<_> = (0..80)
            .map(|number| monitor.offer(0, &[&header(kind::IN, number)], &[512, 1]))
            .collect();
        let position = monitor.stop(0);
        assert_eq!(monitor.stop(1), 50);
        let mut answered = 0;
        while monitor.rings.used(0).is_some() {
            answered += 1;
        }
        assert_eq!(
            answered,
            usize::from(position),
            "what was taken is answered before the stop"
        );
        // Paused, and on.
        monitor.tell_memory();
        monitor.start(0, position);
        monitor.start(1, 50);
        let call = monitor.calls[0].try_clone().unwrap();
        while answered < 80 {
            if monitor.rings.used(0).is_some() {
                answered += 1;
            } else {
                monitor.rings.queue(0).ask_for_signal();
                if monitor.rings.used(0).is_some() {
                    answered += 1;
                } else {
                    call.read().unwrap();
                }
            }
        }
        for (number, chain) in (0..).zip(&chains) {
            assert_eq!(monitor.rings.written(chain, u32::MAX), sector(number));
        }
        // Another driver.
        monitor
            .frontend
            .set_config(32, VhostUserConfigFlags::WRITABLE, &[0])
            .unwrap();
        for queue in [0, 1] {
            monitor.stop(queue);
        }
        monitor.rings.renew();
        monitor.tell_memory();
        monitor.start(0, 0);
        monitor.calls[0] = EventFd::new(0).unwrap();
        monitor.frontend.set_vring_call(0, &monitor.calls[0]).unwrap();
        assert_eq!(monitor.read(0, 7), sector(7));
        let config = monitor
            .frontend
            .get_config(32, 1, VhostUserConfigFlags::WRITABLE, &[0]);
        assert_eq!(config.unwrap().1, [1], "what the last driver said is forgotten");
    }
}

#[test]
fn dropping_leaves_no_thread_and_no_descriptor() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks.count()
    };
    // Its own process: other tests open descriptors too.
    if std::env::var_os("KATA_VIRTIO_ALONE").is_none() {
        let itself = std::env::current_exe().unwrap();
        let status = std::process::Command::new(itself)
            .args(["--exact", "dropping_leaves_no_thread_and_no_descriptor"])
            .env("KATA_VIRTIO_ALONE", "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let before = (descriptors(), threads());
    for round in 0..20 {
        let engine = [Engine::Plain, Engine::IoUring][round % 2];
        let (served, mut monitor, _file) = served(engine);
        monitor.start(0, 0);
        for number in 0..20 {
            monitor.offer(0, &[&header(kind::OUT, number), &[1; 512]], &[1]);
        }
        drop(served);
    }
    // A thread that was joined is listed for a moment longer.
    let start = std::time::Instant::now();
    while (descriptors(), threads()) != before && start.elapsed().as_secs() < 60 {
        std::thread::yield_now();
    }
    assert_eq!((descriptors(), threads()), before);
}
