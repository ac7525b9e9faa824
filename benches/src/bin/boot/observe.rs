//! What a monitor costs while its guest waits: exits, threads, memory. It asks the kernel, never the monitor.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

/// Where KVM counts, a directory for every machine (Linux `virt/kvm/kvm_main.c`, `kvm_create_vm_debugfs`).
const DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// The figures of one process.
#[derive(Debug)]
pub(crate) struct Cost {
    /// By kind; `exits` is the sum of those that left the guest.
    pub(crate) exits: BTreeMap<String, u64>,
    pub(crate) threads: usize,
    /// Memory of its own that is not its guest's.
    pub(crate) private_bytes: u64,
}

/// Asks for all of them.
pub(crate) fn cost(pid: u32, guest_bytes: u64) -> Result<Cost, Box<dyn Error>> {
    Ok(Cost {
        exits: exits(pid)?,
        threads: fs::read_dir(format!("/proc/{pid}/task"))?.count(),
        private_bytes: private_bytes(&fs::read_to_string(format!("/proc/{pid}/smaps"))?, guest_bytes),
    })
}

/// The counters of the machine whose directory is named after the process, `PID-FD`.
fn exits(pid: u32) -> Result<BTreeMap<String, u64>, Box<dyn Error>> {
    let prefix = format!("{pid}-");
    let machine = fs::read_dir(DEBUGFS)?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
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

fn counter(path: &Path) -> Option<&str> {
    path.file_name()?.to_str().filter(|name| name.ends_with("exits"))
}

/// The private pages of every mapping (proc(5), `smaps`) that is not guest memory: guest memory is a memfd, or
/// a mapping of a quarter of its size or more, since some monitors map it in parts.
fn private_bytes(smaps: &str, guest_bytes: u64) -> u64 {
    let mut sum = 0;
    let mut is_guest = false;
    for line in smaps.lines() {
        match field(line) {
            None => is_guest = line.contains("/memfd:"),
            Some(("Size", bytes)) => is_guest |= bytes >= guest_bytes / 4,
            Some(("Private_Clean" | "Private_Dirty", bytes)) if !is_guest => sum += bytes,
            Some(_) => {}
        }
    }
    sum
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
    fn guest_memory_is_not_the_monitors() {
        let smaps = "00400000-00500000 r-xp 00000000 00:01 1   /kata/kata-vmm\n\
                     Size:               1024 kB\nPrivate_Clean:       100 kB\nPrivate_Dirty:        10 kB\n\
                     7f0000000000-7f0008000000 rw-s 00000000 00:01 2   /memfd:guest (deleted)\n\
                     Size:               4096 kB\nPrivate_Clean:         0 kB\nPrivate_Dirty:      4000 kB\n\
                     7f1000000000-7f1008000000 rw-p 00000000 00:00 0\n\
                     Size:             131072 kB\nPrivate_Clean:         0 kB\nPrivate_Dirty:     34000 kB\n\
                     7f2000000000-7f2000001000 rw-p 00000000 00:00 0   [stack]\n\
                     Size:                132 kB\nPrivate_Clean:         0 kB\nPrivate_Dirty:         5 kB\n\
                     VmFlags: rd wr mr\n";
        assert_eq!(private_bytes(smaps, 128 << 20), 115 << 10);
    }
}
