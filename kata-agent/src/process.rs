//! One process of a container: its streams, its end, and who may be told.
//!
//! ```text
//!  prepare streams ──► launched ──► running ──► ended ──► settled ──► answered
//!                                     │          │ output drained or stuck
//!                                     │          └ reaped when nobody needs its id
//! ```
//!
//! Owns the tasks that follow a process. Must not know containers.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_agent_proto::{Failed, FailureKind};
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::sync::{Notify, oneshot, watch};

use crate::calls::CallStreams;
use crate::console::ConsoleSocket;
use crate::exec::streams::Streams;
use crate::guest::{boot_time_ns, real_time_ns};
use crate::pump::{self, End, Exit, Input, Moved, Output};
use crate::reaper::{Child, Ending, Usage};
use crate::streams::Unclaimed;
use crate::transport::Stream;

/// Bytes that a pipe holds, where the kernel lets us choose.
const PIPE_BYTES: usize = 256 << 10;

/// The host's ports of a process's streams; 0 is none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ports {
    pub(crate) stdin: u32,
    pub(crate) stdout: u32,
    pub(crate) stderr: u32,
    /// Without any port there are no streams, instead of streams by calls.
    pub(crate) none: bool,
}

impl Ports {
    fn by_calls(self) -> bool {
        !self.none && [self.stdin, self.stdout, self.stderr] == [0; 3]
    }
}

/// The host's connections for a process's streams.
struct Connections {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    /// Our side, where they are not the host's.
    calls: Option<Arc<CallStreams>>,
}

impl Connections {
    async fn claim(ports: Ports, unclaimed: &Unclaimed) -> Result<Self, Failed> {
        if ports.by_calls() {
            return Connections::by_calls().map_err(streams_failed);
        }
        Ok(Connections {
            stdin: unclaimed.claim(ports.stdin).await?,
            stdout: unclaimed.claim(ports.stdout).await?,
            stderr: unclaimed.claim(ports.stderr).await?,
            calls: None,
        })
    }

    fn by_calls() -> io::Result<Self> {
        let (calls, ends) = CallStreams::new()?;
        Ok(Connections {
            stdin: Some(ends.stdin),
            stdout: Some(ends.stdout),
            stderr: Some(ends.stderr),
            calls: Some(Arc::new(calls)),
        })
    }
}

fn streams_failed(error: io::Error) -> Failed {
    Failed::new(FailureKind::Container, format!("standard streams: {error}"))
}

/// What is ready before a process is made.
pub(crate) struct Prepared {
    connections: Connections,
    ends: Ends,
    /// When nothing was missing any more: the process runs before its maker knows that it does.
    ready: Moment,
}

/// Our ends of the process's streams.
enum Ends {
    Pipes {
        stdin: Option<End>,
        stdout: Option<End>,
        stderr: Option<End>,
    },
    /// A terminal that arrives from the process.
    Terminal { socket: ConsoleSocket },
    /// A terminal that was made for it.
    Made { master: OwnedFd },
}

impl Prepared {
    /// Claims the host's connections and makes the process's ends.
    pub(crate) async fn new(
        ports: Ports,
        terminal: bool,
        unclaimed: &Unclaimed,
        directory: &Path,
    ) -> Result<(Self, Streams), Failed> {
        let connections = Connections::claim(ports, unclaimed).await?;
        let made = if terminal {
            terminal_ends(directory)
        } else {
            pipe_ends(&connections)
        };
        let (ends, streams) = made.map_err(streams_failed)?;
        Ok((Prepared::now(connections, ends), streams))
    }

    /// As [`new`](Self::new), with a terminal that exists: our side and the process's.
    pub(crate) async fn with_terminal(
        ports: Ports,
        unclaimed: &Unclaimed,
        (master, theirs): (OwnedFd, OwnedFd),
    ) -> Result<(Self, Streams), Failed> {
        let connections = Connections::claim(ports, unclaimed).await?;
        let streams = Streams::all(theirs).map_err(streams_failed)?;
        let ends = Ends::Made { master };
        Ok((Prepared::now(connections, ends), streams))
    }

    fn now(connections: Connections, ends: Ends) -> Self {
        Prepared {
            connections,
            ends,
            ready: Moment::now(),
        }
    }

