use serde_json::{Value, json};

use super::*;
use crate::error::ErrorKind;

/// What `runc spec` writes, and a little more.
fn full() -> Value {
    serde_json::from_str(include_str!("../../tests/oci/full.json")).unwrap()
}

/// The full specification with `value` at a path such as `process.rlimits[0].type`.
fn with(path: &str, value: Value) -> Value {
    let mut spec = full();
    let mut place = &mut spec;
    for part in path.split('.') {
        let (name, index) = part.split_once('[').unwrap_or((part, ""));
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[name];
        if let Ok(index) = index.trim_end_matches(']').parse::<usize>() {
            if !place.is_array() {
                *place = json!([]);
            }
            let items = place.as_array_mut().unwrap();
            while items.len() <= index {
                items.push(Value::Null);
            }
            place = &mut items[index];
        }
    }
    *place = value;
    spec
}

/// Puts each value in its place; each is refused with this kind and these words.
fn check(kind: ErrorKind, cases: &[(&str, Value, &str)]) {
    for (path, value, expected) in cases {
        let error = convert(&with(path, value.clone()).to_string())
            .map(drop)
            .expect_err(path);
        assert_eq!(error.to_string(), format!("plan: {expected}"), "{path} = {value}");
        assert_eq!(error.kind(), kind, "{path} = {value}");
    }
}

/// Puts a value in its place, and gives back what becomes of it.
fn accept(path: &str, value: Value) -> Spec {
    convert(&with(path, value).to_string()).expect(path).spec
}

#[test]
fn what_runc_writes_is_converted_field_by_field() {
    let Converted { spec, root_path } = convert(&full().to_string()).unwrap();
    assert_eq!(root_path.as_deref(), Some("rootfs"));
    assert!(spec.root.readonly);
    assert_eq!((spec.version.as_str(), spec.hostname.as_str()), ("1.2.0", "runc"));
    let process = &spec.process;
    assert_eq!(process.args, ["sh", "-c", "echo ran"]);
    assert_eq!(process.user.additional_gids, [5, 6]);
    assert_eq!(process.capabilities.bounding.len(), 3);
    assert!(process.capabilities.ambient.is_empty() && process.no_new_privileges);
    assert_eq!((process.rlimits[0].soft, process.rlimits[0].hard), (1000, 1024));
    assert_eq!(process.oom_score_adj, 100);
    assert_eq!(spec.mounts.len(), 7);
    assert_eq!(spec.mounts[3].options[3], "mode=1777");
    assert_eq!(spec.annotations["org.example.answer"], "42");
    let kinds: Vec<&str> = spec
        .linux
        .namespaces
        .iter()
        .map(|one| one.type_.as_str())
        .collect();
    assert_eq!(
        kinds,
        ["pid", "ipc", "uts", "mount", "cgroup"],
        "the network is the sandbox's"
    );
    assert_eq!(
        (spec.linux.masked_paths.len(), spec.linux.readonly_paths.len()),
        (10, 5)
    );
}

#[test]
fn what_is_there_keeps_its_value() {
    let memory = json!({"limit": 1_048_576, "swap": -1, "swappiness": 60, "disableOOMKiller": true, "useHierarchy": true});
    let made = accept("linux.resources.memory", memory);
    let memory = &made.linux.resources.memory;
    assert_eq!((memory.limit, memory.swap, memory.swappiness), (1 << 20, -1, 60));
    assert!(memory.disable_oom_killer);
    let cpu = json!({"shares": 512, "quota": 50000, "period": 100_000, "cpus": "0-1", "mems": "0"});
    let made = accept("linux.resources.cpu", cpu);
    let cpu = &made.linux.resources.cpu;
    assert_eq!(
        (cpu.shares, cpu.quota, cpu.period, cpu.cpus.as_str()),
        (512, 50_000, 100_000, "0-1")
    );
    assert_eq!(
        accept("linux.resources.pids.limit", json!(7))
            .linux
            .resources
            .pids
            .limit,
        7
    );
    let throttle = json!([{"major": 8, "minor": 0, "rate": 600}]);
    let made = accept("linux.resources.blockIO.throttleReadBpsDevice", throttle);
    assert_eq!(
        made.linux.resources.block_io.throttle_read_bps_device[0].rate,
        600
    );
    let made = accept(
        "linux.resources.devices",
        json!([{"allow": false, "access": "rwm"}]),
    );
    let rule = &made.linux.resources.devices[0];
    assert_eq!(
        (rule.allow, rule.major, rule.minor, rule.access.as_str()),
        (false, -1, -1, "rwm")
    );
    let made = accept(
        "linux.resources.hugepageLimits",
        json!([{"pageSize": "2MB", "limit": 9}]),
    );
    assert_eq!(made.linux.resources.hugepage_limits[0].pagesize, "2MB");
}

