use super::*;

fn minimal() -> oci::Spec {
    oci::Spec {
        root: Some(oci::Root {
            path: "/r".into(),
            ..Default::default()
        })
        .into(),
        process: Some(oci::Process {
            args: vec!["sh".into()],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn with_linux(linux: oci::Linux) -> oci::Spec {
    oci::Spec {
        linux: Some(linux).into(),
        ..minimal()
    }
}

fn with_process(process: oci::Process) -> oci::Spec {
    oci::Spec {
        process: Some(process).into(),
        ..minimal()
    }
}

#[test]
fn what_is_not_set_is_absent() {
    let value = convert(&minimal()).expect("converted");
    let expected = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "/r", "readonly": false },
        "process": { "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "linux": {},
    });
    assert_eq!(value, expected);
}

#[test]
fn every_field_of_a_process_arrives() {
    let process = oci::Process {
        terminal: true,
        console_size: Some(oci::Box {
            height: 3,
            width: 4,
            ..Default::default()
        })
        .into(),
        user: Some(oci::User {
            uid: 1,
            gid: 2,
            additional_gids: vec![3],
            ..Default::default()
        })
        .into(),
        args: vec!["a".into(), "b".into()],
        env: vec!["K=v".into()],
        cwd: "/w".into(),
        capabilities: Some(oci::LinuxCapabilities {
            bounding: vec!["CAP_KILL".into()],
            ..Default::default()
        })
        .into(),
        rlimits: vec![oci::POSIXRlimit {
            type_: "RLIMIT_NOFILE".into(),
            hard: 9,
            soft: 8,
            ..Default::default()
        }],
        no_new_privileges: true,
        apparmor_profile: "p".into(),
        oom_score_adj: -5,
        ..Default::default()
    };
    let value = convert_process(&process).expect("converted");
    let expected = json!({
        "terminal": true, "consoleSize": { "height": 3, "width": 4 },
        "user": { "uid": 1, "gid": 2, "additionalGids": [3] },
        "args": ["a", "b"], "env": ["K=v"], "cwd": "/w",
        "capabilities": {
            "bounding": ["CAP_KILL"], "effective": [], "inheritable": [], "permitted": [], "ambient": [],
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 9, "soft": 8 }],
        "noNewPrivileges": true, "apparmorProfile": "p", "oomScoreAdj": -5,
    });
    assert_eq!(value, expected);
}

#[test]
fn the_linux_part_arrives() {
    let value = convert(&with_linux(oci::Linux {
        uid_mappings: vec![oci::LinuxIDMapping {
            host_id: 5,
            size: 6,
            ..Default::default()
        }],
        sysctl: [("net.core.somaxconn".into(), "9".into())].into(),
        namespaces: vec![oci::LinuxNamespace {
            type_: "pid".into(),
            path: "/p".into(),
            ..Default::default()
        }],
        devices: vec![oci::LinuxDevice {
            path: "/dev/x".into(),
            type_: "c".into(),
            major: 1,
            minor: 9,
            file_mode: 0o600,
            ..Default::default()
        }],
        masked_paths: vec!["/m".into()],
        readonly_paths: vec!["/o".into()],
        rootfs_propagation: "private".into(),
        ..Default::default()
    }))
    .expect("converted");
    let expected = json!({
        "uidMappings": [{ "hostID": 5, "containerID": 0, "size": 6 }],
        "sysctl": { "net.core.somaxconn": "9" },
        "namespaces": [{ "type": "pid", "path": "/p" }],
        "devices": [{ "path": "/dev/x", "type": "c", "major": 1, "minor": 9, "fileMode": 0o600 }],
        "maskedPaths": ["/m"], "readonlyPaths": ["/o"], "rootfsPropagation": "private",
    });
    assert_eq!(value["linux"], expected);
}

#[test]
fn mounts_hooks_and_annotations_arrive() {
    let mut spec = minimal();
    spec.mounts = vec![oci::Mount {
        destination: "/d".into(),
        source: "s".into(),
        type_: "bind".into(),
        options: vec!["ro".into()],
        ..Default::default()
    }];
    spec.annotations = [("k".into(), "v".into())].into();
    let hook = oci::Hook {
        path: "/h".into(),
        timeout: 3,
        ..Default::default()
    };
    spec.hooks = Some(oci::Hooks {
        prestart: vec![hook],
        ..Default::default()
    })
    .into();
    let value = convert(&spec).expect("converted");
    assert_eq!(
        value["mounts"],
        json!([{ "destination": "/d", "source": "s", "type": "bind", "options": ["ro"] }])
    );
    assert_eq!(
        value["hooks"],
        json!({ "prestart": [{ "path": "/h", "timeout": 3 }] })
    );
    assert_eq!(value["annotations"], json!({ "k": "v" }));
}

#[track_caller]
fn refused(spec: &oci::Spec, kind: FailureKind, subject: &str) {
    let failed = convert(spec).expect_err("refused");
    assert_eq!(failed.kind, kind, "{failed}");
    assert!(failed.subject.contains(subject), "{failed}");
}

#[test]
fn what_can_never_be_done_is_refused_by_its_field() {
    let unsupported = |spec: oci::Spec, subject| refused(&spec, FailureKind::Unsupported, subject);
    unsupported(
        with_linux(oci::Linux {
            intel_rdt: Some(Default::default()).into(),
            ..Default::default()
        }),
        "linux.intelRdt",
    );
    unsupported(
        with_linux(oci::Linux {
            mount_label: "l".into(),
            ..Default::default()
        }),
        "linux.mountLabel",
    );
}

#[test]
fn what_the_published_specification_lacks_arrives() {
    let mut spec = minimal();
    spec.domainname = "d".into();
    let hook = || {
        vec![oci::Hook {
            path: "/h".into(),
            ..Default::default()
        }]
    };
    spec.hooks = Some(oci::Hooks {
        create_runtime: hook(),
        create_container: hook(),
        start_container: hook(),
        poststop: hook(),
        ..Default::default()
    })
    .into();
    let process = spec.process.mut_or_insert_default();
    process.user.mut_or_insert_default().umask = Some(0);
    process.selinux_label = "s".into();
    process.scheduler = Some(oci::Scheduler {
        policy: "SCHED_IDLE".into(),
        ..Default::default()
    })
    .into();
    process.io_priority = Some(oci::LinuxIOPriority {
        class: "IOPRIO_CLASS_IDLE".into(),
        ..Default::default()
    })
    .into();
    process.exec_cpu_affinity = Some(oci::ExecCPUAffinity {
        final_: "0".into(),
        ..Default::default()
    })
    .into();
    let linux = spec.linux.mut_or_insert_default();
    linux.personality = Some(oci::LinuxPersonality {
        domain: "LINUX32".into(),
        ..Default::default()
    })
    .into();
    let offset = oci::LinuxTimeOffset {
        secs: -1,
        ..Default::default()
    };
    linux.time_offsets = [("boottime".into(), offset)].into();
    let value = convert(&spec).expect("converted");
    assert_eq!(value["domainname"], json!("d"));
    let hook = json!([{ "path": "/h" }]);
    let expected =
        json!({ "createRuntime": hook, "createContainer": hook, "startContainer": hook, "poststop": hook });
    assert_eq!(value["hooks"], expected);
    let process = &value["process"];
    assert_eq!(
        (&process["user"]["umask"], &process["selinuxLabel"]),
        (&json!(0), &json!("s"))
    );
    let expected = json!({
        "policy": "SCHED_IDLE", "nice": 0, "priority": 0, "flags": [], "runtime": 0, "deadline": 0, "period": 0,
    });
    assert_eq!(process["scheduler"], expected);
    assert_eq!(
        process["ioPriority"],
        json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 })
    );
    assert_eq!(process["execCPUAffinity"], json!({ "final": "0" }));
    assert_eq!(value["linux"]["personality"], json!({ "domain": "LINUX32" }));
    assert_eq!(
        value["linux"]["timeOffsets"],
        json!({ "boottime": { "secs": -1, "nanosecs": 0 } })
    );
}

#[test]
fn a_profile_stands_in_the_configuration_as_it_was_given() {
    let mut rule = oci::LinuxSyscall {
        names: vec!["read".into()],
        action: "SCMP_ACT_ERRNO".into(),
        ..Default::default()
    };
    rule.set_errnoret(0);
    let profile = oci::LinuxSeccomp {
        default_action: "SCMP_ACT_ALLOW".into(),
        default_errno_ret: Some(1),
        syscalls: vec![rule],
        ..Default::default()
    };
    let value = convert(&with_linux(oci::Linux {
        seccomp: Some(profile).into(),
        ..Default::default()
    }));
    let expected = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1,
        "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0 }],
    });
    assert_eq!(value.expect("converted")["linux"]["seccomp"], expected);
}

#[test]
fn what_has_no_meaning_is_invalid() {
    let invalid = |spec: oci::Spec, subject| refused(&spec, FailureKind::Invalid, subject);
    invalid(oci::Spec::default(), "without root");
    invalid(
        with_process(oci::Process {
            cwd: "relative".into(),
            ..Default::default()
        }),
        "process.cwd",
    );
}
