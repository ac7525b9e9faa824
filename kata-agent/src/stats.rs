//! What a container uses, from the files of its cgroup (cgroup-v2.rst), and its sandbox's network.
//!
//! Owns the translation of those files. A controller that the kernel does not have reads as zero.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use kata_agent_proto::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats,
    NetworkStats, PidsStats, ThrottlingData,
};

use crate::reaper::Usage;
use crate::watched::number_of;

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
        blkio_stats: Some(block_io(&text(&cgroup.join("io.stat")))).into(),
        hugetlb_stats: huge_pages(cgroup),
        ..Default::default()
    }
}

/// What a cgroup has used; none where the kernel does not count it.
pub(crate) fn used(cgroup: &Path) -> Option<Usage> {
    let times = table(&cgroup.join("cpu.stat"));
    let time = |key: &str| times.get(key).map(|time| time.saturating_mul(NS_PER_US));
    Some(Usage {
        user_ns: time("user_usec")?,
        system_ns: time("system_usec")?,
        memory_peak_bytes: number(&cgroup.join("memory.peak")),
    })
}

/// Lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6` (cgroup-v2.rst, io.stat).
fn block_io(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(major, minor)| (major.parse(), minor.parse())) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut stats.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                "dios" => (&mut stats.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            list.push(BlkioStatsEntry {
                major,
                minor,
                op: op.into(),
                value: value.parse().unwrap_or(0),
                ..Default::default()
            });
        }
    }
    stats
}

/// By page size, as in `hugetlb.2MB.current`. cgroup v2 keeps no peak of them.
fn huge_pages(cgroup: &Path) -> HashMap<String, HugetlbStats> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.contains('.')).then(|| size.to_owned())
    });
    let stats = |size: String| {
        let stats = HugetlbStats {
            usage: number(&cgroup.join(format!("hugetlb.{size}.current"))),
            failcnt: event(cgroup, &format!("hugetlb.{size}.events"), "max"),
            ..Default::default()
        };
        (size, stats)
    };
    sizes.map(stats).collect()
}

/// Reads the counters of the sandbox's network interfaces, which its containers share.
///
/// # Errors
/// Where /proc/net/dev cannot be read.
pub(crate) fn network() -> io::Result<Vec<NetworkStats>> {
    Ok(interfaces(&fs::read_to_string("/proc/self/net/dev")?))
}

/// Lines of a name and 16 numbers, received and sent, below two lines of headings (proc(5), /proc/net/dev).
fn interfaces(text: &str) -> Vec<NetworkStats> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers = numbers.split_whitespace().map(|number| number.parse().ok());
        let numbers = numbers.collect::<Option<Vec<u64>>>()?;
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = numbers[..]
        else {
            return None;
        };
        Some(NetworkStats {
            name: name.trim().to_owned(),
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..Default::default()
        })
    };
    text.lines().filter_map(interface).collect()
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
    let data = |prefix: &str, failure: &str| MemoryData {
        usage: number(&cgroup.join(format!("{prefix}.current"))),
        max_usage: number(&cgroup.join(format!("{prefix}.peak"))),
        failcnt: event(cgroup, &format!("{prefix}.events"), failure),
        limit: limit(&cgroup.join(format!("{prefix}.max"))).unwrap_or(u64::MAX),
        ..Default::default()
    };
    let kernel = MemoryData {
        usage: stats.get("kernel").copied().unwrap_or(0),
        limit: u64::MAX,
        ..Default::default()
    };
    MemoryStats {
        cache: stats.get("file").copied().unwrap_or(0),
        // Out of memory, not merely at the limit; out of swap.
        usage: Some(data("memory", "oom")).into(),
        swap_usage: Some(data("memory.swap", "fail")).into(),
        kernel_usage: Some(kernel).into(),
        use_hierarchy: true,
        stats,
        ..Default::default()
    }
}

/// A counter of an events file.
fn event(cgroup: &Path, file: &str, name: &str) -> u64 {
    number_of(&text(&cgroup.join(file)), name).unwrap_or(0)
}

/// A file's text, empty where there is none.
fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
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
    let line = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    text(path).lines().filter_map(line).collect()
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
            ("memory.stat", "anon 1\nfile 2048\nkernel 64\n"),
            ("memory.events", "low 0\nmax 9\noom 5\noom_kill 4\n"),
            ("memory.swap.current", "512\n"),
            ("memory.swap.max", "1024\n"),
            ("memory.swap.events", "high 0\nmax 1\nfail 2\n"),
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
        let swap = &memory.swap_usage;
        assert_eq!((swap.usage, swap.limit, swap.failcnt), (512, 1024, 2));
        assert_eq!(memory.kernel_usage.usage, 64);
    }

    #[test]
    fn input_and_output_are_told_by_device_and_direction() {
        let stats = block_io("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:0\nnonsense\n");
        let entries = |list: &[BlkioStatsEntry]| {
            let entry = |entry: &BlkioStatsEntry| (entry.major, entry.minor, entry.op.clone(), entry.value);
            list.iter().map(entry).collect::<Vec<_>>()
        };
        let expected = |values: [u64; 3]| {
            let named = ["Read", "Write", "Discard"].into_iter().zip(values);
            named
                .map(|(op, value)| (8, 16, op.to_owned(), value))
                .collect::<Vec<_>>()
        };
        assert_eq!(entries(&stats.io_service_bytes_recursive), expected([1, 2, 5]));
        assert_eq!(entries(&stats.io_serviced_recursive), expected([3, 4, 6]));
    }

    #[test]
    fn huge_pages_are_told_by_size() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in [
            ("hugetlb.2MB.current", "4194304\n"),
            ("hugetlb.2MB.events", "max 3\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
            ("hugetlb.1GB.current", "0\n"),
        ] {
            fs::write(dir.path().join(name), text).expect("written");
        }
        let stats = read(dir.path()).hugetlb_stats;
        assert_eq!(stats.len(), 2);
        assert_eq!((stats["2MB"].usage, stats["2MB"].failcnt), (4_194_304, 3));
    }

    #[test]
    fn interfaces_are_told_by_name() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets|bytes packets\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0:20 0 0 0 0 0 0 0 21 0 0 0 0 0 0 0\n";
        let stats = interfaces(text);
        let names = stats.iter().map(|one| one.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names, ["lo", "eth0"]);
        assert_eq!((stats[0].rx_bytes, stats[0].rx_dropped), (1, 4));
        assert_eq!((stats[0].tx_bytes, stats[0].tx_dropped), (9, 12));
        assert_eq!((stats[1].rx_bytes, stats[1].tx_bytes), (20, 21));
    }

    #[test]
    fn a_missing_controller_is_zero() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()).memory_stats.usage.usage, 0);
    }
}
