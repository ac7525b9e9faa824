//! OCI bundles and specifications as containers. What is refused before a machine is made is held by the unit tests of
//! `kata-sandbox/src/oci`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::path::PathBuf;

use bed::{Bed, text};
use kata_sandbox::{Container, ErrorKind, Sandbox};
use serde_json::{Value, json};

/// What `runc spec` writes, and a little more.
fn full() -> Value {
    serde_json::from_str(include_str!("oci/full.json")).unwrap()
}

/// Tells one a line what it finds itself in.
const LOOKS: &str = r#"
echo "mode $MODE, host $(hostname), groups $(id -G), files $(ulimit -Sn)/$(ulimit -Hn)"
echo "oom $(cat /proc/self/oom_score_adj), $(grep NoNewPrivs /proc/self/status), $(grep CapBnd /proc/self/status)"
touch /file 2>/dev/null && echo "the root is writable"
touch /dev/shm/file && echo "its memory is writable"
head -c 1 /proc/kcore | wc -c
echo 1 2>/dev/null >/proc/sys/vm/overcommit_memory || echo "its settings are not"
tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '
"#;

const SEEN: &str = "\
mode spec, host runc, groups 0 5 6, files 1000/1024
oom 100, NoNewPrivs:\t1, CapBnd:\t0000000020000420
its memory is writable
0
its settings are not
lo";

