//! Copies of files between containers and streams: the worker that does one, and what it lives and dies with.
//!
//! ```text
//!  container kept ──► stream claimed ──► worker ──its outcome──► answered
//!                                          └──the container's end──► killed
//! ```
//!
//! A container is not removed before its copies have ended. Must not know what travels.

use std::os::fd::OwnedFd;

use kata_agent_proto::{Failed, FailureKind};

use crate::launch;
use crate::order::{Copy, Direction, Order};
use crate::sandbox::{Error, Sandbox};
use crate::transport::Stream;

/// What is asked for.
pub(crate) struct Asked {
    pub(crate) container_id: String,
    pub(crate) direction: Direction,
    pub(crate) path: Vec<u8>,
    pub(crate) name: Vec<u8>,
    /// The host's port of the stream.
    pub(crate) port: u32,
}

/// Copies to the end.
pub(crate) async fn copy(sandbox: &Sandbox, asked: Asked) -> Result<(), Error> {
    let forget = |_: &Error| sandbox.unclaimed.forget([asked.port, 0, 0]);
    let container = sandbox.container(&asked.container_id).inspect_err(forget)?;
    let (_launching, init) = container.enter().map_err(Error::from).inspect_err(forget)?;
    let stream = sandbox.unclaimed.claim(asked.port).await?;
    let stream = stream.ok_or_else(|| Failed::new(FailureKind::NoSuchStream, "0"))?;
    let order = Order::Copy(Copy {
        direction: asked.direction,
        init_pid: init.pid(),
        path: asked.path,
        name: asked.name,
    });
    let end = container.init().ended();
    Ok(launch::run_on(&sandbox.reaper, &order, blocking(stream)?, end).await?)
}

/// The worker waits for it.
fn blocking(stream: Stream) -> Result<OwnedFd, Failed> {
    let stream = stream.into_std().and_then(|stream| {
        stream.set_nonblocking(false)?;
        Ok(stream.into())
    });
    stream.map_err(|error| Failed::new(FailureKind::Container, format!("stream: {error}")))
}
