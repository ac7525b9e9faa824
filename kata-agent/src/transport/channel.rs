//! The carrier of an agent that is an ordinary process: connections as descriptors on one socket.
//!
//! `SOCK_SEQPACKET`; each message is the guest's port and the host's, both `u32` little endian, with one
//! stream socket beside it. From the host it is a connection to the guest's port; from the agent (guest
//! port 0) a dial to the host's. From the host, guest port 0 is a disk that is a file: its serial follows the
//! ports, and host port 1 means that it comes, with its file beside the message, 0 that it goes. The end of the
//! socket is the end of the host. Owns that format.

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

use super::{Arrival, Incoming, Stream, stream};

/// Bytes of a message, up to the serial of a disk.
const MESSAGE_BYTES: usize = 8;

/// Longest serial of a disk, in bytes.
const SERIAL_MAX_BYTES: usize = 64;

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

    pub(super) async fn accept(&self) -> io::Result<Option<Arrival>> {
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

fn receive(socket: &OwnedFd) -> io::Result<Option<Arrival>> {
    let mut bytes = [0; MESSAGE_BYTES + SERIAL_MAX_BYTES];
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
    let bytes = bytes.get(..received).unwrap_or_default();
    match bytes.split_first_chunk() {
        Some((ports, serial)) => arrival(*ports, serial, rights).map(Some),
        None => Err(malformed()),
    }
}

fn arrival(ports: [u8; MESSAGE_BYTES], serial: &[u8], fd: Option<OwnedFd>) -> io::Result<Arrival> {
    let [a, b, c, d, e, f, g, h] = ports;
    let ports = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    match (ports, fd, serial) {
        ((0, 1), Some(file), [_, ..]) => disk(serial, Some(file)),
        ((0, 0), None, [_, ..]) => disk(serial, None),
        ((guest_port, host_port), Some(connection), []) => Ok(Arrival::Connection(Incoming {
            guest_port,
            host_port,
            stream: stream(connection)?,
        })),
        _ => Err(malformed()),
    }
}

fn disk(serial: &[u8], file: Option<OwnedFd>) -> io::Result<Arrival> {
    let serial = String::from_utf8(serial.to_vec()).map_err(|_| malformed())?;
    Ok(Arrival::Disk { serial, file })
}

fn malformed() -> io::Error {
    let what = "a channel message that is neither ports with a stream nor a disk";
    io::Error::new(io::ErrorKind::InvalidData, what)
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
        let Some(Arrival::Connection(mut arrived)) = far.accept().await.expect("no error") else {
            panic!("no connection");
        };
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
    async fn what_is_neither_a_connection_nor_a_disk_is_an_error() {
        let (near, far) = pair();
        let numbers = |guest: u32, host: u32| [guest.to_le_bytes(), host.to_le_bytes()].concat();
        for message in [
            vec![0; 7],
            numbers(1024, 7),
            numbers(0, 0),
            [numbers(0, 1), b"shelf".to_vec()].concat(),
            [numbers(0, 0), b"\xff".to_vec()].concat(),
            [numbers(1024, 7), b"shelf".to_vec()].concat(),
        ] {
            rustix::io::write(near.0.get_ref(), &message).expect("written");
            let refused = far.accept().await.expect_err("refused");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{message:?}");
        }
        let gone = [numbers(0, 0), b"shelf@512".to_vec()].concat();
        rustix::io::write(near.0.get_ref(), &gone).expect("written");
        let arrived = far.accept().await.expect("no error");
        assert!(
            matches!(&arrived, Some(Arrival::Disk { serial, file: None }) if serial == "shelf@512"),
            "{arrived:?}"
        );
    }
}
