//! Making a container's first process: namespaces, mounts, hooks, and the wait for its start.
//!
//! ```text
//!  worker ──clone3(namespaces, cgroup)──► process ──► mounts ──► (hooks) ──► root ──► user ──► waits ──► program
//!     └── maps, OOM score ─── go ──────────►               └── hooks of the runtime: here, in the worker
//! ```
//!
//! Owns the birth and what the worker does for the process from outside; the process is a child of the worker's parent, the
//! agent. A failure of any step is one of the whole, by the field of the specification that it is about, and ends the
//! process. Must not know limits, storages or the API's messages.

mod copy_up;
mod devices;
pub(crate) mod hooks;
mod id_map;
mod inside;
mod join;
mod link;
mod mounts;
mod options;
mod plan;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags};
use rustix::thread::ThreadNameSpaceType;
use serde_json::Value;

use self::hooks::State;
use self::inside::Door;
use self::join::Joins;
use self::link::{Link, Word};
use self::plan::Plan;
use crate::exec::{Traits, owner};
use crate::rootfs::passwd::User;
use crate::sys::{self, Birth};

/// What a first process is made of, beside its specification.
pub(crate) struct Place<'a> {
    pub(crate) state: &'a State,
    pub(crate) user: Option<&'a User>,
    pub(crate) traits: Arc<Traits>,
    pub(crate) bundle: &'a Path,
    /// Absolute path of the cgroup's directory, which exists.
    pub(crate) cgroup: &'a Path,
    /// Where the start is waited for.
    pub(crate) start: OwnedFd,
    /// Where a terminal's master is sent to.
    pub(crate) console: Option<&'a Path>,
    /// It becomes no program.
    pub(crate) idle: bool,
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> Failed + '_ {
    move |error| Failed::new(FailureKind::Container, format!("{what}: {error}"))
}

fn errno(what: &str) -> impl FnOnce(rustix::io::Errno) -> Failed + '_ {
    move |error| failed(what)(error.into())
}

/// Makes the process and returns its id; it waits to be started.
///
/// # Errors
/// By the field that is the cause. Nothing of the process is left then.
pub(crate) fn make(spec: &Value, place: Place<'_>) -> Result<i32, Failed> {
    let plan = Plan::new(spec, place.user, &place.traits)?;
    let (link, theirs) = link::pair().map_err(failed("worker process"))?;
    let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let cgroup = open(place.cgroup).map_err(errno("linux.cgroupsPath"))?;
    let door = Door {
        link: theirs,
        start: place.start,
        sysctl: open(Path::new("/proc/sys")).map_err(errno("/proc/sys"))?,
        state: place.state,
        bundle: place.bundle,
        cgroup: place.cgroup,
        sources: open_sources(&plan, place.bundle)?,
        joins: Joins::open(&plan.namespaces)?,
        idle: place.idle,
    };
    if place.idle {
        // The process inherits this: what comes before it idles waits for it.
        sys::block_idle_signals().map_err(failed("signals"))?;
    }
    // The container's processes must not see the agent in what is made for them.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(errno("dumpable"))?;
    let (pid, pidfd) = if door.joins.by_helper {
        Joins::start_helper(&plan, door, &cgroup)?;
        hear_of_birth(&link)?
    } else {
        match sys::fork_sibling(at_birth(&plan.namespaces), Some(cgroup.as_fd())) {
            Ok(Birth::Child) => inside::run(&plan, door),
            Ok(Birth::Parent { pid, pidfd }) => (pid, pidfd),
            Err(error) => return Err(join::birth_failed(error)),
        }
    };
    let process = Process { pid, pidfd };
    see_through(
        &plan,
        &process,
        &link,
        &place.cgroup.join("cgroup.procs"),
        place.state,
        place.console,
    )
    .inspect_err(|_| process.kill())?;
    Ok(process.pid)
}

/// The namespaces that are made with the process; the others need a process to make them.
fn at_birth(namespaces: &plan::Namespaces) -> u32 {
    (namespaces.new - ThreadNameSpaceType::CONTROL_GROUP - ThreadNameSpaceType::TIME).bits()
}

/// The process, as the worker has it.
struct Process {
    pid: i32,
    pidfd: OwnedFd,
}

