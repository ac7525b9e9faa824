//! Limits of containers, and what is told when they are reached: `docs/conformance.md`, behaviours 14 to 16.
//!
//! Limits need cgroup v2, which a guest has; the host of a sandbox that is a process may not, and then the agent says
//! so by the name of the limit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use bed::{Bed, eventually, script, script_in, sh, text};
use kata_sandbox::process::Limits;
use kata_sandbox::report::Event;
use kata_sandbox::{ContainerHandle, ErrorKind, MiB, Sandbox};

/// Takes more memory than any limit here in one call of the system: a program that goes on in between would be read from
/// its disk again and again before the kernel says that there is no memory.
const HOG: &str = "exec dd if=/dev/zero of=/dev/null bs=100M count=1";

/// Takes as much and keeps it. Two of them are more than a guest has.
const KEEPS: &str = "dd if=/dev/zero bs=100M count=1 | sleep 1000";

/// An idle container with limits. Where the agent says by the field of the first of them that its host has no such limit,
/// that is what can be seen, and there is none.
async fn limited(
    bed: &Bed,
    sandbox: &Sandbox,
    name: &str,
    (first, limits): (&str, Limits),
) -> Option<ContainerHandle> {
    match sandbox
        .create_container(bed.member(name).idle().limits(limits))
        .await
    {
        Ok(container) => Some(container),
        Err(error) => {
            assert!(!bed.has_guest(), "{error}");
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            let refusal = format!("{first}: the kernel has no ");
            assert!(error.to_string().contains(&refusal), "{error}");
            bed.cannot_tell("this host has version 1 of control groups, and refuses the limit by its name");
            None
        }
    }
}

async fn next_kill(events: &mut kata_sandbox::report::Events) -> String {
    loop {
        match events.next().await.unwrap() {
            Event::OutOfMemory { container } => return container,
            Event::SandboxEnded { message, .. } => panic!("{message}"),
            _ => {}
        }
    }
}

on_every_backend! {
    /// Conformance: semantics 14
    /// Conformance: semantics 16
    /// Conformance: api GetOOMEvent
    /// Conformance: oci linux.resources.memory
    async fn every_kill_for_want_of_memory_is_told_by_the_containers_name(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let limits = || ("memory.limit", Limits::new().memory(MiB(24)));
        let Some(one) = limited(&bed, &sandbox, "one", limits()).await else { return };
        let Some(two) = limited(&bed, &sandbox, "two", limits()).await else { return };
        assert_eq!(script_in(&one, HOG).await.status.code(), 137, "before anybody listens");
        let (mut events, mut others) = (sandbox.events(), sandbox.events());
        for container in [&two, &one, &one] {
            assert_eq!(script_in(container, HOG).await.status.code(), 137);
        }
        for events in [&mut events, &mut others] {
            let mut told = Vec::new();
            for _ in 0..4 {
                told.push(next_kill(events).await);
            }
            told.sort();
            assert_eq!(told, ["one", "one", "one", "two"], "each of them, by everybody");
        }
        assert!(one.stats().await.unwrap().memory_limit_bytes == Some(24 << 20));
        // Without a limit it is the guest's memory that ends, and the kill is told all the same.
        let _both = (sandbox.exec(sh(KEEPS)).await.unwrap(), sandbox.exec(sh(KEEPS)).await.unwrap());
        assert_eq!(next_kill(&mut events).await, "main");
        assert_eq!(text(&script_in(&two, "echo goes on").await), "goes on");
        sandbox.stop().await.unwrap();
    }

    /// Conformance: semantics 16
    /// Conformance: oci linux.resources.pids
    async fn a_fork_bomb_is_held_by_its_limit_and_ends_with_its_container(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let Some(bombed) = limited(&bed, &sandbox, "bombed", ("pids.limit", Limits::new().pids(50))).await else { return };
        let mut bomb = bombed.exec(sh("bomb() { bomb & bomb & wait; }; bomb")).await.unwrap();
        drop((bomb.stdout.take(), bomb.stderr.take()));
        eventually("the limit is reached", async || bombed.stats().await.unwrap().processes >= 49).await;
        let stats = bombed.stats().await.unwrap();
        assert!(stats.processes <= 50 && stats.processes_limit == Some(50), "{stats:?}");
        assert_eq!(text(&script(&sandbox, "echo goes on").await), "goes on");
        bombed.kill().await.unwrap();
        assert_eq!((bomb.wait().await.unwrap().code(), bombed.wait().await.unwrap().code()), (137, 137));
        bombed.remove().await.unwrap();
        sandbox.stop().await.unwrap();
    }

    /// Conformance: semantics 16
    async fn a_full_disk_is_an_error_of_who_writes(bed: Bed) {
        if !bed.has_guest() {
            return bed.cannot_tell("what it would fill is this machine's memory");
        }
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let full = script(&sandbox, "cat /dev/zero >/full; s=$?; rm /full; exit $s").await;
        assert!(!full.status.success());
        assert!(String::from_utf8_lossy(&full.stderr).contains("No space left on device"));
        assert_eq!(text(&script(&sandbox, "echo kept >/file; cat /file").await), "kept");
        sandbox.stop().await.unwrap();
    }

    /// Conformance: semantics 15
    /// Conformance: api UpdateContainer
    /// Conformance: oci linux.resources.cpu
    /// Conformance: oci linux.resources.memory
    async fn limits_reach_the_guests_cgroup_and_can_be_changed(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let limits = Limits::new()
            .cpus(0.5)
            .cpu_shares(512)
            .memory(MiB(32))
            .memory_reservation(MiB(16))
            .pids(40);
        let Some(limited) = limited(&bed, &sandbox, "limited", ("memory.limit", limits)).await else { return };
        let read = "cd /sys/fs/cgroup; cat cpu.max cpu.weight memory.max memory.low pids.max";
        let output = script_in(&limited, read).await;
        assert_eq!(text(&output), "50000 100000\n59\n33554432\n16777216\n40", "{output:?}");
        limited.update(Limits::new().pids(60).memory(MiB(64))).await.unwrap();
        assert_eq!(text(&script_in(&limited, read).await), "50000 100000\n59\n67108864\n16777216\n60");
        // All or nothing: no processor has this number.
        let error = limited.update(Limits::new().pids(70).cpuset("99")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContainer, "{error}");
        assert!(error.to_string().contains("cpu.cpus"), "{error}");
        assert_eq!(text(&script_in(&limited, "cat /sys/fs/cgroup/pids.max").await), "60");
        let error = limited.update(Limits::new().cpus(99.0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContainer);
        sandbox.stop().await.unwrap();
    }
}
