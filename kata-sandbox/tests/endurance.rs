//! A hundred sandboxes one after another: nothing grows.
//!
//! A program of its own, one test at a time, because it counts what this process holds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::sync::Mutex;

use bed::{Bed, text, traces};
use kata_sandbox::Sandbox;

/// Descriptors that a runtime of another test may have.
const RUNTIME_FDS: usize = 20;

/// The backends take turns.
static ALONE: Mutex<()> = Mutex::new(());

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

on_every_backend! {
    within std::time::Duration::from_secs(900);

    #[allow(clippy::await_holding_lock, reason = "the lock is there to keep the other backend's test waiting")]
    /// Conformance: semantics 19
    async fn a_hundred_one_after_another_grow_nothing(bed: Bed) {
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let run = async || {
            let output = Sandbox::run(bed.shell("echo x")).await.unwrap();
            assert_eq!(text(&output), "x");
        };
        for _ in 0..5 {
            run().await;
        }
        let (fds, resident, left) = (open_fds(), resident_kib(), traces());
        for _ in 0..95 {
            run().await;
        }
        // The last connection is closed by a task, a moment after the sandbox's end.
        // Meanwhile another backend's test may have begun to wait for its turn, with a runtime of its own; who loses
        // a descriptor in each sandbox has lost more.
        bed::eventually("descriptors are back", async || open_fds() < fds + RUNTIME_FDS).await;
        assert_eq!(traces(), left);
        let grown = resident_kib().saturating_sub(resident);
        assert!(grown < 4 << 10, "{grown} KiB more after 95 sandboxes");
    }
}
