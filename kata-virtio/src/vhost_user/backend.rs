//! The vsock device as the vhost-user framework wants to see it.

use std::io;
use std::sync::{Mutex, PoisonError};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::vring::Vring;
use crate::vsock::{RX_QUEUE, TX_QUEUE, Vsock};
use crate::{COMMON_FEATURES, Device};

/// Receive, transmit, event. QEMU serves the event queue itself and gives us two.
const QUEUES: usize = 3;

/// Largest queue; QEMU's have 128 entries.
const MAX_QUEUE_SIZE: usize = 1024;

/// Events with numbers up to `QUEUES` belong to the framework.
pub(super) const TOKEN_STREAMS: u16 = 4;
/// Ends the worker.
pub(super) const TOKEN_STOP: u16 = 5;

pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// How far the frontend has set the queues up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not both queues run.
    Stopped,
    /// Both run.
    Active,
    /// Both run on rings outside of guest memory: nothing is done until they are stopped.
    Invalid,
}

/// See the module.
pub(super) struct Backend {
    /// Never locked: the framework wants to share the backend between threads, and a device is `Send`.
    device: Mutex<Vsock>,
    config: Vec<u8>,
    /// The worker shall end.
    pub(super) stopping: bool,
    memory: Option<Memory>,
    state: State,
    /// Next available index of the receive and transmit queues when they last ran.
    positions: Option<[u16; 2]>,
}

impl Backend {
    pub(super) fn new(device: Vsock) -> Self {
        Self {
            config: device.config(),
            device: Mutex::new(device),
            stopping: false,
            memory: None,
            state: State::Stopped,
            positions: None,
        }
    }

    pub(super) fn device(&mut self) -> &mut Vsock {
        self.device.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the device work on its queues, if it has them.
    fn serve(&mut self, vrings: &[Vring]) -> io::Result<()> {
        let [rx_ring, tx_ring, ..] = vrings else {
            return Ok(());
        };
        let Some(memory) = self.memory.clone() else {
            return Ok(());
        };
        let memory = memory.memory();
        let (mut rx_state, mut tx_state) = (rx_ring.get_mut(), tx_ring.get_mut());
        if !(rx_state.is_enabled() && tx_state.is_enabled()) {
            return Ok(());
        }
        let (rx, tx) = (rx_state.get_queue_mut(), tx_state.get_queue_mut());
        if self.activate(&memory, rx, tx) != State::Active {
            return Ok(());
        }
        let signals = self.device().process(&memory, &mut [rx, tx]);
        self.positions = Some([rx.next_avail(), tx.next_avail()]);
        if signals.queue(RX_QUEUE) {
            rx_state.signal_used_queue()?;
        }
        if signals.queue(TX_QUEUE) {
            tx_state.signal_used_queue()?;
        }
        Ok(())
    }

    /// The state after looking at whether both queues run.
    fn activate(&mut self, memory: &GuestMemoryMmap, rx: &Queue, tx: &Queue) -> State {
        if self.state == State::Stopped && rx.ready() && tx.ready() {
            let positions = [rx.next_avail(), tx.next_avail()];
            if self.positions.is_some_and(|stopped_at| stopped_at != positions) {
                self.device().reset();
            }
            let valid = rx.is_valid(memory) && tx.is_valid(memory);
            self.state = if valid { State::Active } else { State::Invalid };
        }
        self.state
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&mut self) {
        self.state = State::Stopped;
        self.positions = None;
        self.device().reset();
    }

    /// The framework has set it on the queues.
    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        self.config.get(start..end).unwrap_or_default().to_vec()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn stop_vring(&mut self, queue_index: u32) -> io::Result<()> {
        if [RX_QUEUE, TX_QUEUE].map(u32::from).contains(&queue_index) {
            self.state = State::Stopped;
        }
        Ok(())
    }

    /// An error here would end the worker, so only the stop event is one.
    fn handle_event(&mut self, event: u16, _: EventSet, vrings: &[Vring], _: usize) -> io::Result<()> {
        if self.stopping {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if event == TOKEN_STREAMS {
            self.device()
                .poll()
                .unwrap_or_else(|cause| log::error!("vsock: cannot look at streams: {cause}"));
        }
        self.serve(vrings)
            .unwrap_or_else(|cause| log::error!("vsock: cannot signal the driver: {cause}"));
        Ok(())
    }
}
