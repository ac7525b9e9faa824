//! The containers of a sandbox: the one that it was booted with, and those that join it.
//!
//! ```text
//!  created ──spawn──► running ──its own process ends──► stopped ──remove──► (not found)
//! ```
//!
//! Owns what is done to a container as a whole. Must not know how the machine came up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kata_agent_proto::agent::{
    CreateContainerRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest,
    SignalProcessRequest, StartContainerRequest, StatsContainerRequest, StatsContainerResponse,
    UpdateContainerRequest, WaitProcessRequest,
};
use kata_agent_proto::oci::Process as Template;
use protobuf::MessageField;
use tokio::sync::mpsc::WeakUnboundedSender;
use tokio::task::JoinError;

use crate::container::{Command, Container, Input, ProcessSettings, Writable};
use crate::creation::Creation;
use crate::ending::Limit;
use crate::error::{Error, ErrorKind};
use crate::events::Hub;
use crate::limits::Limits;
use crate::link::Link;
use crate::output::ExitStatus;
use crate::plan::{check_member, check_process, check_request};
use crate::process::{Handle, Process, SIGKILL, Streams};
use crate::report::{ContainerStats, Stage, Timings};
use crate::shelf::{Layers, Shelf};
use crate::signal::{self, SIGTERM};
use crate::spec::{self, Place};
use crate::supervise::{Deadline, Order};
use crate::{defaults, host, stats};

/// What the containers of a sandbox have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) link: Arc<Link>,
    pub(crate) hub: Arc<Hub>,
    /// The sandbox's name, which is their host name unless they have another.
    pub(crate) name: String,
    pub(crate) vcpus: u8,
    pub(crate) shares_pid: bool,
    pub(crate) shelf: Shelf,
    /// Weak, or a container would keep its sandbox.
    pub(crate) orders: WeakUnboundedSender<Order>,
    /// Those that were created and not removed.
    pub(crate) present: Mutex<BTreeMap<String, Present>>,
    /// For those without a name.
    pub(crate) next_name: AtomicU32,
}

/// A container that there is.
#[derive(Debug)]
pub(crate) struct Present {
    /// Its handles have the same, and those of another of its name have not.
    gone: Arc<AtomicBool>,
    /// What keeps its layers in the machine.
    _layers: Layers,
}

impl Shared {
    fn present(&self) -> MutexGuard<'_, BTreeMap<String, Present>> {
        // Nothing panics while holding it.
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of the containers that there are.
    pub(crate) fn names(&self) -> Vec<String> {
        self.present().keys().cloned().collect()
    }

    /// Notes a container that was made, of which `gone` tells those of the same name apart.
    pub(crate) fn admit(&self, id: &str, gone: &Arc<AtomicBool>, layers: Layers) {
        let mut present = self.present();
        let new = Present {
            gone: Arc::clone(gone),
            _layers: layers,
        };
        if present.insert(id.to_owned(), new).is_some() {
            // The agent has removed that one, or there could not be another.
            self.hub.removed(id);
        }
        self.hub.created(id);
    }

    /// Forgets a container that was removed, and none that has its name since.
    fn dismiss(&self, id: &str, gone: &Arc<AtomicBool>) {
        let mut present = self.present();
        if present
            .get(id)
            .is_some_and(|there| Arc::ptr_eq(&there.gone, gone))
        {
            present.remove(id);
            self.hub.removed(id);
        }
    }

    /// What a task of the runtime answers; it ends without an answer when the runtime does.
    pub(crate) async fn joined<T>(
        &self,
        stage: Stage,
        task: impl Future<Output = Result<Result<T, Error>, JoinError>>,
    ) -> Result<T, Error> {
        match task.await {
            Ok(answer) => answer,
            Err(_) => Err(self.link.closed(stage).await),
        }
    }

    /// A name that no container of this sandbox has at this moment.
    fn fresh_name(&self) -> String {
        loop {
            let name = format!("container-{}", self.next_name.fetch_add(1, Ordering::Relaxed));
            if !self.present().contains_key(&name) {
                return name;
            }
        }
    }
}

