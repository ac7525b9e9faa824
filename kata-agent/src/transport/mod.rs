//! How connections come in and go out: vsock in a guest; descriptors on a socket, or a socket that listens, as a process.
//!
//! Owns the difference between them. Everything above sees byte streams with a port on either side
//! and must not know what carries them.

mod channel;
mod listening;
mod vsock;

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::UnixStream;

pub(crate) use channel::Channel;
pub(crate) use listening::{Listener, Listening};
pub(crate) use vsock::Vsock;

/// A connected byte stream of any socket family. Tokio's Unix stream uses only calls that every
/// stream socket has (read, write, shutdown, readiness).
pub(crate) type Stream = UnixStream;

/// A connection from the host.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// The guest's port, which the host connected to.
    pub(crate) guest_port: u32,
    /// The host's port, which the connection comes from.
    pub(crate) host_port: u32,
    /// The connection.
    pub(crate) stream: Stream,
}

/// What comes from the host.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A connection.
    Connection(Incoming),
    /// A disk that is a file, where the agent is an ordinary process; or without a file, that it goes.
    Disk {
        /// Its serial.
        serial: String,
        /// What is on it.
        file: Option<OwnedFd>,
    },
}

/// One of the carriers.
pub(crate) enum Transport {
    /// In a guest.
    Vsock(Vsock),
    /// As an ordinary process.
    Channel(Channel),
    /// As an ordinary process without a host that waits for it.
    Listener(Listener),
}

impl Transport {
    /// What comes next from the host; `None` when the host is gone for good.
    pub(crate) async fn accept(&self) -> io::Result<Option<Arrival>> {
        match self {
            Transport::Vsock(vsock) => vsock.accept().await.map(Arrival::Connection).map(Some),
            Transport::Channel(channel) => channel.accept().await,
            Transport::Listener(listener) => listener.accept().await.map(Arrival::Connection).map(Some),
        }
    }

    /// A connection to a port of the host; none where no host waits for one.
    pub(crate) async fn dial(&self, host_port: u32) -> io::Result<Option<Stream>> {
        match self {
            Transport::Vsock(vsock) => vsock.dial(host_port).await.map(Some),
            Transport::Channel(channel) => channel.dial(host_port).await.map(Some),
            Transport::Listener(_) => Ok(None),
        }
    }
}

/// Makes a stream of a connected socket.
fn stream(socket: OwnedFd) -> io::Result<Stream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    Stream::from_std(socket)
}
