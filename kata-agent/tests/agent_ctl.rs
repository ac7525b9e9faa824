//! The agent, driven over a Unix socket as `kata-agent-ctl` drives Kata's: by ttrpc's own client, with the requests
//! that the tool makes of an OCI bundle (kata-containers `src/tools/agent-ctl`), and without a word of ours.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod harness;

use std::fs;
use std::os::fd::IntoRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use harness::{DEADLINE, possible, root_directory};
use kata_agent_proto::agent::*;
use kata_agent_proto::csi::VolumeStatsResponse;
use kata_agent_proto::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use kata_agent_proto::{oci, types};
use protobuf::Message;
use protobuf::well_known_types::empty::Empty;
use ttrpc::Code;

/// Nanoseconds; what the tool's `--timeout` sets.
const TIMEOUT_NS: i64 = 60_000_000_000;

/// The tool's two connections, one for each service.
struct Tool {
    agent: ttrpc::Client,
    health: ttrpc::Client,
}

/// One method of a service, as generated clients call it.
fn request<A: Message>(
    client: &ttrpc::Client,
    service: &str,
    method: &str,
    message: &impl Message,
) -> Result<A, ttrpc::Error> {
    let mut request = ttrpc::Request::new();
    request.service = service.into();
    request.method = method.into();
    request.timeout_nano = TIMEOUT_NS;
    request.payload = message.write_to_bytes().unwrap();
    // The tool marks its calls so for its own use.
    let mut mark = ttrpc::proto::KeyValue::new();
    mark.key = "agent-ctl-cfg".into();
    mark.value = "auto-values".into();
    request.metadata.push(mark);
    let response = client.request(request)?;
    Ok(A::parse_from_bytes(&response.payload).unwrap())
}

impl Tool {
    fn connect(connect: impl Fn() -> std::io::Result<UnixStream>) -> Self {
        let client = || ttrpc::Client::new(connect().unwrap().into_raw_fd()).unwrap();
        Tool {
            agent: client(),
            health: client(),
        }
    }

    fn try_call<A: Message>(&self, method: &str, message: &impl Message) -> Result<A, ttrpc::Error> {
        request(&self.agent, "grpc.AgentService", method, message)
    }

    fn call<A: Message>(&self, method: &str, message: &impl Message) -> A {
        self.try_call(method, message)
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn code(&self, method: &str, message: &impl Message) -> Code {
        match self.try_call::<Empty>(method, message).expect_err(method) {
            ttrpc::Error::RpcStatus(status) => status.code.enum_value().unwrap(),
            other => panic!("{method}: {other}"),
        }
    }

    /// Everything that a process writes, piece by piece.
    fn read_all(&self, method: &str, id: &str, exec_id: &str) -> String {
        let request = ReadStreamRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            len: 7,
            ..Default::default()
        };
        let mut all = Vec::new();
        loop {
            match self.try_call::<ReadStreamResponse>(method, &request) {
                Ok(piece) => all.extend(piece.data),
                Err(ttrpc::Error::RpcStatus(status)) => {
                    assert_eq!(status.code.enum_value(), Ok(Code::INTERNAL));
                    assert_eq!(status.message, "read meet eof");
                    return String::from_utf8(all).unwrap();
                }
                Err(other) => panic!("{method}: {other}"),
            }
        }
    }
}

