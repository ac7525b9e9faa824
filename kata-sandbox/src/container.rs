//! What to run: [`Container`] and [`Command`], builders in the words of `std::process::Command`.
//!
//! They only hold what was asked. Nothing here looks at the host; [`plan`](crate::plan) judges.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_agent_proto::oci::Spec;
use kata_image::{Pull, guest};
use kata_vmm::hypervisor::Backend;
use kata_vmm::machine::MiB;

use crate::error::Error;
use crate::limits::Limits;
use crate::terminal::TerminalSize;
use crate::{bundle, oci};

/// Where standard input comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Input {
    /// Closed from the start: a program that reads it sees end of file.
    #[default]
    Closed,
    /// These bytes, then end of file.
    Bytes(Vec<u8>),
    /// Whatever the caller writes to [`Process::stdin`](crate::Process::stdin).
    Piped,
}

/// The settings that a container's own process and one added by exec have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ProcessSettings {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) input: Input,
    /// In place of pipes; none for pipes.
    pub(crate) terminal: Option<TerminalSize>,
}

impl ProcessSettings {
    fn set_env(&mut self, name: String, value: String) {
        self.env.retain(|(existing, _)| *existing != name);
        self.env.push((name, value));
    }
}

/// Guest assets and programs that the caller names instead of having them found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Overrides {
    pub(crate) guest: guest::Overrides,
    pub(crate) monitor: Option<PathBuf>,
}

/// Where a container's writes go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Writable {
    #[default]
    Memory,
    Disk {
        size: MiB,
        /// Kept under this name.
        name: Option<String>,
    },
}

/// A container and the virtual machine around it: what to run, with what, for how long.
///
/// ```no_run
/// use std::time::Duration;
/// use kata_sandbox::{Container, MiB, Sandbox};
///
/// # async fn example() -> Result<(), kata_sandbox::Error> {
/// let container = Container::new("debian.tar")
///     .args(["sh", "-c", "wc -c; echo $GREETING"])
///     .env("GREETING", "hello")
///     .stdin("some input")
///     .memory(MiB(256))
///     .timeout(Duration::from_secs(30));
/// let output = Sandbox::run(container).await?;
/// assert!(output.status.success());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a container does nothing until it is given to a Sandbox"]
pub struct Container {
    pub(crate) image: OsString,
    pub(crate) pull: Pull,
    /// What it is besides, where the caller said all of it at once.
    pub(crate) spec: Option<Box<Spec>>,
    pub(crate) name: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) shares_pid: bool,
    pub(crate) is_unconfined: bool,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) process: ProcessSettings,
    pub(crate) is_idle: bool,
    pub(crate) stop_signal: Option<String>,
    /// Directories that its image wants it to have.
    pub(crate) volumes: Vec<String>,
    pub(crate) writable: Writable,
    pub(crate) hostname: Option<String>,
    /// What the caller said, as with the processors.
    pub(crate) memory: Option<MiB>,
    pub(crate) vcpus: Option<u8>,
    pub(crate) backend: Backend,
    pub(crate) timeout: Option<Duration>,
    /// What the caller said.
    pub(crate) boot_timeout: Option<Duration>,
    pub(crate) output_limit: MiB,
    pub(crate) overrides: Overrides,
}

impl Container {
    /// A container of `image`: a reference that docker would understand (`debian:12`, `127.0.0.1:5000/a/b@sha256:…`),
    /// or a path, of a directory, a tar archive (plain, gzip or zstd), an EROFS image, an OCI layout, or what
    /// `docker save` wrote. Text that begins with `/`, `./` or `../`, or is the path of something, is a path.
    ///
    /// The image stays as it is; what the container writes goes to memory and is gone with it, unless it is given
    /// [a disk](Self::disk).
    pub fn new(image: impl Into<OsString>) -> Self {
        Self {
            image: image.into(),
            pull: Pull::default(),
            spec: None,
            name: None,
            limits: Limits::default(),
            shares_pid: false,
            is_unconfined: false,
            entrypoint: None,
            process: ProcessSettings::default(),
            is_idle: false,
            stop_signal: None,
            volumes: Vec::new(),
            writable: Writable::default(),
            hostname: None,
            memory: None,
            vcpus: None,
            backend: Backend::Auto,
            timeout: None,
            boot_timeout: None,
            output_limit: MiB(256),
            overrides: Overrides::default(),
        }
    }

    /// The container of an OCI bundle: a directory with a `config.json` (runtime-spec bundle.md), whose `root.path` is
    /// the image. The image stays as it is, also where the specification lets the container write.
    ///
    /// What the specification says holds; the words of this builder lie on top of it where they are used, and what an
    /// image says of its containers has no meaning. It is read strictly: what is not known, has a wrong type or an
    /// impossible value is an error that names the field. What it asks of the host (bind mounts, namespaces by path,
    /// a cgroup, hooks) is [`Unsupported`](crate::ErrorKind::Unsupported) by the field's name; a network namespace is
    /// the sandbox's own. Without a `process` the container idles.
    ///
    /// ```no_run
    /// use kata_sandbox::{Container, Sandbox};
    ///
    /// # async fn example() -> Result<(), kata_sandbox::Error> {
    /// let container = Container::from_bundle("/var/lib/bundles/redis")?.env("MODE", "test");
    /// let output = Sandbox::run(container).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InvalidContainer`](crate::ErrorKind::InvalidContainer) and [`Unsupported`](crate::ErrorKind::Unsupported) by
    /// the field, `InvalidContainer` where there is no bundle.
    pub fn from_bundle(directory: impl AsRef<Path>) -> Result<Self, Error> {
        bundle::read(directory.as_ref())
    }

