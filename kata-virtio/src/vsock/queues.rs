//! The queues: takes packets off the transmit queue, puts packets onto the receive queue, and says
//! which of them deserves a signal (VIRTIO 1.2 §5.10.2, §2.7).
//!
//! Knows the muxer and guest memory, not the transport that set the queues up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{EventfdFlags, eventfd};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemory};

use super::counters::{Cells, Counters};
use super::muxer::Muxer;
use super::packet::MAX_PAYLOAD_BYTES;
use super::session::Ports;
use super::transfer::{Buffers, ChainError};
use super::{RX_QUEUE, TX_QUEUE};
use crate::queue::Chains;
use crate::{COMMON_FEATURES, Device, Kind, Memory, Meter, Signals};

/// Entries of each queue: as many buffers as Linux' driver keeps for its largest packets.
const QUEUE_SIZE: u16 = 256;

/// Packets in one call of [`Vsock::process`]: a guest that never stops sending cannot keep the worker
/// from everything else.
const PACKETS_AT_ONCE: usize = 1024;

/// The device: owns all connections; moved into the worker that serves it.
pub struct Vsock {
    muxer: Muxer,
    commands: Receiver<Connect>,
    wake: Arc<OwnedFd>,
    counters: Arc<Cells>,
    unusable: Option<io::Error>,
    broken: bool,
    buffers: Buffers,
    payload: Vec<u8>,
}

/// Adds host → guest connections from any thread.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: Sender<Connect>,
    wake: Arc<OwnedFd>,
    counters: Arc<Cells>,
}

#[derive(Debug)]
struct Connect {
    ports: Ports,
    stream: UnixStream,
    greeted: bool,
}

/// A queue that the driver has broken beyond a packet.
#[derive(Debug, thiserror::Error)]
#[error("the {queue} queue is broken and stays so until the driver resets the device: {cause}")]
struct Fault {
    queue: &'static str,
    cause: virtio_queue::Error,
}

