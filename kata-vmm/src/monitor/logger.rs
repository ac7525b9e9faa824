//! Log lines of the monitor process, on its standard error.
//!
//! Owns their format. Only [`main`](super::main) installs it: a library never does.

use std::io::Write;
use std::os::fd::AsFd;

use log::{LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Which lines are written, e.g. `debug`; without it `warn`.
const VARIABLE: &str = "KATA_VMM_LOG";

/// A pipe that is reported writable takes as much without waiting (pipe(7), `PIPE_BUF`).
const LINE_BYTES_MAX: usize = 4096;

struct Stderr;

/// Makes `log` write to standard error. Does nothing where the embedder has installed a logger.
pub(super) fn install() {
    let level = std::env::var(VARIABLE)
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::Warn);
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}

/// A caller that does not read the log loses lines, rather than stop the machine's control loop.
fn has_room(stderr: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stderr, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready == 1)
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = format!(
            "kata-vmm[{}] {} {}",
            std::process::id(),
            record.level(),
            record.args()
        );
        while line.len() >= LINE_BYTES_MAX {
            line.pop();
        }
        line.push('\n');
        let mut stderr = std::io::stderr();
        if has_room(&stderr) {
            // One write per line, so that lines of several processes do not mix. Nobody can be told when it
            // fails.
            stderr.write_all(line.as_bytes()).ok();
        }
    }

    fn flush(&self) {}
}
