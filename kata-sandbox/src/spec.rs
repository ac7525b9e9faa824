//! The container as the agent is told it: an OCI runtime specification and the storages under it. Pure.
//!
//! The defaults are those that people know from docker: the same mounts, capabilities, masked and
//! read-only paths. Seccomp is not among them yet.

use std::collections::HashMap;

use kata_agent_proto::agent::{CreateContainerRequest, ExecProcessRequest, Storage, StringUser};
use kata_agent_proto::annotation;
use kata_agent_proto::oci::{
    Box as ConsoleSize, Linux, LinuxCapabilities, LinuxNamespace, Mount, POSIXRlimit, Process, Root, Spec,
};
use kata_agent_proto::storage::VERITY;
use protobuf::MessageField;

use crate::container::{Container, Input, ProcessSettings, Writable};
use crate::plan::{Layer, Proof};
use crate::terminal::TerminalSize;

/// Serial of the disk that a container writes to.
pub(crate) const WRITABLE_SERIAL: &str = "writable";
/// The one container of a sandbox, so far.
pub(crate) const CONTAINER_ID: &str = "main";

/// What docker says of the terminals that it makes (moby `oci/oci.go`, container environment).
const DEFAULT_TERM: &str = "xterm";

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the agent keeps what belongs to sandboxes; its own choice is only below it.
const GUEST_DIRECTORY: &str = "/run/kata-containers";

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

/// The request that creates the container of a sandbox, all but the ports of its streams.
pub(crate) fn create_request(container: &Container, layers: &[Layer], name: &str) -> CreateContainerRequest {
    let rootfs = format!("{GUEST_DIRECTORY}/{CONTAINER_ID}/rootfs");
    CreateContainerRequest {
        container_id: CONTAINER_ID.into(),
        exec_id: CONTAINER_ID.into(),
        string_user: string_user(container.process.user.as_deref()),
        storages: storages(&rootfs, layers, &container.writable),
        oci: MessageField::some(spec(container, name, rootfs)),
        ..CreateContainerRequest::default()
    }
}

/// The request that adds a process to the container, all but the ports of its streams.
pub(crate) fn exec_request(
    container: &ProcessSettings,
    command: &ProcessSettings,
    exec_id: String,
) -> ExecProcessRequest {
    let mut env = container.env.clone();
    env.retain(|(name, _)| !command.env.iter().any(|(ours, _)| ours == name));
    env.extend(command.env.iter().cloned());
    let settings = ProcessSettings {
        args: command.args.clone(),
        env,
        cwd: command.cwd.clone().or_else(|| container.cwd.clone()),
        user: command.user.clone().or_else(|| container.user.clone()),
        input: Input::Closed,
        terminal: command.terminal,
    };
    ExecProcessRequest {
        container_id: CONTAINER_ID.into(),
        exec_id,
        string_user: string_user(settings.user.as_deref()),
        process: MessageField::some(process(&settings)),
        ..ExecProcessRequest::default()
    }
}

/// Serial of the disk of a layer, counted from the lowest.
pub(crate) fn layer_serial(layer: usize) -> String {
    format!("layer-{layer}")
}

/// Serial of the disk with a layer's hash tree.
pub(crate) fn tree_serial(layer: usize) -> String {
    format!("tree-{layer}")
}

/// The option that has the agent check every block of a layer.
fn verity(layer: usize, proof: &Proof) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (root_hash, salt) = (hex(&proof.root_hash), hex(&proof.salt));
    format!(
        "{VERITY}{} {} {root_hash} {salt}",
        tree_serial(layer),
        proof.data_blocks
    )
}