impl Vsock {
    /// A device for the guest of this context id, and the handle that adds connections to it.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(guest_cid: u64) -> io::Result<(Self, Handle)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let counters = Arc::new(Cells::default());
        let (sender, commands) = channel();
        let handle = Handle {
            commands: sender,
            wake: Arc::clone(&wake),
            counters: Arc::clone(&counters),
        };
        let device = Self {
            muxer: Muxer::new(guest_cid, wake.as_fd(), Arc::clone(&counters))?,
            commands,
            wake,
            counters,
            unusable: None,
            broken: false,
            buffers: Buffers::default(),
            payload: Vec::with_capacity(MAX_PAYLOAD_BYTES),
        };
        Ok((device, handle))
    }

    /// What answers when the guest connects to a port of the host (CID 2): returns the stream that
    /// becomes the host side of the connection, or `None` to refuse it. Called on the worker's thread,
    /// so it must not wait.
    #[must_use]
    pub fn on_dial(mut self, accept: impl FnMut(u32) -> Option<UnixStream> + Send + 'static) -> Self {
        self.muxer.on_dial(Box::new(accept));
        self
    }

    /// Serves the Unix-socket face: each client of `listener` sends `CONNECT <guest port>\n`, gets
    /// `OK <host port>\n` once the guest accepted, then raw bytes (Firecracker's hybrid vsock). The
    /// listener becomes non-blocking. If it cannot be watched, [`ready`](Self::ready) says so.
    #[must_use]
    pub fn listen(mut self, listener: UnixListener) -> Self {
        self.unusable = self.muxer.listen(listener).err().or(self.unusable);
        self
    }

    /// Asks, before the device is served, whether everything that it was given can be used.
    ///
    /// # Errors
    /// What [`listen`](Self::listen) met.
    pub fn ready(&mut self) -> io::Result<()> {
        self.unusable.take().map_or(Ok(()), Err)
    }

    /// The guest's context id.
    #[must_use]
    pub fn guest_cid(&self) -> u64 {
        self.muxer.guest_cid()
    }

    /// Tells the driver that all connections are lost and the CID may be another, as after a restore
    /// (VIRTIO 1.2 §5.10.6.7, `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`). Returns whether the driver wants a
    /// signal; `None` when it offers no buffer for the event now.
    ///
    /// # Errors
    /// When the queue is broken.
    pub fn announce_reset<M: GuestMemory>(
        &mut self,
        memory: &M,
        event: &mut Queue,
    ) -> Result<Option<bool>, virtio_queue::Error> {
        const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();
        let Some(chain) = event.next_chain(memory)? else {
            return Ok(None);
        };
        let head = chain.head_index();
        let buffer = chain.writable().find(|buffer| buffer.len() >= 4);
        let written =
            buffer.is_some_and(|buffer| memory.write_slice(&TRANSPORT_RESET, buffer.addr()).is_ok());
        event.add_used(memory, head, if written { 4 } else { 0 })?;
        self.reset();
        event.needs_notification(memory).map(Some)
    }

    fn run<M: GuestMemory>(&mut self, memory: &M, rx: &mut Queue, tx: &mut Queue) -> Result<Signals, Fault> {
        let mut budget = PACKETS_AT_ONCE;
        let (rx_before, tx_before) = (rx.next_used(), tx.next_used());
        loop {
            let before = budget;
            self.transmit(memory, tx, &mut budget)
                .map_err(fault("transmit"))?;
            self.deliver(memory, rx, &mut budget).map_err(fault("receive"))?;
            if budget == 0 {
                wake(&self.wake);
            }
            if budget == 0 || budget == before {
                break;
            }
        }
        let rx_waits =
            rx.next_used() != rx_before && rx.needs_notification(memory).map_err(fault("receive"))?;
        let tx_waits =
            tx.next_used() != tx_before && tx.needs_notification(memory).map_err(fault("transmit"))?;
        Ok(Signals::default()
            .with_queue(RX_QUEUE, rx_waits)
            .with_queue(TX_QUEUE, tx_waits))
    }

    /// Guest to host. Notifications are off while there is more to take, and stay off while resets that
    /// the guest has no buffers for hold its packets back: its next buffer brings us here again.
    fn transmit<M: GuestMemory>(
        &mut self,
        memory: &M,
        tx: &mut Queue,
        budget: &mut usize,
    ) -> Result<(), virtio_queue::Error> {
        tx.disable_notification(memory)?;
        while *budget > 0 && !self.muxer.backlogged() {
            let Some(chain) = tx.next_chain(memory)? else {
                if tx.enable_notification(memory)? {
                    continue;
                }
                return Ok(());
            };
            *budget -= 1;
            let head = chain.head_index();
            let loaded = self.buffers.load_readable(chain, tx.size());
            if let Err(error) = loaded.and_then(|()| self.take_packet(memory)) {
                self.muxer.complain(&error);
            }
            tx.add_used(memory, head, 0)?;
        }
        Ok(())
    }

    fn take_packet<M: GuestMemory>(&mut self, memory: &M) -> Result<(), ChainError> {
        let header = self.buffers.read_header(memory)?;
        // An oversized payload is not read; the muxer refuses its header.
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        self.payload.clear();
        if len <= MAX_PAYLOAD_BYTES {
            self.payload.resize(len, 0);
            self.buffers.read_payload(memory, &mut self.payload)?;
        }
        self.muxer.receive(&header, &self.payload);
        Ok(())
    }

    /// Host to guest. Notifications are asked for only while something waits and no buffer is there.
    fn deliver<M: GuestMemory>(
        &mut self,
        memory: &M,
        rx: &mut Queue,
        budget: &mut usize,
    ) -> Result<(), virtio_queue::Error> {
        rx.disable_notification(memory)?;
        while *budget > 0 && self.muxer.has_turn() {
            let Some(chain) = rx.next_chain(memory)? else {
                if rx.enable_notification(memory)? {
                    continue;
                }
                return Ok(());
            };
            let head = chain.head_index();
            let loaded = self.buffers.load_writable(chain, rx.size());
            match loaded.and_then(|()| self.give_packet(memory)) {
                Ok(None) => {
                    rx.go_to_previous_position();
                    return Ok(());
                }
                Ok(Some(written)) => rx.add_used(memory, head, written)?,
                Err(error) => {
                    self.muxer.complain(&error);
                    rx.add_used(memory, head, 0)?;
                }
            }
            *budget -= 1;
        }
        Ok(())
    }

    /// Returns the bytes written to the loaded buffers, `None` when nothing waits.
    fn give_packet<M: GuestMemory>(&mut self, memory: &M) -> Result<Option<u32>, ChainError> {
        let (buffers, mut written) = (&self.buffers, 0);
        let given = self.muxer.give(buffers.payload_room(), |header, payload| {
            written = buffers.write(memory, header, payload)?;
            Ok(())
        })?;
        Ok(given.then_some(written))
    }
}