    /// A container of `image` as an OCI runtime specification describes it, in JSON; as
    /// [`from_bundle`](Self::from_bundle), but for the root's path, which has no meaning.
    ///
    /// # Errors
    /// As [`from_bundle`](Self::from_bundle).
    pub fn from_spec(image: impl Into<OsString>, specification: &str) -> Result<Self, Error> {
        Ok(Self {
            spec: Some(Box::new(oci::convert(specification)?.spec)),
            ..Self::new(image)
        })
    }

    /// Its name among the containers of its sandbox: letters, digits, `_`, `+`, `-` and `.`, 64 bytes at most, and no
    /// `.` in front. Default: `main` for the first, `container-2` and so on for others.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What it may use of its machine.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Lets all containers of its sandbox see each other's processes; said of the first, which the sandbox is booted
    /// with. Without it each has processes of its own.
    pub fn shared_pid(mut self) -> Self {
        self.shares_pid = true;
        self
    }

    /// Lets its programs make every system call, as docker's `seccomp=unconfined` does. Without it they are held to
    /// docker's default list, or to what the container's specification says; the rest fails with "operation not
    /// permitted".
    ///
    /// ```no_run
    /// use kata_sandbox::Container;
    ///
    /// let profiler = Container::new("debian:12").args(["perf", "stat", "ls"]).seccomp_unconfined();
    /// ```
    pub fn seccomp_unconfined(mut self) -> Self {
        self.is_unconfined = true;
        self
    }

    /// How the image is got: when a registry is asked, for which platform, with which credentials. With
    /// [hash trees](Pull::hash_trees) the guest checks every block of it that it reads, which takes a kernel with
    /// dm-verity: [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where there is none.
    pub fn pull(mut self, pull: Pull) -> Self {
        self.pull = pull;
        self
    }

    /// Takes the place of the image's entrypoint and arguments; with nothing in it, what [`args`](Self::args) says is
    /// the whole command.
    pub fn entrypoint<A: Into<String>>(mut self, words: impl IntoIterator<Item = A>) -> Self {
        self.entrypoint = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// Runs nothing of its own, whatever the image's command is: for [`exec`](crate::Sandbox::exec).
    pub fn idle(mut self) -> Self {
        self.is_idle = true;
        self
    }

    /// The signal by which [`Process::stop`](crate::Process::stop) asks the container's own process to end: a name or
    /// a number, as docker takes it (`SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`). Default: the image's, else SIGTERM.
    pub fn stop_signal(mut self, signal: impl Into<String>) -> Self {
        self.stop_signal = Some(signal.into());
        self
    }

    /// Lets the container write to a disk of this size in place of memory. It is gone with the container.
    pub fn disk(mut self, size: MiB) -> Self {
        self.writable = Writable::Disk { size, name: None };
        self
    }

    /// As [`disk`](Self::disk), and keeps what was written under `name`, for the next container that asks for it with
    /// the same image. One container at a time has it.
    pub fn kept_disk(mut self, name: impl Into<String>, size: MiB) -> Self {
        self.writable = Writable::Disk {
            size,
            name: Some(name.into()),
        };
        self
    }

    /// The program and its arguments; the program is looked up in the container's `PATH`.
    ///
    /// A container without arguments is idle: it runs until it is stopped, and
    /// [`Sandbox::exec`](crate::Sandbox::exec) runs programs in it.
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.process.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Sets an environment variable. `PATH` and `HOME` have defaults; nothing is inherited.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.process.set_env(name.into(), value.into());
        self
    }

