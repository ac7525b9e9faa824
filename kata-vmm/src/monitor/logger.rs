//! Log lines of the monitor process, on its standard error.
//!
//! Owns their format. Only [`main`](super::main) installs it: a library never does.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

/// Which lines are written, e.g. `debug`; without it `info`.
const VARIABLE: &str = "KATA_VMM_LOG";

struct Stderr;

/// Makes `log` write to standard error. Does nothing where the embedder has installed a logger.
pub(super) fn install() {
    let level = std::env::var(VARIABLE)
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::Info);
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // One write per line, so that lines of several processes do not mix. Nobody can be told when it fails.
        let line = format!(
            "kata-vmm[{}] {} {}\n",
            std::process::id(),
            record.level(),
            record.args()
        );
        std::io::stderr().write_all(line.as_bytes()).ok();
    }

    fn flush(&self) {}
}
