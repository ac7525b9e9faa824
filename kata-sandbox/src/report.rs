//! What a sandbox tells about itself: where it runs, how long each stage took, what it costs, what happens in it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kata_image::ImageConfig;
pub use kata_vmm::hypervisor::{Capabilities, KvmUnusable, QemuUnusable, Reason, Selection};
pub use kata_vmm::machine::{Accelerator, DeviceInfo, Hypervisor, MachineInfo};

pub use crate::copied::{Copied, CopyProgress, LeftOut, Omitted};
pub use crate::copy::Copying;
use crate::error::ErrorKind;
pub use crate::events::Events;
pub use crate::logs::{KernelRecord, Log, LogSource, Logs};
use crate::output::ExitStatus;
pub use crate::stats::Samples;

/// A stage on the way of a container, in order.
///
/// ```
/// use kata_sandbox::report::Stage;
///
/// assert!(Stage::Kernel < Stage::FirstOutput);
/// assert_eq!(Stage::Kernel.to_string(), "guest kernel");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Host probed, root filesystem image ready.
    Image,
    /// Machine and container planned.
    Plan,
    /// Every file opened.
    Prepare,
    /// Monitor process started.
    Launch,
    /// The hypervisor runs the machine.
    Machine,
    /// The guest kernel has started the agent.
    Kernel,
    /// The agent has loaded the kernel's modules.
    Modules,
    /// The agent has mounted the guest's own file systems and set up its cgroups and loopback interface.
    Mounts,
    /// The agent has dialed the host.
    Agent,
    /// The sandbox is set up: clock, entropy, name.
    Connect,
    /// The container is created.
    Create,
    /// The container's process is started.
    Start,
    /// The first byte of its output arrived.
    FirstOutput,
    /// It exited and its output is complete.
    Exit,
    /// Files are copied into it or out of it; any number of times.
    Copy,
    /// The machine is gone.
    Stop,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Image => "image",
            Self::Plan => "plan",
            Self::Prepare => "prepare",
            Self::Launch => "launch monitor",
            Self::Machine => "start machine",
            Self::Kernel => "guest kernel",
            Self::Modules => "guest modules",
            Self::Mounts => "guest mounts",
            Self::Agent => "guest agent",
            Self::Connect => "set up sandbox",
            Self::Create => "create container",
            Self::Start => "start container",
            Self::FirstOutput => "first output",
            Self::Exit => "exit",
            Self::Copy => "copy",
            Self::Stop => "stop",
        })
    }
}

/// When each stage was complete, counted from the call that began it all.
///
/// Prints as a table, one line a stage.
///
/// ```no_run
/// use kata_sandbox::report::Stage;
/// # fn example(timings: &kata_sandbox::report::Timings) {
/// if let Some(time) = timings.at(Stage::FirstOutput) {
///     println!("first output after {time:?}; all stages:\n{timings}");
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    begin: Instant,
    complete: Vec<(Stage, Duration)>,
}

impl Timings {
    pub(crate) fn begin() -> Self {
        Self {
            begin: Instant::now(),
            complete: Vec::new(),
        }
    }

    pub(crate) fn mark(&mut self, stage: Stage) {
        self.mark_at(stage, Instant::now());
    }

    pub(crate) fn mark_at(&mut self, stage: Stage, when: Instant) {
        if self.at(stage).is_none() {
            self.complete
                .push((stage, when.saturating_duration_since(self.begin)));
        }
    }

    /// When `stage` was complete, from the beginning; `None` if it was not reached.
    #[must_use]
    pub fn at(&self, stage: Stage) -> Option<Duration> {
        self.complete.iter().find(|(s, _)| *s == stage).map(|(_, at)| *at)
    }

    /// The stages that were reached, in order of time, with when each was complete.
    pub fn iter(&self) -> impl Iterator<Item = (Stage, Duration)> {
        let mut sorted = self.complete.clone();
        sorted.sort_by_key(|(stage, at)| (*at, *stage));
        sorted.into_iter()
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = Duration::ZERO;
        for (stage, at) in self.iter() {
            let ms = |d: Duration| d.as_secs_f64() * 1e3;
            writeln!(
                f,
                "{stage:<18}{:>10.1} ms  +{:.1} ms",
                ms(at),
                ms(at.saturating_sub(last))
            )?;
            last = at;
        }
        Ok(())
    }
}

