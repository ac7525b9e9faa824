//! The carrier of an agent that is an ordinary process: connections as descriptors on one socket.
//!
//! `SOCK_SEQPACKET`; each message is the guest's port and the host's, both `u32` little endian, with one
//! stream socket beside it. From the host it is a connection to the guest's port; from the agent (guest
//! port 0) a dial to the host's. The end of the socket is the end of the host. Owns that format.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

use super::{Incoming, Stream, stream};

/// Bytes of a message.
const MESSAGE_BYTES: usize = 8;

/// The agent's end of the socket.
pub(crate) struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Takes over the inherited socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Channel(sys::watch(
            socket,
            Interest::READABLE | Interest::WRITABLE,
        )?))
    }

    pub(super) async fn accept(&self) -> io::Result<Option<Incoming>> {
        self.0.async_io(Interest::READABLE, receive).await
    }

    pub(super) async fn dial(&self, host_port: u32) -> io::Result<Stream> {
        let (near, far) = std::os::unix::net::UnixStream::pair()?;
        self.0
            .async_io(Interest::WRITABLE, |socket| send(socket, host_port, &far))
            .await?;
        stream(near.into())
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Option<Incoming>> {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    if received == 0 {
        return Ok(None);
    }
    let rights = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    match rights {
        Some(connection) if received == MESSAGE_BYTES => incoming(bytes, connection).map(Some),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a channel message without its ports or stream",
        )),
    }
}

fn incoming(bytes: [u8; MESSAGE_BYTES], connection: OwnedFd) -> io::Result<Incoming> {
    let [a, b, c, d, e, f, g, h] = bytes;
    Ok(Incoming {
        guest_port: u32::from_le_bytes([a, b, c, d]),
        host_port: u32::from_le_bytes([e, f, g, h]),
        stream: stream(connection)?,
    })
}

fn send(socket: &OwnedFd, host_port: u32, connection: &impl AsFd) -> io::Result<()> {
    let bytes = [0_u32.to_le_bytes(), host_port.to_le_bytes()].concat();
    let rights = [connection.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Channel, Channel) {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a pair");
        (
            Channel::new(a).expect("a channel"),
            Channel::new(b).expect("a channel"),
        )
    }

    #[tokio::test]
    async fn a_dial_arrives_as_a_connection_and_carries_bytes() {
        let (near, far) = pair();
        let mut dialed = near.dial(1030).await.expect("dialed");
        let mut arrived = far.accept().await.expect("no error").expect("a connection");
        assert_eq!((arrived.guest_port, arrived.host_port), (0, 1030));
        dialed.write_all(b"hi").await.expect("written");
        drop(dialed);
        let mut text = String::new();
        arrived.stream.read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "hi");
    }

    #[tokio::test]
    async fn the_end_of_the_socket_is_the_end_of_the_host() {
        let (near, far) = pair();
        drop(near);
        assert!(far.accept().await.expect("no error").is_none());
    }

    #[tokio::test]
    async fn a_message_without_a_stream_is_an_error() {
        let (near, far) = pair();
        rustix::io::write(near.0.get_ref(), &[0; 8]).expect("written");
        assert_eq!(
            far.accept().await.expect_err("refused").kind(),
            io::ErrorKind::InvalidData
        );
    }
}
