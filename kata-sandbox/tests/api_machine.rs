//! The agent's methods for the guest's machine: processors and memory that come later, swap, modules of the kernel.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod bed;

use api::client;
use api::inside::Inside;
use bed::Bed;
use kata_agent_proto::agent::{
    AddSwapPathRequest, CreateSandboxRequest, GuestDetailsRequest, KernelModule, MemHotplugByProbeRequest,
    OnlineCPUMemRequest,
};
use kata_agent_proto::{CallError, Client, FailureKind};
use kata_sandbox::Sandbox;

fn failed(kind: FailureKind, subject: &str) -> CallError {
    let subject = subject.to_owned();
    CallError::Failed { kind, subject }
}

async fn online(client: &Client, wait: bool, nb_cpus: u32) -> Result<(), CallError> {
    let request = OnlineCPUMemRequest {
        wait,
        nb_cpus,
        cpu_only: true,
        ..Default::default()
    };
    client.online_cpu_mem(request).await
}

/// Loads modules as the making of a sandbox does, for one that is made already.
async fn load(client: &Client, modules: &[&str]) -> CallError {
    let module = |name: &&str| KernelModule {
        name: (*name).into(),
        ..Default::default()
    };
    let request = CreateSandboxRequest {
        kernel_modules: modules.iter().map(module).collect(),
        ..Default::default()
    };
    client.create_sandbox(request).await.unwrap_err()
}

