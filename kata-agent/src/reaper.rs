//! Children: those that somebody waits for, and orphans.
//!
//! ```text
//!  spawned by us ──► known ──pidfd──► ended (still a zombie) ──reap──► gone
//!  orphan of a container ──SIGCHLD──► gone
//! ```
//!
//! A process that ends is looked at before it is reaped, so that its id cannot be used again while
//! somebody still needs it. While a launch is under way nobody is taken for an orphan: the new
//! process may end before its id is known here.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// How a process ended, and what it used: it and those of its descendants that were waited for (getrusage(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ending {
    /// The exit code, or 128 + signal.
    pub(crate) status: i32,
    pub(crate) usage: Usage,
}

/// Processor time, and the most memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    pub(crate) user_ns: u64,
    pub(crate) system_ns: u64,
    /// Of a process: the largest resident set of one.
    pub(crate) memory_peak_bytes: u64,
}

/// Who is known, and how many launches are under way. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<Children>>);

#[derive(Default)]
struct Children {
    known: HashSet<i32>,
    launches: usize,
}

impl Reaper {
    fn children(&self) -> MutexGuard<'_, Children> {
        // Nothing panics while holding it, and every state of it is valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces that a child is being made whose id is not known yet.
    pub(crate) fn launch(&self) -> Launch {
        self.children().launches += 1;
        Launch(self.clone())
    }

    /// Makes a child known, during its [`Launch`].
    pub(crate) fn adopt(&self, pid: i32) -> io::Result<Child> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        self.known(pid, pidfd)
    }

    /// Makes a child known by its pidfd, at once after its birth.
    pub(crate) fn adopt_by(&self, pid: i32, pidfd: OwnedFd) -> io::Result<Child> {
        self.known(Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?, pidfd)
    }

    fn known(&self, pid: Pid, pidfd: OwnedFd) -> io::Result<Child> {
        let pidfd = sys::watch(pidfd, Interest::READABLE)?;
        self.children().known.insert(pid.as_raw_pid());
        Ok(Child {
            pid,
            pidfd,
            reaper: self.clone(),
        })
    }

    /// Reaps every orphan that has ended.
    pub(crate) fn sweep(&self) {
        let children = self.children();
        if children.launches > 0 {
            return;
        }
        // A known child in front hides those behind it; whoever reaps it sweeps again.
        while let Ok(Some(pid)) = sys::peek_ended_child() {
            if children.known.contains(&pid.as_raw_pid()) || !reap(WaitId::Pid(pid)) {
                return;
            }
        }
    }
}

fn reap(id: WaitId<'_>) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    matches!(rustix::process::waitid(id, options), Ok(Some(_)))
}

/// The time in which a child is being made.
pub(crate) struct Launch(Reaper);

impl Drop for Launch {
    fn drop(&mut self) {
        self.0.children().launches -= 1;
        self.0.sweep();
    }
}

/// A known child. Dropping it reaps it if it has ended, and leaves it to the sweep otherwise.
pub(crate) struct Child {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    reaper: Reaper,
}

/// Of the flags in `/proc/<pid>/stat`: on the way out (Linux, include/linux/sched.h).
const PF_EXITING: u64 = 0x4;

/// The ninth field of `/proc/<pid>/stat` (proc_pid_stat(5)); the second is a name with anything in it.
fn flags_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(6)?.parse().ok()
}

impl Child {
    /// The process id, which is this process's as long as the child is not dropped.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Waits for the end; returns the exit code, or 128 + signal. The process stays a zombie.
    pub(crate) async fn ended(&self) -> io::Result<i32> {
        self.ending().await.map(|ending| ending.status)
    }

    /// As [`ended`](Self::ended), with what the process used.
    pub(crate) async fn ending(&self) -> io::Result<Ending> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            if let Some(ending) = sys::peek_ending(&self.pidfd)? {
                return Ok(ending);
            }
            ready.clear_ready();
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(
            rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options),
            Ok(None)
        )
    }

    /// Whether it has ended or is about to: the init of a PID namespace makes it refuse new processes (with ENOMEM)
    /// before it is a zombie.
    pub(crate) fn is_ending(&self) -> bool {
        self.has_ended()
            || std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))
                .is_ok_and(|stat| flags_of(&stat).is_some_and(|flags| flags & PF_EXITING != 0))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        sys::pidfd_signal(&self.pidfd, signal)
    }

    /// Kills it with everything in its process group, which it leads: the group is its own as long as its id is.
    pub(crate) fn kill_group(&self) {
        // One that has ended needs no signal.
        let _ = rustix::process::kill_process_group(self.pid, rustix::process::Signal::KILL);
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        reap(WaitId::PidFd(self.pidfd.as_fd()));
        self.reaper.children().known.remove(&self.pid.as_raw_pid());
        self.reaper.sweep();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[expect(clippy::zombie_processes, reason = "reaping is what is tested")]
    fn spawn(script: &str) -> i32 {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .spawn()
            .expect("a shell");
        i32::try_from(child.id()).expect("a pid")
    }

    fn is_zombie(pid: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }

    #[test]
    fn flags_are_found_behind_any_name() {
        assert_eq!(flags_of("7 (a) 1 (b) S 1 7 7 0 -1 4194560 1 2"), Some(4_194_560));
        assert_eq!(flags_of("7 (sh) Z 1"), None);
        assert_eq!(flags_of(""), None);
    }

    #[tokio::test]
    async fn an_exit_is_its_code_and_a_death_128_and_the_signal() {
        let reaper = Reaper::default();
        let _launch = reaper.launch();
        for (script, status) in [
            ("exit 0", 0),
            ("exit 7", 7),
            ("kill -TERM $$", 143),
            ("kill -KILL $$", 137),
        ] {
            let child = reaper.adopt(spawn(script)).expect("known");
            assert_eq!(child.ended().await.expect("a status"), status, "{script}");
        }
    }

    #[tokio::test]
    async fn an_ended_child_keeps_its_id_until_it_is_dropped() {
        let reaper = Reaper::default();
        let launch = reaper.launch();
        let child = reaper.adopt(spawn("exit 3")).expect("known");
        drop(launch);
        assert_eq!(child.ended().await.expect("a status"), 3);
        reaper.sweep();
        let pid = child.pid();
        assert!(is_zombie(pid), "a sweep leaves known children alone");
        assert_eq!(child.ended().await.expect("the same status again"), 3);
        drop(child);
        assert!(!is_zombie(pid));
    }
}