impl Device for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    /// The guest's CID (VIRTIO 1.2 §5.10.4).
    fn config(&self) -> Vec<u8> {
        self.muxer.guest_cid().to_le_bytes().to_vec()
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.muxer.events())
    }

    fn poll(&mut self) -> io::Result<()> {
        if !self.muxer.poll()? {
            return Ok(());
        }
        match rustix::io::read(&*self.wake, &mut [0; 8]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(cause) => return Err(cause.into()),
        }
        while let Ok(connect) = self.commands.try_recv() {
            self.muxer.connect(connect.ports, connect.stream, connect.greeted);
        }
        Ok(())
    }

    /// Moves packets both ways. Nothing happens on queues that the driver broke, until it resets the
    /// device.
    fn process(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Signals {
        let [rx, tx, ..] = queues else {
            return Signals::default();
        };
        if self.broken || !rx.ready() || !tx.ready() {
            return Signals::default();
        }
        self.run(memory, rx, tx).unwrap_or_else(|fault| {
            self.muxer.complain(&fault);
            self.reset();
            self.broken = true;
            Signals {
                needs_reset: true,
                ..Signals::default()
            }
        })
    }

    /// Every connection ends. What the guest had sent still goes to the host.
    fn reset(&mut self) {
        self.counters.device_resets.add(1);
        self.muxer.forget_guest();
        self.broken = false;
    }

    fn drained(&self) -> bool {
        self.muxer.drained()
    }

    fn meter(&self) -> Arc<dyn Meter> {
        Arc::clone(&self.counters) as Arc<dyn Meter>
    }
}

impl std::fmt::Debug for Vsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vsock")
            .field("guest_cid", &self.muxer.guest_cid())
            .field("counters", &self.counters.snapshot())
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// Connects `stream` to `guest_port`; the guest sees `host_port` as the peer's. Returns at once:
    /// bytes already in the stream are sent once the guest accepts. When the guest refuses, when the
    /// pair of ports is in use, or when the device is gone, the stream is closed.
    pub fn connect(&self, host_port: u32, guest_port: u32, stream: UnixStream) {
        self.command(host_port, guest_port, stream, false);
    }

    /// As [`connect`](Self::connect), and once the guest accepted, `OK <host port>\n` is written to the stream
    /// before anything of the guest's: what a client reads that asked for it by `CONNECT <guest port>\n`
    /// (Firecracker's hybrid vsock).
    pub fn connect_greeted(&self, host_port: u32, guest_port: u32, stream: UnixStream) {
        self.command(host_port, guest_port, stream, true);
    }

    fn command(&self, host_port: u32, guest_port: u32, stream: UnixStream, greeted: bool) {
        let ports = Ports {
            host: host_port,
            guest: guest_port,
        };
        let connect = Connect {
            ports,
            stream,
            greeted,
        };
        if self.commands.send(connect).is_ok() {
            wake(&self.wake);
        }
    }

    /// What the device has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.snapshot()
    }
}

fn fault(queue: &'static str) -> impl Fn(virtio_queue::Error) -> Fault {
    move |cause| Fault { queue, cause }
}

/// Adds one to the event; it can only fail when 2⁶⁴ wakes wait already, and then it is readable.
fn wake(event: &OwnedFd) {
    if let Err(cause) = rustix::io::write(event, &1u64.to_ne_bytes()) {
        log::debug!("vsock: the worker is awake already: {cause}");
    }
}
