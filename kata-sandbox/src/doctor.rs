//! What this machine has of what sandboxes need: line by line, each with the one command that mends it.
//!
//! It looks and changes nothing. What it finds is judged by pure functions; nobody on the way of a sandbox asks it.
//!
//! ```no_run
//! let examination = kata_sandbox::doctor::examine();
//! print!("{examination}");
//! assert!(examination.can_run());
//! ```

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use kata_image::guest::{Asset, Overrides};
use kata_vmm::hypervisor::{Capabilities, probe};

use crate::error::Error;
use crate::prepare::find_monitor;

/// Less memory than this leaves a guest of the default size no room.
const MEMORY_MIN_BYTES: u64 = 384 << 20;
/// Less than this is gone with the first image.
const DISK_MIN_BYTES: u64 = 512 << 20;

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is there.
    Works,
    /// It is not, and something else takes its place or few miss it.
    Limited,
    /// It is not, and without it no sandbox runs.
    Broken,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found, and what follows.
    pub found: String,
    /// The command that mends it, where there is one.
    pub remedy: Option<String>,
}

/// All that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Examination {
    /// In the order in which a sandbox needs them.
    pub findings: Vec<Finding>,
}

impl Examination {
    /// Whether a sandbox can run: nothing is broken.
    #[must_use]
    pub fn can_run(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.verdict != Verdict::Broken)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Works => "works",
            Self::Limited => "limited",
            Self::Broken => "BROKEN",
        })
    }
}

impl fmt::Display for Examination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding {
            subject,
            verdict,
            found,
            remedy,
        } in &self.findings
        {
            writeln!(formatter, "{verdict:<8} {subject:<14} {found}")?;
            if let Some(remedy) = remedy {
                writeln!(formatter, "{:23} do: {remedy}", "")?;
            }
        }
        Ok(())
    }
}

/// Looks at this machine.
#[must_use]
pub fn examine() -> Examination {
    let capabilities = probe();
    let asset = |asset: Asset| {
        asset
            .find(&Overrides::default())
            .map_err(|error| error.to_string())
    };
    let findings = vec![
        kvm(&capabilities),
        emulator(&capabilities),
        monitor(find_monitor(None)),
        guest("guest kernel", asset(Asset::Kernel), Verdict::Broken),
        guest("initramfs", asset(Asset::Initramfs), Verdict::Broken),
        guest("agent", asset(Asset::Agent), Verdict::Limited),
        memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        match kata_image::cache_directory() {
            Ok(directory) => disk(&directory, &free_bytes(&directory)),
            Err(error) => finding(
                "disk",
                Verdict::Broken,
                error.to_string(),
                "export KATA_CACHE_DIR=/var/tmp/kata",
            ),
        },
        tap(File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map(drop)),
        cgroups(Path::new("/sys/fs/cgroup")),
        filesystems(kata_image::find_mke2fs()),
    ];
    Examination { findings }
}

fn finding(
    subject: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    remedy: impl Into<Option<&'static str>>,
) -> Finding {
    let remedy = remedy.into().map(str::to_owned);
    Finding {
        subject,
        verdict,
        found: found.into(),
        remedy,
    }
}

fn kvm(capabilities: &Capabilities) -> Finding {
    let unusable = match &capabilities.kvm {
        Ok(()) => {
            let found = "stock guest kernels run on /dev/kvm: our own monitor is used";
            return finding("KVM", Verdict::Works, found, None);
        }
        Err(unusable) => unusable,
    };
    let found = format!("{unusable}: software emulation is used, which is slower");
    finding("KVM", Verdict::Limited, found, unusable.remedy())
}

/// Who has KVM needs no emulator.
fn emulator(capabilities: &Capabilities) -> Finding {
    let verdict = if capabilities.kvm.is_ok() {
        Verdict::Limited
    } else {
        Verdict::Broken
    };
    match &capabilities.qemu {
        Ok(found) => finding(
            "emulator",
            Verdict::Works,
            found.binary.display().to_string(),
            None,
        ),
        Err(unusable) => finding("emulator", verdict, unusable.to_string(), unusable.remedy()),
    }
}

