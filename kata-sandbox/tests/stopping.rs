//! How a container's process is asked to end, and what else an image says of its containers: volumes and labels.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bed::{Bed, script, text};
use kata_image::{Image, Platform};
use kata_sandbox::{Container, Process, Sandbox, blocking};
use tokio::io::AsyncReadExt;

/// No test waits for so long.
const LONG: Duration = Duration::from_secs(3600);

/// Says which of the signals came, and ends with 7.
const TELLS: &str =
    "for s in USR1 QUIT TERM; do trap \"echo $s; exit 7\" $s; done; echo ready; sleep 1000 & wait";

/// A layout with an image on the tests' base: it has volumes and a label and ends by SIGUSR1.
fn image(directory: &Path) -> Option<PathBuf> {
    let Some(images) = std::env::var_os("KATA_TEST_IMAGES") else {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        bed::skip(&name, "KATA_TEST_IMAGES names no images; run `cargo xtask test`");
        return None;
    };
    let base = Image::open(images, Some("base"), &Platform::host(), directory).unwrap();
    let built = Image::builder()
        .base(base)
        .volume("/data/deep")
        .volume("/tmp")
        .label("org.example.answer", "42")
        .stop_signal("SIGUSR1")
        .temporary_directory(directory)
        .build(&mut |_| {})
        .unwrap();
    let layout = directory.join("layout");
    built.write_layout(&layout, None, &mut |_| {}).unwrap();
    Some(layout)
}

fn tells(container: Container) -> Container {
    container.entrypoint(["sh", "-c", TELLS])
}

/// Waits until it is ready, stops it, and gives back what it said and how it ended.
async fn stopped(mut process: Process, grace: Duration) -> (String, i32) {
    let mut stdout = process.stdout.take().unwrap();
    let mut said = vec![0; "ready\n".len()];
    stdout.read_exact(&mut said).await.unwrap();
    let status = process.stop(grace).await.unwrap();
    // What it left in the background has the output too, and goes with it.
    stdout.read_to_end(&mut said).await.unwrap();
    // A second time there is nobody to be asked.
    assert_eq!(process.stop(grace).await.unwrap(), status);
    (String::from_utf8_lossy(&said).into_owned(), status.code())
}

on_every_backend! {
    /// Conformance: semantics 28
    async fn the_stop_signal_is_the_callers_else_the_images_else_sigterm(bed: Bed) {
        let directory = tempfile::tempdir().unwrap();
        let Some(image) = image(directory.path()) else { return };
        let cases = [
            (tells(bed.of_image(&image)), "USR1"),
            (tells(bed.of_image(&image)).stop_signal("QUIT"), "QUIT"),
            (tells(bed.idle()), "TERM"),
        ];
        for (container, expected) in cases {
            let sandbox = Sandbox::boot(container).await.unwrap();
            let process = sandbox.spawn().await.unwrap();
            assert_eq!(stopped(process, LONG).await, (format!("ready\n{expected}\n"), 7));
            sandbox.stop().await.unwrap();
        }
    }

    /// Conformance: semantics 28
    async fn what_does_not_heed_the_signal_is_killed_after_the_grace(bed: Bed) {
        // The first process of a container does not even have to ignore it.
        let container = bed.shell("echo ready; read never");
        let sandbox = Sandbox::boot(container.stdin_piped()).await.unwrap();
        let process = sandbox.spawn().await.unwrap();
        assert_eq!(stopped(process, Duration::from_millis(50)).await, ("ready\n".to_owned(), 137));
        sandbox.stop().await.unwrap();
    }

    /// Conformance: semantics 28
    async fn a_process_of_exec_is_stopped_by_sigterm_and_the_sandbox_goes_on(bed: Bed) {
        let directory = tempfile::tempdir().unwrap();
        let Some(image) = image(directory.path()) else { return };
        let sandbox = Sandbox::boot(bed.of_image(&image).idle()).await.unwrap();
        let process = sandbox.exec(bed::sh(TELLS)).await.unwrap();
        // Its child in the background is not the container's first process, and keeps the output open.
        let mut process = process;
        let mut stdout = process.stdout.take().unwrap();
        let mut said = [0; 6];
        stdout.read_exact(&mut said).await.unwrap();
        assert_eq!(process.stop(LONG).await.unwrap().code(), 7);
        let mut word = [0; 5];
        stdout.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"TERM\n");
        assert_eq!(text(&script(&sandbox, "echo goes on").await), "goes on");
        sandbox.stop().await.unwrap();
    }

    async fn volumes_are_writable_directories_and_labels_can_be_read(bed: Bed) {
        let directory = tempfile::tempdir().unwrap();
        let Some(image) = image(directory.path()) else { return };
        let sandbox = Sandbox::boot(bed.of_image(&image).idle()).await.unwrap();
        let said = &sandbox.info().image;
        assert_eq!(said.labels["org.example.answer"], "42");
        assert!(said.volumes.contains("/data/deep"));
        let look = "stat -c '%n %a %U' /data/deep /tmp; echo kept >/data/deep/file; cat /data/deep/file";
        let output = script(&sandbox, look).await;
        assert_eq!(text(&output), "/data/deep 755 root\n/tmp 1777 root\nkept");
        sandbox.stop().await.unwrap();
    }

    async fn the_blocking_face_stops_processes_too(bed: Bed) {
        tokio::task::spawn_blocking(move || {
            let sandbox = blocking::Sandbox::boot(bed.idle()).unwrap();
            let process = sandbox.exec(bed::sh("sleep 1000")).unwrap();
            assert_eq!(process.stop(LONG).unwrap().code(), 143);
            sandbox.stop().unwrap();
        })
        .await
        .unwrap();
    }
}
