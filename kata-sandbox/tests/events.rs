//! What a listener hears of, and what it does not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use bed::{Bed, script, script_in, sh};
use kata_sandbox::Sandbox;
use kata_sandbox::report::Event;

on_every_backend! {
    async fn what_ended_before_is_no_event(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut runs = sandbox.exec(sh("read -r line; exit 7").stdin_piped()).await.unwrap();
        // Their ends are learned of by what they used, and by their status.
        for _ in 0..50 {
            assert!(script(&sandbox, "true").await.status.success());
            assert!(sandbox.exec(sh("true")).await.unwrap().wait().await.unwrap().success());
        }
        // Those of a container that is removed are nobody's.
        let other = sandbox.create_container(bed.member("other").idle()).await.unwrap();
        let left = other.exec(sh("true")).await.unwrap();
        script_in(&other, "true").await;
        other.remove().await.unwrap();
        drop(left);

        let mut events = sandbox.events();
        let id = runs.id().to_owned();
        drop(runs.stdin.take());
        let Some(Event::ProcessExited { container, process, status }) = events.next().await else {
            panic!("the end of what ran by then")
        };
        assert_eq!((container.as_str(), process, status.code()), ("main", id, 7));
        sandbox.stop().await.unwrap();
        // Of the idle container itself, which runs until the end, there may be word or not.
        while let Some(event) = events.next().await {
            assert!(!matches!(event, Event::ProcessExited { .. }), "{event:?}");
        }
    }

    async fn many_for_which_nobody_waits_do_no_harm(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut running = Vec::new();
        for _ in 0..3 {
            running.push(sandbox.exec(sh("read -r line").stdin_piped()).await.unwrap());
        }
        for _ in 0..100 {
            drop(sandbox.exec(sh("true")).await.unwrap());
        }
        for _ in 0..3 {
            running.push(sandbox.exec(sh("read -r line").stdin_piped()).await.unwrap());
        }
        let mut events = sandbox.events();
        let mut expected: Vec<_> = running.iter().map(|process| process.id().to_owned()).collect();
        for process in &mut running {
            drop(process.stdin.take());
        }
        // Whether noted or asked for, each that ran is heard of.
        while !expected.is_empty() {
            if let Event::ProcessExited { process, .. } = events.next().await.unwrap() {
                expected.retain(|id| *id != process);
            }
        }
        sandbox.stop().await.unwrap();
    }
}