/// A container of a sandbox.
///
/// Clones are the same container. Dropping it lets the container run on, as long as its sandbox lives.
///
/// ```no_run
/// use std::time::Duration;
/// use kata_sandbox::{Command, Container, Sandbox};
///
/// # async fn example() -> Result<(), kata_sandbox::Error> {
/// let sandbox = Sandbox::boot(Container::new("docker.io/library/redis").name("db")).await?;
/// sandbox.spawn().await?;
/// let tools = sandbox.create_container(Container::new("docker.io/library/redis").name("tools").idle()).await?;
/// let output = tools.exec(Command::new("redis-cli").args(["-h", "127.0.0.1", "ping"])).await?.output().await?;
/// assert_eq!(output.stdout, b"PONG\n");
/// tools.remove().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ContainerHandle(pub(crate) Arc<Member>);

/// See [`ContainerHandle`].
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) shared: Arc<Shared>,
    settings: ProcessSettings,
    /// What its further processes are made from.
    template: Template,
    output_limit_bytes: u64,
    stop_signal: i32,
    /// How long the sandbox may live once this one has started.
    timeout: Option<Duration>,
    pub(crate) timings: Timings,
    /// Its streams, until it is started; none for an idle container.
    unstarted: Mutex<Option<Streams>>,
    next_exec: AtomicU32,
    /// It was removed: its name may be another's by now.
    gone: Arc<AtomicBool>,
    /// One removes it, and the others wait for that.
    removing: tokio::sync::Mutex<()>,
}

impl Member {
    /// Creates the container that `request` asks for; one without arguments is started too, and has no streams.
    pub(crate) async fn create(
        shared: Arc<Shared>,
        container: Container,
        mut request: CreateContainerRequest,
        layers: Layers,
        mut timings: Timings,
    ) -> Result<Self, Error> {
        let link = &shared.link;
        request.no_streams = true;
        let is_idle = container.process.args.is_empty();
        let streams = if is_idle {
            None
        } else {
            let (streams, ports) = Streams::connect(link, &container.process, Stage::Create).await?;
            request.stdin_port = ports.stdin;
            request.stdout_port = ports.stdout;
            request.stderr_port = ports.stderr;
            Some(streams)
        };
        let id = request.container_id.clone();
        let mut creation = Creation::begin(&shared, request, layers);
        creation.made().await?;
        timings.mark(Stage::Create);
        let member = Self {
            id,
            template: spec::init(&container),
            output_limit_bytes: container.output_limit.bytes(),
            // Another than the default was found to be one before anything was made.
            stop_signal: container
                .stop_signal
                .as_deref()
                .and_then(signal::number)
                .unwrap_or(SIGTERM),
            timeout: container.timeout,
            settings: container.process,
            timings,
            unstarted: Mutex::new(streams),
            next_exec: AtomicU32::new(1),
            gone: creation.gone(),
            removing: tokio::sync::Mutex::default(),
            shared,
        };
        if is_idle && let Err(error) = member.start_process().await {
            creation.undo().await;
            return Err(error);
        }
        creation.finish();
        Ok(member)
    }

    fn link(&self) -> &Arc<Link> {
        &self.shared.link
    }

    /// The way to the agent, as long as the container is there.
    pub(crate) fn present(&self) -> Result<&Arc<Link>, Error> {
        check_present(&self.gone, &self.id)?;
        Ok(self.link())
    }

    pub(crate) fn input(&self) -> Input {
        self.settings.input.clone()
    }

    /// Only of the first container is a time said.
    fn limit_sandbox(&self, time: Option<Duration>) {
        if self.timeout.is_some()
            && let Some(orders) = self.shared.orders.upgrade()
        {
            let deadline = time.and_then(|time| Deadline::after(time, Limit::Run));
            let _ = orders.send(Order::Deadline(deadline));
        }
    }

