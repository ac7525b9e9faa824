//! Our monitor as a process, started as the SDK starts it.

use std::error::Error;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kata_vmm::control::{Event, PROTOCOL, Request, Socket};
use kata_vmm::machine::{Machine, MachineInfo, Running};

/// A monitor; dropped, it is killed, and its machine with it.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    control: Socket,
}

impl Monitor {
    /// Starts the program and asks it for a machine.
    ///
    /// # Errors
    /// When it cannot be started, or its socket fails.
    pub fn launch(
        program: &Path,
        machine: Machine,
        files: &[BorrowedFd<'_>],
    ) -> Result<Self, Box<dyn Error>> {
        let (control, theirs) = Socket::pair()?;
        let child = Command::new(program)
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let monitor = Self { child, control };
        let request = Request::Launch {
            protocol: PROTOCOL,
            machine: Box::new(machine),
        };
        monitor.control.send(&request, files)?;
        Ok(monitor)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the machine runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn running(&self) -> Result<Running, Box<dyn Error>> {
        self.until(|event| match event {
            Event::Launched(running) => Some(running),
            _ => None,
        })
    }

    /// The end of what the guest wrote to its console.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn console(&self) -> Result<String, Box<dyn Error>> {
        self.control.send(&Request::Console, &[])?;
        self.until(|event| match event {
            Event::Console { tail } => Some(tail),
            _ => None,
        })
    }

    /// The machine's figures.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn info(&self) -> Result<MachineInfo, Box<dyn Error>> {
        self.control.send(&Request::Info, &[])?;
        self.until(|event| match event {
            Event::Info(info) => Some(info),
            _ => None,
        })
    }

    fn until<T>(&self, mut wanted: impl FnMut(Event) -> Option<T>) -> Result<T, Box<dyn Error>> {
        loop {
            match self.control.recv::<Event>()?.ok_or("it ended without a word")?.0 {
                Event::LaunchFailed(error) => return Err(Box::new(error)),
                Event::Exited { reason, console_tail } => {
                    return Err(format!("its machine ended ({reason:?}):\n{console_tail}").into());
                }
                event => {
                    if let Some(answer) = wanted(event) {
                        return Ok(answer);
                    }
                }
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Both fail only when it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
