//! The container as the agent is told it: an OCI runtime specification and the storages under it. Pure.
//!
//! The defaults are those that people know from docker: the same mounts, capabilities, filter of system calls, masked and
//! read-only paths.

use std::collections::HashMap;

use kata_agent_proto::agent::{CreateContainerRequest, ExecProcessRequest, Storage, StringUser};
use kata_agent_proto::annotation;
use kata_agent_proto::oci::{
    Box as ConsoleSize, Linux, LinuxCapabilities, LinuxNamespace, Mount, POSIXRlimit, Process, Spec,
};
use kata_agent_proto::storage::{OFFSET, SIZE, VERITY};
use protobuf::MessageField;

use crate::container::{Container, ProcessSettings, Writable};
use crate::limits::Limits;
use crate::plan::{Layer, Proof};
use crate::questions::Extent;
use crate::terminal::TerminalSize;
use crate::{seccomp, shelf};

/// Serial of the disk that a container writes to.
pub(crate) const WRITABLE_SERIAL: &str = "writable";

/// What docker says of the terminals that it makes (moby `oci/oci.go`, container environment).
const DEFAULT_TERM: &str = "xterm";

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the agent keeps what belongs to sandboxes; its own choice is only below it.
const GUEST_DIRECTORY: &str = "/run/kata-containers";

/// The containers' shared memory (shm_overview(7)), which comes with their System V one. No container has its name.
pub(crate) const SHARED_MEMORY: &str = "/run/kata-containers/.sandbox/shm";

/// What docker grants (moby `oci/caps/defaults.go`).
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// What docker hides (moby `oci/defaults.go`).
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The network is the sandbox's, as in a pod of Kata: there is nothing in it but the loopback interface, which is up.
const NAMESPACES: [&str; 5] = ["pid", "ipc", "uts", "mount", "cgroup"];

/// What a container is made of besides what was asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Its name in the sandbox.
    pub(crate) id: &'a str,
    /// Unless it has one of its own.
    pub(crate) hostname: &'a str,
    /// The disks of its layers, the lowest first.
    pub(crate) layers: &'a [LayerDisk],
    /// Whether the containers of the sandbox share a PID namespace.
    pub(crate) shares_pid: bool,
}

/// The request that creates a container, all but the ports of its streams.
pub(crate) fn create_request(container: &Container, place: Place<'_>) -> CreateContainerRequest {
    let rootfs = format!("{GUEST_DIRECTORY}/{}/rootfs", place.id);
    CreateContainerRequest {
        container_id: place.id.into(),
        exec_id: place.id.into(),
        string_user: string_user(container.process.user.as_deref()),
        storages: storages(&rootfs, place, &container.writable),
        oci: MessageField::some(spec(container, place, rootfs)),
        sandbox_pidns: place.shares_pid,
        ..CreateContainerRequest::default()
    }
}

/// The request that adds a process to a container whose first one is `init`, all but the ports of its streams.
pub(crate) fn exec_request(
    id: &str,
    init: &Process,
    user: Option<&str>,
    command: &ProcessSettings,
    exec_id: String,
) -> ExecProcessRequest {
    let mut process = init.clone();
    process.args.clone_from(&command.args);
    process.env.retain(|entry| {
        let name = entry.split('=').next().unwrap_or_default();
        !command.env.iter().any(|(ours, _)| ours == name)
    });
    process.env.extend(command.env.iter().map(variable));
    if let Some(cwd) = &command.cwd {
        process.cwd.clone_from(cwd);
    }
    ExecProcessRequest {
        container_id: id.into(),
        exec_id,
        string_user: string_user(command.user.as_deref().or(user)),
        process: MessageField::some(with_terminal(process, command.terminal)),
        ..ExecProcessRequest::default()
    }
}

/// A disk with a layer, or the part of the shelf that has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerDisk {
    pub(crate) serial: String,
    /// None for a disk of its own.
    pub(crate) extent: Option<Extent>,
    /// The storage's option that has the agent check every block, if they are checked.
    pub(crate) verity: Option<String>,
}

impl LayerDisk {
    /// Of a layer that the machine is built with, counted from the lowest.
    pub(crate) fn new((place, layer): (usize, &Layer)) -> Self {
        let verity = layer.proof.as_ref();
        Self {
            serial: format!("layer-{place}"),
            extent: None,
            verity: verity.map(|proof| proof.option(&tree_serial(place))),
        }
    }

    /// Of a layer on the shelf, with its hash tree if it has one.
    pub(crate) fn shown(extent: Extent, tree: Option<(Extent, Proof)>) -> Self {
        let verity = tree.map(|(Extent { offset, bytes }, proof)| {
            proof.option(&format!("{}@{offset}+{bytes}", shelf::SERIAL))
        });
        Self {
            serial: shelf::SERIAL.to_owned(),
            extent: Some(extent),
            verity,
        }
    }

