//! The monitors that are compared: how each boots one kernel with one initramfs, and how it tells what the
//! guest said.
//!
//! It owns their command lines. It must not know what is measured.

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use benches::monitor::Monitor;
use kata_vmm::machine::{Boot, FdIndex, Hypervisor, Machine, MiB};

use crate::baseline::HELLO;

/// Memory of every guest.
pub(crate) const MEMORY_MIB: u32 = 128;

/// How often our monitor is asked for its console, which has no other way out.
const POLL: Duration = Duration::from_millis(1);

/// A guest that says nothing for so long never will.
const DEADLINE: Duration = Duration::from_secs(120);

/// The words of every guest's kernel. Our monitor adds words of its own for what its machine has not; the
/// machines of others are told the same as far as it is true of them.
const WORDS: &str = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests initcall_blacklist=jent_mod_init \
                     noreplace-smp 8250.nr_uarts=1 swiotlb=noforce";

/// For machines without PCI.
const NO_PCI: &str = "pci=off initcall_blacklist=pci_arch_init";

/// What Firecracker's documentation says of its keyboard controller, which is there for the reset.
const NO_KEYBOARD: &str = "i8042.noaux i8042.nomux i8042.dumbkbd";

/// What every guest boots.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// A monitor.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    binary: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Ours,
    Qemu,
    Firecracker,
    CloudHypervisor,
}

/// Their names, which are also those of their programs.
const KNOWN: &[(&str, Kind)] = &[
    ("kata-vmm", Kind::Ours),
    ("firecracker", Kind::Firecracker),
    ("cloud-hypervisor", Kind::CloudHypervisor),
    ("qemu-system-x86_64", Kind::Qemu),
];

/// A guest that said hello; dropped, its monitor is killed.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) after: Duration,
    process: Process,
}

#[derive(Debug)]
enum Process {
    Ours(Monitor),
    Other(Child),
}

impl Greeted {
    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Process::Ours(monitor) => monitor.pid(),
            Process::Other(child) => child.id(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Self::Other(child) = self {
            // Both fail only when it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Those whose programs are in one of the directories, the first that has it.
pub(crate) fn find(directories: &[PathBuf]) -> Vec<Contender> {
    let binary = |name: &str| {
        directories
            .iter()
            .map(|directory| directory.join(name))
            .find(|path| path.is_file())
    };
    KNOWN
        .iter()
        .filter_map(|(name, kind)| {
            Some(Contender {
                name,
                binary: binary(name)?,
                kind: *kind,
            })
        })
        .collect()
}

impl Contender {
    /// Boots the guest and waits for its first line of userspace.
    pub(crate) fn greet(&self, guest: &Guest) -> Result<Greeted, Box<dyn Error>> {
        let greeted = match self.kind {
            Kind::Ours => ours(&self.binary, guest),
            Kind::Qemu => listen(Command::new(&self.binary).args(qemu(guest))),
            Kind::CloudHypervisor => listen(Command::new(&self.binary).args(cloud_hypervisor(guest))),
            Kind::Firecracker => firecracker(&self.binary, guest),
        };
        greeted.map_err(|error| format!("{}: {error}", self.name).into())
    }
}

/// Starts a monitor whose standard output is the guest's console.
fn listen(command: &mut Command) -> Result<Greeted, Box<dyn Error>> {
    let complaints = tempfile::tempfile()?;
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints.try_clone()?)
        .spawn()?;
    let console = child.stdout.take().ok_or("no console")?;
    let process = Process::Other(child);
    let mut said = String::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if line.contains(HELLO) {
            return Ok(Greeted {
                after: begin.elapsed(),
                process,
            });
        }
        said.push_str(&line);
        said.push('\n');
    }
    drop(process);
    let mut complaints = complaints;
    complaints.rewind()?;
    complaints.read_to_string(&mut said)?;
    Err(format!("its guest did not say hello:\n{said}").into())
}

fn qemu(guest: &Guest) -> Vec<OsString> {
    let memory = MEMORY_MIB.to_string();
    let words = format!("{WORDS} {NO_PCI}");
    let words = [
        "-M",
        "microvm,acpi=on,rtc=on,pic=off,pit=off,x-option-roms=off",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
        &memory,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-append",
        &words,
        "-kernel",
    ];
    let mut words: Vec<OsString> = words.iter().map(OsString::from).collect();
    words.extend([
        guest.kernel.clone().into(),
        "-initrd".into(),
        guest.initramfs.clone().into(),
    ]);
    words
}

/// As its command line is documented (Cloud Hypervisor `docs/` and `--help`): a kernel with a PVH entry. The
/// virtual console is off, else it has the terminal.
fn cloud_hypervisor(guest: &Guest) -> Vec<OsString> {
    vec![
        "--kernel".into(),
        guest.kernel.clone().into(),
        "--initramfs".into(),
        guest.initramfs.clone().into(),
        "--cmdline".into(),
        WORDS.into(),
        "--cpus".into(),
        "boot=1".into(),
        "--memory".into(),
        format!("size={MEMORY_MIB}M").into(),
        "--serial".into(),
        "tty".into(),
        "--console".into(),
        "off".into(),
    ]
}

/// As its configuration file is documented (Firecracker `docs/getting-started.md`, and the schema of
/// `src/firecracker/swagger/firecracker.yaml`): the kernel is an uncompressed ELF, `drives` has to be there,
/// and without an API there is no socket that others could have. Its serial port is its standard output.
fn firecracker(binary: &Path, guest: &Guest) -> Result<Greeted, Box<dyn Error>> {
    let configuration = serde_json::json!({
        "boot-source": {
            "kernel_image_path": guest.kernel,
            "initrd_path": guest.initramfs,
            "boot_args": format!("{WORDS} {NO_PCI} {NO_KEYBOARD}"),
        },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
    });
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), serde_json::to_vec(&configuration)?)?;
    listen(
        Command::new(binary)
            .args(["--no-api", "--level", "Error", "--config-file"])
            .arg(file.path()),
    )
}

