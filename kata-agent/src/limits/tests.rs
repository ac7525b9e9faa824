use std::fs;

use super::*;

/// The files of a fresh cgroup with every controller, as Linux 6.12 shows them.
const FRESH: [(&str, &str); 15] = [
    ("memory.current", "4194304\n"),
    ("memory.high", "max\n"),
    ("cpu.max.burst", "0\n"),
    ("cpu.idle", "0\n"),
    ("memory.max", "max\n"),
    ("memory.low", "0\n"),
    ("memory.swap.max", "max\n"),
    ("cpu.weight", "100\n"),
    ("cpu.max", "max 100000\n"),
    ("cpuset.cpus", "\n"),
    ("cpuset.mems", "\n"),
    ("pids.max", "max\n"),
    ("io.weight", "default 100\n"),
    ("io.max", "8:16 rbps=max wbps=5 riops=max wiops=max\n"),
    ("hugetlb.2MB.max", "max\n"),
];

fn cgroup() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in FRESH {
        fs::write(dir.path().join(name), text).expect("written");
    }
    dir
}

fn memory(limit: i64, swap: i64) -> oci::LinuxResources {
    let memory = oci::LinuxMemory {
        limit,
        swap,
        ..Default::default()
    };
    oci::LinuxResources {
        memory: Some(memory).into(),
        ..Default::default()
    }
}

fn cpu(quota: i64, period: u64) -> oci::LinuxResources {
    let cpu = oci::LinuxCPU {
        quota,
        period,
        ..Default::default()
    };
    oci::LinuxResources {
        cpu: Some(cpu).into(),
        ..Default::default()
    }
}

fn throttle(major: i64, minor: i64, rate: u64) -> oci::LinuxThrottleDevice {
    oci::LinuxThrottleDevice {
        major,
        minor,
        rate,
        ..Default::default()
    }
}

fn apply(cgroup: &tempfile::TempDir, resources: &oci::LinuxResources) -> Result<(), Failed> {
    Limits::of(resources)?.apply(cgroup.path())
}

fn said(cgroup: &tempfile::TempDir, file: &str) -> String {
    fs::read_to_string(cgroup.path().join(file)).expect("a file")
}

#[track_caller]
fn refused(failed: Result<impl Sized, Failed>, kind: FailureKind, subject: &str) {
    let Err(failed) = failed else {
        panic!("not refused: {subject}")
    };
    assert_eq!(failed.kind, kind, "{failed}");
    assert!(failed.subject.starts_with(subject), "{failed}");
}

#[test]
fn every_field_reaches_its_file() {
    let dir = cgroup();
    let weight = oci::LinuxWeightDevice {
        major: 8,
        weight: 1000,
        ..Default::default()
    };
    let resources = oci::LinuxResources {
        memory: Some(oci::LinuxMemory {
            limit: 1 << 20,
            reservation: 1 << 19,
            swap: 3 << 20,
            ..Default::default()
        })
        .into(),
        cpu: Some(oci::LinuxCPU {
            shares: 2048,
            quota: 50_000,
            period: 200_000,
            cpus: "0-1,3".into(),
            mems: "0".into(),
            ..Default::default()
        })
        .into(),
        pids: Some(oci::LinuxPids {
            limit: 32,
            ..Default::default()
        })
        .into(),
        block_io: Some(oci::LinuxBlockIO {
            weight_device: vec![weight],
            throttle_read_bps_device: vec![throttle(8, 16, 7)],
            ..Default::default()
        })
        .into(),
        hugepage_limits: vec![oci::LinuxHugepageLimit {
            pagesize: "2MB".into(),
            limit: 4 << 20,
            ..Default::default()
        }],
        ..Default::default()
    };
    apply(&dir, &resources).expect("applied");
    let expected = [
        ("memory.max", "1048576"),
        ("memory.low", "524288"),
        ("memory.swap.max", "2097152"),
        ("cpu.weight", "174"),
        ("cpu.max", "50000 200000"),
        ("cpuset.cpus", "0-1,3"),
        ("cpuset.mems", "0"),
        ("pids.max", "32"),
        ("io.weight", "8:0 10000"),
        ("io.max", "8:16 rbps=7"),
        ("hugetlb.2MB.max", "4194304"),
    ];
    for (file, text) in expected {
        assert_eq!(said(&dir, file), text, "{file}");
    }
}

