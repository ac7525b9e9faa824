//! The outer guest as a process: QEMU in software with AMD's virtualization, one job, its lines, its end.
//!
//! ```text
//!  start ──► booting ──`*`──► running ──`=`──► ended
//!               │                 │
//!               ├── `!`: no job ──┤
//!               ├── deadline ─────┼──► error, with the tail of the outer console; QEMU is killed
//!               └── end of wire ──┘
//! ```
//!
//! It owns QEMU's command line and the host's end of the wire (the other end: `xtask/bed-init`).
//! It must not know what the job is.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use tempfile::TempDir;

use super::wire::{End, Heard, Message, Wire};
use crate::process;

/// Until the job starts; it takes some five seconds on an idle machine.
const BOOT: Duration = Duration::from_secs(180);

/// The emulator.
const QEMU: &str = "qemu-system-x86_64";

/// Lines of the outer console that an error carries.
const TAIL_LINES: usize = 30;

/// What the kernel of the outer guest is told: silence, no tests of its own algorithms, no protection
/// from a neighbour that it does not have, and an end instead of a hang.
///
/// It and the kernels that its KVM runs do without CMPXCHG16B: in QEMU before 8.0 that leaves an operand in the
/// flags, and a kernel that is interrupted there hangs (docs/boot.md). The processor keeps it, since KVM's probe
/// asks for it.
const KERNEL: &str = "console=ttyS0 quiet panic=-1 reboot=t mitigations=off cryptomgr.notests no_timer_check \
                      clearcpuid=cx16";

/// A machine that can be started.
#[derive(Debug)]
pub(super) struct Machine {
    /// The uncompressed kernel.
    pub(super) kernel: PathBuf,
    /// The archive with the init.
    pub(super) initramfs: Vec<u8>,
    /// The layers of the root, the lowest first.
    pub(super) layers: Vec<PathBuf>,
    /// Processors.
    pub(super) vcpus: u32,
    /// Memory.
    pub(super) memory_mib: u32,
    /// What its clock counts.
    pub(super) clock: Clock,
}

/// What the outer guest's clock counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Time, as that of any machine.
    #[default]
    Time,
    /// Instructions, a nanosecond each, on one thread: slower, and every run is like the one before.
    Instructions,
}

/// Who gets what the job says.
pub(super) enum Listener<'a> {
    /// Every line goes to this function.
    Lines(&'a mut dyn FnMut(&str)),
    /// The job has this process's terminal.
    Terminal,
}