/// As the SDK starts it, with a machine that has no disk.
fn ours(binary: &Path, guest: &Guest) -> Result<Greeted, Box<dyn Error>> {
    let begin = Instant::now();
    let files = [
        File::open(&guest.kernel)?,
        File::open(&guest.initramfs)?,
        File::options().read(true).write(true).open("/dev/kvm")?,
    ];
    let monitor = Monitor::launch(binary, machine(), &files.each_ref().map(AsFd::as_fd))?;
    while !monitor.console()?.contains(HELLO) {
        if begin.elapsed() > DEADLINE {
            return Err("its guest did not say hello".into());
        }
        std::thread::sleep(POLL);
    }
    Ok(Greeted {
        after: begin.elapsed(),
        process: Process::Ours(monitor),
    })
}

fn machine() -> Machine {
    Machine {
        name: "boot".to_owned(),
        vcpus: 1,
        memory: MiB(MEMORY_MIB),
        boot: Boot::Kernel {
            kernel: FdIndex(0),
            initramfs: FdIndex(1),
        },
        acpi: true,
        disks: Vec::new(),
        shelf: None,
        nets: Vec::new(),
        guest_cid: 3,
        host_ports: Vec::new(),
        hypervisor: Hypervisor::Kvm,
        kvm: Some(FdIndex(2)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_contender_is_one_whose_program_is_there() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("firecracker"), "").unwrap();
        let found = find(&[directory.path().to_owned()]);
        assert_eq!(
            found.iter().map(|contender| contender.name).collect::<Vec<_>>(),
            ["firecracker"]
        );
    }

    #[test]
    fn a_console_without_a_hello_is_an_error_with_what_it_said() {
        let error = listen(Command::new("echo").arg("no init")).unwrap_err();
        assert_eq!(error.to_string(), "its guest did not say hello:\nno init\n");
    }
    #[test]
    fn what_a_monitor_complains_of_is_part_of_the_error() {
        let error = listen(Command::new("sh").args(["-c", "echo bad kernel >&2"])).unwrap_err();
        assert_eq!(error.to_string(), "its guest did not say hello:\nbad kernel\n");
    }

    /// A program of that name that notes its arguments and its configuration, and says what the guest would.
    fn stand_in(directory: &Path, name: &str) -> Contender {
        let path = directory.join(name);
        let script = format!(
            "#!/bin/sh\n\
             cd '{}' && printf '%s\\n' \"$@\" > words\n\
             for word in \"$@\"; do last=$word; done\n\
             if [ -f \"$last\" ]; then cp \"$last\" configuration; fi\n\
             echo '{HELLO}'\n",
            directory.display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = find(&[directory.to_owned()]);
        found
            .into_iter()
            .find(|contender| contender.name == name)
            .unwrap()
    }

    fn greeted_words(directory: &Path, contender: &Contender) -> Vec<String> {
        let guest = Guest {
            kernel: "/guest/vmlinux".into(),
            initramfs: "/guest/initramfs.cpio".into(),
        };
        // A script that was written a moment ago may still be open in a child of another test.
        let greeted = std::iter::repeat_with(|| contender.greet(&guest))
            .take(100)
            .find(|greeted| match greeted {
                Err(error) => !error.to_string().contains("Text file busy"),
                Ok(_) => true,
            });
        let greeted = greeted.unwrap().unwrap();
        assert!(greeted.pid() > 0 && greeted.after > Duration::ZERO);
        let words = std::fs::read_to_string(directory.join("words")).unwrap();
        words.lines().map(str::to_owned).collect()
    }

    /// `BootSource` of Firecracker's swagger.
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct BootSource {
        kernel_image_path: PathBuf,
        initrd_path: Option<PathBuf>,
        boot_args: Option<String>,
    }

    /// As much of its `MachineConfiguration` as has no default, and one that may be there.
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct MachineConfiguration {
        vcpu_count: u8,
        mem_size_mib: u32,
        #[serde(default)]
        smt: bool,
    }

    /// The parts of a configuration file that a machine without network and vsock may have.
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    struct Configuration {
        boot_source: BootSource,
        drives: Vec<serde_json::Value>,
        machine_config: MachineConfiguration,
    }

    #[test]
    fn firecracker_gets_a_configuration_of_its_schema() {
        let directory = tempfile::tempdir().unwrap();
        let contender = stand_in(directory.path(), "firecracker");
        let words = greeted_words(directory.path(), &contender);
        assert_eq!(
            words[..words.len() - 1],
            ["--no-api", "--level", "Error", "--config-file"]
        );
        let bytes = std::fs::read(directory.path().join("configuration")).unwrap();
        let configuration: Configuration = serde_json::from_slice(&bytes).unwrap();
        let boot = configuration.boot_source;
        assert_eq!(boot.kernel_image_path, Path::new("/guest/vmlinux"));
        assert_eq!(
            boot.initrd_path.as_deref(),
            Some(Path::new("/guest/initramfs.cpio"))
        );
        assert!(boot.boot_args.unwrap().starts_with("console=ttyS0 "));
        assert!(configuration.drives.is_empty());
        let machine = configuration.machine_config;
        assert_eq!(
            (machine.vcpu_count, machine.mem_size_mib, machine.smt),
            (1, MEMORY_MIB, false)
        );
    }

    #[test]
    fn cloud_hypervisor_gets_options_that_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let contender = stand_in(directory.path(), "cloud-hypervisor");
        let words = greeted_words(directory.path(), &contender);
        let pairs: Vec<_> = words
            .chunks(2)
            .map(|pair| (pair[0].as_str(), pair[1].as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("--kernel", "/guest/vmlinux"),
                ("--initramfs", "/guest/initramfs.cpio"),
                ("--cmdline", WORDS),
                ("--cpus", "boot=1"),
                ("--memory", "size=128M"),
                ("--serial", "tty"),
                ("--console", "off"),
            ]
        );
    }
}