    async fn start_process(&self) -> Result<(), Error> {
        self.limit_sandbox(self.timeout);
        let request = StartContainerRequest {
            container_id: self.id.clone(),
            ..StartContainerRequest::default()
        };
        let call = self.link().client.start_container(request);
        self.link()
            .call(Stage::Start, "start the container", call)
            .await?;
        self.shared.hub.started(self.link(), &self.id, &self.id);
        Ok(())
    }

    /// Starts its own process. Once.
    pub(crate) async fn start(&self) -> Result<(Handle, Streams, Timings), Error> {
        let streams = match self.unstarted.lock() {
            Ok(mut unstarted) => unstarted.take(),
            Err(poisoned) => poisoned.into_inner().take(),
        };
        let Some(streams) = streams else {
            return Err(match self.settings.args.is_empty() {
                true => idle("spawn"),
                false => Error::new(
                    ErrorKind::InvalidState,
                    Stage::Start,
                    "the container was started before",
                ),
            });
        };
        self.present()?;
        // What does not run has no time to run out of.
        let started = self.start_process().await;
        started.inspect_err(|_| self.limit_sandbox(None))?;
        let mut timings = self.timings.clone();
        timings.mark(Stage::Start);
        let handle = Handle {
            stop_signal: self.stop_signal,
            ..self.handle(self.id.clone(), &self.settings)
        };
        Ok((handle, streams, timings))
    }

    /// A name that no process of it has; its first has the container's.
    fn fresh_exec(&self) -> String {
        loop {
            let name = format!("exec{}", self.next_exec.fetch_add(1, Ordering::Relaxed));
            if name != self.id {
                return name;
            }
        }
    }

    /// Runs a further program in it.
    pub(crate) async fn start_exec(&self, command: Command) -> Result<(Handle, Streams, Timings), Error> {
        check_process(&command.process, false)?;
        self.present()?;
        let mut timings = Timings::begin();
        let exec_id = self.fresh_exec();
        let (streams, ports) = Streams::connect(self.link(), &command.process, Stage::Start).await?;
        let user = self.settings.user.as_deref();
        let mut request =
            spec::exec_request(&self.id, &self.template, user, &command.process, exec_id.clone());
        request.stdin_port = ports.stdin;
        request.stdout_port = ports.stdout;
        request.stderr_port = ports.stderr;
        request.no_streams = true;
        let call = self.link().client.exec_process(request);
        self.link().call(Stage::Start, "run the command", call).await?;
        self.shared.hub.started(self.link(), &self.id, &exec_id);
        timings.mark(Stage::Start);
        Ok((self.handle(exec_id, &command.process), streams, timings))
    }

    fn handle(&self, exec_id: String, settings: &ProcessSettings) -> Handle {
        Handle {
            link: Arc::clone(self.link()),
            hub: Arc::clone(&self.shared.hub),
            container_id: self.id.clone(),
            exec_id,
            gone: Arc::clone(&self.gone),
            output_limit_bytes: self.output_limit_bytes,
            has_terminal: settings.terminal.is_some(),
            stop_signal: SIGTERM,
        }
    }

    /// Its first process, also of an idle one.
    fn first(&self) -> Handle {
        Handle {
            stop_signal: self.stop_signal,
            ..self.handle(self.id.clone(), &self.settings)
        }
    }

    /// Removes it, once.
    async fn remove(&self) -> Result<(), Error> {
        let _alone = self.removing.lock().await;
        match self.gone.load(Ordering::Relaxed) {
            true => Ok(()),
            false => take_away(&self.shared, &self.id, &self.gone).await,
        }
    }

    pub(crate) async fn raw_stats(&self) -> Result<StatsContainerResponse, Error> {
        stats_of(self.present()?, &self.id).await
    }
}