fn monitor(found: Result<PathBuf, Error>) -> Finding {
    match found {
        Ok(path) => finding("monitor", Verdict::Works, path.display().to_string(), None),
        Err(error) => finding(
            "monitor",
            Verdict::Broken,
            error.to_string(),
            "cargo xtask quickstart",
        ),
    }
}

fn guest(subject: &'static str, found: Result<PathBuf, String>, without: Verdict) -> Finding {
    match found {
        Ok(path) => finding(subject, Verdict::Works, path.display().to_string(), None),
        Err(error) => finding(subject, without, error, "cargo xtask quickstart"),
    }
}

/// From the text of proc(5) `meminfo`.
fn memory(meminfo: &str) -> Finding {
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    let Some(bytes) = kib.map(|kib| kib << 10) else {
        return finding(
            "memory",
            Verdict::Limited,
            "/proc/meminfo does not say how much is available",
            None,
        );
    };
    let found = format!("{} MiB available", bytes >> 20);
    if bytes >= MEMORY_MIN_BYTES {
        return finding("memory", Verdict::Works, found, None);
    }
    let found = format!("{found}: a guest has 256 MiB unless it is given less");
    finding("memory", Verdict::Limited, found, None)
}

fn disk(directory: &Path, free: &io::Result<u64>) -> Finding {
    let at = directory.display();
    match free {
        Ok(bytes) if *bytes >= DISK_MIN_BYTES => finding(
            "disk",
            Verdict::Works,
            format!("{} MiB free for images in {at}", bytes >> 20),
            None,
        ),
        Ok(bytes) => {
            let free = bytes >> 20;
            let found =
                format!("only {free} MiB free for images in {at}; KATA_CACHE_DIR names another place");
            finding("disk", Verdict::Limited, found, None)
        }
        Err(error) => {
            let found = format!("{at} cannot be written: {error}");
            finding(
                "disk",
                Verdict::Broken,
                found,
                "export KATA_CACHE_DIR=/var/tmp/kata",
            )
        }
    }
}

/// What is free where the directory is or would be made, if it can be written.
fn free_bytes(directory: &Path) -> io::Result<u64> {
    let there = directory
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    rustix::fs::access(there, rustix::fs::Access::WRITE_OK)?;
    let filesystem = rustix::fs::statvfs(there)?;
    Ok(filesystem.f_bavail.saturating_mul(filesystem.f_frsize))
}

fn tap(opened: io::Result<()>) -> Finding {
    let nets = "no sandbox can have a network card";
    match opened {
        Ok(()) => finding("tap", Verdict::Works, "/dev/net/tun", None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let found = format!("/dev/net/tun does not exist: {nets}");
            finding("tap", Verdict::Limited, found, "sudo modprobe tun")
        }
        Err(error) => {
            let found = format!("/dev/net/tun cannot be opened ({error}): {nets}");
            finding("tap", Verdict::Limited, found, "sudo chmod 0666 /dev/net/tun")
        }
    }
}

fn cgroups(root: &Path) -> Finding {
    if root.join("cgroup.controllers").exists() {
        return finding("cgroups", Verdict::Works, "version 2", None);
    }
    if root.join("memory").exists() || root.join("unified").exists() {
        let found = "version 1: guests have version 2 of their own; only Backend::Process is limited by it";
        return finding("cgroups", Verdict::Works, found, None);
    }
    let found = format!(
        "none below {}: Backend::Process cannot limit what it runs",
        root.display()
    );
    finding(
        "cgroups",
        Verdict::Limited,
        found,
        "sudo mount -t cgroup2 none /sys/fs/cgroup",
    )
}

