//! PID 1 of the outer guest of the nested bed: brings up a small Linux, runs one job, says how it ended,
//! and switches the machine off.
//!
//! ```text
//!  modules ─► layers ─► root ─► job ─► verdict ─► power off
//!     └─────────┴────────┴───────┴── error: a verdict too, and power off all the same
//! ```
//!
//! It owns the file systems of the outer guest and the wire back to the host ([`port`]).
//! It must not know what the job is: `xtask/src/bed` writes it, and reads the answer.

mod job;
mod loopback;
mod modules;
mod mounts;
mod port;

use std::process::ExitCode;

use port::Port;

fn main() -> ExitCode {
    if !rustix::process::getpid().is_init() {
        eprintln!("bed-init: this is the first process of a virtual machine, and of nothing else");
        return ExitCode::FAILURE;
    }
    if let Err(error) = run() {
        // The console is the only witness of what the port could not tell.
        eprintln!("bed-init: {error}");
    }
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::PowerOff) {
        eprintln!("bed-init: cannot switch the machine off: {error}");
    }
    // PID 1 that ends panics the kernel, and with `panic=-1` that ends the machine as well.
    ExitCode::FAILURE
}

/// What went wrong, with what was tried.
type Failure = Box<dyn std::error::Error>;

fn run() -> Result<(), Failure> {
    mounts::kernel_interfaces()?;
    let mut port = Port::open()?;
    let verdict = prepare().and_then(|()| job::run(&mut port));
    Ok(port.end(&verdict.unwrap_or_else(|error| port::Verdict::Failed(error.to_string())))?)
}

fn prepare() -> Result<(), Failure> {
    modules::load()?;
    loopback::up().map_err(|error| format!("cannot bring the loopback interface up: {error}"))?;
    mounts::enter_layers()
}
