//! The one error of the SDK: what happened, where on the way, and what the caller can do.

use std::error::Error as StdError;
use std::fmt;

use crate::output::Output;
use crate::report::Stage;

/// What went wrong, as far as a program can act on it.
///
/// ```no_run
/// use kata_sandbox::{Container, ErrorKind, Sandbox};
///
/// # async fn example() {
/// match Sandbox::run(Container::new("debian.tar").args(["python3"])).await {
///     Ok(output) => println!("{}", output.status),
///     Err(error) if error.kind() == ErrorKind::CommandNotFound => println!("no python3 in this image"),
///     Err(error) => println!("{error:?}"),
/// }
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The container asks for something that does not make sense (no memory, a relative directory, ...).
    InvalidContainer,
    /// The image cannot be used as a root filesystem.
    Image,
    /// The file system of the cache, or another one that is needed, is full.
    NoSpace,
    /// A guest asset or program (kernel, initramfs, agent, monitor) was not found, or the kernel cannot run a sandbox.
    MissingAsset,
    /// The backend cannot run on this host.
    Unsupported,
    /// The hypervisor could not be started or ended by itself.
    Hypervisor,
    /// The monitor process could not be started or died.
    Monitor,
    /// Two parts of different versions met: library, monitor or agent.
    VersionMismatch,
    /// The sandbox was not ready within [`Container::boot_timeout`](crate::Container::boot_timeout): the image was not,
    /// or the machine did not come up.
    BootTimedOut,
    /// The guest kernel panicked or reset the machine; see [`Error::console_tail`].
    GuestPanicked,
    /// The guest powered itself off while it was needed.
    GuestPoweredOff,
    /// The agent in the guest is gone.
    AgentLost,
    /// The agent refused or failed a call.
    Agent,
    /// The program was not found in the container.
    CommandNotFound,
    /// The program is there but cannot be executed.
    CommandNotExecutable,
    /// The working directory does not exist in the container.
    NoSuchDirectory,
    /// The user or group does not exist in the container.
    NoSuchUser,
    /// A path of a copy does not exist, on the host or in the container; the message names it.
    NoSuchFile,
    /// A path of a copy leads through a file, or a file and a directory would have to take each other's place.
    NotADirectory,
    /// The container ran longer than [`Container::timeout`](crate::Container::timeout).
    TimedOut,
    /// The output was larger than [`Container::output_limit`](crate::Container::output_limit).
    OutputTooLarge,
    /// The sandbox was stopped.
    Stopped,
    /// The container or process does not exist (any more).
    NotFound,
    /// The call does not fit the state: starting twice, exec before start, resizing what has no terminal.
    InvalidState,
    /// The operating system refused something of its own accord: descriptors, processes, memory.
    Io,
}

/// A failure of a sandbox.
///
/// `Display` is one line without the cause; [`source`](StdError::source) has the cause. `Debug`, which
/// a failing `main` prints, has the causes and the guest's console too.
///
/// ```no_run
/// use kata_sandbox::{Container, Sandbox};
///
/// # async fn example() {
/// if let Err(error) = Sandbox::run(Container::new("debian.tar").args(["true"])).await {
///     eprintln!("not done: {} was not reached: {error}", error.stage());
///     if let Some(console) = error.console_tail() {
///         eprintln!("the guest said last:\n{console}");
///     }
/// }
/// # }
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    stage: Stage,
    message: String,
    lost: bool,
    console_tail: Option<String>,
    output: Option<Output>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, stage: Stage, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            stage,
            message: message.into(),
            lost: false,
            console_tail: None,
            output: None,
            source: None,
        }))
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn with_console(mut self, tail: String) -> Self {
        if !tail.is_empty() {
            self.0.console_tail = Some(tail);
        }
        self
    }

    pub(crate) fn with_output(mut self, output: Output) -> Self {
        self.0.output = Some(output);
        self
    }

    pub(crate) fn sandbox_lost(mut self) -> Self {
        self.0.lost = true;
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The stage that was not completed.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.0.stage
    }

    /// Whether the sandbox is gone; otherwise it goes on and other calls may succeed.
    #[must_use]
    pub fn is_sandbox_lost(&self) -> bool {
        self.0.lost
    }

    /// The last lines of the guest's console, where the guest had a part in the failure.
    #[must_use]
    pub fn console_tail(&self) -> Option<&str> {
        self.0.console_tail.as_deref()
    }

    /// What the container had written until then, where [`run`](crate::Sandbox::run) was cut short.
    #[must_use]
    pub fn output(&self) -> Option<&Output> {
        self.0.output.as_ref()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?})", self.0.kind)?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        match &self.0.console_tail {
            Some(tail) => write!(f, "\nthe guest's console ends:\n{tail}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.stage, self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_and_debug_has_it_all() {
        let error = Error::new(ErrorKind::GuestPanicked, Stage::Agent, "the guest panicked")
            .with_source(std::io::Error::other("no init"))
            .with_console("Kernel panic".into());
        assert_eq!(error.to_string(), "guest agent: the guest panicked");
        assert_eq!(
            format!("{error:?}"),
            "guest agent: the guest panicked (GuestPanicked): no init\nthe guest's console ends:\nKernel panic"
        );
    }
}
