//! The way of a container's first process from its birth to its program.
//!
//! Runs in the process itself. Owns the order of the steps (runtime.md#lifecycle): namespaces are its own from birth; what
//! is mounted goes by the agent's view, which is left with the root; what needs root comes before the user.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::ThreadNameSpaceType;

use super::devices::{self, Way};
use super::hooks::{self, State};
use super::join::Joins;
use super::link::{Link, Word};
use super::mounts::{self, Tree};
use super::plan::{Plan, Sysctl};
use crate::exec::identity::{self, step};
use crate::exec::inside::become_root;
use crate::outcome::{self, Outcome};
use crate::rootfs::program;
use crate::rootfs::root::Root;
use crate::sys;
use crate::terminal;

/// Exit code of a program that does not exist.
const NOT_FOUND: i32 = 127;
/// Exit code of a program that exists and cannot be executed, or of whatever else fails on the way to it.
const NOT_EXECUTABLE: i32 = 126;

/// What leads from the worker into the container.
pub(super) struct Door<'a> {
    pub(super) link: Link,
    /// Where the start is waited for, and a failure after it is told; closed by the execution of the program.
    pub(super) start: OwnedFd,
    /// `/proc/sys` of the agent, of which the container's part is what this process sees.
    pub(super) sysctl: OwnedFd,
    pub(super) state: &'a State,
    pub(super) bundle: &'a Path,
    pub(super) cgroup: &'a Path,
    pub(super) joins: Joins,
    /// Sources of mounts that had to be opened outside, by the field of the mount.
    pub(super) sources: std::collections::BTreeMap<String, OwnedFd>,
    /// It becomes no program.
    pub(super) idle: bool,
}

/// What is left for the start.
struct Ready {
    env: Vec<CString>,
    label: Option<OwnedFd>,
    start: OwnedFd,
}

/// Becomes the program, or ends.
pub(super) fn run(plan: &Plan, mut door: Door<'_>) -> ! {
    let state = door.state;
    let idle = door.idle;
    let ready = match make(plan, &mut door) {
        Ok((env, label)) => Ready {
            env,
            label,
            start: door.start,
        },
        Err(failed) => give_up(&door.link, &failed),
    };
    if door.link.say(&Word::Ready, None).is_err() {
        sys::exit_now(NOT_EXECUTABLE);
    }
    drop(door.link);
    let mut byte = [0; 1];
    if !matches!(rustix::io::read(&ready.start, &mut byte), Ok(1)) {
        // Whoever would start it is gone.
        sys::exit_now(NOT_EXECUTABLE);
    }
    let failed = match start(plan, &ready, state, idle) {
        Ok(never) => match never {},
        Err(failed) => failed,
    };
    let code = match failed.kind {
        FailureKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    };
    // An agent that is gone has nothing to be told.
    let _ = rustix::io::write(&ready.start, &outcome::failure_line(failed));
    sys::exit_now(code)
}

/// Tells the worker why, and ends.
pub(super) fn give_up(link: &Link, failed: &Failed) -> ! {
    // A worker that is gone has nothing to be told.
    let _ = link.say(&Word::Failed(Outcome::failed(&outcome::shortened(failed))), None);
    sys::exit_now(NOT_EXECUTABLE)
}

enum Never {}

