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

use harness::{DEADLINE, Monitor, process, readable_within};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::PipeFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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

/// The number of a process's session, 0 when its leader is outside of this PID namespace (proc(5)).
fn session(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn a_terminal_of_the_caller_does_not_reach_it() {
    let (monitor, running) = Monitor::running(&process("wait"));
    let (own, monitors) = (session(std::process::id()), session(monitor.process.id()));
    assert_eq!(monitors, monitor.process.id());
    assert_ne!(monitors, own);
    assert_ne!(session(running.pids[0]), own);
}

#[test]
fn what_the_caller_has_open_does_not_live_as_long_as_the_machine() {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setfd(&writer, FdFlags::empty()).unwrap();
    let (_monitor, _) = Monitor::running(&process("wait"));
    drop(writer);
    assert!(readable_within(&reader, DEADLINE), "the monitor holds the pipe");
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn it_may_open_as_many_files_as_the_hard_limit_allows() {
    let limit = getrlimit(Resource::Nofile);
    let current = Some(512);
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    let monitor = Monitor::start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", monitor.process.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
    assert_ne!(words[3], "512");
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
