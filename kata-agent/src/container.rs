//! A container: its init, its further processes, and what it holds.
//!
//! ```text
//!  created ──start──► started ──init ends──► stopped ──remove──► (forgotten)
//! ```
//!
//! Owns which request is valid in which state. Must not know connections or the API's messages.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kata_agent_proto::{Failed, FailureKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::birth::hooks::{Hook, State};
use crate::exec::{NameSpaces, Traits};
use crate::freezer::{Freezer, Pause};
use crate::oom::Kills;
use crate::outcome::Outcome;
use crate::process::Process;
use crate::reaper::Child;

/// How many processes that have ended are remembered, besides the init.
const REMEMBERED: usize = 256;

/// A container's cgroup, namespaces and files.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Directory of config.json.
    pub(crate) bundle: PathBuf,
    /// Absolute path of the cgroup's directory.
    pub(crate) cgroup: PathBuf,
    /// What was mounted for it, in order.
    pub(crate) mount_points: Vec<String>,
    /// Those of them that are read through dm-verity.
    pub(crate) verified: Vec<String>,
    /// See [`name`].
    pub(crate) name: Option<String>,
    /// Serials of disks of which it may have partitions.
    pub(crate) partitioned: BTreeSet<String>,
    /// What a further process joins.
    pub(crate) namespaces: NameSpaces,
    /// What a further process is like.
    pub(crate) traits: Arc<Traits>,
    pub(crate) poststart: Vec<Hook>,
    pub(crate) poststop: Vec<Hook>,
    /// What hooks are told.
    pub(crate) state: State,
}

/// Processes being made in a container, for which its init's id must stand.
#[derive(Clone)]
pub(crate) struct Launches(Arc<watch::Sender<usize>>);

impl Launches {
    pub(crate) fn new() -> Self {
        Launches(Arc::new(watch::channel(0).0))
    }

    /// Returns when none is under way.
    pub(crate) fn none(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut count = self.0.subscribe();
        async move {
            // An error means that the container is gone: no more launches either.
            let _ = count.wait_for(|count| *count == 0).await;
        }
    }

    fn begin(&self) -> Launching {
        self.0.send_modify(|count| *count += 1);
        Launching(self.clone())
    }
}

/// A process is being made.
pub(crate) struct Launching(Launches);

impl Drop for Launching {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// What the makers of a pod call a container (annotations of containerd and of CRI-O).
pub(crate) fn name(spec: &serde_json::Value) -> Option<&str> {
    let annotations = &spec["annotations"];
    let keys = ["io.kubernetes.cri.container-name", "io.kubernetes.container.name"];
    keys.into_iter().find_map(|key| annotations[key].as_str())
}

/// See the module.
pub(crate) struct Container {
    pub(crate) id: String,
    /// Another name of its init.
    init_id: String,
    pub(crate) places: Places,
    init: Arc<Process>,
    launches: Launches,
    started: AtomicBool,
    /// Where the init waits for its start; gone with it.
    start: Mutex<Option<UnixStream>>,
    freezer: Freezer,
    kills: Option<Kills>,
    /// Held while its limits are changed, so that what a failure puts back is its own.
    pub(crate) updating: tokio::sync::Mutex<()>,
    /// By name; `None` while being made.
    execs: Mutex<Execs>,
}

type Execs = HashMap<String, Option<Arc<Process>>>;

/// Forgets processes that have ended, but for the last ones. Those whose status somebody was told go first.
fn forget_the_eldest(execs: &mut Execs) {
    let ended = execs
        .iter()
        .filter_map(|(name, process)| Some((process.as_ref()?.age()?, name)));
    let mut ended: Vec<_> = ended.collect();
    let superfluous = ended.len().saturating_sub(REMEMBERED);
    ended.sort_unstable();
    let names: Vec<String> = ended[..superfluous]
        .iter()
        .map(|(_, name)| (*name).clone())
        .collect();
    for name in names {
        execs.remove(&name);
    }
}

impl Container {
    pub(crate) fn new(
        id: String,
        init_id: String,
        places: Places,
        init: Process,
        launches: Launches,
        kills: Option<Kills>,
        start: UnixStream,
    ) -> Self {
        Container {
            id,
            init_id,
            places,
            init: Arc::new(init),
            launches,
            started: AtomicBool::new(false),
            start: Mutex::new(Some(start)),
            freezer: Freezer::new(),
            kills,
            updating: tokio::sync::Mutex::new(()),
            execs: Mutex::new(HashMap::new()),
        }
    }

