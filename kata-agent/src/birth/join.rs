//! Namespaces that exist, and those that only a process's children are in: a helper process joins them and gives birth.
//!
//! Owns the order: a namespace is joined by the right of the agent's root, so the user namespace comes last.

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

/// What a helper joins, in order.
pub(super) struct Helper(Vec<Open>);

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

impl Helper {
    /// A helper, where one is needed.
    ///
    /// # Errors
    /// Invalid: a path that leads nowhere, by its field.
    pub(super) fn new(namespaces: &Namespaces) -> Result<Option<Self>, Failed> {
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
        let needed = !open.is_empty() || namespaces.makes(ThreadNameSpaceType::TIME);
        Ok(needed.then_some(Helper(open)))
    }

    /// Makes the helper, which gives birth to the process and tells its id over the door's link.
    pub(super) fn start(self, plan: &Plan, door: Door<'_>, cgroup: &OwnedFd) -> Result<(), Failed> {
        match sys::fork_sibling(0, None) {
            Ok(Birth::Parent { .. }) => Ok(()),
            Ok(Birth::Child) => self.run(plan, door, cgroup),
            Err(error) => Err(birth_failed(error)),
        }
    }

    fn run(self, plan: &Plan, door: Door<'_>, cgroup: &OwnedFd) -> ! {
        let born = self.join(&plan.namespaces).and_then(|()| {
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

    fn join(&self, namespaces: &Namespaces) -> Result<(), Failed> {
        if namespaces.makes(ThreadNameSpaceType::TIME) {
            make_time(&namespaces.time_offsets)?;
        }
        for Open { kind, file, field } in &self.0 {
            rustix::thread::move_into_link_name_space(file.as_fd(), link_type(*kind)).map_err(|error| {
                let kind = match error {
                    Errno::INVAL => FailureKind::Invalid,
                    _ => FailureKind::Container,
                };
                Failed::new(kind, format!("{field}: {error}"))
            })?;
        }
        if namespaces.joins(ThreadNameSpaceType::USER) {
            become_root().map_err(super::errno("root of the user namespace"))?;
        }
        Ok(())
    }
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
