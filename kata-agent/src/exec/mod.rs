//! Starting a further process in a container: one fork, one execve.
//!
//! ```text
//!  agent  ──setns(init, PID)──clone3(into the cgroup)──setns(own PID)──► reads the report to its end
//!  child                        └──setns(init)──user, directory, limits──execve──► (end of the report)
//!                                                   └─ a failure is written to the report
//! ```
//!
//! The container is joined by its init's pidfd, so that no other process can be taken for it. Owns the
//! fork; must not know names of processes or connections.

pub(crate) mod identity;
pub(crate) mod inside;
pub(crate) mod owner;
mod plan;
pub(crate) mod streams;
mod words;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind, oci};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::outcome::Outcome;
use crate::reaper::{Child, Reaper};
use crate::seccomp::Filter;
use crate::sys::{self, Birth};
use inside::Door;
pub(crate) use plan::Plan;
use streams::Streams;

/// The namespaces that are a container's and not the agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NameSpaces(ThreadNameSpaceType);

impl NameSpaces {
    /// Those of an OCI specification.
    ///
    /// # Errors
    /// Invalid: a type that there is not, or that is there twice.
    pub(crate) fn of(spec: &Value) -> Result<Self, Failed> {
        let list = spec["linux"]["namespaces"].as_array().into_iter().flatten();
        let mut all = ThreadNameSpaceType::empty();
        for (index, item) in list.enumerate() {
            let word = item["type"].as_str().unwrap_or_default();
            let one = name_space(word).filter(|one| !all.contains(*one));
            all |= one.ok_or_else(|| {
                Failed::new(
                    FailureKind::Invalid,
                    format!("linux.namespaces[{index}].type: {word:?}"),
                )
            })?;
        }
        Ok(NameSpaces(all))
    }

    pub(crate) fn all(self) -> ThreadNameSpaceType {
        self.0
    }

    /// The namespace that only a child is born into.
    fn has_pid(self) -> bool {
        self.0.contains(ThreadNameSpaceType::PROCESS_ID)
    }

    fn has_mount(self) -> bool {
        self.0.contains(ThreadNameSpaceType::MOUNT)
    }

    fn has_user(self) -> bool {
        self.0.contains(ThreadNameSpaceType::USER)
    }
}

/// A type of namespaces by its word.
pub(crate) fn name_space(word: &str) -> Option<ThreadNameSpaceType> {
    Some(match word {
        "mount" => ThreadNameSpaceType::MOUNT,
        "pid" => ThreadNameSpaceType::PROCESS_ID,
        "ipc" => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
        "uts" => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
        "network" => ThreadNameSpaceType::NETWORK,
        "cgroup" => ThreadNameSpaceType::CONTROL_GROUP,
        "time" => ThreadNameSpaceType::TIME,
        "user" => ThreadNameSpaceType::USER,
        _ => return None,
    })
}

/// What all processes of a container have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traits {
    /// An execution domain (personality(2)).
    pub(crate) personality: Option<u64>,
    pub(crate) filter: Option<Filter>,
}

impl Traits {
    /// Those of a request.
    ///
    /// # Errors
    /// By the field.
    pub(crate) fn of(linux: &oci::Linux) -> Result<Self, Failed> {
        let personality = linux.personality.as_ref().map(words::personality).transpose()?;
        let filter = linux.seccomp.as_ref().map(Filter::of).transpose()?;
        Ok(Traits { personality, filter })
    }
}

/// Where a process is to be.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    /// The container's name, for failures.
    pub(crate) id: &'a str,
    pub(crate) init: &'a Child,
    pub(crate) namespaces: NameSpaces,
    /// The directory of the container's cgroup.
    pub(crate) cgroup: &'a Path,
}

impl Target<'_> {
    /// What a failure means: most follow from the end of the container.
    fn failed(&self, what: &str, error: Errno) -> Failed {
        if error == Errno::SRCH || self.init.is_ending() {
            return Failed::new(FailureKind::NotRunning, self.id);
        }
        Failed::new(FailureKind::Container, format!("{what}: {error}"))
    }
}

/// The way into containers, and back.
pub(crate) struct Joiner {
    own: OwnedFd,
}

impl Joiner {
    /// Before any container is joined.
    pub(crate) fn new() -> io::Result<Self> {
        let own = File::open("/proc/self/ns/pid")?.into();
        Ok(Joiner { own })
    }

    /// Starts the process.
    ///
    /// # Errors
    /// By kind; nothing of the process is left then.
    pub(crate) async fn start(
        &self,
        reaper: &Reaper,
        target: Target<'_>,
        plan: Plan,
        streams: Streams,
    ) -> Result<Child, Failed> {
        let failed = |error: io::Error| Failed::new(FailureKind::Container, format!("report: {error}"));
        let (report, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| failed(error.into()))?;
        // Nothing is awaited from the fork to the adoption, so nobody can take the child for an orphan.
        let (pid, pidfd) = self.fork(target, &plan, &streams, &writer)?;
        let child = reaper.adopt_by(pid, pidfd).map_err(failed)?;
        drop((writer, streams));
        hear(report).await.map_err(failed)??;
        Ok(child)
    }

