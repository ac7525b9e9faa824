//! `linux` of a specification: namespaces, users, devices, sysctls, and what a machine calls itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;
mod guest;

use bed::Bed;
use guest::{Guest, ROOT, bind, looks_outside, mount, namespace, process, spec, with_linux};
use kata_agent_proto::{FailureKind, oci};

const KINDS: [&str; 8] = ["pid", "network", "ipc", "uts", "mount", "user", "cgroup", "time"];

fn file(kind: &str) -> &str {
    match kind {
        "network" => "net",
        "mount" => "mnt",
        other => other,
    }
}

fn set<'a>(
    linux: &'a mut oci::Linux,
    kind: &str,
    namespace: Option<oci::LinuxNamespace>,
) -> &'a mut oci::Linux {
    linux.namespaces.retain(|present| present.type_ != kind);
    linux.namespaces.extend(namespace);
    linux
}

fn map(container_id: u32, host_id: u32, size: u32) -> oci::LinuxIDMapping {
    oci::LinuxIDMapping {
        container_id,
        host_id,
        size,
        ..Default::default()
    }
}

fn with_users(linux: &mut oci::Linux) {
    set(linux, "user", Some(namespace("user", "")));
    linux.uid_mappings = vec![map(0, 100_000, 1000), map(5000, 7000, 1)];
    linux.gid_mappings = vec![map(0, 200_000, 1000)];
}

/// The namespaces of a process, one a line.
const SPACES: &str =
    "for kind in pid net ipc uts mnt user cgroup time; do readlink /proc/self/ns/$kind; done";

/// A container's names and clocks.
async fn has_names_and_clocks_of_its_own(guest: &Guest) {
    // Names are the container's own, and not without a namespace for them.
    let mut named = spec("hostname; cat /proc/sys/kernel/domainname");
    named.hostname = "host-of-its-own".into();
    named.domainname = "domain.of.its.own".into();
    assert_eq!(
        guest.output(named.clone()).await,
        "host-of-its-own\ndomain.of.its.own"
    );
    set(named.linux.mut_or_insert_default(), "uts", None);
    guest
        .refused_as(named.clone(), FailureKind::Invalid, "domainname")
        .await;
    named.domainname.clear();
    guest.refused_as(named, FailureKind::Invalid, "hostname").await;

    // Clocks of its own, for its first process and for others.
    let later = |linux: &mut oci::Linux| {
        set(linux, "time", Some(namespace("time", "")));
        let offset = |secs| oci::LinuxTimeOffset {
            secs,
            ..Default::default()
        };
        linux.time_offsets = [
            ("boottime".into(), offset(1_000_000)),
            ("monotonic".into(), offset(500_000)),
        ]
        .into();
    };
    let clocks = "cut -d. -f1 /proc/uptime; perl -e 'use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC); printf \"%d\\n\", clock_gettime(CLOCK_MONOTONIC)'";
    let id = guest.idle(with_linux(later, "")).await;
    for seen in [
        guest.output(with_linux(later, clocks)).await,
        guest.exec(&id, process(clocks)).await.output,
    ] {
        let seen: Vec<u64> = seen.lines().map(|line| line.parse().unwrap()).collect();
        assert!(
            seen[0] >= 1_000_000 && (500_000..1_000_000).contains(&seen[1]),
            "{seen:?}"
        );
    }
    let far = |linux: &mut oci::Linux| {
        later(linux);
        linux.time_offsets.get_mut("boottime").unwrap().secs = i64::MIN;
    };
    guest
        .refused_as(with_linux(far, "true"), FailureKind::Invalid, "linux.timeOffsets")
        .await;
}

