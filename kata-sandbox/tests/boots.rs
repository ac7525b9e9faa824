//! What our own machine boots: kernels in every form, with and without ACPI, as many processors as there can be, and
//! more memory than fits below the devices.
//!
//! The first tests speak to the monitor itself, since the SDK has no words for such machines.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in a test program each of them is a failed test"
)]

mod bed;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bed::{Bed, patience, text};
use kata_agent_proto::port;
use kata_image::guest::{Asset, Set};
use kata_image::kernel::{Ability, Feature, Kernel};
use kata_sandbox::{MiB, Sandbox};
use kata_vmm::control::{Event, PROTOCOL, Request, Socket};
use kata_vmm::machine::{Boot, FdIndex, Hypervisor, Machine};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a guest may take to its agent's first word.
const BOOT: Duration = Duration::from_secs(60);

mod bodies {
    use super::*;

    /// The usual form: an ELF with notes of Linux, which is entered in 64-bit mode.
    pub(super) async fn an_elf_kernel_boots(_: Bed) {
        assert_greets(guest(open(&kernel())));
    }

    pub(super) async fn an_elf_kernel_boots_by_its_pvh_entry(_: Bed) {
        assert_greets(guest(without_notes_of_linux(&kernel())));
    }

    pub(super) async fn a_bzimage_boots(_: Bed) {
        let Some(image) = std::env::var_os("KATA_TEST_BZIMAGE") else {
            bed::skip(
                "kvm::a_bzimage_boots",
                "KATA_TEST_BZIMAGE names no bzImage; run `cargo xtask test`",
            );
            return;
        };
        let initramfs = Set::Distribution
            .directory()
            .unwrap()
            .join(Asset::Initramfs.file_name());
        assert_greets(Guest {
            initramfs: open(&initramfs),
            ..guest(open(Path::new(&image)))
        });
    }

    pub(super) async fn a_kernel_finds_everything_without_acpi(_: Bed) {
        let known = Kernel::inspect(kernel()).unwrap();
        if known.ability(Feature::VirtioMmioCommandLine) != Ability::BuiltIn {
            // The distribution's; the tailored one does, and runs this in every suite.
            eprintln!(
                "SKIPPED kvm::a_kernel_finds_everything_without_acpi: optional: this kernel takes no devices \
                 from its command line"
            );
            return;
        }
        for kernel in [open(&kernel()), without_notes_of_linux(&kernel())] {
            assert_greets(Guest {
                acpi: false,
                ..guest(kernel)
            });
        }
    }

    pub(super) async fn it_has_as_many_processors_as_a_machine_can_have(bed: Bed) {
        let container = bed.shell("nproc; grep -c ^processor /proc/cpuinfo").vcpus(32);
        let container = container.boot_timeout(crate::bed::DEADLINE * patience());
        let output = Sandbox::run(container).await.unwrap();
        assert_eq!(text(&output), "32\n32");
    }

    /// Three GiB are below the devices. Linux gives out the upper memory first.
    pub(super) async fn memory_goes_on_above_the_devices(bed: Bed) {
        const BYTES: u64 = 32 << 20;
        let script = format!(
            "grep MemTotal /proc/meminfo; head -c {BYTES} /dev/zero | tr '\\0' x > /file; \
             tr -d x < /file | wc -c; wc -c < /file"
        );
        let output = Sandbox::run(bed.shell(&script).memory(MiB(4608))).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = text(&output);
        let (total, file) = text.split_once('\n').unwrap_or_else(|| panic!("{output:?}"));
        let kib: String = total.chars().filter(char::is_ascii_digit).collect();
        assert!(
            ((4 << 20)..(4608 << 10)).contains(&kib.parse::<u64>().unwrap()),
            "{text}"
        );
        let numbers: Vec<&str> = file.split_whitespace().collect();
        assert_eq!(numbers, ["0", &BYTES.to_string()], "{text}");
    }
}

