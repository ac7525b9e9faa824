//! The corridor: from a container to its output, stage by stage.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use kata_image::ImageConfig;
use kata_vmm::hypervisor::{Capabilities, probe};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::connect::{Connected, connect, set_clock};
use crate::container::{Command, Container, Input};
use crate::ending::{Cause, Ended};
use crate::error::{Error, ErrorKind};
use crate::events::Hub;
use crate::host::Ready;
use crate::launch::launch;
use crate::link::{Link, ended};
use crate::members::{ContainerHandle, Member, Shared, create_container, idle};
use crate::output::Output;
use crate::patience::Patience;
use crate::plan::{Plan, plan};
use crate::prepare::{layers, prepare};
use crate::process::Process;
use crate::questions::Question;
use crate::report::{Events, Info, MachineInfo, Samples, Stage, Timings, Usage};
use crate::shelf::{Layers, Shelf};
use crate::supervise::{Order, Supervision, supervise};
use crate::{defaults, host, usage};

/// What a machine is booted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The container's own command, which there must be.
    Run,
    /// Whatever the caller does with it.
    Keep,
}

/// A microVM with a container in it.
///
/// Dropping it kills the machine and everything in it; nothing is left on the host.
///
/// ```no_run
/// use kata_sandbox::{Container, Sandbox};
///
/// # async fn example() -> Result<(), kata_sandbox::Error> {
/// let output = Sandbox::run(Container::new("debian.tar").args(["uname", "-r"])).await?;
/// println!("guest kernel: {}", String::from_utf8_lossy(&output.stdout));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sandbox {
    supervision: Supervision,
    /// The container that it was booted with.
    main: ContainerHandle,
    info: Info,
}

impl Sandbox {
    /// Runs a container to its end in a machine of its own.
    ///
    /// # Errors
    /// See [`ErrorKind`]. After a failure nothing is left running;
    /// [`Error::output`] has what the container had written until then.
    pub async fn run(container: Container) -> Result<Output, Error> {
        if container.process.input == Input::Piped {
            let message = "run has no one to write to a piped standard input; use boot and spawn";
            return Err(Error::new(ErrorKind::InvalidContainer, Stage::Plan, message));
        }
        let sandbox = Self::boot_for(container, Purpose::Run).await?;
        let process = match sandbox.spawn().await {
            Ok(process) => process,
            Err(error) => return Err(give_up(&sandbox.supervision, error).await),
        };
        let (mut collected, result) = process.collect().await;
        let usage = match &result {
            // A guest that died after its container ended took the figures along: they are none.
            Ok(_) => sandbox.usage().await.unwrap_or_default(),
            // Nobody would read them, and the guest may not answer any more.
            Err(_) => Usage::default(),
        };
        stop(&sandbox.supervision).await;
        collected.timings.mark(Stage::Stop);
        match result {
            Ok(status) => Ok(collected.into_output(status, usage)),
            Err(error) => Err(error.sandbox_lost().with_output(collected.into_partial_output())),
        }
    }

    /// Boots a machine and creates the container in it, ready to [`spawn`](Self::spawn).
    ///
    /// A container without a command, of its own or of its image, is started at once and idles, for
    /// [`exec`](Self::exec).
    ///
    /// # Errors
    /// See [`ErrorKind`]; nothing is left running.
    pub async fn boot(container: Container) -> Result<Self, Error> {
        Self::boot_for(container, Purpose::Keep).await
    }

    async fn boot_for(container: Container, purpose: Purpose) -> Result<Self, Error> {
        let mut timings = Timings::begin();
        let name = fresh_name()?;

        let patience = Patience::of(&container);
        let Ready {
            capabilities,
            image,
            store,
        } = patience.bound(Stage::Image, host::ready(&container)).await?;
        let container = defaults::apply(container, &image.config);
        if purpose == Purpose::Run && container.process.args.is_empty() {
            return Err(idle("run"));
        }
        timings.mark(Stage::Image);
        let plan = plan(&container, &layers(&image), &name, &capabilities)?;
        let plan = match purpose {
            Purpose::Run => plan,
            Purpose::Keep => plan.with_shelf(),
        };
        timings.mark(Stage::Plan);
        tracing::info!(sandbox = name, backend = ?plan.selection.hypervisor, "{}", plan.selection.reason);
        let (image_digest, image_config) = (image.digest.clone(), image.config.clone());
        let digests = image.layers.iter().map(|layer| layer.digest.clone());
        let disks = digests.zip(plan.layers.iter().cloned()).collect();
        let preparation = prepare(&plan, image, store, &container);
        let prepared = patience.bound(Stage::Prepare, preparation).await?;
        let described = Described {
            image_digest,
            image: image_config,
            kernel: prepared.kernel.clone(),
        };
        timings.mark(Stage::Prepare);
        let (monitor, control) = launch(prepared).await?;
        timings.mark(Stage::Launch);
        let deadline = patience.of_machine();
        let (supervision, milestones) = supervise(monitor, control, kata_agent_proto::port::HELLO, deadline);

        let shares_pid = container.shares_pid;
        let connected = match connect(&supervision, milestones, &name, shares_pid, &mut timings).await {
            Ok(connected) => connected,
            Err(error) => return Err(give_up(&supervision, error).await),
        };
        let runs_at_once = container.process.args.is_empty() && container.timeout.is_some();
        let shared = Arc::new(Shared {
            link: Arc::clone(&connected.link),
            hub: Arc::new(Hub::new()),
            name: name.clone(),
            vcpus: plan.machine.vcpus,
            shares_pid,
            shelf: Shelf::new(disks, &supervision.orders, supervision.state.clone()),
            orders: supervision.orders.downgrade(),
            present: Mutex::default(),
            next_name: AtomicU32::new(2),
        });
        let request = plan.container.clone();
        let created = Member::create(shared, container, request, Layers::default(), timings).await;
        let main = match created {
            Ok(main) => ContainerHandle(Arc::new(main)),
            Err(error) => return Err(give_up(&supervision, error).await),
        };
        if !runs_at_once {
            // What limited the boot does not limit what comes after it.
            let _ = supervision.orders.send(Order::Deadline(None));
        }
        let info = info(
            name,
            &plan,
            connected,
            &supervision,
            described,
            main.0.timings.clone(),
        );
        Ok(Self {
            supervision,
            main,
            info,
        })
    }

