//! Stopping and continuing all processes of a cgroup at once.
//!
//! ```text
//!  running ──pause──► freezing ──cgroup.events: frozen 1──► frozen
//!     ▲                  │ resume: the pause fails            │ resume
//!     └──────────────────┴────────────────────────────────────┘
//! ```
//!
//! Owns cgroup.freeze (cgroup-v2.rst, Core Interface Files). SIGKILL and cgroup.kill end frozen processes,
//! too. Must not know containers.

use std::fs;
use std::io;
use std::path::Path;

use tokio::sync::watch;

use crate::watched::{Watched, number_of};

/// What was last asked of a cgroup.
pub(crate) struct Freezer(watch::Sender<bool>);

/// How a pause ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// Everything stands still.
    Frozen,
    /// It was to go on again before everything stood still.
    Resumed,
}

impl Freezer {
    pub(crate) fn new() -> Self {
        Freezer(watch::channel(false).0)
    }

    fn ask(&self, cgroup: &Path, frozen: bool) -> io::Result<()> {
        fs::write(cgroup.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        self.0.send_replace(frozen);
        Ok(())
    }

    /// Freezes; returns when nothing runs any more.
    pub(crate) async fn pause(&self, cgroup: &Path) -> io::Result<Pause> {
        self.until(cgroup, true).await
    }

    /// Lets everything go on; returns when it does, or is to stand still again.
    pub(crate) async fn resume(&self, cgroup: &Path) -> io::Result<()> {
        self.until(cgroup, false).await.map(drop)
    }

    async fn until(&self, cgroup: &Path, frozen: bool) -> io::Result<Pause> {
        let events = Watched::open(&cgroup.join("cgroup.events"))?;
        self.ask(cgroup, frozen)?;
        let mut asked = self.0.subscribe();
        while number_of(&events.text()?, "frozen") != Some(u64::from(frozen)) {
            tokio::select! {
                changed = events.changed() => changed?,
                // The sender is here, so waiting cannot fail.
                _ = asked.wait_for(|asked| *asked != frozen) => return Ok(Pause::Resumed),
            }
        }
        Ok(Pause::Frozen)
    }
}
