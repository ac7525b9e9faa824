//! A child process of the monitor that belongs to one machine.
//!
//! Owns its start, its output's tail, its death and its exit status.
//! It must not know what the child does.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::inherit;
use super::tail::TailReader;
use crate::control::LaunchError;

/// Variables of the monitor that a child sees; everything else stays with the caller.
const ENVIRONMENT: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "TMPDIR"];

/// A running child. Dropping it kills it and waits until it is gone.
#[derive(Debug)]
pub(super) struct Child {
    process: std::process::Child,
    pidfd: OwnedFd,
    /// Standard output and standard error, as one.
    output: TailReader,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    /// Its exit code, if it exited.
    pub(super) code: Option<i32>,
    /// The signal that killed it.
    pub(super) signal: Option<i32>,
}

impl Child {
    /// Starts `program`; `kept` are the descriptors whose numbers its arguments mention.
    ///
    /// The child dies with the calling *thread*, not only with the process (prctl(2),
    /// `PR_SET_PDEATHSIG`): call it on the thread that owns the machine.
    ///
    /// # Errors
    /// [`LaunchError::Spawn`] when the program does not exist or may not be executed.
    pub(super) fn spawn(
        program: &Path,
        arguments: &[OsString],
        kept: Vec<OwnedFd>,
    ) -> Result<Self, LaunchError> {
        Self::start(program, arguments, kept).map_err(|cause| LaunchError::Spawn {
            program: program.display().to_string(),
            cause: cause.to_string(),
        })
    }

    fn start(program: &Path, arguments: &[OsString], kept: Vec<OwnedFd>) -> io::Result<Self> {
        let (output, written) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(
                ENVIRONMENT
                    .into_iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(written.try_clone()?)
            .stderr(written);
        inherit::arm(&mut command, kept);
        let mut process = command.spawn()?;
        match pidfd_open(Pid::from_child(&process), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                process,
                pidfd,
                output: TailReader::new(output)?,
            }),
            Err(cause) => {
                process.kill()?;
                process.wait()?;
                Err(cause.into())
            }
        }
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// What to wait on: its end and its output.
    pub(super) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.pidfd.as_fd()).chain(self.output.sources())
    }

    /// Takes in its output, and answers how it ended if it has.
    ///
    /// # Errors
    /// When its status was taken by someone else.
    pub(super) fn advance(&mut self) -> io::Result<Option<Status>> {
        // In this order: what is written before the end is part of the tail.
        let status = self.process.try_wait()?;
        self.output.drain();
        Ok(status.map(Status::from))
    }

    /// Has its output followed, see [`Tail::follow`](super::tail::Tail::follow).
    pub(super) fn follow_output(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.output.follow(socket)
    }

    /// The end of its output, see [`Tail::text`](super::tail::Tail::text).
    pub(super) fn output(&self) -> String {
        self.output.text()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Err(cause) = pidfd_send_signal(&self.pidfd, Signal::KILL) {
            log::error!("cannot kill process {}: {cause}", self.process.id());
            return;
        }
        if let Err(cause) = self.process.wait() {
            log::error!("cannot wait for process {}: {cause}", self.process.id());
        }
    }
}

impl From<ExitStatus> for Status {
    fn from(status: ExitStatus) -> Self {
        Self {
            code: status.code(),
            signal: status.signal(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn shell(script: &str, kept: Vec<OwnedFd>) -> Child {
        Child::spawn(Path::new("/bin/sh"), &["-c".into(), script.into()], kept).unwrap()
    }

    fn end_of(child: &mut Child) -> Status {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = child.advance().unwrap() {
                return status;
            }
            let mut fds: Vec<_> = child
                .sources()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            let left = deadline
                .checked_duration_since(Instant::now())
                .expect("it ends in time");
            poll(&mut fds, Some(&Timespec::try_from(left).unwrap())).unwrap();
        }
    }

    #[test]
    fn output_and_status_are_reported() {
        let mut child = shell("echo out; echo err >&2; exit 3", Vec::new());
        let status = end_of(&mut child);
        assert_eq!((status.code, status.signal), (Some(3), None));
        assert_eq!(child.output(), "out\nerr\n");
        let mut child = shell("kill -9 $$", Vec::new());
        assert_eq!(end_of(&mut child).signal, Some(9));
    }

    #[test]
    fn exactly_the_kept_descriptors_are_inherited() {
        // One that somebody else forgot to mark.
        let stray =
            rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        let kept = std::fs::File::open("/dev/zero").unwrap().into();
        let number = std::os::fd::AsRawFd::as_raw_fd(&kept);
        // No pipeline: the shell would have its pipe open for a moment.
        let script = format!("readlink /proc/$$/fd/{number}; ls -v /proc/$$/fd; true");
        let mut child = shell(&script, vec![kept]);
        assert_eq!(end_of(&mut child).code, Some(0));
        assert_eq!(child.output(), format!("/dev/zero\n0\n1\n2\n{number}\n"));
        drop(stray);
    }

    #[test]
    fn the_environment_stays_with_the_caller() {
        let mut child = shell("env | cut -d= -f1 | sort | tr '\\n' ' '", Vec::new());
        end_of(&mut child);
        for name in child.output().split_whitespace() {
            assert!(
                ENVIRONMENT.contains(&name) || matches!(name, "PWD" | "OLDPWD" | "SHLVL" | "_"),
                "{name} was inherited"
            );
        }
    }

    #[test]
    fn dropping_kills() {
        let child = shell("exec sleep 1000", Vec::new());
        let pidfd = child.pidfd.try_clone().unwrap();
        drop(child);
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        assert_eq!(
            poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0
                })
            )
            .unwrap(),
            1
        );
    }

    #[test]
    fn the_child_dies_with_the_thread_that_started_it() {
        let thread = std::thread::spawn(|| {
            let child = shell("exec sleep 1000", Vec::new());
            // Leaked on purpose: nobody kills it but the kernel.
            let pidfd = child.pidfd.try_clone().unwrap();
            std::mem::forget(child);
            pidfd
        });
        let pidfd = thread.join().unwrap();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        assert_eq!(
            poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 20,
                    tv_nsec: 0
                })
            )
            .unwrap(),
            1
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Child::spawn(Path::new("/nonexistent/program"), &[], Vec::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot start /nonexistent/program: No such file or directory (os error 2)"
        );
    }
}
