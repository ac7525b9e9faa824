//! Limits of a container: from the API's resources to settings of cgroup v2.
//!
//! ```text
//!  oci::LinuxResources ──Limits::of (pure)──► Limits ──apply (in a worker)──► files of the cgroup
//! ```
//!
//! Owns the translation from the words of version 1, which the OCI runtime specification uses
//! (config-linux.md#control-groups), to the files of version 2 (cgroup-v2.rst). What cannot be done is refused by the
//! name of its field; nothing is dropped. Must not know containers or requests.

mod disks;
mod write;

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind, oci};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::devices::Rules;
use crate::guest::Guest;

/// No limit, in the words of cgroup v2.
const MAX: &str = "max";

/// The range of shares in cgroup v1; it took others to its bounds.
const SHARES: (u64, u64) = (2, 262_144);

/// The largest weight of cgroup v2.
const WEIGHT_MAX: u32 = 10_000;

/// Microseconds that a period may have, and the least of a quota (sched-bwc.rst).
const PERIOD: std::ops::RangeInclusive<u64> = 1000..=1_000_000;
const QUOTA_MIN: i64 = 1000;

/// Weights of input and output in the OCI runtime specification.
const IO_WEIGHT: std::ops::RangeInclusive<u32> = 10..=1000;

/// Limits that have a meaning, still to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    changes: Vec<Change>,
    /// None is: as it is.
    devices: Option<Rules>,
    /// Where the kernel has no rules on devices, these can be done without.
    devices_optional: bool,
    /// The disks are this guest's own, and there are weights for them.
    weighs_disks: bool,
}

/// One field of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    /// As `memory.limit`.
    field: String,
    setting: Setting,
}

/// What a field means for cgroup v2. What depends on the present settings is settled when it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Setting {
    /// One text in one file.
    Text { file: String, text: String },
    /// Nothing: only that so much is not in use already.
    NotAbove { file: String, limit: u64 },
    /// A part of cpu.max; the other stays.
    CpuMax {
        quota: Option<String>,
        period: Option<u64>,
    },
    /// Memory and swap together in bytes, above a limit of memory that may be set already.
    Swap { total: i64, memory: Option<i64> },
    /// A weight of 10 to 1000, of a device or of all that have none.
    IoWeight { device: Option<String>, weight: u32 },
    /// A key of io.max; none is no limit.
    IoMax {
        device: String,
        key: String,
        rate: Option<u64>,
    },
}

impl Setting {
    /// Whether it is a weight of input and output.
    fn is_weight(&self) -> bool {
        match self {
            Setting::IoWeight { .. } => true,
            Setting::Text { file, .. } => write::WEIGHTS.contains(&file.as_str()),
            _ => false,
        }
    }
}

/// Least limit of memory in bytes: with less a first process would be killed, or would read its own program again and
/// again for as long as it lives.
const MEMORY_MIN_BYTES: i64 = 1 << 20;

fn invalid(field: &str, what: impl Display) -> Failed {
    Failed::new(FailureKind::Invalid, format!("{field}: {what}"))
}

/// Refuses what cgroup v2 has no word for.
fn refuse<const N: usize>(asked: [(bool, &str); N]) -> Result<(), Failed> {
    match asked.into_iter().find(|(asked, _)| *asked) {
        Some((_, field)) => Err(Failed::new(
            FailureKind::Unsupported,
            format!("{field}: cgroup v2 has no such limit"),
        )),
        None => Ok(()),
    }
}

impl Limits {
    /// For containers of this guest: only a machine schedules disks of its own.
    pub(crate) fn in_guest(mut self, guest: Guest) -> Self {
        let has_weights = self.changes.iter().any(|change| change.setting.is_weight());
        self.weighs_disks = has_weights && guest == Guest::Machine;
        self
    }

    /// Those of a new container: without rules on devices it has the default ones. An agent that is a process of
    /// somebody's host may be unable to enforce these; rules that were asked for are enforced or refused.
    pub(crate) fn with_devices(mut self, guest: Guest) -> Self {
        if self.devices.is_none() {
            self.devices = Some(Rules::without_any());
            self.devices_optional = guest == Guest::Process;
        }
        self
    }

    /// Whether its rules on devices can be done without.
    pub(crate) fn devices_are_optional(&self) -> bool {
        self.devices_optional
    }

