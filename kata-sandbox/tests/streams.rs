//! Standard streams: `docs/conformance.md`, behaviours 9 to 13.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::time::Duration;

use bed::{Bed, eventually, private_memory, script, sh, text};
use kata_sandbox::{Command, Sandbox};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

on_every_backend! {
    /// Conformance: semantics 9
    async fn without_stdin_a_reader_sees_end_of_file(bed: Bed) {
        let output = Sandbox::run(bed.idle().args(["cat"])).await.unwrap();
        assert!(output.status.success());
        assert!(output.stdout.is_empty());
    }

    /// Conformance: semantics 10
    async fn streams_are_pipes_that_can_be_opened_again_also_by_a_user(bed: Bed) {
        let script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin; test -p /dev/stdout";
        let output = Sandbox::run(bed.shell(script).user("nobody").stdin("in\n")).await.unwrap();
        assert_eq!(text(&output), "out\nin", "{:?}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stderr, b"err\n");
        assert!(output.status.success());
    }

    async fn stdin_of_64_mib_arrives_whole(bed: Bed) {
        let input: Vec<u8> = (0..64u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let sum = input.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        let output = Sandbox::run(bed.idle().args(["cat"]).stdin(input)).await.unwrap();
        assert_eq!(output.stdout.len(), 64 << 20);
        assert_eq!(output.stdout.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte))), sum);
    }

    /// Conformance: semantics 12
    async fn a_container_that_does_not_read_slows_the_writer_down(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut process = sandbox.exec(sh("until test -e /tmp/go; do sleep 0.05; done; exec wc -c").stdin_piped()).await.unwrap();
        let mut stdin = process.stdin.take().unwrap();
        let before = private_memory(sandbox.info().monitor_pid);
        let chunk = vec![b'x'; 64 << 10];
        let mut accepted = 0u64;
        while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), stdin.write(&chunk)).await {
            accepted += written.unwrap() as u64;
            assert!(accepted < 16 << 20, "16 MiB went somewhere while nobody read");
        }
        let after = private_memory(sandbox.info().monitor_pid);
        assert!(after < before + (4 << 20), "memory grew from {before} to {after}");
        assert!(script(&sandbox, "touch /tmp/go").await.status.success());
        stdin.write_all(b"12345").await.unwrap();
        drop(stdin);
        assert_eq!(text(&process.output().await.unwrap()), (accepted + 5).to_string());
    }

    /// Conformance: semantics 12
    async fn a_caller_that_does_not_read_slows_the_container_down(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let size = 64u64 << 20;
        let mut process = sandbox.exec(sh(&format!("head -c {size} /dev/zero"))).await.unwrap();
        let before = private_memory(sandbox.info().monitor_pid);
        let ended = tokio::time::timeout(Duration::from_secs(2), process.wait()).await;
        assert!(ended.is_err(), "it wrote 64 MiB that nobody read");
        let after = private_memory(sandbox.info().monitor_pid);
        assert!(after < before + (4 << 20), "memory grew from {before} to {after}");
        let mut sum = 0u64;
        let mut stdout = process.stdout.take().unwrap();
        let mut chunk = vec![0; 64 << 10];
        while let n @ 1.. = stdout.read(&mut chunk).await.unwrap() {
            sum += n as u64;
        }
        assert_eq!(sum, size);
        assert!(process.wait().await.unwrap().success());
    }

    /// Conformance: semantics 13
    async fn a_caller_that_goes_away_costs_the_container_nothing(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let process = sandbox.exec(sh("head -c 4000000 /dev/zero && touch /tmp/done")).await.unwrap();
        drop(process);
        eventually("the program came to its end", async || {
            script(&sandbox, "test -e /tmp/done").await.status.success()
        })
        .await;
    }

    async fn half_closed_stdin_leaves_the_output_open(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut process = sandbox.exec(Command::new("tr").args(["a-z", "A-Z"]).stdin_piped()).await.unwrap();
        let mut stdin = process.stdin.take().unwrap();
        stdin.write_all(b"shout").await.unwrap();
        drop(stdin);
        assert_eq!(text(&process.output().await.unwrap()), "SHOUT");
    }

    async fn output_comes_before_the_exit(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut process = sandbox.exec(sh("echo first; read x").stdin_piped()).await.unwrap();
        let mut line = [0; 6];
        process.stdout.as_mut().unwrap().read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"first\n");
        drop(process.stdin.take());
        assert_eq!(process.wait().await.unwrap().code(), 1);
    }
}
