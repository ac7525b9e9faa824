//! QEMU's command line for a machine.
//!
//! Owns every word of it, and of the guest kernel's. Pure: descriptors are numbers here, opened and
//! inherited elsewhere. Nothing on it comes from a caller but numbers, checked serials and a cleaned name.

use std::ffi::OsString;
use std::os::fd::RawFd;

use crate::machine::{Accelerator, Machine, Net};

/// Everything that the command line says.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Processors, memory, disks, name.
    pub(super) machine: &'a Machine,
    /// How guest instructions run.
    pub(super) accelerator: Accelerator,
    /// The frequency of the counter that a guest in software sees, in kHz; `None` on KVM, whose guests
    /// are told by kvm-clock.
    pub(super) timestamp_counter_khz: Option<u64>,
    /// The descriptor of the guest's memory.
    pub(super) memory: RawFd,
    /// The kernel's descriptor.
    pub(super) kernel: RawFd,
    /// The initramfs's.
    pub(super) initramfs: RawFd,
    /// QEMU's ends of the disks' vhost-user connections, in the machine's order; the shelf's is the last.
    pub(super) disks: Vec<RawFd>,
    /// Places of the sockets that it connects to for the network cards, in the machine's order.
    pub(super) nets: Vec<RawFd>,
    /// QEMU's end of the QMP connection.
    pub(super) qmp: RawFd,
    /// Where the serial console is written.
    pub(super) console: RawFd,
    /// QEMU's end of the vsock device's vhost-user connection.
    pub(super) vsock: RawFd,
}

/// The arguments, without the program's name.
pub(super) fn arguments(plan: &Plan<'_>) -> Vec<OsString> {
    let mut line = Line::default();
    machine(&mut line, plan);
    let Plan {
        qmp, console, vsock, ..
    } = plan;
    line.add("-chardev", format!("socket,id=qmp,fd={qmp}"));
    line.add("-mon", "chardev=qmp,mode=control");
    line.add("-chardev", format!("socket,id=console,fd={console}"));
    line.add("-serial", "chardev:console");
    line.add("-chardev", format!("socket,id=vsock,fd={vsock}"));
    line.add("-device", "vhost-user-vsock-device,chardev=vsock");
    for (number, disk) in plan.disks.iter().enumerate() {
        let is_shelf = number == plan.machine.disks.len();
        block(
            &mut line,
            number,
            *disk,
            if is_shelf { 1 } else { plan.machine.vcpus },
        );
    }
    for (number, (fd, net)) in plan.nets.iter().zip(&plan.machine.nets).enumerate() {
        card(&mut line, number, *fd, net);
    }
    line.add("-kernel", format!("/proc/self/fd/{}", plan.kernel));
    line.add("-initrd", format!("/proc/self/fd/{}", plan.initramfs));
    line.add("-append", kernel_words(plan).join(" "));
    line.0
}

fn machine(line: &mut Line, plan: &Plan<'_>) {
    let Machine {
        vcpus, memory, name, ..
    } = plan.machine;
    line.add("-name", format!("kata-{},debug-threads=on", cleaned(name)));
    // acpi: virtio-mmio devices are found by kernels without VIRTIO_MMIO_CMDLINE_DEVICES, and a guest can
    //   power itself off.
    // rtc: a kernel waits a whole second for a clock chip that is not there.
    // pic, pit, x-option-roms: nothing uses them, and a guest in software pays for each.
    line.add(
        "-machine",
        "microvm,acpi=on,rtc=on,pic=off,pit=off,x-option-roms=off,memory-backend=mem",
    );
    match plan.accelerator {
        Accelerator::Kvm => line.add("-accel", "kvm").add("-cpu", "host"),
        // The cache of translated code is bounded (MiB): by default it may grow to an eighth of the host.
        // Processors take turns on one thread: with a thread for each, QEMU before 8.1 now and then runs what
        // another processor has just patched away, and the kernel dies of a breakpoint that is not there.
        Accelerator::Tcg => line
            .add("-accel", "tcg,thread=single,tb-size=128")
            .add("-cpu", "max"),
    };
    line.add("-smp", vcpus.to_string());
    line.add("-m", format!("{}M", memory.0));
    // A file of ours: one that QEMU makes has pages of 4 KiB. Shared, so that devices in other processes see it;
    // aligned, so that large pages can be mapped.
    let file = format!("mem-path=/proc/self/fd/{}", plan.memory);
    line.add(
        "-object",
        format!(
            "memory-backend-file,id=mem,size={}M,{file},share=on,align=2M",
            memory.0
        ),
    );
    // Without it QEMU's virtio-mmio is the draft before VIRTIO 1.0.
    line.add("-global", "virtio-mmio.force-legacy=false");
    line.flag("-nodefaults").flag("-no-user-config");
    // A reset ends the machine and is reported.
    line.flag("-no-reboot");
    line.add("-display", "none");
    // Starts stopped: nothing runs before the machine is watched.
    line.flag("-S");
}