    fn execs(&self) -> MutexGuard<'_, Execs> {
        // Nothing panics while holding it.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The init.
    pub(crate) fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// Whether this is its id, or what the makers of a pod call it.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.id == name || self.places.name.as_deref() == Some(name)
    }

    /// Whether the name is the init's: none, the container's id, or what its creator called it.
    fn names_init(&self, exec_id: &str) -> bool {
        exec_id.is_empty() || exec_id == self.id || exec_id == self.init_id
    }

    /// A process by name.
    pub(crate) fn process(&self, exec_id: &str) -> Option<Arc<Process>> {
        if self.names_init(exec_id) {
            return Some(self.init.clone());
        }
        self.execs().get(exec_id).cloned().flatten()
    }

    /// Returns when no process is being made.
    pub(crate) async fn settled(&self) {
        self.launches.none().await;
    }

    /// Lets the init go on to its program; returns when that runs.
    ///
    /// # Errors
    /// Not running, already started; or why the program does not run, which is the end of the init.
    pub(crate) async fn start(&self) -> Result<(), Failed> {
        if self.init.has_ended() {
            return Err(Failed::new(FailureKind::NotRunning, &self.id));
        }
        self.started.store(true, Ordering::Relaxed);
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).take();
        let start = start
            .ok_or_else(|| Failed::new(FailureKind::AlreadyExists, format!("{} was started", self.id)))?;
        self.init.starts_now();
        told_to_start(start)
            .await
            .map_err(|error| Failed::new(FailureKind::Container, format!("start: {error}")))?
    }

    fn is_running(&self) -> bool {
        self.started.load(Ordering::Relaxed) && !self.init.has_ended()
    }

    fn running(&self) -> Result<(), Failed> {
        if self.is_running() {
            Ok(())
        } else {
            Err(Failed::new(FailureKind::NotRunning, &self.id))
        }
    }

    /// Stops all of its processes where they are; returns when they stand still. Twice is once.
    pub(crate) async fn pause(&self) -> Result<(), Failed> {
        self.running()?;
        match self.freezer.pause(&self.places.cgroup).await {
            Ok(Pause::Frozen) => Ok(()),
            Ok(Pause::Resumed) => Err(Failed::new(
                FailureKind::Container,
                format!("pause: {} was resumed meanwhile", self.id),
            )),
            Err(error) => Err(self.freezer_failed("pause", &error)),
        }
    }

    /// Lets all of its processes go on. One that is not paused goes on anyway.
    pub(crate) async fn resume(&self) -> Result<(), Failed> {
        self.running()?;
        let resumed = self.freezer.resume(&self.places.cgroup).await;
        resumed.map_err(|error| self.freezer_failed("resume", &error))
    }

    fn freezer_failed(&self, what: &str, error: &io::Error) -> Failed {
        if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) {
            // It was removed meanwhile.
            return Failed::new(FailureKind::NotRunning, &self.id);
        }
        Failed::new(FailureKind::Container, format!("{what}: {error}"))
    }

    /// Whether its limits can be changed: also before the start, not after the end.
    pub(crate) fn check_alive(&self) -> Result<(), Failed> {
        if self.init.has_ended() {
            return Err(Failed::new(FailureKind::NotRunning, &self.id));
        }
        Ok(())
    }

    /// Tells of those that were killed for want of memory, to the last one.
    pub(crate) fn tell_kills(&self) {
        if let Some(Err(error)) = self.kills.as_ref().map(Kills::tell) {
            crate::warn(&format!("memory.events of {}: {error}", self.id));
        }
    }

    /// Keeps the init, which need not be started, and holds up the removal until the answer is dropped.
    pub(crate) fn enter(&self) -> Result<(Launching, Arc<Child>), Failed> {
        let init = self.init.child().filter(|_| !self.init.has_ended());
        let init = init.ok_or_else(|| Failed::new(FailureKind::NotRunning, &self.id))?;
        Ok((self.launches.begin(), init))
    }

    /// Reserves a name for a process that is being made, and keeps the init.
    pub(crate) fn reserve(self: &Arc<Self>, exec_id: &str) -> Result<(Reservation, Arc<Child>), Failed> {
        let init = self.init.child().filter(|_| self.is_running());
        let init = init.ok_or_else(|| Failed::new(FailureKind::NotRunning, &self.id))?;
        let mut execs = self.execs();
        if self.names_init(exec_id) || execs.contains_key(exec_id) {
            return Err(Failed::new(FailureKind::AlreadyExists, exec_id));
        }
        execs.insert(exec_id.to_owned(), None);
        let container = self.clone();
        let launching = self.launches.begin();
        Ok((
            Reservation {
                container,
                exec_id: exec_id.to_owned(),
                _launching: launching,
            },
            init,
        ))
    }

    /// Sends a signal to one process. Before the start only SIGKILL has a meaning.
    pub(crate) fn signal(&self, process: &Process, signal: i32) -> Result<(), Failed> {
        let early = !self.started.load(Ordering::Relaxed);
        if early && signal != libc::SIGKILL && !process.has_ended() {
            return Err(Failed::new(
                FailureKind::NotRunning,
                format!("{} is not started", self.id),
            ));
        }
        process.signal(signal)
    }

    /// Kills everything in the container, however much it forks.
    pub(crate) fn kill_all(&self) -> io::Result<()> {
        match std::fs::write(self.places.cgroup.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Sends a signal to everything that is in the container at this moment.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<(), Failed> {
        if !self.is_running() && signal != libc::SIGKILL {
            return Err(Failed::new(FailureKind::NotRunning, &self.id));
        }
        let sent = if signal == libc::SIGKILL {
            self.kill_all()
        } else {
            signal_tree(&self.places.cgroup, signal)
        };
        sent.map_err(|error| Failed::new(FailureKind::Container, format!("signal: {error}")))
    }
}

/// Tells an init to start, and reads what it says to its end. The end alone means that its program runs.
async fn told_to_start(mut start: UnixStream) -> io::Result<Result<(), Failed>> {
    match start.write_all(b"s").await {
        // It was killed before.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Ok(())),
        other => other?,
    }
    let mut line = Vec::new();
    match start.read_to_end(&mut line).await {
        // It was killed meanwhile, with the word unread.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Ok(())),
        other => other?,
    };
    if line.is_empty() {
        return Ok(Ok(()));
    }
    let outcome: Outcome = serde_json::from_slice(&line)?;
    Ok(outcome.into_result().map(drop))
}

/// Signals the processes of a cgroup and of those below it.
fn signal_tree(cgroup: &Path, signal: i32) -> io::Result<()> {
    let processes = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    for pid in processes
        .lines()
        .filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?))
    {
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        // One that is gone by now needs no signal.
        let _ = pidfd.map(|pidfd| crate::sys::pidfd_signal(&pidfd, signal));
    }
    for entry in std::fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            signal_tree(&entry.path(), signal)?;
        }
    }
    Ok(())
}

/// The name of a process that is being made. Dropping it without [`Reservation::fill`] frees the name.
pub(crate) struct Reservation {
    container: Arc<Container>,
    exec_id: String,
    _launching: Launching,
}

impl Reservation {
    /// The process was made.
    pub(crate) fn fill(self, process: Process) {
        let mut execs = self.container.execs();
        forget_the_eldest(&mut execs);
        execs.insert(self.exec_id.clone(), Some(Arc::new(process)));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut execs = self.container.execs();
        if execs.get(&self.exec_id).is_some_and(Option::is_none) {
            execs.remove(&self.exec_id);
        }
    }
}
