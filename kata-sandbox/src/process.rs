//! A running process of a container: its streams, its terminal, its signals, its end.
//!
//! [`Process`] is at the crate's root too. Must not know how a process is started.

use std::fmt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use kata_agent_proto::CallError;
use kata_agent_proto::agent::{SignalProcessRequest, TtyWinResizeRequest};
use kata_agent_proto::kata::ReceiptRequest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::container::{Input, ProcessSettings};
use crate::error::{Error, ErrorKind};
use crate::events::Hub;
pub use crate::limits::Limits;
use crate::link::Link;
use crate::members::{check_present, wait_request};
pub use crate::output::ExitStatus;
use crate::output::Output;
pub use crate::receipt::{ContainerReceipt, Receipt};
use crate::report::{Stage, Timings, Usage};
pub use crate::terminal::TerminalSize;

pub(crate) const SIGKILL: i32 = 9;

/// The host's ends of a process's standard streams.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<StdUnixStream>,
    pub(crate) stdout: StdUnixStream,
    /// None with a terminal.
    pub(crate) stderr: Option<StdUnixStream>,
}

/// The ports by which the agent knows the streams; 0 is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) stdin: u32,
    pub(crate) stdout: u32,
    pub(crate) stderr: u32,
}

impl Streams {
    /// Connects the streams that a process with these settings has.
    pub(crate) async fn connect(
        link: &Link,
        settings: &ProcessSettings,
        stage: Stage,
    ) -> Result<(Self, Ports), Error> {
        let has_terminal = settings.terminal.is_some();
        // A pipe without a writer is at its end; a terminal's end has to be typed.
        let has_input = has_terminal || settings.input != Input::Closed;
        let (stdin_port, stdin) = optional(link, has_input, stage).await?;
        let (stdout_port, stdout) = link.stream(stage).await?;
        let (stderr_port, stderr) = optional(link, !has_terminal, stage).await?;
        let ports = Ports {
            stdin: stdin_port,
            stdout: stdout_port,
            stderr: stderr_port,
        };
        Ok((
            Self {
                stdin,
                stdout,
                stderr,
            },
            ports,
        ))
    }
}

/// A stream and its port where one is needed, and port 0 where none is.
async fn optional(link: &Link, is_needed: bool, stage: Stage) -> Result<(u32, Option<StdUnixStream>), Error> {
    match is_needed {
        true => link
            .stream(stage)
            .await
            .map(|(port, stream)| (port, Some(stream))),
        false => Ok((0, None)),
    }
}

/// A running process: a container's own, or one that exec added.
///
/// Dropping it lets the process run on; its output is then discarded.
///
/// ```no_run
/// use kata_sandbox::{Command, Container, Sandbox};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let sandbox = Sandbox::boot(Container::new("debian.tar")).await?;
/// let mut process = sandbox.exec(Command::new("tr").args(["a-z", "A-Z"]).stdin_piped()).await?;
/// let mut stdin = process.stdin.take().expect("it was asked for");
/// stdin.write_all(b"shout").await?;
/// drop(stdin); // end of file
/// let mut loud = String::new();
/// process.stdout.take().expect("every process has one").read_to_string(&mut loud).await?;
/// assert_eq!(loud, "SHOUT");
/// assert!(process.wait().await?.success());
/// # Ok(())
/// # }
/// ```
pub struct Process {
    /// Standard input, where it was left open; dropping it is end of file, and ctrl-d for a terminal.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Sync + Unpin>>,
    /// Standard output, and with a terminal all that is written to it. The process waits when nobody reads.
    pub stdout: Option<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    /// Standard error; none with a terminal. The process waits when nobody reads.
    pub stderr: Option<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    pub(crate) handle: Handle,
    pub(crate) timings: Timings,
}

/// Tasks may wait for one process together.
const _: fn() = || {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Process>();
};

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("id", &self.handle.exec_id)
            .finish_non_exhaustive()
    }
}

