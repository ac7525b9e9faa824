//! A device as the vhost-user framework wants to see it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::gate::Gate;
use super::starts::{Start, Starts};
use super::vring::Vring;
use crate::transport::name;
use crate::{Device, Signals};

/// Largest queue that is taken; QEMU's have 128 entries unless it is told otherwise.
const MAX_QUEUE_SIZE: usize = 1024;

/// How long the host may take to answer what is in flight when a queue is stopped.
const SETTLE: Duration = Duration::from_secs(5);

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// See the module.
pub(super) struct Backend {
    /// Its own lock is never waited for: the framework wants to share the backend between threads, which
    /// it does behind a lock around the whole, and a device is only `Send`.
    device: Mutex<Box<dyn Device>>,
    gate: Gate,
    /// The host's side cannot be followed: nothing is served until a new driver comes.
    lost: bool,
    queues: usize,
    /// The worker shall end.
    pub(super) stopping: bool,
    memory: Option<Memory>,
    features: u64,
    starts: Starts,
    /// The queues, from the first event on.
    vrings: Vec<Vring>,
}

impl Backend {
    pub(super) fn new(device: Box<dyn Device>) -> io::Result<Self> {
        let queues = device.queue_sizes().len();
        Ok(Self {
            device: Mutex::new(device),
            gate: Gate::new()?,
            lost: false,
            queues,
            stopping: false,
            memory: None,
            features: 0,
            starts: Starts::new(queues),
            vrings: Vec::new(),
        })
    }

    /// What the worker watches for the host's side.
    pub(super) fn events(&self) -> io::Result<OwnedFd> {
        self.gate.events().try_clone_to_owned()
    }

    pub(super) fn device(&mut self) -> &mut dyn Device {
        self.device
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
    }

    /// The event of the device's side on the host. Numbers up to that of the queues are the framework's.
    pub(super) fn host_event(&self) -> u16 {
        u16::try_from(self.queues + 1).unwrap_or(u16::MAX)
    }

    /// The event that ends the worker.
    pub(super) fn stop_event(&self) -> u16 {
        u16::try_from(self.queues + 2).unwrap_or(u16::MAX)
    }

    /// Lets the device work on its queues, if it has any. When `finishing`, it is given none to take from,
    /// and answers only what it took before.
    fn serve(&mut self, vrings: &[Vring], finishing: bool) -> io::Result<()> {
        let Some(memory) = self.memory.clone() else {
            return Ok(());
        };
        let memory = memory.memory();
        let mut states: Vec<_> = vrings.iter().map(|vring| vring.get_mut()).collect();
        for (index, state) in states.iter_mut().enumerate() {
            let enabled = state.is_enabled();
            let queue = state.get_queue_mut();
            if !finishing && enabled && queue.ready() {
                self.start(index, queue, &memory);
            }
        }
        if self.lost || !self.starts.any_active() {
            return Ok(());
        }
        // Queues that do not run are not ready to the device.
        let mut hidden = 0u64;
        for (index, state) in states.iter_mut().enumerate() {
            let runs = !finishing && state.is_enabled() && self.starts.is_active(index);
            let queue = state.get_queue_mut();
            if !runs && queue.ready() {
                queue.set_ready(false);
                hidden |= 1 << index;
            }
        }
        let mut queues: Vec<&mut Queue> = states.iter_mut().map(|state| state.get_queue_mut()).collect();
        let signals = self.device().process(&memory, &mut queues);
        for (index, queue) in queues.iter_mut().enumerate() {
            if hidden >> index & 1 == 1 {
                queue.set_ready(true);
            }
            if queue.ready() {
                self.starts.worked(index, queue.next_avail());
            }
        }
        for (index, state) in (0u16..).zip(&states) {
            if signals.queue(index) {
                state.signal_used_queue()?;
            }
        }
        self.note(signals);
        Ok(())
    }

    /// Takes note that a queue runs, if that is new.
    fn start(&mut self, index: usize, queue: &Queue, memory: &GuestMemoryMmap) {
        if !self.starts.is_stopped(index) {
            return;
        }
        let features = self.features;
        let position = queue.next_avail();
        let start = self
            .starts
            .start(index, queue.is_valid(memory), position, features);
        if start == Start::NewDriver {
            self.lost = false;
            self.device().reset();
        }
        if start != Start::Further {
            self.device().activate(features);
        }
    }

