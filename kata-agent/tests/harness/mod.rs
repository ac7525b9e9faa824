//! The built agent as an ordinary process, and a small image for it to run.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use kata_agent_proto::agent::{
    CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest, ExecProcessRequest,
    RemoveContainerRequest, SignalProcessRequest, StartContainerRequest, Storage, StringUser,
    WaitProcessRequest,
};
use kata_agent_proto::agent_ttrpc::AgentServiceClient;
use kata_agent_proto::{CallError, Client, Hello, oci, port, read_hello};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use ttrpc::r#async::transport::Socket;

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

const PROGRAMS: [&str; 18] = [
    "sh", "cat", "sleep", "id", "true", "head", "stty", "stat", "tty", "ls", "wc", "grep", "env", "mkdir",
    "touch", "pwd", "hostname", "mknod",
];

/// Whether this machine can run these tests; says so when it cannot, and fails where it must.
pub(crate) fn possible() -> bool {
    let lacks = if !rustix::process::geteuid().is_root() {
        "root"
    } else if Command::new("mkfs.erofs").arg("--help").output().is_err() {
        "mkfs.erofs"
    } else {
        return true;
    };
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "these tests need {lacks}"
    );
    eprintln!("SKIPPED: this test needs {lacks}");
    false
}

/// An EROFS image with a shell and some tools of this machine.
fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = root_directory(dir.path());
        let image =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("image-{}.erofs", std::process::id()));
        let made = Command::new("mkfs.erofs")
            .arg(&image)
            .arg(&root)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        image
    })
}

