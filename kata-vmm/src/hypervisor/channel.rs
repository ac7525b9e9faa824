//! Streams between a guest and its host, handed over one by one.
//!
//! `SOCK_SEQPACKET`; each packet is 8 bytes, guest port and host port as little-endian `u32`, with the
//! connected stream beside it. One end is the control loop's; the other is the vsock device's worker
//! thread (dials of the guest) or the program that stands in for a guest (both directions). To the latter disks
//! are handed over too: guest port 0, which no guest has, and behind the ports the disk's name. Host port 1
//! means that the disk comes, beside its file; 0 that it goes.
//! It must not know what the streams carry, nor what is on the disks.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::Occurrence;

/// Bytes of a packet.
const PACKET_BYTES: usize = 8;

/// Streams that are taken at one time: a guest that floods its host does not fill the monitor's descriptor
/// table, since what was taken is passed on before the next are.
const STREAMS_AT_ONCE: usize = 64;

/// The two ports of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    /// The guest's; 0 when it is not known.
    pub(super) guest: u32,
    /// The host's.
    pub(super) host: u32,
}

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Both ends.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(a), Self(b)))
    }

    /// Gives the descriptor away, for a child.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Hands a stream over; never waits.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the other end has too many to take, which is its refusal.
    pub(super) fn send(&self, ports: Ports, stream: BorrowedFd<'_>) -> io::Result<()> {
        let mut bytes = [0; PACKET_BYTES];
        bytes[..4].copy_from_slice(&ports.guest.to_le_bytes());
        bytes[4..].copy_from_slice(&ports.host.to_le_bytes());
        send_packet(&self.0, &bytes, Some(stream))
    }

    /// Hands a disk over, or takes the one of this name back; never waits.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(super) fn send_disk(&self, name: &str, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let comes = u32::from(file.is_some());
        let bytes = [&[0; 4], &comes.to_le_bytes(), name.as_bytes()].concat();
        send_packet(&self.0, &bytes, file)
    }

    /// Takes dials of the guest to `host_ports`, at most [`STREAMS_AT_ONCE`] packets: the channel stays
    /// readable while there are more. Other dials are dropped, which resets them, and so are packets that
    /// cannot be taken.
    ///
    /// # Errors
    /// When nothing more will come, [`io::ErrorKind::UnexpectedEof`] above all.
    pub(super) fn take_dials(&self, host_ports: &[u32], occurrences: &mut Vec<Occurrence>) -> io::Result<()> {
        for _ in 0..STREAMS_AT_ONCE {
            match self.recv() {
                Ok(None) => break,
                Ok(Some((Ports { host, .. }, stream))) if host_ports.contains(&host) => {
                    occurrences.push(Occurrence::Dialed {
                        host_port: host,
                        stream,
                    });
                }
                Ok(Some((ports, _))) => log::debug!("the guest's dial of port {} is refused", ports.host),
                Err(cause) if is_of_one_packet(&cause) => log::debug!("a dial of the guest is lost: {cause}"),
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// Takes the next stream, if one is there.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for another packet, or one whose stream found no free descriptor
    /// (recvmsg(2), `MSG_CTRUNC`); [`io::ErrorKind::UnexpectedEof`] when the other end is closed.
    pub(super) fn recv(&self) -> io::Result<Option<(Ports, OwnedFd)>> {
        let mut bytes = [0; PACKET_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = match rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        ) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(cause) => return Err(cause.into()),
        };
        let stream = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut streams) => streams.next(),
            _ => None,
        });
        let cut = received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        match (received.bytes, stream) {
            (0, None) if !cut => Err(io::ErrorKind::UnexpectedEof.into()),
            (PACKET_BYTES, Some(stream)) if !cut => {
                let [a, b, c, d, e, f, g, h] = bytes;
                let ports = Ports {
                    guest: u32::from_le_bytes([a, b, c, d]),
                    host: u32::from_le_bytes([e, f, g, h]),
                };
                Ok(Some((ports, stream)))
            }
            (count, _) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("channel packet of {count} bytes is not two ports and a stream"),
            )),
        }
    }
}

fn send_packet(socket: &OwnedFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Whether the channel goes on after this failure to receive.
fn is_of_one_packet(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::InvalidData
        || matches!(
            Errno::from_io_error(cause),
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)
        )
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    const PORTS: Ports = Ports {
        guest: 1024,
        host: 0x8000_0001,
    };

    #[test]
    fn a_stream_arrives_with_its_ports() {
        let (a, b) = Channel::pair().unwrap();
        assert!(b.recv().unwrap().is_none());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        a.send(PORTS, theirs.as_fd()).unwrap();
        drop(theirs);
        let (ports, stream) = b.recv().unwrap().unwrap();
        assert_eq!(ports, PORTS);
        drop(stream);
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        drop(a);
        assert_eq!(b.recv().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_disk_comes_with_its_file_and_goes_without() {
        let (a, b) = Channel::pair().unwrap();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        a.send_disk("shelf@1048576", Some(file.as_fd())).unwrap();
        a.send_disk("shelf@1048576", None).unwrap();
        for comes in [1, 0] {
            let mut bytes = [0; 64];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let count = rustix::net::recvmsg(&b.0, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                .unwrap()
                .bytes;
            let files: usize = ancillary
                .drain()
                .map(|message| match message {
                    RecvAncillaryMessage::ScmRights(files) => files.count(),
                    _ => 0,
                })
                .sum();
            assert_eq!(files, usize::from(comes));
            assert_eq!(
                bytes[..count],
                [&[0, 0, 0, 0, comes, 0, 0, 0], &b"shelf@1048576"[..]].concat()
            );
        }
    }

    #[test]
    fn another_packet_is_an_error() {
        let (a, b) = Channel::pair().unwrap();
        rustix::io::write(&a.0, b"12345678").unwrap();
        assert_eq!(b.recv().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn dials_are_taken_in_portions_and_bad_packets_cost_no_more_than_themselves() {
        let (a, b) = Channel::pair().unwrap();
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let mut occurrences = Vec::new();
        for host in [7, 8].repeat(STREAMS_AT_ONCE / 2) {
            a.send(Ports { guest: 0, host }, theirs.as_fd()).unwrap();
        }
        // As the kernel leaves it where no descriptor is free, and two that no guest program sends.
        rustix::io::write(&a.0, b"12345678").unwrap();
        rustix::io::write(&a.0, b"1").unwrap();
        rustix::io::write(&a.0, &[0; PACKET_BYTES + 1]).unwrap();
        a.send(Ports { guest: 0, host: 7 }, theirs.as_fd()).unwrap();
        b.take_dials(&[7], &mut occurrences).unwrap();
        assert_eq!(occurrences.len(), STREAMS_AT_ONCE / 2);
        b.take_dials(&[7], &mut occurrences).unwrap();
        assert_eq!(occurrences.len(), STREAMS_AT_ONCE / 2 + 1);
        drop(a);
        // A child that another test starts has a copy of it until it executes its program.
        let mut hangup = [PollFd::new(&b.0, PollFlags::IN)];
        let minute = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut hangup, Some(&minute)).unwrap(), 1);
        let end = b.take_dials(&[7], &mut occurrences).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_full_channel_refuses_instead_of_waiting() {
        let (a, _b) = Channel::pair().unwrap();
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let refusal = (0..100_000)
            .find_map(|_| a.send(PORTS, theirs.as_fd()).err())
            .unwrap();
        assert_eq!(refusal.kind(), io::ErrorKind::WouldBlock);
    }
}
