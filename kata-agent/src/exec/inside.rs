//! The child's way from its birth to its program.
//!
//! Runs in a copy of the agent, which it must leave without touching anything that it shares with it.
//! Owns the order of the steps: what needs the agent's view comes before the namespaces, what needs
//! root before the user, and the descriptors of the agent are gone before the first path of the
//! container is followed.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType};

use super::words::Capabilities;
use super::{Plan, Target};
use crate::launch::Streams;
use crate::sys;
use crate::worker;
use crate::worker::passwd::Resolved;

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
    let Err(failed) = enter(plan, door).and_then(|env| execute(plan, &env));
    let line = worker::failure_line(failed);
    // An agent that is gone has nothing to be told.
    let _ = rustix::io::write(door.report, &line);
    sys::exit_now(1)
}

/// Ends this process whatever happens: its caller is the agent's copy.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        sys::exit_now(1)
    }
}

/// No success: there is nobody left to see it.
enum Never {}

fn step(what: &str) -> impl FnOnce(Errno) -> Failed + '_ {
    move |error| Failed::new(FailureKind::Container, format!("{what}: {error}"))
}

/// Everything before the program; returns its environment.
fn enter(plan: &Plan, door: &Door<'_>) -> Result<Vec<CString>, Failed> {
    set_oom_score(plan)?;
    rustix::process::setsid().map_err(step("session"))?;
    join(door)?;
    leave_agent(plan, door)?;
    let (user, env) = settle_user(plan)?;
    if (user.uid, user.gid) != (0, 0) {
        worker::own_streams(user.uid, user.gid)?;
    }
    enter_directory(plan)?;
    for (resource, limit) in &plan.limits {
        rustix::process::setrlimit(*resource, *limit).map_err(step("resource limit"))?;
    }
    set_identity(plan, &user)?;
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(step("no new privileges"))?;
    }
    sys::default_signals();
    Ok(env)
}

/// While `/proc` is the agent's.
fn set_oom_score(plan: &Plan) -> Result<(), Failed> {
    let Some(score) = plan.oom_score_adj else {
        return Ok(());
    };
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|error| Failed::new(FailureKind::Invalid, format!("OOM score {score}: {error}")))
}

/// From here on the container's processes see this one, and must not see the agent in it.
fn join(door: &Door<'_>) -> Result<(), Failed> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("dumpable"))?;
    let target = &door.target;
    let namespaces = target.namespaces.0 - ThreadNameSpaceType::PROCESS_ID;
    rustix::thread::move_into_thread_name_spaces(target.init.as_fd(), namespaces)
        .map_err(|error| target.failed("namespaces", error))
}

/// Leaves no descriptor but the standard streams and the report.
fn leave_agent(plan: &Plan, door: &Door<'_>) -> Result<(), Failed> {
    rustix::stdio::dup2_stdin(&door.streams.stdin).map_err(step("standard input"))?;
    rustix::stdio::dup2_stdout(&door.streams.stdout).map_err(step("standard output"))?;
    rustix::stdio::dup2_stderr(&door.streams.stderr).map_err(step("standard error"))?;
    if plan.terminal.is_some() {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(step("controlling terminal"))?;
    }
    sys::close_all_but(door.report)
        .map_err(|error| Failed::new(FailureKind::Container, format!("descriptors: {error}")))
}

/// The user in numbers and the environment with a home, by the container's own files.
fn settle_user(plan: &Plan) -> Result<(Resolved, Vec<CString>), Failed> {
    let mut env = plan.env.clone();
    let mut user = Resolved {
        uid: plan.uid,
        gid: plan.gid,
        additional_gids: plan.additional_gids.clone(),
        home: None,
    };
    if plan.user.is_none() && plan.has_home {
        return Ok((user, env));
    }
    let accounts = worker::accounts_of(Path::new("/"), plan.user.is_some())?;
    match &plan.user {
        Some(named) => user = accounts.resolve(named)?,
        None => user.home = accounts.home(user.uid),
    }
    if !plan.has_home {
        env.push(home(user.home.as_deref()));
    }
    Ok((user, env))
}

fn home(directory: Option<&str>) -> CString {
    let directory = directory.filter(|directory| !directory.is_empty());
    CString::new(format!("HOME={}", directory.unwrap_or("/"))).unwrap_or_else(|_| c"HOME=/".to_owned())
}

fn enter_directory(plan: &Plan) -> Result<(), Failed> {
    let refuse = |_| Failed::new(FailureKind::NoSuchDirectory, plan.cwd.to_string_lossy());
    rustix::process::chdir(plan.cwd.as_c_str()).map_err(refuse)?;
    // A directory outside the root has no path that begins at it (getcwd(2)).
    let reached = rustix::process::getcwd(Vec::new()).map_err(refuse)?;
    if reached.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(refuse(Errno::NOENT))
    }
}

/// Groups, user and capabilities. The limit to what can be gained comes first, what is held last.
fn set_identity(plan: &Plan, user: &Resolved) -> Result<(), Failed> {
    if let Some(capabilities) = &plan.capabilities {
        limit_capabilities(capabilities).map_err(step("bounding capabilities"))?;
        rustix::thread::set_keep_capabilities(true).map_err(step("capabilities"))?;
    }
    let groups: Vec<_> = user
        .additional_gids
        .iter()
        .map(|gid| rustix::fs::Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups).map_err(step("additional groups"))?;
    let gid = rustix::fs::Gid::from_raw(user.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("group"))?;
    let uid = rustix::fs::Uid::from_raw(user.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("user"))?;
    plan.capabilities.as_ref().map_or(Ok(()), hold_capabilities)
}

fn limit_capabilities(capabilities: &Capabilities) -> Result<(), Errno> {
    for (_, capability) in (!capabilities.bounding).iter_names() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know cannot be gained.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn hold_capabilities(capabilities: &Capabilities) -> Result<(), Failed> {
    let sets = CapabilitySets {
        effective: capabilities.effective,
        permitted: capabilities.permitted,
        inheritable: capabilities.inheritable,
    };
    rustix::thread::set_capabilities(None, sets).map_err(step("capabilities"))?;
    rustix::thread::clear_ambient_capability_set().map_err(step("ambient capabilities"))?;
    for (name, capability) in capabilities.ambient.iter_names() {
        raise_ambient(name, capability)?;
    }
    Ok(())
}

/// The kernel raises only what is permitted and inheritable.
fn raise_ambient(name: &str, capability: CapabilitySet) -> Result<(), Failed> {
    rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(|error| {
        Failed::new(
            FailureKind::Unsupported,
            format!("ambient capability CAP_{name}: {error}"),
        )
    })
}

/// Tries the candidates in order, as execvp(3) does.
fn execute(plan: &Plan, env: &[CString]) -> Result<Never, Failed> {
    let mut kind = FailureKind::NotFound;
    for candidate in &plan.candidates {
        let error = sys::execve(candidate, &plan.args, env);
        match error.raw_os_error().unwrap_or(0) {
            libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG => {}
            libc::EACCES => kind = FailureKind::NotExecutable,
            libc::E2BIG => {
                return Err(Failed::new(
                    FailureKind::Invalid,
                    "arguments and environment are too long",
                ));
            }
            libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::EIO => {
                return Err(Failed::new(
                    FailureKind::Container,
                    format!("{}: {error}", plan.program()),
                ));
            }
            _ => return Err(Failed::new(FailureKind::NotExecutable, plan.program())),
        }
    }
    Err(Failed::new(kind, plan.program()))
}
