//! What a monitor costs: exits, threads, memory, time on a processor. It asks the kernel, never the monitor.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::Path;

/// Where KVM counts, a directory for every machine (Linux `virt/kvm/kvm_main.c`, `kvm_create_vm_debugfs`).
const DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// The figures of a machine's processes while its guest waits.
#[derive(Debug, Clone)]
pub struct Cost {
    /// By kind; `exits` is the sum of those that left the guest.
    pub exits: BTreeMap<String, u64>,
    /// Threads.
    pub threads: usize,
    /// Memory of their own that is not the guest's, in bytes.
    pub private_bytes: u64,
    /// The guest's memory that it has touched, or that was written for it, in bytes.
    pub guest_bytes: u64,
}

/// Asks for all of them.
///
/// # Errors
/// When a process is gone, or none of them has a machine.
pub fn cost(pids: &[u32], guest_bytes: u64) -> Result<Cost, Box<dyn Error>> {
    let mut cost = Cost {
        exits: exits(pids)?,
        threads: 0,
        private_bytes: 0,
        guest_bytes: 0,
    };
    for pid in pids {
        let (private, guest) = memory(&fs::read_to_string(format!("/proc/{pid}/smaps"))?, guest_bytes);
        cost.threads += tasks(*pid)?.len();
        cost.private_bytes += private;
        // All of them map the same memory; the one that runs the machine has touched the most.
        cost.guest_bytes = cost.guest_bytes.max(guest);
    }
    Ok(cost)
}

/// What a thread has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activity {
    /// Time on a processor, in nanoseconds.
    pub nanoseconds: u64,
    /// How often it waited for something.
    pub waits: u64,
}

/// The activity of all threads of these processes, by process, thread and name.
///
/// # Errors
/// When a process is gone.
pub fn activity(pids: &[u32]) -> Result<BTreeMap<(u32, String), Activity>, Box<dyn Error>> {
    let mut all = BTreeMap::new();
    for pid in pids {
        for task in tasks(*pid)? {
            let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/task/{task}/{name}"));
            // A thread may end at any time, as those of QEMU's thread pool do.
            let (Ok(name), Ok(times), Ok(status)) = (read("comm"), read("schedstat"), read("status")) else {
                continue;
            };
            let activity = Activity {
                nanoseconds: number(times.split(' ').next()),
                waits: number(
                    status
                        .lines()
                        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")),
                ),
            };
            all.insert((task, name.trim().to_owned()), activity);
        }
    }
    Ok(all)
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// The numbers of a process's threads.
fn tasks(pid: u32) -> Result<BTreeSet<u32>, Box<dyn Error>> {
    let mut tasks = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        tasks.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    Ok(tasks)
}

/// The counters of the machine of one of these processes. Its directory is named after the thread that made
/// it, `TID-FD`, which in some monitors is not the first one.
///
/// # Errors
/// When KVM does not count, or knows no such machine.
pub fn exits(pids: &[u32]) -> Result<BTreeMap<String, u64>, Box<dyn Error>> {
    let mut makers = BTreeSet::new();
    for pid in pids {
        makers.extend(tasks(*pid)?);
    }
    let machine = fs::read_dir(DEBUGFS)?
        .filter_map(Result::ok)
        .find(|entry| maker(&entry.file_name().to_string_lossy()).is_some_and(|tid| makers.contains(&tid)))
        .ok_or("KVM knows no machine of this process")?;
    let mut exits = BTreeMap::new();
    for entry in fs::read_dir(machine.path())? {
        let path = entry?.path();
        if let Some(name) = counter(&path) {
            exits.insert(name.to_owned(), fs::read_to_string(&path)?.trim().parse()?);
        }
    }
    Ok(exits)
}

/// The thread that made the machine of this directory.
fn maker(directory: &str) -> Option<u32> {
    directory.split_once('-')?.0.parse().ok()
}

fn counter(path: &Path) -> Option<&str> {
    path.file_name()?.to_str().filter(|name| name.ends_with("exits"))
}

/// The private pages of every mapping (proc(5), `smaps`) that is not guest memory, and the resident ones of those
/// that are: guest memory is a memfd, or a mapping of a quarter of its size or more, since some monitors map it
/// in parts.
fn memory(smaps: &str, guest_bytes: u64) -> (u64, u64) {
    let (mut private, mut guest) = (0, 0);
    let mut is_guest = false;
    for line in smaps.lines() {
        match field(line) {
            None => is_guest = line.contains("/memfd:"),
            Some(("Size", bytes)) => is_guest |= bytes >= guest_bytes / 4,
            Some(("Private_Clean" | "Private_Dirty", bytes)) if !is_guest => private += bytes,
            Some(("Rss", bytes)) if is_guest => guest += bytes,
            Some(_) => {}
        }
    }
    (private, guest)
}

/// `Size:  128 kB` as name and bytes; a mapping's first line and its flags are none.
fn field(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(':')?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((name, kibibytes << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_after_the_thread_that_made_it() {
        assert_eq!(maker("4711-12"), Some(4711));
        assert_eq!(maker("kvm"), None);
    }

    #[test]
    fn activity_is_of_every_thread() {
        let (release, waiting) = std::sync::mpsc::channel::<()>();
        let (named, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("observed".to_owned())
            .spawn(move || {
                // A thread gives itself its name, before anything else.
                named.send(()).unwrap();
                waiting.recv()
            })
            .unwrap();
        started.recv().unwrap();
        let all = activity(&[std::process::id()]).unwrap();
        assert!(all.keys().any(|(_, name)| name == "observed"), "{all:?}");
        assert!(
            all.keys().any(|(thread, _)| *thread == std::process::id()),
            "{all:?}"
        );
        drop(release);
        thread.join().unwrap().unwrap_err();
    }

    #[test]
    fn guest_memory_is_not_the_monitors() {
        let smaps = "00400000-00500000 r-xp 00000000 00:01 1   /kata/kata-vmm\n\
                     Size:               1024 kB\nPrivate_Clean:       100 kB\nPrivate_Dirty:        10 kB\n\
                     7f0000000000-7f0008000000 rw-s 00000000 00:01 2   /memfd:guest (deleted)\n\
                     Size:               4096 kB\nPrivate_Clean:         0 kB\nPrivate_Dirty:      4000 kB\n\
                     7f1000000000-7f1008000000 rw-p 00000000 00:00 0\n\
                     Size:             131072 kB\nRss:               34000 kB\nPrivate_Clean:         0 kB\nPrivate_Dirty:     34000 kB\n\
                     7f2000000000-7f2000001000 rw-p 00000000 00:00 0   [stack]\n\
                     Size:                132 kB\nPrivate_Clean:         0 kB\nPrivate_Dirty:         5 kB\n\
                     VmFlags: rd wr mr\n";
        assert_eq!(memory(smaps, 128 << 20), (115 << 10, 34000 << 10));
    }
}