#[test]
fn devices_filters_names_and_versions_keep_their_values() {
    let device = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 1, "gid": 2});
    let made = accept("linux.devices", json!([device]));
    let device = &made.linux.devices[0];
    assert_eq!(
        (device.major, device.minor, device.file_mode, device.gid),
        (10, 229, 0o666, 2)
    );
    let syscall = json!({
        "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
        "args": [{"index": 1, "value": u64::MAX, "valueTwo": 2, "op": "SCMP_CMP_EQ"}]
    });
    let made = accept(
        "linux.seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [syscall]}),
    );
    let syscall = &made.linux.seccomp.syscalls[0];
    assert_eq!((syscall.errnoret(), syscall.args[0].value), (1, u64::MAX));
    let made = accept("linux.sysctl", json!({"net.ipv4.ip_forward": "1"}));
    assert_eq!(made.linux.sysctl["net.ipv4.ip_forward"], "1");
    let made = accept(
        "linux.uidMappings",
        json!([{"containerID": 0, "hostID": 1000, "size": 10}]),
    );
    assert_eq!(
        (
            made.linux.uid_mappings[0].host_id,
            made.linux.uid_mappings[0].size
        ),
        (1000, 10)
    );
    let made = accept("process.consoleSize", json!({"height": 24, "width": 80}));
    assert_eq!(
        (made.process.console_size.height, made.process.console_size.width),
        (24, 80)
    );
    assert_eq!(
        accept("linux.rootfsPropagation", json!("rslave"))
            .linux
            .rootfs_propagation,
        "rslave"
    );
    let hook = json!([{"path": "/bin/true", "args": ["true"], "timeout": 3}]);
    let made = accept("hooks", json!({ "startContainer": hook }));
    assert_eq!(made.hooks.start_container[0].timeout, 3);
    // Hooks that are not there ask for nothing, and a process is not needed.
    assert!(
        accept("hooks", json!({"poststop": [], "prestart": []}))
            .hooks
            .is_none()
    );
    assert!(
        convert(r#"{"ociVersion": "1.0.0"}"#)
            .unwrap()
            .spec
            .process
            .is_none()
    );
    for version in ["1.0.0", "1.0.2-dev", "1.1.0", "1.2.1+dev", "1.3.0"] {
        assert_eq!(accept("ociVersion", json!(version)).version, version);
    }
}

