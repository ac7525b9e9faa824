//! All connections of one guest: which packet belongs to which, whose turn it is, and what the host's
//! streams are ready for.
//!
//! Owns the sessions, the line in which they wait to send (each gets one packet, then goes to the end),
//! the resets owed to the guest, and one epoll instance over everything on the host's side, which is
//! edge-triggered, so that a stream that nobody can serve costs nothing. Knows no queues or memory.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::connection::{Connection, Received};
use super::counters::Cells;
use super::greeter::{Asked, Greeter};
use super::packet::{Header, MAX_PAYLOAD_BYTES, Op, Shutdown, TYPE_STREAM};
use super::session::{GUEST_BUFFER_BYTES, Ports, Session, Turn};
use crate::complaint::Complaints;

/// Connections, lingering ones and clients in their first line together.
pub(crate) const MAX_CONNECTIONS: usize = 1024;

/// Resets that wait for a buffer of the guest before its packets have to wait.
const MAX_RESETS: usize = 256;

/// Places of ended connections in the line, beyond as many as there are sessions, before they are swept out.
const MAX_STALE: usize = 256;

/// Where the host ports of the Unix-socket face begin, as in Firecracker.
const FIRST_GREETED_PORT: u32 = 1 << 30;

const TOKEN_WAKE: u64 = u64::MAX;
const TOKEN_LISTENER: u64 = u64::MAX - 1;
const EVENTS_AT_ONCE: usize = 64;
const CLIENTS_AT_ONCE: usize = 64;

/// Decides about the guest's connections to the host.
pub(crate) type OnDial = Box<dyn FnMut(u32) -> Option<UnixStream> + Send>;

/// See the module.
pub(crate) struct Muxer {
    guest_cid: u64,
    on_dial: Option<OnDial>,
    greeter: Option<Greeter>,
    sessions: HashMap<u64, Session>,
    by_ports: HashMap<Ports, u64>,
    line: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_id: u64,
    next_port: u32,
    epoll: OwnedFd,
    counters: Arc<Cells>,
    complaints: Complaints,
}

/// A packet for the guest: a session's, or a reset.
struct Outgoing {
    header: Header,
    id: Option<u64>,
    bytes: usize,
}

fn header_of(session: &mut Session, op: Op, flags: Shutdown, bytes: usize, guest_cid: u64) -> Header {
    let (buf_alloc, fwd_cnt) = session.sent(op, flags, bytes);
    Header {
        src_cid: super::HOST_CID,
        dst_cid: guest_cid,
        src_port: session.ports.host,
        dst_port: session.ports.guest,
        len: u32::try_from(bytes).unwrap_or(u32::MAX),
        kind: TYPE_STREAM,
        op: op.number(),
        flags: flags.bits(),
        buf_alloc,
        fwd_cnt,
    }
}

impl Muxer {
    /// A muxer without connections; `wake` is watched beside the streams.
    pub(crate) fn new(guest_cid: u64, wake: BorrowedFd<'_>, counters: Arc<Cells>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, wake, EventData::new_u64(TOKEN_WAKE), EventFlags::IN)?;
        Ok(Self {
            guest_cid,
            on_dial: None,
            greeter: None,
            sessions: HashMap::new(),
            by_ports: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            next_id: 0,
            next_port: FIRST_GREETED_PORT,
            epoll,
            counters,
            complaints: Complaints::new("vsock"),
        })
    }

    pub(crate) fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    pub(crate) fn on_dial(&mut self, accept: OnDial) {
        self.on_dial = Some(accept);
    }

    /// Serves the Unix-socket face on `listener`.
    pub(crate) fn listen(&mut self, listener: UnixListener) -> io::Result<()> {
        let greeter = Greeter::new(listener)?;
        let token = EventData::new_u64(TOKEN_LISTENER);
        epoll::add(
            &self.epoll,
            greeter.listener(),
            token,
            EventFlags::IN | EventFlags::ET,
        )?;
        self.greeter = Some(greeter);
        Ok(())
    }