    /// Allows the devices of a specification, as far as its rules do not deny them.
    pub(crate) fn allow_devices_of(&mut self, spec: &Value) {
        let Some(rules) = &mut self.devices else { return };
        let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
        for device in spec["linux"]["devices"].as_array().into_iter().flatten() {
            let numbers = number(&device["major"]).zip(number(&device["minor"]));
            match (device["type"].as_str(), numbers) {
                (Some("b"), Some(numbers)) => rules.allow_before(true, numbers),
                (Some("c" | "u"), Some(numbers)) => rules.allow_before(false, numbers),
                _ => {}
            }
        }
    }

    /// Allows a device, in place of the rule for the numbers that it had before.
    pub(crate) fn allow_device(&mut self, block: bool, numbers: (u32, u32), before: Option<(u32, u32)>) {
        if let Some(rules) = &mut self.devices {
            rules.allow(block, numbers, before);
        }
    }

    /// The limits of a request.
    ///
    /// # Errors
    /// Unsupported for a field that cgroup v2 cannot do, invalid for a value without meaning.
    pub(crate) fn of(resources: &oci::LinuxResources) -> Result<Self, Failed> {
        refuse([(resources.network.is_some(), "network")])?;
        let mut plan = Plan::default();
        resources
            .memory
            .as_ref()
            .map_or(Ok(()), |memory| plan.memory(memory))?;
        resources.cpu.as_ref().map_or(Ok(()), |cpu| plan.cpu(cpu))?;
        resources.pids.as_ref().map_or(Ok(()), |pids| plan.pids(pids))?;
        resources
            .block_io
            .as_ref()
            .map_or(Ok(()), |io| plan.block_io(io))?;
        for limit in &resources.hugepage_limits {
            plan.huge_pages(limit)?;
        }
        plan.rdma(&resources.rdma);
        plan.unified(&resources.unified)?;
        let devices = (!resources.devices.is_empty()).then(|| Rules::of(&resources.devices));
        Ok(Limits {
            changes: plan.0,
            devices: devices.transpose()?,
            ..Limits::default()
        })
    }

    /// Those that hold from a first process's birth, and those on devices, which hold only once its nodes are made.
    pub(crate) fn in_two_steps(mut self) -> [Self; 2] {
        let devices = self.devices.take();
        let later = Limits {
            devices,
            devices_optional: self.devices_optional,
            ..Limits::default()
        };
        [self, later]
    }

    /// Writes them all, or none: each is checked first, and what was written is put back when one fails.
    /// A write may take as long as the kernel takes to reclaim memory.
    ///
    /// # Errors
    /// Unsupported when the kernel lacks a file, invalid when it refuses a value; by the field.
    pub(crate) fn apply(&self, cgroup: &Path) -> Result<(), Failed> {
        if self.weighs_disks {
            disks::weigh(Path::new("/sys/block"), Path::new("/sys/fs/cgroup"))
                .map_err(|error| Failed::new(FailureKind::Container, format!("block_io.weight: {error}")))?;
        }
        let written = write::all(cgroup, &self.changes)?;
        let Some(rules) = &self.devices else {
            return Ok(());
        };
        match rules.enforce(cgroup) {
            // The worker's standard error is the container's: the agent tells of it.
            Err(_) if self.devices_optional => Ok(()),
            enforced => enforced.inspect_err(|_| written.put_back(cgroup)),
        }
    }
}

#[derive(Default)]
struct Plan(Vec<Change>);

impl Plan {
    fn add(&mut self, field: impl Into<String>, setting: Setting) {
        self.0.push(Change {
            field: field.into(),
            setting,
        });
    }

    fn text(&mut self, field: &str, file: impl Into<String>, text: impl Into<String>) {
        let (file, text) = (file.into(), text.into());
        self.add(field, Setting::Text { file, text });
    }

    /// A number of which 0 is "not set" and -1 "no limit".
    fn count(&mut self, field: &str, file: &str, number: i64) -> Result<(), Failed> {
        match number {
            0 => {}
            -1 => self.text(field, file, MAX),
            1.. => self.text(field, file, number.to_string()),
            _ => return Err(invalid(field, number)),
        }
        Ok(())
    }

