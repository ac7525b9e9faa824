//! What this machine has of what sandboxes need: line by line, each with the one command or sentence that mends it.
//!
//! It changes nothing, but for the note that a kernel was looked at. What it finds is judged by pure functions; nobody
//! on the way of a sandbox asks it.
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

use kata_image::guest::{Asset, AssetError, Assets, Overrides, Provision};
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
    /// The command that mends it, or what to do in a sentence; none where nothing has to be done.
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
    let [kernel, initramfs] = boot_files(Assets::look(&Overrides::default()), |asset| {
        std::env::var_os(asset.variable()).is_some_and(|value| !value.is_empty())
    });
    let findings = vec![
        kvm(&capabilities),
        emulator(&capabilities),
        monitor(find_monitor(None)),
        kernel,
        initramfs,
        agent(Asset::Agent.find(&Overrides::default())),
        memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        match kata_image::cache_directory() {
            Ok(directory) => disk(&directory, &free_bytes(&directory)),
            Err(error) => finding("disk", Verdict::Broken, error.to_string(), OTHER_CACHE),
        },
        tap(open_tun(), may_make_taps()),
        cgroups(Path::new("/sys/fs/cgroup"), |directory| {
            rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).map_err(io::Error::from)
        }),
        filesystems(kata_image::find_mke2fs()),
    ];
    Examination { findings }
}

const KERNEL: &str = "guest kernel";
const INITRAMFS: &str = "initramfs";
const QUICKSTART: &str = "cargo xtask quickstart";
const OTHER_CACHE: &str = "export KATA_CACHE_DIR=/var/tmp/kata";

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
        Err(error) => finding("monitor", Verdict::Broken, error.to_string(), QUICKSTART),
    }
}

/// Kernel and initramfs, by the rule of every start. `is_set` says of which of them the environment names one.
fn boot_files(found: Result<Provision, AssetError>, is_set: impl Fn(Asset) -> bool) -> [Finding; 2] {
    let works = |subject, found: String| finding(subject, Verdict::Works, found, None);
    let error = match found {
        Ok(Provision::Ready(Assets { kernel, initramfs })) => {
            return [
                works(KERNEL, kernel.display().to_string()),
                works(INITRAMFS, initramfs.display().to_string()),
            ];
        }
        Ok(Provision::Makeable { kernel }) => {
            let found = format!("{}, which the first start unpacks", kernel.display());
            return [
                works(KERNEL, found),
                works(INITRAMFS, "made by the first start, for that kernel".to_owned()),
            ];
        }
        Err(error) => error,
    };
    let broken = |subject, found: String| {
        let named = [Asset::Initramfs, Asset::Kernel]
            .into_iter()
            .find(|asset| is_set(*asset) && (subject == INITRAMFS || *asset == Asset::Kernel));
        let remedy = named.map_or_else(
            || QUICKSTART.to_owned(),
            |asset| format!("unset {}", asset.variable()),
        );
        Finding {
            remedy: Some(remedy),
            ..finding(subject, Verdict::Broken, found, None)
        }
    };
    match &error {
        AssetError::NoInitramfs { kernel, .. } => [
            works(KERNEL, kernel.display().to_string()),
            broken(INITRAMFS, chain(&error)),
        ],
        AssetError::Missing {
            asset: Asset::Initramfs,
            ..
        } => [
            works(KERNEL, "there is one".to_owned()),
            broken(INITRAMFS, chain(&error)),
        ],
        _ => [
            broken(KERNEL, chain(&error)),
            broken(
                INITRAMFS,
                "not looked for: there is no kernel to boot with it".to_owned(),
            ),
        ],
    }
}

