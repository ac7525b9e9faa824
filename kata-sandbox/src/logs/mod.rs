//! What a guest logs: its kernel's records, and its console.
//!
//! ```text
//!  guest kernel ── /dev/kmsg ── agent ── vsock stream ──┐
//!  guest console ── monitor ── socket of messages ──────┴─► Logs
//! ```
//!
//! Nobody asks again and again: both sources push, each as fast as it is read, and neither waits for a reader. Owns the
//! merging of the two. What a guest writes is not trusted: lines are bounded, control characters are taken out, and
//! memory does not grow.

mod console;
mod kernel;

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use kata_agent_proto::CallError;
use kata_agent_proto::FailureKind;
use kata_agent_proto::kata::KernelLogRequest;
use kata_vmm::control::Request;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::UnixStream;

use self::console::Console;
use self::kernel::Kernel;
use crate::error::{Error, ErrorKind};
use crate::report::Stage;

/// Longest line in bytes; a longer one comes in pieces. Records of the kernel are shorter.
const LINE_BYTES_MAX: usize = 8 << 10;

/// Something that a guest logged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Log {
    /// A record of the guest kernel's log.
    Kernel(KernelRecord),
    /// A line of the guest's console.
    Console(String),
    /// Something was lost between the one before and the next of its source, because nobody read it in time.
    Lost {
        /// Of which source.
        source: LogSource,
        /// Records of the kernel, bytes of the console.
        count: u64,
    },
}

/// Where a log comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LogSource {
    /// The guest kernel's own log, everything that the kernel and the agent write there.
    Kernel,
    /// The guest's console: what a kernel that was told to be quiet still prints, and the agent's complaints. On the
    /// process backend, what the agent writes.
    Console,
}

/// A record of a kernel's log (Documentation/ABI/testing/dev-kmsg).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelRecord {
    /// How bad it is, from 0 (emergency) to 7 (debug), as syslog(2) has it.
    pub level: u8,
    /// Who wrote it: 0 is the kernel, others are as syslog(3) has them.
    pub facility: u32,
    /// Its number: they are without gaps.
    pub sequence: u64,
    /// When, from the start of the guest's kernel.
    pub since_boot: Duration,
    /// Its text, which may have several lines.
    pub text: String,
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(record) => {
                write!(
                    f,
                    "[{:>12.6}] <{}> {}",
                    record.since_boot.as_secs_f64(),
                    record.level,
                    record.text
                )
            }
            Self::Console(line) => f.write_str(line),
            Self::Lost { source, count } => match source {
                LogSource::Kernel => write!(f, "({count} records of the kernel are lost)"),
                LogSource::Console => write!(f, "({count} bytes of the console are lost)"),
            },
        }
    }
}

/// What a guest logs, from its boot on and as it comes: see [`Sandbox::logs`](crate::Sandbox::logs).
///
/// It ends with the sandbox. As a [`Stream`] it goes with the combinators of the `futures` crates.
#[derive(Debug)]
pub struct Logs {
    /// None where the kernel is not the guest's own, and after its end.
    kernel: Option<Kernel>,
    console: Option<Console>,
}

impl Logs {
    /// What comes next; `None` when the sandbox has ended and everything was told.
    pub async fn next(&mut self) -> Option<Log> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Log>> {
        let mut ended = true;
        if let Some(kernel) = &mut self.kernel {
            match kernel.poll(cx) {
                Poll::Ready(Some(log)) => return Poll::Ready(Some(log)),
                Poll::Ready(None) => self.kernel = None,
                Poll::Pending => ended = false,
            }
        }
        if let Some(console) = &mut self.console {
            match console.poll(cx) {
                Poll::Ready(Some(log)) => return Poll::Ready(Some(log)),
                Poll::Ready(None) => self.console = None,
                Poll::Pending => ended = false,
            }
        }
        if ended { Poll::Ready(None) } else { Poll::Pending }
    }
}

impl Stream for Logs {
    type Item = Log;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Log>> {
        self.poll(cx)
    }
}

impl crate::Sandbox {
    /// What the guest logs: its kernel's records with time and level, and the lines of its console. Each call begins at
    /// the beginning, or with the oldest that is still kept (some hundred KiB of the kernel's, 64 KiB of the console),
    /// and goes on as long as the sandbox lives. A reader that lags costs nobody anything, and is told what it missed
    /// ([`Log::Lost`]).
    ///
    /// The two sources are apart: what a kernel prints comes by both. On the process backend there is no kernel of the
    /// guest's own, and an agent of Kata's own tells nothing of its kernel: there only the console comes.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &kata_sandbox::Sandbox) -> Result<(), kata_sandbox::Error> {
    /// let mut logs = sandbox.logs().await?;
    /// while let Some(log) = logs.next().await {
    ///     eprintln!("{log}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn logs(&self) -> Result<Logs, Error> {
        let failed = |cause: io::Error| {
            Error::new(ErrorKind::Io, Stage::Machine, "cannot follow the guest's logs").with_source(cause)
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, theirs) = pair.map_err(|errno| failed(errno.into()))?;
        let link = &self.container().0.shared.link;
        let followed = link
            .control()
            .send(&Request::FollowConsole, &[theirs.as_fd()])
            .await;
        if let Err(cause) = followed {
            return Err(match cause.kind() {
                io::ErrorKind::BrokenPipe => link.closed(Stage::Machine).await,
                _ => failed(cause),
            });
        }
        let (port, stream) = link.stream(Stage::Machine).await?;
        let request = KernelLogRequest {
            port,
            ..KernelLogRequest::default()
        };
        let asked = async {
            match link.client.kernel_log(request).await {
                Ok(()) => Ok(true),
                Err(CallError::Unimplemented) => Ok(false),
                Err(CallError::Failed {
                    kind: FailureKind::Unsupported,
                    ..
                }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let has_kernel = link
            .call(Stage::Machine, "follow the kernel's log", asked)
            .await?;
        let stream = UnixStream::from_std(stream).map_err(failed)?;
        Ok(Logs {
            kernel: has_kernel.then(|| Kernel::new(stream)),
            console: Some(Console::new(ours).map_err(failed)?),
        })
    }
}

/// Text that a guest wrote, without what drives a terminal.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect()
}
