//! Figures of the guest and of the agent for Prometheus, under the names that Kata's agent gives them.
//!
//! Owns names and format (Kata's docs/design/kata-2-0-metrics.md; Prometheus text format 0.0.4). The figures are
//! the kernel's, as `/proc` has them. What this kernel does not tell is left out.

use std::fmt::Write;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often it was asked, as Kata's agent counts it.
static SCRAPES: AtomicU64 = AtomicU64::new(0);

/// Columns of `/proc/stat`.
const CPU: [&str; 10] = [
    "user",
    "nice",
    "system",
    "idle",
    "iowait",
    "irq",
    "softirq",
    "steal",
    "guest",
    "guest_nice",
];
/// Columns of `/proc/net/dev`.
const NETDEV: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];
/// Columns of `/proc/diskstats` after the name.
const DISK: [&str; 17] = [
    "reads",
    "merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
    "discards",
    "discards_merged",
    "sectors_discarded",
    "time_discarding",
    "flushes",
    "time_flushing",
];
/// Columns of `/proc/self/stat` that are times, from the first after the command's name.
const TIMES: [(&str, usize); 4] = [("utime", 11), ("stime", 12), ("cutime", 13), ("cstime", 14)];

/// The text.
#[derive(Default)]
struct Page(String);

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        self.0.push_str(name);
        let mut before = "{";
        for (label, text) in labels {
            let _ = write!(self.0, "{before}{label}=\"{}\"", escaped(text));
            before = ",";
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }

    /// One that has no labels.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl ToString) {
        self.metric(name, kind, help);
        self.value(name, &[], &value.to_string());
    }

    /// Lines of names and numbers.
    fn items<'a>(&mut self, name: &str, help: &str, items: impl Iterator<Item = (String, &'a str)>) {
        self.metric(name, "gauge", help);
        for (item, value) in items {
            self.value(name, &[("item", &item)], value);
        }
    }

    /// Lines of names, each with columns of numbers.
    fn columns<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        columns: &[&str],
        rows: impl Iterator<Item = (&'a str, &'a str)>,
    ) {
        self.metric(name, "gauge", help);
        for (row, values) in rows {
            for (item, value) in columns.iter().zip(values.split_whitespace()) {
                self.value(name, &[(label, row), ("item", item)], value);
            }
        }
    }
}

/// What an interface may be called can hold a quotation mark.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// A file of `/proc`; what is not there has no lines.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Everything, at this moment.
pub(crate) fn text() -> String {
    let mut page = Page::default();
    guest(&mut page);
    agent(&mut page);
    page.0
}

fn guest(page: &mut Page) {
    let load = read("/proc/loadavg");
    let words: Vec<&str> = load.split_whitespace().collect();
    let items = ["load1", "load5", "load15"]
        .into_iter()
        .zip(words.iter().copied());
    page.items(
        "kata_guest_load",
        "Guest system load.",
        items.map(|(item, value)| (item.into(), value)),
    );
    if let Some((current, most)) = words.get(3).and_then(|tasks| tasks.split_once('/')) {
        let items = [("cur".to_owned(), current), ("max".to_owned(), most)];
        page.items("kata_guest_tasks", "Guest system load.", items.into_iter());
    }
    let cpus = read("/proc/stat");
    let cpus = cpus
        .lines()
        .filter_map(|line| line.strip_prefix("cpu")?.split_once(' '));
    let cpus = cpus.map(|(cpu, times)| (if cpu.is_empty() { "total" } else { cpu }, times));
    page.columns("kata_guest_cpu_time", "Guest CPU stat.", "cpu", &CPU, cpus);
    let disks = read("/proc/diskstats");
    let disks = disks.lines().filter_map(|line| {
        let rest = line
            .trim_start()
            .split_once(' ')?
            .1
            .trim_start()
            .split_once(' ')?
            .1;
        rest.split_once(' ')
    });
    page.columns(
        "kata_guest_diskstat",
        "Disks stat in system.",
        "disk",
        &DISK,
        disks,
    );
    let devices = read("/proc/net/dev");
    let devices = devices
        .lines()
        .filter_map(|line| line.trim_start().split_once(':'));
    page.columns(
        "kata_guest_netdev_stat",
        "Guest net devices stats.",
        "interface",
        &NETDEV,
        devices,
    );
    let memory = read("/proc/meminfo");
    let memory = memory.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((memory_item(name), value.split_whitespace().next()?))
    });
    page.items(
        "kata_guest_meminfo",
        "Statistics about memory usage on the system.",
        memory,
    );
    let pages = read("/proc/vmstat");
    let pages = pages.lines().filter_map(|line| line.split_once(' '));
    page.items(
        "kata_guest_vm_stat",
        "Guest virtual memory stat.",
        pages.map(|(item, value)| (item.to_owned(), value)),
    );
}

