//! What a container may use of its machine, in docker's words, and as the agent's API has it. Pure.

use kata_agent_proto::oci::{LinuxBlockIO, LinuxCPU, LinuxMemory, LinuxPids, LinuxResources};
use kata_vmm::machine::MiB;

use crate::error::{Error, ErrorKind};
use crate::report::Stage;

/// Microseconds over which a share of the processors is counted, as docker has it.
const PERIOD_US: u32 = 100_000;

/// The least share of a processor: the kernel's least quota is a hundredth of the period (sched-bwc.rst).
const CPUS_MIN: f64 = 0.01;

/// The least memory, as docker has it: what makes the container needs some, too.
const MEMORY_MIN: MiB = MiB(6);

/// What a container may use of its machine: the memory, the processors, and how many processes.
///
/// A machine has memory and processors of its own ([`Container::memory`](crate::Container::memory),
/// [`Container::vcpus`](crate::Container::vcpus)), and its containers share them. What is not said here is not
/// limited, and stays as it is in an [update](crate::ContainerHandle::update). Limits need a guest whose kernel has
/// cgroup v2; where it has not, they are refused.
///
/// ```no_run
/// use kata_sandbox::process::Limits;
/// use kata_sandbox::{Container, MiB, Sandbox};
///
/// # async fn example() -> Result<(), kata_sandbox::Error> {
/// let limits = Limits::new().cpus(0.5).memory(MiB(64)).pids(100);
/// let container = Container::new("debian.tar").args(["make"]).memory(MiB(512)).limits(limits);
/// let output = Sandbox::run(container).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[must_use = "limits do nothing until a container is given them"]
pub struct Limits {
    cpus: Option<f64>,
    cpu_shares: Option<u64>,
    cpuset: Option<String>,
    memory: Option<MiB>,
    memory_reservation: Option<MiB>,
    pids: Option<u32>,
    io_weight: Option<u16>,
}

impl Limits {
    /// No limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many processors' time it may have: 0.01 at least, and no more than the machine has.
    pub fn cpus(mut self, count: f64) -> Self {
        self.cpus = Some(count);
        self
    }

    /// Its weight against other containers of the sandbox where processors are short: 2 to 262144. The kernel's
    /// default is 1024.
    pub fn cpu_shares(mut self, shares: u64) -> Self {
        self.cpu_shares = Some(shares);
        self
    }

    /// The processors that it may run on, as `0-2,4`.
    pub fn cpuset(mut self, list: impl Into<String>) -> Self {
        self.cpuset = Some(list.into());
        self
    }

    /// The most memory that its processes may have together, what it writes to memory included: beyond it the kernel
    /// kills one of them. At least 6 MiB.
    pub fn memory(mut self, size: MiB) -> Self {
        self.memory = Some(size);
        self
    }

    /// Memory that is not taken from it as long as others have more than theirs.
    pub fn memory_reservation(mut self, size: MiB) -> Self {
        self.memory_reservation = Some(size);
        self
    }

    /// The most processes and threads that it may have at a time.
    pub fn pids(mut self, count: u32) -> Self {
        self.pids = Some(count);
        self
    }

    /// Its weight against others where disks are busy: 10 to 1000.
    pub fn io_weight(mut self, weight: u16) -> Self {
        self.io_weight = Some(weight);
        self
    }

    /// Refuses what can never be, by its name.
    pub(crate) fn check(&self, vcpus: u8) -> Result<(), Error> {
        if let Some(cpus) = self.cpus
            && !(CPUS_MIN..=f64::from(vcpus)).contains(&cpus)
        {
            return Err(invalid(format!(
                "limits.cpus: {cpus} is not within {CPUS_MIN} and the {vcpus} of the machine"
            )));
        }
        if let Some(memory) = self.memory.filter(|memory| *memory < MEMORY_MIN) {
            return Err(invalid(format!(
                "limits.memory: {} MiB is too little: a container needs at least {}",
                memory.0, MEMORY_MIN.0
            )));
        }
        for (name, value, bounds) in [
            ("cpu_shares", self.cpu_shares, 2..=262_144),
            ("pids", self.pids.map(u64::from), 1..=4_194_304),
            ("io_weight", self.io_weight.map(u64::from), 10..=1000),
        ] {
            if let Some(value) = value.filter(|value| !bounds.contains(value)) {
                let (least, most) = bounds.into_inner();
                return Err(invalid(format!(
                    "limits.{name}: {value} is not within {least} and {most}"
                )));
            }
        }
        Ok(())
    }

