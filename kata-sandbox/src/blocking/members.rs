//! Containers of a sandbox, and what happens in it, for programs that are not asynchronous.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::Process;
use crate::container::Command;
use crate::error::Error;
use crate::output::ExitStatus;
use crate::process::Limits;
use crate::report::{ContainerStats, Event, Sample};

/// A container of a sandbox; see [`crate::ContainerHandle`].
///
/// ```no_run
/// use kata_sandbox::{Command, Container, blocking};
///
/// # fn main() -> Result<(), kata_sandbox::Error> {
/// let sandbox = blocking::Sandbox::boot(Container::new("debian.tar").idle())?;
/// let tools = sandbox.create_container(Container::new("debian.tar").name("tools").idle())?;
/// let output = tools.exec(Command::new("hostname"))?.output()?;
/// tools.remove()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ContainerHandle {
    pub(super) inner: crate::ContainerHandle,
    pub(super) runtime: Arc<Runtime>,
}

impl ContainerHandle {
    /// See [`crate::ContainerHandle::name`].
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name()
    }

    /// See [`crate::ContainerHandle::spawn`].
    ///
    /// # Errors
    /// As there.
    pub fn spawn(&self) -> Result<Process, Error> {
        let member = &self.inner.0;
        let (handle, streams, timings) = self.runtime.block_on(member.start())?;
        Process::new(&self.runtime, handle, streams, member.input(), timings)
    }

    /// See [`crate::ContainerHandle::exec`].
    ///
    /// # Errors
    /// As there.
    pub fn exec(&self, command: Command) -> Result<Process, Error> {
        let input = command.process.input.clone();
        let (handle, streams, timings) = self.runtime.block_on(self.inner.0.start_exec(command))?;
        Process::new(&self.runtime, handle, streams, input, timings)
    }

    /// See [`crate::ContainerHandle::wait`].
    ///
    /// # Errors
    /// As there.
    pub fn wait(&self) -> Result<ExitStatus, Error> {
        self.runtime.block_on(self.inner.wait())
    }

    /// See [`crate::ContainerHandle::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self, grace: Duration) -> Result<ExitStatus, Error> {
        self.runtime.block_on(self.inner.stop(grace))
    }

    /// See [`crate::ContainerHandle::kill`].
    ///
    /// # Errors
    /// As there.
    pub fn kill(&self) -> Result<(), Error> {
        self.runtime.block_on(self.inner.kill())
    }

    /// See [`crate::ContainerHandle::pause`].
    ///
    /// # Errors
    /// As there.
    pub fn pause(&self) -> Result<(), Error> {
        self.runtime.block_on(self.inner.pause())
    }

    /// See [`crate::ContainerHandle::resume`].
    ///
    /// # Errors
    /// As there.
    pub fn resume(&self) -> Result<(), Error> {
        self.runtime.block_on(self.inner.resume())
    }

    /// See [`crate::ContainerHandle::update`].
    ///
    /// # Errors
    /// As there.
    pub fn update(&self, limits: Limits) -> Result<(), Error> {
        self.runtime.block_on(self.inner.update(limits))
    }

    /// See [`crate::ContainerHandle::stats`].
    ///
    /// # Errors
    /// As there.
    pub fn stats(&self) -> Result<ContainerStats, Error> {
        self.runtime.block_on(self.inner.stats())
    }

    /// See [`crate::ContainerHandle::remove`].
    ///
    /// # Errors
    /// As there.
    pub fn remove(&self) -> Result<(), Error> {
        self.runtime.block_on(self.inner.remove())
    }
}

/// What happens in a sandbox; see [`crate::report::Events`]. Its `next` waits for the next event.
///
/// ```no_run
/// # fn example(sandbox: &kata_sandbox::blocking::Sandbox) {
/// for event in sandbox.events() {
///     println!("{event:?}");
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Events {
    pub(super) inner: crate::report::Events,
    pub(super) runtime: Arc<Runtime>,
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.runtime.block_on(self.inner.next())
    }
}

/// What the containers of a sandbox use; see [`crate::report::Samples`]. Its `next` waits for the next sample.
///
/// ```no_run
/// use std::time::Duration;
///
/// # fn example(sandbox: &kata_sandbox::blocking::Sandbox) -> Result<(), kata_sandbox::Error> {
/// for sample in sandbox.stats(Duration::from_secs(1)) {
///     println!("{:?}", sample?.containers);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Samples {
    pub(super) inner: crate::report::Samples,
    pub(super) runtime: Arc<Runtime>,
}

impl Iterator for Samples {
    type Item = Result<Sample, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.runtime.block_on(self.inner.next())
    }
}
