//! A person at the shell of a sandbox: what is typed, what is shown, and what is left of the terminal.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// What starts the example, as the shell of a login would, and is there after it: with the end of a session's leader
/// the kernel would reset its terminal by itself.
const LOGIN: &str = r#""$@"; echo "ended with $?."; read -r _"#;

/// For a machine in software emulation, on a host that has other things to do.
const DEADLINE: Duration = Duration::from_secs(180);

/// The example, which cargo builds with the tests of the package.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/shell");
    assert!(
        path.is_file(),
        "{} is missing: `cargo build -p examples --examples`",
        path.display()
    );
    path
}

/// The root filesystem, where this machine can run one; otherwise why not is said, and in CI a failure.
fn rootfs(test: &str) -> Option<OsString> {
    let backends = std::env::var("KATA_TEST_BACKENDS").unwrap_or_else(|_| "qemu_tcg".into());
    if !backends
        .split(',')
        .any(|backend| ["qemu_tcg", "kvm"].contains(&backend))
    {
        eprintln!("SKIPPED {test}: optional: KATA_TEST_BACKENDS names none that is chosen by itself");
        return None;
    }
    let rootfs = std::env::var_os("KATA_TEST_ROOTFS");
    if rootfs.is_none() {
        let why = "KATA_TEST_ROOTFS names no root filesystem; run `cargo xtask test`";
        assert!(std::env::var_os("CI").is_none(), "SKIPPED {test}: {why}");
        eprintln!("SKIPPED {test}: {why}");
    }
    rootfs
}

/// A terminal with the example in it, and the person in front of it.
struct Terminal {
    /// The person's side.
    keys: File,
    shown: Receiver<Vec<u8>>,
    unread: Vec<u8>,
    /// The program's side, open for as long as this lives.
    settings: File,
    before: String,
    login: Child,
}

impl Terminal {
    /// Starts the example in a terminal of this size that is its own, as a login has it.
    fn start(arguments: &[OsString], rows: u16, columns: u16) -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&person).unwrap();
        let path = ptsname(&person, Vec::new()).unwrap().into_string().unwrap();
        let settings = File::options().read(true).write(true).open(path).unwrap();
        tcsetwinsize(&settings, size(rows, columns)).unwrap();
        let before = comparable(&tcgetattr(&settings).unwrap());
        let side = || Stdio::from(settings.try_clone().unwrap());
        let login = Command::new("setsid")
            .args(["--ctty", "sh", "-c", LOGIN, "login"])
            .arg(program())
            .args(arguments)
            .env("TERM", "xterm-256color")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        Self {
            shown: watch(person.try_clone().unwrap()),
            keys: person.into(),
            unread: Vec::new(),
            settings,
            before,
            login,
        }
    }

    fn type_in(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.keys, size(rows, columns)).unwrap();
    }

    /// Waits until this text is shown; answers all up to its end.
    fn until(&mut self, expected: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let text = String::from_utf8_lossy(&self.unread).into_owned();
            if let Some(at) = text.find(expected) {
                let (seen, rest) = text.split_at(at + expected.len());
                self.unread = rest.as_bytes().to_vec();
                return seen.to_owned();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.unread.extend(bytes),
                Err(_) => panic!("{expected:?} was not shown: {text:?}"),
            }
        }
    }

    fn settings(&self) -> String {
        comparable(&tcgetattr(&self.settings).unwrap())
    }

    /// Whether keys go to the program as they are.
    fn is_raw(&self) -> bool {
        self.settings() != self.before
    }

    /// The example's process.
    fn program(&self) -> Pid {
        child_of(Pid::from_child(&self.login))
    }

    /// Waits for the program's end and its exit code, after which the terminal is what it was.
    fn ended(mut self, code: u8) {
        self.until(&format!("ended with {code}.\r\n"));
        assert_eq!(self.settings(), self.before, "the settings are not put back");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.login.kill();
        let _ = self.login.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn comparable(settings: &Termios) -> String {
    format!("{settings:?}")
}

/// What is shown, piece by piece, read at once so that nobody waits to show it.
fn watch(person: OwnedFd) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    let mut person = File::from(person);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = person.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The one child of a process.
fn child_of(parent: Pid) -> Pid {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero())).unwrap();
    let children = tasks.flat_map(|task| {
        let text = std::fs::read_to_string(task.unwrap().path().join("children")).unwrap();
        text.split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect::<Vec<i32>>()
    });
    let children: Vec<i32> = children.collect();
    assert_eq!(children.len(), 1, "children of {parent:?}: {children:?}");
    Pid::from_raw(children[0]).unwrap()
}

/// Conformance: semantics 11
#[test]
fn a_person_types_resizes_interrupts_and_leaves() {
    let Some(rootfs) = rootfs("a_person_types_resizes_interrupts_and_leaves") else {
        return;
    };
    let mut terminal = Terminal::start(&[rootfs], 30, 100);
    terminal.until("# ");
    assert!(terminal.is_raw());
    terminal.type_in("stty size; echo $TERM\r");
    terminal.until("30 100\r\nxterm-256color\r\n");

    terminal.type_in("sh -c \"trap 'stty size; exit' WINCH; sleep 1000 & echo re''ady; wait\"\r");
    terminal.until("ready\r\n");
    terminal.resize(41, 132);
    terminal.until("41 132\r\n");

    terminal.type_in("sh -c 'echo be\"\"gun; exec sleep 1000'\r");
    terminal.until("begun\r\n");
    terminal.type_in("\x03");
    terminal.until("# ");
    terminal.type_in("echo status $?\r");
    terminal.until("status 130\r\n");
    terminal.until("# ");
    terminal.type_in("(exit 7)\r");
    terminal.until("# ");
    terminal.type_in("\x04");
    // A shell that ends at the end of its input has the status of its last command.
    terminal.ended(7);
}

/// Conformance: semantics 11
#[test]
fn the_terminal_is_put_back_when_the_sandbox_dies_or_the_program_is_ended() {
    let test = "the_terminal_is_put_back_when_the_sandbox_dies_or_the_program_is_ended";
    let Some(rootfs) = rootfs(test) else { return };
    let arguments = [
        rootfs,
        "sh".into(),
        "-c".into(),
        "echo begun; exec sleep 1000".into(),
    ];
    let mut terminal = Terminal::start(&arguments, 24, 80);
    terminal.until("begun\r\n");
    assert!(terminal.is_raw());
    kill_process(child_of(terminal.program()), Signal::KILL).unwrap();
    terminal.until("error: ");
    terminal.ended(1);

    let mut terminal = Terminal::start(&arguments, 24, 80);
    terminal.until("begun\r\n");
    kill_process(terminal.program(), Signal::TERM).unwrap();
    terminal.ended(143);
}

#[test]
fn without_a_terminal_there_is_no_shell() {
    let output = Command::new(program())
        .arg("image")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(output.stderr, b"error: standard input is not a terminal\n");
}
