//! Containers by the agent's own API, in the root of an idle container: what a specification asks for, seen from inside.
//!
//! A container writes what it sees into a directory that the idle one reads. The directory is the last mount of each
//! specification, so that what is tested cannot hide it.

#![allow(dead_code, reason = "each test program uses a part of the bed")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code"
)]

use std::sync::atomic::{AtomicU32, Ordering};

use kata_agent_proto::agent::{
    CreateContainerRequest, ExecProcessRequest, RemoveContainerRequest, SignalProcessRequest,
    StartContainerRequest, StringUser, WaitProcessRequest,
};
use kata_agent_proto::{CallError, Client, FailureKind, oci};
use kata_sandbox::{Container, Sandbox};

use crate::bed::{self, Bed};

/// The root of the idle container, in the guest.
pub(crate) const ROOT: &str = "/run/kata-containers/main/rootfs";
/// Where results are, in every container and in the idle one's root.
pub(crate) const RESULTS: &str = "/results";

/// A sandbox with an idle container.
pub(crate) struct Guest {
    pub(crate) sandbox: Sandbox,
    pub(crate) client: Client,
    next: AtomicU32,
    /// Whether it is a machine of its own.
    pub(crate) is_machine: bool,
}

/// How a process ended, and what it wrote.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) output: String,
}

impl Guest {
    pub(crate) async fn boot(bed: &Bed) -> Self {
        Self::boot_of(bed, bed.idle()).await
    }

    /// One with another machine than tests have.
    pub(crate) async fn boot_of(bed: &Bed, idle: Container) -> Self {
        let sandbox = Sandbox::boot(idle.name("main")).await.unwrap();
        let client = Client::new(sandbox.connect(1024).await.unwrap());
        let made = bed::script(&sandbox, &format!("mkdir -m 1777 {RESULTS}")).await;
        assert!(made.status.success(), "{made:?}");
        Guest {
            sandbox,
            client,
            next: AtomicU32::new(0),
            is_machine: bed.has_guest(),
        }
    }

