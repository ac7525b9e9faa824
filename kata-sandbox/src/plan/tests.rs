use kata_vmm::hypervisor::{KvmUnusable, Qemu, QemuUnusable, Reason};

use super::*;
use crate::limits::Limits;

fn host(kvm: Result<(), KvmUnusable>) -> Capabilities {
    Capabilities {
        kvm,
        qemu: Ok(Qemu {
            binary: "/usr/bin/emulator".into(),
        }),
    }
}

fn reject(container: &Container) -> String {
    let error = plan(container, &[Layer::default()], "t", &host(Ok(()))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidContainer);
    error.to_string()
}

#[test]
fn kvm_is_used_where_it_works() {
    let plan = plan(
        &Container::new("/i").args(["true"]),
        &[Layer::default()],
        "t",
        &host(Ok(())),
    )
    .unwrap();
    assert_eq!(plan.selection.reason, Reason::BestAvailable);
    assert_eq!(plan.machine.hypervisor, Hypervisor::Kvm);
    assert_eq!(
        plan.assets,
        [Asset::Kernel, Asset::Initramfs, Asset::Layer, Asset::Kvm]
    );
    assert_eq!(plan.machine.disks[0].image, FdIndex(2));
    assert_eq!(plan.machine.kvm, Some(FdIndex(3)));
}

#[test]
fn every_layer_is_a_disk_and_so_is_what_is_written() {
    let container = Container::new("/i").args(["true"]).disk(MiB(64));
    let plan = plan(
        &container,
        &[Layer::default(), Layer::default()],
        "t",
        &host(Ok(())),
    )
    .unwrap();
    let disks: Vec<_> = plan
        .machine
        .disks
        .iter()
        .map(|disk| (disk.serial.as_str(), disk.read_only))
        .collect();
    assert_eq!(disks, [("layer-0", true), ("layer-1", true), ("writable", false)]);
    assert_eq!(
        plan.assets[2..],
        [
            Asset::Layer,
            Asset::Layer,
            Asset::Writable {
                size: MiB(64),
                name: None
            },
            Asset::Kvm
        ]
    );
    assert_eq!(plan.machine.kvm, Some(FdIndex(5)));
}