    /// Starts the container's own process. Once.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] for the second time and for an idle container.
    pub async fn spawn(&self) -> Result<Process, Error> {
        self.main.spawn().await
    }

    /// Runs a further program in the container.
    ///
    /// # Errors
    /// [`ErrorKind::CommandNotFound`], [`ErrorKind::CommandNotExecutable`],
    /// [`ErrorKind::NoSuchDirectory`] or [`ErrorKind::NoSuchUser`] when it cannot be run; the sandbox
    /// goes on.
    pub async fn exec(&self, command: Command) -> Result<Process, Error> {
        self.main.exec(command).await
    }

    /// The container that the sandbox was booted with: [`spawn`](Self::spawn) and [`exec`](Self::exec) are about it.
    #[must_use]
    pub fn container(&self) -> &ContainerHandle {
        &self.main
    }

    /// Adds a container: it shares the sandbox's network (what listens on 127.0.0.1 in one is reached from the other)
    /// and its IPC, has files of its own, and is started and stopped by itself. It is ready to
    /// [`spawn`](ContainerHandle::spawn); one without a command is started at once and idles.
    ///
    /// Memory, processors and all else that is the machine's are said of the container that the sandbox is booted
    /// with; [`limits`](Container::limits) divides them.
    ///
    /// ```no_run
    /// use kata_sandbox::{Container, Sandbox};
    ///
    /// # async fn example() -> Result<(), kata_sandbox::Error> {
    /// let sandbox = Sandbox::boot(Container::new("debian.tar").idle()).await?;
    /// let greeter = sandbox.create_container(Container::new("debian.tar").args(["echo", "hello"])).await?;
    /// let output = greeter.spawn().await?.output().await?;
    /// assert_eq!(output.stdout, b"hello\n");
    /// greeter.remove().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidContainer`] for what makes no sense or would be the machine's,
    /// [`ErrorKind::InvalidState`] for a name that is taken, [`ErrorKind::Unsupported`] for a disk to write to, which
    /// only the first container can have, and what can go wrong with its image. The sandbox goes on.
    pub async fn create_container(&self, container: Container) -> Result<ContainerHandle, Error> {
        create_container(&self.main.0.shared, container).await
    }

    /// What happens in it from now on, and the ends of what runs by now: kills for want of memory, ends of processes
    /// and containers, its own end. What has ended before may be told too where nobody has learned of it, by
    /// [`Process::wait`] or otherwise. Must be called within the runtime that it was booted in.
    #[must_use]
    pub fn events(&self) -> Events {
        let Shared { hub, link, .. } = &*self.main.0.shared;
        Events(hub.listen(link))
    }

    /// What its containers use: now, and again and again after `interval`, which is a millisecond at least. Must be
    /// called within a Tokio runtime.
    #[must_use]
    pub fn stats(&self, interval: Duration) -> Samples {
        Samples::new(Arc::clone(&self.main.0.shared), interval)
    }

    /// Where it runs and why, and how long each stage took.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// What this host can run.
    #[must_use]
    pub fn probe() -> Capabilities {
        probe()
    }

