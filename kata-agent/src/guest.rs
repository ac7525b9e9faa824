//! The guest itself: its name, clock, entropy and end.
//!
//! As an ordinary process the agent has a name of its own, but shares clock and entropy with the host:
//! there setting them is accepted and does nothing.

use std::io;
use std::time::Duration;

use kata_agent_proto::agent::{AgentDetails, GuestDetailsRequest, GuestDetailsResponse};
use rustix::time::{ClockId, Timespec};

use crate::sys;

/// Storage drivers that [`crate::worker`] knows.
const STORAGE_HANDLERS: [&str; 3] = ["blk", "ephemeral", "overlayfs"];

/// What kind of guest this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guest {
    /// A virtual machine, and the agent its first process.
    Machine,
    /// Namespaces of the host.
    Process,
}

/// CLOCK_BOOTTIME in nanoseconds.
pub(crate) fn boot_time_ns() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    let now = u64::try_from(now.tv_sec)
        .ok()
        .map(Duration::from_secs)
        .zip(u32::try_from(now.tv_nsec).ok());
    now.and_then(|(whole, part)| u64::try_from((whole + Duration::new(0, part)).as_nanos()).ok())
        .unwrap_or(0)
}

/// CLOCK_REALTIME in nanoseconds.
pub(crate) fn real_time_ns() -> i64 {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec)
}

impl Guest {
    /// Sets the clock.
    pub(crate) fn set_time(self, seconds: i64, microseconds: i64) -> io::Result<()> {
        if self == Guest::Process {
            return Ok(());
        }
        let nanoseconds = microseconds
            .checked_mul(1000)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
    }

    /// Feeds the random number generator, with full credit.
    pub(crate) fn reseed(self, bytes: &[u8]) -> io::Result<()> {
        if self == Guest::Process {
            return Ok(());
        }
        sys::reseed_random(&std::fs::File::options().write(true).open("/dev/urandom")?, bytes)
    }

    /// Ends the guest: a machine goes off, a process exits.
    pub(crate) fn end(self) -> io::Result<()> {
        rustix::fs::sync();
        match self {
            Guest::Machine => Ok(rustix::system::reboot(rustix::system::RebootCommand::PowerOff)?),
            Guest::Process => Ok(()),
        }
    }

    /// What the agent and its guest can do.
    pub(crate) fn details(self, request: &GuestDetailsRequest) -> GuestDetailsResponse {
        let memory = std::path::Path::new("/sys/devices/system/memory");
        let block_size = || {
            let text = std::fs::read_to_string(memory.join("block_size_bytes")).ok()?;
            u64::from_str_radix(text.trim(), 16).ok()
        };
        GuestDetailsResponse {
            mem_block_size_bytes: request.mem_block_size.then(block_size).flatten().unwrap_or(0),
            support_mem_hotplug_probe: request.mem_hotplug_probe && memory.join("probe").exists(),
            agent_details: Some(AgentDetails {
                version: env!("CARGO_PKG_VERSION").into(),
                init_daemon: self == Guest::Machine,
                storage_handlers: STORAGE_HANDLERS.map(String::from).to_vec(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }
}