/// Removes a container that nobody else removes meanwhile. From the beginning on it is gone for its handles: its name
/// may be another's before the agent's answer is here.
pub(crate) async fn take_away(shared: &Shared, id: &str, gone: &Arc<AtomicBool>) -> Result<(), Error> {
    gone.store(true, Ordering::Relaxed);
    let request = RemoveContainerRequest {
        container_id: id.into(),
        ..RemoveContainerRequest::default()
    };
    let link = &shared.link;
    let call = link.client.remove_container(request);
    match link.call(Stage::Stop, "remove the container", call).await {
        // Another, who speaks the agent's API, was first.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            gone.store(false, Ordering::Relaxed);
            return Err(error);
        }
        Ok(()) => {}
    }
    shared.dismiss(id, gone);
    Ok(())
}

/// A container that was removed is not found, whoever has its name by now.
pub(crate) fn check_present(gone: &AtomicBool, id: &str) -> Result<(), Error> {
    match gone.load(Ordering::Relaxed) {
        true => Err(Error::new(
            ErrorKind::NotFound,
            Stage::Exit,
            format!("container {id} was removed"),
        )),
        false => Ok(()),
    }
}

/// The figures of a container by its name.
pub(crate) async fn stats_of(link: &Link, id: &str) -> Result<StatsContainerResponse, Error> {
    let request = StatsContainerRequest {
        container_id: id.into(),
        ..StatsContainerRequest::default()
    };
    let call = link.client.stats_container(request);
    link.call(Stage::Exit, "ask for statistics", call).await
}

/// What a container is asked that has nothing to start.
pub(crate) fn idle(verb: &str) -> Error {
    let message = format!("a container without a command idles: there is nothing to {verb}; use exec");
    Error::new(ErrorKind::InvalidState, Stage::Plan, message)
}

/// What is shown later is only read.
fn check_writable(container: &Container) -> Result<(), Error> {
    match container.writable {
        Writable::Memory => Ok(()),
        Writable::Disk { .. } => Err(Error::new(
            ErrorKind::Unsupported,
            Stage::Prepare,
            "a disk of its own cannot be given to a container of a running sandbox",
        )),
    }
}

/// Adds a container to a sandbox.
pub(crate) async fn create_container(
    shared: &Arc<Shared>,
    container: Container,
) -> Result<ContainerHandle, Error> {
    let mut timings = Timings::begin();
    check_member(&container, shared.vcpus)?;
    let ready = host::ready(&container).await?;
    let container = defaults::apply(container, &ready.image.config);
    timings.mark(Stage::Image);
    check_member(&container, shared.vcpus)?;
    check_writable(&container)?;
    let layers = shared.shelf.show(ready.image.layers).await?;
    let name = container.name.clone().unwrap_or_else(|| shared.fresh_name());
    let place = Place {
        id: &name,
        hostname: &shared.name,
        layers: layers.disks(),
        shares_pid: shared.shares_pid,
    };
    let request = spec::create_request(&container, place);
    check_request(&request)?;
    timings.mark(Stage::Plan);
    let member = Member::create(Arc::clone(shared), container, request, layers, timings).await?;
    Ok(ContainerHandle(Arc::new(member)))
}

