//! What a container uses, from the files of its cgroup (cgroup-v2.rst).
//!
//! Owns the translation of those files. A controller that the kernel does not have reads as zero.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use kata_agent_proto::agent::{
    CgroupStats, CpuStats, CpuUsage, MemoryData, MemoryStats, PidsStats, ThrottlingData,
};

/// Nanoseconds of a microsecond.
const NS_PER_US: u64 = 1000;

/// Reads the statistics of a cgroup.
pub(crate) fn read(cgroup: &Path) -> CgroupStats {
    CgroupStats {
        cpu_stats: Some(cpu(&table(&cgroup.join("cpu.stat")))).into(),
        memory_stats: Some(memory(cgroup)).into(),
        pids_stats: Some(PidsStats {
            current: number(&cgroup.join("pids.current")),
            limit: limit(&cgroup.join("pids.max")).unwrap_or(0),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn cpu(table: &HashMap<String, u64>) -> CpuStats {
    let count = |key: &str| table.get(key).copied().unwrap_or(0);
    let time = |key: &str| count(key).saturating_mul(NS_PER_US);
    let usage = CpuUsage {
        total_usage: time("usage_usec"),
        usage_in_kernelmode: time("system_usec"),
        usage_in_usermode: time("user_usec"),
        ..Default::default()
    };
    let throttling = ThrottlingData {
        periods: count("nr_periods"),
        throttled_periods: count("nr_throttled"),
        throttled_time: time("throttled_usec"),
        ..Default::default()
    };
    CpuStats {
        cpu_usage: Some(usage).into(),
        throttling_data: Some(throttling).into(),
        ..Default::default()
    }
}

fn memory(cgroup: &Path) -> MemoryStats {
    let stats = table(&cgroup.join("memory.stat"));
    let failures = table(&cgroup.join("memory.events"))
        .get("max")
        .copied()
        .unwrap_or(0);
    let data = |prefix: &str, failcnt| MemoryData {
        usage: number(&cgroup.join(format!("{prefix}.current"))),
        max_usage: number(&cgroup.join(format!("{prefix}.peak"))),
        failcnt,
        limit: limit(&cgroup.join(format!("{prefix}.max"))).unwrap_or(u64::MAX),
        ..Default::default()
    };
    MemoryStats {
        cache: stats.get("file").copied().unwrap_or(0),
        usage: Some(data("memory", failures)).into(),
        swap_usage: Some(data("memory.swap", 0)).into(),
        use_hierarchy: true,
        stats,
        ..Default::default()
    }
}

fn number(path: &Path) -> u64 {
    limit(path).unwrap_or(0)
}

/// A number, or none for "max".
fn limit(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Lines of a name and a number.
fn table(path: &Path) -> HashMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_cgroup_become_statistics() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = [
            (
                "cpu.stat",
                "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_throttled 2\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 2048\n"),
            ("memory.events", "low 0\nmax 5\n"),
            ("pids.current", "3\n"),
            ("pids.max", "10\n"),
        ];
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("written");
        }
        let stats = read(dir.path());
        assert_eq!(stats.cpu_stats.cpu_usage.total_usage, 7000);
        assert_eq!(stats.cpu_stats.throttling_data.throttled_periods, 2);
        let memory = &stats.memory_stats;
        assert_eq!(
            (memory.cache, memory.usage.usage, memory.usage.max_usage),
            (2048, 4096, 8192)
        );
        assert_eq!((memory.usage.limit, memory.usage.failcnt), (u64::MAX, 5));
        assert_eq!((stats.pids_stats.current, stats.pids_stats.limit), (3, 10));
    }

    #[test]
    fn a_missing_controller_is_zero() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()).memory_stats.usage.usage, 0);
    }
}
