//! The machines that are compared: the same guest, disk and tap on each.
//!
//! It owns their configurations. It must not know what is measured.

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use benches::monitor::Monitor;
use kata_virtio::net::Tap;
use kata_vmm::machine::{Accelerator, Boot, Disk, FdIndex, Hypervisor, Machine, MachineInfo, MiB, Net};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::Guest;

/// Memory of every guest.
pub(crate) const MEMORY_MIB: u32 = 256;

/// Address of the guest's card.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Address of the guest's vsock.
const GUEST_CID: u32 = 3;

/// The words of every guest's kernel; our monitor gives its own besides.
const WORDS: &str = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests initcall_blacklist=jent_mod_init \
                     noreplace-smp 8250.nr_uarts=1 swiotlb=noforce pci=off initcall_blacklist=pci_arch_init";

/// A monitor with its devices.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    program: PathBuf,
    qemu: PathBuf,
}

/// What runs the machine, and whose devices it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Our monitor, our devices.
    Ours,
    /// QEMU, its devices; how it reads its image (`aio=` of qemu(1)).
    Qemu(&'static str),
    /// QEMU, our devices by vhost-user.
    VhostUser,
}

const ALL: [(&str, Kind); 4] = [
    ("kata-vmm", Kind::Ours),
    ("qemu aio=threads", Kind::Qemu("threads")),
    ("qemu aio=io_uring", Kind::Qemu("io_uring")),
    ("qemu vhost-user kata", Kind::VhostUser),
];

/// All of them; their programs are in the first of these directories that has them.
pub(crate) fn find(directories: &[PathBuf]) -> Result<Vec<Contender>, Box<dyn Error>> {
    let program = |name: &str| {
        let found = directories.iter().map(|directory| directory.join(name));
        let found = found.into_iter().find(|path| path.is_file());
        found.ok_or_else(|| format!("{name} is in none of {directories:?}"))
    };
    let (program, qemu) = (program("kata-vmm")?, program("qemu-system-x86_64")?);
    let contender = |(name, kind)| Contender {
        name,
        kind,
        program: program.clone(),
        qemu: qemu.clone(),
    };
    Ok(ALL.map(contender).into())
}

/// A machine that runs; dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Started {
    process: Process,
    pids: Vec<u32>,
    console: PathBuf,
}

#[derive(Debug)]
enum Process {
    Ours(Monitor),
    Qemu(Child),
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Self::Qemu(child) = self {
            // Both fail only when it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Started {
    /// Its processes.
    pub(crate) fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// What the guest said on its console, or why that is not known.
    pub(crate) fn console(&self) -> String {
        match &self.process {
            Process::Ours(monitor) => monitor.console().unwrap_or_else(|error| error.to_string()),
            Process::Qemu(_) => {
                let text = std::fs::read(&self.console).unwrap_or_default();
                String::from_utf8_lossy(&text).into_owned()
            }
        }
    }

    /// What our monitor counts.
    pub(crate) fn info(&self) -> Result<Option<MachineInfo>, Box<dyn Error>> {
        match &self.process {
            Process::Ours(monitor) => monitor.info().map(Some),
            Process::Qemu(_) => Ok(None),
        }
    }
}

impl Contender {
    /// Starts a machine with this disk and tap. `directory` is for its other files.
    pub(crate) fn start(
        &self,
        guest: &Guest,
        disk: &Path,
        tap: Tap,
        directory: &Path,
    ) -> Result<Started, Box<dyn Error>> {
        let tap = tap.into_fds().pop().ok_or("a tap without queues")?;
        let console = directory.join("console");
        let (process, pids) = match self.kind {
            Kind::Ours => self.ours(guest, disk, &tap, Hypervisor::Kvm)?,
            Kind::VhostUser => {
                let hypervisor = Hypervisor::Qemu {
                    binary: self.qemu.clone(),
                    accelerator: Accelerator::Kvm,
                };
                self.ours(guest, disk, &tap, hypervisor)?
            }
            Kind::Qemu(aio) => self.qemu(guest, disk, &tap, &console, aio)?,
        };
        Ok(Started {
            process,
            pids,
            console,
        })
    }