fn agent(page: &mut Page) {
    page.single(
        "kata_agent_scrape_count",
        "counter",
        "Metrics scrape count",
        SCRAPES.fetch_add(1, Ordering::Relaxed) + 1,
    );
    let stat = read("/proc/self/stat");
    let columns: Vec<&str> = stat
        .rsplit_once(") ")
        .map_or("", |(_, rest)| rest)
        .split(' ')
        .collect();
    let column = |index: usize| {
        columns
            .get(index)
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let pages = u64::try_from(rustix::param::page_size()).unwrap_or(0);
    let (memory, resident) = (column(20), column(21) * pages);
    page.single("kata_agent_threads", "gauge", "Agent process threads", column(17));
    page.single(
        "kata_agent_total_time",
        "gauge",
        "Agent process total time",
        column(11) + column(12),
    );
    page.single(
        "kata_agent_total_vm",
        "gauge",
        "Agent process total VM size",
        memory,
    );
    page.single(
        "kata_agent_total_rss",
        "gauge",
        "Agent process total RSS size",
        resident,
    );
    page.single(
        "kata_agent_process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        resident,
    );
    page.single(
        "kata_agent_process_virtual_memory_bytes",
        "gauge",
        "Virtual memory size in bytes.",
        memory,
    );
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    page.single(
        "kata_agent_process_open_fds",
        "gauge",
        "Number of open file descriptors.",
        open,
    );
    let times = TIMES.map(|(item, index)| (item.to_owned(), columns.get(index).copied().unwrap_or("0")));
    page.items("kata_agent_proc_stat", "Agent process stat.", times.into_iter());
    let status = read("/proc/self/status");
    let numbers = status.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let wanted = ["Vm", "Rss", "Hugetlb"]
            .iter()
            .any(|start| name.starts_with(start));
        let wanted = wanted || name.ends_with("ctxt_switches");
        wanted.then_some((name.to_lowercase(), value.split_whitespace().next()?))
    });
    page.items("kata_agent_proc_status", "Agent process status.", numbers);
    let io = read("/proc/self/io");
    let io = io.lines().filter_map(|line| line.split_once(": "));
    let io = io.map(|(name, value)| (name.replace('_', ""), value));
    page.items("kata_agent_io_stat", "Agent process IO stat.", io);
}

/// `Active(anon)` is `active_anon`, `SReclaimable` is `s_reclaimable`, `DirectMap4k` is `direct_map_4k`.
fn memory_item(name: &str) -> String {
    let name = name.replace("HugePages", "Hugepages").replace("Percpu", "PerCpu");
    let mut item = String::new();
    let mut previous = '_';
    let mut characters = name.chars().peekable();
    while let Some(character) = characters.next() {
        let follows_small = previous.is_ascii_lowercase() && !character.is_ascii_lowercase();
        let begins_word = previous.is_ascii_uppercase()
            && character.is_ascii_uppercase()
            && characters.peek().is_some_and(char::is_ascii_lowercase);
        if (follows_small || begins_word) && character.is_ascii_alphanumeric() {
            item.push('_');
        }
        match character {
            '(' => item.push('_'),
            ')' => {}
            // The unit of the sizes of a direct map.
            _ if previous.is_ascii_digit() => item.push(character),
            _ => item.push(character.to_ascii_lowercase()),
        }
        previous = character;
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_katas_names() {
        for (name, item) in [
            ("MemTotal", "mem_total"),
            ("Active(anon)", "active_anon"),
            ("SReclaimable", "s_reclaimable"),
            ("KReclaimable", "k_reclaimable"),
            ("HugePages_Total", "hugepages_total"),
            ("Hugepagesize", "hugepagesize"),
            ("AnonHugePages", "anon_hugepages"),
            ("ShmemPmdMapped", "shmem_pmd_mapped"),
            ("Committed_AS", "committed_as"),
            ("NFS_Unstable", "nfs_unstable"),
            ("DirectMap4k", "direct_map_4k"),
            ("DirectMap2M", "direct_map_2M"),
            ("Percpu", "per_cpu"),
            ("WritebackTmp", "writeback_tmp"),
        ] {
            assert_eq!(memory_item(name), item);
        }
    }

    #[test]
    fn every_line_is_a_comment_or_a_number_with_a_name() {
        let text = text();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').expect(line);
            assert!(
                name.starts_with("kata_guest_") || name.starts_with("kata_agent_"),
                "{line}"
            );
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
        for metric in [
            "kata_guest_load{item=\"load15\"} ",
            "kata_guest_cpu_time{cpu=\"total\",item=\"user\"} ",
            "kata_guest_netdev_stat{interface=\"lo\",item=\"recv_bytes\"} ",
            "kata_guest_meminfo{item=\"mem_total\"} ",
            "kata_guest_vm_stat{item=\"pgfault\"} ",
            "kata_agent_proc_status{item=\"vmrss\"} ",
            "kata_agent_threads ",
        ] {
            assert!(text.contains(metric), "{metric}");
        }
        assert_eq!(escaped("a\"b\\"), "a\\\"b\\\\");
    }
}