    /// Where the terminal's master is to be sent.
    pub(crate) fn console(&self) -> Option<&Path> {
        match &self.ends {
            Ends::Terminal { socket } => Some(socket.path()),
            Ends::Pipes { .. } | Ends::Made { .. } => None,
        }
    }

    /// Begins to follow the process that was made. It is reaped once `unneeded` has ended.
    pub(crate) async fn follow(
        self,
        child: Child,
        unneeded: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Process, Failed> {
        let started = self.ready;
        let (exit, watched) = watch::channel(None);
        let close = Arc::new(Notify::new());
        let calls = self.connections.calls.clone();
        let pumps = match self.ends.pumps(self.connections, &close).await {
            Ok(pumps) => pumps,
            Err(failed) => {
                // Without its streams nobody can have it; one that is dead already needs no signal.
                let _ = child.signal(libc::SIGKILL);
                return Err(failed);
            }
        };
        let outputs = pumps.start(&watched);
        let (answer, answered) = watch::channel(None);
        let child = Arc::new(child);
        let slot = Arc::new(Mutex::new(Some(child.clone())));
        let terminal = outputs.terminal.map(|master| Arc::new(Mutex::new(Some(master))));
        tokio::spawn(follow(
            child,
            slot.clone(),
            terminal.clone(),
            exit,
            outputs.settled,
            answer,
            unneeded,
        ));
        Ok(Process {
            child: slot,
            exit: watched,
            answered,
            started: Mutex::new(started),
            moved: outputs.moved,
            close,
            calls,
            terminal,
            awaited: AtomicBool::new(false),
        })
    }
}

fn pipe(interest: Interest) -> io::Result<(End, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // A smaller pipe works as well.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
    let (ours, theirs) = if interest.is_readable() {
        (reader, writer)
    } else {
        (writer, reader)
    };
    Ok((pump::end(ours, interest)?, theirs))
}

/// Pipes where the host has a connection; no standard input ends at once, no output leads nowhere.
fn pipe_ends(connections: &Connections) -> io::Result<(Ends, Streams)> {
    let mut streams = Streams::null()?;
    let (stdin, theirs) = pipe(Interest::WRITABLE)?;
    streams.stdin = theirs;
    let stdin = connections.stdin.is_some().then_some(stdin);
    let stdout = output_pipe(connections.stdout.is_some(), &mut streams.stdout)?;
    let stderr = output_pipe(connections.stderr.is_some(), &mut streams.stderr)?;
    Ok((
        Ends::Pipes {
            stdin,
            stdout,
            stderr,
        },
        streams,
    ))
}

fn output_pipe(connected: bool, theirs: &mut OwnedFd) -> io::Result<Option<End>> {
    if !connected {
        return Ok(None);
    }
    let (ours, writer) = pipe(Interest::READABLE)?;
    *theirs = writer;
    Ok(Some(ours))
}

fn terminal_ends(directory: &Path) -> io::Result<(Ends, Streams)> {
    let socket = ConsoleSocket::bind(directory)?;
    Ok((Ends::Terminal { socket }, Streams::null()?))
}

impl Ends {
    async fn pumps(self, connections: Connections, close: &Arc<Notify>) -> Result<Pumps, Failed> {
        let moved = Streamed::default();
        match self {
            Ends::Pipes {
                stdin: to,
                stdout: out,
                stderr: err,
            } => Ok(Pumps {
                moved: moved.clone(),
                input: connections.stdin.zip(to).map(|(source, sink)| Input {
                    source,
                    sink,
                    terminal: false,
                    close: close.clone(),
                    moved: moved.stdin,
                }),
                outputs: [
                    (out, connections.stdout, moved.stdout),
                    (err, connections.stderr, moved.stderr),
                ]
                .into_iter()
                .filter_map(|(source, sink, moved)| Some(Output::new(source?, sink, false, moved)))
                .collect(),
                terminal: None,
            }),
            Ends::Terminal { socket } => {
                let master = socket.receive().await.map_err(terminal_failed)?;
                terminal_pumps(master, connections, close)
            }
            Ends::Made { master } => terminal_pumps(master, connections, close),
        }
    }
}

fn terminal_failed(error: io::Error) -> Failed {
    Failed::new(FailureKind::Container, format!("terminal: {error}"))
}

/// Both ways, by one descriptor.
fn terminal_pumps(master: OwnedFd, connections: Connections, close: &Arc<Notify>) -> Result<Pumps, Failed> {
    let moved = Streamed::default();
    let master = pump::end(master, Interest::READABLE | Interest::WRITABLE).map_err(terminal_failed)?;
    let input = connections.stdin.map(|source| Input {
        source,
        sink: master.clone(),
        terminal: true,
        close: close.clone(),
        moved: moved.stdin.clone(),
    });
    Ok(Pumps {
        input,
        outputs: vec![Output::new(
            master.clone(),
            connections.stdout,
            true,
            moved.stdout.clone(),
        )],
        moved,
        terminal: Some(master),
    })
}

/// Pumps that wait for their process.
struct Pumps {
    input: Option<Input>,
    outputs: Vec<Output>,
    moved: Streamed,
    terminal: Option<End>,
}

/// The counters of the streams. What a terminal writes is its standard output.
#[derive(Debug, Clone, Default)]
struct Streamed {
    stdin: Moved,
    stdout: Moved,
    stderr: Moved,
}

/// Bytes of a process's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    pub(crate) stdin_bytes: u64,
    pub(crate) stdout_bytes: u64,
    pub(crate) stderr_bytes: u64,
}