/// The layers read-only below an overlay, whose upper half is memory or a disk.
fn storages(rootfs: &str, layers: &[Layer], writable: &Writable) -> Vec<Storage> {
    let base = format!("{GUEST_DIRECTORY}/{CONTAINER_ID}");
    let lower = |layer: usize| format!("{base}/lower-{layer}");
    let mount = |(place, layer): (usize, &Layer)| Storage {
        driver_options: layer.proof.iter().map(|proof| verity(place, proof)).collect(),
        ..disk(layer_serial(place), "erofs", "ro", lower(place))
    };
    let mut storages: Vec<Storage> = layers.iter().enumerate().map(mount).collect();
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
    let lowers: Vec<String> = (0..layers.len()).rev().map(lower).collect();
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

fn spec(container: &Container, name: &str, rootfs: String) -> Spec {
    Spec {
        version: "1.1.0".into(),
        process: MessageField::some(process(&container.process)),
        root: MessageField::some(Root {
            path: rootfs,
            ..Root::default()
        }),
        hostname: container.hostname.clone().unwrap_or_else(|| name.to_owned()),
        annotations: directories(&container.volumes),
        mounts: mounts(),
        linux: MessageField::some(Linux {
            namespaces: NAMESPACES.map(namespace).into(),
            cgroups_path: format!("/{CONTAINER_ID}"),
            masked_paths: strings(&MASKED_PATHS),
            readonly_paths: strings(&READONLY_PATHS),
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

fn process(settings: &ProcessSettings) -> Process {
    let mut env: Vec<String> = settings
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let is_given = |wanted: &str| settings.env.iter().any(|(name, _)| name == wanted);
    if !is_given("PATH") {
        env.insert(0, format!("PATH={DEFAULT_PATH}"));
    }
    if settings.terminal.is_some() && !is_given("TERM") {
        env.push(format!("TERM={DEFAULT_TERM}"));
    }
    let capabilities = strings(&CAPABILITIES);
    Process {
        args: settings.args.clone(),
        env,
        cwd: settings.cwd.clone().unwrap_or_else(|| "/".into()),
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
        terminal: settings.terminal.is_some(),
        console_size: settings.terminal.map(console_size).into(),
        ..Process::default()
    }
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
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
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

    #[test]
    fn path_has_a_default_that_the_caller_may_replace() {
        let with = Container::new("i").args(["x"]).env("PATH", "/opt").env("A", "b");
        assert_eq!(process(&with.process).env, ["PATH=/opt", "A=b"]);
        let without = Container::new("i").args(["x"]);
        assert_eq!(process(&without.process).env, [format!("PATH={DEFAULT_PATH}")]);
    }

    #[test]
    fn exec_starts_from_the_containers_settings() {
        let container = Container::new("i")
            .env("A", "1")
            .env("B", "1")
            .cwd("/srv")
            .user("www-data:staff");
        let command = crate::Command::new("ls").env("B", "2").cwd("/tmp");
        let request = exec_request(&container.process, &command.process, "e1".into());
        assert_eq!(request.process.env[1..], ["A=1", "B=2"]);
        assert_eq!(request.process.cwd, "/tmp");
        assert_eq!(
            (request.string_user.uid.as_str(), request.string_user.gid.as_str()),
            ("www-data", "staff")
        );
        assert_eq!(request.process.args, ["ls"]);
    }

    #[test]
    fn a_terminal_has_a_size_and_a_kind_that_the_caller_may_replace() {
        let size = TerminalSize { rows: 3, columns: 4 };
        let container = Container::new("i").args(["x"]).terminal(size);
        let made = process(&container.process);
        assert!(made.terminal && made.env.contains(&"TERM=xterm".into()));
        assert_eq!((made.console_size.height, made.console_size.width), (3, 4));
        let made = process(&container.clone().env("TERM", "vt220").process);
        assert!(made.env.contains(&"TERM=vt220".into()) && !made.env.contains(&"TERM=xterm".into()));

        // Of two processes each has its own, or none.
        let plain = exec_request(
            &container.process,
            &crate::Command::new("ls").process,
            "e1".into(),
        );
        assert!(!plain.process.terminal && plain.process.console_size.is_none());
        let command = crate::Command::new("ls").terminal(size);
        let own = exec_request(&Container::new("i").process, &command.process, "e2".into());
        assert!(own.process.terminal && own.process.env.contains(&"TERM=xterm".into()));
    }

    #[test]
    fn nothing_of_the_host_is_mounted() {
        let request = create_request(
            &Container::new("i").args(["x"]),
            &[Layer::default(), Layer::default()],
            "sb",
        );
        assert!(request.oci.mounts.iter().all(|mount| mount.type_ != "bind"));
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
        let spec = create_request(&container, &[Layer::default()], "sb").oci;
        assert_eq!(spec.annotations[annotation::DIRECTORIES], "/data\n/var/lib/x");
        let spec = create_request(&Container::new("i").args(["x"]), &[Layer::default()], "sb").oci;
        assert!(spec.annotations.is_empty());
    }

    #[test]
    fn layers_are_stacked_highest_first_below_what_is_written() {
        let container = Container::new("i").args(["x"]).disk(MiB(64));
        let storages = create_request(
            &container,
            &[Layer::default(), Layer::default(), Layer::default()],
            "sb",
        )
        .storages;
        let kinds: Vec<&str> = storages.iter().map(|storage| storage.fstype.as_str()).collect();
        assert_eq!(kinds, ["erofs", "erofs", "erofs", "ext4", "overlay"]);
        assert_eq!(storages[3].options, ["rw"]);
        let lower = |layer| format!("/run/kata-containers/main/lower-{layer}");
        let expected = format!("lowerdir={}:{}:{}", lower(2), lower(1), lower(0));
        assert_eq!(storages[4].options[0], expected);
    }
}
