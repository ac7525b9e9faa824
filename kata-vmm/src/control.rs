//! The control socket between the SDK and its monitor.
//!
//! `SOCK_SEQPACKET`, one JSON message per packet, descriptors by `SCM_RIGHTS` beside it.
//!
//! ```text
//!  SDK                                   monitor
//!   │ spawn, control socket on fd 0         │
//!   │ Launch{protocol, machine} + fds  ──►  │
//!   │  ◄──────────────── Hello{protocol}    │
//!   │  ◄──────── Launched | LaunchFailed    │
//!   │ Connect{..} + stream             ──►  │   host → guest connection
//!   │  ◄──────────── Dialed{port} + stream  │   guest → host connection
//!   │ FollowConsole + socket           ──►  │   the console, as it is written
//!   │ Console, Info, Pause{paused}     ──►  │
//!   │ AddExtent + file                 ──►  │   of the machine's shelf, and back again
//!   │ RemoveExtent{offset}             ──►  │
//!   │  ◄── Console{tail}, Info(..), Paused, │   or Refused{..}; one to each, Paused when it is so
//!   │      ExtentAdded{..}, ExtentRemoved   │
//!   │  ◄──────────── Exited{reason, tail}   │   then EOF
//!   │ close                            ──►  │   kills the machine
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::machine::{Machine, MachineInfo, Running, VmExit};

/// Version of this protocol; both sides refuse another one.
pub const PROTOCOL: u32 = 3;

/// Most descriptors in one message.
pub const MAX_FDS: usize = 32;

/// Largest message in bytes; a console tail is cut so that it fits.
pub const MAX_MESSAGE_BYTES: usize = 128 << 10;

/// What the SDK asks of the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Build and start the machine. The first message, once. Carries the machine's descriptors.
    Launch {
        /// The sender's [`PROTOCOL`].
        protocol: u32,
        /// What to build.
        machine: Box<Machine>,
    },
    /// Connect the stream beside this message to a port of the guest. No reply: data may be written
    /// at once, and a port where nobody listens closes the stream.
    Connect {
        /// Port of the guest.
        guest_port: u32,
        /// Port that the guest sees as the peer's; chosen by the SDK, unique while the stream lives.
        host_port: u32,
        /// Write `OK <host port>\n` to the stream once the guest accepted, before anything of the guest's.
        greeted: bool,
    },
    /// Ask for [`Event::Console`].
    Console,
    /// Send the guest's console to the `SOCK_SEQPACKET` socket beside this message: what is kept of it, and then
    /// everything that comes, until the socket is closed. No reply. Each message is a position in all that was ever
    /// written to the console (`u64`, little endian) and the bytes from there. A reader that lags loses what is not
    /// kept any more, which the next position shows.
    FollowConsole,
    /// Hold the machine's processors and devices, or let them go on. Answered by [`Event::Paused`] or
    /// [`Event::Refused`].
    Pause {
        /// Whether to hold.
        paused: bool,
    },
    /// Ask for [`Event::Info`].
    Info,
    /// Show the file beside this message, opened for reading only, on the machine's
    /// [`shelf`](Machine::shelf). Answered by [`Event::ExtentAdded`] or [`Event::Refused`].
    AddExtent,
    /// Show it no more; the monitor closes its descriptor. Answered by [`Event::ExtentRemoved`] or
    /// [`Event::Refused`].
    RemoveExtent {
        /// Where it begins, in bytes.
        offset: u64,
    },
}

/// What the monitor tells the SDK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The first message.
    Hello {
        /// The monitor's [`PROTOCOL`].
        protocol: u32,
        /// The monitor's package version.
        version: String,
    },
    /// The machine runs.
    Launched(Running),
    /// The machine could not be started; the monitor ends.
    LaunchFailed(LaunchError),
    /// The guest connected to a port of the host (CID 2), one of [`Machine::host_ports`]; the stream is
    /// beside this message.
    /// Dropping it resets the guest's connection.
    Dialed {
        /// Port of the host that the guest asked for.
        host_port: u32,
    },
    /// Answer to [`Request::Console`].
    Console {
        /// The last lines of the guest's console.
        tail: String,
    },
    /// Answer to [`Request::Pause`]: it is so.
    Paused {
        /// Whether it is held.
        paused: bool,
    },
    /// Answer to [`Request::Info`].
    Info(MachineInfo),
    /// Answer to [`Request::AddExtent`]: the guest can read it now.
    ExtentAdded {
        /// Where it begins on the disk, in bytes. No other extent of this machine ever did or will.
        offset: u64,
        /// Its size: that of the file, in whole sectors.
        bytes: u64,
    },
    /// Answer to [`Request::RemoveExtent`]: what the guest reads there now is an I/O error.
    ExtentRemoved {
        /// Where it began.
        offset: u64,
    },
    /// Answer to a request that could not be met. A hold is taken back; a machine that was to go on does, but
    /// for what the reason names.
    Refused {
        /// What was asked.
        operation: String,
        /// Why not.
        reason: String,
    },
    /// The machine ended; the monitor ends.
    Exited {
        /// Why.
        reason: VmExit,
        /// The last lines of the guest's console.
        console_tail: String,
    },
}