/// A root file system in a directory, with a shell and some tools of this machine.
pub(crate) fn root_directory(directory: &Path) -> PathBuf {
    let root = directory.join("root");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "data"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for program in PROGRAMS {
        copy_program(program, &root);
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/data:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:34:\naudio:x:29:web\n").unwrap();
    fs::write(root.join("data/plain"), "text").unwrap();
    fs::write(root.join("data/broken"), "\x7fELF nothing").unwrap();
    fs::set_permissions(root.join("data/broken"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/nowhere/resolv.conf", root.join("etc/resolv.conf")).unwrap();
    root
}

fn copy_program(name: &str, root: &Path) {
    let found = ["/bin", "/usr/bin"]
        .map(|dir| Path::new(dir).join(name))
        .into_iter()
        .find(|path| path.exists());
    let path = found.unwrap_or_else(|| panic!("this machine has no {name}"));
    fs::copy(&path, root.join("bin").join(name)).unwrap();
    let libraries = Command::new("ldd").arg(&path).output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let target = root.join(&library[1..]);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(library, target).unwrap();
    }
}

/// An agent with its sandbox set up.
pub(crate) struct Agent {
    pub(crate) process: Child,
    channel: Option<OwnedFd>,
    pub(crate) client: Client,
    pub(crate) hello: Hello,
    pub(crate) lifeline: UnixStream,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The end of the channel is the end of the agent.
        self.channel.take();
        let _ = self.process.wait();
    }
}

static NEXT_PORT: AtomicU32 = AtomicU32::new(5000);

fn send(channel: &OwnedFd, guest_port: u32, host_port: u32, stream: &impl AsFd) {
    let bytes = [guest_port.to_le_bytes(), host_port.to_le_bytes()].concat();
    let rights = [stream.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    rustix::net::sendmsg(
        channel,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

fn receive(channel: &OwnedFd) -> (u32, OwnedFd) {
    let mut bytes = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let received =
        rustix::net::recvmsg(channel, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(received.bytes, 8, "the agent ended before its hello");
    let stream = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    (
        u32::from_le_bytes(bytes[4..].try_into().unwrap()),
        stream.unwrap(),
    )
}

fn connection(channel: &OwnedFd, guest_port: u32, host_port: u32) -> UnixStream {
    let (near, far) = UnixStream::pair().unwrap();
    send(channel, guest_port, host_port, &far);
    near
}

fn spawn(channel: &OwnedFd, disk: &File) -> Child {
    // Descriptors are inheritable for a moment: nobody else may start a program in it.
    static SPAWNING: Mutex<()> = Mutex::new(());
    let _alone = SPAWNING.lock().unwrap();
    for fd in [channel.as_fd(), disk.as_fd()] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    }
    let child = Command::new(env!("CARGO_BIN_EXE_kata-agent"))
        .args(["--channel-fd", &channel.as_raw_fd().to_string()])
        .args(["--disk", &format!("rootfs={}", disk.as_raw_fd())])
        .spawn()
        .unwrap();
    for fd in [channel.as_fd(), disk.as_fd()] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).unwrap();
    }
    child
}

impl Agent {
    /// Starts an agent; none where it cannot run.
    pub(crate) async fn start() -> Option<Self> {
        if !possible() {
            return None;
        }
        let pair = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let (channel, theirs) = pair.unwrap();
        let process = spawn(&theirs, &File::open(image()).unwrap());
        drop(theirs);
        let (dialed, lifeline) = receive(&channel);
        assert_eq!(dialed, port::HELLO);
        let lifeline = std::os::unix::net::UnixStream::from(lifeline);
        lifeline.set_nonblocking(true).unwrap();
        let mut lifeline = UnixStream::from_std(lifeline).unwrap();
        let hello = read_hello(&mut lifeline).await.unwrap();
        let client = Client::new(connection(&channel, port::AGENT, 1));
        let request = CreateSandboxRequest {
            hostname: "sandbox".into(),
            dns: vec!["192.0.2.1".into()],
            sandbox_id: "s1".into(),
            ..Default::default()
        };
        client.create_sandbox(request).await.unwrap();
        Some(Agent {
            process,
            channel: Some(channel),
            client,
            hello,
            lifeline,
        })
    }

    /// A stream for a process, with the port to name it by.
    pub(crate) fn stream(&self) -> (u32, UnixStream) {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        (
            port,
            connection(self.channel.as_ref().unwrap(), port::STREAM, port),
        )
    }

    /// A second connection to the API.
    pub(crate) fn connect(&self) -> Client {
        Client::new(connection(self.channel.as_ref().unwrap(), port::AGENT, 2))
    }

    /// A further connection to the API, without the client.
    pub(crate) fn raw_api(&self) -> std::os::unix::net::UnixStream {
        connection(self.channel.as_ref().unwrap(), port::AGENT, 3)
            .into_std()
            .unwrap()
    }

    /// Every method of the API, also those that the client has no use for.
    pub(crate) fn every_method(&self) -> AgentServiceClient {
        let stream = UnixStream::from_std(self.raw_api()).unwrap();
        AgentServiceClient::new(ttrpc::r#async::Client::new(Socket::new(stream)))
    }

    /// The directory of a container's cgroup, as this process sees it.
    pub(crate) fn cgroup(&self, id: &str) -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let hierarchy = mounts.find(|mount| mount[2] == "cgroup2").unwrap();
        let agent = format!("kata-{}", self.process.id());
        Path::new(hierarchy[1]).join(agent).join(id)
    }

    /// Closes the channel: the host is gone.
    pub(crate) fn hang_up(&mut self) {
        self.channel.take();
    }

    /// A container's request with a writable root.
    pub(crate) fn container(&self, id: &str, args: &[&str]) -> CreateContainerRequest {
        let storage = |driver: &str, source: &str, fstype: &str, options: &[&str], name: &str| Storage {
            driver: driver.into(),
            source: source.into(),
            fstype: fstype.into(),
            options: options.iter().map(|&option| option.into()).collect(),
            mount_point: format!("/run/sandbox/{id}/{name}"),
            ..Default::default()
        };
        let base = format!("/run/sandbox/{id}");
        let mut overlay = storage(
            "overlayfs",
            "",
            "overlay",
            &[
                &format!("lowerdir={base}/image"),
                &format!("upperdir={base}/rw/upper"),
                &format!("workdir={base}/rw/work"),
            ],
            "root",
        );
        let create = "io.katacontainers.volume.overlayfs.create_directory=";
        overlay.driver_options = vec![
            format!("{create}{base}/rw/upper"),
            format!("{create}{base}/rw/work"),
        ];
        CreateContainerRequest {
            container_id: id.into(),
            storages: vec![
                storage("blk", "rootfs", "erofs", &["ro"], "image"),
                storage("ephemeral", "", "tmpfs", &["size=16m"], "rw"),
                overlay,
            ],
            oci: Some(specification(&format!("{base}/root"), args)).into(),
            ..Default::default()
        }
    }

    pub(crate) async fn start_container(&self, request: CreateContainerRequest) -> Result<(), CallError> {
        let container_id = request.container_id.clone();
        self.client.create_container(request).await?;
        self.client
            .start_container(StartContainerRequest {
                container_id,
                ..Default::default()
            })
            .await
    }

    /// A container that does nothing by itself.
    pub(crate) async fn idle(&self, id: &str) {
        self.start_container(self.container(id, &[])).await.unwrap();
    }

    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> Result<i32, CallError> {
        let request = WaitProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        let answer = tokio::time::timeout(DEADLINE, self.client.wait_process(request)).await;
        answer
            .expect("the process ended in time")
            .map(|answer| answer.status)
    }

    pub(crate) async fn signal(&self, id: &str, exec_id: &str, signal: u32) -> Result<(), CallError> {
        let request = SignalProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            signal,
            ..Default::default()
        };
        self.client.signal_process(request).await
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), CallError> {
        let request = RemoveContainerRequest {
            container_id: id.into(),
            ..Default::default()
        };
        self.client.remove_container(request).await
    }

    /// Runs a script in a container of its own; its status and outputs.
    pub(crate) async fn run(&self, id: &str, script: &str) -> (i32, String, String) {
        let mut request = self.container(id, &["sh", "-c", script]);
        let (out_port, stdout) = self.stream();
        let (err_port, stderr) = self.stream();
        (request.stdout_port, request.stderr_port) = (out_port, err_port);
        self.start_container(request).await.unwrap();
        let (status, stdout, stderr) = tokio::join!(self.wait(id, id), text(stdout), text(stderr));
        (status.unwrap(), stdout, stderr)
    }

    /// Executes a program in a container; its status and output.
    pub(crate) async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        args: &[&str],
    ) -> Result<(i32, String), CallError> {
        let mut request = execution(id, exec_id, args);
        let (port, stdout) = self.stream();
        request.stdout_port = port;
        self.client.exec_process(request).await?;
        let (status, stdout) = tokio::join!(self.wait(id, exec_id), text(stdout));
        Ok((status?, stdout))
    }

    pub(crate) async fn destroy(&self) -> Result<(), CallError> {
        self.client.destroy_sandbox(DestroySandboxRequest::new()).await
    }
}

