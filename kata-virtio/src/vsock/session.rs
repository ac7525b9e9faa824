//! One connection with its host stream: moves bytes between the two without ever waiting.
//!
//! Owns the stream and the bytes in between: at most [`GUEST_BUFFER_BYTES`] that the guest sent and the
//! host has not taken (its credit), and at most [`READ_AHEAD_BYTES`] that the host sent and the guest
//! has credit for. Knows nothing of queues or of other connections.
//!
//! Streams are used with `MSG_DONTWAIT`, so that the file description's own flags, which the giver of
//! the stream may share, stay as they are; and with `MSG_NOSIGNAL`.

use std::collections::VecDeque;
use std::net::Shutdown as Direction;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::buffer::{Buffer, spare_capacity};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::connection::{Connection, Next};
use super::packet::{Op, Shutdown};

/// What the guest may send ahead of the host's reading, in bytes per connection.
pub(crate) const GUEST_BUFFER_BYTES: u32 = 256 << 10;

/// What is read from the host at once, in bytes per connection.
pub(crate) const READ_AHEAD_BYTES: usize = 64 << 10;

/// The ports that name a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

/// A packet for the guest, whose payload is in [`Session::payload`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing to send now.
    Nothing,
    /// Send this: [`Session::sent`] fills the header in, [`Session::payload_gone`] ends it.
    Send(Op, Shutdown, usize),
    /// Both directions are closed.
    Finished,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) ports: Ports,
    pub(crate) connection: Connection,
    /// Waits in the muxer's line to send.
    pub(crate) in_line: bool,
    /// The guest knows of it no more; what it sent still goes to the host.
    pub(crate) lingers: bool,
    /// The first line that the host gets once the guest accepted.
    pub(crate) greeting: Option<String>,
    stream: UnixStream,
    readable: bool,
    writable: bool,
    host_gone: bool,
    write_shut: bool,
    read_shut: bool,
    to_host: VecDeque<u8>,
    to_guest: Vec<u8>,
    to_guest_sent: usize,
}

