//! A monitor under test: starts the real program, speaks to it, and watches its processes.
//!
//! Owns the guests of the tests and the deadlines. What cannot run on this machine is skipped loudly here,
//! and fails where the variable `CI` is `true`.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod guest;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use kata_vmm::control::{Event, PROTOCOL, Request, Socket};
use kata_vmm::hypervisor::probe;
use kata_vmm::machine::{Accelerator, Boot, Disk, FdIndex, Hypervisor, Machine, MiB, Running};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long anything may take: generous, since software emulation on a loaded machine is slow.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A monitor process and the caller's end of its control socket.
pub(crate) struct Monitor {
    pub(crate) process: Child,
    pub(crate) socket: Option<Socket>,
}

impl Monitor {
    /// Starts the program and takes its `Hello`.
    pub(crate) fn start() -> Self {
        let (ours, theirs) = Socket::pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_kata-vmm"))
            .stdin(theirs.into_fd())
            .env(
                "KATA_VMM_LOG",
                std::env::var("KATA_VMM_LOG").unwrap_or_else(|_| "off".into()),
            )
            .spawn()
            .unwrap();
        let monitor = Self {
            process,
            socket: Some(ours),
        };
        let hello = monitor.event();
        assert!(
            matches!(
                hello,
                Event::Hello {
                    protocol: PROTOCOL,
                    ..
                }
            ),
            "{hello:?}"
        );
        monitor
    }

    /// A monitor that was asked to launch.
    pub(crate) fn launch(guest: &Guest) -> Self {
        let monitor = Self::start();
        let request = Request::Launch {
            protocol: PROTOCOL,
            machine: Box::new(guest.machine.clone()),
        };
        let fds: Vec<_> = guest.files.iter().map(AsFd::as_fd).collect();
        monitor.socket().send(&request, &fds).unwrap();
        monitor
    }

    /// A monitor whose machine runs.
    pub(crate) fn running(guest: &Guest) -> (Self, Running) {
        let monitor = Self::launch(guest);
        match monitor.event() {
            Event::Launched(running) => (monitor, running),
            other => panic!("not launched: {other:?}"),
        }
    }

    pub(crate) fn socket(&self) -> &Socket {
        self.socket.as_ref().unwrap()
    }

    /// The next event, whatever it is.
    pub(crate) fn event(&self) -> Event {
        self.event_with_stream().0
    }

    /// The next event with what came beside it.
    pub(crate) fn event_with_stream(&self) -> (Event, Option<UnixStream>) {
        self.received().expect("the monitor closed its end")
    }

    /// The next event; `None` when the monitor closed its end.
    pub(crate) fn received(&self) -> Option<(Event, Option<UnixStream>)> {
        assert!(readable_within(self.socket(), DEADLINE), "no event came in time");
        let (event, mut fds) = self.socket().recv::<Event>().unwrap()?;
        Some((event, fds.pop().map(UnixStream::from)))
    }

    /// The stream of the guest's dial of `port`, which must be the next event.
    pub(crate) fn dialed(&self, port: u32) -> UnixStream {
        match self.event_with_stream() {
            (Event::Dialed { host_port }, Some(stream)) if host_port == port => stream,
            other => panic!("not a dial of port {port}: {other:?}"),
        }
    }

    /// Connects to a port of the guest.
    pub(crate) fn connect(&self, guest_port: u32) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let request = Request::Connect {
            greeted: false,
            guest_port,
            host_port: 0x4000_0000,
        };
        self.socket().send(&request, &[theirs.as_fd()]).unwrap();
        ours
    }

    /// Closes the caller's end.
    pub(crate) fn leave(&mut self) {
        self.socket = None;
    }

    /// After the last event: the end of the socket and of the process.
    pub(crate) fn ended(mut self) -> ExitStatus {
        if self.socket.is_some() {
            let last = self.received();
            assert!(last.is_none(), "an event after the last: {last:?}");
        }
        assert!(
            Watch::new(self.process.id()).ends_within(DEADLINE),
            "the monitor lives"
        );
        self.process.wait().unwrap()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// What a monitor is asked to launch.
pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) files: Vec<OwnedFd>,
}

/// A guest of the process backend in a mode of `examples/guest_program.rs`.
pub(crate) fn process(mode: &str) -> Guest {
    let machine = machine(
        Hypervisor::Process,
        Boot::Program { program: FdIndex(0) },
        vec![Disk {
            serial: "mode".to_owned(),
            image: FdIndex(1),
            read_only: true,
        }],
    );
    let files = vec![
        File::open(guest::program()).unwrap().into(),
        guest::file(mode.as_bytes()),
    ];
    Guest { machine, files }
}

/// A guest of QEMU in software in a mode of `tests/guest/init.rs`; `None` where it cannot run.
pub(crate) fn qemu(mode: &str) -> Option<Guest> {
    let binary = emulator()?;
    let kernel = guest::kernel()?;
    let hypervisor = Hypervisor::Qemu {
        binary,
        accelerator: Accelerator::Tcg,
    };
    let boot = Boot::Kernel {
        kernel: FdIndex(0),
        initramfs: FdIndex(1),
    };
    let files = vec![
        File::open(kernel).unwrap().into(),
        guest::file(&guest::initramfs(mode)?),
    ];
    Some(Guest {
        machine: machine(hypervisor, boot, Vec::new()),
        files,
    })
}

/// QEMU's system emulator; `None` where there is none.
pub(crate) fn emulator() -> Option<PathBuf> {
    match probe().qemu {
        Ok(qemu) => Some(qemu.binary),
        Err(cause) => {
            guest::skipped(&cause.to_string());
            None
        }
    }
}

fn machine(hypervisor: Hypervisor, boot: Boot, disks: Vec<Disk>) -> Machine {
    Machine {
        name: "test".to_owned(),
        vcpus: 1,
        memory: MiB(256),
        boot,
        acpi: true,
        disks,
        shelf: None,
        nets: Vec::new(),
        guest_cid: 3,
        host_ports: vec![7, 8],
        hypervisor,
        kvm: None,
    }
}

/// A process that is watched; the number alone could come to mean another one.
pub(crate) struct Watch(Option<OwnedFd>);

impl Watch {
    /// Of a process that may be gone already.
    pub(crate) fn new(pid: u32) -> Self {
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Self(Some(pidfd)),
            Err(rustix::io::Errno::SRCH) => Self(None),
            Err(cause) => panic!("pidfd_open: {cause}"),
        }
    }

    /// Whether it ends in time; with no time, whether it has ended.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        self.0.as_ref().is_none_or(|pidfd| readable_within(pidfd, limit))
    }

    /// Sends SIGKILL to a process that lives.
    pub(crate) fn kill(&self) {
        pidfd_send_signal(self.0.as_ref().expect("it lives"), Signal::KILL).unwrap();
    }
}

/// Whether `fd` becomes readable (a pidfd: its process ends) in time.
pub(crate) fn readable_within(fd: &impl AsFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::try_from(left).unwrap())) {
            Ok(count) => return count == 1,
            Err(rustix::io::Errno::INTR) => {}
            Err(cause) => panic!("poll: {cause}"),
        }
    }
}

/// `CI=true` makes every skip a failure.
pub(crate) fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}
