//! `linux.cgroupsPath` and `linux.resources` of a specification: where a cgroup is, and what holds in it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;
mod guest;

use std::collections::HashSet;

use bed::Bed;
use guest::{Guest, looks_outside, mount, process, with_linux};
use kata_agent_proto::agent::UpdateContainerRequest;
use kata_agent_proto::{CallError, FailureKind, oci};

/// Where a container's cgroup is.
async fn has_a_place_of_its_own(guest: &Guest) {
    // Where, and that it is nobody else's.
    let at = |path: &str| {
        with_linux(
            |linux| {
                linux.cgroups_path = path.into();
                linux.namespaces.retain(|namespace| namespace.type_ != "cgroup");
            },
            "grep ^0 /proc/self/cgroup",
        )
    };
    let seen = guest.output(at("/some/where")).await;
    assert!(seen.ends_with("/some/where"), "{seen}");
    let seen = guest.output(at("system.slice:kata:name")).await;
    assert!(seen.ends_with("/system.slice/kata-name.scope"), "{seen}");
    let id = guest.idle(at("/some/where")).await;
    for taken in ["/some/where", "/some", "/some/where/else"] {
        guest
            .refused_as(at(taken), FailureKind::AlreadyExists, "linux.cgroupsPath")
            .await;
    }
    guest.remove(&id).await;
    guest
        .refused_as(at("/../x"), FailureKind::Invalid, "linux.cgroupsPath")
        .await;
}

/// A container with limits, which sees its own cgroup.
fn limited(resources: oci::LinuxResources, script: &str) -> oci::Spec {
    let mut spec = with_linux(|linux| linux.resources = Some(resources).into(), script);
    let options = ["nosuid", "noexec", "nodev", "ro"];
    spec.mounts
        .push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &options));
    spec
}

fn of_memory(memory: oci::LinuxMemory) -> oci::LinuxResources {
    oci::LinuxResources {
        memory: Some(memory).into(),
        ..Default::default()
    }
}

fn of_cpu(cpu: oci::LinuxCPU) -> oci::LinuxResources {
    oci::LinuxResources {
        cpu: Some(cpu).into(),
        ..Default::default()
    }
}

fn of_io(io: oci::LinuxBlockIO) -> oci::LinuxResources {
    oci::LinuxResources {
        block_io: Some(io).into(),
        ..Default::default()
    }
}

fn unified(name: &str, text: &str) -> oci::LinuxResources {
    oci::LinuxResources {
        unified: [(name.to_owned(), text.to_owned())].into(),
        ..Default::default()
    }
}

/// Rates of a disk: reads and writes, in bytes and in operations.
fn throttles((major, minor): (i64, i64), rates: [u64; 4]) -> oci::LinuxResources {
    let [read_bytes, write_bytes, reads, writes] = rates.map(|rate| {
        vec![oci::LinuxThrottleDevice {
            major,
            minor,
            rate,
            ..Default::default()
        }]
    });
    of_io(oci::LinuxBlockIO {
        throttle_read_bps_device: read_bytes,
        throttle_write_bps_device: write_bytes,
        throttle_read_iops_device: reads,
        throttle_write_iops_device: writes,
        ..Default::default()
    })
}

/// What limits a container here.
struct Limiters {
    /// Files of its cgroup: a host that is no guest may have its controllers in version 1, and a kernel not every limit.
    files: HashSet<String>,
    /// The numbers of the machine's own disk.
    disk: (i64, i64),
}

impl Limiters {
    async fn of(guest: &Guest) -> Self {
        let looks = "cat /sys/block/vd*/dev /sys/block/*/dev 2>/dev/null | head -1; ls /sys/fs/cgroup";
        let seen = guest.output(limited(Default::default(), looks)).await;
        let (disk, files) = seen.split_once('\n').unwrap();
        let (major, minor) = disk.split_once(':').unwrap();
        let files: HashSet<String> = files.lines().map(str::to_owned).collect();
        let always = [
            "memory.max",
            "memory.low",
            "memory.high",
            "cpu.weight",
            "cpu.max",
            "cpu.max.burst",
        ];
        let always = always
            .into_iter()
            .chain(["cpuset.cpus", "cpuset.mems", "pids.max", "io.max"]);
        let missing: Vec<&str> = always.filter(|&file| !files.contains(file)).collect();
        assert!(
            !guest.is_machine || missing.is_empty(),
            "a guest lacks {missing:?}"
        );
        let weights = ["io.bfq.weight", "io.weight"];
        assert!(
            !guest.is_machine || weights.iter().any(|&file| files.contains(file)),
            "a guest lacks weights"
        );
        Limiters {
            files,
            disk: (major.parse().unwrap(), minor.parse().unwrap()),
        }
    }