fn filesystems(mke2fs: Option<PathBuf>) -> Finding {
    let Some(path) = mke2fs else {
        let found = "not found: containers can write to memory only, not to disks";
        return finding(
            "mke2fs",
            Verdict::Limited,
            found,
            "sudo apt-get install e2fsprogs",
        );
    };
    finding("mke2fs", Verdict::Works, path.display().to_string(), None)
}

#[cfg(test)]
mod tests {
    use kata_vmm::hypervisor::{KvmUnusable, Qemu, QemuUnusable};

    use super::*;

    fn host(kvm: Result<(), KvmUnusable>, qemu: bool) -> Capabilities {
        let binary = "/usr/bin/qemu".into();
        let missing = QemuUnusable::NotFound {
            program: "qemu".into(),
        };
        Capabilities {
            kvm,
            qemu: if qemu { Ok(Qemu { binary }) } else { Err(missing) },
        }
    }

    #[test]
    fn one_of_kvm_and_qemu_is_enough() {
        let verdicts = |host: Capabilities| (kvm(&host).verdict, emulator(&host).verdict);
        assert_eq!(verdicts(host(Ok(()), true)), (Verdict::Works, Verdict::Works));
        assert_eq!(verdicts(host(Ok(()), false)), (Verdict::Works, Verdict::Limited));
        let missing = || Err(KvmUnusable::Missing);
        assert_eq!(
            verdicts(host(missing(), true)),
            (Verdict::Limited, Verdict::Works)
        );
        assert_eq!(
            verdicts(host(missing(), false)),
            (Verdict::Limited, Verdict::Broken)
        );
    }

    #[test]
    fn what_can_be_mended_says_how() {
        let remedy = |finding: Finding| finding.remedy.unwrap_or_default();
        assert!(remedy(kvm(&host(Err(KvmUnusable::Missing), true))).contains("modprobe"));
        assert!(remedy(kvm(&host(Err(KvmUnusable::Permission), true))).contains("usermod"));
        assert!(remedy(emulator(&host(Ok(()), false))).contains("apt-get install"));
        let kernel = guest("guest kernel", Err("none".into()), Verdict::Broken);
        assert_eq!(remedy(kernel), "cargo xtask quickstart");
        assert_eq!(
            remedy(tap(Err(io::ErrorKind::NotFound.into()))),
            "sudo modprobe tun"
        );
        assert!(remedy(filesystems(None)).contains("e2fsprogs"));
    }

    #[test]
    fn little_memory_and_disk_are_said() {
        let verdict = |text: &str| memory(text).verdict;
        assert_eq!(
            verdict("MemTotal: 1 kB\nMemAvailable:   2000000 kB\n"),
            Verdict::Works
        );
        assert_eq!(verdict("MemAvailable:   100000 kB\n"), Verdict::Limited);
        assert_eq!(verdict(""), Verdict::Limited);
        let disk = |free| disk(Path::new("/c"), &free).verdict;
        assert_eq!(disk(Ok(1 << 30)), Verdict::Works);
        assert_eq!(disk(Ok(1 << 20)), Verdict::Limited);
        assert_eq!(disk(Err(io::ErrorKind::PermissionDenied.into())), Verdict::Broken);
    }

    #[test]
    fn the_lines_name_what_is_broken() {
        let broken = guest("guest kernel", Err("it is not there".into()), Verdict::Broken);
        let examination = Examination {
            findings: vec![tap(Ok(())), broken],
        };
        assert!(!examination.can_run());
        let expected = "works    tap            /dev/net/tun\n\
                        BROKEN   guest kernel   it is not there\n";
        let text = examination.to_string();
        assert!(text.starts_with(expected), "{text}");
        assert!(text.ends_with("do: cargo xtask quickstart\n"), "{text}");
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let examination = examine();
        assert_eq!(examination.findings.len(), 11);
        assert!(
            examination
                .findings
                .iter()
                .all(|finding| !finding.found.is_empty())
        );
    }
}
