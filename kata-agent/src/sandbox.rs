//! The sandbox: its containers by id, and what they share.
//!
//! Owns the steps of creating, executing and removing, and what is undone when one fails. Each step
//! that may block is a worker process, so one request never waits for another. Must not know ttrpc.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_agent_proto::agent::SharedMount;
use kata_agent_proto::{Failed, FailureKind};
use tokio::sync::Notify;

use crate::container::{self, Container, Launches, Places};
use crate::exec::{Joiner, NameSpaces, Plan, Target};
use crate::guest::Guest;
use crate::ipc::Ipc;
use crate::launch;
use crate::limits::Limits;
use crate::oom::{self, Kills};
use crate::order::{Create, Device, Exec, Order, Remove, Share, Storage, Storages, Update, User};
use crate::process::{Ports, Prepared, Process};
use crate::reaper::{Child, Reaper};
use crate::streams::Unclaimed;
use crate::terminal;

/// Below it everything of the containers is kept.
const RUN: &str = "/run/kata";

/// Longest name of a container or process, so that it fits into the names of files.
const NAME_MAX_BYTES: usize = 64;

/// What the agent was started with.
pub(crate) struct Settings {
    pub(crate) guest: Guest,
    /// The cgroup that all containers are in, from the root of the hierarchy.
    pub(crate) cgroup: PathBuf,
    /// Disks that are files, by serial.
    pub(crate) disks: Vec<(String, OwnedFd)>,
}

/// What containers get from their sandbox.
#[derive(Debug, Clone, Default)]
struct Names {
    sandbox_id: Option<String>,
    hostname: String,
    dns: Vec<String>,
    /// All of its containers share one PID namespace.
    shared_pids: bool,
}

/// See the module.
pub(crate) struct Sandbox {
    settings: Settings,
    disks: Vec<OwnedFd>,
    serials: Vec<String>,
    pub(crate) reaper: Reaper,
    joiner: Joiner,
    pub(crate) unclaimed: Unclaimed,
    pub(crate) oom: oom::Events,
    names: Mutex<Names>,
    /// The first process of the PID namespace that containers share, once one asked for it.
    pause: tokio::sync::Mutex<Option<Child>>,
    ipc: Ipc,
    /// `None` while being made or removed.
    containers: Mutex<HashMap<String, Option<Arc<Container>>>>,
    /// The sandbox is destroyed; the agent shall end.
    pub(crate) destroyed: Notify,
}

/// What a container is made of.
pub(crate) struct Creation {
    pub(crate) id: String,
    /// Another name of its init.
    pub(crate) init_id: String,
    pub(crate) spec: serde_json::Value,
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
    pub(crate) terminal: bool,
}

/// A container's first process, and what is watched of it.
struct Init {
    id: String,
    init_id: String,
    process: Process,
    kills: Option<Kills>,
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

fn check_name(name: &str) -> Result<(), Failed> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if name.is_empty() || name.len() > NAME_MAX_BYTES || name.starts_with('.') || !name.bytes().all(known) {
        return Err(Failed::new(FailureKind::Invalid, format!("name {name:?}")));
    }
    Ok(())
}

impl Sandbox {
    pub(crate) fn new(mut settings: Settings, joiner: Joiner) -> Self {
        let (serials, disks) = std::mem::take(&mut settings.disks).into_iter().unzip();
        Sandbox {
            settings,
            disks,
            serials,
            reaper: Reaper::default(),
            joiner,
            unclaimed: Unclaimed::default(),
            oom: oom::Events::default(),
            names: Mutex::default(),
            pause: tokio::sync::Mutex::default(),
            ipc: Ipc::default(),
            containers: Mutex::default(),
            destroyed: Notify::new(),
        }
    }

    pub(crate) fn guest(&self) -> Guest {
        self.settings.guest
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Container>>>> {
        // Nothing panics while holding it.
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> MutexGuard<'_, Names> {
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
            launch::run(&self.reaper, &Order::Mount(self.storages(storages)), &self.disks).await?;
        }
        *self.names() = Names {
            sandbox_id: Some(sandbox_id),
            hostname,
            dns,
            shared_pids,
        };
        Ok(())
    }

    /// The process that holds the PID namespace which containers share.
    async fn pause(&self) -> Result<i32, Failed> {
        let mut pause = self.pause.lock().await;
        match &*pause {
            Some(child) if child.has_ended() => {
                Err(Failed::new(FailureKind::NotRunning, "the shared PID namespace"))
            }
            Some(child) => Ok(child.pid()),
            None => {
                let streams = launch::Streams::null().map_err(|error| {
                    Failed::new(FailureKind::Container, format!("shared PID namespace: {error}"))
                })?;
                let child = launch::process(&self.reaper, &Order::Pause, streams, &[]).await?;
                Ok(pause.insert(child).pid())
            }
        }
    }