on_these_backends! {
    [crate::bed::DEADLINE;
        an_elf_kernel_boots
        an_elf_kernel_boots_by_its_pvh_entry
        a_bzimage_boots
        a_kernel_finds_everything_without_acpi
        it_has_as_many_processors_as_a_machine_can_have
        memory_goes_on_above_the_devices];
    kvm
}

/// A machine that is different from others in how it boots.
struct Guest {
    kernel: File,
    initramfs: File,
    acpi: bool,
}

/// The usual machine around a kernel, with the initramfs of the tests' kernel.
fn guest(kernel: File) -> Guest {
    let initramfs = self::kernel().with_file_name(Asset::Initramfs.file_name());
    Guest {
        kernel,
        initramfs: open(&initramfs),
        acpi: true,
    }
}

/// The kernel of the tests.
fn kernel() -> PathBuf {
    let path = std::env::var_os("KATA_KERNEL").expect("KATA_KERNEL names the kernel; run `cargo xtask test`");
    path.into()
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

/// A copy of a kernel whose notes do not say that it is Linux: it is entered as PVH says.
fn without_notes_of_linux(kernel: &Path) -> File {
    /// A note's owner (System V ABI, "Note Section"): the bytes of its name, two more numbers, the name.
    const OWNER: &[u8] = b"Linux\0";
    let mut image = fs::read(kernel).unwrap();
    let notes: Vec<usize> = (0..image.len() - 12 - OWNER.len())
        .filter(|at| image[*at..].starts_with(&6u32.to_le_bytes()) && image[at + 12..].starts_with(OWNER))
        .collect();
    assert!(!notes.is_empty(), "no note of Linux");
    for at in notes {
        image[at + 12] = b'l';
    }
    let mut copy = tempfile::tempfile().unwrap();
    copy.write_all(&image).unwrap();
    copy
}

/// A monitor that is killed with the test.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        // Both fail only when it is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots it and waits until the agent in it has found its devices, loaded what it needs, and dials the host.
fn assert_greets(guest: Guest) {
    let (control, theirs) = Socket::pair().unwrap();
    let monitor = std::env::var_os("KATA_VMM").expect("KATA_VMM names the monitor; run `cargo xtask test`");
    let child = Command::new(monitor)
        .stdin(Stdio::from(theirs.into_fd()))
        .spawn()
        .unwrap();
    let _monitor = Monitor(child);
    let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
    let request = Request::Launch {
        protocol: PROTOCOL,
        machine: Box::new(machine(guest.acpi)),
    };
    let files = [&guest.kernel, &guest.initramfs, &kvm].map(AsFd::as_fd);
    control.send(&request, &files).unwrap();
    let deadline = Instant::now() + BOOT * patience();
    loop {
        let event = next(&control, deadline);
        match event {
            Event::Hello { .. } | Event::Launched(_) => {}
            Event::Dialed { host_port } if host_port == port::HELLO => return,
            other => panic!("{other:?}"),
        }
    }
}

fn machine(acpi: bool) -> Machine {
    Machine {
        name: "boots".to_owned(),
        vcpus: 2,
        memory: MiB(256),
        boot: Boot::Kernel {
            kernel: FdIndex(0),
            initramfs: FdIndex(1),
        },
        acpi,
        disks: Vec::new(),
        shelf: None,
        nets: Vec::new(),
        guest_cid: 3,
        host_ports: vec![port::HELLO],
        hypervisor: Hypervisor::Kvm,
        kvm: Some(FdIndex(2)),
    }
}

/// The monitor's next word; when there is none in time, what the guest said so far.
fn next(control: &Socket, deadline: Instant) -> Event {
    let readable = |until: Instant| {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(control, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::try_from(left).unwrap())).unwrap() > 0
    };
    if !readable(deadline) {
        control.send(&Request::Console, &[]).unwrap();
        assert!(
            readable(Instant::now() + BOOT),
            "neither guest nor monitor answers"
        );
        let said = control.recv::<Event>().unwrap();
        panic!("it has not come up in time: {said:?}");
    }
    let (event, _stream) = control.recv::<Event>().unwrap().expect("the monitor has left");
    event
}
