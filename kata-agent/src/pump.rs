//! Moving bytes between a process's standard streams and the host's connections.
//!
//! ```text
//!  output:  living ──process ends──► draining ──► end of stream ──► discarding ──► all writers gone
//!              └─────────all writers gone─────────────┘
//! ```
//!
//! Back-pressure is the kernel's: nothing is read that cannot be passed on. What a process wrote
//! before it ended is passed on before its exit is told, unless the host does not read: then the exit
//! is told at once and the rest follows. A grandchild that still writes is read and discarded, and so
//! is everything after the host is gone. Must not know which process it is.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::{Notify, oneshot, watch};

use crate::sys;
use crate::transport::Stream;

/// Bytes moved at once: the largest vsock packet of a Linux guest.
const BUFFER_BYTES: usize = 64 << 10;

/// How long a terminal may take to pass on what was written to its other side.
const TERMINAL_FLUSH: Duration = Duration::from_millis(100);

/// Our end of a pipe, or the master of a terminal, without blocking.
pub(crate) type End = Arc<AsyncFd<OwnedFd>>;

/// How many bytes went through a stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moved(Arc<AtomicU64>);

impl Moved {
    fn add(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Takes over a pipe's end or a terminal's master.
pub(crate) fn end(fd: OwnedFd, interest: Interest) -> io::Result<End> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Arc::new(sys::watch(fd, interest)?))
}

/// A terminal answers EIO once its other side is closed: that is its end.
fn end_of_terminal(error: io::Error) -> io::Result<usize> {
    if error.raw_os_error() == Some(libc::EIO) {
        Ok(0)
    } else {
        Err(error)
    }
}

fn read_now(source: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    rustix::io::read(source, buffer)
        .map_err(io::Error::from)
        .or_else(end_of_terminal)
}

async fn read(source: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    source
        .async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?))
        .await
        .or_else(end_of_terminal)
}

/// The exit status of the process, as soon as there is one.
pub(crate) type Exit = watch::Receiver<Option<i32>>;

/// What a process writes, on its way to the host.
pub(crate) struct Output {
    source: End,
    /// Gone when the host is.
    sink: Option<Stream>,
    terminal: bool,
    buffer: Vec<u8>,
    pending: Range<usize>,
    /// What the process wrote.
    moved: Moved,
}

impl Output {
    pub(crate) fn new(source: End, sink: Option<Stream>, terminal: bool, moved: Moved) -> Self {
        Output {
            source,
            sink,
            terminal,
            buffer: vec![0; BUFFER_BYTES],
            pending: 0..0,
            moved,
        }
    }

    fn take(&mut self, read: usize) {
        self.pending = 0..read;
        self.moved.add(read);
    }

    /// Moves bytes until there are no writers any more. Fires `settled` when the exit may be told.
    pub(crate) async fn run(mut self, mut exit: Exit, settled: oneshot::Sender<()>) {
        let more = loop {
            tokio::select! {
                more = self.step() => if !more { break false },
                _ = exit.wait_for(Option::is_some) => break true,
            }
        };
        let mut settled = Some(settled);
        if more {
            self.drain(&mut settled).await;
        }
        self.finish().await;
        tell(&mut settled);
        self.buffer.truncate(BUFFER_BYTES / 16);
        while more && matches!(read(&self.source, &mut self.buffer).await, Ok(1..)) {}
    }

    /// One read or one write; false at the end of the source. Nothing is lost when it is cancelled.
    async fn step(&mut self) -> bool {
        if self.pending.is_empty() {
            let read = read(&self.source, &mut self.buffer).await.unwrap_or(0);
            self.take(read);
            return read > 0;
        }
        self.pass_on().await;
        true
    }

    /// Writes some of what is pending.
    async fn pass_on(&mut self) {
        let bytes = &self.buffer[self.pending.clone()];
        let written = match &mut self.sink {
            Some(sink) => sink.write(bytes).await,
            None => Ok(bytes.len()),
        };
        self.passed_on(written);
    }