    /// What the sandbox has cost so far.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn usage(&self) -> Result<Usage, Error> {
        let stats = self.main.0.raw_stats().await?;
        Ok(usage::of_container(
            &stats,
            usage::host_memory_bytes(&self.info.pids),
        ))
    }

    /// Holds the whole machine: its processors and devices stand still, and its clock may. A deadline is not held
    /// with it. Holding it twice is the same as once.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the backend has no machine.
    pub async fn pause(&self) -> Result<(), Error> {
        self.ask(|answer| Question::Pause(true, answer)).await
    }

    /// Lets a held machine go on, and sets its clock, which may have stood still. It returns when the guest has
    /// answered that, which it cannot while somebody holds the machine again.
    ///
    /// # Errors
    /// As [`pause`](Self::pause); also when the machine goes on and its clock cannot be set.
    pub async fn resume(&self) -> Result<(), Error> {
        self.ask(|answer| Question::Pause(false, answer)).await?;
        set_clock(&self.main.0.shared.link, Stage::Machine).await
    }

    /// The machine's own figures: exits by kind, memory that the host has given to it, what its devices did.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn machine(&self) -> Result<MachineInfo, Error> {
        self.ask(Question::Info).await
    }

    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Question,
    ) -> Result<T, Error> {
        let (answer, asked) = oneshot::channel();
        let _ = self.supervision.orders.send(Order::Ask(question(answer)));
        match asked.await {
            Ok(answer) => answer,
            Err(_) => Err(ended(self.supervision.state.clone()).await.error(Stage::Machine)),
        }
    }

    /// Connects to a vsock port of the guest, where the agent or a program of a container listens (`AF_VSOCK`, any
    /// CID). The connection is open at once; it closes when nobody listens there.
    ///
    /// Port 1024 is the agent's API, for programs that speak it themselves ([`kata_agent_proto::Client`]).
    ///
    /// ```no_run
    /// use kata_sandbox::{Command, Container, Sandbox};
    /// use tokio::io::AsyncReadExt;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let sandbox = Sandbox::boot(Container::new("debian.tar")).await?;
    /// let _server = sandbox.exec(Command::new("socat").args(["VSOCK-LISTEN:5000", "SYSTEM:date"])).await?;
    /// let mut date = String::new();
    /// sandbox.connect(5000).await?.read_to_string(&mut date).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn connect(&self, port: u32) -> Result<UnixStream, Error> {
        let stream = self.dial(port).await?;
        UnixStream::from_std(stream).map_err(|cause| {
            Error::new(ErrorKind::Io, Stage::Exit, "cannot use the connection").with_source(cause)
        })
    }

    /// The way to the guest.
    pub(crate) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.main.0.shared.link)
    }

    /// A connection that no runtime knows yet.
    pub(crate) async fn dial(&self, port: u32) -> Result<StdUnixStream, Error> {
        let (_, stream) = self.main.0.shared.link.dial(port, Stage::Exit).await?;
        Ok(stream)
    }

    /// Kills the machine and waits until nothing is left of it. A sandbox that has ended stays ended.
    ///
    /// # Errors
    /// None so far: what could not be ended politely is killed.
    pub async fn stop(&self) -> Result<(), Error> {
        stop(&self.supervision).await;
        Ok(())
    }

    /// Waits until the sandbox ends, and tells why it did if nobody asked for it.
    ///
    /// # Errors
    /// What ended the sandbox.
    pub async fn ended(&self) -> Result<(), Error> {
        let ended = ended(self.supervision.state.clone()).await;
        match ended.cause {
            Cause::Stopped => Ok(()),
            _ => Err(ended.error(Stage::Exit)),
        }
    }
}

async fn stop(supervision: &Supervision) -> Arc<Ended> {
    let _ = supervision.orders.send(Order::Stop);
    ended(supervision.state.clone()).await
}

/// Ends a sandbox that did not come up.
async fn give_up(supervision: &Supervision, error: Error) -> Error {
    stop(supervision).await;
    error.sandbox_lost()
}

/// What is told of the files that a machine was made of.
struct Described {
    image_digest: String,
    image: ImageConfig,
    kernel: Option<PathBuf>,
}

fn info(
    name: String,
    plan: &Plan,
    connected: Connected,
    supervision: &Supervision,
    described: Described,
    timings: Timings,
) -> Info {
    let monitor_pid = supervision.monitor_pid;
    let Described {
        image_digest,
        image,
        kernel,
    } = described;
    Info {
        name,
        selection: plan.selection.clone(),
        hypervisor_version: connected.running.version,
        machine_type: connected.running.machine_type,
        memory_bytes: plan.machine.memory.bytes(),
        vcpus: plan.machine.vcpus,
        kernel,
        kernel_release: connected.hello.kernel_release,
        agent_version: connected.hello.agent_version,
        monitor_pid,
        pids: std::iter::once(monitor_pid)
            .chain(connected.running.pids)
            .collect(),
        image_digest,
        image,
        timings,
    }
}

/// A name that no other sandbox has: 8 random bytes.
fn fresh_name() -> Result<String, Error> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(|error| {
        Error::new(ErrorKind::Io, Stage::Plan, "the host gave no entropy")
            .with_source(std::io::Error::from(error))
    })?;
    Ok(format!("sandbox-{:016x}", u64::from_ne_bytes(bytes)))
}
