use serde_json::json;

use super::*;

fn planned(spec: &Value) -> Result<Plan, Failed> {
    let mut whole = json!({ "root": { "path": "/r" }, "process": { "args": ["x"] } });
    whole["linux"] = json!({ "namespaces": [{ "type": "mount" }] });
    for (name, value) in spec.as_object().expect("an object") {
        match (name.as_str(), value) {
            ("linux", Value::Object(fields)) => {
                for (name, value) in fields {
                    whole["linux"][name] = value.clone();
                }
            }
            _ => whole[name] = value.clone(),
        }
    }
    Plan::new(&whole, None, &Arc::default())
}

#[track_caller]
fn refused(spec: Value, kind: FailureKind, field: &str) {
    let failed = planned(&spec).map(drop).expect_err("refused");
    assert_eq!(failed.kind, kind, "{failed}");
    assert!(failed.subject.starts_with(field), "{failed}");
}

#[test]
fn what_has_no_meaning_is_invalid_by_its_field() {
    let invalid = |spec, field| refused(spec, FailureKind::Invalid, field);
    let mount = |mount: Value| json!({ "mounts": [{ "destination": "/a", "type": "tmpfs" }, mount] });
    invalid(mount(json!({ "type": "tmpfs" })), "mounts[1].destination");
    invalid(
        mount(json!({ "destination": "/a\0", "type": "tmpfs" })),
        "mounts[1].destination",
    );
    invalid(mount(json!({ "destination": "/a" })), "mounts[1].type");
    invalid(
        mount(json!({ "destination": "/a", "type": "bind" })),
        "mounts[1].source",
    );
    let options = |kind: &str, option: &str| {
        mount(json!({ "destination": "/a", "source": "/b", "type": kind, "options": [option] }))
    };
    invalid(options("bind", "size=1m"), "mounts[1].options");
    invalid(options("proc", "tmpcopyup"), "mounts[1].options");
    invalid(options("tmpfs", "a\0"), "mounts[1].options");
    let linux = |linux: Value| json!({ "linux": linux });
    invalid(
        linux(json!({ "devices": [{ "path": "/d", "type": "x" }] })),
        "linux.devices[0].type",
    );
    invalid(
        linux(json!({ "devices": [{ "path": "d", "type": "c" }] })),
        "linux.devices[0].path",
    );
    let device = json!({ "path": "/d", "type": "c", "major": -1 });
    invalid(linux(json!({ "devices": [device] })), "linux.devices[0].major");
    invalid(
        linux(json!({ "maskedPaths": ["/a", "b"] })),
        "linux.maskedPaths[1]",
    );
    invalid(
        linux(json!({ "readonlyPaths": ["/a\0"] })),
        "linux.readonlyPaths[0]",
    );
    invalid(
        linux(json!({ "rootfsPropagation": "rshard" })),
        "linux.rootfsPropagation",
    );
    invalid(linux(json!({ "sysctl": { "net/../x": "1" } })), "linux.sysctl");
    invalid(json!({ "domainname": "d" }), "domainname");
    invalid(
        json!({ "hooks": { "prestart": [{ "path": "x" }] } }),
        "hooks.prestart[0].path",
    );
}

#[test]
fn namespaces_and_what_they_are_made_with_belong_together() {
    let invalid = |linux, field| refused(json!({ "linux": linux }), FailureKind::Invalid, field);
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
    invalid(
        json!({ "namespaces": [{ "type": "what" }] }),
        "linux.namespaces[0].type",
    );
    invalid(
        json!({ "namespaces": [{ "type": "pid" }, { "type": "pid" }] }),
        "linux.namespaces[1].type",
    );
    invalid(
        json!({ "namespaces": [{ "type": "pid", "path": "x" }] }),
        "linux.namespaces[0].path",
    );
    let user = json!([{ "type": "mount" }, { "type": "user" }]);
    invalid(json!({ "namespaces": user }), "linux.uidMappings");
    invalid(
        json!({ "namespaces": user, "uidMappings": map }),
        "linux.gidMappings",
    );
    invalid(json!({ "uidMappings": map }), "linux.uidMappings");
    let empty = json!([{ "containerID": 0, "hostID": 1000, "size": 0 }]);
    invalid(
        json!({ "namespaces": user, "uidMappings": empty, "gidMappings": map }),
        "linux.uidMappings[0]",
    );
    let offsets = json!({ "monotonic": { "secs": 1 } });
    invalid(json!({ "timeOffsets": offsets }), "linux.timeOffsets");
    let time = json!([{ "type": "mount" }, { "type": "time" }]);
    let offsets = json!({ "realtime": { "secs": 1 } });
    invalid(
        json!({ "namespaces": time, "timeOffsets": offsets }),
        "linux.timeOffsets.realtime",
    );
    let linux = json!({
        "namespaces": [{ "type": "mount" }, { "type": "user" }, { "type": "time" }, { "type": "pid", "path": "/p" }],
        "uidMappings": map, "gidMappings": map, "timeOffsets": { "boottime": { "secs": -5, "nanosecs": 7 } },
    });
    let spaces = planned(&json!({ "linux": linux })).expect("a plan").namespaces;
    assert_eq!(
        (spaces.uid_map.as_str(), spaces.time_offsets.as_str()),
        ("0 1000 10\n", "boottime -5 7\n")
    );
    assert!(spaces.makes(ThreadNameSpaceType::TIME) && spaces.joins(ThreadNameSpaceType::PROCESS_ID));
}