/// The part of a process that has no streams: what the asynchronous and the blocking face share.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) link: Arc<Link>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) container_id: String,
    pub(crate) exec_id: String,
    /// Whether its container was removed.
    pub(crate) gone: Arc<AtomicBool>,
    /// The most that is collected of one stream.
    pub(crate) output_limit_bytes: u64,
    pub(crate) has_terminal: bool,
    /// What asks it to end.
    pub(crate) stop_signal: i32,
}

impl Handle {
    pub(crate) async fn wait(&self) -> Result<ExitStatus, Error> {
        check_present(&self.gone, &self.container_id)?;
        let request = wait_request(&self.container_id, &self.exec_id);
        let call = self.link.client.wait_process(request);
        let response = self.link.call(Stage::Exit, "wait for the process", call).await?;
        self.note_end();
        Ok(ExitStatus(response.status))
    }

    /// Nobody has to be told of this end any more. Once the container is removed, its name may be another's.
    fn note_end(&self) {
        if check_present(&self.gone, &self.container_id).is_ok() {
            self.hub.ended(&self.container_id, &self.exec_id);
        }
    }

    /// The exit status, and what the process used where the agent keeps that.
    pub(crate) async fn finish(&self) -> Result<(ExitStatus, Option<Receipt>), Error> {
        check_present(&self.gone, &self.container_id)?;
        let request = ReceiptRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            ..ReceiptRequest::default()
        };
        let asked = async {
            match self.link.client.receipt(request).await {
                Ok(answer) => Ok(Some(Receipt::of(&answer))),
                // Kata's own agent.
                Err(CallError::Unimplemented) => Ok(None),
                Err(error) => Err(error),
            }
        };
        match self.link.call(Stage::Exit, "wait for the process", asked).await? {
            Some(receipt) => {
                self.note_end();
                Ok((receipt.status, Some(receipt)))
            }
            None => Ok((self.wait().await?, None)),
        }
    }

    pub(crate) async fn receipt(&self) -> Result<Receipt, Error> {
        let (_, receipt) = self.finish().await?;
        let message = "cannot tell what the process used: this agent does not keep it";
        receipt.ok_or_else(|| Error::new(ErrorKind::Unsupported, Stage::Exit, message))
    }

    pub(crate) async fn signal(&self, signal: i32) -> Result<(), Error> {
        let number = u32::try_from(signal)
            .ok()
            .filter(|n| (1..=64).contains(n))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidContainer,
                    Stage::Exit,
                    format!("there is no signal {signal}"),
                )
            })?;
        check_present(&self.gone, &self.container_id)?;
        let request = SignalProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            signal: number,
            ..SignalProcessRequest::default()
        };
        self.link
            .call(
                Stage::Exit,
                "signal the process",
                self.link.client.signal_process(request),
            )
            .await?;
        Ok(())
    }

    pub(crate) async fn stop(&self, grace: Duration) -> Result<ExitStatus, Error> {
        self.end_by(self.stop_signal).await?;
        if let Ok(ended) = tokio::time::timeout(grace, self.wait()).await {
            return ended;
        }
        self.end_by(SIGKILL).await?;
        self.wait().await
    }

    /// One that has ended needs no signal.
    pub(crate) async fn end_by(&self, signal: i32) -> Result<(), Error> {
        match self.signal(signal).await {
            Err(error) if error.kind() == ErrorKind::InvalidState => Ok(()),
            sent => sent,
        }
    }

    pub(crate) async fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        if !self.has_terminal {
            let message = "cannot resize the terminal: the process was started without one";
            return Err(Error::new(ErrorKind::InvalidState, Stage::Exit, message));
        }
        check_present(&self.gone, &self.container_id)?;
        let request = TtyWinResizeRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            row: size.rows.into(),
            column: size.columns.into(),
            ..TtyWinResizeRequest::default()
        };
        let call = self.link.client.tty_win_resize(request);
        self.link.call(Stage::Exit, "resize the terminal", call).await?;
        Ok(())
    }
}

