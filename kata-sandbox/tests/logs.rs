//! What a guest logs, and when it was how far.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::time::Duration;

use bed::{Bed, script};
use kata_sandbox::Sandbox;
use kata_sandbox::report::{Log, Logs, Stage};

/// Reads until something is found.
async fn find(logs: &mut Logs, what: &str, is_it: impl Fn(&Log) -> bool) -> Log {
    let deadline = Duration::from_secs(60) * bed::patience();
    let found = tokio::time::timeout(deadline, async {
        loop {
            let log = logs
                .next()
                .await
                .unwrap_or_else(|| panic!("they end without {what}"));
            if is_it(&log) {
                return log;
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("never logged: {what}"))
}

on_every_backend! {
    /// Conformance: api KernelLog
    async fn the_kernels_log_comes_from_its_beginning_and_goes_on(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut logs = sandbox.logs().await.unwrap();
        if bed.has_guest() {
            let kernel = |text: &'static str| move |log: &Log| matches!(log, Log::Kernel(record) if record.text.contains(text));
            let Log::Kernel(first) = find(&mut logs, "the kernel's version", kernel("Linux version")).await else { return };
            assert!(first.since_boot < Duration::from_secs(5) && first.facility == 0, "{first:?}");
            assert!(first.text.contains(&sandbox.info().kernel_release), "{first:?}");
            // What happens now comes now, to each that listens: a program dies, and the kernel says so.
            let mut second = sandbox.logs().await.unwrap();
            let oom = "dd if=/dev/zero of=/dev/null bs=1G count=1 2>/dev/null || true; echo done";
            script(&sandbox, oom).await;
            for logs in [&mut logs, &mut second] {
                let Log::Kernel(later) = find(logs, "a record of later", |log| {
                    matches!(log, Log::Kernel(record) if record.sequence > first.sequence + 5)
                })
                .await
                else {
                    return;
                };
                assert!(later.since_boot >= first.since_boot, "{later:?}");
            }
        }
        sandbox.stop().await.unwrap();
        while let Some(log) = logs.next().await {
            assert!(!log.to_string().contains('\x1b'));
        }
        assert!(sandbox.logs().await.unwrap_err().is_sandbox_lost());
    }

    async fn every_stage_of_a_boot_is_stamped_in_order(bed: Bed) {
        let output = Sandbox::run(bed.shell("echo out")).await.unwrap();
        let mut stages = vec![
            Stage::Image, Stage::Plan, Stage::Prepare, Stage::Launch, Stage::Machine, Stage::Agent, Stage::Connect,
            Stage::Create, Stage::Start, Stage::FirstOutput, Stage::Exit, Stage::Stop,
        ];
        if bed.has_guest() {
            stages.splice(5..5, [Stage::Kernel, Stage::Modules, Stage::Mounts]);
        }
        let told: Vec<Stage> = output.timings.iter().map(|(stage, _)| stage).collect();
        assert_eq!(told, stages);
        let table = output.timings.to_string();
        assert_eq!(table.lines().count(), stages.len());
        assert!(!bed.has_guest() || table.contains("guest mounts"), "{table}");
    }
}
