//! What goes wrong: everything that can die dies, everything that can be said wrong is, and nothing is
//! left behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "in a test program each of them is a failed test"
)]

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use harness::{DEADLINE, Guest, Monitor, Watch, guest, process, qemu, readable_within};
use kata_vmm::control::{Event, LaunchError, PROTOCOL, Request};
use kata_vmm::machine::{Accelerator, Boot, FdIndex, Hypervisor, VmExit};

fn launch_error(guest: &Guest) -> LaunchError {
    let monitor = Monitor::launch(guest);
    let Event::LaunchFailed(error) = monitor.event() else {
        panic!("not refused");
    };
    assert_eq!(monitor.ended().code(), Some(0));
    error
}

#[test]
fn a_killed_monitor_takes_the_machine_with_it() {
    for guest in [Some(process("wait")), qemu("wait")].into_iter().flatten() {
        let (mut monitor, running) = Monitor::running(&guest);
        let machine = Watch::new(running.pids[0]);
        monitor.process.kill().unwrap();
        assert!(machine.ends_within(DEADLINE), "{running:?} outlived its monitor");
    }
}

#[test]
fn a_killed_hypervisor_is_reported() {
    for guest in [Some(process("wait")), qemu("wait")].into_iter().flatten() {
        let (monitor, running) = Monitor::running(&guest);
        Watch::new(running.pids[0]).kill();
        let Event::Exited { reason, .. } = monitor.event() else {
            panic!("no exit");
        };
        let VmExit::HypervisorDied { code, signal, .. } = reason else {
            panic!("{reason:?}");
        };
        assert_eq!((code, signal), (None, Some(9)));
        assert_eq!(monitor.ended().code(), Some(0));
    }
}

#[test]
fn a_program_that_fails_is_not_a_power_off() {
    let (monitor, _) = Monitor::running(&process("panic"));
    let Event::Exited { reason, console_tail } = monitor.event() else {
        panic!("no exit");
    };
    assert_eq!(console_tail, "init: up\n");
    let expected = VmExit::HypervisorDied {
        code: Some(7),
        signal: None,
        stderr_tail: "init: up\n".to_owned(),
    };
    assert_eq!(reason, expected);
}

#[test]
fn a_kernel_panic_is_a_guest_reset_with_its_message() {
    let Some(guest) = qemu("panic") else { return };
    let (monitor, _) = Monitor::running(&guest);
    let Event::Exited { reason, console_tail } = monitor.event() else {
        panic!("no exit");
    };
    assert_eq!(reason, VmExit::GuestReset);
    assert!(
        console_tail.contains("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000700"),
        "{console_tail}"
    );
}

/// The kernel's command line decides it: without local timers a sleep never ends, and a kernel that
/// distrusts the timestamp counter is left with `refined-jiffies`.
#[test]
fn a_guest_has_timers_and_a_good_clock() {
    for vcpus in [1, 2] {
        let Some(mut guest) = qemu("clock") else { return };
        guest.machine.vcpus = vcpus;
        let (monitor, _) = Monitor::running(&guest);
        let Event::Exited { reason, console_tail } = monitor.event() else {
            panic!("no exit");
        };
        assert_eq!(reason, VmExit::PowerOff);
        assert!(console_tail.contains("init: slept by tsc"), "{console_tail}");
    }
}

#[test]
fn what_a_guest_sent_just_before_its_end_arrives() {
    let Some(guest) = qemu("last words") else { return };
    let (monitor, running) = Monitor::running(&guest);
    let machine = Watch::new(running.pids[0]);
    let mut stream = monitor.dialed(7);
    // More than the stream holds: the rest is in the device when the machine is gone.
    assert!(machine.ends_within(DEADLINE));
    let patience = Duration::from_millis(100);
    assert!(
        !readable_within(monitor.socket(), patience),
        "the end is told before the host has all"
    );
    let mut words = Vec::new();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.read_to_end(&mut words).unwrap();
    assert_eq!(words.len(), 384 << 10);
    let event = monitor.event();
    assert!(
        matches!(
            event,
            Event::Exited {
                reason: VmExit::PowerOff,
                ..
            }
        ),
        "{event:?}"
    );
}

