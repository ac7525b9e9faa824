//! Receiving the master of a terminal that was made inside a container.
//!
//! The worker connects to a Unix socket and sends the descriptor, as OCI runtimes do (their console socket). Owns the
//! socket's file, which goes with it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// How long the worker's connection may take once the process was made.
const WAIT: Duration = Duration::from_secs(5);

/// Where one terminal's master is sent to.
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// One with a name of its own in this directory.
    pub(crate) fn bind(directory: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = directory.join(format!("console-{}.sock", NEXT.fetch_add(1, Ordering::Relaxed)));
        let listener = UnixListener::bind(&path)?;
        Ok(Self { listener, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master; the socket has served then.
    pub(crate) async fn receive(self) -> io::Result<OwnedFd> {
        tokio::time::timeout(WAIT, receive(&self.listener)).await?
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // What is left of it goes with the sandbox.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Waits for the connection and its descriptor.
async fn receive(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (connection, _) = listener.accept().await?;
    loop {
        connection.readable().await?;
        match connection.try_io(Interest::READABLE, || receive_now(&connection)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

fn receive_now(connection: &UnixStream) -> io::Result<OwnedFd> {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    rustix::net::recvmsg(connection, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no descriptor came with it"))
}