#[test]
fn shares_and_weights_keep_their_ends_and_defaults() {
    for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    let dir = cgroup();
    let io = |weight| oci::LinuxResources {
        block_io: Some(oci::LinuxBlockIO {
            weight,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    for (given, written) in [(10, "default 1"), (1000, "default 10000")] {
        apply(&dir, &io(given)).expect("applied");
        assert_eq!(said(&dir, "io.weight"), written);
    }
    fs::write(dir.path().join("io.bfq.weight"), "default 100\n").expect("written");
    apply(&dir, &io(500)).expect("applied");
    assert_eq!(said(&dir, "io.bfq.weight"), "default 500");
}

#[test]
fn what_a_request_does_not_name_stays() {
    let dir = cgroup();
    apply(&dir, &cpu(20_000, 0)).expect("applied");
    assert_eq!(said(&dir, "cpu.max"), "20000 100000");
    apply(&dir, &cpu(0, 50_000)).expect("applied");
    assert_eq!(said(&dir, "cpu.max"), "20000 50000");
    apply(&dir, &cpu(-1, 0)).expect("applied");
    assert_eq!(said(&dir, "cpu.max"), "max 50000");
    apply(&dir, &oci::LinuxResources::default()).expect("applied");
    assert_eq!(said(&dir, "memory.max"), "max\n");
}

#[test]
fn swap_is_what_is_left_above_the_memory_that_is_set() {
    let dir = cgroup();
    apply(&dir, &memory(1000 << 20, 0)).expect("applied");
    assert_eq!(said(&dir, "memory.swap.max"), "max\n");
    apply(&dir, &memory(0, 1500 << 20)).expect("applied");
    assert_eq!(said(&dir, "memory.swap.max"), (500 << 20).to_string());
    apply(&dir, &memory(0, -1)).expect("applied");
    assert_eq!(said(&dir, "memory.swap.max"), "max");
    refused(
        apply(&dir, &memory(0, 999 << 20)),
        FailureKind::Invalid,
        "memory.swap",
    );
    apply(&dir, &memory(-1, 0)).expect("applied");
    refused(
        apply(&dir, &memory(0, 1500 << 20)),
        FailureKind::Invalid,
        "memory.swap",
    );
    refused(
        apply(&dir, &memory(2 << 20, 1 << 20)),
        FailureKind::Invalid,
        "memory.swap",
    );
}

#[test]
fn a_kernel_without_swap_is_only_asked_for_what_holds_already() {
    let dir = cgroup();
    fs::remove_file(dir.path().join("memory.swap.max")).expect("removed");
    for swap in [-1, 1000 << 20] {
        apply(&dir, &memory(1000 << 20, swap)).expect("applied");
    }
    refused(
        apply(&dir, &memory(1000 << 20, 1500 << 20)),
        FailureKind::Unsupported,
        "memory.swap",
    );
}

#[test]
fn a_file_that_is_not_there_is_refused_by_its_field_before_anything_is_written() {
    let dir = cgroup();
    fs::remove_file(dir.path().join("pids.max")).expect("removed");
    let mut resources = memory(1000 << 20, 0);
    resources.pids = Some(oci::LinuxPids {
        limit: 3,
        ..Default::default()
    })
    .into();
    refused(
        apply(&dir, &resources),
        FailureKind::Unsupported,
        "pids.limit: the kernel has no pids.max",
    );
    assert_eq!(said(&dir, "memory.max"), "max\n");
}

#[test]
fn what_was_written_is_put_back_when_a_later_write_fails() {
    let dir = cgroup();
    // The last file that is written cannot be: it can be read, but is /proc's.
    let last = dir.path().join("hugetlb.2MB.max");
    fs::remove_file(&last).expect("removed");
    std::os::unix::fs::symlink("/proc/version", &last).expect("linked");
    let mut resources = cpu(20_000, 0);
    resources.block_io = Some(oci::LinuxBlockIO {
        weight: 10,
        throttle_read_bps_device: vec![throttle(8, 0, 7), throttle(8, 16, 9)],
        ..Default::default()
    })
    .into();
    resources.hugepage_limits = vec![oci::LinuxHugepageLimit {
        pagesize: "2MB".into(),
        limit: 1,
        ..Default::default()
    }];
    refused(
        apply(&dir, &resources),
        FailureKind::Container,
        "hugepage_limits.2MB: hugetlb.2MB.max does not take \"1\"",
    );
    assert_eq!(said(&dir, "cpu.max"), "max 100000");
    assert_eq!(said(&dir, "io.weight"), "default 100");
    assert_eq!(
        said(&dir, "io.max"),
        "8:0 rbps=max wbps=max riops=max wiops=max",
        "the last that is undone is the first that was done"
    );
}

#[test]
fn a_rate_of_nothing_takes_the_limit_away() {
    let dir = cgroup();
    let resources = oci::LinuxResources {
        block_io: Some(oci::LinuxBlockIO {
            throttle_write_iops_device: vec![throttle(8, 16, 0)],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    apply(&dir, &resources).expect("applied");
    assert_eq!(said(&dir, "io.max"), "8:16 wiops=max");
}

#[test]
fn what_version_2_does_not_know_is_unsupported_by_its_field() {
    let memory = |memory: oci::LinuxMemory| oci::LinuxResources {
        memory: Some(memory).into(),
        ..Default::default()
    };
    let cases = [
        (
            memory(oci::LinuxMemory {
                swappiness: 1,
                ..Default::default()
            }),
            "memory.swappiness",
        ),
        (
            memory(oci::LinuxMemory {
                disable_oom_killer: true,
                ..Default::default()
            }),
            "memory.disable_oom_killer",
        ),
        (
            memory(oci::LinuxMemory {
                kernel: 1,
                ..Default::default()
            }),
            "memory.kernel",
        ),
        (
            oci::LinuxResources {
                cpu: Some(oci::LinuxCPU {
                    realtime_period: 1,
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            },
            "cpu.realtime_period",
        ),
        (
            oci::LinuxResources {
                network: Some(Default::default()).into(),
                ..Default::default()
            },
            "network",
        ),
        (
            oci::LinuxResources {
                block_io: Some(oci::LinuxBlockIO {
                    leaf_weight: 10,
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            },
            "block_io.leaf_weight",
        ),
    ];
    for (resources, field) in cases {
        refused(Limits::of(&resources), FailureKind::Unsupported, field);
    }
}

#[test]
fn a_value_without_meaning_is_invalid_by_its_field() {
    let list = |cpus: &str| oci::LinuxResources {
        cpu: Some(oci::LinuxCPU {
            cpus: cpus.into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let pages = |pagesize: &str| oci::LinuxResources {
        hugepage_limits: vec![oci::LinuxHugepageLimit {
            pagesize: pagesize.into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let cases = [
        (memory(-2, 0), "memory.limit"),
        (memory(0, -2), "memory.swap"),
        (cpu(999, 0), "cpu.quota"),
        (cpu(-2, 0), "cpu.quota"),
        (cpu(0, 999), "cpu.period"),
        (cpu(0, 1_000_001), "cpu.period"),
        (list("1-"), "cpu.cpus"),
        (list("3-1"), "cpu.cpus"),
        (list("a"), "cpu.cpus"),
        (pages("2"), "hugepage_limits"),
        (pages("../2MB"), "hugepage_limits"),
        (pages("MB"), "hugepage_limits"),
    ];
    for (resources, field) in cases {
        refused(Limits::of(&resources), FailureKind::Invalid, field);
    }
    let io = |io: oci::LinuxBlockIO| oci::LinuxResources {
        block_io: Some(io).into(),
        ..Default::default()
    };
    let weight = io(oci::LinuxBlockIO {
        weight: 9,
        ..Default::default()
    });
    refused(Limits::of(&weight), FailureKind::Invalid, "block_io.weight: 9");
    let device = io(oci::LinuxBlockIO {
        throttle_read_bps_device: vec![throttle(-1, 0, 1)],
        ..Default::default()
    });
    refused(
        Limits::of(&device),
        FailureKind::Invalid,
        "block_io.throttle_read_bps_device: device -1:0",
    );
}

fn written(cgroup: &tempfile::TempDir, file: &str) -> String {
    fs::read_to_string(cgroup.path().join(file)).expect("read")
}

#[test]
fn what_newer_specifications_have_is_written() {
    let cgroup = cgroup();
    let cpu = oci::LinuxCPU {
        quota: 5000,
        burst: Some(5000),
        idle: Some(1),
        ..Default::default()
    };
    let resources = oci::LinuxResources {
        cpu: Some(cpu).into(),
        unified: [
            ("memory.high".into(), "4096".into()),
            ("io.max".into(), "8:0 rbps=1\n8:16 rbps=2\n".into()),
        ]
        .into(),
        ..Default::default()
    };
    Limits::of(&resources)
        .expect("limits")
        .apply(cgroup.path())
        .expect("applied");
    let files = ["cpu.max.burst", "cpu.idle", "memory.high", "io.max"].map(|file| written(&cgroup, file));
    assert_eq!(
        files,
        ["5000", "1", "4096", "8:16 rbps=2"],
        "a file of the test keeps the last line"
    );
}

#[test]
fn a_limit_below_what_is_in_use_can_be_refused() {
    let cgroup = cgroup();
    let limit = |limit, check_before_update| {
        let mut resources = memory(limit, 0);
        resources.memory.mut_or_insert_default().check_before_update = check_before_update;
        Limits::of(&resources).expect("limits").apply(cgroup.path())
    };
    let failed = limit((4 << 20) - 1, true).expect_err("in use");
    assert_eq!(failed.kind, FailureKind::Invalid);
    assert!(
        failed.subject.starts_with("memory.check_before_update: 4194304"),
        "{failed}"
    );
    assert_eq!(written(&cgroup, "memory.max"), "max\n");
    assert_eq!((limit(4 << 20, true), limit(2 << 20, false)), (Ok(()), Ok(())));
}

#[test]
fn a_limit_that_no_process_fits_into_is_refused() {
    let failed = Limits::of(&memory(4096, 0)).expect_err("too little");
    assert_eq!(failed.kind, FailureKind::Invalid);
    assert!(
        failed
            .subject
            .starts_with("memory.limit: no process fits into 4096 bytes"),
        "{failed}"
    );
    assert!(Limits::of(&memory(1 << 20, 0)).is_ok() && Limits::of(&memory(-1, 0)).is_ok());
}

#[test]
fn what_is_no_limit_or_has_no_file_is_refused_by_name() {
    let unified = |name: &str| oci::LinuxResources {
        unified: [(name.to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    for name in ["cgroup.procs", "../x.y", "a/b.c", ".", "memory"] {
        let failed = Limits::of(&unified(name)).expect_err("no limit");
        assert_eq!(failed.kind, FailureKind::Invalid, "{name}");
        assert!(failed.subject.starts_with(&format!("unified.{name}")), "{failed}");
    }
    let rdma = oci::LinuxResources {
        rdma: [("mlx4_0".into(), Default::default())].into(),
        ..Default::default()
    };
    for (resources, field) in [
        (unified("memory.nosuch"), "unified.memory.nosuch"),
        (rdma, "rdma.mlx4_0"),
    ] {
        let failed = Limits::of(&resources)
            .expect("limits")
            .apply(cgroup().path())
            .expect_err("no file");
        assert_eq!(failed.kind, FailureKind::Unsupported);
        assert!(failed.subject.starts_with(field), "{failed}");
    }
    let flat = oci::LinuxMemory {
        use_hierarchy: Some(false),
        ..Default::default()
    };
    let resources = oci::LinuxResources {
        memory: Some(flat).into(),
        ..Default::default()
    };
    let failed = Limits::of(&resources).expect_err("no such cgroups");
    assert!(failed.subject.starts_with("memory.use_hierarchy"), "{failed}");
    let mut resources = cpu(1000, 0);
    resources.cpu.mut_or_insert_default().burst = Some(1001);
    let failed = Limits::of(&resources).expect_err("more than the quota");
    assert!(failed.subject.starts_with("cpu.burst"), "{failed}");
}
