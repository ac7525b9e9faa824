//! Containers of a running sandbox whose making fails or is given up, and those that have one name after another.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::task::Poll;
use std::time::{Duration, Instant};

use bed::{Bed, sh, text};
use kata_sandbox::report::Event;
use kata_sandbox::{Container, ContainerHandle, ErrorKind, Sandbox};
use serde_json::json;

/// So long may it take until nothing is left of a container that was given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes an idle container as soon as its name is free.
async fn once_free(bed: &Bed, sandbox: &Sandbox, name: &str) -> ContainerHandle {
    let begun = Instant::now();
    loop {
        match sandbox.create_container(bed.member(name).idle()).await {
            Ok(container) => return container,
            Err(error) if error.kind() == ErrorKind::InvalidState && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn says(container: &ContainerHandle, word: &str) {
    let command = sh(&format!("echo {word}"));
    assert_eq!(
        text(&container.exec(command).await.unwrap().output().await.unwrap()),
        word
    );
}

on_every_backend! {
    /// Conformance: semantics 29
    async fn nothing_stays_of_a_container_that_does_not_start(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let spec = json!({"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "hooks": {"startContainer": [{"path": "/bin/false"}]}});
        let mut errors = Vec::new();
        for _ in 0..2 {
            let container = Container::from_spec(&bed.rootfs, &spec.to_string()).unwrap().name("fails");
            errors.push(sandbox.create_container(container).await.unwrap_err().to_string());
        }
        assert_eq!(errors[0], errors[1]);
        assert!(errors[0].starts_with("start container: "), "{errors:?}");
        let sample = sandbox.stats(Duration::from_secs(1)).next().await.unwrap().unwrap();
        assert_eq!(sample.containers.len(), 1);
        let works = sandbox.create_container(bed.member("fails").idle()).await.unwrap();
        says(&works, "works").await;
        sandbox.stop().await.unwrap();
    }

    /// Conformance: semantics 29
    async fn nothing_stays_of_a_container_that_is_given_up(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let begun = Instant::now();
        once_free(&bed, &sandbox, "x").await.remove().await.unwrap();
        let whole = begun.elapsed();
        let mut given_up = 0;
        for tenths in 0..10 {
            let creation = sandbox.create_container(bed.member("x").idle());
            match tokio::time::timeout(whole * tenths / 10, creation).await {
                Ok(container) => container.unwrap().remove().await.unwrap(),
                Err(_) => given_up += 1,
            }
            let container = once_free(&bed, &sandbox, "x").await;
            says(&container, "works").await;
            container.remove().await.unwrap();
        }
        assert!(given_up > 0, "no time is short for what takes {whole:?}");
        let sample = sandbox.stats(Duration::from_secs(1)).next().await.unwrap().unwrap();
        assert_eq!(sample.containers.len(), 1);
        sandbox.stop().await.unwrap();
    }

    /// Conformance: semantics 6
    async fn one_whose_start_hangs_can_be_given_up(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let hangs = Container::from_spec(&bed.rootfs, bed::that_hangs()).unwrap().name("x").idle();
        let creation = sandbox.create_container(hangs.clone());
        assert!(tokio::time::timeout(Duration::from_secs(2), creation).await.is_err(), "its hook waits");
        says(&once_free(&bed, &sandbox, "x").await, "works").await;
        // With the sandbox it ends as well.
        let creation = sandbox.create_container(hangs.name("y"));
        assert!(tokio::time::timeout(Duration::from_secs(2), creation).await.is_err(), "its hook waits");
        tokio::time::timeout(PATIENCE, sandbox.stop()).await.unwrap().unwrap();
    }

    /// Conformance: api ExecProcess
    async fn a_container_may_have_the_name_of_a_process(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut events = sandbox.events();
        let container = sandbox.create_container(bed.member("exec1").idle()).await.unwrap();
        for word in ["one", "two"] {
            says(&container, word).await;
            let Some(Event::ProcessExited { container, process, .. }) = events.next().await else {
                panic!("the end of a process")
            };
            assert_eq!(container, "exec1");
            assert_ne!(process, "exec1");
        }
        container.kill().await.unwrap();
        let Some(Event::ContainerExited { container, .. }) = events.next().await else {
            panic!("the end of the container")
        };
        assert_eq!(container, "exec1");
        sandbox.stop().await.unwrap();
    }

    /// Conformance: api RemoveContainer
    async fn removing_one_leaves_the_next_of_its_name_alone(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut old = once_free(&bed, &sandbox, "x").await;
        for _ in 0..3 {
            let removals: Vec<_> = (0..8)
                .map(|_| {
                    let old = old.clone();
                    tokio::spawn(async move { old.remove().await })
                })
                .collect();
            let next = once_free(&bed, &sandbox, "x").await;
            assert_eq!(old.kill().await.unwrap_err().kind(), ErrorKind::NotFound);
            for removal in removals {
                removal.await.unwrap().unwrap();
            }
            says(&next, "lives").await;
            old = next;
        }
        // One for which nobody waits any more is a removal all the same.
        let mut removal = Box::pin(old.remove());
        let asked = std::future::poll_fn(|cx| Poll::Ready(removal.as_mut().poll(cx).is_pending())).await;
        assert!(asked, "it takes a while");
        drop(removal);
        let next = once_free(&bed, &sandbox, "x").await;
        old.remove().await.unwrap();
        says(&next, "lives").await;
        let sample = sandbox.stats(Duration::from_secs(1)).next().await.unwrap().unwrap();
        assert_eq!(sample.containers.len(), 2);
        sandbox.stop().await.unwrap();
    }
}