#[test]
fn without_a_mount_namespace_nothing_is_mounted() {
    let unsupported = |spec, field: &str| refused(spec, FailureKind::Unsupported, field);
    let with = |field: &str, value: Value| {
        let mut spec = json!({ "linux": { "namespaces": [] } });
        spec[field] = value;
        spec
    };
    unsupported(
        with("mounts", json!([{ "destination": "/a", "type": "tmpfs" }])),
        "mounts",
    );
    unsupported(
        with("root", json!({ "path": "/r", "readonly": true })),
        "root.readonly",
    );
    unsupported(
        with("process", json!({ "args": ["x"], "terminal": true })),
        "process.terminal",
    );
    for (field, value) in [
        ("maskedPaths", json!(["/a"])),
        ("readonlyPaths", json!(["/a"])),
        ("rootfsPropagation", json!("shared")),
    ] {
        let mut linux = json!({ "namespaces": [] });
        linux[field] = value;
        unsupported(json!({ "linux": linux }), &format!("linux.{field}"));
    }
    assert!(planned(&json!({ "linux": { "namespaces": [] } })).is_ok());
}

#[test]
fn the_root_itself_and_mapped_file_systems_are_no_places() {
    for (mount, field) in [
        (
            json!({ "destination": "/", "type": "tmpfs" }),
            "mounts[0].destination",
        ),
        (
            json!({ "destination": "/a", "type": "tmpfs", "options": ["idmap"] }),
            "mounts[0].options",
        ),
    ] {
        refused(json!({ "mounts": [mount] }), FailureKind::Unsupported, field);
    }
}

#[test]
fn mounts_are_read_whole() {
    let map = json!([{ "containerID": 0, "hostID": 5, "size": 1 }]);
    let mounts = json!([
        { "destination": "relative/", "source": "src", "type": "bind", "options": ["ro"] },
        { "destination": "/b", "source": "/s", "options": ["rbind"], "uidMappings": map, "gidMappings": map },
    ]);
    let plan = planned(&json!({ "mounts": mounts })).expect("a plan");
    let [first, second] = &plan.mounts[..] else {
        panic!("two mounts");
    };
    assert_eq!(
        (first.destination.as_path(), first.options.bind),
        (Path::new("/relative/"), Some(false))
    );
    assert_eq!(
        (second.options.bind, second.options.id_map),
        (Some(true), Some(false))
    );
    assert_eq!(
        (second.uid_map.as_str(), second.field.as_str()),
        ("0 5 1\n", "mounts[1]")
    );
}

#[test]
fn a_parameter_of_the_kernel_is_a_file() {
    let path = |name| sysctl_path(name).map(|path| path.to_string_lossy().into_owned());
    assert_eq!(
        path("net.ipv4.ip_forward").as_deref(),
        Some("net/ipv4/ip_forward")
    );
    assert_eq!(
        path("net/ipv4/conf/eth0.1/forwarding").as_deref(),
        Some("net/ipv4/conf/eth0.1/forwarding")
    );
    assert_eq!(
        path("net.ipv4.conf.eth0/1.forwarding").as_deref(),
        Some("net/ipv4/conf/eth0.1/forwarding")
    );
    for name in ["", "..", "net..x", "/net", "a/../b", "a\0"] {
        assert_eq!(path(name), None, "{name:?}");
    }
}

#[test]
fn a_device_is_read_whole() {
    let device = json!({ "path": "/dev/x", "type": "u", "major": 1, "minor": 9, "fileMode": 0o600, "uid": 3, "gid": 4 });
    let fifo = json!({ "path": "/run/f", "type": "p" });
    let plan = planned(&json!({ "linux": { "devices": [device, fifo] } })).expect("a plan");
    let expected = Device {
        field: "linux.devices[0]".into(),
        path: "/dev/x".into(),
        kind: FileType::CharacterDevice,
        major: 1,
        minor: 9,
        mode: 0o600,
        uid: 3,
        gid: 4,
    };
    assert_eq!(plan.devices[0], expected);
    assert_eq!(
        (plan.devices[1].kind, plan.devices[1].mode),
        (FileType::Fifo, 0o666)
    );
}
