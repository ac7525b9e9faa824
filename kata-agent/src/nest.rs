//! The agent as an ordinary process: namespaces of its own instead of a machine.
//!
//! ```text
//!  spawner ── outer process (waits, cleans the cgroup up) ── agent, PID 1 of a new PID namespace
//! ```
//!
//! Owns what stands in for the guest's boundary. It is no security boundary; it is for tests and for
//! hosts that have none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::boot;
use crate::sys::{self, Fork};

const CGROUP: &str = "/sys/fs/cgroup";
/// Names of the cgroups of such agents, before their process id.
const PREFIX: &str = "kata-";

/// Enters the namespaces; returns in the agent, with its cgroup from the root of the hierarchy. The
/// outer process ends here, as the agent does. What the host has in `/tmp` stays in sight where that is `shared`.
pub(crate) fn enter(shared: bool) -> io::Result<PathBuf> {
    let name = format!("{PREFIX}{}", std::process::id());
    // Where we were started may be hidden by what is mounted below.
    rustix::process::chdir("/")?;
    sys::unshare_namespaces()?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::mount::mount("cgroup2", CGROUP, "cgroup2", MountFlags::NOSUID, None)?;
    sweep(Path::new(CGROUP), Path::new("/proc"));
    let cgroup = Path::new(CGROUP).join(&name);
    fs::create_dir(&cgroup)?;
    boot::enable_controllers(Path::new(CGROUP));
    boot::enable_controllers(&cgroup);
    match sys::fork()? {
        Fork::Parent(agent) => return Err(wait_and_clean(agent, &cgroup)),
        Fork::Child => inside(shared)?,
    }
    Ok(Path::new("/").join(name))
}

/// The rest of the way, as the first process of the PID namespace.
fn inside(shared: bool) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("proc", "/proc", "proc", safe | MountFlags::NOEXEC, None)?;
    rustix::mount::mount("tmpfs", "/run", "tmpfs", safe, Some(c"mode=0755"))?;
    if !shared {
        rustix::mount::mount("tmpfs", "/tmp", "tmpfs", safe, Some(c"mode=1777"))?;
    }
    sys::loopback_up()
}

/// Ends with the agent's status; returns only when waiting fails.
fn wait_and_clean(agent: Pid, cgroup: &Path) -> io::Error {
    let status = loop {
        match rustix::process::waitpid(Some(agent), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return error.into(),
        }
    };
    // The namespace's processes are dead with its first; what cannot be removed is swept next time.
    let _ = remove_tree(cgroup);
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    sys::exit_now(status.exit_status().or(signal).unwrap_or(1))
}

/// Removes the cgroups of agents that are gone without having cleaned up. One with a process in it
/// cannot be removed.
fn sweep(root: &Path, proc: &Path) {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !proc.join(pid.to_string()).exists()) {
            // Somebody else may be sweeping, too.
            let _ = remove_tree(&entry.path());
        }
    }
}

fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_to_the_dead_is_swept() {
        let root = tempfile::tempdir().expect("a directory");
        let proc = tempfile::tempdir().expect("a directory");
        fs::create_dir(proc.path().join("7")).expect("made");
        for name in ["kata-7", "kata-8", "kata-8/c1", "kata-x", "other"] {
            fs::create_dir(root.path().join(name)).expect("made");
        }
        sweep(root.path(), proc.path());
        let left = ["kata-7", "kata-8", "kata-x", "other"].map(|name| root.path().join(name).exists());
        assert_eq!(left, [true, false, true, true]);
    }
}
