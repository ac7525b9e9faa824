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
pub(crate) mod passwd;
mod pause;
pub(crate) mod program;
mod remove;
pub(crate) mod root;
mod shares;
pub(crate) mod storage;
mod tables;
mod verity;
mod volumes;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, RawFd};
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};
use serde_json::Value;

use crate::birth::hooks;
use crate::order::{Hooks, OUTCOME_MAX_BYTES, Order, Outcome};
use crate::sys;
use passwd::Accounts;
use root::Root;

/// Longest subject of a failure, so that the outcome fits.
const SUBJECT_MAX_BYTES: usize = OUTCOME_MAX_BYTES / 4;

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

fn line(outcome: &Outcome) -> Vec<u8> {
    // Numbers and text always have a JSON.
    let mut line = serde_json::to_vec(outcome).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A failure as an outcome that is written in one piece.
pub(crate) fn failure_line(failed: Failed) -> Vec<u8> {
    line(&Outcome::failed(&shortened(&failed)))
}

/// A failure that fits into an outcome.
pub(crate) fn shortened(failed: &Failed) -> Failed {
    let mut failed = failed.clone();
    truncate(&mut failed.subject);
    failed
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

fn truncate(text: &mut String) {
    if text.len() > SUBJECT_MAX_BYTES {
        let end = (0..=SUBJECT_MAX_BYTES)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
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

/// A failure of the agent's own files.
fn file_failure(path: &Path, error: &io::Error) -> Failed {
    Failed::new(FailureKind::Container, format!("{}: {error}", path.display()))
}

/// The accounts of a root that is a path, with or without its groups.
pub(crate) fn accounts_of(root: &Path, groups: bool) -> Result<Accounts, Failed> {
    let opened = Root::open(root).map_err(|error| file_failure(root, &error))?;
    accounts(&opened, groups)
}

fn accounts(root: &Root, groups: bool) -> Result<Accounts, Failed> {
    let read = |path: &str| {
        let path = Path::new(path);
        root.read(path).map_err(|error| file_failure(path, &error))
    };
    Ok(Accounts {
        passwd: read("/etc/passwd")?,
        group: if groups {
            read("/etc/group")?
        } else {
            String::new()
        },
    })
}

/// A number that fits, or zero.
pub(crate) fn number(value: &Value) -> u32 {
    value
        .as_u64()
        .and_then(|number| u32::try_from(number).ok())
        .unwrap_or(0)
}

/// The strings of a JSON array.
pub(crate) fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// Makes the standard streams that are pipes or a terminal the user's own, so that `/dev/stdout` can be opened.
pub(crate) fn own_streams(uid: u32, gid: u32) -> Result<(), Failed> {
    give_streams(uid, gid).map_err(|error| match error {
        rustix::io::Errno::INVAL => {
            let text =
                format!("process.user.uid, process.user.gid: {uid}:{gid} is nobody in the user namespace");
            Failed::new(FailureKind::Invalid, text)
        }
        error => Failed::new(FailureKind::Container, format!("standard streams: {error}")),
    })
}

/// Gives the standard streams to a user, by the numbers that this process sees.
pub(crate) fn give_streams(uid: u32, gid: u32) -> rustix::io::Result<()> {
    own_stream(&rustix::stdio::stdin(), uid, gid)?;
    own_stream(&rustix::stdio::stdout(), uid, gid)?;
    own_stream(&rustix::stdio::stderr(), uid, gid)
}

/// Gives one stream that is a pipe or a terminal to a user.
pub(crate) fn own_stream(stream: &impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let mode = rustix::fs::fstat(stream)?.st_mode;
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::Fifo => rustix::fs::fchown(stream, Some(uid), Some(gid)),
        // Its group is that of terminals.
        _ if rustix::termios::isatty(stream) => rustix::fs::fchown(stream, Some(uid), None),
        _ => Ok(()),
    }
}

/// The user and group that a process's namespace knows as root, as this process knows them.
pub(crate) fn host_root(pid: i32) -> rustix::io::Result<(u32, u32)> {
    let root = |file: &str| {
        let map = std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let map =
            map.map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))?;
        root_of(&map).ok_or(rustix::io::Errno::INVAL)
    };
    Ok((root("uid_map")?, root("gid_map")?))
}

/// Who is 0 inside, in the text of a map (user_namespaces(7)).
fn root_of(map: &str) -> Option<u32> {
    let mut lines = map
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|line| line.first() == Some(&"0"))?;
    line.get(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_in_a_map() {
        assert_eq!(root_of("         0     100000      65536\n"), Some(100_000));
        assert_eq!(root_of("1 5 1\n0 7 1\n"), Some(7));
        assert_eq!(root_of("1 5 1\n"), None);
    }

    #[test]
    fn a_long_failure_is_cut_where_a_character_ends() {
        let mut text = "ü".repeat(SUBJECT_MAX_BYTES);
        truncate(&mut text);
        assert!(text.len() <= SUBJECT_MAX_BYTES && text.ends_with('ü'));
    }
}
