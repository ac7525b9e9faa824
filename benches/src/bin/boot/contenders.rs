//! The monitors that are compared: how each boots one kernel with one initramfs, and how it tells what the
//! guest said.
//!
//! It owns their command lines. It must not know what is measured.

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kata_vmm::control::{Event, PROTOCOL, Request, Socket};
use kata_vmm::machine::{Boot, FdIndex, Hypervisor, Machine, MiB};

use crate::baseline::HELLO;

/// Memory of every guest.
pub(crate) const MEMORY_MIB: u32 = 128;

/// How often our monitor is asked for its console, which has no other way out.
const POLL: Duration = Duration::from_millis(1);

/// A guest that says nothing for so long never will.
const DEADLINE: Duration = Duration::from_secs(120);

/// The words of the guest's kernel: those that our monitor gives it, for all.
const WORDS: &str = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests initcall_blacklist=jent_mod_init \
                     noreplace-smp";

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
    child: Child,
    /// Closing it ends our monitor.
    _control: Option<Socket>,
}

impl Greeted {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Greeted {
    fn drop(&mut self) {
        // Both fail only when it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let console = child.stdout.take().ok_or("no console")?;
    let mut greeted = Greeted {
        after: Duration::ZERO,
        child,
        _control: None,
    };
    let mut said = String::new();
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if line.contains(HELLO) {
            greeted.after = begin.elapsed();
            return Ok(greeted);
        }
        said.push_str(&line);
        said.push('\n');
    }
    Err(format!("its guest did not say hello:\n{said}").into())
}

fn qemu(guest: &Guest) -> Vec<OsString> {
    let memory = MEMORY_MIB.to_string();
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
        WORDS,
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

fn firecracker(binary: &Path, guest: &Guest) -> Result<Greeted, Box<dyn Error>> {
    let configuration = serde_json::json!({
        "boot-source": {
            "kernel_image_path": guest.kernel,
            "initrd_path": guest.initramfs,
            "boot_args": WORDS,
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
    let (control, theirs) = Socket::pair()?;
    let child = Command::new(binary)
        .stdin(Stdio::from(theirs.into_fd()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut greeted = Greeted {
        after: Duration::ZERO,
        child,
        _control: None,
    };
    let files = [
        File::open(&guest.kernel)?,
        File::open(&guest.initramfs)?,
        File::options().read(true).write(true).open("/dev/kvm")?,
    ];
    let request = Request::Launch {
        protocol: PROTOCOL,
        machine: Box::new(machine()),
    };
    control.send(&request, &files.each_ref().map(AsFd::as_fd))?;
    while !says_hello(&control)? {
        if begin.elapsed() > DEADLINE {
            return Err("its guest did not say hello".into());
        }
        std::thread::sleep(POLL);
    }
    greeted.after = begin.elapsed();
    greeted._control = Some(control);
    Ok(greeted)
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
        nets: Vec::new(),
        guest_cid: 3,
        host_ports: Vec::new(),
        hypervisor: Hypervisor::Kvm,
        kvm: Some(FdIndex(2)),
    }
}

fn says_hello(control: &Socket) -> Result<bool, Box<dyn Error>> {
    control.send(&Request::Console, &[])?;
    loop {
        match control.recv::<Event>()?.ok_or("it ended without a word")?.0 {
            Event::Console { tail } => return Ok(tail.contains(HELLO)),
            Event::LaunchFailed(error) => return Err(Box::new(error)),
            Event::Exited { reason, console_tail } => {
                return Err(format!("its machine ended ({reason:?}):\n{console_tail}").into());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
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
}
