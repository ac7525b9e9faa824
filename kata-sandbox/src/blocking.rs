//! The same sandboxes for programs that are not asynchronous.
//!
//! Each sandbox brings a runtime of its own with one thread. These calls panic inside an asynchronous
//! runtime, as blocking there would; use the crate's root there.

mod files;
mod members;

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::container::{Command, Container, Input};
use crate::error::{Error, ErrorKind};
use crate::members::no_streams;
use crate::output::{ExitStatus, Output};
use crate::process::{Handle, Receipt, Streams, TerminalSize, too_large};
use crate::report::{Info, MachineInfo, Stage, Timings, Usage};

pub use self::files::{Copying, Logs};
pub use self::members::{ContainerHandle, Events, Samples};

/// A microVM with a container in it; see [`crate::Sandbox`].
///
/// ```no_run
/// use kata_sandbox::{Container, blocking};
///
/// # fn main() -> Result<(), kata_sandbox::Error> {
/// let output = blocking::Sandbox::run(Container::new("debian.tar").args(["date"]))?;
/// print!("{}", String::from_utf8_lossy(&output.stdout));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sandbox {
    // Before the runtime, which its end still needs.
    inner: crate::Sandbox,
    runtime: Arc<Runtime>,
}

impl Sandbox {
    /// See [`crate::Sandbox::run`].
    ///
    /// # Errors
    /// As there.
    pub fn run(container: Container) -> Result<Output, Error> {
        let runtime = runtime()?;
        let output = runtime.block_on(crate::Sandbox::run(container));
        // What was given up may be in a call of the system that nobody can end; nobody waits for it.
        runtime.shutdown_background();
        output
    }

