//! The carrier inside a guest: AF_VSOCK listeners, and connections to the host (CID 2).
//!
//! Owns the listeners. Must not know what the connections are for.

use std::io;
use std::os::fd::OwnedFd;

use kata_agent_proto::port;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use super::{Incoming, Stream, stream};

/// The agent's listeners.
pub(crate) struct Vsock {
    api: VsockListener,
    streams: VsockListener,
}

impl Vsock {
    /// Listens on the agent's ports.
    pub(crate) fn listen() -> io::Result<Self> {
        let bind = |port| VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port));
        Ok(Vsock {
            api: bind(port::AGENT)?,
            streams: bind(port::STREAM)?,
        })
    }

    pub(super) async fn accept(&self) -> io::Result<Incoming> {
        tokio::select! {
            accepted = self.api.accept() => incoming(port::AGENT, accepted?),
            accepted = self.streams.accept() => incoming(port::STREAM, accepted?),
        }
    }

    pub(super) async fn dial(&self, host_port: u32) -> io::Result<Stream> {
        stream(OwnedFd::from(
            VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, host_port)).await?,
        ))
    }
}

fn incoming(guest_port: u32, (socket, peer): (VsockStream, VsockAddr)) -> io::Result<Incoming> {
    Ok(Incoming {
        guest_port,
        host_port: peer.port(),
        stream: stream(OwnedFd::from(socket))?,
    })
}
