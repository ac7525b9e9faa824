//! What is left of a process after its end.

use std::fmt;

use crate::receipt::Receipt;
use crate::report::{Timings, Usage};

/// How a process ended: its exit code, or 128 plus the number of the signal that killed it.
///
/// ```no_run
/// # async fn example(process: kata_sandbox::Process) -> Result<(), kata_sandbox::Error> {
/// let status = process.wait().await?;
/// println!("{status}: {}", if status.success() { "fine" } else { "not fine" });
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExitStatus(pub(crate) i32);

impl ExitStatus {
    /// The exit code, 0 to 255; 128 + n when signal n killed the process, as a shell has it.
    #[must_use]
    pub fn code(self) -> i32 {
        self.0
    }

    /// Whether the code is 0.
    #[must_use]
    pub fn success(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

/// All that a process left behind.
///
/// ```no_run
/// # use kata_sandbox::{Container, Sandbox};
/// # async fn example() -> Result<(), kata_sandbox::Error> {
/// let output = Sandbox::run(Container::new("debian.tar").args(["ls", "/"])).await?;
/// print!("{}", String::from_utf8_lossy(&output.stdout));
/// eprint!("{}", String::from_utf8_lossy(&output.stderr));
/// println!("{}\n{}", output.status, output.timings);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended; 255 in an [`Error::output`](crate::Error::output), where it did not end by itself.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How long each stage took.
    pub timings: Timings,
    /// What it cost.
    pub usage: Usage,
    /// What it used inside the guest; `None` where it did not end by itself, and for an agent that does not keep it.
    pub receipt: Option<Receipt>,
}