    /// Puts what was said here on top of other limits.
    pub(crate) fn apply(&self, resources: &mut LinuxResources) {
        if self.cpus.is_some() || self.cpu_shares.is_some() || self.cpuset.is_some() {
            let cpu = resources.cpu.mut_or_insert_default();
            self.apply_cpu(cpu);
        }
        if self.memory.is_some() || self.memory_reservation.is_some() {
            let memory: &mut LinuxMemory = resources.memory.mut_or_insert_default();
            set(&mut memory.limit, self.memory.map(bytes));
            set(&mut memory.reservation, self.memory_reservation.map(bytes));
        }
        if let Some(limit) = self.pids {
            let pids: &mut LinuxPids = resources.pids.mut_or_insert_default();
            pids.limit = limit.into();
        }
        if let Some(weight) = self.io_weight {
            let io: &mut LinuxBlockIO = resources.block_io.mut_or_insert_default();
            io.weight = weight.into();
        }
    }

    fn apply_cpu(&self, cpu: &mut LinuxCPU) {
        if let Some(cpus) = self.cpus {
            cpu.quota = quota(cpus);
            cpu.period = PERIOD_US.into();
        }
        set(&mut cpu.shares, self.cpu_shares);
        set(&mut cpu.cpus, self.cpuset.clone());
    }

    /// As the agent's API has them.
    pub(crate) fn resources(&self) -> LinuxResources {
        let mut resources = LinuxResources::default();
        self.apply(&mut resources);
        resources
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn bytes(size: MiB) -> i64 {
    i64::try_from(size.bytes()).unwrap_or(i64::MAX)
}

/// Microseconds of a period.
#[allow(
    clippy::cast_possible_truncation,
    reason = "a machine has 32 processors, and a float's conversion saturates"
)]
fn quota(cpus: f64) -> i64 {
    (cpus * f64::from(PERIOD_US)).round() as i64
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidContainer, Stage::Plan, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_lies_on_top_of_what_was_there() {
        let mut resources = Limits::new().memory(MiB(64)).cpus(1.5).resources();
        assert_eq!((resources.cpu.quota, resources.cpu.period), (150_000, 100_000));
        Limits::new()
            .pids(7)
            .memory(MiB(32))
            .cpuset("0")
            .apply(&mut resources);
        assert_eq!((resources.memory.limit, resources.pids.limit), (32 << 20, 7));
        assert_eq!((resources.cpu.quota, resources.cpu.cpus.as_str()), (150_000, "0"));
        assert_eq!(Limits::new().resources(), LinuxResources::default());
    }

    #[test]
    fn what_can_never_be_is_refused_by_name() {
        let reject = |limits: Limits| limits.check(2).unwrap_err().to_string();
        assert_eq!(
            reject(Limits::new().cpus(2.5)),
            "plan: limits.cpus: 2.5 is not within 0.01 and the 2 of the machine"
        );
        assert!(reject(Limits::new().cpus(f64::NAN)).contains("limits.cpus"));
        assert_eq!(
            reject(Limits::new().memory(MiB(5))),
            "plan: limits.memory: 5 MiB is too little: a container needs at least 6"
        );
        assert_eq!(
            reject(Limits::new().pids(0)),
            "plan: limits.pids: 0 is not within 1 and 4194304"
        );
        assert!(reject(Limits::new().cpu_shares(1)).contains("limits.cpu_shares"));
        assert!(reject(Limits::new().io_weight(1001)).contains("limits.io_weight"));
        Limits::new().cpus(2.0).memory(MiB(6)).pids(1).check(2).unwrap();
    }
}