fn start(plan: &Plan, ready: &Ready, state: &State, idle: bool) -> Result<Never, Failed> {
    let own = i32::try_from(std::process::id()).ok();
    hooks::run(&plan.hooks.start_container, state, "created", own)?;
    if idle {
        // The name is for people; without it the process still idles.
        let _ = rustix::thread::set_name(c"pause");
        let rest: [std::os::fd::BorrowedFd<'_>; 0] = [];
        sys::close_all_but(&rest).map_err(|error| Failed::new(FailureKind::Container, error.to_string()))?;
        sys::exit_now(i32::from(sys::idle().is_err()));
    }
    sys::default_signals();
    let label = ready.label.as_ref().map(OwnedFd::try_clone).transpose();
    let label = label.map_err(|error| Failed::new(FailureKind::Container, error.to_string()))?;
    match identity::execute(&plan.process, &ready.env, label)? {}
}

fn link_failure(error: &std::io::Error) -> Failed {
    Failed::new(FailureKind::Container, format!("worker process: {error}"))
}

/// Everything before the start; returns what the program is executed with.
fn make(plan: &Plan, door: &mut Door<'_>) -> Result<(Vec<CString>, Option<OwnedFd>), Failed> {
    door.link.wait().map_err(|error| link_failure(&error))?;
    let spaces = &plan.namespaces;
    if !door.joins.by_helper {
        door.joins.join()?;
    }
    if spaces.has(ThreadNameSpaceType::USER) {
        become_root().map_err(|error| {
            let text = format!("linux.uidMappings, linux.gidMappings: no root: {error}");
            Failed::new(FailureKind::Invalid, text)
        })?;
    }
    let label = identity::open_label(&plan.process)?;
    rustix::process::setsid().map_err(step("session"))?;
    // What is made has the modes that are asked for.
    rustix::process::umask(Mode::empty());
    if spaces.makes(ThreadNameSpaceType::CONTROL_GROUP) {
        // Its root is the cgroup that this process is in by now.
        sys::unshare(ThreadNameSpaceType::CONTROL_GROUP.bits()).map_err(step("cgroup namespace"))?;
    }
    name(plan)?;
    if spaces.makes(ThreadNameSpaceType::NETWORK) {
        sys::loopback_up()
            .map_err(|error| Failed::new(FailureKind::Container, format!("loopback: {error}")))?;
    }
    if spaces.makes(ThreadNameSpaceType::MOUNT) {
        furnish(plan, door)?;
    } else {
        ask_for_hooks(door)?;
        let root = open_root(plan)?;
        set_sysctls(&door.sysctl, &plan.sysctls)?;
        rustix::process::fchdir(&root).map_err(step("root.path"))?;
        rustix::process::chroot(".").map_err(step("root.path"))?;
        rustix::process::chdir("/").map_err(step("root.path"))?;
    }
    let (user, env) = identity::settle_user(&plan.process)?;
    check_program(plan, door.idle)?;
    let kept = [
        Some(door.link.as_fd()),
        Some(door.start.as_fd()),
        label.as_ref().map(AsFd::as_fd),
    ];
    let kept: Vec<_> = kept.into_iter().flatten().collect();
    sys::close_all_but(&kept)
        .map_err(|error| Failed::new(FailureKind::Container, format!("descriptors: {error}")))?;
    identity::take_on(&plan.process, &user)?;
    Ok((env, label))
}

/// The names of the machine, where they are the container's own or joined.
fn name(plan: &Plan) -> Result<(), Failed> {
    let own = plan
        .namespaces
        .has(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME);
    if let Some(hostname) = &plan.hostname {
        let present = rustix::system::uname();
        if !own && present.nodename().to_bytes() != hostname.as_bytes() {
            let text = format!("hostname: {hostname:?} without a UTS namespace");
            return Err(Failed::new(FailureKind::Invalid, text));
        }
        if own {
            rustix::system::sethostname(hostname.as_bytes()).map_err(|error| {
                Failed::new(FailureKind::Invalid, format!("hostname: {hostname:?}: {error}"))
            })?;
        }
    }
    if let Some(domainname) = &plan.domainname {
        rustix::system::setdomainname(domainname.as_bytes()).map_err(|error| {
            Failed::new(
                FailureKind::Invalid,
                format!("domainname: {domainname:?}: {error}"),
            )
        })?;
    }
    Ok(())
}

/// The hooks of the runtime run in the worker, those of the container here; both before the root is entered.
fn ask_for_hooks(door: &Door<'_>) -> Result<(), Failed> {
    let asked = door.link.say(&Word::Hooks, None).and_then(|()| door.link.wait());
    asked.map_err(|error| link_failure(&error))
}

fn open_root(plan: &Plan) -> Result<OwnedFd, Failed> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&plan.root, flags, Mode::empty()).map_err(|error| root_failed(plan, error))
}

fn root_failed(plan: &Plan, error: Errno) -> Failed {
    let root = plan.root.display();
    match error {
        Errno::NOENT => Failed::new(FailureKind::NoSuchDirectory, root.to_string()),
        _ => Failed::new(FailureKind::Mount, format!("root.path: {root}: {error}")),
    }
}

/// Mounts and makes everything in the root, and enters it.
fn furnish(plan: &Plan, door: &mut Door<'_>) -> Result<(), Failed> {
    part_from_agent(plan).map_err(step("linux.rootfsPropagation"))?;
    let root = mounts::mount_root(&plan.root).map_err(|error| root_failed(plan, error))?;
    let again = root
        .try_clone()
        .map_err(|error| Failed::new(FailureKind::Container, error.to_string()))?;
    let own_cgroup = plan.namespaces.has(ThreadNameSpaceType::CONTROL_GROUP);
    let mut tree = Tree::new(
        Root::from_fd(again),
        door.bundle,
        (!own_cgroup).then_some(door.cgroup),
    );
    tree.sources = std::mem::take(&mut door.sources);
    tree.has_users = plan.namespaces.has(ThreadNameSpaceType::USER);
    tree.mount_all(&plan.mounts)?;
    let way = match plan.namespaces.has(ThreadNameSpaceType::USER) {
        true => Way::Borrow,
        false => Way::Make,
    };
    let bound =
        |mount: &super::plan::Mount| mount.destination == Path::new("/dev") && mount.options.bind.is_some();
    devices::make_all(&tree.root, &plan.devices, way, !plan.mounts.iter().any(bound))?;
    make_terminal(plan, door, &tree.root)?;
    make_working_directory(plan, &tree.root)?;
    ask_for_hooks(door)?;
    let own = i32::try_from(std::process::id()).ok();
    hooks::run(&plan.hooks.create_container, door.state, "creating", own)?;
    tree.seal()?;
    for (index, path) in plan.read_only_paths.iter().enumerate() {
        tree.protect(index, path)?;
    }
    for (index, path) in plan.masked_paths.iter().enumerate() {
        tree.mask(index, path)?;
    }
    set_sysctls(&door.sysctl, &plan.sysctls)?;
    if plan.read_only_root {
        mounts::make_read_only(&root, false).map_err(step("root.readonly"))?;
    }
    pivot(&root).map_err(step("root.path"))?;
    if let Some(propagation) = plan.propagation {
        mounts::propagate(&root, propagation).map_err(step("linux.rootfsPropagation"))?;
    }
    Ok(())
}