impl Process {
    /// Wraps connected streams; given input is fed in the background.
    pub(crate) fn new(
        handle: Handle,
        streams: Streams,
        input: Input,
        timings: Timings,
    ) -> std::io::Result<Self> {
        let stdin = streams.stdin.map(UnixStream::from_std).transpose()?;
        let stdin = match (stdin, input) {
            (Some(stream), Input::Bytes(bytes)) => {
                tokio::spawn(feed(stream, bytes));
                None
            }
            // Only a terminal has a stream for this: closing it types the end.
            (_, Input::Closed) => None,
            (stream, _) => stream.map(|stream| Box::new(stream) as Box<dyn AsyncWrite + Send + Sync + Unpin>),
        };
        let stderr = streams.stderr.map(UnixStream::from_std).transpose()?;
        Ok(Self {
            stdin,
            stdout: Some(Box::new(UnixStream::from_std(streams.stdout)?)),
            stderr: stderr.map(|stream| Box::new(stream) as _),
            handle,
            timings,
        })
    }

    /// What [events](crate::report::Event::ProcessExited) call it: a name that no other process of its container has.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.handle.exec_id
    }

    /// Waits for the process's end. Works before, during and after it, from several waiters; it does
    /// not wait for what the process left in its output.
    ///
    /// # Errors
    /// When the sandbox ends first.
    pub async fn wait(&self) -> Result<ExitStatus, Error> {
        self.handle.wait().await
    }

    /// Waits for the process's end as [`wait`](Self::wait) does, and tells what it used until then: processor time,
    /// memory, bytes of its streams. Any number of times.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &kata_sandbox::Sandbox) -> Result<(), kata_sandbox::Error> {
    /// let process = sandbox.exec(kata_sandbox::Command::new("make")).await?;
    /// let receipt = process.receipt().await?;
    /// println!("{}: {:?} of processor time", receipt.status, receipt.cpu_time());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the sandbox ends first; [`ErrorKind::Unsupported`] for an agent that does not keep it.
    pub async fn receipt(&self) -> Result<Receipt, Error> {
        self.handle.receipt().await
    }

    /// Sends a signal by its Linux number, to this process alone.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidContainer`] for a number that is no signal, [`ErrorKind::InvalidState`] when
    /// the process has ended.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.handle.signal(signal).await
    }

    /// Kills the process with SIGKILL.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub async fn kill(&self) -> Result<(), Error> {
        self.signal(SIGKILL).await
    }

    /// Ends the process as docker does: asks it by a signal, and kills it where it has not ended within `grace`. The
    /// signal is [`Container::stop_signal`](crate::Container::stop_signal) for a container's own process and SIGTERM
    /// for one that exec added. A process that has ended before is no error. The sandbox goes on.
    ///
    /// A container's own process is the first of its PID namespace: a signal that it does not handle does nothing,
    /// and then it is killed after `grace`.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use kata_sandbox::{Container, Sandbox};
    ///
    /// # async fn example() -> Result<(), kata_sandbox::Error> {
    /// let sandbox = Sandbox::boot(Container::new("docker.io/library/nginx")).await?;
    /// let server = sandbox.spawn().await?;
    /// let status = server.stop(Duration::from_secs(10)).await?;
    /// assert!(status.success());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the sandbox ends first.
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus, Error> {
        self.handle.stop(grace).await
    }

    /// Gives the terminal another size; the programs in it are told (SIGWINCH).
    ///
    /// ```no_run
    /// use kata_sandbox::process::TerminalSize;
    /// use kata_sandbox::{Container, Sandbox};
    ///
    /// # async fn example() -> Result<(), kata_sandbox::Error> {
    /// let size = TerminalSize { rows: 24, columns: 80 };
    /// let container = Container::new("debian.tar").args(["bash"]).terminal(size).stdin_piped();
    /// let sandbox = Sandbox::boot(container).await?;
    /// let shell = sandbox.spawn().await?;
    /// shell.resize(TerminalSize { rows: 50, columns: 132 }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] for a process that was started without a terminal, and when it has ended.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        self.handle.resize(size).await
    }

    /// Closes standard input, reads both outputs to their ends and waits for the exit.
    ///
    /// A child that the process left in the background with its output open does not delay this.
    ///
    /// # Errors
    /// [`ErrorKind::OutputTooLarge`] beyond [`Container::output_limit`](crate::Container::output_limit),
    /// which leaves the process running; or when the sandbox ends first.
    pub async fn output(self) -> Result<Output, Error> {
        let (collected, result) = self.collect().await;
        result.map(|status| collected.into_output(status, Usage::default()))
    }

    /// As [`output`](Self::output), and also answers what was collected until a failure.
    pub(crate) async fn collect(mut self) -> (Collected, Result<ExitStatus, Error>) {
        drop(self.stdin.take());
        let limit = self.handle.output_limit_bytes;
        let mut out = Collector::new(self.stdout.take(), limit);
        let mut err = Collector::new(self.stderr.take(), limit);
        let result = tokio::try_join!(out.run(), err.run(), self.handle.finish()).map(|((), (), end)| end);
        let mut timings = self.timings;
        for first in [out.first, err.first].into_iter().flatten() {
            timings.mark_at(Stage::FirstOutput, first);
        }
        if result.is_ok() {
            timings.mark(Stage::Exit);
        }
        let receipt = result.as_ref().ok().and_then(|(_, receipt)| *receipt);
        (
            Collected {
                stdout: out.bytes,
                stderr: err.bytes,
                timings,
                receipt,
            },
            result.map(|(status, _)| status),
        )
    }
}

