//! Memory, queues and sockets of the mock's guest.
//!
//! The layout is Linux': receive buffers of 4 KiB, header and payload of a packet in one chain. Knows
//! nothing of who serves its queues.
#![expect(
    clippy::expect_used,
    reason = "a driver that cannot reach its own memory is a broken test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::socket::{Books, Socket, SocketState};
use crate::mock::ring::{Buffer, DriverQueue};
use crate::vsock::HOST_CID;
use crate::vsock::packet::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, Op, Shutdown, TYPE_STREAM};

const MEMORY_BYTES: usize = 16 << 20;
const QUEUE_SIZE: u16 = 128;
const RINGS: [u64; 3] = [0x1000, 0x4000, 0x7000];
const RX_BUFFERS: u64 = 0x1_0000;
const RX_BUFFER_BYTES: u32 = 4096;
const EVENT_BUFFER: u64 = 0xa000;
const TX_SLOTS: u64 = 0x10_0000;
/// Room for an indirect table, a header and the longest payload.
const TX_SLOT_BYTES: u64 = 0x1_2000;
const TX_TABLE_BYTES: u64 = 0x1000;
const BUFFER_BYTES: u32 = 256 << 10;

/// See the module.
#[derive(Debug)]
pub struct Guest {
    memory: Arc<GuestMemoryMmap>,
    file: File,
    cid: u64,
    rx: DriverQueue,
    tx: DriverQueue,
    event: DriverQueue,
    slots: Vec<u64>,
    slot_of: Vec<Option<u64>>,
    rx_held: Option<Vec<u64>>,
    rx_address: Vec<u64>,
    sockets: BTreeMap<Socket, Books>,
    listening: BTreeSet<u32>,
    accepted: Vec<Socket>,
    buffer_bytes: u32,
    reads: bool,
    /// Cut points of packets from [`write`](Self::write): where a new descriptor begins, in bytes from
    /// the start of the header.
    pub cuts: Vec<usize>,
}