/// Nothing that is mounted here is seen by the agent, unless that is what is asked for.
fn part_from_agent(plan: &Plan) -> Result<(), Errno> {
    if plan
        .propagation
        .is_none_or(|propagation| propagation.kind != libc::MS_SHARED)
    {
        return rustix::mount::mount_change(
            "/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        );
    }
    // Only what the root is mounted upon, or it could not be entered (pivot_root(2)).
    for place in plan.root.ancestors() {
        match rustix::mount::mount_change(place, MountPropagationFlags::PRIVATE) {
            // No mount point.
            Err(Errno::INVAL) => {}
            other => return other,
        }
    }
    Ok(())
}

/// Makes the root the only one (pivot_root(2), "pivot_root(".", ".")").
fn pivot(root: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty())?;
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::process::fchdir(&old)?;
    // Its end is no concern of the agent's.
    rustix::mount::mount_change(
        ".",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// A terminal of the container's own, in place of the standard streams; our side goes to the worker.
fn make_terminal(plan: &Plan, door: &Door<'_>, root: &Root) -> Result<(), Failed> {
    let Some(size) = plan.process.terminal else {
        return Ok(());
    };
    let failed =
        |error: std::io::Error| Failed::new(FailureKind::Container, format!("process.terminal: {error}"));
    let (ours, theirs) = terminal::open_in(root, size).map_err(failed)?;
    door.link.say(&Word::Terminal, Some(&ours)).map_err(failed)?;
    rustix::stdio::dup2_stdin(&theirs).map_err(step("standard input"))?;
    rustix::stdio::dup2_stdout(&theirs).map_err(step("standard output"))?;
    rustix::stdio::dup2_stderr(&theirs).map_err(step("standard error"))?;
    rustix::process::ioctl_tiocsctty(&theirs).map_err(step("controlling terminal"))?;
    devices::place_console(root, &theirs)
}

/// An init's working directory is made, as docker does.
fn make_working_directory(plan: &Plan, root: &Root) -> Result<(), Failed> {
    let cwd = PathBuf::from(plan.process.cwd.to_string_lossy().into_owned());
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    if root.resolve(&cwd, flags, ResolveFlags::empty()).is_ok() {
        return Ok(());
    }
    let old = rustix::process::umask(Mode::from_raw_mode(0o022));
    let made = root.create_directories(&cwd);
    rustix::process::umask(old);
    made.map_err(|_| Failed::new(FailureKind::NoSuchDirectory, cwd.to_string_lossy()))
}

/// Sets parameters of the kernel, by the namespaces that this process is in.
fn set_sysctls(directory: &OwnedFd, sysctls: &[Sysctl]) -> Result<(), Failed> {
    for Sysctl { name, path, value } in sysctls {
        let failed = |kind: FailureKind, error: Errno| {
            Failed::new(kind, format!("linux.sysctl: {name}={value:?}: {error}"))
        };
        let file = rustix::fs::openat(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let file = file.map_err(|error| failed(FailureKind::Unsupported, error))?;
        rustix::io::write(&file, value.as_bytes()).map_err(|error| failed(FailureKind::Invalid, error))?;
    }
    Ok(())
}

/// Looks for the program before the container counts as created, with the container's own eyes.
fn check_program(plan: &Plan, idle: bool) -> Result<(), Failed> {
    if idle {
        return Ok(());
    }
    let process = &plan.process;
    let root = Root::open(Path::new("/"))
        .map_err(|error| Failed::new(FailureKind::Container, format!("root.path: {error}")))?;
    let cwd = PathBuf::from(process.cwd.to_string_lossy().into_owned());
    let candidates: Vec<PathBuf> = process.program_paths().map(|path| cwd.join(path)).collect();
    program::find(&process.program(), &candidates, |path| root.is_executable(path))
}
