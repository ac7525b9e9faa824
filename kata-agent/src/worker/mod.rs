//! The agent's short-lived child: everything that can block or must not happen in the agent.
//!
//! A fresh process of one thread for each order. It mounts, looks into root file systems and makes containers, whose
//! first processes become the agent's own children. Must not know connections or RPC.

mod call;
mod cgroup;
mod copy;
mod create;
mod etc;
mod given;
pub(crate) mod machine;
mod network;
mod ownership;
mod partition;
mod pause;
mod remove;
mod shares;
pub(crate) mod storage;
mod tables;
mod verity;
mod volumes;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::RawFd;

use kata_agent_proto::{Failed, FailureKind};

use crate::birth::hooks;
use crate::order::{Hooks, Order};
use crate::outcome::{Outcome, failure_line, line};
use crate::sys;

/// Reads the order, carries it out, and writes the outcome.
pub(crate) fn run(order: RawFd, outcome: RawFd) -> io::Result<()> {
    let order = serde_json::from_reader(io::BufReader::new(File::from(sys::take_fd(order)?)))?;
    let outcome = sys::take_fd(outcome)?;
    rustix::io::fcntl_setfd(&outcome, rustix::io::FdFlags::CLOEXEC)?;
    let line = match carry_out(order) {
        Ok(answer) => line(&answer),
        Err(failed) => failure_line(failed),
    };
    File::from(outcome).write_all(&line)
}

fn carry_out(order: Order) -> Result<Outcome, Failed> {
    match order {
        Order::Create(create) => create::create(*create).map(Outcome::Process),
        Order::Hooks(Hooks {
            list,
            state,
            status,
            pid,
        }) => hooks::run(&list, &state, &status, pid).map(|()| Outcome::Done),
        Order::Update(update) => update.limits.apply(&update.cgroup).map(|()| Outcome::Done),
        Order::Remove(remove) => remove::remove(&remove).map(|()| Outcome::Done),
        Order::Copy(order) => copy::copy(&order).map(|()| Outcome::Done),
        Order::Pause => pause::start().map(Outcome::Process),
        Order::Mount(storages) => {
            storage::mount_all(&storages)?.keep();
            Ok(Outcome::Done)
        }
        Order::Call(call) => call::carry_out(call).map(|()| Outcome::Done),
    }
}

/// A failure that is only text.
fn container_failure(error: &dyn std::error::Error) -> Failed {
    Failed::new(FailureKind::Container, error.to_string())
}

/// What the guest could not do, with what it was about.
fn guest_failure(what: impl std::fmt::Display, error: &io::Error) -> Failed {
    Failed::new(FailureKind::Guest, format!("{what}: {error}"))
}
