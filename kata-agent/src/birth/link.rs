//! What the worker and the process that it makes say to each other, over a pair of sockets.
//!
//! ```text
//!  worker                    process
//!     ◄── Born(pid) ────────── (a helper, where one was needed)
//!     ─── go ────────────────►   mapped, in its cgroup
//!     ◄── Terminal + fd ──────   our side of its terminal
//!     ◄── Hooks ──────────────   mounted; the root is not entered yet
//!     ─── go ────────────────►   hooks have run
//!     ◄── Ready, or Failed ───   waits for its start, or ends
//! ```
//!
//! Owns that format. The end of one side is the end of the other.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::outcome::{OUTCOME_MAX_BYTES, Outcome};

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// It exists, by this number for the worker.
    Born(i32),
    /// The hooks of the runtime may run.
    Hooks,
    /// Our side of its terminal comes with this.
    Terminal,
    /// It waits for its start.
    Ready,
    /// It gives up.
    Failed(Outcome),
}

/// One of the two sides.
pub(super) struct Link(OwnedFd);

/// Both sides: the worker's and the process's.
pub(super) fn pair() -> io::Result<(Link, Link)> {
    let pair = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    let (ours, theirs) = pair?;
    Ok((Link(ours), Link(theirs)))
}

impl Link {
    /// Says a word, with a descriptor or without.
    pub(super) fn say(&self, word: &Word, descriptor: Option<&OwnedFd>) -> io::Result<()> {
        let text = serde_json::to_vec(word)?;
        let rights: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !rights.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&rights)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let text = [IoSlice::new(&text)];
        rustix::net::sendmsg(&self.0, &text, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next word, and the descriptor that came with it; nothing when the other side has ended.
    pub(super) fn hear(&self) -> io::Result<Option<(Word, Option<OwnedFd>)>> {
        let mut bytes = [0; 2 * OUTCOME_MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(&self.0, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?
        };
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        match bytes.get(..received.bytes) {
            None | Some([]) => Ok(None),
            Some(text) => Ok(Some((serde_json::from_slice(text)?, descriptor))),
        }
    }

    /// Lets the process go on.
    pub(super) fn go(&self) -> io::Result<()> {
        rustix::net::send(&self.0, b"g", SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits to be let go on.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut byte = [0; 1];
        match rustix::net::recv(&self.0, &mut byte, RecvFlags::empty())? {
            (_, 1) => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends a terminal's master to the socket that waits for it.
pub(super) fn send_console(path: &std::path::Path, terminal: &OwnedFd) -> io::Result<()> {
    let socket = std::os::unix::net::UnixStream::connect(path)?;
    let rights = [terminal.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&rights)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(
        &socket,
        &[IoSlice::new(b"t")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