    fn note(&mut self, signals: Signals) {
        let name = name(self.device().kind());
        if signals.config {
            // The framework has no message for it.
            log::debug!("{name}: the frontend reads the new configuration when it asks next");
        }
        if signals.needs_reset {
            self.starts.broke();
            log::debug!("{name}: nothing is served until the driver resets the device");
        }
    }

    /// Takes note of what happened on the host's side. Without it the device is of no use to the driver.
    fn poll(&mut self) {
        if let Err(cause) = self.device().poll() {
            let name = name(self.device().kind());
            log::error!(
                "{name}: nothing is served until a new driver comes: the host's side is lost: {cause}"
            );
            self.lost = true;
            self.starts.broke();
        }
    }

    /// Watches the host's side as long as somebody acts on it: a queue, or output that waits for a host
    /// to take it. An event that nobody acts on stays, and would wake the worker without end.
    fn watch_host(&mut self) {
        let device = self.device.get_mut().unwrap_or_else(PoisonError::into_inner);
        let open = !self.lost && (self.starts.any_active() || !device.drained());
        if let Some(events) = device.events()
            && let Err(cause) = self.gate.set(events, open)
        {
            let name = name(device.kind());
            log::error!("{name}: the host's side cannot be watched: {cause}");
        }
    }

    /// Waits until the device has answered everything that it took.
    ///
    /// # Errors
    /// When it does not within [`SETTLE`], or cannot.
    fn finish(&mut self) -> io::Result<()> {
        let vrings = self.vrings.clone();
        let deadline = Instant::now() + SETTLE;
        while !self.device().settled() {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.lost || left.is_zero() || !wait_for_host(self.device(), left) {
                let name = name(self.device().kind());
                log::error!("{name}: the host does not answer what the guest has asked for");
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.poll();
            self.serve(&vrings, true)?;
        }
        Ok(())
    }
}

/// Waits for the device's side on the host; returns whether that is possible.
fn wait_for_host(device: &dyn Device, timeout: Duration) -> bool {
    let Some(events) = device.events() else {
        return false;
    };
    let timeout = Timespec::try_from(timeout).unwrap_or_default();
    let mut fds = [PollFd::from_borrowed_fd(events, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(_) | Err(Errno::INTR))
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        device.features() | PROTOCOL_FEATURES
    }

    fn acked_features(&mut self, features: u64) {
        self.features = features & !PROTOCOL_FEATURES;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&mut self) {
        self.starts = Starts::new(self.queues);
        self.lost = false;
        self.device().reset();
        self.watch_host();
    }

    /// The framework has set it on the queues.
    fn set_event_idx(&mut self, _enabled: bool) {}

    /// Frontends ask for as much as the newest version of a device has: what this one lacks is zeroes.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let config = device.config();
        let Some(rest) = config.get(start..) else {
            return Vec::new();
        };
        let mut bytes = rest.to_vec();
        bytes.resize(size, 0);
        bytes
    }

    fn set_config(&mut self, offset: u32, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let device = self.device();
        if start.saturating_add(data.len()) > device.config().len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        device.write_config(start, data);
        Ok(())
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    /// The frontend is told the queue's position next: by then everything before it is answered. An error
    /// ends the connection: a position would be a lie, and a frontend that waits could not even quit.
    fn stop_vring(&mut self, queue_index: u32) -> io::Result<()> {
        let finished = self.finish();
        if let Ok(index) = usize::try_from(queue_index) {
            self.starts.stop(index);
        }
        self.watch_host();
        finished
    }

    /// An error here would end the worker, so only the stop event is one.
    fn handle_event(&mut self, event: u16, _: EventSet, vrings: &[Vring], _: usize) -> io::Result<()> {
        if self.stopping {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.vrings.is_empty() {
            self.vrings = vrings.to_vec();
            super::name_worker(self.device().kind());
        }
        let name = name(self.device().kind());
        if event == self.host_event() {
            self.poll();
        }
        self.serve(vrings, false)
            .unwrap_or_else(|cause| log::error!("{name}: cannot signal the driver: {cause}"));
        self.watch_host();
        Ok(())
    }
}