/// Why there is no end of a job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// QEMU cannot be started.
    #[error("cannot start the bed's QEMU")]
    Start(#[source] io::Error),
    /// Its messages cannot be read.
    #[error("cannot read what the bed says")]
    Read(#[source] io::Error),
    /// It did not come up.
    #[error("the bed did not come up within {} s; its console:\n{console}", BOOT.as_secs())]
    NotUp {
        /// The last lines of the outer guest's console and of QEMU.
        console: String,
    },
    /// The job took too long.
    #[error("the bed's job took longer than {} s and was cut; its console:\n{console}", allowed.as_secs())]
    TooLong {
        /// What it was given.
        allowed: Duration,
        /// The last lines of the outer guest's console and of QEMU.
        console: String,
    },
    /// It ended without a word.
    #[error("the bed broke down; its console:\n{console}")]
    BrokeDown {
        /// The last lines of the outer guest's console and of QEMU.
        console: String,
    },
    /// The init could not run the job.
    #[error("the bed cannot run its job: {why}; its console:\n{console}")]
    NoJob {
        /// What the init said.
        why: String,
        /// The last lines of the outer guest's console and of QEMU.
        console: String,
    },
}

/// A QEMU that runs; dropped, it is killed.
struct Running {
    qemu: Child,
    wire: Wire,
    directory: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is not an error, and there is nobody to tell of another.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Machine {
    /// Boots, runs the job of the uppermost layer, and gives back its end.
    ///
    /// # Errors
    /// When the machine does not come up, breaks down, or the job takes longer than `allowed`.
    pub(super) fn run(&self, allowed: Option<Duration>, listener: Listener<'_>) -> Result<End, MachineError> {
        let mut nobody = |_: &str| ();
        let (terminal, sink): (_, &mut dyn FnMut(&str)) = match listener {
            Listener::Terminal => (true, &mut nobody),
            Listener::Lines(sink) => (false, sink),
        };
        let mut running = self.start(terminal).map_err(MachineError::Start)?;
        let up = Instant::now() + BOOT;
        match running.message(Some(up))? {
            Heard::Message(Message::Begin) => {}
            Heard::Message(Message::NoJob(why)) => return Err(running.no_job(why)),
            Heard::Message(_) | Heard::End => return Err(running.broke_down()),
            Heard::Deadline => {
                let console = running.console();
                return Err(MachineError::NotUp { console });
            }
        }
        let until = allowed.map(|allowed| (allowed, Instant::now() + allowed));
        loop {
            match running.message(until.map(|(_, until)| until))? {
                Heard::Message(Message::Line(line)) => sink(&line),
                Heard::Message(Message::Ended(end)) => return Ok(end),
                Heard::Message(Message::NoJob(why)) => return Err(running.no_job(why)),
                Heard::Message(Message::Begin) | Heard::End => return Err(running.broke_down()),
                Heard::Deadline => {
                    return Err(MachineError::TooLong {
                        allowed: until.map(|(allowed, _)| allowed).unwrap_or_default(),
                        console: running.console(),
                    });
                }
            }
        }
    }

    fn start(&self, terminal: bool) -> io::Result<Running> {
        let directory = tempfile::Builder::new().prefix("kata-bed-").tempdir()?;
        let initramfs = directory.path().join("initramfs.cpio");
        std::fs::write(&initramfs, &self.initramfs)?;
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let console = console_path(directory.path());
        let log = File::options().create(true).append(true).open(&console)?;
        let mut qemu = bound_to_us(QEMU);
        qemu.args(self.words(&initramfs, &console, theirs.as_raw_fd(), terminal))
            .stderr(log.try_clone()?);
        if !terminal {
            qemu.stdin(Stdio::null()).stdout(log);
        }
        Ok(Running {
            qemu: qemu.spawn()?,
            wire: Wire::new(ours),
            directory,
        })
    }

    /// A q35 machine, and an EPYC whose virtualization QEMU emulates.
    fn words(&self, initramfs: &Path, console: &Path, wire: i32, terminal: bool) -> Vec<OsString> {
        let mut line = Line::default();
        line.words(&["-M", "q35"]);
        let kernel = match self.clock {
            Clock::Time => {
                line.words(&["-accel", "tcg,thread=multi", "-cpu", "EPYC-Milan"]);
                KERNEL.to_owned()
            }
            Clock::Instructions => {
                line.words(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
                line.words(&["-seed", "1", "-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
                // One instruction that copies a page would count as one, and QEMU's way of doing it depends on
                // where in memory the page is.
                line.words(&["-cpu", "EPYC-Milan,-erms,-fsrm"]);
                format!("{KERNEL} nokaslr")
            }
        };
        line.words(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        line.words(&[
            "-smp",
            &self.vcpus.to_string(),
            "-m",
            &self.memory_mib.to_string(),
        ]);
        line.words(&["-append", &kernel, "-kernel"])
            .path("", &self.kernel, "");
        line.words(&["-initrd"]).path("", initramfs, "");
        line.words(&["-chardev"])
            .path("file,id=log,append=on,path=", console, "");
        line.words(&[
            "-serial",
            "chardev:log",
            "-device",
            "virtio-serial-pci,id=wires,max_ports=2",
        ]);
        if terminal {
            line.words(&["-chardev", "stdio,id=terminal,signal=off"]);
            line.words(&["-device", "virtconsole,bus=wires.0,nr=0,chardev=terminal"]);
        }
        line.words(&["-chardev", &format!("socket,id=wire,fd={wire}")]);
        line.words(&["-device", "virtserialport,bus=wires.0,nr=1,chardev=wire"]);
        for (number, layer) in self.layers.iter().enumerate() {
            line.words(&["-drive"]).path(
                &format!("if=none,id=layer{number},format=raw,read-only=on,file="),
                layer,
                "",
            );
            line.words(&["-device", &format!("virtio-blk-pci,drive=layer{number}")]);
        }
        line.0
    }
}

/// QEMU's command line.
#[derive(Debug, Default)]
struct Line(Vec<OsString>);

impl Line {
    fn words(&mut self, words: &[&str]) -> &mut Self {
        self.0.extend(words.iter().map(OsString::from));
        self
    }

    /// A word around a path; a comma in an option's value is written twice (qemu(1), `-drive file`).
    fn path(&mut self, before: &str, path: &Path, after: &str) -> &mut Self {
        let mut word = OsString::from(before);
        match (before, path.to_str()) {
            ("", _) | (_, None) => word.push(path),
            (_, Some(path)) => word.push(path.replace(',', ",,")),
        }
        word.push(after);
        self.0.push(word);
        self
    }
}

/// A program that ends when this one does, however this one ends.
fn bound_to_us(program: &str) -> Command {
    match process::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig=KILL", "--", program]);
            command
        }
        None => Command::new(program),
    }
}

fn console_path(directory: &Path) -> PathBuf {
    directory.join("console")
}

impl Running {
    fn message(&mut self, until: Option<Instant>) -> Result<Heard, MachineError> {
        self.wire.next(until).map_err(MachineError::Read)
    }

    fn broke_down(&mut self) -> MachineError {
        // What ends the wire is QEMU's end; its last words are in the file when it is gone.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        MachineError::BrokeDown {
            console: self.console(),
        }
    }

    fn no_job(&self, why: String) -> MachineError {
        MachineError::NoJob {
            why,
            console: self.console(),
        }
    }

    fn console(&self) -> String {
        let text = std::fs::read(console_path(self.directory.path())).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.len().saturating_sub(TAIL_LINES);
        lines[tail..]
            .iter()
            .map(|line| format!("    {}\n", line.trim_end()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        let mut line = Line::default();
        line.path("", Path::new("/a,b"), "")
            .path("file=", Path::new("/a,b"), "");
        assert_eq!(line.0, ["/a,b", "file=/a,,b"]);
    }
}
