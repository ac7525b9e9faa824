//! One test body over every backend: what a caller of the monitor may rely on whatever runs the machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "in a test program each of them is a failed test"
)]

mod harness;

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use harness::{DEADLINE, Guest, Monitor, Watch, process, qemu, readable_within};
use kata_vmm::control::{Event, Request};
use kata_vmm::machine::VmExit;

/// A body, for each backend that can run here.
macro_rules! on_every_backend {
    ($($body:ident($mode:literal);)*) => {
        mod on_process { $(
            #[test]
            fn $body() {
                super::$body(&super::process($mode));
            }
        )* }
        mod on_qemu { $(
            #[test]
            fn $body() {
                if let Some(guest) = super::qemu($mode) {
                    super::$body(&guest);
                }
            }
        )* }
    };
}

on_every_backend! {
    a_guest_that_powers_off_is_reported("poweroff");
    a_guest_is_killed_when_the_caller_leaves("wait");
    the_console_can_be_read_while_the_guest_runs("wait");
    the_console_can_be_followed("wait");
    a_machine_killed_at_once_leaves_nothing("wait");
    streams_go_both_ways("vsock");
    extents_come_and_go("wait");
    a_machine_without_a_shelf_takes_no_extent("wait");
}

fn a_guest_that_powers_off_is_reported(guest: &Guest) {
    let (monitor, running) = Monitor::running(guest);
    assert_eq!(running.pids.len(), 1);
    assert!(
        !running.version.is_empty() && running.launch_time < DEADLINE,
        "{running:?}"
    );
    let process = Watch::new(running.pids[0]);
    let Event::Exited { reason, console_tail } = monitor.event() else {
        panic!("no exit");
    };
    assert_eq!(reason, VmExit::PowerOff);
    assert!(console_tail.contains("init: up"), "{console_tail}");
    assert!(process.ends_within(DEADLINE));
    assert_eq!(monitor.ended().code(), Some(0));
}

fn a_guest_is_killed_when_the_caller_leaves(guest: &Guest) {
    let (mut monitor, running) = Monitor::running(guest);
    let process = Watch::new(running.pids[0]);
    monitor.leave();
    assert_eq!(monitor.ended().code(), Some(0));
    assert!(
        process.ends_within(Duration::ZERO),
        "the machine outlived its monitor"
    );
}

fn the_console_can_be_read_while_the_guest_runs(guest: &Guest) {
    let (monitor, _) = Monitor::running(guest);
    let deadline = Instant::now() + DEADLINE;
    loop {
        monitor.socket().send(&Request::Console, &[]).unwrap();
        match monitor.event() {
            Event::Console { tail } if tail.contains("init: up") => return,
            Event::Console { .. } => assert!(Instant::now() < deadline, "no console"),
            other => panic!("{other:?}"),
        }
    }
}

fn the_console_can_be_followed(guest: &Guest) {
    let (monitor, _) = Monitor::running(guest);
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    monitor
        .socket()
        .send(&Request::FollowConsole, &[theirs.as_fd()])
        .unwrap();
    drop(theirs);
    let (mut heard, mut message) = (Vec::new(), vec![0; 64 << 10]);
    while !String::from_utf8_lossy(&heard).contains("init: up") {
        assert!(readable_within(&ours, DEADLINE), "no console");
        let count = rustix::io::read(&ours, &mut message).unwrap();
        assert!(count > 8, "it ended: {}", String::from_utf8_lossy(&heard));
        let position = u64::from_le_bytes(message[..8].try_into().unwrap());
        assert_eq!(position, heard.len() as u64, "nothing is left out");
        heard.extend_from_slice(&message[8..count]);
    }
}

/// During boot: nothing has been said by the guest yet.
fn a_machine_killed_at_once_leaves_nothing(guest: &Guest) {
    let mut monitor = Monitor::launch(guest);
    monitor.leave();
    assert_eq!(monitor.ended().code(), Some(0));
}