    /// The refusal of the first limit that has no file, of those in their order.
    fn refusal(&self, limits: Files<'_>) -> Option<String> {
        let first = limits.iter().find(|(_, file)| !self.files.contains(*file))?;
        Some(format!("{}: the kernel has no {} for it", first.0, first.1))
    }
}

/// Fields with their files, in the order that they are written.
type Files<'a> = &'a [(&'a str, &'a str)];

/// What is asked for, where that is, and what it says there then.
type Case = (oci::LinuxResources, Files<'static>, String);

fn of_memory_and_processors() -> Vec<Case> {
    let memory = oci::LinuxMemory {
        limit: 64 << 20,
        reservation: 32 << 20,
        ..Default::default()
    };
    let with_swap = oci::LinuxMemory {
        limit: 64 << 20,
        swap: 96 << 20,
        ..Default::default()
    };
    let cpu = oci::LinuxCPU {
        shares: 512,
        quota: 50_000,
        period: 200_000,
        burst: Some(20_000),
        cpus: "0".into(),
        mems: "0".into(),
        ..Default::default()
    };
    let idle = oci::LinuxCPU {
        idle: Some(1),
        ..Default::default()
    };
    vec![
        (
            of_memory(memory),
            &[
                ("memory.limit", "memory.max"),
                ("memory.reservation", "memory.low"),
            ],
            "67108864\n33554432".into(),
        ),
        (
            of_memory(with_swap),
            &[("memory.limit", "memory.max"), ("memory.swap", "memory.swap.max")],
            "67108864\n33554432".into(),
        ),
        (
            of_cpu(cpu),
            &[
                ("cpu.shares", "cpu.weight"),
                ("cpu.quota", "cpu.max"),
                ("cpu.burst", "cpu.max.burst"),
                ("cpu.cpus", "cpuset.cpus"),
                ("cpu.mems", "cpuset.mems"),
            ],
            "59\n50000 200000\n20000\n0\n0".into(),
        ),
        (of_cpu(idle), &[("cpu.idle", "cpu.idle")], "1".into()),
    ]
}

fn of_the_rest(here: &Limiters) -> Vec<Case> {
    let pids = oci::LinuxPids {
        limit: 77,
        ..Default::default()
    };
    let pids = oci::LinuxResources {
        pids: Some(pids).into(),
        ..Default::default()
    };
    let weight = of_io(oci::LinuxBlockIO {
        weight: 500,
        ..Default::default()
    });
    // Of the two schedulers that know weights one has a file and a range of its own.
    let (weight_file, weight_seen): (Files<'static>, _) = match here.files.contains("io.bfq.weight") {
        true => (&[("block_io.weight", "io.bfq.weight")], "default 500"),
        false => (&[("block_io.weight", "io.weight")], "default 4950"),
    };
    let page = oci::LinuxHugepageLimit {
        pagesize: "2MB".into(),
        limit: 4 << 20,
        ..Default::default()
    };
    let pages = oci::LinuxResources {
        hugepage_limits: vec![page],
        ..Default::default()
    };
    let (major, minor) = here.disk;
    vec![
        (pids, &[("pids.limit", "pids.max")], "77".into()),
        (weight, weight_file, weight_seen.into()),
        (
            throttles(here.disk, [1 << 20, 2 << 20, 100, 200]),
            &[("block_io.throttle_read_bps_device", "io.max")],
            format!("{major}:{minor} rbps=1048576 wbps=2097152 riops=100 wiops=200"),
        ),
        (
            pages,
            &[("hugepage_limits.2MB", "hugetlb.2MB.max")],
            "4194304".into(),
        ),
        (
            unified("memory.high", "50M"),
            &[("unified.memory.high", "memory.high")],
            "52428800".into(),
        ),
    ]
}

/// Each limit is in its file, or is refused by its field where the kernel has no such file.
async fn has_each_limit(guest: &Guest, here: &Limiters) {
    for (resources, limits, expected) in of_memory_and_processors().into_iter().chain(of_the_rest(here)) {
        let files: Vec<&str> = limits.iter().map(|(_, file)| *file).collect();
        let script = format!("cd /sys/fs/cgroup && cat {}", files.join(" "));
        let spec = limited(resources, &script);
        match here.refusal(limits) {
            None => assert_eq!(guest.output(spec).await, expected, "{limits:?}"),
            Some(refusal) => guest.refused_as(spec, FailureKind::Unsupported, &refusal).await,
        }
    }
}

/// Rules on devices hold in their order, with the default devices always, until other rules take their place.
async fn has_its_device_rules(guest: &Guest, here: &Limiters) {
    let rules = |access: &str| {
        let rule = |allow, type_: &str, (major, minor), access: &str| oci::LinuxDeviceCgroup {
            allow,
            type_: type_.into(),
            major,
            minor,
            access: access.into(),
            ..Default::default()
        };
        oci::LinuxResources {
            devices: vec![rule(false, "", (0, 0), "rwm"), rule(true, "c", (1, 11), access)],
            ..Default::default()
        }
    };
    let looks = "exec 3</dev/log-device && echo reads; \
                 (exec 3>/dev/log-device) 2>/dev/null && echo writes || echo does not write; echo x >/dev/null && echo null";
    let mut spec = limited(rules("r"), looks);
    spec.linux.mut_or_insert_default().devices = vec![oci::LinuxDevice {
        path: "/dev/log-device".into(),
        type_: "c".into(),
        major: 1,
        minor: 11,
        ..Default::default()
    }];
    assert_eq!(guest.output(spec.clone()).await, "reads\ndoes not write\nnull");

    let id = guest.idle(spec).await;
    let pids = oci::LinuxPids {
        limit: 77,
        ..Default::default()
    };
    let another = oci::LinuxResources {
        pids: Some(pids).into(),
        ..Default::default()
    };
    let another_is_refused = here.refusal(&[("pids.limit", "pids.max")]).is_some();
    for (resources, is_refused, expected) in [
        (another, another_is_refused, "reads\ndoes not write\nnull"),
        (rules("rw"), false, "reads\nwrites\nnull"),
    ] {
        let request = UpdateContainerRequest {
            container_id: id.clone(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        let answer = guest.client.update_container(request).await;
        assert_eq!(answer.is_err(), is_refused, "{answer:?}");
        assert_eq!(guest.exec(&id, process(looks)).await.output, expected);
    }
    guest.remove(&id).await;
}

/// Weights are of use only where disks are scheduled by them, which a guest sees to for its own.
async fn has_its_disks_weighed(guest: &Guest, here: &Limiters) {
    if !guest.is_machine {
        return;
    }
    let (major, minor) = here.disk;
    let weights = of_io(oci::LinuxBlockIO {
        weight: 300,
        weight_device: vec![oci::LinuxWeightDevice {
            major,
            minor,
            weight: 200,
            ..Default::default()
        }],
        ..Default::default()
    });
    let (seen, expected, scheduled) = match here.files.contains("io.bfq.weight") {
        true => (
            "cat /sys/fs/cgroup/io.bfq.weight",
            format!("default 300\n{major}:{minor} 200"),
            format!("grep -c '\\[bfq\\]' /sys/dev/block/{major}:{minor}/queue/scheduler"),
        ),
        false => (
            "cat /sys/fs/cgroup/io.weight",
            format!("default 2930\n{major}:{minor} 1920"),
            format!("grep -c '^{major}:{minor} enable=1' /agent/cgroup/io.cost.qos"),
        ),
    };
    let scheduled = format!("{scheduled} || true");
    assert_eq!(
        guest.output(looks_outside(&scheduled)).await,
        "0",
        "nobody asked for it"
    );
    let id = guest.idle(limited(Default::default(), "")).await;
    let request = UpdateContainerRequest {
        container_id: id.clone(),
        resources: Some(weights).into(),
        ..Default::default()
    };
    guest.client.update_container(request).await.unwrap();
    assert_eq!(guest.exec(&id, process(seen)).await.output, expected);
    assert_eq!(guest.output(looks_outside(&scheduled)).await, "1");
    guest.remove(&id).await;
}

/// Limits of swap and of a disk can be changed, and taken away.
async fn changes_swap_and_throttles(guest: &Guest, here: &Limiters) {
    let swap = |swap| {
        of_memory(oci::LinuxMemory {
            swap,
            ..Default::default()
        })
    };
    let rate = |rate| throttles(here.disk, [rate, 0, 0, 0]);
    let has_memory = here.files.contains("memory.max");
    let limits = oci::LinuxMemory {
        limit: if has_memory { 64 << 20 } else { 0 },
        ..Default::default()
    };
    let id = guest.idle(limited(of_memory(limits), "")).await;
    let disk = format!(
        "{}:{} rbps=4096 wbps=max riops=max wiops=max",
        here.disk.0, here.disk.1
    );
    // What is above a limit of memory that is there already.
    let swap_files = [("memory.swap", "memory.max"), ("memory.swap", "memory.swap.max")];
    let io_files = [("block_io.throttle_read_bps_device", "io.max")];
    let cases: [(oci::LinuxResources, Files<'_>, &str, &str); 4] = [
        (swap(160 << 20), &swap_files, "memory.swap.max", "100663296"),
        (swap(-1), &swap_files, "memory.swap.max", "max"),
        (rate(4096), &io_files, "io.max", &disk),
        (rate(0), &io_files, "io.max", ""),
    ];
    for (resources, limits, file, expected) in cases {
        let request = UpdateContainerRequest {
            container_id: id.clone(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        let answer = guest.client.update_container(request).await;
        let Some(subject) = here.refusal(limits) else {
            assert_eq!(answer, Ok(()), "{limits:?}");
            let seen = guest
                .exec(&id, process(&format!("cat /sys/fs/cgroup/{file}")))
                .await;
            assert_eq!(seen.output, expected, "{limits:?}");
            continue;
        };
        assert_eq!(
            answer,
            Err(CallError::Failed {
                kind: FailureKind::Unsupported,
                subject
            }),
            "{limits:?}"
        );
    }
    if has_memory {
        let request = UpdateContainerRequest {
            container_id: id.clone(),
            resources: Some(swap(32 << 20)).into(),
            ..Default::default()
        };
        let error = guest.client.update_container(request).await.unwrap_err();
        assert_eq!(
            error.kind(),
            Some(FailureKind::Invalid),
            "less than the memory: {error}"
        );
    }
    guest.remove(&id).await;
}

on_every_backend! {
    /// Conformance: semantics 15
    /// Conformance: oci linux.cgroupsPath
    /// Conformance: oci linux.resources.devices
    /// Conformance: oci linux.resources.memory
    /// Conformance: oci linux.resources.cpu
    /// Conformance: oci linux.resources.pids
    /// Conformance: oci linux.resources.blockIO
    /// Conformance: oci linux.resources.hugepageLimits
    /// Conformance: oci linux.resources.network
    /// Conformance: oci linux.resources.rdma
    /// Conformance: oci linux.resources.unified
    async fn a_cgroup_is_where_and_what_its_specification_says(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let before = guest.traces().await;
        has_a_place_of_its_own(&guest).await;

        let here = Limiters::of(&guest).await;
        has_its_device_rules(&guest, &here).await;
        // Before any other asks for a weight.
        has_its_disks_weighed(&guest, &here).await;
        has_each_limit(&guest, &here).await;
        changes_swap_and_throttles(&guest, &here).await;
        let rdma = [("mlx5_1".to_owned(), oci::LinuxRdma { hca_handles: Some(3), ..Default::default() })];
        // No such device, or no such file.
        let without_rdma = match here.files.contains("rdma.max") {
            true => FailureKind::Invalid,
            false => FailureKind::Unsupported,
        };
        for (resources, kind, field) in [
            (oci::LinuxResources { network: Some(Default::default()).into(), ..Default::default() }, FailureKind::Unsupported, "network"),
            (oci::LinuxResources { rdma: rdma.into(), ..Default::default() }, without_rdma, "rdma.mlx5_1"),
            (unified("no.such.file", "1"), FailureKind::Unsupported, "unified.no.such.file"),
            (unified("cgroup.procs", "1"), FailureKind::Invalid, "unified.cgroup.procs"),
            (oci::LinuxResources { pids: Some(oci::LinuxPids { limit: -7, ..Default::default() }).into(), ..Default::default() }, FailureKind::Invalid, "pids.limit"),
        ] {
            guest.refused_as(limited(resources, "true"), kind, field).await;
        }
        let memory = oci::LinuxMemory { limit: 4096, ..Default::default() };
        let impossible = limited(of_memory(memory), "true");
        guest.refused_as(impossible, FailureKind::Invalid, "memory.limit").await;
        assert_eq!(guest.traces().await, before, "nothing is left");
        guest.stop().await;
    }
}