impl Guest {
    /// A guest with 16 MiB of shared memory, queues of 128 entries and all receive buffers offered.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(cid: u64) -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create(
            "mock-guest",
            rustix::fs::MemfdFlags::CLOEXEC,
        )?);
        file.set_len(u64::try_from(MEMORY_BYTES).unwrap_or(u64::MAX))?;
        let region = (
            GuestAddress(0),
            MEMORY_BYTES,
            Some(FileOffset::new(file.try_clone()?, 0)),
        );
        let memory = GuestMemoryMmap::from_ranges_with_files([region]).map_err(io::Error::other)?;
        let memory = Arc::new(memory);
        let [rx, tx, event] = RINGS.map(|start| DriverQueue::new(Arc::clone(&memory), start, QUEUE_SIZE));
        let slots = (0..u64::from(QUEUE_SIZE)).map(|slot| TX_SLOTS + slot * TX_SLOT_BYTES);
        let mut guest = Self {
            slots: slots.collect(),
            slot_of: vec![None; usize::from(QUEUE_SIZE)],
            rx_held: None,
            rx_address: vec![0; usize::from(QUEUE_SIZE)],
            sockets: BTreeMap::new(),
            listening: BTreeSet::new(),
            accepted: Vec::new(),
            buffer_bytes: BUFFER_BYTES,
            reads: true,
            cuts: vec![HEADER_BYTES],
            memory,
            file,
            cid,
            rx,
            tx,
            event,
        };
        for buffer in 0..u64::from(QUEUE_SIZE) {
            guest.offer_rx(RX_BUFFERS + buffer * u64::from(RX_BUFFER_BYTES));
        }
        Ok(guest)
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> Arc<GuestMemoryMmap> {
        Arc::clone(&self.memory)
    }

    /// The memfd behind it, and its bytes: one region at guest address 0.
    #[must_use]
    pub fn memory_file(&self) -> (&File, usize) {
        (&self.file, MEMORY_BYTES)
    }

    /// The receive, transmit and event queues.
    pub fn queues(&mut self) -> [&mut DriverQueue; 3] {
        [&mut self.rx, &mut self.tx, &mut self.event]
    }

    /// Forgets everything and sets the queues up anew, as a driver does after a reset.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn reset(&mut self) -> io::Result<()> {
        *self = Self::new(self.cid)?;
        Ok(())
    }

    /// Accepts connections from the host to `guest_port`.
    pub fn listen(&mut self, guest_port: u32) {
        self.listening.insert(guest_port);
    }

    /// Connections accepted since the last call.
    pub fn accepted(&mut self) -> Vec<Socket> {
        std::mem::take(&mut self.accepted)
    }

    /// Asks for a connection to the host; [`state`](Self::state) tells what came of it.
    pub fn connect(&mut self, socket: Socket) {
        let books = Books::new(SocketState::Connecting, self.buffer_bytes);
        self.sockets.insert(socket, books);
        self.send_op(socket, Op::Request, Shutdown::empty());
    }

    /// How far a socket is; [`SocketState::Reset`] for one that does not exist.
    #[must_use]
    pub fn state(&self, socket: Socket) -> SocketState {
        self.sockets
            .get(&socket)
            .map_or(SocketState::Reset, |books| books.state)
    }

    /// What the host has shut down.
    #[must_use]
    pub fn host_shutdown(&self, socket: Socket) -> Shutdown {
        self.sockets
            .get(&socket)
            .map_or(Shutdown::all(), |books| books.host_shutdown)
    }

    /// What was received and not taken.
    #[must_use]
    pub fn received(&self, socket: Socket) -> &[u8] {
        self.sockets.get(&socket).map_or(&[], |books| &books.received)
    }

    /// Takes what was received.
    pub fn take(&mut self, socket: Socket) -> Vec<u8> {
        let Some(books) = self.sockets.get_mut(&socket) else {
            return Vec::new();
        };
        let taken = std::mem::take(&mut books.received);
        if !self.reads {
            books.forwarded = books
                .forwarded
                .wrapping_add(u32::try_from(taken.len()).unwrap_or(u32::MAX));
            self.update_if_due(socket);
        }
        taken
    }

    /// Queues bytes for the host; they go as credit and the transmit queue allow.
    pub fn write(&mut self, socket: Socket, bytes: &[u8]) {
        if let Some(books) = self.sockets.get_mut(&socket) {
            books.unsent.extend(bytes);
        }
        self.flush(socket);
    }

    /// Bytes from [`write`](Self::write) that have not gone.
    #[must_use]
    pub fn unsent(&self, socket: Socket) -> usize {
        self.sockets.get(&socket).map_or(0, |books| books.unsent.len())
    }

    /// Sends a shutdown, after what was written has gone: call it when [`unsent`](Self::unsent) is 0.
    pub fn shutdown(&mut self, socket: Socket, directions: Shutdown) {
        self.send_op(socket, Op::Shutdown, directions);
    }

    /// Sends a packet without payload.
    pub fn send_op(&mut self, socket: Socket, op: Op, flags: Shutdown) {
        let header = self.header(socket, op, flags, 0);
        self.send_raw(&header.to_bytes(), &[]);
    }

    /// A correct header for this socket.
    #[must_use]
    pub fn header(&mut self, socket: Socket, op: Op, flags: Shutdown, len: u32) -> Header {
        let mut header = Header {
            src_cid: self.cid,
            dst_cid: HOST_CID,
            src_port: socket.guest_port,
            dst_port: socket.host_port,
            len,
            kind: TYPE_STREAM,
            op: op.number(),
            flags: flags.bits(),
            buf_alloc: self.buffer_bytes,
            fwd_cnt: 0,
        };
        if let Some(books) = self.sockets.get_mut(&socket) {
            header.buf_alloc = books.buffer_bytes;
            header.fwd_cnt = books.forwarded;
            books.announced = books.forwarded;
        }
        header
    }

    /// Puts any bytes into one transmit chain, with a new descriptor at each of `cuts`; false when the
    /// queue is full.
    pub fn send_raw(&mut self, bytes: &[u8], cuts: &[usize]) -> bool {
        self.reclaim();
        let Some(slot) = self.slots.pop() else {
            return false;
        };
        let start = slot + TX_TABLE_BYTES;
        self.memory
            .write_slice(bytes, GuestAddress(start))
            .expect("a slot is in guest memory");
        let mut points = vec![0];
        points.extend(cuts.iter().copied().filter(|&cut| cut > 0 && cut < bytes.len()));
        points.push(bytes.len());
        let buffers: Vec<Buffer> = points
            .windows(2)
            .map(|ends| readable(start, ends[0], ends[1]))
            .collect();
        self.send_buffers(slot, &buffers, false)
    }

    /// Offers any buffers as a transmit chain, directly or by an indirect descriptor.
    pub fn send_chain(&mut self, buffers: &[Buffer], indirect: bool) -> bool {
        self.reclaim();
        let Some(slot) = self.slots.pop() else {
            return false;
        };
        self.send_buffers(slot, buffers, indirect)
    }

    /// Keeps receive buffers back instead of offering them again; `false` offers what was kept.
    pub fn hold_receive_buffers(&mut self, hold: bool) {
        if hold {
            self.rx_held.get_or_insert_default();
        } else {
            for address in self.rx_held.take().unwrap_or_default() {
                self.offer_rx(address);
            }
        }
    }

    /// What sockets made from now on grant to the host, in bytes, and whether they are read at once
    /// (else only [`take`](Self::take) gives new credit).
    pub fn grant(&mut self, buffer_bytes: u32, read_at_once: bool) {
        self.buffer_bytes = buffer_bytes;
        self.reads = read_at_once;
    }

    /// Handles every packet that the device has delivered and sends what waits for credit; returns the
    /// packets' headers.
    pub fn pump(&mut self) -> Vec<Header> {
        let mut headers = Vec::new();
        while let Some((header, payload)) = self.receive() {
            self.handle(&header, &payload);
            headers.push(header);
        }
        self.rx.ask_for_signal();
        self.reclaim();
        let waiting: Vec<Socket> = self.sockets.keys().copied().collect();
        for socket in waiting {
            self.flush(socket);
        }
        headers
    }

    /// The next packet that the device has delivered, not handled.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.rx.used()?;
        let address = self.rx_address[usize::from(head)];
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("a receive buffer is in guest memory");
        match &mut self.rx_held {
            Some(held) => held.push(address),
            None => self.offer_rx(address),
        }
        let (header, payload) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        Some((Header::from_bytes(header), payload.to_vec()))
    }

    /// Offers a buffer for one event (VIRTIO 1.2 §5.10.6.7).
    pub fn offer_event_buffer(&mut self) {
        self.memory
            .write_slice(&[0xff; 4], GuestAddress(EVENT_BUFFER))
            .expect("in guest memory");
        self.event.add(&[Buffer {
            address: EVENT_BUFFER,
            len: 4,
            writable: true,
        }]);
    }

    /// The event that came, if one did.
    pub fn event(&mut self) -> Option<u32> {
        self.event.used().filter(|&(_, len)| len == 4)?;
        self.memory.read_obj(GuestAddress(EVENT_BUFFER)).ok()
    }

    /// Bytes that the device grants this socket now.
    #[must_use]
    pub fn credit(&self, socket: Socket) -> u32 {
        self.sockets.get(&socket).map_or(0, Books::credit)
    }

    fn handle(&mut self, header: &Header, payload: &[u8]) {
        let socket = Socket {
            guest_port: header.dst_port,
            host_port: header.src_port,
        };
        if header.op == Op::Request.number() {
            self.answer_request(socket, header);
            return;
        }
        let Some(books) = self.sockets.get_mut(&socket) else {
            return;
        };
        books.peer(header);
        match Op::from_number(header.op) {
            Some(Op::Response) => books.state = SocketState::Open,
            Some(Op::Reset) => books.state = SocketState::Reset,
            Some(Op::Shutdown) => books.host_shutdown |= Shutdown::from_bits_truncate(header.flags),
            Some(Op::CreditRequest) => self.send_op(socket, Op::CreditUpdate, Shutdown::empty()),
            Some(Op::ReadWrite) => {
                books.received.extend_from_slice(payload);
                if self.reads {
                    books.forwarded = books.forwarded.wrapping_add(header.len);
                }
                self.update_if_due(socket);
            }
            Some(Op::CreditUpdate | Op::Request) | None => {}
        }
    }

    fn answer_request(&mut self, socket: Socket, header: &Header) {
        if !self.listening.contains(&socket.guest_port) {
            self.send_op(socket, Op::Reset, Shutdown::empty());
            return;
        }
        let mut books = Books::new(SocketState::Open, self.buffer_bytes);
        books.peer(header);
        self.sockets.insert(socket, books);
        self.accepted.push(socket);
        self.send_op(socket, Op::Response, Shutdown::empty());
    }

    fn update_if_due(&mut self, socket: Socket) {
        if self.sockets.get(&socket).is_some_and(Books::update_due) {
            self.send_op(socket, Op::CreditUpdate, Shutdown::empty());
        }
    }

    fn flush(&mut self, socket: Socket) {
        loop {
            let Some(books) = self.sockets.get(&socket) else {
                return;
            };
            let credit = usize::try_from(books.credit()).unwrap_or(usize::MAX);
            let bytes = books.unsent.len().min(credit).min(MAX_PAYLOAD_BYTES);
            // A few slots stay for answers.
            if bytes == 0 || books.state != SocketState::Open || !self.has_room() {
                return;
            }
            let len = u32::try_from(bytes).unwrap_or(u32::MAX);
            let mut packet = self
                .header(socket, Op::ReadWrite, Shutdown::empty(), len)
                .to_bytes()
                .to_vec();
            if let Some(books) = self.sockets.get_mut(&socket) {
                let (first, second) = books.unsent.as_slices();
                let from_first = bytes.min(first.len());
                packet.extend_from_slice(&first[..from_first]);
                packet.extend_from_slice(&second[..bytes - from_first]);
                books.unsent.drain(..bytes);
                books.sent(len);
            }
            let cuts = std::mem::take(&mut self.cuts);
            self.send_raw(&packet, &cuts);
            self.cuts = cuts;
        }
    }

    fn has_room(&mut self) -> bool {
        self.reclaim();
        self.slots.len() > 16 && self.tx.free_descriptors() > 48
    }

    fn send_buffers(&mut self, slot: u64, buffers: &[Buffer], indirect: bool) -> bool {
        let head = if indirect {
            self.tx.add_indirect(slot, buffers)
        } else {
            self.tx.add(buffers)
        };
        match head {
            Some(head) => self.slot_of[usize::from(head)] = Some(slot),
            None => self.slots.push(slot),
        }
        head.is_some()
    }

    fn reclaim(&mut self) {
        while let Some((head, _)) = self.tx.used() {
            self.slots.extend(self.slot_of[usize::from(head)].take());
        }
    }

    fn offer_rx(&mut self, address: u64) {
        let buffer = Buffer {
            address,
            len: RX_BUFFER_BYTES,
            writable: true,
        };
        let head = self.rx.add(&[buffer]).expect("as many descriptors as buffers");
        self.rx_address[usize::from(head)] = address;
    }
}

fn readable(start: u64, from: usize, to: usize) -> Buffer {
    let offset = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    Buffer {
        address: start + offset(from),
        len: u32::try_from(to - from).unwrap_or(u32::MAX),
        writable: false,
    }
}