    /// Readable when [`poll`](Self::poll) has something to do.
    pub(crate) fn events(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// A complaint about the guest.
    pub(crate) fn complain(&mut self, about: &dyn std::fmt::Display) {
        self.counters.packets_malformed.add(1);
        self.complaints.warn(about);
    }

    /// Whether so many resets wait that no more packets should be taken from the guest.
    pub(crate) fn backlogged(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Whether something waits to be sent to the guest.
    pub(crate) fn has_turn(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// Connects a stream of the host to a port of the guest. One that is `greeted` is told so before any byte.
    pub(crate) fn connect(&mut self, ports: Ports, stream: UnixStream, greeted: bool) {
        let id = self.new_id();
        if let Err(cause) = self.watch(id, &stream) {
            log::warn!("vsock: cannot watch a stream to port {}: {cause}", ports.guest);
            return;
        }
        self.dial(id, ports, stream, greeted.then(|| greeting(ports.host)));
    }

    /// Takes a packet from the guest.
    pub(crate) fn receive(&mut self, header: &Header, payload: &[u8]) {
        self.counters.packets_from_guest.add(1);
        self.counters.bytes_from_guest.add(payload.len());
        let op = match header.accept(self.guest_cid) {
            Ok(op) => op,
            Err(refusal) => {
                self.complain(&refusal);
                // An answer goes to the guest and nowhere else, so one in another's name gets none.
                if header.src_cid == self.guest_cid {
                    self.reset(header);
                }
                return;
            }
        };
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        match self.by_ports.get(&ports) {
            Some(&id) => self.receive_known(id, op, header, payload),
            None if op == Op::Request => self.accept(ports, header),
            // The guest may not know yet that the connection is over.
            None => self.reset(header),
        }
    }

    /// Hands the next packet for the guest, with at most `room` bytes of payload, to `write`; false when
    /// nothing waits. A connection whose packet could not be written is over.
    ///
    /// # Errors
    /// What `write` says.
    pub(crate) fn give<E>(
        &mut self,
        room: usize,
        write: impl FnOnce(&Header, &[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let Some(outgoing) = self.next_packet(room.min(MAX_PAYLOAD_BYTES)) else {
            return Ok(false);
        };
        let session = outgoing.id.and_then(|id| self.sessions.get(&id));
        let payload = session.map_or(&[][..], |session| session.payload(outgoing.bytes));
        let written = write(&outgoing.header, payload);
        if let Some(id) = outgoing.id {
            self.gone(id, outgoing.bytes, written.is_ok());
        }
        self.counters.packets_to_guest.add(1);
        written.map(|()| true)
    }

    fn next_packet(&mut self, room: usize) -> Option<Outgoing> {
        loop {
            if let Some(header) = self.resets.pop_front() {
                self.counters.resets_sent.add(1);
                return Some(Outgoing {
                    header,
                    id: None,
                    bytes: 0,
                });
            }
            let id = self.line.pop_front()?;
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            session.in_line = false;
            match session.turn(room) {
                Turn::Nothing => {}
                Turn::Finished => self.finish(id),
                Turn::Send(op, flags, bytes) => {
                    let header = header_of(session, op, flags, bytes, self.guest_cid);
                    return Some(Outgoing {
                        header,
                        id: Some(id),
                        bytes,
                    });
                }
            }
        }
    }

    /// A session's packet was written, or was not.
    fn gone(&mut self, id: u64, bytes: usize, written: bool) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.payload_gone(bytes);
        }
        self.counters.bytes_to_guest.add(bytes);
        if written {
            self.stand_in_line(id);
        } else {
            self.finish(id);
        }
    }

    /// Looks at what the host's side has become ready for; true when the wake event fired.
    ///
    /// # Errors
    /// Never, as long as the epoll instance is one.
    pub(crate) fn poll(&mut self) -> io::Result<bool> {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        let now = rustix::time::Timespec::default();
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
        let mut woken = false;
        for event in events {
            match event.data.u64() {
                TOKEN_WAKE => woken = true,
                TOKEN_LISTENER => self.accept_clients(),
                id => self.stream_ready(id, event.flags),
            }
        }
        Ok(woken)
    }

    /// The guest has forgotten everything: ends its connections. What it had sent still goes to the
    /// host; what it had not been told is dropped.
    pub(crate) fn forget_guest(&mut self) {
        self.line.clear();
        self.resets.clear();
        let known: Vec<u64> = self.by_ports.drain().map(|(_, id)| id).collect();
        for id in known {
            self.release(id);
        }
    }

    /// Whether every byte that the guest sent has reached the host (or its host is gone).
    pub(crate) fn drained(&self) -> bool {
        self.sessions.values().all(Session::drained)
    }

    fn receive_known(&mut self, id: u64, op: Op, header: &Header, payload: &[u8]) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let before = session.buffered_bytes();
        match session.connection.receive(op, header) {
            Ok(Received::Noted) => {}
            Ok(Received::Accepted) => session.greet(),
            Ok(Received::Payload) => session.take(payload),
            Ok(Received::Shutdown) => session.flush(),
            Ok(Received::Reset) => {
                if session.connection.asked() {
                    self.counters.connections_refused.add(1);
                }
                self.end(id);
                return;
            }
            Err(violation) => {
                self.complain(&violation);
                self.reset(header);
                self.end(id);
                return;
            }
        }
        let after = session.buffered_bytes();
        self.count_buffered(before, after);
        self.stand_in_line(id);
    }

    /// The guest dials the host.
    fn accept(&mut self, ports: Ports, request: &Header) {
        let id = self.new_id();
        let stream = match &mut self.on_dial {
            Some(accept) if self.sessions.len() < MAX_CONNECTIONS => accept(ports.host),
            _ => None,
        };
        let watched = stream.filter(|stream| self.watch(id, stream).is_ok());
        let Some(stream) = watched else {
            self.counters.connections_refused.add(1);
            self.reset(request);
            return;
        };
        let connection = Connection::accept(request, GUEST_BUFFER_BYTES);
        self.add(id, Session::new(ports, connection, stream));
    }

    /// The host dials the guest.
    fn dial(&mut self, id: u64, ports: Ports, stream: UnixStream, greeting: Option<String>) {
        let connection = Connection::dial(GUEST_BUFFER_BYTES);
        let mut session = Session::new(ports, connection, stream);
        session.greeting = greeting;
        if self.by_ports.contains_key(&ports) || self.sessions.len() >= MAX_CONNECTIONS {
            log::warn!(
                "vsock: no connection from port {} to port {}: in use, or too many",
                ports.host,
                ports.guest
            );
            self.counters.connections_refused.add(1);
            self.close(session);
            return;
        }
        self.add(id, session);
    }

    fn add(&mut self, id: u64, session: Session) {
        self.counters.connections_total.add(1);
        self.counters.connections_open.add(1);
        self.by_ports.insert(session.ports, id);
        self.sessions.insert(id, session);
        self.stand_in_line(id);
    }

    /// Puts a session at the end of the line, unless it is in it.
    fn stand_in_line(&mut self, id: u64) {
        if let Some(session) = self.sessions.get_mut(&id)
            && !session.in_line
            && !session.lingers
        {
            session.in_line = true;
            self.line.push_back(id);
            self.sweep_line();
        }
    }

    /// Places of connections that have ended go when they are reached, or here, when a guest without
    /// receive buffers opens and resets connections: the line is never longer than twice
    /// [`MAX_CONNECTIONS`] and [`MAX_STALE`].
    fn sweep_line(&mut self) {
        if self.line.len() > 2 * self.sessions.len() + MAX_STALE {
            self.line.retain(|id| self.sessions.contains_key(id));
        }
    }

    /// Both directions are closed: tells the guest.
    fn finish(&mut self, id: u64) {
        if let Some(session) = self.sessions.get(&id) {
            let last = Header {
                src_cid: self.guest_cid,
                dst_cid: super::HOST_CID,
                src_port: session.ports.guest,
                dst_port: session.ports.host,
                kind: TYPE_STREAM,
                op: Op::Shutdown.number(),
                ..Header::default()
            };
            self.reset(&last);
        }
        self.end(id);
    }

    /// The guest knows of the connection no more.
    fn end(&mut self, id: u64) {
        if let Some(session) = self.sessions.get(&id) {
            self.by_ports.remove(&session.ports);
            self.release(id);
        }
    }

    /// Keeps a session that has no name any more as long as the host has something to take.
    fn release(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.lingers = true;
        if session.drained()
            && let Some(session) = self.sessions.remove(&id)
        {
            self.counters.connections_open.subtract(1);
            self.close(session);
        }
    }

    fn close(&self, session: Session) {
        self.unwatch(session.fd());
        session.close();
    }

    fn reset(&mut self, answered: &Header) {
        self.resets.extend(answered.reset());
    }

    fn stream_ready(&mut self, id: u64, flags: EventFlags) {
        if self.greeter.as_ref().is_some_and(|greeter| greeter.knows(id)) {
            self.client_ready(id);
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let before = session.buffered_bytes();
        session.now_readable();
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            session.host_hung_up();
        }
        if flags.contains(EventFlags::OUT) {
            session.now_writable();
        }
        let (after, lingers) = (session.buffered_bytes(), session.lingers);
        self.count_buffered(before, after);
        if lingers {
            self.release(id);
        } else {
            self.stand_in_line(id);
        }
    }

    fn count_buffered(&self, before: usize, after: usize) {
        self.counters.bytes_buffered.add(after.saturating_sub(before));
        self.counters
            .bytes_buffered
            .subtract(before.saturating_sub(after));
    }

    fn accept_clients(&mut self) {
        for _ in 0..CLIENTS_AT_ONCE {
            let Some(Ok(stream)) = self.greeter.as_ref().map(Greeter::accept) else {
                return;
            };
            let id = self.new_id();
            let waiting = self.greeter.as_ref().map_or(0, Greeter::waiting);
            if self.sessions.len() + waiting >= MAX_CONNECTIONS || self.watch(id, &stream).is_err() {
                log::warn!("vsock: too many connections, a client is turned away");
                continue;
            }
            if let Some(greeter) = &mut self.greeter {
                greeter.wait(id, stream);
            }
            self.client_ready(id);
        }
    }

    fn client_ready(&mut self, id: u64) {
        match self.greeter.as_mut().map(|greeter| greeter.look(id)) {
            Some(Asked::Port(stream, guest)) => {
                let host = self.new_port(guest);
                self.dial(id, Ports { host, guest }, stream, Some(greeting(host)));
            }
            Some(Asked::Gone(stream)) => self.unwatch(stream.as_fd()),
            Some(Asked::NotYet) | None => {}
        }
    }

    /// A host port that has no connection to this port of the guest.
    fn new_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_GREETED_PORT);
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn watch(&self, id: u64, stream: &UnixStream) -> io::Result<()> {
        let all = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, stream, EventData::new_u64(id), all)?)
    }

    /// Explicit, since a stream whose description lives on elsewhere would stay in the epoll instance.
    fn unwatch(&self, stream: BorrowedFd<'_>) {
        if let Err(cause) = epoll::delete(&self.epoll, stream) {
            log::debug!("vsock: a stream was not watched: {cause}");
        }
    }
}

/// What the Unix-socket face says of a connection that the guest accepted.
fn greeting(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_opened_and_reset_without_receive_buffers_leave_nothing() {
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let mut muxer = Muxer::new(3, wake.as_fd(), Arc::default()).unwrap();
        muxer.on_dial(Box::new(|_| UnixStream::pair().ok().map(|(ours, _)| ours)));
        let mut packet = |src_port, op: Op| {
            let header = Header {
                src_cid: 3,
                dst_cid: crate::vsock::HOST_CID,
                src_port,
                dst_port: 9,
                kind: TYPE_STREAM,
                op: op.number(),
                ..Header::default()
            };
            muxer.receive(&header, &[]);
            assert!(muxer.line.len() <= 2 * 2 + MAX_STALE, "two sessions are the most");
            (muxer.line.contains(&1), muxer.sessions.len(), muxer.resets.len())
        };
        packet(1, Op::Request);
        for _ in 0..200_000 {
            packet(2, Op::Request);
            assert_eq!(packet(2, Op::Reset), (true, 1, 0), "who waits keeps its place");
        }
    }
}