#[test]
fn two_processors_and_sixteen_disks_run() {
    let Some(mut guest) = qemu("poweroff") else { return };
    guest.machine.vcpus = 2;
    guest.files.push(guest::file(&[0; 4096]));
    for number in 0..16 {
        guest.machine.disks.push(kata_vmm::machine::Disk {
            serial: format!("disk-{number}"),
            image: FdIndex(2),
            read_only: true,
        });
    }
    let (monitor, _) = Monitor::running(&guest);
    let event = monitor.event();
    assert!(
        matches!(
            event,
            Event::Exited {
                reason: VmExit::PowerOff,
                ..
            }
        ),
        "{event:?}"
    );
    guest.machine.disks[15].read_only = false;
    assert_eq!(
        launch_error(&guest).to_string(),
        "disk \"disk-15\" is not supported: its descriptor is not opened for reading and writing"
    );
    guest.machine.disks.push(guest.machine.disks[0].clone());
    guest.machine.disks[16].serial = "one-more".to_owned();
    assert_eq!(
        launch_error(&guest).to_string(),
        "17 disks and network cards is not supported: a microvm machine has at most 16"
    );
}

#[test]
fn a_missing_hypervisor_is_named() {
    let mut guest = process("wait");
    guest.machine.hypervisor = Hypervisor::Qemu {
        binary: PathBuf::from("/nonexistent/emulator"),
        accelerator: Accelerator::Tcg,
    };
    guest.machine.boot = Boot::Kernel {
        kernel: FdIndex(0),
        initramfs: FdIndex(1),
    };
    let expected = LaunchError::Spawn {
        program: "/nonexistent/emulator".to_owned(),
        cause: "No such file or directory (os error 2)".to_owned(),
    };
    assert_eq!(launch_error(&guest), expected);
}