/// Writes all input; a reader that is gone has had enough.
pub(crate) async fn feed(mut stream: UnixStream, bytes: Vec<u8>) {
    if let Err(error) = stream.write_all(&bytes).await {
        tracing::debug!(%error, "the process did not read all of its input");
    }
}

/// What was read of a process's output.
pub(crate) struct Collected {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) timings: Timings,
    pub(crate) receipt: Option<Receipt>,
}

impl Collected {
    pub(crate) fn into_output(self, status: ExitStatus, usage: Usage) -> Output {
        let output_bytes = (self.stdout.len() + self.stderr.len()) as u64;
        let usage = Usage {
            output_bytes,
            cpu_time: usage.cpu_time.or(self.receipt.map(|receipt| receipt.cpu_time())),
            ..usage
        };
        Output {
            status,
            stdout: self.stdout,
            stderr: self.stderr,
            timings: self.timings,
            usage,
            receipt: self.receipt,
        }
    }

    /// What there is of a process that did not come to its end.
    pub(crate) fn into_partial_output(self) -> Output {
        self.into_output(ExitStatus(255), Usage::default())
    }
}

pub(crate) fn too_large(limit_bytes: u64) -> Error {
    let message = format!("the process wrote more than {limit_bytes} bytes of output");
    Error::new(ErrorKind::OutputTooLarge, Stage::Exit, message)
}

struct Collector {
    stream: Option<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    limit: u64,
    bytes: Vec<u8>,
    first: Option<Instant>,
}

impl Collector {
    fn new(stream: Option<Box<dyn AsyncRead + Send + Sync + Unpin>>, limit: u64) -> Self {
        Self {
            stream,
            limit,
            bytes: Vec::new(),
            first: None,
        }
    }

    async fn run(&mut self) -> Result<(), Error> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        loop {
            let read = stream.read_buf(&mut self.bytes).await;
            self.first.get_or_insert_with(Instant::now);
            match read {
                // A reset is the machine's end, which the wait reports with its cause.
                Ok(0) | Err(_) => break,
                Ok(_) if self.bytes.len() as u64 > self.limit => return Err(too_large(self.limit)),
                Ok(_) => {}
            }
        }
        if self.bytes.is_empty() {
            self.first = None;
        }
        Ok(())
    }
}