#[test]
fn what_makes_no_sense_of_a_process_is_named_by_its_path() {
    check(
        ErrorKind::InvalidContainer,
        &[
            ("processes", json!({}), "processes: is no field that is known"),
            (
                "process.argz",
                json!([]),
                "process.argz: is no field that is known",
            ),
            ("root.path", json!(7), "root.path: is a number, not a string"),
            ("root.path", json!(""), "root.path: is empty"),
            ("ociVersion", Value::Null, "ociVersion: is null, not a string"),
            ("ociVersion", json!("one"), "ociVersion: \"one\" is no version"),
            (
                "process.cwd",
                json!("tmp"),
                "process.cwd: \"tmp\" is not an absolute path",
            ),
            (
                "process.args",
                json!([]),
                "process.args: is empty: there is no program",
            ),
            (
                "process.args[1]",
                json!("a\0b"),
                "process.args[1]: contains a NUL byte",
            ),
            (
                "process.env[1]",
                json!("MODE"),
                "process.env[1]: \"MODE\" is no NAME=value",
            ),
            ("process.user", json!({"uid": 1}), "process.user.gid: is missing"),
            (
                "process.user.uid",
                json!(-1),
                "process.user.uid: -1 is out of range",
            ),
            (
                "process.user.uid",
                json!(1.5),
                "process.user.uid: 1.5 is out of range",
            ),
            (
                "process.terminal",
                json!("yes"),
                "process.terminal: is a string, not a boolean",
            ),
            (
                "process.oomScoreAdj",
                json!(1001),
                "process.oomScoreAdj: 1001 is not within -1000 and 1000",
            ),
            (
                "process.consoleSize",
                json!({"height": 65536, "width": 1}),
                "process.consoleSize.height: 65536 is not within 0 and 65535",
            ),
            (
                "process.rlimits[1]",
                json!({"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}),
                "process.rlimits[1].type: \"RLIMIT_NOFILE\" is there twice",
            ),
            (
                "process.rlimits[0].soft",
                json!(2048),
                "process.rlimits[0]: the soft limit 2048 is above the hard one 1024",
            ),
        ],
    );
}

#[test]
fn a_senseless_mount_namespace_or_device_is_named() {
    check(
        ErrorKind::InvalidContainer,
        &[
            (
                "mounts[2].destination",
                json!("dev"),
                "mounts[2].destination: \"dev\" is not an absolute path",
            ),
            (
                "mounts[0]",
                json!({"destination": "/x"}),
                "mounts[0]: a mount without a type, which does not bind either",
            ),
            (
                "linux.namespaces[1].type",
                json!("pid"),
                "linux.namespaces[1].type: \"pid\" is there twice",
            ),
            (
                "linux.namespaces[1].type",
                json!("net"),
                "linux.namespaces[1].type: \"net\" is none of pid, network, mount, ipc, uts, user, cgroup, time",
            ),
            (
                "linux.devices",
                json!([{"path": "/dev/fuse", "type": "c"}]),
                "linux.devices[0]: device \"/dev/fuse\" has no major and minor number",
            ),
        ],
    );
}

#[test]
fn a_senseless_limit_filter_or_name_is_named() {
    check(
        ErrorKind::InvalidContainer,
        &[
            (
                "linux.resources.blockIO.weight",
                json!(5),
                "linux.resources.blockIO.weight: 5 is not within 10 and 1000",
            ),
            (
                "linux.resources.memory.limit",
                json!(-2),
                "linux.resources.memory.limit: -2 is not within -1 and 9223372036854775807",
            ),
            (
                "linux.resources.devices",
                json!([{"allow": true, "access": "rx"}]),
                "linux.resources.devices[0].access: \"rx\" is not made of r, w and m",
            ),
            (
                "linux.resources.hugepageLimits",
                json!([{"pageSize": "2M", "limit": 1}]),
                "linux.resources.hugepageLimits[0].pageSize: \"2M\" is no size such as 2MB",
            ),
            (
                "linux.timeOffsets",
                json!({"realtime": {"secs": 1}}),
                "linux.timeOffsets.realtime: is no field that is known",
            ),
            (
                "process.user.umask",
                json!(512),
                "process.user.umask: 512 is not within 0 and 511",
            ),
            (
                "process.scheduler",
                json!({"policy": "SCHED_RR", "priority": 100}),
                "process.scheduler.priority: 100 is not within 0 and 99",
            ),
            (
                "process.ioPriority",
                json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
                "process.ioPriority.priority: 8 is not within 0 and 7",
            ),
            (
                "linux.seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_KILL"}]}),
                "linux.seccomp.syscalls[0].names: is empty: at least one name is needed",
            ),
            (
                "linux.seccomp.defaultAction",
                json!("ALLOW"),
                "linux.seccomp.defaultAction: \"ALLOW\" is none of SCMP_ACT_KILL, SCMP_ACT_KILL_PROCESS, \
                 SCMP_ACT_KILL_THREAD, SCMP_ACT_TRAP, SCMP_ACT_ERRNO, SCMP_ACT_TRACE, SCMP_ACT_ALLOW, SCMP_ACT_LOG, \
                 SCMP_ACT_NOTIFY",
            ),
            (
                "annotations",
                json!({"a": 1}),
                "annotations.a: is a number, not a string",
            ),
            ("annotations", json!({"": "b"}), "annotations: \"\" is no name"),
            (
                "hostname",
                json!("x".repeat(65)),
                "hostname: is 65 bytes long, and 64 are the most",
            ),
            ("linux", json!([]), "linux: is an array, not an object"),
            (
                "mounts",
                json!(vec![Value::Null; 10_000]),
                "mounts: 10000 are too many: 4096 are the most",
            ),
        ],
    );
}

#[test]
fn what_is_no_specification_at_all_is_told() {
    let error = convert("{").unwrap_err();
    assert_eq!(error.to_string(), "plan: the specification: is no JSON");
    assert_eq!(
        convert("[]").unwrap_err().to_string(),
        "plan: the specification: is an array, not an object"
    );
    let long = "é".repeat(200);
    let error = convert(&with("process.cwd", json!(long)).to_string()).unwrap_err();
    assert!(error.to_string().len() < 300, "{error}");
}

