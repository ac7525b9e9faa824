//! The agent's short-lived child: everything that can block or must not happen in the agent.
//!
//! A fresh process of one thread for each order. It mounts, looks into root file systems and calls
//! libcontainer, whose processes become the agent's own children. Must not know connections or RPC.

mod call;
mod create;
mod etc;
mod exec;
mod executor;
mod given;
pub(crate) mod machine;
mod network;
mod ownership;
pub(crate) mod passwd;
mod pause;
pub(crate) mod program;
mod remove;
pub(crate) mod root;
mod shares;
mod storage;
mod tables;
mod volumes;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};
use serde_json::{Value, json};

use crate::order::{OUTCOME_MAX_BYTES, Order, Outcome, User};
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
pub(crate) fn failure_line(mut failed: Failed) -> Vec<u8> {
    truncate(&mut failed.subject);
    line(&Outcome::failed(&failed))
}

fn carry_out(order: Order) -> Result<Outcome, Failed> {
    match order {
        Order::Create(create) => create::create(create).map(Outcome::Process),
        Order::Exec(exec) => exec::exec(exec).map(Outcome::Process),
        Order::Update(update) => update.limits.apply(&update.cgroup).map(|()| Outcome::Done),
        Order::Remove(remove) => remove::remove(&remove).map(|()| Outcome::Done),
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

/// A failure that is only text, with its causes.
fn container_failure(error: &dyn std::error::Error) -> Failed {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Failed::new(FailureKind::Container, text)
}

/// Writes a part of an OCI specification and has it read again as libcontainer reads it.
///
/// The same reader is used on purpose: another one would be half a megabyte of further code.
fn write_checked<T: serde::de::DeserializeOwned>(path: &Path, value: &Value) -> Result<(), Failed> {
    let file = std::fs::write(path, value.to_string()).and_then(|()| File::open(path));
    let file = file.map_err(|error| file_failure(path, &error))?;
    let checked = serde_json::from_reader::<_, T>(io::BufReader::new(file));
    checked
        .map(drop)
        .map_err(|error| Failed::new(FailureKind::Invalid, error.to_string()))
}

/// What the guest could not do, with what it was about.
fn guest_failure(what: impl std::fmt::Display, error: &io::Error) -> Failed {
    Failed::new(FailureKind::Guest, format!("{what}: {error}"))
}

/// A failure of the agent's own files.
fn file_failure(path: &Path, error: &io::Error) -> Failed {
    Failed::new(FailureKind::Container, format!("{}: {error}", path.display()))
}

/// Gives a process of an OCI specification its user in numbers, and a home. Returns user and group.
fn settle_user(process: &mut Value, user: Option<&User>, root: &Root) -> Result<(u32, u32), Failed> {
    let accounts = accounts(root, true)?;
    let home = match user {
        Some(user) => {
            let resolved = accounts.resolve(user)?;
            process["user"]["uid"] = json!(resolved.uid);
            process["user"]["gid"] = json!(resolved.gid);
            process["user"]["additionalGids"] = json!(resolved.additional_gids);
            resolved.home
        }
        None => accounts.home(number(&process["user"]["uid"])),
    };
    set_home(process, home);
    Ok((number(&process["user"]["uid"]), number(&process["user"]["gid"])))
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

fn set_home(process: &mut Value, home: Option<String>) {
    let home = home.filter(|home| !home.is_empty()).unwrap_or_else(|| "/".into());
    match &mut process["env"] {
        Value::Array(env) if env.iter().any(is_home) => {}
        Value::Array(env) => env.push(json!(format!("HOME={home}"))),
        env => *env = json!([format!("HOME={home}")]),
    }
}

fn is_home(entry: &Value) -> bool {
    entry.as_str().is_some_and(|entry| entry.starts_with("HOME="))
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

/// Fails with a kind when the program of a process is not there or cannot be executed.
fn check_program(process: &Value, root: &Root, hidden: impl Fn(&Path) -> bool) -> Result<(), Failed> {
    let args = strings(&process["args"]);
    let env = strings(&process["env"]);
    let Some(name) = args.first() else {
        return Ok(());
    };
    let cwd = Path::new(process["cwd"].as_str().unwrap_or("/"));
    let candidates = program::candidates(name, program::search_path(&env), cwd);
    program::find(name, &candidates, |path| root.is_executable(path), hidden)
}

/// Makes the standard streams that are pipes or a terminal the user's own, so that `/dev/stdout` can be opened.
pub(crate) fn own_streams(uid: u32, gid: u32) -> Result<(), Failed> {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        own_stream(stream, uid, gid).map_err(|error| container_failure(&io::Error::from(error)))?;
    }
    Ok(())
}

fn own_stream(stream: impl std::os::fd::AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let mode = rustix::fs::fstat(&stream)?.st_mode;
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::Fifo => rustix::fs::fchown(stream, Some(uid), Some(gid)),
        // Its group is that of terminals.
        _ if rustix::termios::isatty(&stream) => rustix::fs::fchown(stream, Some(uid), None),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_set_only_when_it_is_not() {
        let mut process = json!({ "env": ["A=1"] });
        set_home(&mut process, Some("/home/web".into()));
        set_home(&mut process, Some("/other".into()));
        assert_eq!(process["env"], json!(["A=1", "HOME=/home/web"]));
        let mut process = json!({});
        set_home(&mut process, None);
        assert_eq!(process["env"], json!(["HOME=/"]));
    }

    #[test]
    fn words_that_the_oci_specification_does_not_know_are_invalid() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("process.json");
        let write = |bounding: &str| {
            let process = json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/", "capabilities": { "bounding": [bounding] } });
            write_checked::<libcontainer::oci_spec::runtime::Process>(&path, &process)
        };
        assert_eq!(write("CAP_KILL"), Ok(()));
        let failed = write("CAP_FLY").expect_err("no such capability");
        assert_eq!(failed.kind, FailureKind::Invalid);
        assert!(failed.subject.contains("CAP_FLY"), "{failed}");
    }

    #[test]
    fn a_long_failure_is_cut_where_a_character_ends() {
        let mut text = "ü".repeat(SUBJECT_MAX_BYTES);
        truncate(&mut text);
        assert!(text.len() <= SUBJECT_MAX_BYTES && text.ends_with('ü'));
    }
}
