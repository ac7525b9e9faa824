//! A running process of a container: its streams, its signals, its end.

use std::fmt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Instant;

use kata_agent_proto::agent::{SignalProcessRequest, WaitProcessRequest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::container::Input;
use crate::error::{Error, ErrorKind};
use crate::link::Link;
use crate::output::{ExitStatus, Output};
use crate::report::{Stage, Timings, Usage};
use crate::spec::CONTAINER_ID;

/// The host's ends of a process's standard streams.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<StdUnixStream>,
    pub(crate) stdout: StdUnixStream,
    pub(crate) stderr: StdUnixStream,
}

/// The ports by which the agent knows the streams; 0 is none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) stdin: u32,
    pub(crate) stdout: u32,
    pub(crate) stderr: u32,
}

impl Streams {
    /// Connects the streams that a process with this input has.
    pub(crate) async fn connect(link: &Link, input: &Input, stage: Stage) -> Result<(Self, Ports), Error> {
        let (stdin_port, stdin) = match input {
            Input::Closed => (0, None),
            Input::Bytes(_) | Input::Piped => {
                let (port, stream) = link.stream(stage).await?;
                (port, Some(stream))
            }
        };
        let (stdout_port, stdout) = link.stream(stage).await?;
        let (stderr_port, stderr) = link.stream(stage).await?;
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
    /// Standard input, where it was left open; dropping it is end of file.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Standard output. The process waits when nobody reads.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Standard error. The process waits when nobody reads.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub(crate) handle: Handle,
    pub(crate) timings: Timings,
}

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
    pub(crate) exec_id: String,
    /// The most that is collected of one stream.
    pub(crate) output_limit_bytes: u64,
}

impl Handle {
    pub(crate) async fn wait(&self) -> Result<ExitStatus, Error> {
        let request = WaitProcessRequest {
            container_id: CONTAINER_ID.into(),
            exec_id: self.exec_id.clone(),
            ..WaitProcessRequest::default()
        };
        let call = self.link.client.wait_process(request);
        let response = self.link.call(Stage::Exit, "wait for the process", call).await?;
        Ok(ExitStatus(response.status))
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
        let request = SignalProcessRequest {
            container_id: CONTAINER_ID.into(),
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
            (stream, _) => stream.map(|stream| Box::new(stream) as Box<dyn AsyncWrite + Send + Unpin>),
        };
        Ok(Self {
            stdin,
            stdout: Some(Box::new(UnixStream::from_std(streams.stdout)?)),
            stderr: Some(Box::new(UnixStream::from_std(streams.stderr)?)),
            handle,
            timings,
        })
    }

    /// Waits for the process's end. Works before, during and after it, from several waiters; it does
    /// not wait for what the process left in its output.
    ///
    /// # Errors
    /// When the sandbox ends first.
    pub async fn wait(&self) -> Result<ExitStatus, Error> {
        self.handle.wait().await
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
        self.signal(9).await
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
        let result =
            tokio::try_join!(out.run(), err.run(), self.handle.wait()).map(|((), (), status)| status);
        let mut timings = self.timings;
        for first in [out.first, err.first].into_iter().flatten() {
            timings.mark_at(Stage::FirstOutput, first);
        }
        if result.is_ok() {
            timings.mark(Stage::Exit);
        }
        (
            Collected {
                stdout: out.bytes,
                stderr: err.bytes,
                timings,
            },
            result,
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
}

impl Collected {
    pub(crate) fn into_output(self, status: ExitStatus, usage: Usage) -> Output {
        let output_bytes = (self.stdout.len() + self.stderr.len()) as u64;
        let usage = Usage {
            output_bytes,
            ..usage
        };
        Output {
            status,
            stdout: self.stdout,
            stderr: self.stderr,
            timings: self.timings,
            usage,
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
    stream: Option<Box<dyn AsyncRead + Send + Unpin>>,
    limit: u64,
    bytes: Vec<u8>,
    first: Option<Instant>,
}

impl Collector {
    fn new(stream: Option<Box<dyn AsyncRead + Send + Unpin>>, limit: u64) -> Self {
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