on_every_backend! {
    /// Conformance: oci ociVersion
    /// Conformance: oci root.path
    /// Conformance: semantics 30
    /// Conformance: oci root.readonly
    /// Conformance: oci hostname
    /// Conformance: oci process.args
    /// Conformance: oci process.env
    /// Conformance: oci process.user.additionalGids
    /// Conformance: oci process.rlimits
    /// Conformance: oci process.oomScoreAdj
    /// Conformance: oci process.noNewPrivileges
    /// Conformance: oci process.capabilities
    /// Conformance: oci linux.maskedPaths
    /// Conformance: oci linux.readonlyPaths
    async fn a_bundle_as_runc_writes_it_runs(bed: Bed) {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = full();
        spec["root"]["path"] = json!(std::path::absolute(PathBuf::from(&bed.rootfs)).unwrap());
        spec["process"]["args"] = json!(["sh", "-c", LOOKS]);
        std::fs::write(directory.path().join("config.json"), spec.to_string()).unwrap();
        let container = Container::from_bundle(directory.path()).unwrap();
        let output = Sandbox::run(bed.machine_of(container)).await.unwrap();
        assert_eq!(text(&output), SEEN, "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success());
    }

    /// Conformance: oci annotations
    /// Conformance: oci process.terminal
    /// Conformance: oci process.consoleSize
    /// Conformance: semantics 15
    /// Conformance: semantics 30
    async fn the_callers_words_lie_on_top_of_a_specification(bed: Bed) {
        let mut spec = full();
        spec["annotations"] = json!({"org.opencontainers.image.stopSignal": "SIGUSR1"});
        let of_spec = |spec: &Value| Container::from_spec(&bed.rootfs, &spec.to_string()).unwrap();
        // Without a process it idles, and what is executed is of the specification all the same.
        let mut idle = spec.clone();
        idle.as_object_mut().unwrap().remove("process");
        let sandbox = Sandbox::boot(bed.machine_of(of_spec(&idle))).await.unwrap();
        assert_eq!(text(&bed::script(&sandbox, "hostname").await), "runc");

        let asked = of_spec(&spec)
            .name("asked")
            .args(["sh", "-c", "echo $MODE; hostname; id -u; pwd"])
            .env("MODE", "mine")
            .hostname("mine")
            .user("daemon")
            .cwd("/tmp");
        let asked = sandbox.create_container(asked).await.unwrap();
        let output = asked.spawn().await.unwrap().output().await.unwrap();
        assert_eq!(text(&output), "mine\nmine\n1\n/tmp");

        // Its terminal has its size; its stop signal is an annotation.
        spec["process"]["args"] = json!(["sh", "-c", "trap 'exit 7' USR1; stty size; while :; do sleep 0.05; done"]);
        spec["process"]["terminal"] = json!(true);
        spec["process"]["consoleSize"] = json!({"height": 7, "width": 77});
        let seen = sandbox.create_container(of_spec(&spec).name("terminal")).await.unwrap();
        let mut process = seen.spawn().await.unwrap();
        assert!(process.stderr.is_none());
        let mut size = [0; 6];
        tokio::io::AsyncReadExt::read_exact(process.stdout.as_mut().unwrap(), &mut size).await.unwrap();
        assert_eq!(&size, b"7 77\r\n");
        assert_eq!(process.stop(bed::DEADLINE).await.unwrap().code(), 7);

        // What only the guest can judge is told by the field, and the sandbox goes on.
        let cases = [
            ("cpu", json!({"quota": 7}), ErrorKind::InvalidContainer, "cpu.quota: 7"),
            ("memory", json!({"swappiness": 5}), ErrorKind::Unsupported, "memory.swappiness"),
            ("network", json!({"classID": 5}), ErrorKind::Unsupported, "network"),
        ];
        for (field, value, kind, named) in cases {
            let mut spec = full();
            spec["linux"]["resources"] = json!({ field: value });
            let error = sandbox.create_container(of_spec(&spec)).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(named), "{error}");
            assert!(!error.is_sandbox_lost());
        }
        assert_eq!(text(&bed::script(&sandbox, "echo goes on").await), "goes on");
        sandbox.stop().await.unwrap();
    }

    /// Conformance: oci linux.namespaces.user
    async fn a_bundle_as_runc_writes_it_can_have_users_of_its_own(bed: Bed) {
        let mut spec = full();
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for (field, first) in [("uidMappings", 100_000), ("gidMappings", 200_000)] {
            spec["linux"][field] = json!([{"containerID": 0, "hostID": first, "size": 1000}]);
        }
        // The cgroups that it sees are its own: the root of all has no such file.
        let looks = "id -u; xargs </proc/self/gid_map; cat /proc/self/cgroup | grep ^0; \
                     ls /sys/fs/cgroup/cgroup.events; grep -c $$ /sys/fs/cgroup/cgroup.procs; \
                     mkdir /sys/fs/cgroup/x 2>/dev/null || echo read-only";
        spec["process"]["args"] = json!(["sh", "-c", looks]);
        let container = Container::from_spec(&bed.rootfs, &spec.to_string()).unwrap();
        let output = Sandbox::run(bed.machine_of(container)).await.unwrap();
        let seen = "0\n0 200000 1000\n0::/\n/sys/fs/cgroup/cgroup.events\n1\nread-only";
        assert_eq!(text(&output), seen, "{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn what_is_far_too_much_is_named_and_the_sandbox_goes_on(bed: Bed) {
        let of_spec = |spec: &Value| Container::from_spec(&bed.rootfs, &spec.to_string());
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mount = |n| json!({"destination": format!("/mnt/{n}"), "type": "tmpfs", "source": "tmpfs"});
        let mut many = full();
        many["mounts"].as_array_mut().unwrap().extend((0..10_000).map(mount));
        let error = of_spec(&many).unwrap_err();
        assert_eq!(error.to_string(), "plan: mounts: 10007 are too many: 4096 are the most");

        let text_of = |bytes| "x".repeat(bytes);
        let variables: Vec<String> = (0..1000).map(|n| format!("V{n}={}", text_of(4000))).collect();
        let cases = [
            ("process", json!({"args": ["env"], "cwd": "/", "env": variables}), "plan: args and env: "),
            ("process", json!({"args": ["env"], "cwd": "/", "env": [format!("V={}", text_of(1 << 20))]}), "plan: env V: "),
            ("annotations", json!({"a": text_of(8 << 20)}), "plan: annotations: 8388609 bytes are too many"),
        ];
        for (field, value, named) in cases {
            let mut spec = full();
            spec[field] = value;
            let error = sandbox.create_container(of_spec(&spec).unwrap()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidContainer, "{error}");
            assert!(error.to_string().starts_with(named), "{error}");
        }

        // A good deal is not too much.
        let mut some = full();
        some["root"]["readonly"] = json!(false);
        some["process"]["args"] = json!(["sh", "-c", "grep -c /mnt/ /proc/mounts; echo $#${#LARGE}", "sh", text_of(100_000)]);
        some["process"]["env"] = json!(["PATH=/usr/bin:/bin", format!("LARGE={}", text_of(100_000))]);
        some["mounts"].as_array_mut().unwrap().extend((0..200).map(mount));
        let some = sandbox.create_container(of_spec(&some).unwrap()).await.unwrap();
        let output = some.spawn().await.unwrap().output().await.unwrap();
        assert_eq!(text(&output), "200\n1100000", "{}", String::from_utf8_lossy(&output.stderr));
        some.remove().await.unwrap();
        assert_eq!(text(&bed::script(&sandbox, "echo goes on").await), "goes on");
        sandbox.stop().await.unwrap();
    }
}