    fn fork(
        &self,
        target: Target<'_>,
        plan: &Plan,
        streams: &Streams,
        report: &OwnedFd,
    ) -> Result<(i32, OwnedFd), Failed> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cgroup = rustix::fs::open(target.cgroup, flags, Mode::empty())
            .map_err(|error| target.failed("cgroup", error))?;
        let away = Away::enter(self, target)?;
        let born = sys::fork_into(&cgroup);
        if let Ok(Birth::Child) = born {
            inside::run(
                plan,
                &Door {
                    target,
                    streams,
                    report,
                },
            );
        }
        let returned = away.back();
        match born {
            Ok(Birth::Parent { pid, pidfd }) => match returned {
                Ok(()) => Ok((pid, pidfd)),
                Err(error) => {
                    // Whoever it is, nobody would know it.
                    let _ = sys::pidfd_signal(&pidfd, libc::SIGKILL);
                    Err(target.failed("leaving the container", error))
                }
            },
            Ok(Birth::Child) => Err(target.failed("fork", Errno::INVAL)),
            Err(error) => Err(target.failed("fork", error)),
        }
    }
}

/// The time in which this process's children are born into a container's PID namespace.
struct Away<'a>(Option<&'a Joiner>);

impl<'a> Away<'a> {
    fn enter(joiner: &'a Joiner, target: Target<'_>) -> Result<Self, Failed> {
        if !target.namespaces.has_pid() {
            return Ok(Away(None));
        }
        let entered = rustix::thread::move_into_thread_name_spaces(
            target.init.as_fd(),
            ThreadNameSpaceType::PROCESS_ID,
        );
        entered
            .map(|()| Away(Some(joiner)))
            .map_err(|error| target.failed("PID namespace", error))
    }

    fn back(self) -> Result<(), Errno> {
        self.0.map_or(Ok(()), |joiner| {
            rustix::thread::move_into_link_name_space(joiner.own.as_fd(), Some(LinkNameSpaceType::ProcessID))
        })
    }
}

/// Reads the report to its end. The end alone means that the program runs.
async fn hear(report: OwnedFd) -> io::Result<Result<(), Failed>> {
    let mut report = pipe::Receiver::from_owned_fd_unchecked(report)?;
    let mut line = Vec::new();
    report.read_to_end(&mut line).await?;
    if line.is_empty() {
        return Ok(Ok(()));
    }
    let outcome: Outcome = serde_json::from_slice(&line)?;
    Ok(outcome.into_result().map(drop))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn joined(types: &[&str]) -> Result<ThreadNameSpaceType, Failed> {
        let list: Vec<_> = types.iter().map(|word| json!({ "type": word })).collect();
        NameSpaces::of(&json!({ "linux": { "namespaces": list } })).map(|spaces| spaces.0)
    }

    #[test]
    fn the_namespaces_of_a_container_are_joined_and_no_others() {
        let expected = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::PROCESS_ID;
        assert_eq!(joined(&["pid", "mount"]), Ok(expected));
        let expected =
            ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::NETWORK | ThreadNameSpaceType::CONTROL_GROUP;
        assert_eq!(joined(&["mount", "network", "cgroup"]), Ok(expected));
        assert_eq!(joined(&[]), Ok(ThreadNameSpaceType::empty()));
    }

    #[test]
    fn a_namespace_that_there_is_not_or_is_there_twice_is_invalid() {
        for types in [&["mount", "what"][..], &["mount", "mount"]] {
            let failed = joined(types).expect_err("invalid");
            assert_eq!(failed.kind, FailureKind::Invalid, "{types:?}");
            assert!(failed.subject.starts_with("linux.namespaces[1].type"), "{failed}");
        }
    }

    #[tokio::test]
    async fn a_container_whose_init_has_just_ended_is_not_running() {
        let reaper = Reaper::default();
        let _launch = reaper.launch();
        #[expect(clippy::zombie_processes, reason = "the zombie is what is joined")]
        let ended = std::process::Command::new("/bin/true").spawn().expect("started");
        let init = reaper
            .adopt(i32::try_from(ended.id()).expect("a pid"))
            .expect("known");
        init.ended().await.expect("a status");
        let target = Target {
            id: "c1",
            init: &init,
            namespaces: NameSpaces(ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::PROCESS_ID),
            cgroup: Path::new("/"),
        };
        let plan = Plan::new(&json!({ "args": ["true"] }), None, &Arc::default()).expect("valid");
        let joiner = Joiner::new().expect("joiner");
        let streams = Streams::null().expect("streams");
        let started = joiner.start(&reaper, target, plan, streams).await;
        assert_eq!(started.map(drop), Err(Failed::new(FailureKind::NotRunning, "c1")));
    }
}
