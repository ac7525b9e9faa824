//! The kernel's log on its way to the host, record by record.
//!
//! A reader of `/dev/kmsg` gets one record at a time, from the first that the kernel still has
//! (Documentation/ABI/testing/dev-kmsg). They are passed on as they are, and only as fast as the host reads: what the
//! kernel forgets meanwhile shows by the records' numbers. Must not know what is in a record.

use std::io;
use std::os::fd::OwnedFd;

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};

use crate::guest::Guest;
use crate::sys;
use crate::transport::Stream;

/// Longest record in bytes (`PRINTK_MESSAGE_MAX`, kernel/printk/internal.h, is less).
const RECORD_BYTES_MAX: usize = 8192;

/// Opens the log at its beginning.
///
/// # Errors
/// Unsupported, where the kernel is not the guest's own.
pub(crate) fn open(guest: Guest) -> Result<AsyncFd<OwnedFd>, Failed> {
    if guest == Guest::Process {
        return Err(Failed::new(
            FailureKind::Unsupported,
            "the log of a kernel that is the host's",
        ));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open("/dev/kmsg", flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|log| sys::watch(log, Interest::READABLE))
        .map_err(|error| Failed::new(FailureKind::Unsupported, format!("the kernel's log: {error}")))
}

/// Passes records on until the host hangs up.
pub(crate) async fn follow(log: AsyncFd<OwnedFd>, mut stream: Stream) {
    let mut record = vec![0; RECORD_BYTES_MAX];
    loop {
        let read = tokio::select! {
            () = hung_up(&stream) => return,
            read = log.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut record)?)) => read,
        };
        let read = match read {
            Ok(read) => read,
            // It was overwritten; the next one is there.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => continue,
            Err(_) => return,
        };
        if stream.write_all(&record[..read]).await.is_err() {
            return;
        }
    }
}

/// Returns when the host has closed its end; what it says is nothing.
async fn hung_up(stream: &Stream) {
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut [0; 64]) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}
