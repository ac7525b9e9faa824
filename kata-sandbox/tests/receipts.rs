//! What processes and containers used.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::time::{Duration, SystemTime};

use bed::{Bed, script, sh};
use kata_sandbox::Sandbox;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Some work for a processor.
const WORK: &str = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done";

on_every_backend! {
    /// Conformance: api Receipt
    async fn a_receipt_tells_what_a_process_used(bed: Bed) {
        let sandbox = Sandbox::boot(bed.shell(&format!("{WORK}; cat; exit 3")).stdin_piped()).await.unwrap();
        let mut init = sandbox.spawn().await.unwrap();

        // An exec: streams, status, times; it and those that it waited for, and not those that it left.
        let before = SystemTime::now();
        let mut process = sandbox.exec(sh(&format!("({WORK}); cat; echo err >&2; exit 5")).stdin_piped()).await.unwrap();
        let mut stdin = process.stdin.take().unwrap();
        stdin.write_all(b"twelve bytes").await.unwrap();
        drop(stdin);
        let mut out = String::new();
        process.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
        process.stderr.take().unwrap().read_to_string(&mut String::new()).await.unwrap();
        let receipt = process.receipt().await.unwrap();
        assert_eq!((receipt.status.code(), out.as_str()), (5, "twelve bytes"));
        assert_eq!((receipt.stdin_bytes, receipt.stdout_bytes, receipt.stderr_bytes), (12, 12, 4));
        assert!(receipt.cpu_time() > Duration::from_millis(1), "{receipt:?}");
        assert!(receipt.wall >= receipt.cpu_user, "{receipt:?}");
        assert!(receipt.memory_peak_bytes > 256 << 10, "{receipt:?}");
        assert_eq!(receipt.container, None);
        let started = receipt.started.duration_since(before - Duration::from_secs(60)).unwrap();
        assert!(started < Duration::from_secs(300), "the guest's clock is ours: {receipt:?}");
        assert_eq!(process.receipt().await.unwrap(), receipt, "the same for everybody");

        // What is collected has it too.
        let output = script(&sandbox, &format!("{WORK}; head -c 100000 /dev/zero")).await;
        let receipt = output.receipt.unwrap();
        assert_eq!(receipt.stdout_bytes, 100_000);
        assert_eq!(output.usage.cpu_time, Some(receipt.cpu_time()));
        assert!(receipt.cpu_time() > Duration::from_millis(1), "{receipt:?}");
        let killed = sandbox.exec(sh("kill -9 $$")).await.unwrap().receipt().await.unwrap();
        assert_eq!(killed.status.code(), 137);

        // The container's own: with everything in it.
        drop(init.stdin.take());
        let whole = init.receipt().await.unwrap();
        assert_eq!(whole.status.code(), 3);
        let container = whole.container.unwrap();
        assert!(container.cpu_user + container.cpu_system >= receipt.cpu_user, "{whole:?}");
        if bed.has_guest() {
            assert!(container.memory_peak_bytes.unwrap() > 1 << 20, "{whole:?}");
        }
    }

    async fn memory_is_the_largest_of_a_process_and_its_children(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        // 32 MiB in a child that is waited for.
        let script = "sh -c 'x=$(head -c 16777216 /dev/zero | tr \"\\0\" x); : ${#x}'; true";
        let receipt = sandbox.exec(sh(script)).await.unwrap().receipt().await.unwrap();
        assert!(receipt.memory_peak_bytes > 16 << 20, "{receipt:?}");
        let small = sandbox.exec(sh("true")).await.unwrap().receipt().await.unwrap();
        assert!(small.memory_peak_bytes < 16 << 20, "{small:?}");
    }
}