/// Takes the driver of a device out of the kernel, once the agent has loaded it where there is one: it is the last of
/// those that are loaded by themselves.
const UNLOADS: &str = r#"
    if (grep { /^acpi:QEMU0001:/ } map { open my $file, "<", $_; <$file> // () } glob "/sys/bus/acpi/devices/*/modalias") {
        select undef, undef, undef, 0.02 until -e "/sys/module/pvpanic_mmio";
    }
    for ("pvpanic_mmio", "pvpanic") {
        my $name = $_;
        check("removal of $name", syscall 176, $name, 0) if -e "/sys/module/$name";
    }"#;

/// Modules are loaded from the guest's files, in the order of the request, by either name.
async fn loaded(client: &Client, inside: &mut Inside<'_>) {
    inside.perl(UNLOADS).await;
    let there = r#"sed -n "s/^\(pvpanic[^ ]*\) .*/\1/p" /proc/modules"#;
    assert_eq!(inside.done(there).await, "");
    // The one needs the other.
    let early = load(client, &["pvpanic-mmio"]).await;
    assert_eq!(early.kind(), Some(FailureKind::Guest), "{early}");
    assert!(
        early.to_string().contains("kernel module pvpanic-mmio: "),
        "{early}"
    );
    let both = load(client, &["pvpanic", "pvpanic-mmio"]).await;
    assert_eq!(
        both.kind(),
        Some(FailureKind::AlreadyExists),
        "the sandbox: {both}"
    );
    assert_eq!(inside.done(there).await, "pvpanic_mmio\npvpanic");
    // What is loaded stays as it is.
    assert_eq!(
        load(client, &["pvpanic_mmio"]).await.kind(),
        Some(FailureKind::AlreadyExists)
    );
}

on_every_backend! {
    /// Conformance: api OnlineCPUMem
    async fn processors_that_are_off_are_brought_online(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle().vcpus(3)).await.unwrap();
        let client = client(&sandbox).await;
        if !bed.has_guest() {
            // Nothing of the host's is off, and no more will come.
            online(&client, true, 0).await.unwrap();
            let hosts = "bringing the host's own processors and memory online";
            assert_eq!(online(&client, true, 1).await, Err(failed(FailureKind::Unsupported, hosts)));
            sandbox.stop().await.unwrap();
            return;
        }
        let mut inside = Inside::new(&client).await;
        let state = "cat /sys/devices/system/cpu/online";
        let off = "for n in 1 2; do echo 0 > /sys/devices/system/cpu/cpu$n/online; done";
        assert_eq!(inside.done(state).await, "0-2");
        // So many as are asked for, and in two requests those of both.
        inside.done(off).await;
        assert_eq!(inside.done(state).await, "0");
        online(&client, true, 1).await.unwrap();
        assert_eq!(inside.done(state).await, "0-1");
        online(&client, false, 2).await.unwrap();
        assert_eq!(inside.done(state).await, "0-2");
        // All that there are.
        inside.done(off).await;
        online(&client, true, 0).await.unwrap();
        assert_eq!(inside.done(state).await, "0-2");
        assert_eq!(inside.done("taskset -c 2 nproc; nproc").await, "1\n3", "work is done on them");
        // More than there are are waited for, and then it is said how many came.
        inside.done(off).await;
        let few = failed(FailureKind::Guest, "2 of 3 processors appeared");
        assert_eq!(online(&client, true, 3).await, Err(few));
        assert_eq!(inside.done(state).await, "0-2");
        let none = failed(FailureKind::Guest, "0 of 1 processors appeared");
        assert_eq!(online(&client, true, 1).await, Err(none));
        sandbox.stop().await.unwrap();
    }

    /// Conformance: api AddSwapPath
    async fn swap_is_used_from_the_call_on(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        let add = async |path: &str| {
            let request = AddSwapPathRequest {
                path: path.into(),
                ..Default::default()
            };
            client.add_swap_path(request).await
        };
        if !bed.has_guest() {
            let hosts = failed(FailureKind::Unsupported, "swap: it would be the host's");
            assert_eq!(add("/dev/loop0").await, Err(hosts));
            sandbox.stop().await.unwrap();
            return;
        }
        let mut inside = Inside::new(&client).await;
        let swaps = "tail -n +2 /proc/swaps; grep ^SwapTotal /proc/meminfo | tr -d ' '";
        assert_eq!(inside.done(swaps).await, "SwapTotal:0kB");
        let disk = inside.disk("/swapped", 16 << 20).await;
        let not_swap = failed(FailureKind::Guest, &format!("{disk}: Invalid argument (os error 22)"));
        assert_eq!(add(&disk).await, Err(not_swap), "no swap area");
        inside.done(&format!("mkswap {disk}")).await;
        add(&disk).await.unwrap();
        // But for the page that says what it is.
        let kib = (16 << 10) - 4;
        let seen = inside.done(&format!("{{ {swaps}; }} | tr -s '[:space:]' ' '")).await;
        assert!(seen.starts_with(&format!("{disk} partition {kib} 0 -")), "{seen}");
        assert!(seen.ends_with(&format!("SwapTotal:{kib}kB")), "{seen}");
        let twice = failed(FailureKind::Guest, &format!("{disk}: Device or resource busy (os error 16)"));
        assert_eq!(add(&disk).await, Err(twice));
        inside.done(&format!("swapoff {disk}")).await;
        assert_eq!(inside.done(swaps).await, "SwapTotal:0kB");
        let missing = failed(FailureKind::Guest, "/dev/none: No such file or directory (os error 2)");
        assert_eq!(add("/dev/none").await, Err(missing));
        sandbox.stop().await.unwrap();
    }

    /// Conformance: api MemHotplugByProbe
    /// Conformance: api GetGuestDetails
    async fn memory_by_probe_is_refused_where_nothing_can_be_told_of_it(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        let request = GuestDetailsRequest {
            mem_hotplug_probe: true,
            mem_block_size: true,
            ..Default::default()
        };
        let details = client.get_guest_details(request).await.unwrap();
        assert_eq!(details.agent_details.init_daemon, bed.has_guest());
        assert_eq!(details.agent_details.storage_handlers, ["blk", "ephemeral", "overlayfs"]);
        let refused = match bed.has_guest() {
            // No guest kernel here is configured to have it: it is for tests of kernels.
            true => {
                assert!(!details.support_mem_hotplug_probe);
                "memory by probe: the kernel has no such file"
            }
            false => "memory by probe: it would be the host's",
        };
        let block = details.mem_block_size_bytes;
        let probe = MemHotplugByProbeRequest {
            mem_hotplug_probe_addr: vec![1 << 40],
            ..Default::default()
        };
        assert_eq!(
            client.mem_hotplug_by_probe(probe).await,
            Err(failed(FailureKind::Unsupported, refused))
        );
        if bed.has_guest() {
            let mut inside = Inside::new(&client).await;
            let text = inside.done("cat /sys/devices/system/memory/block_size_bytes").await;
            assert_eq!(u64::from_str_radix(&text, 16), Ok(block));
        }
        sandbox.stop().await.unwrap();
    }

    /// Conformance: api CreateSandbox
    async fn modules_of_the_kernel_are_loaded_or_refused_by_name(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        assert_eq!(load(&client, &[]).await.kind(), Some(FailureKind::AlreadyExists));
        for name in ["../evil", "", "a b"] {
            let wrong = failed(FailureKind::Invalid, &format!("kernel module {name:?}"));
            assert_eq!(load(&client, &[name]).await, wrong);
        }
        let missing = match bed.has_guest() {
            true => "the guest has no kernel module no_such",
            false => "kernel module no_such: it would be the host's",
        };
        assert_eq!(load(&client, &["no_such"]).await, failed(FailureKind::Unsupported, missing));
        if bed.has_guest() {
            let mut inside = Inside::new(&client).await;
            match inside.script("test -e /proc/modules").await.0 {
                0 => loaded(&client, &mut inside).await,
                // A part of the kernel is there, whatever it is called.
                _ => assert_eq!(load(&client, &["overlay"]).await.kind(), Some(FailureKind::AlreadyExists)),
            }
        }
        sandbox.stop().await.unwrap();
    }
}