    /// The mounts of others that a container is to see.
    fn shares(
        &self,
        id: &str,
        spec: &serde_json::Value,
        mounts: &[SharedMount],
    ) -> Result<Vec<Share>, Failed> {
        let name = container::name(spec);
        let theirs = mounts
            .iter()
            .filter(|mount| mount.dst_ctr == id || Some(mount.dst_ctr.as_str()) == name);
        let share = |mount: &SharedMount| {
            let containers = self.containers();
            let mut others = containers.values().flatten();
            let source = others
                .find(|other| other.is_called(&mount.src_ctr))
                .and_then(|other| other.init().child())
                .ok_or_else(|| Failed::new(FailureKind::NotRunning, &mount.src_ctr))?;
            Ok(Share {
                source_pid: source.pid(),
                source_path: mount.src_path.clone(),
                path: mount.dst_path.clone(),
            })
        };
        theirs.map(share).collect()
    }

    /// Puts a container into the PID namespace that it shares, where it does.
    async fn share_pids(&self, creation: &mut Creation) -> Result<(), Failed> {
        if !creation.shared_pids && !self.names().shared_pids {
            return Ok(());
        }
        let shared =
            serde_json::json!({ "type": "pid", "path": format!("/proc/{}/ns/pid", self.pause().await?) });
        match &mut creation.spec["linux"]["namespaces"] {
            serde_json::Value::Array(list) => {
                list.retain(|item| item["type"] != "pid");
                list.push(shared);
            }
            list => *list = serde_json::json!([shared]),
        }
        Ok(())
    }

    fn storages(&self, list: Vec<Storage>) -> Storages {
        let fds = self.disks.iter().map(AsRawFd::as_raw_fd);
        Storages {
            list,
            disks: self.serials.iter().cloned().zip(fds).collect(),
        }
    }

    /// The container with this id.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.containers()
            .get(id)
            .cloned()
            .flatten()
            .ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// Creates a container; its process waits to be started.
    pub(crate) async fn create(&self, creation: Creation) -> Result<(), Error> {
        check_name(&creation.id)?;
        check_name(&creation.init_id)?;
        let id = creation.id.clone();
        let slot = Slot::reserve(self, &id)?;
        let container = self.make_container(creation).await?;
        slot.fill(container);
        Ok(())
    }