    /// The working directory, absolute, made if it is missing. Default: `/`.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.process.cwd = Some(directory.into());
        self
    }

    /// The user: `name`, `uid`, `name:group` or `uid:gid`, looked up in the image's own `/etc/passwd`
    /// and `/etc/group`. Default: root of the container.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.process.user = Some(user.into());
        self
    }

    /// Bytes for standard input, then end of file. Default: end of file at once.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.process.input = Input::Bytes(bytes.into());
        self
    }

    /// Leaves standard input open for [`Process::stdin`](crate::Process::stdin).
    pub fn stdin_piped(mut self) -> Self {
        self.process.input = Input::Piped;
        self
    }

    /// Gives the container's own process a terminal of this size in place of pipes, for programs that a person uses.
    ///
    /// All that the process writes arrives in its standard output, with the line ends of a terminal (`\r\n`); there
    /// is no standard error. What is written to its standard input is typed: control characters act (3 is ctrl-c),
    /// lines are echoed, and the end of input is typed too, as ctrl-d, which ends a line that was begun and counts as
    /// the end only after one. `TERM` is `xterm` unless it is given. A container that idles cannot have one.
    ///
    /// ```no_run
    /// use kata_sandbox::process::TerminalSize;
    /// use kata_sandbox::{Container, Sandbox};
    ///
    /// # async fn example() -> Result<(), kata_sandbox::Error> {
    /// let size = TerminalSize { rows: 24, columns: 80 };
    /// let output = Sandbox::run(Container::new("debian.tar").args(["stty", "size"]).terminal(size)).await?;
    /// assert_eq!(output.stdout, b"24 80\r\n");
    /// # Ok(())
    /// # }
    /// ```
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.process.terminal = Some(size);
        self
    }

    /// The host name that the container sees. Default: the sandbox's name.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// Memory of the virtual machine, the guest kernel's share included. Default: 256 MiB.
    pub fn memory(mut self, size: MiB) -> Self {
        self.memory = Some(size);
        self
    }

    /// Virtual processors, 1 to 32. Default: 1.
    pub fn vcpus(mut self, count: u8) -> Self {
        self.vcpus = Some(count);
        self
    }

    /// Which hypervisor runs it. Default: the best that this host can run.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// How long the container may run, from its start. When the time is up the sandbox is killed and
    /// [`run`](crate::Sandbox::run) answers [`TimedOut`](crate::ErrorKind::TimedOut). Default: no limit.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// How long booting may take, from the call until the container is created: the image, the machine, the agent.
    /// When the time is up all of it is given up, and the answer is
    /// [`BootTimedOut`](crate::ErrorKind::BootTimedOut) with the stage that was not reached.
    ///
    /// Default: 60 s from when the monitor is started, and no limit before: a large image may take longer than that,
    /// and a registry that stalls is given up by
    /// [`Registries::stall_timeout`](crate::image::Registries::stall_timeout).
    pub fn boot_timeout(mut self, limit: Duration) -> Self {
        self.boot_timeout = Some(limit);
        self
    }

    /// The most that [`run`](crate::Sandbox::run) collects of each output stream; a container that
    /// writes more is killed and answered with
    /// [`OutputTooLarge`](crate::ErrorKind::OutputTooLarge). Default: 256 MiB.
    pub fn output_limit(mut self, limit: MiB) -> Self {
        self.output_limit = limit;
        self
    }

    /// Boots this guest kernel (an uncompressed ELF or a bzImage) instead of the one that is found.
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.guest.kernel = Some(path.into());
        self
    }

    /// Boots this initramfs, which holds the agent, instead of the one that is found.
    pub fn initramfs(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.guest.initramfs = Some(path.into());
        self
    }

    /// Runs this agent program for [`Backend::Process`] instead of the one that is found.
    pub fn agent(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.guest.agent = Some(path.into());
        self
    }

    /// Starts this monitor program (`kata-vmm`) instead of the one that is found.
    pub fn monitor(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.monitor = Some(path.into());
        self
    }
}

/// A further program to run in a container, for [`Sandbox::exec`](crate::Sandbox::exec).
///
/// ```no_run
/// use kata_sandbox::{Command, Container, Sandbox};
///
/// # async fn example() -> Result<(), kata_sandbox::Error> {
/// let sandbox = Sandbox::boot(Container::new("debian.tar")).await?;
/// let process = sandbox.exec(Command::new("id").arg("-un").user("nobody")).await?;
/// let output = process.output().await?;
/// assert_eq!(output.stdout, b"nobody\n");
/// sandbox.stop().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a command does nothing until it is given to Sandbox::exec"]
pub struct Command {
    pub(crate) process: ProcessSettings,
}

impl Command {
    /// The program, looked up in the container's `PATH`.
    pub fn new(program: impl Into<String>) -> Self {
        let process = ProcessSettings {
            args: vec![program.into()],
            ..ProcessSettings::default()
        };
        Self { process }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.process.args.push(argument.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.process.args.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable, on top of the container's own.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.process.set_env(name.into(), value.into());
        self
    }

    /// The working directory; it must exist. Default: the container's.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.process.cwd = Some(directory.into());
        self
    }

    /// The user, as [`Container::user`]. Default: the container's.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.process.user = Some(user.into());
        self
    }

    /// Bytes for standard input, then end of file. Default: end of file at once.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.process.input = Input::Bytes(bytes.into());
        self
    }

    /// Leaves standard input open for [`Process::stdin`](crate::Process::stdin).
    pub fn stdin_piped(mut self) -> Self {
        self.process.input = Input::Piped;
        self
    }

    /// Gives the program a terminal of this size in place of pipes, as [`Container::terminal`].
    ///
    /// ```no_run
    /// use kata_sandbox::process::TerminalSize;
    /// use kata_sandbox::{Command, Sandbox};
    ///
    /// # async fn example(sandbox: Sandbox) -> Result<(), kata_sandbox::Error> {
    /// let size = TerminalSize { rows: 24, columns: 80 };
    /// let shell = sandbox.exec(Command::new("sh").terminal(size).stdin_piped()).await?;
    /// assert!(shell.stderr.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.process.terminal = Some(size);
        self
    }
}
