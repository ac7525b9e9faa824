//! The agent's API without the SDK, over a connection to its port.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code"
)]

pub(crate) mod inside;

use kata_agent_proto::agent::{
    CreateContainerRequest, ExecProcessRequest, ReadStreamRequest, SignalProcessRequest,
    StartContainerRequest, WaitProcessRequest,
};
use kata_agent_proto::{CallError, Client, oci, port};
use kata_sandbox::Sandbox;
use protobuf::MessageField;

/// The container that a sandbox boots with, and its root in the guest.
pub(crate) const MAIN: &str = "main";
pub(crate) const ROOT: &str = "/run/kata-containers/main/rootfs";

/// A client of the sandbox's agent.
pub(crate) async fn client(sandbox: &Sandbox) -> Client {
    Client::new(sandbox.connect(port::AGENT).await.unwrap())
}

/// A process that runs a shell script, without anything that needs another kernel.
pub(crate) fn process(script: &str) -> oci::Process {
    oci::Process {
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
        cwd: "/".into(),
        ..Default::default()
    }
}

/// A further process, with its streams by calls.
pub(crate) fn execution(container_id: &str, exec_id: &str, script: &str) -> ExecProcessRequest {
    ExecProcessRequest {
        container_id: container_id.into(),
        exec_id: exec_id.into(),
        process: MessageField::some(process(script)),
        ..Default::default()
    }
}

/// A further container upon the same root, with its streams by calls.
pub(crate) fn creation(id: &str, script: &str) -> CreateContainerRequest {
    let strings = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let mount = |destination: &str, type_: &str, options: &[&str]| oci::Mount {
        destination: destination.into(),
        source: type_.into(),
        type_: type_.into(),
        options: strings(options),
        ..Default::default()
    };
    let namespace = |type_: &str| oci::LinuxNamespace {
        type_: type_.into(),
        ..Default::default()
    };
    CreateContainerRequest {
        container_id: id.into(),
        oci: MessageField::some(oci::Spec {
            root: MessageField::some(oci::Root {
                path: ROOT.into(),
                ..Default::default()
            }),
            process: MessageField::some(process(script)),
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
            ],
            linux: MessageField::some(oci::Linux {
                namespaces: ["pid", "ipc", "uts", "mount", "cgroup"].map(namespace).to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Creates and starts a container.
pub(crate) async fn start(client: &Client, request: CreateContainerRequest) {
    let container_id = request.container_id.clone();
    client.create_container(request).await.unwrap();
    let start = StartContainerRequest {
        container_id,
        ..Default::default()
    };
    client.start_container(start).await.unwrap();
}

pub(crate) fn reading(container_id: &str, exec_id: &str, len: u32) -> ReadStreamRequest {
    ReadStreamRequest {
        container_id: container_id.into(),
        exec_id: exec_id.into(),
        len,
        ..Default::default()
    }
}

/// Everything of standard output until its end.
pub(crate) async fn read_all(client: &Client, container_id: &str, exec_id: &str) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match client.read_stdout(reading(container_id, exec_id, 100_000)).await {
            Ok(piece) => all.extend(piece.data),
            Err(CallError::EndOfStream) => return all,
            Err(error) => panic!("{exec_id} of {container_id}: {error}"),
        }
    }
}

pub(crate) async fn wait(client: &Client, container_id: &str, exec_id: &str) -> Result<i32, CallError> {
    let request = WaitProcessRequest {
        container_id: container_id.into(),
        exec_id: exec_id.into(),
        ..Default::default()
    };
    client.wait_process(request).await.map(|answer| answer.status)
}

pub(crate) async fn signal(
    client: &Client,
    container_id: &str,
    exec_id: &str,
    signal: u32,
) -> Result<(), CallError> {
    let request = SignalProcessRequest {
        container_id: container_id.into(),
        exec_id: exec_id.into(),
        signal,
        ..Default::default()
    };
    client.signal_process(request).await
}

/// Runs a script in a container; its status and output.
pub(crate) async fn run(client: &Client, container_id: &str, exec_id: &str, script: &str) -> (i32, String) {
    client
        .exec_process(execution(container_id, exec_id, script))
        .await
        .unwrap();
    let output = read_all(client, container_id, exec_id).await;
    let status = wait(client, container_id, exec_id).await.unwrap();
    (status, String::from_utf8(output).unwrap())
}