impl Streamed {
    fn totals(&self) -> Totals {
        Totals {
            stdin_bytes: self.stdin.bytes(),
            stdout_bytes: self.stdout.bytes(),
            stderr_bytes: self.stderr.bytes(),
        }
    }
}

/// A time by the clock that people read, and by the one that only goes on.
#[derive(Debug, Clone, Copy)]
struct Moment {
    real_ns: i64,
    boot_ns: u64,
}

impl Moment {
    fn now() -> Self {
        Moment {
            real_ns: real_time_ns(),
            boot_ns: boot_time_ns(),
        }
    }
}

/// How a process ended, and when by CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy)]
struct Ended {
    ending: Ending,
    at_ns: u64,
}

/// What a process was and used, from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) status: i32,
    /// By CLOCK_REALTIME.
    pub(crate) started_ns: i64,
    pub(crate) wall_ns: u64,
    pub(crate) usage: Usage,
    pub(crate) moved: Totals,
}

/// Pumps at work.
struct Pumping {
    settled: Vec<oneshot::Receiver<()>>,
    moved: Streamed,
    terminal: Option<End>,
}

impl Pumps {
    fn start(self, exit: &Exit) -> Pumping {
        if let Some(input) = self.input {
            tokio::spawn(input.run(exit.clone()));
        }
        let start = |output: Output| {
            let (settled, receiver) = oneshot::channel();
            tokio::spawn(output.run(exit.clone(), settled));
            receiver
        };
        Pumping {
            settled: self.outputs.into_iter().map(start).collect(),
            moved: self.moved,
            terminal: self.terminal,
        }
    }
}

/// What a process has until it ends, or until nobody needs it.
type Kept<T> = Arc<Mutex<Option<T>>>;

fn lock<T>(kept: &Mutex<Option<T>>) -> MutexGuard<'_, Option<T>> {
    // Nothing panics while holding it.
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sees a process to its end.
async fn follow(
    child: Arc<Child>,
    slot: Kept<Arc<Child>>,
    terminal: Option<Kept<End>>,
    exit: watch::Sender<Option<i32>>,
    settled: Vec<oneshot::Receiver<()>>,
    answer: watch::Sender<Option<Ended>>,
    unneeded: impl Future<Output = ()>,
) {
    // Waiting on our own child fails only if somebody else reaped it; then nobody knows its status.
    let ending = child.ending().await.unwrap_or(Ending {
        status: 255,
        usage: Usage::default(),
    });
    let at_ns = boot_time_ns();
    exit.send_replace(Some(ending.status));
    // A terminal that nobody can resize any more is the pumps' alone, until its last writer is gone.
    terminal.map(|master| lock(&master).take());
    for output in settled {
        // A pump that is gone has nothing more to settle.
        let _ = output.await;
    }
    answer.send_replace(Some(Ended { ending, at_ns }));
    unneeded.await;
    lock(&slot).take();
}