    /// The storage that mounts it.
    pub(crate) fn storage(&self, mount_point: String) -> Storage {
        let mut driver_options: Vec<String> = self.verity.iter().cloned().collect();
        if let Some(Extent { offset, bytes }) = self.extent {
            driver_options.extend([format!("{OFFSET}{offset}"), format!("{SIZE}{bytes}")]);
        }
        Storage {
            driver_options,
            ..disk(self.serial.clone(), "erofs", "ro", mount_point)
        }
    }
}

impl Proof {
    /// The storage's option, of a tree that is there.
    fn option(&self, tree: &str) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (root_hash, salt) = (hex(&self.root_hash), hex(&self.salt));
        format!("{VERITY}{tree} {} {root_hash} {salt}", self.data_blocks)
    }
}

/// Serial of the disk with a layer's hash tree.
pub(crate) fn tree_serial(layer: usize) -> String {
    format!("tree-{layer}")
}

/// The layers read-only below an overlay, whose upper half is memory or a disk.
fn storages(rootfs: &str, place: Place<'_>, writable: &Writable) -> Vec<Storage> {
    let base = format!("{GUEST_DIRECTORY}/{}", place.id);
    let lower = |layer: usize| format!("{base}/lower-{layer}");
    let mount = |(layer, layer_disk): (usize, &LayerDisk)| layer_disk.storage(lower(layer));
    let mut storages: Vec<Storage> = place.layers.iter().enumerate().map(mount).collect();
    let upper_half = format!("{base}/writable");
    storages.push(match writable {
        Writable::Memory => Storage {
            driver: "ephemeral".into(),
            source: "tmpfs".into(),
            fstype: "tmpfs".into(),
            options: vec!["mode=0755".into()],
            mount_point: upper_half.clone(),
            ..Storage::default()
        },
        Writable::Disk { .. } => disk(WRITABLE_SERIAL.into(), "ext4", "rw", upper_half.clone()),
    });
    // An overlay names its highest layer first.
    let lowers: Vec<String> = (0..place.layers.len()).rev().map(lower).collect();
    storages.push(overlay(rootfs, &lowers.join(":"), &upper_half));
    storages
}

fn disk(serial: String, fstype: &str, option: &str, mount_point: String) -> Storage {
    Storage {
        driver: "blk".into(),
        source: serial,
        fstype: fstype.into(),
        options: vec![option.into()],
        mount_point,
        ..Storage::default()
    }
}

fn overlay(rootfs: &str, lower: &str, upper_half: &str) -> Storage {
    let (upper, work) = (format!("{upper_half}/upper"), format!("{upper_half}/work"));
    let create = |path: &str| format!("io.katacontainers.volume.overlayfs.create_directory={path}");
    Storage {
        driver: "overlayfs".into(),
        driver_options: vec![create(&upper), create(&work)],
        source: "overlay".into(),
        fstype: "overlay".into(),
        options: vec![
            format!("lowerdir={lower}"),
            format!("upperdir={upper}"),
            format!("workdir={work}"),
        ],
        mount_point: rootfs.into(),
        ..Storage::default()
    }
}

