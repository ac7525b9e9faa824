//! The monitor as a program that a person, or a terminal, meets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "in a test program each of them is a failed test"
)]

mod harness;

use std::process::{Command, Stdio};

use harness::{Monitor, process};
use rustix::process::{Pid, getpid, getsid};

#[test]
fn started_by_hand_it_says_what_it_is() {
    for stdin in [Stdio::null(), Stdio::piped()] {
        let output = Command::new(env!("CARGO_BIN_EXE_kata-vmm"))
            .stdin(stdin)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.contains("kata-vmm is the monitor of one microVM")
                && message.contains("not such a socket"),
            "{message}"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_terminal_of_the_caller_does_not_reach_it() {
    let (monitor, running) = Monitor::running(&process("wait"));
    let session = |pid: u32| getsid(Pid::from_raw(pid.try_into().unwrap())).unwrap();
    let own = getsid(Some(getpid())).unwrap();
    assert_ne!(session(monitor.process.id()), own);
    assert_ne!(session(running.pids[0]), own);
}

#[test]
fn it_is_named_after_its_machine() {
    let mut guest = process("wait");
    guest.machine.name = "a-very-long-sandbox-name".to_owned();
    let (monitor, _) = Monitor::running(&guest);
    let name = std::fs::read_to_string(format!("/proc/{}/comm", monitor.process.id())).unwrap();
    assert_eq!(name, "vmm:a-very-long\n");
}

#[test]
fn it_serves_on_a_thread_of_an_embedder_too() {
    let (ours, theirs) = kata_vmm::control::Socket::pair().unwrap();
    let serving = std::thread::spawn(move || kata_vmm::monitor::serve(theirs));
    assert!(ours.recv::<kata_vmm::control::Event>().unwrap().is_some());
    drop(ours);
    serving.join().unwrap().unwrap();
}
