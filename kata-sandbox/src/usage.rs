//! What a sandbox costs: the host's view by `/proc`, the guest's by the agent.

use std::fs;
use std::time::Duration;

use kata_agent_proto::agent::StatsContainerResponse;

use crate::report::Usage;

/// The sum of the proportional set sizes of `pids` in bytes; `None` if one cannot be read.
pub(crate) fn host_memory_bytes(pids: &[u32]) -> Option<u64> {
    pids.iter()
        .map(|pid| pss_bytes(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?))
        .sum()
}

/// The `Pss:` line of proc(5) `smaps_rollup`, which is in KiB.
fn pss_bytes(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}

/// What the guest's cgroup says of the container.
pub(crate) fn of_container(stats: &StatsContainerResponse, host_memory_bytes: Option<u64>) -> Usage {
    let cgroup = &stats.cgroup_stats;
    let peak = cgroup.memory_stats.usage.max_usage;
    Usage {
        host_memory_bytes,
        cpu_time: Some(Duration::from_nanos(cgroup.cpu_stats.cpu_usage.total_usage)),
        container_memory_peak_bytes: (peak > 0).then_some(peak),
        output_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rollup_line_is_read_in_kib() {
        let text =
            "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:   900 kB\nPss:    12 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(pss_bytes(text), Some(12 << 10));
        assert_eq!(pss_bytes("Rss: 1 kB\n"), None);
    }

    #[test]
    fn this_process_has_memory_and_no_process_has_none() {
        assert!(host_memory_bytes(&[std::process::id()]).unwrap() > 0);
        assert_eq!(host_memory_bytes(&[u32::MAX]), None);
    }
}