#[test]
fn a_hash_tree_is_a_disk_beside_its_layer() {
    let proof = Proof {
        root_hash: [0xab; 32],
        salt: vec![1, 2],
        data_blocks: 700,
    };
    let layers = [Layer { proof: Some(proof) }, Layer::default()];
    let container = Container::new("/i").args(["true"]);
    let planned = plan(&container, &layers, "t", &host(Ok(()))).unwrap();
    let serials: Vec<_> = planned
        .machine
        .disks
        .iter()
        .map(|disk| disk.serial.as_str())
        .collect();
    assert_eq!(serials, ["layer-0", "tree-0", "layer-1"]);
    assert_eq!(
        planned.assets[2..5],
        [Asset::Layer, Asset::HashTree, Asset::Layer]
    );
    assert!(planned.machine.disks.iter().all(|disk| disk.read_only));
    let storages = &planned.container.storages;
    let root = "ab".repeat(32);
    assert_eq!(
        storages[0].driver_options,
        [format!("kata-rs.storage.dm-verity=tree-0 700 {root} 0102")]
    );
    assert!(storages[1].driver_options.is_empty());
    let error = plan(&container.backend(Backend::Process), &layers, "t", &host(Ok(()))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn software_emulation_is_never_silent() {
    let why = KvmUnusable::Permission;
    let plan = plan(
        &Container::new("/i").args(["true"]),
        &[Layer::default()],
        "t",
        &host(Err(why.clone())),
    )
    .unwrap();
    assert_eq!(plan.selection.reason, Reason::NoKvm(why));
}

#[test]
fn a_named_backend_that_cannot_run_is_an_error_that_says_what_to_do() {
    let container = Container::new("/i").args(["true"]).backend(Backend::QemuKvm);
    let error = plan(
        &container,
        &[Layer::default()],
        "t",
        &host(Err(KvmUnusable::Missing)),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let mut chain = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        chain = format!("{chain}: {cause}");
        source = cause.source();
    }
    assert_eq!(
        chain,
        "plan: no backend can run this container: backend QemuKvm cannot run here: /dev/kvm does not \
         exist; load the kvm module or enable virtualization in the firmware"
    );
}

#[test]
fn a_host_without_qemu_is_told_what_to_install() {
    let capabilities = Capabilities {
        kvm: Err(KvmUnusable::Missing),
        qemu: Err(QemuUnusable::NotFound {
            program: "emulator".into(),
        }),
    };
    let error = plan(
        &Container::new("/i").args(["true"]),
        &[Layer::default()],
        "t",
        &capabilities,
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let c = || Container::new("/i").args(["true"]);
    assert_eq!(
        reject(&c().memory(MiB(8))),
        "plan: 8 MiB of memory is too little: a guest needs at least 96"
    );
    assert_eq!(
        reject(&c().stop_signal("SIGNONSENSE")),
        "plan: there is no signal \"SIGNONSENSE\""
    );
    assert_eq!(reject(&c().vcpus(33)), "plan: 33 vCPUs: a machine has 1 to 32");
    assert_eq!(
        reject(&c().cwd("tmp")),
        "plan: working directory \"tmp\" is not an absolute path"
    );
    assert_eq!(
        reject(&c().env("A=B", "c")),
        "plan: environment variable \"A=B\" cannot be set"
    );
    assert_eq!(
        reject(&c().args(["a\0b"])),
        "plan: argument \"a\\0b\" contains a NUL byte"
    );
    assert!(reject(&c().env("A", "x".repeat(200 << 10))).contains("env A: 204802 bytes are too long"));
    assert!(reject(&c().args(vec!["x".repeat(100 << 10); 30])).contains("are too long"));
    let large = r#"{"ociVersion": "1.0.0", "annotations": {"a": ""}}"#
        .replace("\"\"", &format!("\"{}\"", "x".repeat(5 << 20)));
    let large = Container::from_spec("/i", &large).unwrap();
    assert_eq!(
        reject(&large),
        "plan: annotations: 5242881 bytes are too many: the agent takes 4128768 for all of a container"
    );
    assert_eq!(reject(&c().args([""])), "plan: the program has no name");
    assert_eq!(
        reject(&c().timeout(Duration::ZERO)),
        "plan: a timeout of zero leaves no time to run"
    );
    assert!(reject(&c().name("a/b")).starts_with("plan: \"a/b\" cannot be a container's name"));
    assert!(reject(&c().name(".a")).contains("no . in front"));
    assert!(reject(&c().limits(Limits::new().cpus(2.0))).contains("limits.cpus"));
    assert_eq!(
        reject(&c().hostname("")),
        "plan: host name \"\" is not 1 to 64 bytes long"
    );
}

#[test]
fn what_is_the_machines_is_refused_of_a_container_that_joins() {
    let c = || Container::new("/i").args(["true"]).name("web");
    check_member(&c().limits(Limits::new().cpus(1.5)), 2).unwrap();
    for (container, named) in [
        (c().memory(MiB(512)), "memory"),
        (c().vcpus(1), "vcpus"),
        (c().backend(Backend::Kvm), "backend"),
        (c().timeout(Duration::from_secs(1)), "timeout"),
        (c().boot_timeout(Duration::from_secs(1)), "boot_timeout"),
        (c().shared_pid(), "shared_pid"),
        (c().kernel("/k"), "kernel"),
        (c().monitor("/m"), "kernel"),
    ] {
        let error = check_member(&container, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContainer);
        assert!(
            error.to_string().starts_with(&format!("plan: {named}")),
            "{error}"
        );
    }
}

#[test]
fn the_same_question_has_the_same_answer() {
    let container = Container::new("/i")
        .args(["env"])
        .env("A", "1")
        .env("B", "2")
        .user("nobody");
    let one = plan(&container, &[Layer::default()], "t", &host(Ok(()))).unwrap();
    assert_eq!(
        one,
        plan(&container, &[Layer::default()], "t", &host(Ok(()))).unwrap()
    );
}