/// Serial, size and whether it can be written are the device's to tell.
fn block(line: &mut Line, number: usize, fd: RawFd, queues: u8) {
    line.add("-chardev", format!("socket,id=disk{number},fd={fd}"));
    line.add(
        "-device",
        format!("vhost-user-blk,chardev=disk{number},num-queues={queues},queue-size=256"),
    );
}

fn card(line: &mut Line, number: usize, fd: RawFd, net: &Net) {
    let queues = net.queues.len();
    let mq = if queues > 1 { "on" } else { "off" };
    line.add(
        "-chardev",
        format!("socket,id=net{number},path=/proc/self/fd/{fd}"),
    );
    line.add(
        "-netdev",
        format!("vhost-user,id=tap{number},chardev=net{number},queues={queues}"),
    );
    let mtu = net.mtu.map_or(String::new(), |mtu| format!(",host_mtu={mtu}"));
    line.add(
        "-device",
        format!(
            "virtio-net-device,netdev=tap{number},mac={},mq={mq}{mtu}",
            net.address()
        ),
    );
}

/// The guest kernel's command line: fixed words and one number. Configuration does not travel here.
fn kernel_words(plan: &Plan<'_>) -> Vec<String> {
    let mut words = vec![
        "console=ttyS0",
        // Every character of the console is an exit.
        "quiet",
        // A panic resets at once, and the quickest reset is a triple fault: QEMU reports it and ends.
        "panic=-1",
        "reboot=t",
        // The self-tests of Debian's built-in ciphers are as long as half of the rest of its boot.
        "cryptomgr.notests",
        // And measuring the processor's jitter, for a random number generator of the kernel's own ciphers
        // that has better sources, is a fifth of the rest.
        "initcall_blacklist=jent_mod_init",
        // A kernel with the dummy network card built in has one from the start, which nobody asked for.
        "dummy.numdummies=0",
    ];
    if plan.machine.vcpus == 1 {
        // Nothing to patch out of the locks of a single processor.
        words.push("noreplace-smp");
    }
    if plan.accelerator == Accelerator::Tcg {
        // A check of timer interrupts that KVM guests leave out by themselves.
        words.push("no_timer_check");
        // Not `noapictimer`, which saves a tenth of a second of calibration: the local timers are the only
        // ones, and without them nothing in the guest that sleeps ever wakes.
        // The only other clock loses ticks on a loaded host. A kernel that compares the two takes the good
        // one for bad, and is left with a clock that is slow and has a resolution of 4 ms.
        words.push("tsc=reliable");
        // CMPXCHG16B of QEMU before 8.0 leaves an operand where the flags should be. An interrupt right behind it
        // returns with them, and the kernel allocates memory with it. Programs of the guest still have it.
        words.push("clearcpuid=cx16");
    }
    let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    if let Some(khz) = plan.timestamp_counter_khz {
        words.push(format!("tsc_early_khz={khz}"));
    }
    words
}

/// What of a name may stand on a command line: QEMU gives commas a meaning.
fn cleaned(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .take(64)
        .collect()
}