    async fn make_container(&self, mut creation: Creation) -> Result<Container, Error> {
        self.share_pids(&mut creation).await?;
        let places = self.places(&creation);
        let launches = Launches::new();
        fs::create_dir_all(&places.bundle).map_err(|error| {
            Failed::new(
                FailureKind::Container,
                format!("{}: {error}", places.bundle.display()),
            )
        })?;
        let made = self.make_init(&places, creation, &launches).await;
        match made {
            Ok(Init {
                id,
                init_id,
                process,
                kills,
            }) => Ok(Container::new(id, init_id, places, process, launches, kills)),
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
    ) -> Result<Init, Failed> {
        let Creation {
            id,
            init_id,
            mut spec,
            limits,
            user,
            storages,
            ports,
            terminal,
            shared_pids: _,
            devices,
            shared_mounts,
        } = creation;
        let shares = self.shares(&id, &spec, &shared_mounts)?;
        self.ipc.share(&mut spec)?;
        let (prepared, streams) = Prepared::new(ports, terminal, &self.unclaimed, Path::new(RUN)).await?;
        let Names { hostname, dns, .. } = self.names().clone();
        let hostname = spec["hostname"].as_str().map_or(hostname, str::to_owned);
        spec["linux"]["cgroupsPath"] = serde_json::json!(self.settings.cgroup.join(&id));
        let order = Order::Create(Create {
            id: id.clone(),
            bundle: places.bundle.clone(),
            cgroup: places.cgroup.clone(),
            limits,
            devices,
            shares,
            storages: self.storages(storages),
            spec,
            user,
            console: prepared.console().map(Path::to_owned),
            dns,
            hostname,
        });
        let child = launch::process(&self.reaper, &order, streams, &self.disks).await?;
        let kills = Kills::watch(&id, &places.cgroup, &self.oom)
            .map_err(|error| Failed::new(FailureKind::Container, format!("memory.events: {error}")))?;
        let process = prepared.follow(child, launches.none()).await?;
        Ok(Init {
            id,
            init_id,
            process,
            kills,
        })
    }

    /// Changes the limits of a container: all of them, or none.
    pub(crate) async fn update(&self, id: &str, limits: Limits) -> Result<(), Error> {
        let container = self.container(id)?;
        container.check_alive()?;
        let _alone = container.updating.lock().await;
        let order = Order::Update(Update {
            cgroup: container.places.cgroup.clone(),
            limits,
        });
        let updated = launch::run(&self.reaper, &order, &[]).await;
        // Without processes its cgroup may be gone at any time, which is no fault of the limits.
        Ok(updated.or_else(|failed| container.check_alive().and(Err(failed)))?)
    }

    fn places(&self, creation: &Creation) -> Places {
        let cgroup = self
            .settings
            .cgroup
            .strip_prefix("/")
            .unwrap_or(&self.settings.cgroup);
        Places {
            bundle: Path::new(RUN).join(&creation.id),
            cgroup: Path::new("/sys/fs/cgroup").join(cgroup).join(&creation.id),
            mount_points: creation
                .storages
                .iter()
                .map(|storage| storage.mount_point.clone())
                .collect(),
            name: container::name(&creation.spec).map(str::to_owned),
            namespaces: NameSpaces::of(&creation.spec),
        }
    }

    /// Starts a further process.
    pub(crate) async fn exec(&self, execution: Execution) -> Result<(), Error> {
        let Execution {
            container_id,
            exec_id,
            process,
            user,
            ports,
            terminal,
        } = execution;
        check_name(&exec_id)?;
        let container = self.container(&container_id)?;
        let (reservation, init) = container.reserve(&exec_id)?;
        let plan = match container.places.namespaces {
            Some(namespaces) => Plan::new(&process, user.as_ref())?.zip(Some(namespaces)),
            None => None,
        };
        let (prepared, streams) = match plan.as_ref().and_then(|(plan, _)| plan.terminal) {
            Some(size) => {
                let made = terminal::open(&container_id, &init, size)?;
                Prepared::with_terminal(ports, &self.unclaimed, made).await?
            }
            None => Prepared::new(ports, terminal, &self.unclaimed, Path::new(RUN)).await?,
        };
        let child = match plan {
            Some((plan, namespaces)) => {
                let target = Target {
                    id: &container_id,
                    init: &init,
                    namespaces,
                    cgroup: &container.places.cgroup,
                };
                self.joiner.start(&self.reaper, target, plan, streams).await?
            }
            None => {
                let order = Order::Exec(Exec {
                    id: container_id,
                    exec_id,
                    bundle: container.places.bundle.clone(),
                    process,
                    user,
                    console: prepared.console().map(Path::to_owned),
                    init_pid: init.pid(),
                });
                launch::process(&self.reaper, &order, streams, &[]).await?
            }
        };
        reservation.fill(prepared.follow(child, async {}).await?);
        Ok(())
    }

    /// Kills what still runs in a container, waits for it, and releases what it had.
    pub(crate) async fn remove(&self, id: &str, timeout: Option<Duration>) -> Result<(), Error> {
        let container = self.container(id)?;
        self.containers().insert(id.to_owned(), None);
        let removing = Slot { sandbox: self, id };
        let removed = match timeout {
            Some(timeout) => tokio::time::timeout(timeout, self.end(&container)).await,
            None => Ok(self.end(&container).await),
        };
        match removed {
            Ok(released) => released,
            Err(_) => {
                removing.put_back(container);
                Err(Error::Timeout(id.to_owned()))
            }
        }
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
            mount_points: places.mount_points.clone(),
        });
        Ok(launch::run(&self.reaper, &order, &[]).await?)
    }

    /// Removes every container. The agent ends after it.
    pub(crate) async fn destroy(&self) {
        let ids: Vec<String> = self.containers().keys().cloned().collect();
        for id in ids {
            if let Err(error) = self.remove(&id, None).await {
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

/// An id that is taken while its container is made or removed.
struct Slot<'a> {
    sandbox: &'a Sandbox,
    id: &'a str,
}

impl<'a> Slot<'a> {
    fn reserve(sandbox: &'a Sandbox, id: &'a str) -> Result<Self, Failed> {
        let mut containers = sandbox.containers();
        if containers.contains_key(id) {
            return Err(Failed::new(FailureKind::AlreadyExists, id));
        }
        containers.insert(id.to_owned(), None);
        Ok(Slot { sandbox, id })
    }

    fn fill(self, container: Container) {
        self.put_back(Arc::new(container));
    }

    fn put_back(self, container: Arc<Container>) {
        self.sandbox
            .containers()
            .insert(self.id.to_owned(), Some(container));
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut containers = self.sandbox.containers();
        if containers.get(self.id).is_some_and(Option::is_none) {
            containers.remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_files() {
        for name in ["c1", "a.b-c_d+e", &"x".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", ".x", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
