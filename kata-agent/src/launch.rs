//! Running a worker process and hearing its outcome.
//!
//! Owns how an order reaches the worker (a memory file) and how its outcome comes back (a pipe). Must
//! not know what the orders mean.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::exec::streams::Streams;
use crate::order::{Call, Order};
use crate::outcome::{OUTCOME_MAX_BYTES, Outcome};
use crate::reaper::{Child, Reaper};

/// Runs a worker without streams of its own, for an order that makes no process.
pub(crate) async fn run(reaper: &Reaper, order: &Order, inherit: &[BorrowedFd<'_>]) -> Result<(), Failed> {
    let _launch = reaper.launch();
    let streams = Streams::null().map_err(|error| worker_failure(&error))?;
    outcome(reaper, order, streams, inherit, std::future::pending())
        .await
        .map(drop)
}

/// Runs a worker on a stream, which is its standard input. Whatever ends first, the worker or `end`, ends both.
///
/// # Errors
/// The worker's; not running, when `end` came first.
pub(crate) async fn run_on(
    reaper: &Reaper,
    order: &Order,
    stream: OwnedFd,
    end: impl Future<Output = ()>,
) -> Result<(), Failed> {
    let streams = Streams::null().map(|null| Streams {
        stdin: stream,
        ..null
    });
    // Nothing is awaited before it is known, and it leaves no orphans.
    let spawned = streams.and_then(|streams| spawn(reaper, order, streams, &[]));
    let (worker, answer) = spawned.map_err(|error| worker_failure(&error))?;
    let ended = async {
        end.await;
        Failed::new(FailureKind::NotRunning, "the container has ended")
    };
    let outcome = hear_before(ended, &worker, answer).await;
    // What it had open is closed before anybody is told.
    let _ = worker.ended().await;
    outcome?.into_result().map(drop)
}

/// Runs a worker that makes a process, and makes that process known. When `end` comes first, the worker ends, and what it
/// started is killed, as far as it stayed in the worker's process group.
pub(crate) async fn process(
    reaper: &Reaper,
    order: &Order,
    streams: Streams,
    inherit: &[BorrowedFd<'_>],
    end: impl Future<Output = Failed>,
) -> Result<Child, Failed> {
    let _launch = reaper.launch();
    let pid = outcome(reaper, order, streams, inherit, end).await?;
    let pid = pid.ok_or_else(|| Failed::new(FailureKind::Container, "the worker made no process"))?;
    reaper.adopt(pid).map_err(|error| worker_failure(&error))
}

/// Runs a worker for a request of the API, given and answered as protobuf.
pub(crate) async fn call(reaper: &Reaper, call: Call, request: &[u8]) -> Result<Vec<u8>, Failed> {
    let made = || -> io::Result<_> {
        let answer = File::from(rustix::fs::memfd_create("answer", MemfdFlags::CLOEXEC)?);
        let streams = Streams {
            stdin: memory_file("request", request)?,
            stdout: answer.try_clone()?.into(),
            ..Streams::null()?
        };
        Ok((answer, streams))
    };
    let (mut answer, streams) = made().map_err(|error| worker_failure(&error))?;
    outcome(reaper, &Order::Call(call), streams, &[], std::future::pending()).await?;
    let mut bytes = Vec::new();
    // The worker wrote through the same open file.
    let read = answer.rewind().and_then(|()| answer.read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| worker_failure(&error))
}

async fn outcome(
    reaper: &Reaper,
    order: &Order,
    streams: Streams,
    inherit: &[BorrowedFd<'_>],
    end: impl Future<Output = Failed>,
) -> Result<Option<i32>, Failed> {
    let (worker, answer) = spawn(reaper, order, streams, inherit).map_err(|error| worker_failure(&error))?;
    let outcome = hear_before(end, &worker, answer).await;
    // It ends by itself after its answer; nobody waits for that.
    tokio::spawn(async move { worker.ended().await.map(drop) });
    outcome?.into_result()
}

fn worker_failure(error: &io::Error) -> Failed {
    Failed::new(FailureKind::Container, format!("worker process: {error}"))
}

fn spawn(
    reaper: &Reaper,
    order: &Order,
    streams: Streams,
    inherit: &[BorrowedFd<'_>],
) -> io::Result<(Child, pipe::Receiver)> {
    let order = memory_file("order", &serde_json::to_vec(order)?)?;
    let (receiver, sender) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut passed = vec![order.as_fd(), sender.as_fd()];
    passed.extend(inherit);
    pass_on(&passed, true)?;
    let spawned = Command::new("/proc/self/exe")
        .args([
            "worker",
            &order.as_raw_fd().to_string(),
            &sender.as_raw_fd().to_string(),
        ])
        .env_clear()
        .stdin(Stdio::from(streams.stdin))
        .stdout(Stdio::from(streams.stdout))
        .stderr(Stdio::from(streams.stderr))
        // What it starts, such as a hook, can be ended with it.
        .process_group(0)
        .spawn();
    pass_on(&passed, false)?;
    let pid = i32::try_from(spawned?.id()).map_err(io::Error::other)?;
    rustix::io::ioctl_fionbio(&receiver, true)?;
    Ok((reaper.adopt(pid)?, pipe::Receiver::from_owned_fd(receiver)?))
}

/// Lets descriptors through to a new program, or not. Nothing else starts programs in between.
fn pass_on(fds: &[BorrowedFd<'_>], on: bool) -> io::Result<()> {
    let flags = if on { FdFlags::empty() } else { FdFlags::CLOEXEC };
    fds.iter()
        .try_for_each(|fd| Ok(rustix::io::fcntl_setfd(fd, flags)?))
}

fn memory_file(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Hears the outcome. Where there is none, or `end` comes first, the worker and what it started are killed.
async fn hear_before(
    end: impl Future<Output = Failed>,
    worker: &Child,
    answer: pipe::Receiver,
) -> Result<Outcome, Failed> {
    let outcome = tokio::select! {
        biased;
        outcome = hear(worker, answer) => outcome.map_err(|error| worker_failure(&error)),
        failed = end => Err(failed),
    };
    if outcome.is_err() {
        worker.kill_group();
        let _ = worker.ended().await;
    }
    outcome
}

/// Reads the outcome. The end of the pipe says nothing (the process that was made holds it, too), but
/// the end of the worker does.
async fn hear(worker: &Child, mut answer: pipe::Receiver) -> io::Result<Outcome> {
    let mut line = Vec::with_capacity(OUTCOME_MAX_BYTES);
    while !line.ends_with(b"\n") {
        let read = tokio::select! {
            biased;
            read = answer.read_buf(&mut line) => read?,
            ended = worker.ended() => match answer.try_read_buf(&mut line) {
                Ok(read) if read > 0 => read,
                _ => return Err(io::Error::other(format!("ended with status {} and no answer", ended?))),
            },
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(serde_json::from_slice(&line)?)
}