/// The memory that [`SHARED_MEMORY`] names, as large as docker's.
pub(crate) fn shared_memory() -> Storage {
    Storage {
        driver: "ephemeral".into(),
        source: "shm".into(),
        fstype: "tmpfs".into(),
        options: strings(&["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount_point: SHARED_MEMORY.into(),
        ..Storage::default()
    }
}

/// What the caller's specification says, or else what docker would, and the caller's words on top of it.
fn spec(container: &Container, place: Place<'_>, rootfs: String) -> Spec {
    let mut spec = match &container.spec {
        Some(spec) => (**spec).clone(),
        None => default_spec(),
    };
    spec.process = MessageField::some(with_terminal(init(container), container.process.terminal));
    spec.root.mut_or_insert_default().path = rootfs;
    if let Some(name) = &container.hostname {
        spec.hostname.clone_from(name);
    } else if spec.hostname.is_empty() && has_names(&spec) {
        spec.hostname = place.hostname.to_owned();
    }
    spec.annotations.extend(directories(&container.volumes));
    let linux = spec.linux.mut_or_insert_default();
    linux.cgroups_path = format!("/{}", place.id);
    if container.is_unconfined {
        linux.seccomp = MessageField::none();
    }
    if container.limits != Limits::default() {
        container.limits.apply(linux.resources.mut_or_insert_default());
    }
    spec
}

/// Whether it has host names of its own: a specification need not.
fn has_names(spec: &Spec) -> bool {
    spec.linux
        .namespaces
        .iter()
        .any(|namespace| namespace.type_ == "uts")
}

fn default_spec() -> Spec {
    Spec {
        version: "1.1.0".into(),
        mounts: mounts(),
        linux: MessageField::some(Linux {
            namespaces: NAMESPACES.map(namespace).into(),
            masked_paths: strings(&MASKED_PATHS),
            readonly_paths: strings(&READONLY_PATHS),
            seccomp: MessageField::some(seccomp::profile(&strings(&CAPABILITIES))),
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

/// What an image calls its volumes: the root is writable, so they are directories in it that exist.
fn directories(volumes: &[String]) -> HashMap<String, String> {
    let asked = (!volumes.is_empty()).then(|| (annotation::DIRECTORIES.to_owned(), volumes.join("\n")));
    asked.into_iter().collect()
}

/// A container's own process, but for its terminal: what its further processes are made from, too.
pub(crate) fn init(container: &Container) -> Process {
    let settings = &container.process;
    let mut process = match &container.spec {
        Some(spec) => spec.process.clone().unwrap_or_default(),
        None => default_process(),
    };
    process.args.clone_from(&settings.args);
    process.env = settings.env.iter().map(variable).collect();
    process.cwd = settings.cwd.clone().unwrap_or_else(|| "/".into());
    // A specification has the path that it has.
    if container.spec.is_none() && !has_variable(&process, "PATH") {
        process.env.insert(0, format!("PATH={DEFAULT_PATH}"));
    }
    process
}

fn default_process() -> Process {
    let capabilities = strings(&CAPABILITIES);
    Process {
        capabilities: MessageField::some(LinuxCapabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            permitted: capabilities,
            ..LinuxCapabilities::default()
        }),
        rlimits: vec![POSIXRlimit {
            type_: "RLIMIT_NOFILE".into(),
            hard: 4096,
            soft: 1024,
            ..POSIXRlimit::default()
        }],
        no_new_privileges: true,
        ..Process::default()
    }
}

fn with_terminal(mut process: Process, terminal: Option<TerminalSize>) -> Process {
    process.terminal = terminal.is_some();
    process.console_size = terminal.map(console_size).into();
    if process.terminal && !has_variable(&process, "TERM") {
        process.env.push(format!("TERM={DEFAULT_TERM}"));
    }
    process
}

fn variable((name, value): &(String, String)) -> String {
    format!("{name}={value}")
}

fn has_variable(process: &Process, wanted: &str) -> bool {
    let names = process.env.iter().filter_map(|entry| entry.split_once('='));
    names.into_iter().any(|(name, _)| name == wanted)
}

fn console_size(size: TerminalSize) -> ConsoleSize {
    ConsoleSize {
        height: size.rows.into(),
        width: size.columns.into(),
        ..ConsoleSize::default()
    }
}

/// `user[:group]` as names or numbers, for the agent to look up in the image.
fn string_user(user: Option<&str>) -> MessageField<StringUser> {
    let Some(user) = user else {
        return MessageField::none();
    };
    let (uid, gid) = user.split_once(':').unwrap_or((user, ""));
    MessageField::some(StringUser {
        uid: uid.into(),
        gid: gid.into(),
        ..StringUser::default()
    })
}

fn namespace(kind: &str) -> LinuxNamespace {
    LinuxNamespace {
        type_: kind.into(),
        ..LinuxNamespace::default()
    }
}

fn mounts() -> Vec<Mount> {
    let mount = |destination: &str, fstype: &str, source: &str, options: &[&str]| Mount {
        destination: destination.into(),
        source: source.into(),
        type_: fstype.into(),
        options: strings(options),
        ..Mount::default()
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "bind",
            SHARED_MEMORY,
            &["bind", "nosuid", "noexec", "nodev"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
    ]
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use kata_vmm::machine::MiB;

    use super::*;

    fn request(container: &Container, layers: usize) -> CreateContainerRequest {
        let layers = vec![Layer::default(); layers];
        let layers: Vec<_> = layers.iter().enumerate().map(LayerDisk::new).collect();
        let place = Place {
            id: "main",
            hostname: "sb",
            layers: &layers,
            shares_pid: false,
        };
        create_request(container, place)
    }

    fn process(container: &Container) -> Process {
        request(container, 1).oci.process.clone().unwrap()
    }

    fn exec(container: &Container, command: &crate::Command) -> ExecProcessRequest {
        let user = container.process.user.as_deref();
        exec_request("main", &init(container), user, &command.process, "e1".into())
    }

    #[test]
    fn path_has_a_default_that_the_caller_may_replace() {
        let with = Container::new("i").args(["x"]).env("PATH", "/opt").env("A", "b");
        assert_eq!(process(&with).env, ["PATH=/opt", "A=b"]);
        let without = Container::new("i").args(["x"]);
        assert_eq!(process(&without).env, [format!("PATH={DEFAULT_PATH}")]);
    }

    #[test]
    fn exec_starts_from_the_containers_settings() {
        let container = Container::new("i")
            .env("A", "1")
            .env("B", "1")
            .cwd("/srv")
            .user("www-data:staff");
        let request = exec(&container, &crate::Command::new("ls").env("B", "2").cwd("/tmp"));
        assert_eq!(request.process.env[1..], ["A=1", "B=2"]);
        assert_eq!(request.process.cwd, "/tmp");
        assert_eq!(
            (request.string_user.uid.as_str(), request.string_user.gid.as_str()),
            ("www-data", "staff")
        );
        assert_eq!(request.process.args, ["ls"]);
        assert_eq!(exec(&container, &crate::Command::new("ls")).process.cwd, "/srv");
    }

    #[test]
    fn a_terminal_has_a_size_and_a_kind_that_the_caller_may_replace() {
        let size = TerminalSize { rows: 3, columns: 4 };
        let container = Container::new("i").args(["x"]).terminal(size);
        let made = process(&container);
        assert!(made.terminal && made.env.contains(&"TERM=xterm".into()));
        assert_eq!((made.console_size.height, made.console_size.width), (3, 4));
        let made = process(&container.clone().env("TERM", "vt220"));
        assert!(made.env.contains(&"TERM=vt220".into()) && !made.env.contains(&"TERM=xterm".into()));

        // Of two processes each has its own, or none.
        let plain = exec(&container, &crate::Command::new("ls"));
        assert!(!plain.process.terminal && plain.process.console_size.is_none());
        let own = exec(&Container::new("i"), &crate::Command::new("ls").terminal(size));
        assert!(own.process.terminal && own.process.env.contains(&"TERM=xterm".into()));
    }

    #[test]
    fn nothing_of_the_host_is_mounted() {
        let request = request(&Container::new("i").args(["x"]), 2);
        let binds = request.oci.mounts.iter().filter(|mount| mount.type_ == "bind");
        let sources: Vec<&str> = binds.map(|mount| mount.source.as_str()).collect();
        assert_eq!(sources, [SHARED_MEMORY], "it is the sandbox's");
        assert_eq!(
            request
                .storages
                .iter()
                .map(|s| s.fstype.as_str())
                .collect::<Vec<_>>(),
            ["erofs", "erofs", "tmpfs", "overlay"]
        );
        assert_eq!(request.oci.hostname, "sb");
    }

    #[test]
    fn volumes_are_directories_that_the_agent_is_asked_for() {
        let container = Container {
            volumes: vec!["/data".into(), "/var/lib/x".into()],
            ..Container::new("i").args(["x"])
        };
        let spec = request(&container, 1).oci;
        assert_eq!(spec.annotations[annotation::DIRECTORIES], "/data\n/var/lib/x");
        let spec = request(&Container::new("i").args(["x"]), 1).oci;
        assert!(spec.annotations.is_empty());
    }

    #[test]
    fn layers_are_stacked_highest_first_below_what_is_written() {
        let container = Container::new("i").args(["x"]).disk(MiB(64));
        let storages = request(&container, 3).storages;
        let kinds: Vec<&str> = storages.iter().map(|storage| storage.fstype.as_str()).collect();
        assert_eq!(kinds, ["erofs", "erofs", "erofs", "ext4", "overlay"]);
        assert_eq!(storages[3].options, ["rw"]);
        let lower = |layer| format!("/run/kata-containers/main/lower-{layer}");
        let expected = format!("lowerdir={}:{}:{}", lower(2), lower(1), lower(0));
        assert_eq!(storages[4].options[0], expected);
    }

    #[test]
    fn limits_and_names_are_the_callers_above_those_of_a_specification() {
        let json = r#"{
            "ociVersion": "1.1.0", "hostname": "theirs", "root": {"path": "r", "readonly": true},
            "process": {"args": ["x"], "cwd": "/", "user": {"uid": 5, "gid": 6}, "noNewPrivileges": false},
            "linux": {"resources": {"pids": {"limit": 9}, "memory": {"limit": 33554432}}}
        }"#;
        let theirs = Container::from_spec("i", json).unwrap();
        let asked = request(&theirs.clone().limits(Limits::new().pids(3)).hostname("mine"), 1);
        let spec = &asked.oci;
        assert_eq!((spec.hostname.as_str(), spec.root.readonly), ("mine", true));
        assert_eq!(spec.root.path, "/run/kata-containers/main/rootfs");
        assert_eq!(
            (spec.linux.resources.pids.limit, spec.linux.resources.memory.limit),
            (3, 32 << 20)
        );
        assert_eq!((spec.process.user.uid, spec.process.user.gid), (5, 6));
        assert!(!spec.process.no_new_privileges && spec.mounts.is_empty());
        assert!(asked.string_user.is_none());
        assert_eq!(request(&theirs.user("daemon"), 1).string_user.uid, "daemon");
    }
}