on_every_backend! {
    /// Conformance: oci linux.namespaces.pid
    /// Conformance: oci linux.namespaces.network
    /// Conformance: oci linux.namespaces.ipc
    /// Conformance: oci linux.namespaces.uts
    /// Conformance: oci linux.namespaces.mount
    /// Conformance: oci linux.namespaces.cgroup
    /// Conformance: oci linux.namespaces.time
    /// Conformance: oci linux.timeOffsets
    /// Conformance: oci hostname
    /// Conformance: oci domainname
    async fn each_namespace_is_new_or_joined_or_the_agents(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let agents = with_linux(|_| {}, "for kind in pid net ipc uts mnt user cgroup time; do readlink /agent/1/ns/$kind; done");
        let mut agents = agents;
        agents.mounts.push(bind("/proc", "/agent", &["rbind", "ro"]));
        let agents: Vec<String> = guest.output(agents).await.lines().map(str::to_owned).collect();
        let seen = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();

        // All new, but for IPC, which the containers of a sandbox share, and users.
        let all = |linux: &mut oci::Linux| {
            linux.namespaces = KINDS.iter().filter(|kind| **kind != "user").map(|kind| namespace(kind, "")).collect();
        };
        let new = seen(&guest.output(with_linux(all, SPACES)).await);
        for (index, kind) in KINDS.iter().enumerate() {
            assert_eq!(new[index] == agents[index], *kind == "user", "{kind}: {new:?} {agents:?}");
        }

        // None but mounts: the agent's. What has no root of its own is only a process elsewhere.
        let only = |linux: &mut oci::Linux| linux.namespaces = vec![namespace("mount", "")];
        let none = seen(&guest.output(with_linux(only, SPACES)).await);
        for (index, kind) in KINDS.iter().enumerate() {
            assert_eq!(none[index] == agents[index], *kind != "mount", "{kind}: {none:?} {agents:?}");
        }
        let mut bare = with_linux(|linux| linux.namespaces.clear(), "echo $$ >/results/bare; ls / >>/results/bare");
        bare.mounts.clear();
        assert_eq!(guest.run(bare).await.status, 0);
        let told = guest.result("bare").await;
        assert!(!told.starts_with("1\n") && told.contains("results") && !told.contains("init"), "{told}");

        // Those of a process that is there, by their paths; in the agent's view.
        let id = guest.idle(with_linux(all, "")).await;
        let theirs = seen(&guest.exec(&id, process(SPACES)).await.output);
        let init = guest.init_of(&id).await;
        for (index, kind) in KINDS.iter().enumerate().filter(|(_, kind)| !["user", "mount"].contains(kind)) {
            let path = format!("/proc/{init}/ns/{}", file(kind));
            let joins = |linux: &mut oci::Linux| { set(linux, kind, Some(namespace(kind, &path))); };
            let looks = format!("readlink /proc/self/ns/{}", file(kind));
            assert_eq!(guest.output(with_linux(joins, &looks)).await, theirs[index], "{kind}");
        }
        // A joined mount namespace is as its owner made it.
        let path = |kind| format!("/proc/{init}/ns/{kind}");
        let joins = |linux: &mut oci::Linux| {
            set(linux, "mount", Some(namespace("mount", &path("mnt"))));
            set(linux, "pid", Some(namespace("pid", &path("pid"))));
        };
        let mut joined = with_linux(joins, "readlink /proc/self/ns/mnt >/results/joined; exit 4");
        joined.mounts.clear();
        joined.root.mut_or_insert_default().path = "/".into();
        assert_eq!(guest.run(joined.clone()).await.status, 4);
        assert_eq!(guest.result("joined").await, theirs[4]);
        joined.mounts.push(guest::tmpfs("/x", &[]));
        guest.refused_as(joined, FailureKind::Unsupported, "mounts").await;

        // What is no namespace of the kind, what is not there, and what is named twice.
        for (kind, path, field) in [
            ("ipc", "/proc/1/ns/net", "linux.namespaces[4].path"),
            ("ipc", "/etc", "linux.namespaces[4].path"),
            ("pid", "/no/such/namespace", "linux.namespaces[4].path"),
            ("user", "/proc/1/ns/pid", "linux.namespaces[5].path"),
        ] {
            let joins = |linux: &mut oci::Linux| { set(linux, kind, Some(namespace(kind, path))); };
            guest.refused_as(with_linux(joins, "true"), FailureKind::Invalid, field).await;
        }
        let twice = |linux: &mut oci::Linux| linux.namespaces.push(namespace("pid", ""));
        guest.refused_as(with_linux(twice, "true"), FailureKind::Invalid, "linux.namespaces[5].type").await;

        // A cgroup namespace begins at the container's cgroup, a network namespace has a loopback that is up.
        let looks = "cat /proc/self/cgroup | grep ^0; cat /sys/class/net/lo/flags; ls /sys/class/net";
        assert_eq!(guest.output(with_linux(all, looks)).await, "0::/\n0x9\nlo");

        has_names_and_clocks_of_its_own(&guest).await;
        guest.stop().await;
    }

    /// Conformance: oci linux.namespaces.user
    /// Conformance: oci linux.uidMappings
    async fn users_are_mapped_for_all_of_a_containers_processes(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        guest.shell("mkdir -p /mapped /closed/tree && chmod 700 /closed && echo file >/closed/tree/file && chown -R 100000:200000 /closed/tree").await;
        let looks = "id -u; id -g; grep -c . /proc/self/uid_map; stat -c %u:%g /bin/true /mapped/file; cat /mapped/file; \
                     touch /dev/shm-file && stat -c %u /dev/shm-file; echo x >/dev/null && echo devices; echo streams >>/dev/stdout";
        let mut mapped = with_linux(with_users, looks);
        mapped.mounts.push(bind(&format!("{ROOT}/closed/tree"), "/mapped", &["bind"]));
        let seen = "0\n0\n2\n65534:65534\n0:0\nfile\n0\ndevices\nstreams";
        assert_eq!(guest.output(mapped.clone()).await, seen, "a first process");
        let id = guest.idle(mapped).await;
        assert_eq!(guest.exec(&id, process(looks)).await.output, seen, "one beside it");

        // Outside they are who they are mapped to, and inside they have no rights over what is not theirs.
        let mut other = process("id -u; sleep 1000");
        other.user.mut_or_insert_default().uid = 5000;
        guest.try_exec(&id, "other", other).await.unwrap();
        let find = format!("for p in $(cat $agents/{id}/cgroup.procs); do stat -c %u /proc/$p; done | sort | xargs");
        let owners = guest.output(looks_outside(&find)).await;
        assert!(owners.contains("7000"), "{owners}");
        let ran = guest.exec(&id, process("mknod /dev/x c 1 3 2>&1 | grep -o 'not permitted'; chown 1 /bin/true 2>/dev/null || echo nor files")).await;
        assert_eq!(ran.output, "not permitted\nnor files");
        let mut unmapped = process("true");
        unmapped.user.mut_or_insert_default().uid = 2000;
        let refused = guest.try_exec(&id, "unmapped", unmapped).await.unwrap_err().to_string();
        assert!(refused.contains("process.user.uid"), "{refused}");

        // The namespace of another container, with namespaces of its own in it.
        let init = guest.init_of(&id).await;
        let joins = |linux: &mut oci::Linux| { set(linux, "user", Some(namespace("user", &format!("/proc/{init}/ns/user")))); };
        assert_eq!(guest.output(with_linux(joins, "id -u; grep -c . /proc/self/uid_map")).await, "0\n2");

        let broken = |change: fn(&mut oci::Linux)| with_linux(|linux| { with_users(linux); change(linux) }, "true");
        for (spec, kind, field) in [
            (broken(|linux| linux.gid_mappings.clear()), FailureKind::Invalid, "linux.gidMappings"),
            (broken(|linux| linux.uid_mappings[0].size = 0), FailureKind::Invalid, "linux.uidMappings[0]"),
            (broken(|linux| linux.uid_mappings[1].container_id = 5), FailureKind::Invalid, "linux.uidMappings"),
            (broken(|linux| linux.uid_mappings[0].container_id = 1), FailureKind::Invalid, "linux.uidMappings"),
            (broken(|linux| linux.namespaces.retain(|space| space.type_ != "user")), FailureKind::Invalid, "linux.uidMappings"),
        ] {
            guest.refused_as(spec, kind, field).await;
        }
        guest.stop().await;
    }

    /// Conformance: oci linux.devices
    /// Conformance: oci linux.sysctl
    /// Conformance: oci linux.personality
    /// Conformance: oci linux.mountLabel
    /// Conformance: oci linux.intelRdt
    async fn devices_and_the_kernels_parameters_are_the_containers(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let before = guest.traces().await;
        let device = |path: &str, type_: &str, major, minor| oci::LinuxDevice { path: path.into(), type_: type_.into(), major, minor, ..Default::default() };
        let asked = |linux: &mut oci::Linux| {
            let mut own = device("/srv/deep/device", "c", 1, 5);
            (own.file_mode, own.uid, own.gid) = (0o640, 7, 8);
            linux.devices = vec![own, device("/dev/block", "b", 7, 200), device("/dev/unbuffered", "u", 1, 3), device("/run/fifo", "p", 0, 0)];
        };
        let looks = "stat -c '%F %t:%T %a %u %g' /srv/deep/device /dev/block /dev/unbuffered /run/fifo; head -c 3 /srv/deep/device | wc -c";
        let seen = "character special file 1:5 640 7 8\nblock special file 7:c8 666 0 0\ncharacter special file 1:3 666 0 0\nfifo 0:0 666 0 0\n3";
        assert_eq!(guest.output(with_linux(asked, looks)).await, seen);
        guest.shell("rm /srv/deep/device /run/fifo").await;
        let looks = "stat -c '%n %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; readlink /dev/fd /dev/stdin /dev/stdout /dev/stderr /dev/ptmx";
        let seen = "/dev/null 1:3 666\n/dev/zero 1:5 666\n/dev/full 1:7 666\n/dev/random 1:8 666\n/dev/urandom 1:9 666\n/dev/tty 5:0 666\n\
                    /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx";
        assert_eq!(guest.output(spec(looks)).await, seen);
        // A `/dev` of somebody's own is left as it is.
        guest.shell("mkdir -p /own-dev && rm -rf /own-dev/* && echo mine >/own-dev/file").await;
        let mut own = spec("");
        own.mounts = vec![mount("/proc", "proc", "proc", &[]), bind(&format!("{ROOT}/own-dev"), "/dev", &["rbind"])];
        own.process.mut_or_insert_default().args[2] = "ls /dev".into();
        assert_eq!(guest.output(own).await, "file");

        // By its own namespaces; a missing one is an error that names it.
        let parameters = |linux: &mut oci::Linux| {
            set(linux, "network", Some(namespace("network", "")));
            linux.sysctl = [("net.ipv4.ip_forward", "1"), ("net/ipv4/ping_group_range", "5 6"), ("kernel.domainname", "of.a.sysctl")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        };
        let looks = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/domainname | tr '\\t' ' '";
        assert_eq!(guest.output(with_linux(parameters, looks)).await, "1\n5 6\nof.a.sysctl");
        let sysctl = |name: &str, value: &str| with_linux(|linux| linux.sysctl = [(name.to_owned(), value.to_owned())].into(), "true");
        guest.refused_as(sysctl("net.no.such", "1"), FailureKind::Unsupported, "linux.sysctl: net.no.such").await;
        guest.refused_as(sysctl("net.ipv4.ip_forward", "many"), FailureKind::Invalid, "linux.sysctl: net.ipv4.ip_forward").await;
        guest.refused_as(sysctl("net/../../../etc/passwd", "1"), FailureKind::Invalid, "linux.sysctl").await;

        let domain = |word: &str| oci::LinuxPersonality { domain: word.into(), ..Default::default() };
        let old = |linux: &mut oci::Linux| linux.personality = Some(domain("LINUX32")).into();
        assert_eq!(guest.output(with_linux(old, "uname -m")).await, "i686");
        let id = guest.idle(with_linux(old, "")).await;
        assert_eq!(guest.exec(&id, process("uname -m")).await.output, "i686");
        guest.remove(&id).await;

        for (spec, kind, field) in [
            (with_linux(|linux| linux.personality = Some(domain("BSD")).into(), "true"), FailureKind::Invalid, "linux.personality.domain"),
            (with_linux(|linux| linux.devices = vec![device("/etc/passwd", "c", 1, 3)], "true"), FailureKind::Invalid, "linux.devices[0].path"),
            (with_linux(|linux| linux.devices = vec![device("dev/x", "c", 1, 3)], "true"), FailureKind::Invalid, "linux.devices[0].path"),
            (with_linux(|linux| linux.devices = vec![device("/dev/x", "d", 1, 3)], "true"), FailureKind::Invalid, "linux.devices[0].type"),
            (with_linux(|linux| linux.devices = vec![device("/dev/x", "c", -1, 3)], "true"), FailureKind::Invalid, "linux.devices[0].major"),
            (with_linux(|linux| linux.mount_label = "a:b".into(), "true"), FailureKind::Unsupported, "linux.mountLabel"),
            (with_linux(|linux| linux.intel_rdt = Some(Default::default()).into(), "true"), FailureKind::Unsupported, "linux.intelRdt"),
        ] {
            guest.refused_as(spec, kind, field).await;
        }
        assert_eq!(guest.traces().await, before, "nothing is left");
        guest.stop().await;
    }

    /// Conformance: oci linux.resources.devices
    /// Conformance: semantics 15
    async fn devices_that_nobody_gave_can_be_made_and_not_opened(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let before = guest.traces().await;
        // The disk of the root, where there is one.
        let disk = "disk=$(cat /sys/block/vda/dev 2>/dev/null || echo 7:0); major=${disk%:*} minor=${disk#*:}; rm -f /dev/disk; ";
        let make = "mknod /dev/disk b $major $minor && stat -c %F /dev/disk; ";
        let open = "(: </dev/disk) 2>&1 | grep -o 'not permitted'; (: >/dev/disk) 2>&1 | grep -o 'not permitted'; ";
        let defaults = "for name in null zero full random urandom ptmx; do : <>/dev/$name && echo $name; done";
        let looks = [disk, make, open, defaults].concat();
        let seen = "block special file\nnot permitted\nnot permitted\nnull\nzero\nfull\nrandom\nurandom\nptmx";
        assert_eq!(guest.shell(&looks).await.trim_end(), seen, "a container of the SDK");
        assert_eq!(guest.output(spec(&looks)).await, seen, "one without rules");
        let id = guest.idle(spec("")).await;
        assert_eq!(guest.exec(&id, process(&looks)).await.output, seen, "a further process");
        guest.remove(&id).await;
        let ruled = |devices: Vec<oci::LinuxDeviceCgroup>, script: &str| {
            let resources = oci::LinuxResources { devices, ..Default::default() };
            with_linux(|linux| linux.resources = Some(resources).into(), script)
        };
        let everything = |allow| oci::LinuxDeviceCgroup { allow, access: "rwm".into(), ..Default::default() };
        assert_eq!(guest.output(ruled(vec![everything(false)], &looks)).await, seen, "one that denies everything");

        if guest.is_machine {
            let read = [disk, make, "head -c 512 /dev/disk | wc -c"].concat();
            assert_eq!(guest.output(ruled(vec![everything(true)], &read)).await, "block special file\n512");
            let number = guest.shell("cat /sys/block/vda/dev").await;
            let (major, minor) = number.trim_end().split_once(':').unwrap();
            let device = oci::LinuxDevice {
                path: "/dev/own".into(), type_: "b".into(), major: major.parse().unwrap(), minor: minor.parse().unwrap(), ..Default::default()
            };
            let given = |script: &str| with_linux(|linux| linux.devices = vec![device.clone()], script);
            assert_eq!(guest.output(given("head -c 512 /dev/own | wc -c")).await, "512", "the specification's own");
            let mut denied = ruled(vec![everything(false)], "(: </dev/own) 2>&1 | grep -o 'not permitted'");
            denied.linux.mut_or_insert_default().devices = vec![device.clone()];
            assert_eq!(guest.output(denied).await, "not permitted", "its rules come after its devices");
        }
        assert_eq!(guest.traces().await, before, "nothing is left");
        guest.stop().await;
    }
}
