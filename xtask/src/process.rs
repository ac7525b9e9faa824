//! Child processes: run one to its end, show what it says as progress, keep the tail for the error.
//!
//! It knows commands and their output. It must not know what they are for.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::progress::Step;

/// Lines of a failed program's output that its error carries.
const TAIL_LINES: usize = 40;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// It could not be started.
    #[error("cannot start `{command}`")]
    Spawn {
        /// The command line.
        command: String,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// Its output could not be read.
    #[error("cannot read what `{command}` says")]
    Read {
        /// The command line.
        command: String,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// It ended with a status other than 0.
    #[error("`{command}` failed ({status}); it said last:\n{tail}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines, standard output and standard error together.
        tail: String,
    },
}

/// The command as one would type it, without its environment.
pub(crate) fn line(command: &Command) -> String {
    let mut text = String::new();
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        if !text.is_empty() {
            text.push(' ');
        }
        let word = word.to_string_lossy();
        if word.is_empty() || word.contains([' ', '"', '$', '\'']) {
            // Writing to a String does not fail.
            let _ = write!(text, "{word:?}");
        } else {
            text.push_str(&word);
        }
    }
    text
}

/// Runs a command without input; its lines become the step's message, its tail the error's text.
///
/// # Errors
/// When it cannot be started or does not end with status 0.
pub(crate) fn run(step: &Step, command: &mut Command) -> Result<(), ProcessError> {
    run_with(command, |line| step.says(line))
}

/// As [`run`], with the lines for `sink`.
///
/// # Errors
/// When it cannot be started or does not end with status 0.
pub(crate) fn run_with(command: &mut Command, mut sink: impl FnMut(&str)) -> Result<(), ProcessError> {
    let mut tail = Tail::default();
    let status = stream(command, |line| {
        sink(line);
        tail.push(line);
    })?;
    finish(command, status, tail)
}

/// Runs a command without input and gives back its standard output.
///
/// # Errors
/// When it cannot be started or does not end with status 0.
pub(crate) fn read(command: &mut Command) -> Result<String, ProcessError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ProcessError::Spawn {
            command: line(command),
            source,
        })?;
    let mut tail = Tail::default();
    String::from_utf8_lossy(&output.stderr)
        .lines()
        .for_each(|line| tail.push(line));
    finish(command, output.status, tail)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command without input and hands every line of its output (both streams, in order) to `sink`.
///
/// # Errors
/// When it cannot be started or its output cannot be read; any exit status is an answer.
pub(crate) fn stream(command: &mut Command, mut sink: impl FnMut(&str)) -> Result<ExitStatus, ProcessError> {
    let (reader, mut child) = spawn(command).map_err(|source| ProcessError::Spawn {
        command: line(command),
        source,
    })?;
    each_line(reader, &mut sink)
        .and_then(|()| child.wait())
        .map_err(|source| ProcessError::Read {
            command: line(command),
            source,
        })
}

/// Starts the command with both of its output streams in one pipe.
fn spawn(command: &mut Command) -> io::Result<(PipeReader, Child)> {
    let (reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let child = command.spawn();
    // The command keeps its ends of the pipe until they are replaced; the reader would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok((reader, child?))
}

fn each_line(reader: PipeReader, sink: &mut impl FnMut(&str)) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&bytes);
        sink(text.trim_end_matches(['\n', '\r']));
    }
}

fn finish(command: &Command, status: ExitStatus, tail: Tail) -> Result<(), ProcessError> {
    if status.success() {
        return Ok(());
    }
    Err(ProcessError::Failed {
        command: line(command),
        status,
        tail: tail.text(),
    })
}

/// The last lines of an output.
#[derive(Debug, Default)]
struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: &str) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    fn text(self) -> String {
        self.0.iter().fold(String::new(), |mut text, line| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "    {line}");
            text
        })
    }
}

/// Where a program is on `PATH`.
pub(crate) fn find(program: impl AsRef<Path>) -> Option<PathBuf> {
    // Debian keeps system tools outside of an ordinary user's PATH.
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program.as_ref()))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// A command with its arguments.
pub(crate) fn command<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_arrive_in_order_and_a_status_is_an_answer() {
        let mut lines = Vec::new();
        let mut shell = command("sh", ["-c", "echo one; echo two >&2; exit 3"]);
        let status = stream(&mut shell, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_failure_names_the_command_and_carries_its_last_lines() {
        let error = read(&mut command("sh", ["-c", "echo broken >&2; exit 1"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c \"echo broken >&2; exit 1\"` failed (exit status: 1); it said last:\n    broken\n"
        );
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = read(&mut command("no-such-program", [""; 0])).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `no-such-program`");
    }

    #[test]
    fn the_tail_is_bounded() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(&number.to_string());
        }
        let text = tail.text();
        assert_eq!(text.lines().count(), TAIL_LINES);
        assert!(text.ends_with("    99\n"));
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program").is_none());
    }
}
