//! What a process takes on last, before its program: streams, directory, limits, user, privileges, filter.
//!
//! The same for a container's first process and for every further one. Runs in the process itself, within the container's
//! namespaces and root. Owns the order: what needs root comes before the user, what limits later steps comes last.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::plan::Label;
use super::words::Capabilities;
use super::{Plan, owner};
use crate::rootfs;
use crate::rootfs::passwd::Resolved;
use crate::sys;

/// The mask of modes where the specification has none, as other runtimes have it.
const UMASK: u32 = 0o022;

/// No success: there is nobody left to see it.
pub(crate) enum Never {}

/// A failure of a step that the container's specification has no field for.
pub(crate) fn step(what: &str) -> impl FnOnce(Errno) -> Failed + '_ {
    move |error| Failed::new(FailureKind::Container, format!("{what}: {error}"))
}

/// The user in numbers and the environment with a home, by the container's own files.
pub(crate) fn settle_user(plan: &Plan) -> Result<(Resolved, Vec<CString>), Failed> {
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
    let accounts = rootfs::accounts_of(Path::new("/"), plan.user.is_some())?;
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

/// Everything but the program.
pub(crate) fn take_on(plan: &Plan, user: &Resolved) -> Result<(), Failed> {
    if (user.uid, user.gid) != (0, 0) {
        owner::own_streams(user.uid, user.gid)?;
    }
    enter_directory(plan)?;
    set_limits(plan)?;
    rustix::process::umask(Mode::from_raw_mode(plan.umask.unwrap_or(UMASK)));
    set_identity(plan, user)?;
    if plan.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(step("process.noNewPrivileges"))?;
    }
    Ok(())
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

/// What of a machine it may use, in figures.
fn set_limits(plan: &Plan) -> Result<(), Failed> {
    let invalid = |field: &str, error: &dyn std::fmt::Display| {
        Failed::new(FailureKind::Invalid, format!("{field}: {error}"))
    };
    for (index, (resource, limit)) in plan.limits.iter().enumerate() {
        rustix::process::setrlimit(*resource, *limit)
            .map_err(|error| invalid(&format!("process.rlimits[{index}]"), &error))?;
    }
    if let Some(scheduling) = plan.scheduling {
        sys::set_scheduling(scheduling).map_err(|error| invalid("process.scheduler", &error))?;
    }
    if let Some((class, level)) = plan.io_priority {
        sys::set_io_priority(class, level).map_err(|error| invalid("process.ioPriority", &error))?;
    }
    if let Some(domain) = plan.traits.personality {
        sys::set_personality(domain).map_err(|error| invalid("linux.personality", &error))?;
    }
    Ok(())
}

/// Groups, user and capabilities. The limit to what can be gained comes first, what is held last.
fn set_identity(plan: &Plan, user: &Resolved) -> Result<(), Failed> {
    let capabilities = step("process.capabilities");
    if let Some(sets) = &plan.capabilities {
        limit_capabilities(sets).map_err(step("process.capabilities.bounding"))?;
    }
    if plan.capabilities.is_some() || plan.loads_as_root() {
        rustix::thread::set_keep_capabilities(true).map_err(capabilities)?;
    }
    let groups: Vec<_> = user
        .additional_gids
        .iter()
        .map(|gid| rustix::fs::Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups).map_err(unmapped("process.user.additionalGids"))?;
    let gid = rustix::fs::Gid::from_raw(user.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(unmapped("process.user.gid"))?;
    let uid = rustix::fs::Uid::from_raw(user.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(unmapped("process.user.uid"))?;
    match &plan.capabilities {
        Some(sets) => hold_capabilities(sets, plan.loads_as_root()),
        None if plan.loads_as_root() => hold_what_is_permitted(),
        None => Ok(()),
    }
}

/// The kernel refuses numbers that a user namespace does not map.
fn unmapped(field: &str) -> impl FnOnce(Errno) -> Failed + '_ {
    move |error| {
        let kind = match error {
            Errno::INVAL => FailureKind::Invalid,
            _ => FailureKind::Container,
        };
        Failed::new(kind, format!("{field}: {error}"))
    }
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

/// With what the loading of a filter needs, until the program takes what is left of it away: an execve(2) computes all
/// sets anew, from those that are only the specification's (capabilities(7), `P'(permitted)`).
fn hold_capabilities(capabilities: &Capabilities, loads_filter: bool) -> Result<(), Failed> {
    let further = if loads_filter {
        CapabilitySet::SYS_ADMIN
    } else {
        CapabilitySet::empty()
    };
    let sets = CapabilitySets {
        effective: capabilities.effective | further,
        permitted: capabilities.permitted | further,
        inheritable: capabilities.inheritable,
    };
    rustix::thread::set_capabilities(None, sets).map_err(step("process.capabilities"))?;
    rustix::thread::clear_ambient_capability_set().map_err(step("process.capabilities.ambient"))?;
    for (name, capability) in capabilities.ambient.iter_names() {
        raise_ambient(name, capability)?;
    }
    Ok(())
}

fn hold_what_is_permitted() -> Result<(), Failed> {
    let mut sets = rustix::thread::capabilities(None).map_err(step("process.capabilities"))?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).map_err(step("process.capabilities"))
}

/// The kernel raises only what is permitted and inheritable.
fn raise_ambient(name: &str, capability: CapabilitySet) -> Result<(), Failed> {
    rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(|error| {
        Failed::new(
            FailureKind::Unsupported,
            format!("process.capabilities.ambient: CAP_{name}: {error}"),
        )
    })
}

/// Opens what a label is written to, which only the process itself can do; while `/proc` is the agent's.
pub(crate) fn open_label(plan: &Plan) -> Result<Option<OwnedFd>, Failed> {
    let Some(label) = &plan.label else {
        return Ok(None);
    };
    let (field, path) = match label {
        Label::AppArmor(_) => ("process.apparmorProfile", "/proc/thread-self/attr/apparmor/exec"),
        Label::Selinux(_) => ("process.selinuxLabel", "/proc/thread-self/attr/exec"),
    };
    let unsupported = |what: &str| Failed::new(FailureKind::Unsupported, format!("{field}: {what}"));
    if !label.is_known_to_kernel() {
        return Err(unsupported("the kernel has no such security module"));
    }
    let opened = File::options().write(true).open(path);
    opened
        .map(|file| Some(file.into()))
        .map_err(|error| unsupported(&error.to_string()))
}

/// Becomes the program: tries the candidates in order, as execvp(3) does. Nothing but execve(2) is left to be done under
/// the filter.
pub(crate) fn execute(plan: &Plan, env: &[CString], label: Option<OwnedFd>) -> Result<Never, Failed> {
    if let (Some(label), Some(file)) = (&plan.label, label) {
        let (field, text) = label.text();
        File::from(file)
            .write_all(text.as_bytes())
            .map_err(|error| Failed::new(FailureKind::Invalid, format!("{field}: {error}")))?;
    }
    if let Some(filter) = &plan.traits.filter {
        filter
            .load()
            .map_err(|error| Failed::new(FailureKind::Unsupported, format!("linux.seccomp: {error}")))?;
    }
    let mut kind = FailureKind::NotFound;
    for candidate in &plan.candidates {
        let error = sys::execve(candidate, &plan.args, env);
        match error.raw_os_error().unwrap_or(0) {
            libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG => {}
            libc::EACCES => kind = FailureKind::NotExecutable,
            libc::E2BIG => {
                return Err(Failed::new(
                    FailureKind::Invalid,
                    "process.args, process.env: arguments and environment are too long",
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
