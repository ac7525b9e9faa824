//! The sandbox: its containers by id, and what they share.
//!
//! Owns the steps of creating, executing and removing, and what is undone when one fails. Each step
//! that may block is a worker process, so one request never waits for another. Must not know ttrpc.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_agent_proto::agent::SharedMount;
use kata_agent_proto::{Failed, FailureKind};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use crate::birth::hooks::{self, State};
use crate::container::{self, Container, Launches, Places};
use crate::devices;
use crate::disks::Disks;
use crate::exec::{Joiner, NameSpaces, Plan, Target, Traits};
use crate::extent::Extent;
use crate::guest::Guest;
use crate::ipc::Ipc;
use crate::launch;
use crate::limits::Limits;
use crate::names::{cgroup_name, check_name};
use crate::oom::{self, Kills};
use crate::order::{Create, Device, Hooks, Order, Remove, Storage, Update};
use crate::process::{Ports, Prepared, Process};
use crate::reaper::Reaper;
use crate::rootfs::passwd::User;
use crate::roster::{Removal, Roster};
use crate::sharing::Pause;
use crate::streams::Unclaimed;
use crate::terminal;
use crate::worker::storage;

/// Below it everything of the containers is kept.
const RUN: &str = "/run/kata";

/// How long a container may take to be removed with its sandbox; what hangs then ends with the agent.
const DESTROY_WAIT: Duration = Duration::from_secs(30);

/// What the agent was started with.
pub(crate) struct Settings {
    pub(crate) guest: Guest,
    /// The cgroup that all containers are in, from the root of the hierarchy.
    pub(crate) cgroup: PathBuf,
    /// Disks that are files.
    pub(crate) disks: Disks,
}

/// What containers get from their sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    sandbox_id: Option<String>,
    hostname: String,
    dns: Vec<String>,
    /// All of its containers share one PID namespace.
    pub(crate) shared_pids: bool,
}

/// See the module.
pub(crate) struct Sandbox {
    settings: Settings,
    pub(crate) reaper: Reaper,
    joiner: Joiner,
    pub(crate) unclaimed: Unclaimed,
    pub(crate) oom: oom::Events,
    names: Mutex<Names>,
    pub(crate) pause: Pause,
    ipc: Ipc,
    pub(crate) roster: Roster<Container>,
    /// The cgroups of all containers, also of those that are being made or removed.
    cgroups: Mutex<Vec<PathBuf>>,
    /// The sandbox is destroyed; the agent shall end.
    pub(crate) destroyed: Notify,
}

/// What a container is made of.
pub(crate) struct Creation {
    pub(crate) id: String,
    /// Another name of its init.
    pub(crate) init_id: String,
    pub(crate) spec: serde_json::Value,
    pub(crate) traits: Traits,
    pub(crate) limits: Limits,
    pub(crate) user: Option<User>,
    pub(crate) storages: Vec<Storage>,
    pub(crate) ports: Ports,
    pub(crate) terminal: bool,
    /// Its processes are in the PID namespace that containers share.
    pub(crate) shared_pids: bool,
    pub(crate) devices: Vec<Device>,
    /// Mounts between containers; what is not this one's to see is not its concern.
    pub(crate) shared_mounts: Vec<SharedMount>,
}

/// What a further process is made of.
pub(crate) struct Execution {
    pub(crate) container_id: String,
    pub(crate) exec_id: String,
    pub(crate) process: serde_json::Value,
    pub(crate) user: Option<User>,
    pub(crate) ports: Ports,
}

/// A container's first process, and what is watched of it.
struct Init {
    id: String,
    init_id: String,
    process: Process,
    kills: Option<Kills>,
    start: UnixStream,
}