#[test]
fn a_hypervisor_that_gives_up_says_why() {
    let Some(mut guest) = qemu("wait") else { return };
    // An empty kernel is none.
    guest.files[0] = guest::file(b"");
    let error = launch_error(&guest);
    let LaunchError::Ended {
        code: Some(1),
        stderr_tail,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert!(stderr_tail.contains("qemu"), "{stderr_tail}");
}

#[test]
fn a_boot_that_does_not_fit_the_hypervisor_is_refused() {
    let mut guest = process("wait");
    guest.machine.boot = Boot::Kernel {
        kernel: FdIndex(0),
        initramfs: FdIndex(1),
    };
    assert_eq!(
        launch_error(&guest).to_string(),
        "booting a kernel is not supported: the process backend has no machine"
    );
    let mut guest = process("wait");
    guest.machine.hypervisor = Hypervisor::Qemu {
        binary: PathBuf::from("/nonexistent/emulator"),
        accelerator: Accelerator::Tcg,
    };
    assert_eq!(
        launch_error(&guest).to_string(),
        "starting a program in place of a guest is not supported: this hypervisor boots a kernel"
    );
}

#[test]
fn a_first_message_that_is_not_a_launch_is_refused() {
    let half = format!("{{\"Launch\":{{\"protocol\":{PROTOCOL}}}}}");
    for message in ["not json", &half, "\"Console\""] {
        let monitor = Monitor::start();
        rustix::io::write(monitor.socket(), message.as_bytes()).unwrap();
        let event = monitor.event();
        let Event::LaunchFailed(LaunchError::Monitor { operation, .. }) = &event else {
            panic!("{event:?}");
        };
        assert_eq!(operation, "read the launch message");
        assert_eq!(monitor.ended().code(), Some(0));
    }
}

/// Conformance: semantics 23
#[test]
fn another_protocol_is_one_clear_error() {
    let monitor = Monitor::start();
    // A later version's machine is not understood, and need not be.
    let message = br#"{"Launch":{"protocol":77,"machine":{"from":"the future"}}}"#;
    rustix::io::write(monitor.socket(), message).unwrap();
    let Event::LaunchFailed(error) = monitor.event() else {
        panic!("not refused");
    };
    assert_eq!(
        error.to_string(),
        format!("monitor speaks control protocol {PROTOCOL}, the caller speaks 77")
    );
}

#[test]
fn a_broken_caller_loses_its_machine() {
    for message in [
        &b"not json"[..],
        b"{\"Connect\":{\"guest_port\":1,\"host_port\":2}}",
    ] {
        let (monitor, running) = Monitor::running(&process("wait"));
        let machine = Watch::new(running.pids[0]);
        rustix::io::write(monitor.socket(), message).unwrap();
        assert_eq!(monitor.received().map(|(event, _)| event), None);
        assert_eq!(monitor.ended().code(), Some(1));
        assert!(machine.ends_within(Duration::ZERO));
    }
}

#[test]
fn a_caller_that_leaves_before_the_launch_is_no_error() {
    let mut monitor = Monitor::start();
    monitor.leave();
    assert_eq!(monitor.ended().code(), Some(0));
}

#[test]
fn a_second_launch_is_refused() {
    let guest = process("wait");
    let (monitor, _) = Monitor::running(&guest);
    let request = Request::Launch {
        protocol: PROTOCOL,
        machine: Box::new(guest.machine.clone()),
    };
    let fds: Vec<_> = guest.files.iter().map(AsFd::as_fd).collect();
    monitor.socket().send(&request, &fds).unwrap();
    assert_eq!(monitor.ended().code(), Some(1));
}

#[test]
fn launches_leave_no_descriptors_and_no_processes() {
    // The harness is the caller here: a descriptor or child that a launch left would be its own.
    for guest in [Some(process("wait")), qemu("wait")].into_iter().flatten() {
        let mut machines = Vec::new();
        for _ in 0..20 {
            let (mut monitor, running) = Monitor::running(&guest);
            let before = open_files(monitor.process.id());
            machines.push(Watch::new(running.pids[0]));
            let stream = monitor.connect(1);
            drop(stream);
            monitor.socket().send(&Request::Console, &[]).unwrap();
            let console = monitor.event();
            assert!(matches!(console, Event::Console { .. }), "{console:?}");
            let grown: Vec<_> = open_files(monitor.process.id())
                .difference(&before)
                .cloned()
                .collect();
            assert!(grown.len() <= 1, "the monitor keeps {grown:?}");
            monitor.leave();
            assert_eq!(monitor.ended().code(), Some(0));
        }
        assert!(machines.iter().all(|machine| machine.ends_within(Duration::ZERO)));
    }
}

/// Numbers and targets of a process's descriptors.
fn open_files(pid: u32) -> BTreeSet<(String, PathBuf)> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().into_string().unwrap();
            Some((number, fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

#[test]
fn a_monitor_keeps_only_what_it_needs() {
    let (monitor, _) = Monitor::running(&process("wait"));
    let files = open_files(monitor.process.id());
    let images: Vec<_> = files
        .iter()
        .filter(|(_, target)| target.to_string_lossy().starts_with('/') && !target.starts_with("/dev"))
        .filter(|(number, _)| number.parse::<u32>().unwrap() > 2)
        .collect();
    assert!(images.is_empty(), "files of the machine stay open: {images:?}");
    assert!(!readable_within(monitor.socket(), Duration::ZERO));
}

#[test]
fn a_monitor_with_nothing_to_do_does_nothing() {
    let busy = |pid: u32| -> Duration {
        let schedstat = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
        Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
    };
    for guest in [Some(process("wait")), qemu("wait")].into_iter().flatten() {
        let (monitor, _) = Monitor::running(&guest);
        let before = busy(monitor.process.id());
        assert!(!readable_within(monitor.socket(), Duration::from_millis(500)));
        let used = busy(monitor.process.id()) - before;
        assert!(used < Duration::from_millis(50), "{used:?} of half a second");
    }
}