/// What a sandbox cost.
///
/// ```no_run
/// # async fn example(sandbox: &kata_sandbox::Sandbox) -> Result<(), kata_sandbox::Error> {
/// let usage = sandbox.usage().await?;
/// println!("{:?} bytes of the host, {:?} of processor time", usage.host_memory_bytes, usage.cpu_time);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Host memory of the monitor and the hypervisor, guest memory included, in bytes: the
    /// proportional set size (PSS, proc(5) `smaps_rollup`) when the container ended. `None` where the
    /// host does not let us read it.
    pub host_memory_bytes: Option<u64>,
    /// Processor time inside the guest: of the whole container where it ran, of the process and its descendants for an
    /// exec ([`Receipt::cpu_time`](crate::process::Receipt::cpu_time)); `None` where it was not asked.
    pub cpu_time: Option<Duration>,
    /// Most memory that the container used inside the guest, in bytes; `None` where the guest kernel
    /// does not keep it.
    pub container_memory_peak_bytes: Option<u64>,
    /// Bytes of standard output and standard error.
    pub output_bytes: u64,
}

/// Where a sandbox runs and why there.
///
/// ```no_run
/// # fn example(sandbox: &kata_sandbox::Sandbox) {
/// let info = sandbox.info();
/// println!("{} on {}: {}", info.name, info.hypervisor_version, info.selection.reason);
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The sandbox's name.
    pub name: String,
    /// Which hypervisor, and why it and not a better one.
    pub selection: Selection,
    /// Product and version of the hypervisor.
    pub hypervisor_version: String,
    /// The machine type.
    pub machine_type: String,
    /// Memory of the machine, in bytes.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// The guest kernel's file; its directory tells a tailored kernel from a distribution's. `None` where there is no
    /// guest.
    pub kernel: Option<PathBuf>,
    /// The guest kernel's release.
    pub kernel_release: String,
    /// The agent's version.
    pub agent_version: String,
    /// The monitor's process.
    pub monitor_pid: u32,
    /// Every process on the host that belongs to the sandbox, the monitor first.
    pub pids: Vec<u32>,
    /// Digest of the image: of its manifest, or of its only layer where it has none.
    pub image_digest: String,
    /// What the image's author says about its containers.
    pub image: ImageConfig,
    /// How long each stage took so far.
    pub timings: Timings,
}

/// Something that happened in a sandbox; see [`Sandbox::events`](crate::Sandbox::events).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The kernel killed a process of this container for want of memory. Each kill is an event. It needs a guest
    /// whose kernel has cgroup v2.
    OutOfMemory {
        /// The container's name.
        container: String,
    },
    /// A container's own process has ended.
    ContainerExited {
        /// The container's name.
        container: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A process that exec added to a container has ended.
    ProcessExited {
        /// The container's name.
        container: String,
        /// Which of the container's processes: [`Process::id`](crate::Process::id).
        process: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// The sandbox has ended, and nothing is left of it. The last event.
    SandboxEnded {
        /// Why: [`Stopped`](ErrorKind::Stopped) where it was asked to.
        kind: ErrorKind,
        /// The same in words.
        message: String,
    },
}

/// What a container uses; see [`ContainerHandle::stats`](crate::ContainerHandle::stats).
///
/// The figures are those of its cgroup in the guest, since it was created where they are sums. What the guest's kernel
/// does not count is zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ContainerStats {
    /// Processor time.
    pub cpu_time: Duration,
    /// The part of it outside of the kernel.
    pub user_cpu_time: Duration,
    /// The part of it in the kernel.
    pub system_cpu_time: Duration,
    /// How long it had to wait for having used up its share of the processors.
    pub throttled_time: Duration,
    /// Memory at this moment, in bytes, what it wrote to memory and what is cached for it included.
    pub memory_bytes: u64,
    /// The most that it was; `None` where the kernel does not keep it.
    pub memory_peak_bytes: Option<u64>,
    /// The most that it may be; `None` without a limit.
    pub memory_limit_bytes: Option<u64>,
    /// The part that files have, cached or written to memory.
    pub memory_cache_bytes: u64,
    /// Swap, in bytes.
    pub swap_bytes: u64,
    /// Processes and threads at this moment.
    pub processes: u64,
    /// The most that there may be; `None` without a limit.
    pub processes_limit: Option<u64>,
    /// Input and output by the numbers of the guest's device, major and minor.
    pub io: BTreeMap<(u64, u64), IoStats>,
}

/// Input and output of a container on one device of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct IoStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Counters of one network interface, since it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct NetworkStats {
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Packets that could not be received.
    pub received_errors: u64,
    /// Packets that were received and dropped.
    pub received_dropped: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets that could not be sent.
    pub sent_errors: u64,
    /// Packets that were to be sent and dropped.
    pub sent_dropped: u64,
}

/// What all containers of a sandbox use at one moment; see [`Sandbox::stats`](crate::Sandbox::stats).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// When it was begun.
    pub taken: Instant,
    /// By name.
    pub containers: BTreeMap<String, ContainerStats>,
    /// The sandbox's network interfaces by name, which its containers share.
    pub network: BTreeMap<String, NetworkStats>,
}
