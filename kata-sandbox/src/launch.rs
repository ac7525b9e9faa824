//! Stage 7: from opened files to a monitor process with its control socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use kata_vmm::control::{Event, Request, Socket};
use rustix::process::PidfdFlags;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::error::{Error, ErrorKind};
use crate::prepare::Prepared;
use crate::report::Stage;

/// Most of the monitor's log that is kept for an error.
const LOG_TAIL_BYTES: usize = 8 << 10;

/// The SDK's end of the control socket; closing it ends the machine.
#[derive(Debug)]
pub(crate) struct Control(AsyncFd<Socket>);

impl Control {
    /// One with no monitor behind it, only its socket.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> io::Result<(Self, Socket)> {
        let (ours, theirs) = Socket::pair()?;
        ours.set_nonblocking()?;
        Ok((Self(watch(ours)?), theirs))
    }

    /// Sends a request with the descriptors beside it, waiting for room.
    pub(crate) async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut guard = self.0.writable().await?;
            if let Ok(sent) = guard.try_io(|socket| socket.get_ref().send(request, fds)) {
                return sent;
            }
        }
    }

    /// The next event; `None` when the monitor closed its end.
    pub(crate) async fn recv(&self) -> io::Result<Option<(Event, Vec<OwnedFd>)>> {
        loop {
            let mut guard = self.0.readable().await?;
            match guard.try_io(|socket| socket.get_ref().recv()) {
                // The monitor ended with a request unread. What it had said before comes next, then the end.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Ok(received) => return received,
                Err(_would_block) => {}
            }
        }
    }

    /// Closes both directions, whoever else still holds this end.
    pub(crate) fn close(&self) {
        // The only failure is that the other end is gone already.
        let _ = rustix::net::shutdown(self.0.get_ref(), rustix::net::Shutdown::Both);
    }
}

/// The running monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    child: Child,
    exited: AsyncFd<OwnedFd>,
    log: Option<pipe::Receiver>,
}

impl Monitor {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reaps the monitor: waits for its end, and kills it when `patience` runs out.
    pub(crate) async fn reap(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        if tokio::time::timeout(patience, self.exited.readable())
            .await
            .is_err()
        {
            self.child.kill()?;
        }
        let _ready = self.exited.readable().await?;
        self.child.wait()
    }

    /// The last lines that the monitor logged; call it after its end.
    pub(crate) async fn log_tail(&mut self) -> String {
        let Some(mut log) = self.log.take() else {
            return String::new();
        };
        let mut bytes = Vec::new();
        // Whatever could be read is what there is to tell.
        let _ = tokio::time::timeout(Duration::from_millis(200), log.read_to_end(&mut bytes)).await;
        let start = bytes.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(&bytes[start..]).trim_end().to_owned()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Reached alive only when the runtime is torn down under us: nobody will wait any more.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Registers a descriptor with the runtime.
#[expect(
    deprecated,
    reason = "the successor is unsafe: it asks that the descriptor never changes, and owned descriptors do not"
)]
pub(crate) fn watch<T: AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(fd)
}

/// Starts the monitor and sends it the machine; its answers come as [`Event`]s.
pub(crate) async fn launch(prepared: Prepared) -> Result<(Monitor, Control), Error> {
    let failed = |what: &str, cause: io::Error| {
        let message = format!("{what} {}", prepared.monitor.display());
        Error::new(ErrorKind::Monitor, Stage::Launch, message).with_source(cause)
    };
    let (ours, theirs) = Socket::pair().map_err(|e| failed("no control socket for", e))?;
    let mut child = std::process::Command::new(&prepared.monitor)
        .stdin(Stdio::from(theirs.into_fd()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed("cannot start the monitor", e))?;
    let log = child
        .stderr
        .take()
        .map(OwnedFd::from)
        .map(pipe::Receiver::from_owned_fd)
        .transpose();
    let exited = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap_or_default())
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK))
        .map_err(io::Error::from)
        .and_then(watch);
    let control = ours.set_nonblocking().and_then(|()| watch(ours)).map(Control);
    let (log, exited, control) = match (log, exited, control) {
        (Ok(log), Ok(exited), Ok(control)) => (log, exited, control),
        (log, exited, control) => {
            let _ = child.kill();
            let _ = child.wait();
            let cause = log
                .err()
                .or(exited.err())
                .or(control.err())
                .unwrap_or(io::ErrorKind::Other.into());
            return Err(failed("cannot watch the monitor", cause));
        }
    };
    let monitor = Monitor { child, exited, log };
    let request = Request::Launch {
        protocol: kata_vmm::control::PROTOCOL,
        machine: Box::new(prepared.machine),
    };
    let fds: Vec<BorrowedFd<'_>> = prepared.fds.iter().map(AsFd::as_fd).collect();
    // A monitor that is gone already says why by its exit, which the supervisor reports.
    if let Err(error) = control.send(&request, &fds).await {
        tracing::debug!(%error, "the monitor did not take the machine");
    }
    Ok((monitor, control))
}