    fn ours(
        &self,
        guest: &Guest,
        disk: &Path,
        tap: &OwnedFd,
        hypervisor: Hypervisor,
    ) -> Result<(Process, Vec<u32>), Box<dyn Error>> {
        let files = [
            File::open(&guest.kernel)?,
            File::open(&guest.initramfs)?,
            File::options().read(true).write(true).open(disk)?,
            File::options().read(true).write(true).open("/dev/kvm")?,
        ];
        let mut descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        descriptors.push(tap.as_fd());
        let machine = machine(hypervisor);
        let monitor = Monitor::launch(&self.program, machine, &descriptors)?;
        let mut pids = vec![monitor.pid()];
        pids.extend(monitor.running()?.pids);
        Ok((Process::Ours(monitor), pids))
    }

    fn qemu(
        &self,
        guest: &Guest,
        disk: &Path,
        tap: &OwnedFd,
        console: &Path,
        aio: &str,
    ) -> Result<(Process, Vec<u32>), Box<dyn Error>> {
        // QEMU inherits it.
        fcntl_setfd(tap, FdFlags::empty())?;
        let memory = MEMORY_MIB.to_string();
        let drive = format!(
            "if=none,id=disk,format=raw,cache=writeback,aio={aio},file={}",
            disk.display()
        );
        let netdev = format!("tap,id=net,vhost=off,fd={}", tap.as_raw_fd());
        let serial = format!("file:{}", console.display());
        let vsock = format!("vhost-vsock-device,guest-cid={GUEST_CID}");
        let mut command = Command::new(&self.qemu);
        for (option, value) in [
            ("-M", "microvm,acpi=on,rtc=on,pic=off,pit=off,x-option-roms=off"),
            ("-global", "virtio-mmio.force-legacy=false"),
            ("-name", "bench,debug-threads=on"),
            ("-accel", "kvm"),
            ("-cpu", "host"),
            ("-smp", "1"),
            ("-m", &memory),
            ("-display", "none"),
            ("-serial", &serial),
            ("-drive", &drive),
            ("-device", "virtio-blk-device,drive=disk"),
            ("-netdev", &netdev),
            ("-device", "virtio-net-device,netdev=net,mac=02:00:00:00:00:01"),
            ("-device", &vsock),
            ("-append", WORDS),
        ] {
            command.args([option, value]);
        }
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.arg("-kernel").arg(&guest.kernel);
        command.arg("-initrd").arg(&guest.initramfs);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let pid = child.id();
        Ok((Process::Qemu(child), vec![pid]))
    }
}

/// The descriptors are kernel, initramfs, disk, KVM, tap.
fn machine(hypervisor: Hypervisor) -> Machine {
    Machine {
        name: "devices".to_owned(),
        vcpus: 1,
        memory: MiB(MEMORY_MIB),
        boot: Boot::Kernel {
            kernel: FdIndex(0),
            initramfs: FdIndex(1),
        },
        acpi: true,
        disks: vec![Disk {
            serial: "bench".to_owned(),
            image: FdIndex(2),
            read_only: false,
        }],
        shelf: None,
        nets: vec![Net {
            queues: vec![FdIndex(4)],
            mac: MAC,
            mtu: None,
        }],
        guest_cid: GUEST_CID,
        host_ports: Vec::new(),
        kvm: (hypervisor == Hypervisor::Kvm).then_some(FdIndex(3)),
        hypervisor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_need_both_programs() {
        let directory = tempfile::tempdir().unwrap();
        let directories = [directory.path().to_owned()];
        std::fs::write(directory.path().join("kata-vmm"), "").unwrap();
        assert!(find(&directories).is_err());
        std::fs::write(directory.path().join("qemu-system-x86_64"), "").unwrap();
        assert_eq!(find(&directories).unwrap().len(), ALL.len());
    }

    #[test]
    fn every_descriptor_that_the_machine_names_is_given() {
        let machine = machine(Hypervisor::Kvm);
        assert_eq!(machine.kvm, Some(FdIndex(3)));
        assert_eq!(
            (machine.disks[0].image, machine.nets[0].queues[0]),
            (FdIndex(2), FdIndex(4))
        );
    }
}