/// Everything that comes until the end of the stream.
pub(crate) async fn text(mut stream: UnixStream) -> String {
    let mut text = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut text))
        .await
        .expect("an end of the stream")
        .unwrap();
    text
}

pub(crate) fn execution(id: &str, exec_id: &str, args: &[&str]) -> ExecProcessRequest {
    ExecProcessRequest {
        container_id: id.into(),
        exec_id: exec_id.into(),
        process: Some(process(args)).into(),
        ..Default::default()
    }
}

pub(crate) fn user(uid: &str, gid: &str) -> StringUser {
    StringUser {
        uid: uid.into(),
        gid: gid.into(),
        ..Default::default()
    }
}

pub(crate) fn process(args: &[&str]) -> oci::Process {
    oci::Process {
        args: args.iter().map(|&arg| arg.into()).collect(),
        env: vec!["PATH=/usr/bin:/bin".into()],
        cwd: "/".into(),
        no_new_privileges: true,
        ..Default::default()
    }
}

fn specification(root: &str, args: &[&str]) -> oci::Spec {
    let mount = |destination: &str, type_: &str, options: &[&str]| oci::Mount {
        destination: destination.into(),
        source: type_.into(),
        type_: type_.into(),
        options: options.iter().map(|&option| option.into()).collect(),
        ..Default::default()
    };
    let namespace = |name: &str| oci::LinuxNamespace {
        type_: name.into(),
        ..Default::default()
    };
    oci::Spec {
        root: Some(oci::Root {
            path: root.into(),
            ..Default::default()
        })
        .into(),
        process: Some(process(args)).into(),
        hostname: "box".into(),
        mounts: vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount(
                "/dev",
                "tmpfs",
                &["nosuid", "strictatime", "mode=755", "size=65536k"],
            ),
            mount(
                "/dev/pts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            ),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        linux: Some(oci::Linux {
            namespaces: ["pid", "mount", "ipc", "uts", "cgroup"].map(namespace).to_vec(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}
