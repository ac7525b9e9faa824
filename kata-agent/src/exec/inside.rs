//! The child's way from its birth to its program.
//!
//! Runs in a copy of the agent, which it must leave without touching anything that it shares with it.
//! Owns the order of the steps: what needs the agent's view comes before the namespaces, what needs
//! root before the user, and the descriptors of the agent are gone before the first path of the
//! container is followed.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{Mode, OFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::ThreadNameSpaceType;

use super::identity::{self, step};
use super::streams::Streams;
use super::{Plan, Target, owner};
use crate::outcome;
use crate::sys;

/// What leads from the agent into the container.
pub(super) struct Door<'a> {
    pub(super) target: Target<'a>,
    pub(super) streams: &'a Streams,
    /// Where a failure is told; closed by the execution of the program.
    pub(super) report: &'a OwnedFd,
}

/// Becomes the program, or reports why not and ends.
pub(super) fn run(plan: &Plan, door: &Door<'_>) -> ! {
    let _end = End;
    let Err(failed) = enter(plan, door).and_then(|entered| {
        let Entered { env, label } = entered;
        identity::execute(plan, &env, label)
    });
    let line = outcome::failure_line(failed);
    // An agent that is gone has nothing to be told.
    let _ = rustix::io::write(door.report, &line);
    sys::exit_now(1)
}

/// What the program is executed with.
struct Entered {
    env: Vec<CString>,
    label: Option<OwnedFd>,
}

/// Ends this process whatever happens: its caller is the agent's copy.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        sys::exit_now(1)
    }
}

/// Everything before the program.
fn enter(plan: &Plan, door: &Door<'_>) -> Result<Entered, Failed> {
    set_oom_score(plan)?;
    for list in &plan.affinity {
        rustix::thread::sched_setaffinity(None, list).map_err(|error| {
            Failed::new(FailureKind::Invalid, format!("process.execCPUAffinity: {error}"))
        })?;
    }
    let label = identity::open_label(plan)?;
    rustix::process::setsid().map_err(step("session"))?;
    join(door)?;
    leave_agent(plan, door, label.as_ref())?;
    let (user, env) = identity::settle_user(plan)?;
    identity::take_on(plan, &user)?;
    sys::default_signals();
    Ok(Entered { env, label })
}

/// While `/proc` is the agent's.
fn set_oom_score(plan: &Plan) -> Result<(), Failed> {
    let Some(score) = plan.oom_score_adj else {
        return Ok(());
    };
    std::fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(|error| {
        Failed::new(
            FailureKind::Invalid,
            format!("process.oomScoreAdj: {score}: {error}"),
        )
    })
}

/// From here on the container's processes see this one, and must not see the agent in it.
fn join(door: &Door<'_>) -> Result<(), Failed> {
    let target = &door.target;
    let pid = target.init.pid();
    let root = match target.namespaces.has_mount() {
        true => None,
        // The root is only the init's, not that of a mount namespace.
        false => Some(open_root(pid).map_err(|error| target.failed("root", error))?),
    };
    if target.namespaces.has_user() {
        give_streams(door, pid).map_err(|error| target.failed("standard streams", error))?;
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("dumpable"))?;
    let namespaces = target.namespaces.all() - ThreadNameSpaceType::PROCESS_ID;
    if !namespaces.is_empty() {
        rustix::thread::move_into_thread_name_spaces(target.init.as_fd(), namespaces)
            .map_err(|error| target.failed("namespaces", error))?;
    }
    if let Some(root) = root {
        rustix::process::fchdir(root).map_err(step("root"))?;
        rustix::process::chroot(".").map_err(step("root"))?;
    }
    if target.namespaces.has_user() {
        become_root().map_err(|error| target.failed("root of the user namespace", error))?;
    }
    Ok(())
}

fn open_root(pid: i32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())
}

/// What the container's root can own, who gives it to the user then.
fn give_streams(door: &Door<'_>, pid: i32) -> rustix::io::Result<()> {
    let (uid, gid) = owner::host_root(pid)?;
    let streams = door.streams;
    for stream in [&streams.stdin, &streams.stdout, &streams.stderr] {
        owner::own_stream(stream, uid, gid)?;
    }
    Ok(())
}

/// The user that a user namespace was made for; before, the process is nobody in it.
pub(crate) fn become_root() -> rustix::io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Leaves no descriptor but the standard streams, the report and what a label is written to.
fn leave_agent(plan: &Plan, door: &Door<'_>, label: Option<&OwnedFd>) -> Result<(), Failed> {
    rustix::stdio::dup2_stdin(&door.streams.stdin).map_err(step("standard input"))?;
    rustix::stdio::dup2_stdout(&door.streams.stdout).map_err(step("standard output"))?;
    rustix::stdio::dup2_stderr(&door.streams.stderr).map_err(step("standard error"))?;
    if plan.terminal.is_some() {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(step("controlling terminal"))?;
    }
    let kept: Vec<_> = [Some(door.report), label]
        .into_iter()
        .flatten()
        .map(AsFd::as_fd)
        .collect();
    sys::close_all_but(&kept)
        .map_err(|error| Failed::new(FailureKind::Container, format!("descriptors: {error}")))
}