#[test]
fn what_is_the_hosts_or_cannot_be_done_is_unsupported_by_its_path() {
    let hook = json!([{"path": "/bin/true"}]);
    check(
        ErrorKind::Unsupported,
        &[
            (
                "mounts[0]",
                json!({"destination": "/x", "type": "bind", "source": "/etc", "options": ["rbind"]}),
                "mounts[0].source: is the host's, and nothing of the host is shared with a sandbox",
            ),
            (
                "mounts[1]",
                json!({"destination": "/x", "type": "none", "source": "/etc", "options": ["ro", "bind"]}),
                "mounts[1].source: is the host's, and nothing of the host is shared with a sandbox",
            ),
            (
                "linux.namespaces[1].path",
                json!("/proc/1/ns/net"),
                "linux.namespaces[1].path: is a namespace of the host",
            ),
            (
                "linux.cgroupsPath",
                json!("/a"),
                "linux.cgroupsPath: the agent chooses a container's cgroup, in the guest",
            ),
            (
                "hooks.prestart",
                hook.clone(),
                "hooks.prestart: its programs are the host's, and nothing of a sandbox runs there",
            ),
            (
                "ociVersion",
                json!("2.0.0"),
                "ociVersion: \"2.0.0\" is not one of 1.0 to 1.3",
            ),
            (
                "ociVersion",
                json!("1.4.0"),
                "ociVersion: \"1.4.0\" is not one of 1.0 to 1.3",
            ),
            (
                "windows",
                json!({}),
                "windows: is for another platform than Linux",
            ),
            (
                "process.user.username",
                json!("a"),
                "process.user.username: is for Windows",
            ),
            (
                "linux.seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}),
                "linux.seccomp.listenerPath: who listens is on the host",
            ),
            (
                "linux.netDevices",
                json!({"eth0": {}}),
                "linux.netDevices: the devices are the host's",
            ),
        ],
    );
    let mount = json!({"destination": "/x", "type": "ext4", "source": "/dev/sda1"});
    let error = convert(&with("mounts[0]", mount).to_string()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("plan: mounts[0].type: a file system \"ext4\" would be the host's")
    );
}

#[test]
fn what_newer_specifications_have_is_handed_on() {
    assert_eq!(accept("domainname", json!("d")).domainname, "d");
    let mapping = json!([{"containerID": 0, "hostID": 7, "size": 1}]);
    assert_eq!(
        accept("mounts[0].uidMappings", mapping).mounts[0].uid_mappings[0].host_id,
        7
    );
    let made = accept("linux.resources.rdma", json!({"mlx5_1": {"hcaHandles": 3}}));
    assert_eq!(made.linux.resources.rdma["mlx5_1"].hca_handles, Some(3));
    assert_eq!(accept("process.user.umask", json!(0)).process.user.umask, Some(0));
    let made = accept("process.scheduler", json!({"policy": "SCHED_BATCH", "nice": -5}));
    assert_eq!(made.process.scheduler.nice, -5);
    let made = accept(
        "process.ioPriority",
        json!({"class": "IOPRIO_CLASS_BE", "priority": 7}),
    );
    assert_eq!(made.process.io_priority.priority, 7);
    let made = accept("process.execCPUAffinity", json!({"initial": "0", "final": "1"}));
    assert_eq!(made.process.exec_cpu_affinity.final_, "1");
    assert_eq!(
        accept("linux.personality", json!({"domain": "LINUX32"}))
            .linux
            .personality
            .domain,
        "LINUX32"
    );
    let made = accept(
        "linux.timeOffsets",
        json!({"boottime": {"secs": -7, "nanosecs": 1}}),
    );
    assert_eq!(made.linux.time_offsets["boottime"].secs, -7);
    let made = accept(
        "linux.seccomp",
        json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38}),
    );
    assert_eq!(made.linux.seccomp.default_errno_ret, Some(38));
    let made = accept("linux.resources.cpu", json!({"burst": 5, "idle": 1}));
    assert_eq!(
        (made.linux.resources.cpu.burst, made.linux.resources.cpu.idle),
        (Some(5), Some(1))
    );
    let made = accept("linux.resources.unified", json!({"memory.high": "1000"}));
    assert_eq!(made.linux.resources.unified["memory.high"], "1000");
    assert!(
        accept("linux.resources.memory.checkBeforeUpdate", json!(true))
            .linux
            .resources
            .memory
            .check_before_update
    );
    check(
        ErrorKind::InvalidContainer,
        &[
            (
                "process.scheduler",
                json!({"policy": "SCHED_OTHER", "nice": 20}),
                "process.scheduler.nice: 20 is not within -20 and 19",
            ),
            (
                "linux.timeOffsets",
                json!({"realtime": {}}),
                "linux.timeOffsets.realtime: is no field that is known",
            ),
            (
                "linux.resources.cpu.idle",
                json!(2),
                "linux.resources.cpu.idle: 2 is not within 0 and 1",
            ),
        ],
    );
}
