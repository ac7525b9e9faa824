//! A stream socket as the mock's guest keeps it.

use std::collections::VecDeque;

use crate::vsock::packet::{Header, Shutdown};

/// The ports that name a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Socket {
    /// In the guest.
    pub guest_port: u32,
    /// On the host.
    pub host_port: u32,
}

/// How far a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketState {
    /// Asked, not answered.
    Connecting,
    /// Connected.
    Open,
    /// Reset: refused, or over.
    Reset,
}

/// Books of one socket. The guest grants `buffer_bytes` and counts as Linux does.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) state: SocketState,
    pub(super) received: Vec<u8>,
    pub(super) unsent: VecDeque<u8>,
    pub(super) host_shutdown: Shutdown,
    pub(super) buffer_bytes: u32,
    pub(super) forwarded: u32,
    pub(super) announced: u32,
    sent: u32,
    peer_allocated: u32,
    peer_forwarded: u32,
}

impl Books {
    pub(super) fn new(state: SocketState, buffer_bytes: u32) -> Self {
        Self {
            state,
            received: Vec::new(),
            unsent: VecDeque::new(),
            host_shutdown: Shutdown::empty(),
            buffer_bytes,
            forwarded: 0,
            announced: 0,
            sent: 0,
            peer_allocated: 0,
            peer_forwarded: 0,
        }
    }

    pub(super) fn peer(&mut self, header: &Header) {
        self.peer_allocated = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
    }

    /// Bytes that the device would take now.
    pub(super) fn credit(&self) -> u32 {
        self.peer_allocated
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    pub(super) fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Linux tells when less than a packet's worth of the buffer seems free to the peer.
    pub(super) fn update_due(&self) -> bool {
        let hidden = self.forwarded.wrapping_sub(self.announced);
        hidden > 0 && self.buffer_bytes - hidden.min(self.buffer_bytes) < 64 << 10
    }
}