fn streams_go_both_ways(guest: &Guest) {
    const BYTES: usize = 4 << 20;
    let (monitor, _) = Monitor::running(guest);
    // It dialed port 9 before, which is not among the machine's.
    drop(monitor.dialed(8));
    let mut stream = monitor.connect(1024);
    let mut writer = stream.try_clone().unwrap();
    let written: Vec<u8> = (0..BYTES).map(|at| (at * 7 + at / 251) as u8).collect();
    let copy = written.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut echoed = Vec::new();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.read_to_end(&mut echoed).unwrap();
    writing.join().unwrap();
    assert!(echoed == written, "{} bytes of {BYTES} came back", echoed.len());

    let mut dialed = monitor.dialed(7);
    let mut hello = [0; 6];
    dialed.set_read_timeout(Some(DEADLINE)).unwrap();
    dialed.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello\n");
    dialed.write_all(b"poweroff").unwrap();
    dialed.shutdown(Shutdown::Write).unwrap();
    let Event::Exited { reason, .. } = monitor.event() else {
        panic!("no exit");
    };
    assert_eq!(reason, VmExit::PowerOff);
    assert_eq!(monitor.ended().code(), Some(0));
}

/// The answer to a request of an extent.
fn asked(monitor: &Monitor, request: &Request, file: Option<&OwnedFd>) -> Event {
    let files: Vec<_> = file.into_iter().map(AsFd::as_fd).collect();
    monitor.socket().send(request, &files).unwrap();
    monitor.event()
}

fn reason(event: Event) -> String {
    match event {
        Event::Refused { operation, reason } => format!("{operation}: {reason}"),
        other => panic!("not refused: {other:?}"),
    }
}

fn extents_come_and_go(guest: &Guest) {
    let mut with = Guest {
        machine: guest.machine.clone(),
        files: guest.files.iter().map(|file| file.try_clone().unwrap()).collect(),
    };
    with.machine.shelf = Some("shelf".to_owned());
    let (monitor, _) = Monitor::running(&with);
    let file = harness::guest::file(&[7; 4100]);
    let added = asked(&monitor, &Request::AddExtent, Some(&file));
    let expected = |offset| Event::ExtentAdded { offset, bytes: 4096 };
    assert_eq!(added, expected(1 << 20));
    assert_eq!(
        asked(&monitor, &Request::AddExtent, Some(&file)),
        expected(2 << 20)
    );
    let figures = || {
        let Event::Info(info) = asked(&monitor, &Request::Info, None) else {
            panic!("no figures");
        };
        let shelf = info
            .devices
            .into_iter()
            .find(|device| device.name == "block shelf");
        shelf.map(|shelf| (shelf.figures["extents"], shelf.figures["extent_bytes"]))
    };
    // Without a machine there are no devices.
    let has_devices = figures().is_some();
    assert!(!has_devices || figures() == Some((2, 8192)));
    let remove = Request::RemoveExtent { offset: 1 << 20 };
    let removed = Event::ExtentRemoved { offset: 1 << 20 };
    assert_eq!(asked(&monitor, &remove, None), removed);
    assert_eq!(
        reason(asked(&monitor, &remove, None)),
        "removing an extent: no extent begins at 1048576"
    );
    assert!(!has_devices || figures() == Some((1, 4096)));
    // Where one was, none comes again.
    assert_eq!(
        asked(&monitor, &Request::AddExtent, Some(&file)),
        expected(3 << 20)
    );
    let writable = tempfile::tempfile().unwrap().into();
    assert_eq!(
        reason(asked(&monitor, &Request::AddExtent, Some(&writable))),
        "adding an extent: its descriptor is not opened for reading only"
    );
    let device = File::open("/dev/null").unwrap().into();
    assert_eq!(
        reason(asked(&monitor, &Request::AddExtent, Some(&device))),
        "adding an extent: cannot use the file as an extent: neither a regular file nor a block device"
    );
}

fn a_machine_without_a_shelf_takes_no_extent(guest: &Guest) {
    let (monitor, _) = Monitor::running(guest);
    let file = harness::guest::file(&[7; 4096]);
    let refused = asked(&monitor, &Request::AddExtent, Some(&file));
    assert_eq!(
        reason(refused),
        "adding an extent: the machine was made without a shelf"
    );
    let refused = asked(&monitor, &Request::RemoveExtent { offset: 1 << 20 }, None);
    assert_eq!(
        reason(refused),
        "removing an extent: the machine was made without a shelf"
    );
    // An extent without its file is no request: the monitor ends, and the machine with it.
    monitor.socket().send(&Request::AddExtent, &[]).unwrap();
    assert!(monitor.received().is_none());
    assert_eq!(monitor.ended().code(), Some(1));
}