/// Why a container or process was not found, or what else failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No such container or process, or not any more.
    #[error("no such container or process: {0}")]
    NotFound(String),
    /// Its processes did not end in time.
    #[error("the processes of {0} did not end in time")]
    Timeout(String),
    /// There is no sandbox any more.
    #[error("the sandbox is destroyed")]
    Destroyed,
    /// A failure with a kind.
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl Sandbox {
    pub(crate) fn new(settings: Settings, joiner: Joiner) -> Self {
        Sandbox {
            settings,
            reaper: Reaper::default(),
            joiner,
            unclaimed: Unclaimed::default(),
            oom: oom::Events::default(),
            names: Mutex::default(),
            pause: Pause::default(),
            ipc: Ipc::default(),
            roster: Roster::default(),
            cgroups: Mutex::default(),
            destroyed: Notify::new(),
        }
    }

    pub(crate) fn guest(&self) -> Guest {
        self.settings.guest
    }

    /// Those that are files.
    pub(crate) fn disks(&self) -> &Disks {
        &self.settings.disks
    }

    pub(crate) fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the sandbox and mounts what its containers share. Once.
    pub(crate) async fn set_up(
        &self,
        sandbox_id: String,
        hostname: String,
        dns: Vec<String>,
        storages: Vec<Storage>,
        shared_pids: bool,
    ) -> Result<(), Error> {
        if self.names().sandbox_id.is_some() {
            return Err(Failed::new(FailureKind::AlreadyExists, "the sandbox").into());
        }
        if !hostname.is_empty() {
            rustix::system::sethostname(hostname.as_bytes()).map_err(|error| {
                Failed::new(FailureKind::Invalid, format!("hostname {hostname:?}: {error}"))
            })?;
        }
        if !storages.is_empty() {
            let (storages, files) = self.disks().storages(storages).await?;
            if storage::are_memory(&storages) {
                // Which is there at once, and the start of a worker would be the longer part.
                storage::mount_all(&storages)?.keep();
            } else {
                launch::run(&self.reaper, &Order::Mount(storages), &descriptors(&files)).await?;
            }
        }
        *self.names() = Names {
            sandbox_id: Some(sandbox_id),
            hostname,
            dns,
            shared_pids,
        };
        Ok(())
    }

    /// The container with this id.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let found = self.roster.get(id);
        found.ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// Creates a container; its process waits to be started. Whoever kills or removes it meanwhile ends the long part of
    /// that, which is the worker's.
    pub(crate) async fn create(&self, creation: Creation) -> Result<(), Error> {
        check_name(&creation.id)?;
        check_name(&creation.init_id)?;
        let slot = self.roster.reserve(&creation.id, &creation.init_id)?;
        let container = Arc::new(self.make_container(creation, slot.given_up()).await?);
        if slot.fill(container.clone()) {
            // It was made before it heard that it was killed; its end is heard of as always.
            let _ = container.kill_all();
        }
        Ok(())
    }

    async fn make_container(
        &self,
        mut creation: Creation,
        given_up: impl Future<Output = ()>,
    ) -> Result<Container, Error> {
        self.share_pids(&mut creation).await?;
        let places = self.places(&creation)?;
        self.occupy(&places.cgroup)?;
        let launches = Launches::new();
        fs::create_dir_all(&places.bundle).map_err(|error| {
            Failed::new(
                FailureKind::Container,
                format!("{}: {error}", places.bundle.display()),
            )
        })?;
        let made = self.make_init(&places, creation, &launches, given_up).await;
        match made {
            Ok(Init {
                id,
                init_id,
                process,
                kills,
                start,
            }) => Ok(Container::new(
                id, init_id, places, process, launches, kills, start,
            )),
            Err(failed) => {
                self.release(&places).await?;
                Err(failed.into())
            }
        }
    }

    async fn make_init(
        &self,
        places: &Places,
        creation: Creation,
        launches: &Launches,
        given_up: impl Future<Output = ()>,
    ) -> Result<Init, Failed> {
        let Creation {
            id,
            init_id,
            mut spec,
            traits,
            limits,
            user,
            storages,
            ports,
            terminal,
            shared_pids: _,
            devices: given,
            shared_mounts,
        } = creation;
        let shares = self.shares(&id, &spec, &shared_mounts)?;
        self.ipc.share(&mut spec)?;
        let (prepared, streams) = Prepared::new(ports, terminal, &self.unclaimed, Path::new(RUN)).await?;
        let Names { hostname, dns, .. } = self.names().clone();
        let hostname = spec["hostname"].as_str().map_or(hostname, str::to_owned);
        let (storages, files) = self.disks().storages(storages).await?;
        let failed = |error: std::io::Error| Failed::new(FailureKind::Container, format!("start: {error}"));
        let (start, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        start.set_nonblocking(true).map_err(failed)?;
        let start = UnixStream::from_std(start).map_err(failed)?;
        let limits = limits.in_guest(self.guest()).with_devices(self.guest());
        let optional_rules = limits.devices_are_optional();
        let order = Order::Create(Box::new(Create {
            id: id.clone(),
            bundle: places.bundle.clone(),
            cgroup: places.cgroup.clone(),
            limits,
            devices: given,
            shares,
            storages,
            spec,
            traits,
            state: places.state.clone(),
            start: theirs.as_raw_fd(),
            user,
            console: prepared.console().map(Path::to_owned),
            dns,
            hostname,
        }));
        let inherited = [descriptors(&files), vec![theirs.as_fd()]].concat();
        let killed = async {
            given_up.await;
            Failed::new(
                FailureKind::NotRunning,
                format!("{id} was killed while it was made"),
            )
        };
        let child = launch::process(&self.reaper, &order, streams, &inherited, killed).await?;
        if optional_rules && !devices::hold_at(&places.cgroup) {
            crate::warn(&format!(
                "{id}: no rules on devices hold, as the kernel refuses them"
            ));
        }
        let kills = Kills::watch(&id, &places.cgroup, &self.oom)
            .map_err(|error| Failed::new(FailureKind::Container, format!("memory.events: {error}")))?;
        let process = prepared.follow(child, launches.none()).await?;
        Ok(Init {
            id,
            init_id,
            process,
            kills,
            start,
        })
    }

    /// Changes the limits of a container: all of them, or none.
    pub(crate) async fn update(&self, id: &str, limits: Limits) -> Result<(), Error> {
        let container = self.container(id)?;
        container.check_alive()?;
        let _alone = container.updating.lock().await;
        let order = Order::Update(Update {
            cgroup: container.places.cgroup.clone(),
            limits: limits.in_guest(self.guest()),
        });
        let updated = launch::run(&self.reaper, &order, &[]).await;
        // Without processes its cgroup may be gone at any time, which is no fault of the limits.
        Ok(updated.or_else(|failed| container.check_alive().and(Err(failed)))?)
    }

    fn places(&self, creation: &Creation) -> Result<Places, Failed> {
        let spec = &creation.spec;
        let asked = spec["linux"]["cgroupsPath"].as_str();
        let name = asked.map_or_else(|| Ok(PathBuf::from(&creation.id)), cgroup_name)?;
        let bundle = Path::new(RUN).join(&creation.id);
        let state = State {
            version: spec["ociVersion"].as_str().unwrap_or_default().to_owned(),
            id: creation.id.clone(),
            bundle: bundle.to_string_lossy().into_owned(),
            annotations: spec["annotations"].clone(),
        };
        Ok(Places {
            bundle,
            cgroup: self.base().join(name),
            mount_points: mount_points(&creation.storages),
            verified: match self.guest() {
                Guest::Machine => mount_points(creation.storages.iter().filter(|one| one.verity().is_some())),
                Guest::Process => Vec::new(),
            },
            name: container::name(spec).map(str::to_owned),
            partitioned: self.partitioned(&creation.storages)?,
            namespaces: NameSpaces::of(spec)?,
            traits: Arc::new(creation.traits.clone()),
            poststart: hooks::of(spec, "poststart")?,
            poststop: hooks::of(spec, "poststop")?,
            state,
        })
    }

    /// Disks of which a part is used, each once; where disks are files, each part is one of its own.
    fn partitioned(&self, storages: &[Storage]) -> Result<BTreeSet<String>, Failed> {
        let mut disks = BTreeSet::new();
        for storage in storages {
            let is_part = Extent::of(storage)?.is_some();
            disks.extend((is_part && self.guest() == Guest::Machine).then(|| storage.source.clone()));
        }
        Ok(disks)
    }

    /// The directory of the cgroup that all containers are in.
    fn base(&self) -> PathBuf {
        let cgroup = &self.settings.cgroup;
        Path::new("/sys/fs/cgroup").join(cgroup.strip_prefix("/").unwrap_or(cgroup))
    }

    fn cgroups(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        // Nothing panics while holding it.
        self.cgroups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a cgroup for a container: one that is in no other's, and no other in it.
    fn occupy(&self, cgroup: &Path) -> Result<(), Failed> {
        let mut taken = self.cgroups();
        if taken
            .iter()
            .any(|other| other.starts_with(cgroup) || cgroup.starts_with(other))
        {
            let text = format!("linux.cgroupsPath: {}", cgroup.display());
            return Err(Failed::new(FailureKind::AlreadyExists, text));
        }
        taken.push(cgroup.to_owned());
        Ok(())
    }

    /// Starts the container's program, and runs what is to be run after that.
    pub(crate) async fn start(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        container.start().await?;
        let places = &container.places;
        if places.poststart.is_empty() {
            return Ok(());
        }
        let order = Order::Hooks(Hooks {
            list: places.poststart.clone(),
            state: places.state.clone(),
            status: "running".to_owned(),
            pid: container.init().child().map(|child| child.pid()),
        });
        let ran = launch::run(&self.reaper, &order, &[]).await;
        Ok(ran.inspect_err(|_| {
            // It is stopped, as the specification has it (runtime.md#lifecycle); its end is heard of as always.
            let _ = container.kill_all();
        })?)
    }

    /// Starts a further process.
    pub(crate) async fn exec(&self, execution: Execution) -> Result<(), Error> {
        let Execution {
            container_id,
            exec_id,
            process,
            user,
            ports,
        } = execution;
        check_name(&exec_id)?;
        let container = self.container(&container_id)?;
        let (reservation, init) = container.reserve(&exec_id)?;
        let places = &container.places;
        let plan = Plan::new(&process, user.as_ref(), &places.traits)?;
        let (prepared, streams) = match plan.terminal {
            Some(size) => {
                let made = terminal::open(&container_id, &init, size)?;
                Prepared::with_terminal(ports, &self.unclaimed, made).await?
            }
            None => Prepared::new(ports, false, &self.unclaimed, Path::new(RUN)).await?,
        };
        let target = Target {
            id: &container_id,
            init: &init,
            namespaces: places.namespaces,
            cgroup: &places.cgroup,
        };
        let child = self.joiner.start(&self.reaper, target, plan, streams).await?;
        reservation.fill(prepared.follow(child, async {}).await?);
        Ok(())
    }

    /// Kills what still runs in a container, also in one that is being made, waits for it, and releases what it had.
    pub(crate) async fn remove(&self, id: &str, timeout: Option<Duration>) -> Result<(), Error> {
        let removed = self.remove_at_last(id);
        match timeout {
            Some(timeout) => match tokio::time::timeout(timeout, removed).await {
                Ok(removed) => removed,
                Err(_) => Err(Error::Timeout(id.to_owned())),
            },
            None => removed.await,
        }
    }

    async fn remove_at_last(&self, id: &str) -> Result<(), Error> {
        let Some(over) = self.roster.give_up(id) else {
            let removal = self.roster.take(id);
            return self
                .finish(removal.ok_or_else(|| Error::NotFound(id.to_owned()))?)
                .await;
        };
        over.await;
        // It may have been made before it heard of that, and somebody else may be the first to remove it then.
        while let Some(gone) = self.roster.going(id) {
            gone.await;
        }
        match self.roster.take(id) {
            Some(removal) => self.finish(removal).await,
            None => Ok(()),
        }
    }

    async fn finish(&self, removal: Removal<'_, Container>) -> Result<(), Error> {
        let released = self.end(removal.container()).await;
        removal.done();
        released
    }

    async fn end(&self, container: &Container) -> Result<(), Error> {
        let kill_all = || {
            let killed = container.kill_all();
            killed.map_err(|error| Failed::new(FailureKind::Container, format!("cgroup.kill: {error}")))
        };
        kill_all()?;
        container.init().wait().await;
        // A process that was being made meanwhile may have joined after the first blow.
        container.settled().await;
        kill_all()?;
        container.tell_kills();
        self.release(&container.places).await
    }

    async fn release(&self, places: &Places) -> Result<(), Error> {
        // A failed creation may have left a process behind; killing an empty cgroup is harmless.
        let _ = fs::write(places.cgroup.join("cgroup.kill"), "1");
        let order = Order::Remove(Remove {
            bundle: places.bundle.clone(),
            cgroup: places.cgroup.clone(),
            base: self.base(),
            mount_points: places.mount_points.clone(),
            verified: places.verified.clone(),
            partitioned: places.partitioned.clone(),
            poststop: places.poststop.clone(),
            state: places.state.clone(),
        });
        let released = launch::run(&self.reaper, &order, &[]).await;
        self.cgroups().retain(|taken| *taken != places.cgroup);
        Ok(released?)
    }

    /// Removes every container. The agent ends after it.
    pub(crate) async fn destroy(&self) {
        for id in self.roster.ids() {
            if let Err(error) = self.remove(&id, Some(DESTROY_WAIT)).await {
                crate::warn(&format!("{id} is not removed: {error}"));
            }
        }
        if let Some(pause) = self.pause.lock().await.take() {
            // One that has ended already needs no signal.
            let _ = pause.signal(libc::SIGKILL);
        }
        self.oom.close();
        self.destroyed.notify_one();
    }
}

fn mount_points<'a>(storages: impl IntoIterator<Item = &'a Storage>) -> Vec<String> {
    storages
        .into_iter()
        .map(|storage| storage.mount_point.clone())
        .collect()
}

/// What a worker is given of the disks that are files.
fn descriptors(files: &[Arc<OwnedFd>]) -> Vec<BorrowedFd<'_>> {
    files.iter().map(AsFd::as_fd).collect()
}