    fn memory(&mut self, memory: &oci::LinuxMemory) -> Result<(), Failed> {
        refuse([
            (memory.kernel != 0, "memory.kernel"),
            (memory.kernel_tcp != 0, "memory.kernel_tcp"),
            (memory.swappiness != 0, "memory.swappiness"),
            (memory.disable_oom_killer, "memory.disable_oom_killer"),
            (memory.use_hierarchy == Some(false), "memory.use_hierarchy"),
        ])?;
        if (1..MEMORY_MIN_BYTES).contains(&memory.limit) {
            let what = format!(
                "no process fits into {} bytes: {MEMORY_MIN_BYTES} are the least",
                memory.limit
            );
            return Err(invalid("memory.limit", what));
        }
        if let (true, Ok(limit @ 1..)) = (memory.check_before_update, u64::try_from(memory.limit)) {
            let file = "memory.current".to_owned();
            self.add("memory.check_before_update", Setting::NotAbove { file, limit });
        }
        self.count("memory.limit", "memory.max", memory.limit)?;
        self.count("memory.reservation", "memory.low", memory.reservation)?;
        let field = "memory.swap";
        match memory.swap {
            0 => {}
            total @ (-1 | 1..) => {
                let memory = (memory.limit != 0).then_some(memory.limit);
                swap_above(total, memory.unwrap_or(total)).map_err(|what| invalid(field, what))?;
                self.add(field, Setting::Swap { total, memory });
            }
            other => return Err(invalid(field, other)),
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &oci::LinuxCPU) -> Result<(), Failed> {
        refuse([
            (cpu.realtime_runtime != 0, "cpu.realtime_runtime"),
            (cpu.realtime_period != 0, "cpu.realtime_period"),
        ])?;
        if cpu.shares != 0 {
            self.text(
                "cpu.shares",
                "cpu.weight",
                weight_of_shares(cpu.shares).to_string(),
            );
        }
        let quota = match cpu.quota {
            0 => None,
            -1 => Some(MAX.to_owned()),
            QUOTA_MIN.. => Some(cpu.quota.to_string()),
            other => return Err(invalid("cpu.quota", other)),
        };
        if cpu.period != 0 && !PERIOD.contains(&cpu.period) {
            return Err(invalid("cpu.period", cpu.period));
        }
        let period = (cpu.period != 0).then_some(cpu.period);
        let field = if quota.is_some() {
            "cpu.quota"
        } else {
            "cpu.period"
        };
        if quota.is_some() || period.is_some() {
            self.add(field, Setting::CpuMax { quota, period });
        }
        if let Some(burst) = cpu.burst {
            if cpu.quota > 0 && burst > cpu.quota.unsigned_abs() {
                return Err(invalid(
                    "cpu.burst",
                    format_args!("{burst} is more than the quota"),
                ));
            }
            self.text("cpu.burst", "cpu.max.burst", burst.to_string());
        }
        match cpu.idle {
            None => {}
            Some(idle @ 0..=1) => self.text("cpu.idle", "cpu.idle", idle.to_string()),
            Some(other) => return Err(invalid("cpu.idle", other)),
        }
        for (field, file, list) in [
            ("cpu.cpus", "cpuset.cpus", &cpu.cpus),
            ("cpu.mems", "cpuset.mems", &cpu.mems),
        ] {
            if !list.is_empty() {
                self.text(field, file, checked_list(field, list)?);
            }
        }
        Ok(())
    }

    fn pids(&mut self, pids: &oci::LinuxPids) -> Result<(), Failed> {
        self.count("pids.limit", "pids.max", pids.limit)
    }

    fn huge_pages(&mut self, limit: &oci::LinuxHugepageLimit) -> Result<(), Failed> {
        let size = &limit.pagesize;
        let number = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
        let known = number
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
        if !known {
            return Err(invalid("hugepage_limits.pagesize", format_args!("{size:?}")));
        }
        let field = format!("hugepage_limits.{size}");
        self.text(&field, format!("hugetlb.{size}.max"), limit.limit.to_string());
        Ok(())
    }

    /// By device, in one order.
    fn rdma(&mut self, devices: &HashMap<String, oci::LinuxRdma>) {
        let mut names: Vec<_> = devices.keys().collect();
        names.sort();
        for (name, limit) in names
            .into_iter()
            .filter_map(|name| Some((name, devices.get(name)?)))
        {
            let part = |key: &str, limit: Option<u32>| limit.map(|limit| format!(" {key}={limit}"));
            let handles = part("hca_handle", limit.hca_handles).unwrap_or_default();
            let objects = part("hca_object", limit.hca_objects).unwrap_or_default();
            self.text(
                &format!("rdma.{name}"),
                "rdma.max",
                format!("{name}{handles}{objects}"),
            );
        }
    }

    /// Files by their names, line by line: some of them take no more at once.
    fn unified(&mut self, files: &HashMap<String, String>) -> Result<(), Failed> {
        let mut names: Vec<_> = files.iter().collect();
        names.sort();
        for (name, text) in names {
            let field = format!("unified.{name}");
            // What is the cgroup itself is the agent's.
            let plain = !name.contains(['/', '\0']) && name.contains('.') && !name.starts_with("cgroup.");
            if !plain || name.starts_with('.') {
                return Err(invalid(&field, "is no limit"));
            }
            for line in text.lines() {
                self.text(&field, name, line);
            }
        }
        Ok(())
    }

    fn block_io(&mut self, io: &oci::LinuxBlockIO) -> Result<(), Failed> {
        let leaf = io.weight_device.iter().any(|device| device.leaf_weight != 0);
        refuse([
            (io.leaf_weight != 0, "block_io.leaf_weight"),
            (leaf, "block_io.weight_device.leaf_weight"),
        ])?;
        self.io_weight("block_io.weight", None, io.weight)?;
        for one in &io.weight_device {
            let field = "block_io.weight_device";
            self.io_weight(field, Some(device(field, one.major, one.minor)?), one.weight)?;
        }
        for (field, key, list) in [
            (
                "block_io.throttle_read_bps_device",
                "rbps",
                &io.throttle_read_bps_device,
            ),
            (
                "block_io.throttle_write_bps_device",
                "wbps",
                &io.throttle_write_bps_device,
            ),
            (
                "block_io.throttle_read_iops_device",
                "riops",
                &io.throttle_read_iops_device,
            ),
            (
                "block_io.throttle_write_iops_device",
                "wiops",
                &io.throttle_write_iops_device,
            ),
        ] {
            for one in list {
                let setting = Setting::IoMax {
                    device: device(field, one.major, one.minor)?,
                    key: key.to_owned(),
                    // In version 1 a rate of 0 takes the limit away.
                    rate: (one.rate != 0).then_some(one.rate),
                };
                self.add(field, setting);
            }
        }
        Ok(())
    }

    fn io_weight(&mut self, field: &str, device: Option<String>, weight: u32) -> Result<(), Failed> {
        if weight == 0 {
            return Ok(());
        }
        if !IO_WEIGHT.contains(&weight) {
            return Err(invalid(field, weight));
        }
        self.add(field, Setting::IoWeight { device, weight });
        Ok(())
    }
}

fn device(field: &str, major: i64, minor: i64) -> Result<String, Failed> {
    let number = |number: i64| u32::try_from(number).ok();
    match (number(major), number(minor)) {
        (Some(major), Some(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(invalid(field, format_args!("device {major}:{minor}"))),
    }
}

/// Numbers and ranges; whether they exist is the kernel's to say.
fn checked_list(field: &str, list: &str) -> Result<String, Failed> {
    let list = list.trim();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.trim().parse::<u32>(), last.trim().parse::<u32>()), (Ok(first), Ok(last)) if first <= last)
    };
    if list.split(',').all(range) {
        Ok(list.to_owned())
    } else {
        Err(invalid(field, format_args!("{list:?}")))
    }
}

/// The swap that is left of a total above a limit of memory, in the words of memory.swap.max.
fn swap_above(total: i64, memory: i64) -> Result<String, String> {
    match (total, memory) {
        (-1, _) => Ok(MAX.to_owned()),
        (_, -1) => Err("a limit of memory and swap without one of memory".to_owned()),
        (total, memory) if total < memory => Err(format!("{total} is less than the memory's {memory}")),
        (total, memory) => Ok((total - memory).to_string()),
    }
}

/// The weight of shares: a curve through both ranges' ends and defaults, 1024 and 100, as runc has it
/// since 1.3.2 (opencontainers/cgroups, pull request 20).
fn weight_of_shares(shares: u64) -> u32 {
    let shares = u32::try_from(shares.clamp(SHARES.0, SHARES.1)).unwrap_or(u32::MAX);
    let log = f64::from(shares).log2();
    let exact = 10_f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0);
    // Rounded up, but for what the calculation itself adds.
    let close = |weight: &u32| f64::from(*weight) >= exact - 1e-6;
    (1..=WEIGHT_MAX).find(close).unwrap_or(WEIGHT_MAX)
}

#[cfg(test)]
mod tests;
