//! The job: a program with its environment, read from the uppermost layer.
//!
//! ```text
//!  /bed/job     NAME=VALUE\0 … \0 PROGRAM\0 ARGUMENT\0 …
//!  /bed/shell   present: the job has the terminal /dev/hvc0 instead of the port
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, pipe};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, WaitOptions};

use crate::Failure;
use crate::port::{Port, Verdict};

/// What to run.
const JOB: &str = "/bed/job";

/// Whether a person is at the other end.
const SHELL: &str = "/bed/shell";

/// The terminal of that person: the first console of the machine's second virtio-serial device.
const TERMINAL: &str = "/dev/hvc0";

/// Runs the job to its end; its output goes through the port.
pub(crate) fn run(port: &mut Port) -> Result<Verdict, Failure> {
    let description = fs::read(JOB).map_err(|error| format!("cannot read {JOB}: {error}"))?;
    let mut command = parse(&description).ok_or("the job names no program")?;
    port.begin()?;
    if Path::new(SHELL).exists() {
        let child = start(on_terminal(&mut command)?)?;
        return Ok(Verdict::Ended(wait(&child)?));
    }
    let (reader, writer) = pipe()?;
    command
        .stdin(File::open("/dev/null")?)
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let child = start(&mut command)?;
    // The command keeps its ends of the pipe until it is gone; nobody would see the end.
    drop(command);
    let mut output = port.try_clone()?;
    let passing = std::thread::spawn(move || output.pass_on(reader));
    let status = wait(&child)?;
    kill_all()?;
    passing.join().map_err(|_| "the job's output was lost")??;
    Ok(Verdict::Ended(status))
}

/// Ends what the job left running: as long as one of its descendants could print, its output has no end.
fn kill_all() -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|pid| !pid.is_init()) {
            // A kernel thread takes no notice, and what is gone needs none.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    Ok(())
}

fn start(command: &mut Command) -> Result<Child, Failure> {
    let program = command.get_program().to_owned();
    command
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", program.display()).into())
}

/// setsid(1) makes the terminal its own, so that keys reach the foreground process as signals.
fn on_terminal(command: &mut Command) -> io::Result<&mut Command> {
    let terminal = File::options().read(true).write(true).open(TERMINAL)?;
    let mut session = Command::new("setsid");
    session
        .args(["--ctty", "--wait"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        session.env(name, value.unwrap_or_default());
    }
    session
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal);
    *command = session;
    Ok(command)
}

/// Waits for the job, and for every orphan that ends before it: PID 1 is everybody's parent.
fn wait(job: &Child) -> io::Result<ExitStatus> {
    let job = i32::try_from(job.id()).ok().and_then(Pid::from_raw);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Some(pid) == job => {
                return Ok(std::os::unix::process::ExitStatusExt::from_raw(status.as_raw()));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn parse(description: &[u8]) -> Option<Command> {
    let mut words = description
        .strip_suffix(b"\0")?
        .split(|byte| *byte == 0)
        .map(OsStr::from_bytes);
    let environment: Vec<&OsStr> = words.by_ref().take_while(|word| !word.is_empty()).collect();
    let mut command = Command::new(words.next()?);
    command.args(words).env_clear();
    for variable in environment {
        let at = variable.as_bytes().iter().position(|byte| *byte == b'=')?;
        let (name, value) = variable.as_bytes().split_at(at);
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value.get(1..)?));
    }
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_an_environment_and_a_program_with_arguments() {
        let command = parse(b"A=1\0B=x=y\0\0sh\0-c\0echo hi\0").unwrap();
        assert_eq!(command.get_program(), "sh");
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["-c", "echo hi"]);
        let environment: Vec<_> = command
            .get_envs()
            .map(|(name, value)| (name.to_owned(), value.unwrap().to_owned()))
            .collect();
        assert_eq!(
            environment,
            [("A".into(), "1".into()), ("B".into(), "x=y".into())]
        );
    }

    #[test]
    fn a_job_without_a_program_is_none() {
        assert!(parse(b"").is_none());
        assert!(parse(b"A=1\0").is_none());
        assert!(parse(b"no-equals-sign\0\0sh\0").is_none());
    }
}