/// Only sandboxes that are processes, and kernels of the machine's own, need it as a file.
fn agent(found: Result<PathBuf, AssetError>) -> Finding {
    match found {
        Ok(path) => finding("agent", Verdict::Works, path.display().to_string(), None),
        Err(error) => finding("agent", Verdict::Limited, chain(&error), QUICKSTART),
    }
}

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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
    let remedy = "end other programs, or give guests less by Container::memory (96 MiB are the least)";
    finding("memory", Verdict::Limited, found, remedy)
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
            let found = format!("only {free} MiB free for images in {at}");
            let remedy = "delete what is not needed there, or export KATA_CACHE_DIR=DIRECTORY on a file system with room";
            finding("disk", Verdict::Limited, found, remedy)
        }
        Err(error) => {
            let found = format!("{at} cannot be written: {error}");
            finding("disk", Verdict::Broken, found, OTHER_CACHE)
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

fn open_tun() -> io::Result<()> {
    let mut options = File::options();
    options.read(true).write(true).open("/dev/net/tun").map(drop)
}

/// Opening the device is not enough: making an interface by it (`TUNSETIFF`) takes a capability (Linux
/// `drivers/net/tun.c`, `tun_set_iff`).
fn may_make_taps() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN))
}

fn tap(opened: io::Result<()>, may_make: bool) -> Finding {
    let nets = "no sandbox can have a network card";
    match opened {
        Ok(()) if may_make => finding("tap", Verdict::Works, "/dev/net/tun", None),
        Ok(()) => {
            let found = "/dev/net/tun opens, but without CAP_NET_ADMIN no tap can be made by it:                          only one that is there and this user's own can be used";
            let remedy = "sudo ip tuntap add dev kata0 mode tap user $(id -un)";
            finding("tap", Verdict::Limited, found, remedy)
        }
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

/// Guests have cgroups of their own. The host's version 2 is for sandboxes that are processes.
fn cgroups(root: &Path, writable: impl Fn(&Path) -> io::Result<()>) -> Finding {
    let unified = root.join("unified");
    let (version, directory) = if root.join("cgroup.controllers").exists() {
        ("version 2", root)
    } else if unified.join("cgroup.controllers").exists() {
        (
            "version 1, and version 2 without its controllers",
            unified.as_path(),
        )
    } else {
        let found = format!(
            "no version 2 below {}: Backend::Process cannot limit what it runs",
            root.display()
        );
        let remedy = "sudo mount -t cgroup2 none /sys/fs/cgroup";
        return finding("cgroups", Verdict::Limited, found, remedy);
    };
    let Err(error) = writable(directory) else {
        return finding("cgroups", Verdict::Works, version, None);
    };
    let at = directory.display();
    let found = format!("{version}, but {at} cannot be written ({error}): no Backend::Process");
    let remedy = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => format!("sudo mount -o remount,rw {at}"),
        _ => "use a virtual machine, or run as root where Backend::Process is wanted".to_owned(),
    };
    Finding {
        remedy: Some(remedy),
        ..finding("cgroups", Verdict::Limited, found, None)
    }
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
        assert_eq!(remedy(agent(Err(no_kernel()))), "cargo xtask quickstart");
        assert!(remedy(filesystems(None)).contains("e2fsprogs"));
    }

    fn no_kernel() -> AssetError {
        AssetError::Missing {
            asset: Asset::Kernel,
            looked_in: vec!["/g/tailored/vmlinux".into()],
        }
    }

    #[test]
    fn kernel_and_initramfs_are_judged_as_a_start_does() {
        let assets = || Assets {
            kernel: "/g/k".into(),
            initramfs: "/g/i".into(),
        };
        let judge = |found, set: Option<Asset>| {
            let findings = boot_files(found, |asset| Some(asset) == set);
            findings.map(|finding| (finding.verdict, finding.found, finding.remedy.unwrap_or_default()))
        };
        let none = String::new;
        let [kernel, initramfs] = judge(Ok(Provision::Ready(assets())), None);
        assert_eq!(kernel, (Verdict::Works, "/g/k".into(), none()));
        assert_eq!(initramfs, (Verdict::Works, "/g/i".into(), none()));
        let makeable = Provision::Makeable {
            kernel: "/boot/vmlinuz-6".into(),
        };
        let [kernel, initramfs] = judge(Ok(makeable), None);
        assert!(kernel.0 == Verdict::Works && kernel.1.starts_with("/boot/vmlinuz-6, "));
        assert_eq!(initramfs.0, Verdict::Works);
        let [kernel, initramfs] = judge(Err(no_kernel()), None);
        assert!(kernel.0 == Verdict::Broken && kernel.1.contains("/g/tailored/vmlinux"));
        assert_eq!((initramfs.0, initramfs.2.as_str()), (Verdict::Broken, QUICKSTART));
        let alone = || AssetError::NoInitramfs {
            kernel: "/g/k".into(),
            path: "/g/i".into(),
        };
        let [kernel, initramfs] = judge(Err(alone()), None);
        assert_eq!(kernel, (Verdict::Works, "/g/k".into(), none()));
        assert_eq!(initramfs.2, QUICKSTART);
        let [_, initramfs] = judge(Err(alone()), Some(Asset::Kernel));
        assert_eq!(initramfs.2, "unset KATA_KERNEL");
    }

    #[test]
    fn a_kernel_that_is_none_is_broken_and_says_why() {
        let refused = kata_image::kernel::Kernel::inspect("/proc/version");
        let error = AssetError::Kernel(refused.unwrap_err());
        let [kernel, initramfs] = boot_files(Err(error), |asset| asset == Asset::Kernel);
        assert_eq!(kernel.verdict, Verdict::Broken);
        assert_eq!(
            kernel.found,
            "/proc/version is no kernel that can be read: the file is neither an ELF kernel nor a bzImage"
        );
        assert_eq!(kernel.remedy.as_deref(), Some("unset KATA_KERNEL"));
        assert_eq!(initramfs.verdict, Verdict::Broken);
    }

    #[test]
    fn a_tap_takes_a_device_and_a_capability() {
        let judge = |opened: io::Result<()>, may_make| {
            let finding = tap(opened, may_make);
            (finding.verdict, finding.remedy.unwrap_or_default())
        };
        assert_eq!(judge(Ok(()), true), (Verdict::Works, String::new()));
        let (verdict, remedy) = judge(Ok(()), false);
        assert!(
            verdict == Verdict::Limited && remedy.contains("ip tuntap add"),
            "{remedy}"
        );
        let missing = judge(Err(io::ErrorKind::NotFound.into()), true);
        assert_eq!(missing, (Verdict::Limited, "sudo modprobe tun".into()));
        let (_, remedy) = judge(Err(io::ErrorKind::PermissionDenied.into()), true);
        assert!(remedy.contains("chmod"), "{remedy}");
    }

    #[test]
    fn cgroups_are_of_use_where_they_can_be_written() {
        let judge = |files: &[&str], kind: Option<io::ErrorKind>| {
            let root = tempfile::tempdir().unwrap();
            for file in files {
                let path = root.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            }
            let finding = cgroups(root.path(), |_| kind.map_or(Ok(()), |kind| Err(kind.into())));
            (finding.verdict, finding.remedy.unwrap_or_default())
        };
        let second = ["cgroup.controllers"];
        let works = (Verdict::Works, String::new());
        assert_eq!(judge(&second, None), works);
        assert_eq!(
            judge(&["memory/tasks", "unified/cgroup.controllers"], None),
            works
        );
        let (verdict, remedy) = judge(&["memory/tasks"], None);
        assert!(
            verdict == Verdict::Limited && remedy.contains("mount -t cgroup2"),
            "{remedy}"
        );
        let (verdict, remedy) = judge(&second, Some(io::ErrorKind::PermissionDenied));
        assert!(verdict == Verdict::Limited && remedy.contains("root"), "{remedy}");
        let (_, remedy) = judge(&second, Some(io::ErrorKind::ReadOnlyFilesystem));
        assert!(remedy.starts_with("sudo mount -o remount,rw "), "{remedy}");
    }

    #[test]
    fn little_memory_and_disk_are_said() {
        let verdict = |text: &str| memory(text).verdict;
        let remedy = |finding: Finding| finding.remedy.unwrap_or_default();
        assert!(remedy(memory("MemAvailable:   100000 kB\n")).contains("Container::memory"));
        assert!(remedy(disk(Path::new("/c"), &Ok(1 << 20))).contains("KATA_CACHE_DIR="));
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
        let broken = finding(KERNEL, Verdict::Broken, "it is not there", QUICKSTART);
        let examination = Examination {
            findings: vec![tap(Ok(()), true), broken],
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