    /// See [`crate::Sandbox::boot`].
    ///
    /// # Errors
    /// As there.
    pub fn boot(container: Container) -> Result<Self, Error> {
        let runtime = runtime()?;
        match runtime.block_on(crate::Sandbox::boot(container)) {
            Ok(inner) => Ok(Self {
                inner,
                runtime: Arc::new(runtime),
            }),
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// See [`crate::Sandbox::spawn`].
    ///
    /// # Errors
    /// As there.
    pub fn spawn(&self) -> Result<Process, Error> {
        self.container().spawn()
    }

    /// See [`crate::Sandbox::exec`].
    ///
    /// # Errors
    /// As there.
    pub fn exec(&self, command: Command) -> Result<Process, Error> {
        self.container().exec(command)
    }

    /// See [`crate::Sandbox::container`].
    #[must_use]
    pub fn container(&self) -> ContainerHandle {
        self.handle(self.inner.container().clone())
    }

    /// See [`crate::Sandbox::create_container`].
    ///
    /// # Errors
    /// As there.
    pub fn create_container(&self, container: Container) -> Result<ContainerHandle, Error> {
        let created = self.runtime.block_on(self.inner.create_container(container))?;
        Ok(self.handle(created))
    }

    fn handle(&self, inner: crate::ContainerHandle) -> ContainerHandle {
        ContainerHandle {
            inner,
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// See [`crate::Sandbox::events`].
    #[must_use]
    pub fn events(&self) -> Events {
        Events {
            inner: self.inner.events(),
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// See [`crate::Sandbox::stats`].
    #[must_use]
    pub fn stats(&self, interval: Duration) -> Samples {
        let _guard = self.runtime.enter();
        Samples {
            inner: self.inner.stats(interval),
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// See [`crate::Sandbox::info`].
    #[must_use]
    pub fn info(&self) -> &Info {
        self.inner.info()
    }

    /// See [`crate::Sandbox::usage`].
    ///
    /// # Errors
    /// As there.
    pub fn usage(&self) -> Result<Usage, Error> {
        self.runtime.block_on(self.inner.usage())
    }

    /// See [`crate::Sandbox::pause`].
    ///
    /// # Errors
    /// As there.
    pub fn pause(&self) -> Result<(), Error> {
        self.runtime.block_on(self.inner.pause())
    }

    /// See [`crate::Sandbox::resume`].
    ///
    /// # Errors
    /// As there.
    pub fn resume(&self) -> Result<(), Error> {
        self.runtime.block_on(self.inner.resume())
    }

    /// See [`crate::Sandbox::machine`].
    ///
    /// # Errors
    /// As there.
    pub fn machine(&self) -> Result<MachineInfo, Error> {
        self.runtime.block_on(self.inner.machine())
    }

    /// See [`crate::Sandbox::connect`].
    ///
    /// # Errors
    /// As there.
    pub fn connect(&self, port: u32) -> Result<UnixStream, Error> {
        let stream = self.runtime.block_on(self.inner.dial(port))?;
        stream.set_nonblocking(false).map_err(|cause| {
            Error::new(ErrorKind::Io, Stage::Exit, "cannot use the connection").with_source(cause)
        })?;
        Ok(stream)
    }

    /// See [`crate::Sandbox::serve_vsock`].
    ///
    /// # Errors
    /// As there.
    pub fn serve_vsock(&self, path: impl AsRef<std::path::Path>) -> Result<(), Error> {
        self.runtime.block_on(self.inner.serve_vsock(path))
    }

    /// See [`crate::Sandbox::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self) -> Result<(), Error> {
        self.runtime.block_on(self.inner.stop())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The runtime may end right after this: the machine must be gone before.
        let _ = self.stop();
    }
}

/// A running process; see [`crate::Process`].
///
/// ```no_run
/// use kata_sandbox::{Command, Container, blocking};
///
/// # fn main() -> Result<(), kata_sandbox::Error> {
/// let sandbox = blocking::Sandbox::boot(Container::new("debian.tar"))?;
/// let output = sandbox.exec(Command::new("sort").stdin("b\na\n"))?.output()?;
/// assert_eq!(output.stdout, b"a\nb\n");
/// # Ok(())
/// # }
/// ```
pub struct Process {
    /// Standard input, where it was left open; dropping it is end of file, and ctrl-d for a terminal.
    pub stdin: Option<Box<dyn Write + Send>>,
    /// Standard output, and with a terminal all that is written to it. The process waits when nobody reads.
    pub stdout: Option<Box<dyn Read + Send>>,
    /// Standard error; none with a terminal. The process waits when nobody reads.
    pub stderr: Option<Box<dyn Read + Send>>,
    handle: Handle,
    runtime: Arc<Runtime>,
    timings: Timings,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("id", &self.handle.exec_id)
            .finish_non_exhaustive()
    }
}

impl Process {
    fn new(
        runtime: &Arc<Runtime>,
        handle: Handle,
        streams: Streams,
        input: Input,
        timings: Timings,
    ) -> Result<Self, Error> {
        Self::of_streams(Arc::clone(runtime), handle, streams, input, timings)
            .map_err(|cause| no_streams(Stage::Start, cause))
    }

    fn of_streams(
        runtime: Arc<Runtime>,
        handle: Handle,
        streams: Streams,
        input: Input,
        timings: Timings,
    ) -> io::Result<Self> {
        let blocking = |stream: UnixStream| stream.set_nonblocking(false).map(|()| stream);
        let stdin = match (streams.stdin, input) {
            (Some(stream), Input::Bytes(bytes)) => {
                let _guard = runtime.enter();
                let stream = tokio::net::UnixStream::from_std(stream)?;
                runtime.spawn(crate::process::feed(stream, bytes));
                None
            }
            // Only a terminal has a stream for this: closing it types the end.
            (_, Input::Closed) => None,
            (stream, _) => stream
                .map(blocking)
                .transpose()?
                .map(|s| Box::new(s) as Box<dyn Write + Send>),
        };
        let stderr = streams.stderr.map(blocking).transpose()?;
        Ok(Self {
            stdin,
            stdout: Some(Box::new(blocking(streams.stdout)?)),
            stderr: stderr.map(|stream| Box::new(stream) as _),
            handle,
            runtime,
            timings,
        })
    }

    /// See [`crate::Process::id`].
    #[must_use]
    pub fn id(&self) -> &str {
        &self.handle.exec_id
    }

    /// See [`crate::Process::wait`].
    ///
    /// # Errors
    /// As there.
    pub fn wait(&self) -> Result<ExitStatus, Error> {
        self.runtime.block_on(self.handle.wait())
    }

    /// See [`crate::Process::receipt`].
    ///
    /// # Errors
    /// As there.
    pub fn receipt(&self) -> Result<Receipt, Error> {
        self.runtime.block_on(self.handle.receipt())
    }

    /// See [`crate::Process::signal`].
    ///
    /// # Errors
    /// As there.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.runtime.block_on(self.handle.signal(signal))
    }

    /// See [`crate::Process::kill`].
    ///
    /// # Errors
    /// As there.
    pub fn kill(&self) -> Result<(), Error> {
        self.signal(9)
    }

    /// See [`crate::Process::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self, grace: Duration) -> Result<ExitStatus, Error> {
        self.runtime.block_on(self.handle.stop(grace))
    }

    /// See [`crate::Process::resize`].
    ///
    /// # Errors
    /// As there.
    pub fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        self.runtime.block_on(self.handle.resize(size))
    }

    /// See [`crate::Process::output`].
    ///
    /// # Errors
    /// As there.
    pub fn output(mut self) -> Result<Output, Error> {
        drop(self.stdin.take());
        let (mut stderr, limit) = (self.stderr.take(), self.handle.output_limit_bytes);
        let errors = std::thread::spawn(move || read_all(&mut stderr, limit));
        let (stdout, first) = read_all(&mut self.stdout, limit)?;
        let Ok(errors) = errors.join() else {
            return Err(Error::new(
                ErrorKind::Io,
                Stage::Exit,
                "the reader of standard error is gone",
            ));
        };
        let (stderr, _) = errors?;
        let (status, receipt) = self.runtime.block_on(self.handle.finish())?;
        if let Some(first) = first {
            self.timings.mark_at(Stage::FirstOutput, first);
        }
        self.timings.mark(Stage::Exit);
        let collected = crate::process::Collected {
            stdout,
            stderr,
            timings: self.timings,
            receipt,
        };
        Ok(collected.into_output(status, Usage::default()))
    }
}

/// What was read, and when it began.
type Collection = (Vec<u8>, Option<Instant>);

/// Reads to the end; a reset is the machine's end, which the wait reports with its cause.
fn read_all(stream: &mut Option<Box<dyn Read + Send>>, limit: u64) -> Result<Collection, Error> {
    let (mut bytes, mut first) = (Vec::new(), None);
    let Some(stream) = stream else {
        return Ok((bytes, first));
    };
    let mut chunk = vec![0; 64 << 10];
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        first.get_or_insert_with(Instant::now);
        bytes.extend_from_slice(&chunk[..n]);
        if bytes.len() as u64 > limit {
            return Err(too_large(limit));
        }
    }
    Ok((bytes, first))
}

fn runtime() -> Result<Runtime, Error> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("kata-sandbox")
        .enable_all()
        .build()
        .map_err(|cause| Error::new(ErrorKind::Io, Stage::Plan, "cannot start a runtime").with_source(cause))
}