/// The agent of one test.
struct Listening {
    process: Child,
    directory: PathBuf,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Listening {
    fn start(name: &str, address: &str) -> Self {
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ctl-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_kata-agent"))
            .args(["--listen", address])
            .spawn()
            .unwrap();
        Listening { process, directory }
    }

    /// Connects as soon as somebody listens there.
    fn tool(&self, connect: impl Fn() -> std::io::Result<UnixStream>) -> Tool {
        let begin = Instant::now();
        while let Err(error) = connect() {
            assert!(begin.elapsed() < DEADLINE, "{error}");
            std::thread::yield_now();
        }
        Tool::connect(connect)
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn mount(destination: &str, type_: &str, source: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        type_: type_.into(),
        source: source.into(),
        options: strings(options),
        ..Default::default()
    }
}

/// What the tool makes of the `config.json` that `runc spec` writes: every part of it, in protobuf.
fn bundle_spec(root: &Path, args: &[&str]) -> oci::Spec {
    let safe = ["nosuid", "noexec", "nodev"];
    let terminals = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    oci::Spec {
        version: "1.0.2-dev".into(),
        process: Some(bundle_process(args)).into(),
        root: Some(oci::Root {
            path: root.to_str().unwrap().into(),
            readonly: true,
            ..Default::default()
        })
        .into(),
        mounts: vec![
            mount("/proc", "proc", "proc", &[]),
            mount(
                "/dev",
                "tmpfs",
                "tmpfs",
                &["nosuid", "strictatime", "mode=755", "size=65536k"],
            ),
            mount("/dev/pts", "devpts", "devpts", &terminals),
            mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            ),
            mount("/dev/mqueue", "mqueue", "mqueue", &safe),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        linux: Some(bundle_linux()).into(),
        ..Default::default()
    }
}

fn bundle_process(args: &[&str]) -> oci::Process {
    let capabilities = strings(&["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    oci::Process {
        console_size: Some(oci::Box::default()).into(),
        user: Some(oci::User::default()).into(),
        args: strings(args),
        env: strings(&[path, "TERM=xterm"]),
        cwd: "/".into(),
        capabilities: Some(oci::LinuxCapabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            permitted: capabilities,
            ..Default::default()
        })
        .into(),
        rlimits: vec![oci::POSIXRlimit {
            type_: "RLIMIT_NOFILE".into(),
            hard: 1024,
            soft: 1024,
            ..Default::default()
        }],
        no_new_privileges: true,
        ..Default::default()
    }
}

fn bundle_linux() -> oci::Linux {
    let namespace = |type_: &str| oci::LinuxNamespace {
        type_: type_.into(),
        ..Default::default()
    };
    oci::Linux {
        resources: Some(oci::LinuxResources {
            devices: vec![oci::LinuxDeviceCgroup {
                access: "rwm".into(),
                ..Default::default()
            }],
            ..Default::default()
        })
        .into(),
        namespaces: ["pid", "network", "ipc", "uts", "mount", "cgroup"]
            .map(namespace)
            .into(),
        masked_paths: strings(&["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"]),
        readonly_paths: strings(&[
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ]),
        ..Default::default()
    }
}

fn process_request(id: &str, exec_id: &str) -> WaitProcessRequest {
    WaitProcessRequest {
        container_id: id.into(),
        exec_id: exec_id.into(),
        ..Default::default()
    }
}

/// `Check`, `Version`, `GetGuestDetails`, `CreateSandbox`, …, `DestroySandbox` in one run of the tool.
fn session(tool: &Tool, root: &Path) {
    let check: HealthCheckResponse =
        request(&tool.health, "grpc.Health", "Check", &CheckRequest::new()).unwrap();
    assert_eq!(check.status.value(), 1, "SERVING");
    let version: VersionCheckResponse =
        request(&tool.health, "grpc.Health", "Version", &CheckRequest::new()).unwrap();
    assert_eq!(version.grpc_version, "0.0.1");
    let details: GuestDetailsResponse = tool.call(
        "GetGuestDetails",
        &GuestDetailsRequest {
            mem_block_size: true,
            mem_hotplug_probe: true,
            ..Default::default()
        },
    );
    assert!(!details.agent_details.init_daemon);
    // The tool makes the sandbox's id, and leaves the rest out.
    let sandbox = CreateSandboxRequest {
        sandbox_id: "e54b5a0bf7b54b5d8ed6d2c9e1f2b2ac".into(),
        ..Default::default()
    };
    tool.call::<Empty>("CreateSandbox", &sandbox);
    container(tool, root);
    let interfaces: Interfaces = tool.call("ListInterfaces", &ListInterfacesRequest::new());
    assert_eq!(interfaces.interfaces[0].name, "lo");
    tool.call::<Routes>("ListRoutes", &ListRoutesRequest::new());
    let metrics: Metrics = tool.call("GetMetrics", &GetMetricsRequest::new());
    assert!(metrics.metrics.contains("kata_guest_load"));
    let volume = VolumeStatsRequest {
        volume_guest_path: "/run".into(),
        ..Default::default()
    };
    let stats: VolumeStatsResponse = tool.call("GetVolumeStats", &volume);
    assert_eq!(stats.usage.len(), 2);
    // As the tool sends them: without values, or beyond what is offered.
    assert_eq!(
        tool.code("UpdateInterface", &UpdateInterfaceRequest::new()),
        Code::INVALID_ARGUMENT
    );
    assert_eq!(
        tool.code("UpdateRoutes", &UpdateRoutesRequest::new()),
        Code::INVALID_ARGUMENT
    );
    assert_eq!(
        tool.code("AddARPNeighbors", &AddARPNeighborsRequest::new()),
        Code::INVALID_ARGUMENT
    );
    assert_eq!(tool.code("AddSwap", &AddSwapRequest::new()), Code::UNIMPLEMENTED);
    assert_eq!(
        tool.code("SetPolicy", &SetPolicyRequest::new()),
        Code::UNIMPLEMENTED
    );
    assert_eq!(
        tool.code("MemAgentMemcgSet", &MemAgentMemcgConfig::new()),
        Code::UNIMPLEMENTED
    );
    assert_eq!(tool.code("NoSuchMethod", &Empty::new()), Code::UNIMPLEMENTED);
    tool.call::<Empty>("DestroySandbox", &DestroySandboxRequest::new());
}

/// A container's life, with streams by calls and an init of another name than its container.
fn container(tool: &Tool, root: &Path) {
    let (id, init) = ("9e3d1d4750e4e20945d22c358e13c85c", "init-of-it");
    let script = "read word; echo got $word; echo warned >&2; exec sleep 1000";
    let create = CreateContainerRequest {
        container_id: id.into(),
        exec_id: init.into(),
        oci: Some(bundle_spec(root, &["sh", "-c", script])).into(),
        ..Default::default()
    };
    tool.call::<Empty>("CreateContainer", &create);
    let start = StartContainerRequest {
        container_id: id.into(),
        ..Default::default()
    };
    tool.call::<Empty>("StartContainer", &start);
    let write = WriteStreamRequest {
        container_id: id.into(),
        exec_id: init.into(),
        data: b"words\n".to_vec(),
        ..Default::default()
    };
    let written: WriteStreamResponse = tool.call("WriteStdin", &write);
    assert_eq!(written.len, 6);
    let read = ReadStreamRequest {
        container_id: id.into(),
        exec_id: init.into(),
        len: 100,
        ..Default::default()
    };
    let stdout: ReadStreamResponse = tool.call("ReadStdout", &read);
    assert_eq!(stdout.data, b"got words\n");
    let stderr: ReadStreamResponse = tool.call("ReadStderr", &read);
    assert_eq!(stderr.data, b"warned\n");
    tool.call::<StatsContainerResponse>(
        "StatsContainer",
        &StatsContainerRequest {
            container_id: id.into(),
            ..Default::default()
        },
    );
    execute(tool, id);
    let kill = SignalProcessRequest {
        container_id: id.into(),
        exec_id: init.into(),
        signal: 9,
        ..Default::default()
    };
    tool.call::<Empty>("SignalProcess", &kill);
    let ended: WaitProcessResponse = tool.call("WaitProcess", &process_request(id, init));
    assert_eq!(ended.status, 137);
    assert_eq!(tool.read_all("ReadStderr", id, init), "");
    assert_eq!(tool.read_all("ReadStdout", id, ""), "");
    let remove = RemoveContainerRequest {
        container_id: id.into(),
        ..Default::default()
    };
    tool.call::<Empty>("RemoveContainer", &remove);
    assert_eq!(
        tool.code("WaitProcess", &process_request(id, init)),
        Code::NOT_FOUND
    );
}

/// A further process, whose input is closed by a call.
fn execute(tool: &Tool, id: &str) {
    let exec = ExecProcessRequest {
        container_id: id.into(),
        exec_id: "exec-1".into(),
        process: Some(bundle_process(&["sh", "-c", "cat; exit 5"])).into(),
        ..Default::default()
    };
    tool.call::<Empty>("ExecProcess", &exec);
    let input = WriteStreamRequest {
        container_id: id.into(),
        exec_id: "exec-1".into(),
        data: b"words\n".to_vec(),
        ..Default::default()
    };
    tool.call::<WriteStreamResponse>("WriteStdin", &input);
    let close = CloseStdinRequest {
        container_id: id.into(),
        exec_id: "exec-1".into(),
        ..Default::default()
    };
    tool.call::<Empty>("CloseStdin", &close);
    assert_eq!(tool.read_all("ReadStdout", id, "exec-1"), "words\n");
    let ended: WaitProcessResponse = tool.call("WaitProcess", &process_request(id, "exec-1"));
    assert_eq!(ended.status, 5);
}

#[test]
fn katas_tool_drives_the_agent_over_a_socket_of_a_path() {
    if !possible() {
        return;
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("agent-{}.sock", std::process::id()));
    let mut agent = Listening::start("path", &format!("unix://{}", path.display()));
    let tool = agent.tool(|| UnixStream::connect(&path));
    session(&tool, &root_directory(&agent.directory));
    assert!(agent.process.wait().unwrap().success());
    assert!(!path.exists(), "the socket is gone with the agent");
}

#[test]
fn katas_tool_drives_the_agent_over_an_abstract_socket() {
    if !possible() {
        return;
    }
    let name = format!("kata-agent-{}", std::process::id());
    let mut agent = Listening::start("abstract", &format!("unix://@{name}"));
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let tool = agent.tool(|| UnixStream::connect_addr(&address));
    session(&tool, &root_directory(&agent.directory));
    assert!(agent.process.wait().unwrap().success());
}

#[test]
fn an_interface_is_changed_and_listed() {
    if !possible() {
        return;
    }
    let name = format!("kata-agent-net-{}", std::process::id());
    let agent = Listening::start("net", &format!("unix://@{name}"));
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let tool = agent.tool(|| UnixStream::connect_addr(&address));
    let ip_address = |address: &str, mask: &str| types::IPAddress {
        address: address.into(),
        mask: mask.into(),
        ..Default::default()
    };
    let update = UpdateInterfaceRequest {
        interface: Some(types::Interface {
            device: "lo".into(),
            name: "lo".into(),
            mtu: 9000,
            ip_addresses: vec![ip_address("127.0.0.1", "8"), ip_address("192.0.2.7", "24")],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    tool.call::<types::Interface>("UpdateInterface", &update);
    let listed: Interfaces = tool.call("ListInterfaces", &ListInterfacesRequest::new());
    assert_eq!(listed.interfaces[0].mtu, 9000);
    let addresses: Vec<&str> = listed.interfaces[0]
        .ip_addresses
        .iter()
        .map(|ip| ip.address.as_str())
        .collect();
    assert_eq!(addresses, ["127.0.0.1", "192.0.2.7"]);
}