#[derive(Debug, Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn add(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::machine::{Boot, Disk, FdIndex, Hypervisor, MiB};

    fn machine(vcpus: u8, disks: Vec<Disk>) -> Machine {
        Machine {
            name: "web,accel=kvm -S\"1".to_owned(),
            vcpus,
            memory: MiB(128),
            boot: Boot::Kernel {
                kernel: FdIndex(0),
                initramfs: FdIndex(1),
            },
            acpi: true,
            disks,
            shelf: Some("shelf".to_owned()),
            nets: vec![Net {
                queues: vec![FdIndex(3); 2],
                mac: [2, 0, 0, 0, 0, 1],
                mtu: Some(1400),
            }],
            guest_cid: 3,
            host_ports: Vec::new(),
            hypervisor: Hypervisor::Qemu {
                binary: PathBuf::from("/usr/bin/qemu-system-x86_64"),
                accelerator: Accelerator::Tcg,
            },
            kvm: None,
        }
    }

    fn check(machine: &Machine, accelerator: Accelerator, disks: Vec<RawFd>, expected: &str) {
        let plan = Plan {
            machine,
            accelerator,
            timestamp_counter_khz: (accelerator == Accelerator::Tcg).then_some(2_596_124),
            memory: 15,
            kernel: 10,
            initramfs: 11,
            disks,
            nets: Vec::new(),
            qmp: 12,
            console: 13,
            vsock: 14,
        };
        let line: Vec<String> = arguments(&plan)
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        // One option a line, as one reads it.
        assert_eq!(line.join(" ").replace(" -", "\n-"), expected);
    }

    #[test]
    fn one_processor_in_software() {
        check(
            &machine(1, Vec::new()),
            Accelerator::Tcg,
            Vec::new(),
            "\
-name kata-webaccelkvm-S1,debug-threads=on
-machine microvm,acpi=on,rtc=on,pic=off,pit=off,x-option-roms=off,memory-backend=mem
-accel tcg,thread=single,tb-size=128
-cpu max
-smp 1
-m 128M
-object memory-backend-file,id=mem,size=128M,mem-path=/proc/self/fd/15,share=on,align=2M
-global virtio-mmio.force-legacy=false
-nodefaults
-no-user-config
-no-reboot
-display none
-S
-chardev socket,id=qmp,fd=12
-mon chardev=qmp,mode=control
-chardev socket,id=console,fd=13
-serial chardev:console
-chardev socket,id=vsock,fd=14
-device vhost-user-vsock-device,chardev=vsock
-kernel /proc/self/fd/10
-initrd /proc/self/fd/11
-append console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests initcall_blacklist=jent_mod_init dummy.numdummies=0 \
noreplace-smp no_timer_check tsc=reliable clearcpuid=cx16 tsc_early_khz=2596124",
        );
    }

    #[test]
    fn two_processors_with_hardware_virtualization_and_disks() {
        let disk = |serial: &str, read_only| Disk {
            serial: serial.to_owned(),
            image: FdIndex(2),
            read_only,
        };
        check(
            &machine(2, vec![disk("rootfs", true), disk("scratch", false)]),
            Accelerator::Kvm,
            vec![20, 21, 22],
            "\
-name kata-webaccelkvm-S1,debug-threads=on
-machine microvm,acpi=on,rtc=on,pic=off,pit=off,x-option-roms=off,memory-backend=mem
-accel kvm
-cpu host
-smp 2
-m 128M
-object memory-backend-file,id=mem,size=128M,mem-path=/proc/self/fd/15,share=on,align=2M
-global virtio-mmio.force-legacy=false
-nodefaults
-no-user-config
-no-reboot
-display none
-S
-chardev socket,id=qmp,fd=12
-mon chardev=qmp,mode=control
-chardev socket,id=console,fd=13
-serial chardev:console
-chardev socket,id=vsock,fd=14
-device vhost-user-vsock-device,chardev=vsock
-chardev socket,id=disk0,fd=20
-device vhost-user-blk,chardev=disk0,num-queues=2,queue-size=256
-chardev socket,id=disk1,fd=21
-device vhost-user-blk,chardev=disk1,num-queues=2,queue-size=256
-chardev socket,id=disk2,fd=22
-device vhost-user-blk,chardev=disk2,num-queues=1,queue-size=256
-kernel /proc/self/fd/10
-initrd /proc/self/fd/11
-append console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests initcall_blacklist=jent_mod_init dummy.numdummies=0",
        );
    }

    #[test]
    fn a_network_card_is_ours_over_vhost_user() {
        let machine = machine(1, Vec::new());
        let mut line = Line::default();
        card(&mut line, 0, 15, &machine.nets[0]);
        let line: Vec<_> = line.0.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(
            line.join(" ").replace(" -", "\n-"),
            "\
-chardev socket,id=net0,path=/proc/self/fd/15
-netdev vhost-user,id=tap0,chardev=net0,queues=2
-device virtio-net-device,netdev=tap0,mac=02:00:00:00:00:01,mq=on,host_mtu=1400"
        );
    }

    #[test]
    fn one_processor_with_hardware_and_two_in_software_differ_in_the_kernel_words() {
        let words = |vcpus, accelerator, khz| {
            let machine = machine(vcpus, Vec::new());
            let plan = Plan {
                machine: &machine,
                accelerator,
                timestamp_counter_khz: khz,
                memory: 15,
                kernel: 10,
                initramfs: 11,
                disks: Vec::new(),
                nets: Vec::new(),
                qmp: 12,
                console: 13,
                vsock: 14,
            };
            kernel_words(&plan).join(" ")
        };
        let common = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests initcall_blacklist=jent_mod_init dummy.numdummies=0";
        assert_eq!(
            words(1, Accelerator::Kvm, None),
            format!("{common} noreplace-smp")
        );
        assert_eq!(
            words(2, Accelerator::Tcg, Some(2_000_000)),
            format!("{common} no_timer_check tsc=reliable clearcpuid=cx16 tsc_early_khz=2000000")
        );
    }
}
