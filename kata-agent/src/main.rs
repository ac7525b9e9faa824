#![doc = include_str!("../README.md")]
//!
//! One program with three roles: the first process of a guest, the same agent as an ordinary process,
//! and the agent's short-lived worker. Must not know hypervisors, images or the host's side.

mod agent;
mod args;
mod birth;
mod boot;
mod calls;
mod console;
mod container;
mod copies;
mod copy_file;
mod devices;
mod disks;
mod exec;
mod extent;
mod freezer;
mod guest;
mod ipc;
mod kernel_log;
mod launch;
mod limits;
mod metrics;
mod names;
mod nest;
mod oom;
mod order;
mod outcome;
mod process;
mod pump;
mod reaper;
mod rootfs;
mod roster;
mod sandbox;
mod seccomp;
mod server;
mod sharing;
mod spec;
mod stats;
mod streams;
mod sys;
mod terminal;
mod transport;
mod watched;
mod worker;

use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kata_agent_proto::Hello;

use crate::agent::AgentError;
use crate::args::{Connections, ProcessMode, Role};
use crate::boot::Timeline;
use crate::disks::Disks;
use crate::exec::Joiner;
use crate::guest::{Guest, boot_time_ns};
use crate::sandbox::{Sandbox, Settings};
use crate::transport::{Channel, Listening, Transport, Vsock};

/// The cgroup of all containers in a guest.
const GUEST_CGROUP: &str = "/kata";

fn main() -> ExitCode {
    let init_start_ns = boot_time_ns();
    let pid_one = std::process::id() == 1;
    let ended = match args::parse(std::env::args().skip(1), pid_one) {
        Ok(Role::Init) => init(init_start_ns),
        Ok(Role::Process(mode)) => process(mode, init_start_ns),
        Ok(Role::Worker { order, outcome }) => worker::run(order, outcome).map_err(Into::into),
        Err(usage) => Err(usage.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            warn(&chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// One short line on the console, which may be a slow serial line.
fn warn(text: &str) {
    use std::io::Write;
    // There is no other place to complain.
    let _ = writeln!(std::io::stderr(), "kata-agent: {text}");
}

fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |error: &&dyn Error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn init(init_start_ns: u64) -> Result<(), Box<dyn Error>> {
    let Timeline {
        modules_ns,
        mounts_ns,
    } = boot::set_up()?;
    let hello = Hello {
        init_start_ns,
        modules_ns,
        mounts_ns,
        ..hello()
    };
    let settings = Settings {
        guest: Guest::Machine,
        cgroup: PathBuf::from(GUEST_CGROUP),
        disks: Disks::devices(),
    };
    run(settings, hello, || Ok(Transport::Vsock(Vsock::listen()?)))
}

fn process(mode: ProcessMode, init_start_ns: u64) -> Result<(), Box<dyn Error>> {
    // Before the namespaces are left: it is to be found in those that it was asked for in.
    let carrier = match mode.connections {
        Connections::Channel(channel) => Carrier::Channel(sys::take_fd(channel)?),
        Connections::Listen(address) => Carrier::Listening(Listening::at(&address)?),
    };
    let disk = |(serial, fd)| Ok((serial, sys::take_fd(fd)?));
    let disks = mode
        .disks
        .into_iter()
        .map(disk)
        .collect::<std::io::Result<Vec<_>>>()?;
    for (_, disk) in &disks {
        rustix::io::fcntl_setfd(disk, rustix::io::FdFlags::CLOEXEC)?;
    }
    // Who only has a socket names roots of containers by their paths, wherever these are.
    let cgroup = nest::enter(matches!(carrier, Carrier::Listening(_)))?;
    let now = boot_time_ns();
    let hello = Hello {
        init_start_ns,
        modules_ns: now,
        mounts_ns: now,
        process_mode: true,
        ..hello()
    };
    let settings = Settings {
        guest: Guest::Process,
        cgroup,
        disks: Disks::files(disks),
    };
    run(settings, hello, || match carrier {
        Carrier::Channel(channel) => Ok(Transport::Channel(Channel::new(channel)?)),
        Carrier::Listening(listening) => Ok(Transport::Listener(listening.start()?)),
    })
}

/// What an ordinary process has its connections from, before there is an event loop.
enum Carrier {
    Channel(OwnedFd),
    Listening(Listening),
}

fn hello() -> Hello {
    Hello {
        agent_version: env!("CARGO_PKG_VERSION").into(),
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        ..Default::default()
    }
}

/// The agent's life, on one thread.
fn run(
    settings: Settings,
    hello: Hello,
    transport: impl FnOnce() -> std::io::Result<Transport>,
) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guest = settings.guest;
    std::fs::create_dir_all("/run/kata")?;
    let sandbox = Arc::new(Sandbox::new(settings, Joiner::new()?));
    let served = runtime.block_on(async {
        let transport = transport().map_err(AgentError::Listen)?;
        if guest == Guest::Machine {
            tokio::spawn(boot::load_found());
        }
        agent::serve(&transport, sandbox, hello).await
    });
    served?;
    Ok(guest.end()?)
}
