//! The process that holds a PID namespace which containers share: its first process, which reaps their orphans.
//!
//! As Kubernetes' `pause` does. It ends with the sandbox, and then so does everything in the namespace.

use std::io;

use kata_agent_proto::Failed;

use super::container_failure;
use crate::sys::{self, Fork};

/// Makes the namespace and its first process, which outlives the worker.
pub(super) fn start() -> Result<i32, Failed> {
    born().map_err(|error| container_failure(&error))
}

fn born() -> io::Result<i32> {
    // What comes before it waits is kept for it.
    sys::block_idle_signals()?;
    // The name is for people; without it the process still waits. It is inherited: who looks sees no other.
    let _ = rustix::thread::set_name(c"pause");
    sys::unshare_pids()?;
    match sys::fork()? {
        Fork::Parent(pid) => Ok(pid.as_raw_pid()),
        Fork::Child => pause(),
    }
}

fn pause() -> ! {
    // The worker's end is told by the end of its pipe, which nobody may hold.
    let idled = sys::close_all_but(&[rustix::stdio::stdin()]).and_then(|()| sys::idle());
    sys::exit_now(i32::from(idled.is_err()))
}