impl Process {
    fn kill(&self) {
        // One that has ended needs no signal.
        let _ = sys::pidfd_signal(&self.pidfd, libc::SIGKILL);
    }
}

/// The sources of bind mounts that the process cannot open itself: in a user namespace their paths may be closed to the
/// container's root, and owners are mapped by the right of the agent's.
fn open_sources(plan: &Plan, bundle: &Path) -> Result<BTreeMap<String, OwnedFd>, Failed> {
    let mut sources = BTreeMap::new();
    let user = plan.namespaces.has(ThreadNameSpaceType::USER);
    for mount in &plan.mounts {
        let options = &mount.options;
        if options.bind.is_some() && !options.remount && (user || options.id_map.is_some()) {
            let tree = mounts::open_source(mount, bundle)?;
            if let Some(recursive) = options.id_map {
                id_map::apply(mount, &tree, recursive, &plan.namespaces)?;
            }
            sources.insert(mount.field.clone(), tree);
        }
    }
    Ok(sources)
}

fn hear_of_birth(link: &Link) -> Result<(i32, OwnedFd), Failed> {
    match link.hear().map_err(failed("worker process"))? {
        Some((Word::Born(pid), _)) => {
            let known = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH);
            let pidfd = known.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
            Ok((pid, pidfd.map_err(errno("process"))?))
        }
        other => Err(unexpected(other)),
    }
}

fn unexpected(heard: Option<(Word, Option<OwnedFd>)>) -> Failed {
    match heard {
        Some((Word::Failed(outcome), _)) => match outcome.into_result() {
            Err(failed) => failed,
            Ok(_) => Failed::new(FailureKind::Container, "the process gave up"),
        },
        _ => Failed::new(FailureKind::Container, "the process ended on its way"),
    }
}

/// Does what is to be done from outside until the process waits for its start.
fn see_through(
    plan: &Plan,
    process: &Process,
    link: &Link,
    procs: &Path,
    state: &State,
    console: Option<&Path>,
) -> Result<(), Failed> {
    prepare(plan, process, procs)?;
    link.go().map_err(failed("worker process"))?;
    loop {
        match link.hear().map_err(failed("worker process"))? {
            Some((Word::Ready, _)) => return Ok(()),
            Some((Word::Terminal, Some(terminal))) => {
                let console = console
                    .ok_or_else(|| Failed::new(FailureKind::Invalid, "process.terminal: no console"))?;
                link::send_console(console, &terminal).map_err(failed("process.terminal"))?;
            }
            Some((Word::Hooks, _)) => {
                hooks::run(&plan.hooks.prestart, state, "creating", Some(process.pid))?;
                hooks::run(&plan.hooks.create_runtime, state, "creating", Some(process.pid))?;
                link.go().map_err(failed("worker process"))?;
            }
            other => return Err(unexpected(other)),
        }
    }
}

/// What of a process is written from outside.
fn prepare(plan: &Plan, process: &Process, procs: &Path) -> Result<(), Failed> {
    let pid = process.pid;
    let spaces = &plan.namespaces;
    let write = |field: &str, file: &str, text: &str| {
        fs::write(format!("/proc/{pid}/{file}"), text).map_err(|error| {
            Failed::new(
                FailureKind::Invalid,
                format!("{field}: {}: {error}", text.trim_end()),
            )
        })
    };
    if spaces.makes(ThreadNameSpaceType::USER) {
        write("linux.uidMappings", "uid_map", &spaces.uid_map)?;
        write("linux.gidMappings", "gid_map", &spaces.gid_map)?;
    }
    if let Some(score) = plan.process.oom_score_adj {
        write("process.oomScoreAdj", "oom_score_adj", &score.to_string())?;
    }
    if spaces.joins(ThreadNameSpaceType::USER) {
        // Its birth had no right to the cgroup.
        fs::write(procs, pid.to_string()).map_err(failed("linux.cgroupsPath"))?;
    }
    if spaces.has(ThreadNameSpaceType::USER) {
        let (uid, gid) = owner::host_root(pid).map_err(|error| {
            let text = format!("linux.uidMappings, linux.gidMappings: of root: {error}");
            Failed::new(FailureKind::Invalid, text)
        })?;
        owner::give_streams(uid, gid).map_err(errno("standard streams"))?;
    }
    Ok(())
}
