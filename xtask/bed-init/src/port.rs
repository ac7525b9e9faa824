//! The wire to the host: a virtio-serial port, one line a message.
//!
//! ```text
//!  *          the job starts
//!  >TEXT      a line that it printed
//!  =exit N    it ended with status N
//!  =signal N  it was killed by signal N
//!  !TEXT      there was no job: why
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// The first port of the first device; nothing here gives ports their names.
const PATH: &str = "/dev/vport0p1";

/// What became of the job.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It ran to an end.
    Ended(ExitStatus),
    /// It could not be run.
    Failed(String),
}

/// The open port.
#[derive(Debug)]
pub(crate) struct Port(File);

impl Port {
    /// Opens it.
    pub(crate) fn open() -> io::Result<Self> {
        let file = File::options().write(true).open(PATH);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot open {PATH}: {error}"));
        file.map(Self).map_err(named)
    }

    /// Says that the machine is up.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        self.0.write_all(b"*\n")
    }

    /// Another handle on it.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Passes on what the job prints, line by line, until nobody can print any more.
    pub(crate) fn pass_on(&mut self, output: PipeReader) -> io::Result<()> {
        let mut output = BufReader::new(output);
        loop {
            let mut line = vec![b'>'];
            if output.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                line.push(b'\n');
            }
            self.0.write_all(&line)?;
        }
    }

    /// The last message.
    pub(crate) fn end(&mut self, verdict: &Verdict) -> io::Result<()> {
        let line = match verdict {
            Verdict::Ended(status) => match status.code() {
                Some(code) => format!("=exit {code}\n"),
                None => format!("=signal {}\n", status.signal().unwrap_or_default()),
            },
            Verdict::Failed(why) => format!("!{}\n", why.replace('\n', " ")),
        };
        self.0.write_all(line.as_bytes())
    }
}
