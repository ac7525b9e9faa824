//! PID 1 of the guest: loads the modules that the initramfs brings, brings the network up, measures disk and
//! network, and tells the host.
//!
//! ```text
//!  modules ─► network ─► control connection ─► phases of the disk ─► phases of the network ─► done
//!      └────────┴──────────────┴──── error: a line on the console, and to the host if it can be reached
//! ```
//!
//! It owns the order of the phases. It must not know what serves the devices.
#![expect(clippy::print_stdout, reason = "standard output is the guest's console")]

mod disk;
mod machine;
mod network;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;

use device_guest::link;
use device_guest::phase::{GUEST, Line, Outcome, Service};

/// What went wrong.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The network card of a kernel without udev.
const CARD: &str = "eth0";

fn main() -> ExitCode {
    if !rustix::process::getpid().is_init() {
        eprintln!("device-guest: this is the first process of a virtual machine, and of nothing else");
        return ExitCode::FAILURE;
    }
    if let Err(error) = run() {
        eprintln!("device-guest: {error}");
    }
    // PID 1 that ends panics its kernel; this one waits to be killed with its machine.
    loop {
        std::thread::park();
    }
}

fn run() -> Result<(), Failure> {
    machine::prepare().map_err(|error| format!("cannot prepare the guest: {error}"))?;
    link::bring_up(CARD, GUEST).map_err(|error| format!("cannot bring {CARD} up: {error}"))?;
    let mut control = Control::dial()?;
    let outcome = disk::measure(&mut control).and_then(|()| network::measure(&mut control));
    control.say(&match &outcome {
        Ok(()) => Line::Done,
        Err(error) => Line::Failed(error.to_string()),
    })?;
    outcome
}

/// The control connection: the host takes note of every line before the guest goes on.
struct Control {
    stream: TcpStream,
}

impl Control {
    fn dial() -> Result<Self, Failure> {
        let stream = network::dial(Service::Control, 0)
            .map_err(|error| format!("the host cannot be reached: {error}"))?;
        Ok(Self { stream })
    }

    fn say(&mut self, line: &Line) -> Result<(), Failure> {
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        let mut heard = [0];
        self.stream.read_exact(&mut heard)?;
        Ok(())
    }

    /// Measures one phase.
    fn phase(&mut self, name: &str, body: impl FnOnce() -> Result<Outcome, Failure>) -> Result<(), Failure> {
        self.say(&Line::Begin(name.to_owned()))?;
        let outcome = body().map_err(|error| format!("{name}: {error}"))?;
        self.say(&Line::End(name.to_owned(), outcome))?;
        // One line a figure on the console, for who looks at this guest alone.
        println!("{name} {outcome:?}");
        Ok(())
    }
}
