//! Namespaces that exist: the process joins them itself, or a helper joins them and gives birth to it.
//!
//! A helper is needed for those that only a process's children are in (PID, time), and where a user namespace takes the
//! right to join away. Owns the order: a namespace is joined by the right of the agent's root, so the user namespace comes
//! last.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::at_birth;
use super::inside::{self, Door, give_up};
use super::link::Word;
use super::plan::{Namespaces, Plan};
use crate::exec::inside::become_root;
use crate::sys::{self, Birth};

/// What is joined, in order.
pub(super) struct Joins {
    open: Vec<Open>,
    /// Whether a helper has to do it.
    pub(super) by_helper: bool,
}

struct Open {
    kind: ThreadNameSpaceType,
    file: OwnedFd,
    field: String,
}

/// Later ones take away what the earlier need: the view of files, and the rights of root.
fn rank(kind: ThreadNameSpaceType) -> u8 {
    match kind {
        ThreadNameSpaceType::USER => 2,
        ThreadNameSpaceType::MOUNT => 1,
        _ => 0,
    }
}

fn link_type(kind: ThreadNameSpaceType) -> Option<LinkNameSpaceType> {
    Some(match kind {
        ThreadNameSpaceType::MOUNT => LinkNameSpaceType::Mount,
        ThreadNameSpaceType::PROCESS_ID => LinkNameSpaceType::ProcessID,
        ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION => LinkNameSpaceType::InterProcessCommunication,
        ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME => LinkNameSpaceType::HostNameAndNISDomainName,
        ThreadNameSpaceType::NETWORK => LinkNameSpaceType::Network,
        ThreadNameSpaceType::CONTROL_GROUP => LinkNameSpaceType::ControlGroup,
        ThreadNameSpaceType::TIME => LinkNameSpaceType::Time,
        ThreadNameSpaceType::USER => LinkNameSpaceType::User,
        _ => return None,
    })
}

/// Why a process could not be born: what its namespaces want that the kernel does not have, or their number.
pub(super) fn birth_failed(error: Errno) -> Failed {
    let kind = match error {
        Errno::INVAL | Errno::NOSYS => FailureKind::Unsupported,
        _ => FailureKind::Container,
    };
    Failed::new(kind, format!("linux.namespaces: {error}"))
}

impl Joins {
    /// Opens what is to be joined.
    ///
    /// # Errors
    /// Invalid: a path that leads nowhere, by its field.
    pub(super) fn open(namespaces: &Namespaces) -> Result<Self, Failed> {
        let mut open = Vec::new();
        for joined in &namespaces.joined {
            let file = rustix::fs::open(&joined.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            let file = file.map_err(|error| {
                let text = format!("{}: {}: {error}", joined.field, joined.path.display());
                Failed::new(FailureKind::Invalid, text)
            })?;
            open.push(Open {
                kind: joined.kind,
                file,
                field: joined.field.clone(),
            });
        }
        open.sort_by_key(|open| rank(open.kind));
        let of_children = ThreadNameSpaceType::PROCESS_ID | ThreadNameSpaceType::TIME;
        let only_born = open.iter().any(|open| of_children.contains(open.kind));
        let without_right = !open.is_empty() && namespaces.has(ThreadNameSpaceType::USER);
        Ok(Joins {
            by_helper: only_born || without_right || namespaces.makes(ThreadNameSpaceType::TIME),
            open,
        })
    }

    /// Makes the helper, which gives birth to the process and tells its id over the door's link.
    pub(super) fn start_helper(plan: &Plan, door: Door<'_>, cgroup: &OwnedFd) -> Result<(), Failed> {
        match sys::fork_sibling(0, None) {
            Ok(Birth::Parent { .. }) => Ok(()),
            Ok(Birth::Child) => run_helper(plan, door, cgroup),
            Err(error) => Err(birth_failed(error)),
        }
    }

    /// Joins everything, for this process and its children.
    pub(super) fn join(&self) -> Result<(), Failed> {
        for Open { kind, file, field } in &self.open {
            rustix::thread::move_into_link_name_space(file.as_fd(), link_type(*kind)).map_err(|error| {
                let kind = match error {
                    Errno::INVAL => FailureKind::Invalid,
                    _ => FailureKind::Container,
                };
                Failed::new(kind, format!("{field}: {error}"))
            })?;
        }
        Ok(())
    }
}

fn run_helper(plan: &Plan, door: Door<'_>, cgroup: &OwnedFd) -> ! {
    let born = prepare_helper(&plan.namespaces, &door.joins).and_then(|()| {
        // Another user namespace has no right to the cgroup.
        let cgroup = (!plan.namespaces.joins(ThreadNameSpaceType::USER)).then_some(cgroup.as_fd());
        sys::fork_sibling(at_birth(&plan.namespaces), cgroup).map_err(birth_failed)
    });
    match born {
        Ok(Birth::Child) => inside::run(plan, door),
        Ok(Birth::Parent { pid, pidfd }) => {
            if door.link.say(&Word::Born(pid), None).is_err() {
                // Nobody knows it.
                let _ = sys::pidfd_signal(&pidfd, libc::SIGKILL);
            }
            sys::exit_now(0)
        }
        Err(failed) => give_up(&door.link, &failed),
    }
}

fn prepare_helper(namespaces: &Namespaces, joins: &Joins) -> Result<(), Failed> {
    if namespaces.makes(ThreadNameSpaceType::TIME) {
        make_time(&namespaces.time_offsets)?;
    }
    joins.join()?;
    if namespaces.joins(ThreadNameSpaceType::USER) {
        become_root().map_err(super::errno("root of the user namespace"))?;
    }
    Ok(())
}

/// A time namespace for children, whose offsets can be set until there is one.
fn make_time(offsets: &str) -> Result<(), Failed> {
    sys::unshare(ThreadNameSpaceType::TIME.bits()).map_err(|error| {
        let text = format!("linux.namespaces: time: {error}");
        Failed::new(FailureKind::Unsupported, text)
    })?;
    if offsets.is_empty() {
        return Ok(());
    }
    fs::write("/proc/self/timens_offsets", offsets)
        .map_err(|error| Failed::new(FailureKind::Invalid, format!("linux.timeOffsets: {error}")))
}