impl ContainerHandle {
    /// Its name in the sandbox.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.id
    }

    /// Starts its own process. Once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] for the second time and for an idle container.
    pub async fn spawn(&self) -> Result<Process, Error> {
        let (handle, streams, timings) = self.0.start().await?;
        Process::new(handle, streams, self.0.input(), timings)
            .map_err(|cause| no_streams(Stage::Start, cause))
    }

    /// Runs a further program in it, which has to have been started.
    ///
    /// # Errors
    /// As [`Sandbox::exec`](crate::Sandbox::exec).
    pub async fn exec(&self, command: Command) -> Result<Process, Error> {
        let input = command.process.input.clone();
        let (handle, streams, timings) = self.0.start_exec(command).await?;
        Process::new(handle, streams, input, timings).map_err(|cause| no_streams(Stage::Start, cause))
    }

    /// Waits for the end of its own process; an idle container's ends when it is stopped.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] once it is removed; or when the sandbox ends first.
    pub async fn wait(&self) -> Result<ExitStatus, Error> {
        self.0.first().wait().await
    }

    /// Ends it as docker does: asks its own process by its stop signal, and kills all of its processes where that one
    /// has not ended within `grace`. What it leaves behind is killed with it. One that has ended is no error.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] once it is removed; or when the sandbox ends first.
    pub async fn stop(&self, grace: Duration) -> Result<ExitStatus, Error> {
        let first = self.0.first();
        first.end_by(first.stop_signal).await?;
        let ended = tokio::time::timeout(grace, first.wait()).await;
        // It may have left some behind, where it does not take them along.
        self.kill().await?;
        match ended {
            Ok(ended) => ended,
            Err(_) => first.wait().await,
        }
    }

    /// Kills all of its processes by SIGKILL, at once and however much they fork.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] once it is removed; or when the sandbox ends first.
    pub async fn kill(&self) -> Result<(), Error> {
        let request = SignalProcessRequest {
            container_id: self.0.id.clone(),
            // Nobody in particular: all of them.
            exec_id: String::new(),
            signal: SIGKILL.unsigned_abs(),
            ..SignalProcessRequest::default()
        };
        let link = self.0.present()?;
        let call = link.client.signal_process(request);
        link.call(Stage::Exit, "kill the container", call).await
    }

    /// Stops all of its processes where they are; the other containers go on. Holding it twice is the same as once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] where it does not run.
    pub async fn pause(&self) -> Result<(), Error> {
        let request = PauseContainerRequest {
            container_id: self.0.id.clone(),
            ..PauseContainerRequest::default()
        };
        let link = self.0.present()?;
        let call = link.client.pause_container(request);
        link.call(Stage::Exit, "pause the container", call).await
    }

    /// Lets its processes go on.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub async fn resume(&self) -> Result<(), Error> {
        let request = ResumeContainerRequest {
            container_id: self.0.id.clone(),
            ..ResumeContainerRequest::default()
        };
        let link = self.0.present()?;
        let call = link.client.resume_container(request);
        link.call(Stage::Exit, "resume the container", call).await
    }

    /// Changes its limits: those that are said, all of them or none. The others stay.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidContainer`] for what can never be and what the guest's kernel refuses,
    /// [`ErrorKind::Unsupported`] for what it does not have, by the limit's name.
    pub async fn update(&self, limits: Limits) -> Result<(), Error> {
        limits.check(self.0.shared.vcpus)?;
        let request = UpdateContainerRequest {
            container_id: self.0.id.clone(),
            resources: MessageField::some(limits.resources()),
            ..UpdateContainerRequest::default()
        };
        let link = self.0.present()?;
        let call = link.client.update_container(request);
        link.call(Stage::Exit, "change the container's limits", call)
            .await
    }

    /// What it uses at this moment.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] once it is removed; or when the sandbox has ended.
    pub async fn stats(&self) -> Result<ContainerStats, Error> {
        let response = self.0.raw_stats().await?;
        Ok(stats::of_container(&response.cgroup_stats))
    }

    /// Kills what still runs in it and releases all that it had; its name is free then. Removing it twice is the same
    /// as once. Dropping this future lets the removal go on.
    ///
    /// # Errors
    /// When the sandbox ends first.
    pub async fn remove(&self) -> Result<(), Error> {
        let member = Arc::clone(&self.0);
        let shared = &self.0.shared;
        let removal = shared.hub.runtime().spawn(async move { member.remove().await });
        shared.joined(Stage::Stop, removal).await
    }
}

pub(crate) fn no_streams(stage: Stage, cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, stage, "cannot use the process's standard streams").with_source(cause)
}

/// Asks for the end of a process.
pub(crate) fn wait_request(container_id: &str, exec_id: &str) -> WaitProcessRequest {
    WaitProcessRequest {
        container_id: container_id.into(),
        exec_id: exec_id.into(),
        ..WaitProcessRequest::default()
    }
}