    pub(crate) fn fresh(&self) -> String {
        format!("c{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// What the idle container's shell says.
    pub(crate) async fn shell(&self, script: &str) -> String {
        let output = bed::script(&self.sandbox, script).await;
        let text = bed::text(&output);
        assert!(
            output.status.success(),
            "{script}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    pub(crate) async fn try_create(
        &self,
        id: &str,
        spec: oci::Spec,
        user: Option<StringUser>,
    ) -> Result<(), CallError> {
        let request = CreateContainerRequest {
            container_id: id.into(),
            exec_id: id.into(),
            oci: Some(spec).into(),
            string_user: user.into(),
            ..Default::default()
        };
        self.client.create_container(request).await
    }

    /// Creates a container of a specification, which writes its results.
    pub(crate) async fn create(&self, id: &str, mut spec: oci::Spec) {
        writes_results(&mut spec, id);
        self.try_create(id, spec, None)
            .await
            .unwrap_or_else(|error| panic!("{id}: {error}"));
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), CallError> {
        let request = StartContainerRequest {
            container_id: id.into(),
            ..Default::default()
        };
        self.client.start_container(request).await
    }

    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> i32 {
        let request = WaitProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.client.wait_process(request).await.unwrap().status
    }

    pub(crate) async fn kill(&self, id: &str) {
        let request = SignalProcessRequest {
            container_id: id.into(),
            signal: 9,
            ..Default::default()
        };
        self.client.signal_process(request).await.unwrap();
    }

    pub(crate) async fn remove(&self, id: &str) {
        let request = RemoveContainerRequest {
            container_id: id.into(),
            ..Default::default()
        };
        self.client.remove_container(request).await.unwrap();
    }

    /// What a container or an exec'd process wrote.
    pub(crate) async fn result(&self, name: &str) -> String {
        self.shell(&format!("cat {RESULTS}/{name} 2>/dev/null || true"))
            .await
    }

    /// Runs a container to its end.
    pub(crate) async fn run(&self, spec: oci::Spec) -> Ran {
        let id = self.fresh();
        self.create(&id, spec).await;
        self.start(&id)
            .await
            .unwrap_or_else(|error| panic!("{id}: {error}"));
        let status = self.wait(&id, &id).await;
        let output = self.result(&id).await;
        self.remove(&id).await;
        Ran { status, output }
    }

    /// What a container wrote that ended well.
    pub(crate) async fn output(&self, spec: oci::Spec) -> String {
        let ran = self.run(spec).await;
        assert_eq!(ran.status, 0, "{}", ran.output);
        ran.output
    }

    /// A container that idles, for processes beside it.
    pub(crate) async fn idle(&self, mut spec: oci::Spec) -> String {
        let id = self.fresh();
        spec.process.mut_or_insert_default().args.clear();
        self.create(&id, spec).await;
        self.start(&id).await.unwrap();
        id
    }

    pub(crate) async fn try_exec(
        &self,
        id: &str,
        exec_id: &str,
        process: oci::Process,
    ) -> Result<(), CallError> {
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            process: Some(process).into(),
            ..Default::default()
        };
        self.client.exec_process(request).await
    }

    /// Runs a process in a container to its end.
    pub(crate) async fn exec(&self, id: &str, mut process: oci::Process) -> Ran {
        let exec_id = self.fresh();
        redirect(&mut process, &exec_id);
        self.try_exec(id, &exec_id, process)
            .await
            .unwrap_or_else(|error| panic!("{exec_id}: {error}"));
        let status = self.wait(id, &exec_id).await;
        let output = self.result(&exec_id).await;
        Ran { status, output }
    }

    /// Has a specification refused; nothing of it is left, and the name is free.
    pub(crate) async fn refused(&self, spec: oci::Spec) -> (FailureKind, String) {
        let id = self.fresh();
        let error = self.try_create(&id, spec, None).await.expect_err("refused");
        let CallError::Failed { kind, subject } = error else {
            panic!("{error}");
        };
        (kind, subject)
    }

    /// As [`Guest::refused`], with what the failure must be.
    pub(crate) async fn refused_as(&self, spec: oci::Spec, kind: FailureKind, subject: &str) {
        let (told, about) = self.refused(spec).await;
        assert_eq!(told, kind, "{about}");
        assert!(
            about.starts_with(subject),
            "{about:?} does not begin with {subject:?}"
        );
    }

    /// Has a specification refused at the creation, or else at the start.
    pub(crate) async fn refused_start(&self, spec: oci::Spec) -> (FailureKind, String) {
        let id = self.fresh();
        let error = match self.try_create(&id, spec, None).await {
            Ok(()) => {
                let error = self.start(&id).await.expect_err("refused");
                self.remove(&id).await;
                error
            }
            Err(error) => error,
        };
        let CallError::Failed { kind, subject } = error else {
            panic!("{error}");
        };
        (kind, subject)
    }

    /// The mounts of the agent and its cgroups.
    pub(crate) async fn traces(&self) -> String {
        let mut spec = looks_outside("cut -d' ' -f2,3 /agent/proc/1/mounts; find $agents -type d | sort");
        spec.mounts.push(bind("/proc", "/agent/proc", &["rbind", "ro"]));
        // Its own cgroup is not what it looks for.
        spec.linux.mut_or_insert_default().cgroups_path = "/looks".into();
        self.output(spec).await
    }

    /// The process id of a container's init, as the agent knows it.
    pub(crate) async fn init_of(&self, id: &str) -> String {
        self.output(looks_outside(&format!("head -1 $agents/{id}/cgroup.procs")))
            .await
    }

    pub(crate) async fn stop(self) {
        self.sandbox.stop().await.unwrap();
    }
}

/// Sees the agent's processes by their numbers, and in `$agents` its cgroups: beside them there may be those of others,
/// where an agent is a process of the host.
pub(crate) fn looks_outside(script: &str) -> oci::Spec {
    let agents = "/agent/cgroup$(dirname $(sed -n 's/^0:://p' /proc/self/cgroup))";
    let mut spec = spec(&format!("agents={agents}; {script}"));
    spec.linux
        .mut_or_insert_default()
        .namespaces
        .retain(|space| !["pid", "cgroup"].contains(&space.type_.as_str()));
    spec.mounts
        .push(bind("/sys/fs/cgroup", "/agent/cgroup", &["rbind", "ro"]));
    spec
}

/// The standard streams of a process lead into a file.
fn redirect(process: &mut oci::Process, name: &str) {
    if let Some(script) = process.args.get_mut(2) {
        *script = format!("exec >{RESULTS}/{name} 2>&1; {script}");
    }
}

fn writes_results(spec: &mut oci::Spec, name: &str) {
    redirect(spec.process.mut_or_insert_default(), name);
    if makes(spec, "mount") {
        spec.mounts
            .push(bind(&format!("{ROOT}{RESULTS}"), RESULTS, &["bind"]));
    }
}

fn makes(spec: &oci::Spec, kind: &str) -> bool {
    let mut list = spec.linux.namespaces.iter();
    list.any(|namespace| namespace.type_ == kind && namespace.path.is_empty())
}

pub(crate) fn mount(destination: &str, type_: &str, source: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        source: source.into(),
        type_: type_.into(),
        options: options.iter().map(|&option| option.into()).collect(),
        ..Default::default()
    }
}

pub(crate) fn bind(source: &str, destination: &str, options: &[&str]) -> oci::Mount {
    mount(destination, "bind", source, options)
}

pub(crate) fn tmpfs(destination: &str, options: &[&str]) -> oci::Mount {
    mount(destination, "tmpfs", "tmpfs", options)
}

pub(crate) fn namespace(type_: &str, path: &str) -> oci::LinuxNamespace {
    oci::LinuxNamespace {
        type_: type_.into(),
        path: path.into(),
        ..Default::default()
    }
}

pub(crate) fn process(script: &str) -> oci::Process {
    oci::Process {
        args: ["bash", "-c", script].map(String::from).to_vec(),
        env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
        cwd: "/".into(),
        ..Default::default()
    }
}

pub(crate) fn with_process(change: impl FnOnce(&mut oci::Process), script: &str) -> oci::Spec {
    let mut spec = spec(script);
    change(spec.process.mut_or_insert_default());
    spec
}

pub(crate) fn with_linux(change: impl FnOnce(&mut oci::Linux), script: &str) -> oci::Spec {
    let mut spec = spec(script);
    change(spec.linux.mut_or_insert_default());
    spec
}

/// A specification of a container that runs a script as root with everything, in the idle one's root.
pub(crate) fn spec(script: &str) -> oci::Spec {
    oci::Spec {
        version: "1.2.0".into(),
        root: Some(oci::Root {
            path: ROOT.into(),
            ..Default::default()
        })
        .into(),
        process: Some(process(script)).into(),
        mounts: vec![
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            tmpfs("/dev", &["nosuid", "strictatime", "mode=755", "size=1m"]),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            ),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        linux: Some(oci::Linux {
            namespaces: ["pid", "mount", "ipc", "uts", "cgroup"]
                .map(|kind| namespace(kind, ""))
                .to_vec(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}