    fn passed_on(&mut self, written: io::Result<usize>) {
        match written {
            Ok(written) => self.pending.start += written,
            // The host is gone; the process shall not notice.
            Err(_) => self.sink = None,
        }
    }

    /// Passes on what the process left behind.
    async fn drain(&mut self, settled: &mut Option<oneshot::Sender<()>>) {
        let mut left = rustix::io::ioctl_fionread(&self.source).unwrap_or(0);
        loop {
            while !self.pending.is_empty() {
                if !self.pass_on_now() {
                    tell(settled);
                    self.pass_on().await;
                }
            }
            let read = if self.terminal {
                self.flush_terminal().await
            } else {
                self.read_left(left)
            };
            if read == 0 {
                return;
            }
            left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
            self.take(read);
        }
    }

    /// Writes what the sink takes at once; false when it takes nothing.
    fn pass_on_now(&mut self) -> bool {
        let bytes = &self.buffer[self.pending.clone()];
        let written = match &self.sink {
            Some(sink) => rustix::io::write(sink, bytes).map_err(io::Error::from),
            None => Ok(bytes.len()),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            other => self.passed_on(other),
        }
        true
    }

    /// No more than was there when the process ended: others may go on writing.
    fn read_left(&mut self, left: u64) -> usize {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
        if most == 0 {
            0
        } else {
            read_now(&self.source, &mut self.buffer[..most]).unwrap_or(0)
        }
    }

    /// A terminal is read to its end, which comes with the death of the session's leader, a moment
    /// after what was written before.
    async fn flush_terminal(&mut self) -> usize {
        let read = tokio::time::timeout(TERMINAL_FLUSH, read(&self.source, &mut self.buffer));
        read.await.map_or(0, |read| read.unwrap_or(0))
    }

    async fn finish(&mut self) {
        if let Some(mut sink) = self.sink.take() {
            // A host that is gone has nothing to be told.
            let _ = sink.shutdown().await;
        }
    }
}

fn tell(settled: &mut Option<oneshot::Sender<()>>) {
    if let Some(settled) = settled.take() {
        // Nobody waits when the process was given up.
        let _ = settled.send(());
    }
}

/// What the host writes, on its way to a process.
pub(crate) struct Input {
    pub(crate) source: Stream,
    pub(crate) sink: End,
    pub(crate) terminal: bool,
    /// Asks to close the process's standard input after what has arrived.
    pub(crate) close: Arc<Notify>,
    /// What the process was given.
    pub(crate) moved: Moved,
}

impl Input {
    /// Moves bytes until the host has no more, or the process ends.
    pub(crate) async fn run(self, mut exit: Exit) {
        tokio::select! {
            _ = exit.wait_for(Option::is_some) => {}
            () = self.pump() => {}
        }
    }

    async fn pump(mut self) {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut closing = false;
        loop {
            let read = if closing {
                rustix::io::read(&self.source, &mut buffer).unwrap_or(0)
            } else {
                tokio::select! {
                    biased;
                    () = self.close.notified() => { closing = true; continue }
                    read = self.source.read(&mut buffer) => read.unwrap_or(0),
                }
            };
            if read == 0 {
                break;
            }
            // The process closed its standard input: the host's end of it closes, too.
            if self.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
        self.end_of_input().await;
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
            let written = self.sink.async_io(Interest::WRITABLE, write).await?;
            self.moved.add(written);
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// A pipe ends when it is dropped; a terminal ends by a character, and stays.
    async fn end_of_input(&self) {
        if self.terminal {
            let eof = rustix::termios::tcgetattr(self.sink.as_fd()).map_or(4, |attributes| {
                attributes.special_codes[rustix::termios::SpecialCodeIndex::VEOF]
            });
            // A terminal whose other side is gone needs no end.
            let _ = self.write_all(&[eof]).await;
        }
    }
}

#[cfg(test)]
mod tests;