/// Why a machine could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LaunchError {
    /// The SDK and the monitor are of different versions.
    #[error("monitor speaks control protocol {monitor}, the caller speaks {caller}")]
    Protocol {
        /// The monitor's [`PROTOCOL`].
        monitor: u32,
        /// The caller's [`PROTOCOL`].
        caller: u32,
    },
    /// The machine asks for what this hypervisor cannot do.
    #[error("{operation} is not supported: {reason}")]
    Unsupported {
        /// What was asked.
        operation: String,
        /// Why not.
        reason: String,
    },
    /// The kernel or initramfs is not one that this machine can start.
    #[error("the guest cannot be booted: {cause}")]
    Boot {
        /// What is wrong with it.
        cause: String,
    },
    /// The hypervisor could not be started.
    #[error("cannot start {program}: {cause}")]
    Spawn {
        /// The program.
        program: String,
        /// The operating system's answer.
        cause: String,
    },
    /// The hypervisor ended before the machine ran.
    #[error("{program} ended before the machine ran (code {code:?}, signal {signal:?}): {stderr_tail}")]
    Ended {
        /// The program.
        program: String,
        /// Its exit code.
        code: Option<i32>,
        /// The signal that killed it.
        signal: Option<i32>,
        /// What it wrote to standard error.
        stderr_tail: String,
    },
    /// The monitor itself failed.
    #[error("{operation}: {cause}")]
    Monitor {
        /// What the monitor was doing.
        operation: String,
        /// The operating system's answer.
        cause: String,
    },
}

/// One end of a control socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// A connected pair: the SDK's end (close-on-exec, non-blocking if asked) and the monitor's.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(a), Self(b)))
    }

    /// Takes over an inherited descriptor.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Gives the descriptor away, to become a child's standard input.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Makes [`send`](Self::send) and [`recv`](Self::recv) answer [`io::ErrorKind::WouldBlock`]
    /// rather than wait.
    ///
    /// # Errors
    /// Never on a socket.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.0, true)?)
    }

    /// Sends one message and the descriptors beside it.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] when the other end is gone, [`io::ErrorKind::InvalidInput`] for a
    /// message above [`MAX_MESSAGE_BYTES`] or more than [`MAX_FDS`] descriptors.
    pub fn send<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE_BYTES || fds.len() > MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "control message of {} bytes with {} descriptors is too large",
                    bytes.len(),
                    fds.len()
                ),
            ));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Receives one message with its descriptors (close-on-exec); `None` when the other end is closed.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for what is not a message of this protocol.
    pub fn recv<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "control message was truncated",
            ));
        }
        let message = serde_json::from_slice(&bytes[..received.bytes])?;
        Ok(Some((message, fds)))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = Socket::pair().unwrap();
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        a.send(
            &Request::Connect {
                guest_port: 1024,
                host_port: 7,
                greeted: false,
            },
            &[theirs.as_fd()],
        )
        .unwrap();
        drop(theirs);
        let (message, fds) = b.recv::<Request>().unwrap().unwrap();
        assert_eq!(
            message,
            Request::Connect {
                guest_port: 1024,
                host_port: 7,
                greeted: false,
            }
        );
        assert_eq!(fds.len(), 1);
        drop(fds);
        assert_eq!(
            ours.read(&mut [0; 1]).unwrap(),
            0,
            "the descriptor was passed, not copied and kept"
        );
    }

    #[test]
    fn a_closed_end_is_none_and_garbage_is_an_error() {
        let (a, b) = Socket::pair().unwrap();
        rustix::io::write(&a, b"not json").unwrap();
        assert_eq!(
            b.recv::<Request>().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        drop(a);
        assert!(b.recv::<Request>().unwrap().is_none());
    }
}
