//! The machine around a container: held, let go on, and asked for its figures.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in a test program each of them is a failed test"
)]

mod bed;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bed::{Bed, eventually, script, text};
use kata_sandbox::{Backend, ErrorKind, Sandbox};

/// How long an answer is waited for that must not come. A guest answers in a tenth of it.
const SILENCE: Duration = Duration::from_secs(2);

fn host_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

on_every_backend! {
    /// Conformance: semantics 17
    async fn a_held_machine_answers_nothing_and_then_everything(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        if !bed.has_guest() {
            let error = sandbox.pause().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("has no machine"), "{error}");
            // It goes on as if nobody had asked.
            assert_eq!(text(&script(&sandbox, "echo alive").await), "alive");
            return;
        }
        for round in ["one", "two"] {
            sandbox.pause().await.unwrap();
            sandbox.pause().await.unwrap();
            assert!(sandbox.machine().await.unwrap().paused);
            let command = format!("echo {round}");
            let mut waiting = Box::pin(script(&sandbox, &command));
            assert!(tokio::time::timeout(SILENCE, &mut waiting).await.is_err());
            sandbox.resume().await.unwrap();
            assert_eq!(text(&waiting.await), round);
            assert!(!sandbox.machine().await.unwrap().paused);
            let before = host_time();
            let guest: f64 = text(&script(&sandbox, "date +%s.%N").await).parse().unwrap();
            let after = host_time();
            // It would be behind by the time of the silence.
            assert!((before - 1.0..after + 1.0).contains(&guest), "guest {guest}, host {before} to {after}");
        }
        // A held machine can be stopped.
        sandbox.pause().await.unwrap();
        sandbox.stop().await.unwrap();
        assert!(sandbox.resume().await.unwrap_err().is_sandbox_lost());
    }

    async fn a_machine_tells_what_it_did(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        script(&sandbox, "cat /etc/os-release").await;
        let info = sandbox.machine().await.unwrap();
        assert!(!info.paused);
        if bed.backend != Backend::Kvm {
            return;
        }
        let names: Vec<&str> = info.devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["block layer-0", "block shelf", "vsock", "rng", "balloon"]);
        let figure = |device: &str, name: &str| {
            let device = info.devices.iter().find(|found| found.name == device).unwrap();
            *device.figures.get(name).unwrap_or_else(|| panic!("{name} of {device:?}"))
        };
        assert!(figure("block layer-0", "reads") > 0);
        assert_eq!(figure("block layer-0", "writes"), 0);
        assert!(figure("vsock", "bytes_to_guest") > 0);
        assert!(figure("vsock", "packets_malformed") == 0);
        assert!(info.exits["mmio read"] > 0 && info.exits["port write"] > 0, "{info:?}");
        let resident = info.resident_bytes.unwrap();
        assert!(resident > 16 << 20 && resident <= sandbox.info().memory_bytes, "{info:?}");
    }

    async fn what_a_guest_frees_comes_back_to_the_host(bed: Bed) {
        if bed.backend != Backend::Kvm {
            return;
        }
        const FILE_MIB: u64 = 64;
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let resident = async || sandbox.machine().await.unwrap().resident_bytes.unwrap();
        let before = resident().await;
        script(&sandbox, &format!("head -c {FILE_MIB}M /dev/urandom > /file")).await;
        let full = resident().await;
        assert!(full >= before + (FILE_MIB << 20) / 2, "{before} {full}");
        script(&sandbox, "rm /file").await;
        eventually("the host has its memory back", async || {
            resident().await < full - (FILE_MIB << 20) / 2
        })
        .await;
    }
}
