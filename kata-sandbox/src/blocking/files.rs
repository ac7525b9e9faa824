//! Files and logs, for programs that are not asynchronous.

use std::path::Path;
use std::sync::Arc;

use kata_vmm::machine::MiB;
use tokio::runtime::Runtime;

use super::{ContainerHandle, Sandbox};
use crate::error::Error;
use crate::report::{Copied, CopyProgress, Log};

/// A copy that begins when it is [run](Self::run); see [`crate::report::Copying`].
///
/// ```no_run
/// # fn example(sandbox: &kata_sandbox::blocking::Sandbox) -> Result<(), kata_sandbox::Error> {
/// sandbox.copy_in("site", "/srv/www").progress(|progress| eprintln!("{progress}")).run()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a copy begins when it is run"]
pub struct Copying {
    inner: crate::report::Copying,
    runtime: Arc<Runtime>,
}

impl Copying {
    /// See [`crate::report::Copying::progress`].
    pub fn progress(mut self, told: impl FnMut(CopyProgress) + Send + 'static) -> Self {
        self.inner = self.inner.progress(told);
        self
    }

    /// See [`crate::report::Copying::limit`].
    pub fn limit(mut self, limit: MiB) -> Self {
        self.inner = self.inner.limit(limit);
        self
    }

    /// See [`crate::report::Copying::keep_privileges`].
    pub fn keep_privileges(mut self) -> Self {
        self.inner = self.inner.keep_privileges();
        self
    }

    /// Copies.
    ///
    /// # Errors
    /// See [`crate::ContainerHandle::copy_in`].
    pub fn run(self) -> Result<Copied, Error> {
        self.runtime.block_on(async { self.inner.await })
    }
}

impl ContainerHandle {
    /// See [`crate::ContainerHandle::copy_in`].
    pub fn copy_in(&self, host: impl AsRef<Path>, container: impl AsRef<Path>) -> Copying {
        Copying {
            inner: self.inner.copy_in(host, container),
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// See [`crate::ContainerHandle::copy_out`].
    pub fn copy_out(&self, container: impl AsRef<Path>, host: impl AsRef<Path>) -> Copying {
        Copying {
            inner: self.inner.copy_out(container, host),
            runtime: Arc::clone(&self.runtime),
        }
    }
}

/// What a guest logs, as it comes; see [`crate::report::Logs`].
#[derive(Debug)]
pub struct Logs {
    // Before the runtime, which its end still needs.
    inner: crate::report::Logs,
    runtime: Arc<Runtime>,
}

impl Iterator for Logs {
    type Item = Log;

    fn next(&mut self) -> Option<Log> {
        self.runtime.block_on(self.inner.next())
    }
}

impl Sandbox {
    /// See [`crate::Sandbox::copy_in`].
    pub fn copy_in(&self, host: impl AsRef<Path>, container: impl AsRef<Path>) -> Copying {
        self.container().copy_in(host, container)
    }

    /// See [`crate::Sandbox::copy_out`].
    pub fn copy_out(&self, container: impl AsRef<Path>, host: impl AsRef<Path>) -> Copying {
        self.container().copy_out(container, host)
    }

    /// See [`crate::Sandbox::logs`].
    ///
    /// # Errors
    /// As there.
    pub fn logs(&self) -> Result<Logs, Error> {
        Ok(Logs {
            inner: self.runtime.block_on(self.inner.logs())?,
            runtime: Arc::clone(&self.runtime),
        })
    }
}
