//! What a process used, as the agent tells it.

use std::time::{Duration, SystemTime};

use kata_agent_proto::kata::ReceiptResponse;

use crate::output::ExitStatus;

/// What a process was and used, from its start to its end.
///
/// The figures are the guest kernel's. Those of a process count it and the descendants that were waited for, by it or
/// by one another (getrusage(2), `RUSAGE_SELF` and `RUSAGE_CHILDREN`): a program that it left in the background is not
/// among them. What belongs to the whole container, whoever started it, is in [`container`](Self::container).
///
/// ```no_run
/// # async fn example(process: kata_sandbox::Process) -> Result<(), kata_sandbox::Error> {
/// let receipt = process.receipt().await?;
/// println!("{:?} of processor in {:?}, {} bytes out", receipt.cpu_time(), receipt.wall, receipt.stdout_bytes);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// How it ended.
    pub status: ExitStatus,
    /// When it was started, by the guest's clock.
    pub started: SystemTime,
    /// How long it ran.
    pub wall: Duration,
    /// Processor time of programs.
    pub cpu_user: Duration,
    /// Processor time of the kernel for them.
    pub cpu_system: Duration,
    /// The largest resident set that one of its processes had, in bytes.
    pub memory_peak_bytes: u64,
    /// Bytes that it was given on standard input, or typed into its terminal.
    pub stdin_bytes: u64,
    /// Bytes that it wrote to standard output, or to its terminal, until its end.
    pub stdout_bytes: u64,
    /// Bytes that it wrote to standard error until its end.
    pub stderr_bytes: u64,
    /// For a container's own process: what everything in the container used, until now. `None` for one that exec
    /// added, and where the guest kernel does not count it.
    pub container: Option<ContainerReceipt>,
}

/// What a container used, everything in it together, by its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContainerReceipt {
    /// Processor time of programs.
    pub cpu_user: Duration,
    /// Processor time of the kernel for them.
    pub cpu_system: Duration,
    /// The most memory, files that it wrote to memory included, in bytes; `None` where the kernel does not keep it.
    pub memory_peak_bytes: Option<u64>,
}

impl Receipt {
    /// Processor time of programs, and of the kernel for them.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        self.cpu_user.saturating_add(self.cpu_system)
    }

    pub(crate) fn of(answer: &ReceiptResponse) -> Self {
        let since_1970 = Duration::from_nanos(u64::try_from(answer.started_ns).unwrap_or(0));
        Self {
            status: ExitStatus(answer.status),
            started: SystemTime::UNIX_EPOCH + since_1970,
            wall: Duration::from_nanos(answer.wall_ns),
            cpu_user: Duration::from_nanos(answer.user_ns),
            cpu_system: Duration::from_nanos(answer.system_ns),
            memory_peak_bytes: answer.memory_peak_bytes,
            stdin_bytes: answer.stdin_bytes,
            stdout_bytes: answer.stdout_bytes,
            stderr_bytes: answer.stderr_bytes,
            container: answer.container.as_ref().map(|usage| ContainerReceipt {
                cpu_user: Duration::from_nanos(usage.user_ns),
                cpu_system: Duration::from_nanos(usage.system_ns),
                memory_peak_bytes: (usage.memory_peak_bytes > 0).then_some(usage.memory_peak_bytes),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_sense_is_no_panic() {
        let answer = ReceiptResponse {
            started_ns: i64::MIN,
            wall_ns: u64::MAX,
            user_ns: u64::MAX,
            system_ns: u64::MAX,
            ..Default::default()
        };
        let receipt = Receipt::of(&answer);
        assert_eq!(receipt.started, SystemTime::UNIX_EPOCH);
        assert_eq!(receipt.cpu_time(), Duration::from_nanos(u64::MAX) * 2);
        let _ = Receipt::of(&ReceiptResponse {
            started_ns: i64::MAX,
            ..Default::default()
        });
    }
}