impl Session {
    pub(crate) fn new(ports: Ports, connection: Connection, stream: UnixStream) -> Self {
        Self {
            ports,
            connection,
            in_line: false,
            lingers: false,
            greeting: None,
            stream,
            readable: true,
            writable: true,
            host_gone: false,
            write_shut: false,
            read_shut: false,
            to_host: VecDeque::new(),
            to_guest: Vec::new(),
            to_guest_sent: 0,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Bytes from the guest that the host has not taken.
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.to_host.len()
    }

    /// The stream may have something to read, or its end.
    pub(crate) fn now_readable(&mut self) {
        self.readable = true;
    }

    /// The stream may take more; sends what waits.
    pub(crate) fn now_writable(&mut self) {
        self.writable = true;
        self.flush();
    }

    /// The other end of the stream is closed: what waits for it is dropped.
    pub(crate) fn host_hung_up(&mut self) {
        self.host_gone = true;
        self.connection.host_gone();
        self.connection.forwarded(count(self.to_host.len()));
        self.to_host = VecDeque::new();
    }

    /// Sends the greeting, if there is one; a stream too full for a line is as good as closed.
    pub(crate) fn greet(&mut self) {
        let Some(line) = self.greeting.take() else { return };
        if self.send(line.as_bytes()) != line.len() {
            self.host_hung_up();
        }
    }

    /// Takes payload of the guest, within its credit.
    pub(crate) fn take(&mut self, payload: &[u8]) {
        if self.host_gone {
            self.connection.forwarded(count(payload.len()));
            return;
        }
        let sent = if self.to_host.is_empty() {
            self.send(payload)
        } else {
            0
        };
        self.connection.forwarded(count(sent));
        if self.host_gone {
            self.connection.forwarded(count(payload.len() - sent));
        } else {
            self.to_host.extend(&payload[sent..]);
        }
    }

    /// Sends what waits for the host and closes what the guest has closed.
    pub(crate) fn flush(&mut self) {
        while self.writable && !self.to_host.is_empty() && !self.host_gone {
            let waiting = std::mem::take(&mut self.to_host);
            let sent = self.send(waiting.as_slices().0);
            if !self.host_gone {
                self.to_host = waiting;
                self.to_host.drain(..sent);
                self.connection.forwarded(count(sent));
            } else {
                self.connection.forwarded(count(waiting.len()));
            }
        }
        if self.to_host.is_empty() {
            self.to_host = VecDeque::new();
        }
        self.close_as_the_guest_did();
    }

    /// What to send to the guest next, with at most `room` bytes of payload.
    pub(crate) fn turn(&mut self, room: usize) -> Turn {
        loop {
            match self.connection.next(self.readable || self.read_ahead() > 0) {
                Next::Nothing => return Turn::Nothing,
                Next::Finished => return Turn::Finished,
                Next::Control(op, flags) => return Turn::Send(op, flags, 0),
                Next::Data(credit) => {
                    self.fill(credit);
                    let credit = usize::try_from(credit).unwrap_or(usize::MAX);
                    match self.read_ahead().min(room).min(credit) {
                        0 => {}
                        bytes => return Turn::Send(Op::ReadWrite, Shutdown::empty(), bytes),
                    }
                }
            }
        }
    }

    /// The next `bytes` of payload for the guest.
    pub(crate) fn payload(&self, bytes: usize) -> &[u8] {
        &self.to_guest[self.to_guest_sent..][..bytes]
    }

    /// A turn is about to be sent; returns (`buf_alloc`, `fwd_cnt`) for its header.
    pub(crate) fn sent(&mut self, op: Op, flags: Shutdown, bytes: usize) -> (u32, u32) {
        self.connection.sent(op, flags, count(bytes))
    }

    /// The payload of that turn is no longer needed.
    pub(crate) fn payload_gone(&mut self, bytes: usize) {
        self.to_guest_sent += bytes;
        if self.read_ahead() == 0 {
            self.to_guest = Vec::new();
            self.to_guest_sent = 0;
        }
    }

    /// Whether the session has nothing left to do for a guest that has forgotten it.
    pub(crate) fn drained(&self) -> bool {
        self.to_host.is_empty()
    }

    /// Closes the stream so that the other end reads an end of file. Bytes that it sent and nobody read
    /// would make its reads fail with `ECONNRESET`, so they are read: after the shutdown they are at
    /// most a socket buffer.
    pub(crate) fn close(self) {
        if self.stream.shutdown(Direction::Both).is_err() {
            return;
        }
        let mut sink = [0; 4096];
        while receive(&self.stream, &mut sink[..]).is_ok_and(|bytes| bytes > 0) {}
    }

    fn read_ahead(&self) -> usize {
        self.to_guest.len() - self.to_guest_sent
    }

    /// Reads from the host if nothing is left of the last time, no more than the guest has room for:
    /// what cannot be sent stays in the stream, and its writer waits.
    fn fill(&mut self, credit: u32) {
        if self.read_ahead() > 0 || !self.readable {
            return;
        }
        let most = usize::try_from(credit)
            .unwrap_or(usize::MAX)
            .min(READ_AHEAD_BYTES);
        self.to_guest = Vec::with_capacity(most);
        self.to_guest_sent = 0;
        match receive(&self.stream, spare_capacity(&mut self.to_guest)) {
            Ok(bytes) if bytes > 0 => {}
            Err(Errno::AGAIN) => self.readable = false,
            // The end, or a peer that closed with our bytes unread: both mean that no more will come.
            Ok(_) | Err(_) => {
                self.readable = false;
                self.connection.host_ended();
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() && self.writable {
            match rustix::net::send(
                &self.stream,
                &bytes[sent..],
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => {
                    self.host_hung_up();
                    break;
                }
            }
        }
        sent
    }

    /// Shuts the host's stream as far as the guest did: what the guest sent has to be out first, and a
    /// host whose bytes nobody will read should not wait for ever.
    fn close_as_the_guest_did(&mut self) {
        if !self.connection.guest_receives() && !self.read_shut {
            self.read_shut = true;
            self.shut(Direction::Read);
        }
        if !self.connection.guest_sends() && self.to_host.is_empty() && !self.write_shut {
            self.write_shut = true;
            self.shut(Direction::Write);
        }
    }

    /// A direction that cannot be shut any more is closed already.
    fn shut(&self, direction: Direction) {
        if let Err(cause) = self.stream.shutdown(direction) {
            log::debug!(
                "vsock: host stream of port {} is closed: {cause}",
                self.ports.host
            );
        }
    }
}

/// Reads what is there. Nobody's signal handler interrupts a call that does not wait.
fn receive<B: Buffer<u8>>(stream: &UnixStream, into: B) -> Result<usize, Errno> {
    rustix::net::recv(stream, into, RecvFlags::DONTWAIT).map(|(_, bytes)| bytes)
}

/// A count of bytes below the credit, which is 32 bits.
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
