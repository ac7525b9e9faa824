//! Lives and deaths of sandboxes: `docs/conformance.md`, behaviours 6, 19, 20 and 23.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use bed::{Bed, alive, all_gone, chain, descendants, executable, sh, text, traces};
use kata_sandbox::{ErrorKind, Sandbox};
use rustix::process::{Pid, Signal, kill_process};

fn kill_9(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

on_every_backend! {
    async fn a_dropped_sandbox_leaves_nothing(bed: Bed) {
        drop(Sandbox::boot(bed.idle()).await.unwrap());
        let before = traces();
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let process = sandbox.exec(sh("sleep 1000")).await.unwrap();
        let pids: Vec<u32> =
            sandbox.info().pids.iter().flat_map(|pid| std::iter::once(*pid).chain(descendants(*pid))).collect();
        assert!(pids.iter().all(|pid| alive(*pid)));
        drop(sandbox);
        all_gone(&pids).await;
        assert_eq!(process.wait().await.unwrap_err().kind(), ErrorKind::Stopped);
        assert_eq!(traces(), before);
    }

    async fn a_stopped_sandbox_leaves_nothing_when_stop_returns(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let monitor = sandbox.info().monitor_pid;
        sandbox.stop().await.unwrap();
        assert!(!alive(monitor));
        sandbox.ended().await.unwrap();
    }

    /// Conformance: semantics 6
    async fn a_boot_that_is_given_up_at_any_moment_leaves_nothing(bed: Bed) {
        let me = std::process::id();
        for ms in [0, 5, 20, 60, 150, 400, 900, 1500] {
            let boot = tokio::time::timeout(Duration::from_millis(ms), Sandbox::boot(bed.idle()));
            drop(boot.await);
            let left: Vec<u32> = descendants(me);
            all_gone(&left).await;
        }
    }

    async fn a_boot_that_takes_too_long_is_an_error_and_leaves_nothing(bed: Bed) {
        if !bed.has_guest() {
            return;
        }
        let container = bed.idle().boot_timeout(Duration::from_millis(300));
        let error = Sandbox::boot(container).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BootTimedOut, "{error}");
        assert!(error.to_string().contains("the sandbox was not ready "), "{error}");
        assert!(error.is_sandbox_lost());
        all_gone(&descendants(std::process::id())).await;
    }

    /// Conformance: semantics 19
    async fn a_monitor_killed_by_9_is_an_error_and_takes_the_machine_along(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let process = sandbox.exec(sh("sleep 1000")).await.unwrap();
        let pids = sandbox.info().pids.clone();
        kill_9(sandbox.info().monitor_pid);
        let error = process.wait().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Monitor, "{error}");
        assert_eq!(error.to_string(), "exit: the monitor was killed by signal 9");
        assert!(error.is_sandbox_lost());
        all_gone(&pids).await;
        assert_eq!(sandbox.exec(sh("true")).await.unwrap_err().kind(), ErrorKind::Monitor);
        assert_eq!(sandbox.ended().await.unwrap_err().kind(), ErrorKind::Monitor);
    }

    /// Conformance: semantics 19
    async fn a_hypervisor_killed_by_9_is_an_error(bed: Bed) {
        if bed.processes() < 2 {
            // The monitor is the hypervisor: `a_monitor_killed_by_9_is_an_error_and_takes_the_machine_along`.
            return;
        }
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let process = sandbox.exec(sh("sleep 1000")).await.unwrap();
        kill_9(*sandbox.info().pids.get(1).unwrap());
        let error = process.wait().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Hypervisor, "{error}");
        assert!(chain(&error).contains("killed by signal 9"), "{}", chain(&error));
    }

    /// Conformance: semantics 19
    async fn a_caller_killed_by_9_leaves_nothing(bed: Bed) {
        drop(Sandbox::boot(bed.idle()).await.unwrap());
        let before = traces();
        let mut holder = bed::holder().arg(&bed.rootfs).arg(bed.name).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert!(pids.len() >= bed.processes(), "the holder did not come up: {line}");
        let pids: Vec<u32> =
            pids.iter().flat_map(|pid| std::iter::once(*pid).chain(descendants(*pid))).collect();
        kill_9(holder.id());
        holder.wait().unwrap();
        all_gone(&pids).await;
        assert_eq!(traces(), before);
    }

    async fn eight_at_once(bed: Bed) {
        let runs = (0..8).map(|i| tokio::spawn(Sandbox::run(bed.shell(&format!("echo {i}; exit {i}")))));
        for (i, run) in runs.collect::<Vec<_>>().into_iter().enumerate() {
            let output = run.await.unwrap().unwrap();
            assert_eq!(text(&output), i.to_string());
            assert_eq!(output.status.code(), i32::try_from(i).unwrap());
        }
    }

    async fn many_execs_at_once(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let outputs = (0..20).map(|i| {
            let process = sandbox.exec(sh(&format!("echo {i}")));
            async move { text(&process.await.unwrap().output().await.unwrap()) }
        });
        let mut seen = BTreeSet::new();
        let mut running: Vec<_> = outputs.map(Box::pin).collect();
        for output in &mut running {
            seen.insert(output.await);
        }
        assert_eq!(seen.len(), 20);
    }

    /// Conformance: semantics 23
    async fn a_monitor_of_another_version_is_one_clear_error(bed: Bed) {
        let directory = tempfile::tempdir().unwrap();
        let monitor = directory.path().join("kata-vmm");
        executable(&monitor, "#!/bin/sh\nprintf '{\"Hello\":{\"protocol\":99,\"version\":\"9.9.9\"}}' >&0\n");
        let error = Sandbox::boot(bed.idle().monitor(&monitor)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::VersionMismatch);
        assert_eq!(
            error.to_string(),
            format!(
                "start machine: the monitor speaks control protocol 99, this library {}; use programs of one version",
                kata_vmm::control::PROTOCOL
            )
        );
    }

    async fn a_monitor_that_dies_at_once_says_what_it_said(bed: Bed) {
        let directory = tempfile::tempdir().unwrap();
        let monitor = directory.path().join("kata-vmm");
        executable(&monitor, "#!/bin/sh\necho 'no can do' >&2\nexit 3\n");
        let error = Sandbox::boot(bed.idle().monitor(&monitor)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Monitor);
        assert_eq!(
            error.to_string(),
            "start machine: the monitor ended with status 3; the monitor says: no can do"
        );
    }
}