/// A process of a container, from its making until it is forgotten.
pub(crate) struct Process {
    child: Kept<Arc<Child>>,
    exit: Exit,
    answered: watch::Receiver<Option<Ended>>,
    started: Mutex<Moment>,
    moved: Streamed,
    close: Arc<Notify>,
    calls: Option<Arc<CallStreams>>,
    /// Our side of its terminal.
    terminal: Option<Kept<End>>,
    /// Somebody was told its exit status.
    awaited: AtomicBool,
}

impl Process {
    /// The process itself, until it has ended and nobody needs it.
    pub(crate) fn child(&self) -> Option<Arc<Child>> {
        lock(&self.child).clone()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// What decides when it is forgotten, once its exit status can be told: those that somebody was told of
    /// first, then by their end.
    pub(crate) fn age(&self) -> Option<(bool, u64)> {
        let ended = (*self.answered.borrow())?;
        Some((!self.awaited.load(Ordering::Relaxed), ended.at_ns))
    }

    /// Returns when it has ended, whatever of its output is still to come.
    pub(crate) async fn ended(&self) {
        // An error means that nobody follows it any more: it has ended, too.
        let _ = self.exit.clone().wait_for(Option::is_some).await;
    }

    /// It was made before, and goes on from here.
    pub(crate) fn starts_now(&self) {
        *self.started.lock().unwrap_or_else(PoisonError::into_inner) = Moment::now();
    }

    /// What it used, once its output is delivered or stuck.
    pub(crate) async fn receipt(&self) -> Option<Receipt> {
        let Ended { ending, at_ns } = self.settled().await?;
        let started = *self.started.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Receipt {
            status: ending.status,
            started_ns: started.real_ns,
            wall_ns: at_ns.saturating_sub(started.boot_ns),
            usage: ending.usage,
            moved: self.moved.totals(),
        })
    }

    async fn settled(&self) -> Option<Ended> {
        let mut answered = self.answered.clone();
        answered
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|ended| *ended)
    }

    /// The exit status, once its output is delivered or stuck.
    pub(crate) async fn wait(&self) -> Option<i32> {
        let ended = self.settled().await;
        if let Some(calls) = &self.calls {
            calls.release();
        }
        self.awaited.store(true, Ordering::Relaxed);
        ended.map(|ended| ended.ending.status)
    }

    /// The streams by calls.
    ///
    /// # Errors
    /// No such stream, where they are connections or nothing.
    pub(crate) fn calls(&self) -> Result<Arc<CallStreams>, Failed> {
        let none = || Failed::new(FailureKind::NoSuchStream, "the process has no streams by calls");
        self.calls.clone().ok_or_else(none)
    }

    /// Whether it has a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Not running, when it has ended.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), Failed> {
        let ended = || Failed::new(FailureKind::NotRunning, "the process has ended");
        let child = self.child().filter(|_| !self.has_ended()).ok_or_else(ended)?;
        child.signal(signal).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => ended(),
            _ => Failed::new(FailureKind::Invalid, format!("signal {signal}")),
        })
    }

    /// Closes standard input after what has arrived; a terminal gets its end-of-file character.
    pub(crate) fn close_stdin(&self) {
        match &self.calls {
            Some(calls) => calls.close_stdin(),
            None => self.close.notify_one(),
        }
    }

    /// Sets the terminal's size.
    ///
    /// # Errors
    /// Unsupported without a terminal; not running, when the process has ended.
    pub(crate) fn resize(&self, size: Winsize) -> Result<(), Failed> {
        let Some(terminal) = &self.terminal else {
            let text = "resizing a process without a terminal";
            return Err(Failed::new(FailureKind::Unsupported, text));
        };
        // Our side of the terminal may outlive its process for a moment, and would take any size.
        let master = lock(terminal).clone().filter(|_| !self.has_ended());
        let master = master.ok_or_else(|| Failed::new(FailureKind::NotRunning, "the process has ended"))?;
        rustix::termios::tcsetwinsize(master.as_fd(), size)
            .map_err(|error| Failed::new(FailureKind::NotRunning, format!("terminal: {error}")))
    }
}
