//! Processes and their ends: `docs/conformance.md`, behaviours 1 to 8.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::time::Duration;

use bed::{Bed, eventually, script, sh, text};
use kata_sandbox::{Command, ErrorKind, Sandbox};

on_every_backend! {
    /// Conformance: semantics 1
    async fn the_exit_code_is_the_code_and_streams_are_apart(bed: Bed) {
        let output = Sandbox::run(bed.shell("echo out; echo err >&2; exit 42")).await.unwrap();
        assert_eq!(output.status.code(), 42);
        assert_eq!(output.stdout, b"out\n");
        assert_eq!(output.stderr, b"err\n");
        assert!(output.usage.host_memory_bytes.unwrap() > 0);
        assert_eq!(output.usage.output_bytes, 8);
    }

    /// Conformance: semantics 1
    async fn a_killed_process_exits_with_128_plus_the_signal(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        for (signal, code) in [(9, 137), (15, 143)] {
            let output = script(&sandbox, &format!("kill -{signal} $$")).await;
            assert_eq!(output.status.code(), code);
        }
        sandbox.stop().await.unwrap();
    }

    /// Conformance: semantics 1
    async fn waiting_works_before_during_and_after_the_exit_from_several_waiters(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut process = sandbox.exec(Command::new("cat").stdin_piped()).await.unwrap();
        let stdin = process.stdin.take();
        let (a, b, ()) = tokio::join!(process.wait(), process.wait(), async { drop(stdin) });
        assert!(a.unwrap().success() && b.unwrap().success());
        assert!(process.wait().await.unwrap().success());
    }

    /// Conformance: semantics 2
    async fn a_background_child_that_keeps_stdout_open_does_not_delay_the_exit(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let output = script(&sandbox, "sleep 1000 & echo done").await;
        assert_eq!(text(&output), "done");
        // It has the program's name once it has become it.
        let count = "cat /proc/[0-9]*/comm | grep -c sleep";
        eventually("it runs on", async || text(&script(&sandbox, count).await) == "1").await;
        let output = Sandbox::run(bed.shell("sleep 1000 & echo done")).await.unwrap();
        assert_eq!(text(&output), "done");
    }

    /// Conformance: semantics 3
    async fn what_was_written_before_the_exit_arrives_whole(bed: Bed) {
        let size = 64 << 20;
        let output =
            Sandbox::run(bed.shell(&format!("head -c {size} /dev/zero; echo end >&2; exit 3"))).await.unwrap();
        assert_eq!((output.stdout.len(), output.status.code()), (size, 3));
        assert!(output.stdout.iter().all(|byte| *byte == 0));
        assert_eq!(output.stderr, b"end\n");
    }

    /// Conformance: semantics 4
    async fn orphans_are_reaped(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        script(&sandbox, "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done").await;
        let zombies = "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true";
        eventually("no zombie is left", async || text(&script(&sandbox, zombies).await) == "0").await;
    }

    /// Conformance: semantics 6
    async fn a_signal_is_delivered_exactly_once(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let counting = "n=0; trap 'n=$((n+1)); echo taken' TERM; trap 'echo $n; exit' USR1; echo taken; while :; do sleep 0.05; done";
        let mut process = sandbox.exec(sh(counting)).await.unwrap();
        let mut stdout = process.stdout.take().unwrap();
        let mut line = [0; 6];
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut line).await.unwrap();
        process.signal(15).await.unwrap();
        // The shell runs a trap when its sleep ends, and of two that wait the lower number first.
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut line).await.unwrap();
        assert_eq!(&line, b"taken\n");
        process.signal(10).await.unwrap();
        let mut count = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut count).await.unwrap();
        assert_eq!(count, "1\n");
        assert!(process.wait().await.unwrap().success());
    }

    /// Conformance: semantics 6
    async fn a_kill_works_while_the_container_runs_and_others_wait(bed: Bed) {
        let sandbox = Sandbox::boot(bed.shell("exec sleep 1000")).await.unwrap();
        let process = sandbox.spawn().await.unwrap();
        let exec = sandbox.exec(sh("sleep 1000")).await.unwrap();
        let (status, killed, usage) = tokio::join!(process.wait(), process.kill(), sandbox.usage());
        assert_eq!(status.unwrap().code(), 137);
        killed.unwrap();
        usage.unwrap();
        assert_eq!(exec.wait().await.unwrap().code(), 137, "the init took its container with it");
        assert_eq!(process.signal(15).await.unwrap_err().kind(), ErrorKind::InvalidState);
    }

    /// Conformance: semantics 7
    async fn exec_fails_with_a_kind_and_the_sandbox_goes_on(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let cases = [
            (Command::new("no-such-program"), ErrorKind::CommandNotFound),
            (Command::new("/etc/passwd"), ErrorKind::CommandNotExecutable),
            (Command::new("/etc"), ErrorKind::CommandNotExecutable),
            (Command::new("true").cwd("/no/such/directory"), ErrorKind::NoSuchDirectory),
            (Command::new("true").user("nobody-we-know"), ErrorKind::NoSuchUser),
            (Command::new("true").user("root:no-group"), ErrorKind::NoSuchUser),
        ];
        for (command, kind) in cases {
            let error = sandbox.exec(command.clone()).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{command:?}: {error}");
            assert!(!error.is_sandbox_lost());
        }
        assert!(script(&sandbox, "true").await.status.success());
    }

    /// Conformance: semantics 7
    async fn run_fails_with_a_kind_too(bed: Bed) {
        let error = Sandbox::run(bed.idle().args(["no-such-program"])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CommandNotFound);
        assert_eq!(
            error.to_string(),
            "create container: command \"no-such-program\" was not found in the container"
        );
        assert!(error.is_sandbox_lost());
    }

    /// Conformance: semantics 5
    /// Conformance: semantics 20
    async fn a_wait_after_the_end_is_always_the_same_error(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let process = sandbox.exec(sh("exit 1")).await.unwrap();
        sandbox.stop().await.unwrap();
        for _ in 0..2 {
            let error = process.wait().await.unwrap_err();
            assert_eq!((error.kind(), error.is_sandbox_lost()), (ErrorKind::Stopped, true), "{error}");
        }
        sandbox.stop().await.unwrap();
    }

    /// Conformance: semantics 8
    async fn a_process_joins_its_container_and_begins_inside_of_it(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let show = "for kind in pid mnt uts cgroup; do readlink /proc/self/ns/$kind; done";
        let own = bed.member("other").args(["sh", "-c", &format!("{show}; exec cat")]).stdin_piped();
        let other = sandbox.create_container(own).await.unwrap();
        let process = other.spawn().await.unwrap();
        let joined = text(&other.exec(sh(show)).await.unwrap().output().await.unwrap());
        let own = text(&process.output().await.unwrap());
        assert_eq!(joined, own, "the namespaces of the container's own process");
        let elsewhere = text(&script(&sandbox, show).await);
        for (here, there) in own.lines().zip(elsewhere.lines()) {
            assert_ne!(here, there, "each container has its own");
        }
        assert_eq!((own.lines().count(), elsewhere.lines().count()), (4, 4));

        // A directory that a descriptor of the agent would lead to, and one that is not inside of the root.
        for number in 3..24 {
            let command = Command::new("true").cwd(format!("/proc/self/fd/{number}"));
            let error = sandbox.exec(command).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSuchDirectory, "descriptor {number}: {error}");
        }
        assert!(script(&sandbox, "ln -s /proc/1/root/../../tmp /way").await.status.success());
        let output = sandbox.exec(Command::new("pwd").args(["-P"]).cwd("/way")).await.unwrap().output().await;
        assert_eq!(text(&output.unwrap()), "/tmp");
    }

    async fn the_container_is_started_once(bed: Bed) {
        let sandbox = Sandbox::boot(bed.shell("true")).await.unwrap();
        assert!(sandbox.spawn().await.unwrap().wait().await.unwrap().success());
        assert_eq!(sandbox.spawn().await.unwrap_err().kind(), ErrorKind::InvalidState);
        let idle = Sandbox::boot(bed.idle()).await.unwrap();
        assert_eq!(idle.spawn().await.unwrap_err().kind(), ErrorKind::InvalidState);
    }

    async fn a_timeout_kills_the_sandbox_and_keeps_what_was_written(bed: Bed) {
        let container = bed.shell("echo before; sleep 1000").timeout(Duration::from_secs(3));
        let error = Sandbox::run(container).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert!(error.is_sandbox_lost());
        assert_eq!(error.output().unwrap().stdout, b"before\n");
    }

    async fn output_beyond_its_limit_is_an_error_and_not_a_full_memory(bed: Bed) {
        let container = bed.shell("cat /dev/zero").output_limit(kata_sandbox::MiB(1));
        let error = Sandbox::run(container).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutputTooLarge, "{error}");
    }

    async fn args_env_cwd_and_user_arrive(bed: Bed) {
        let container = bed
            .idle()
            .args(["sh", "-c", "printf '%s|' \"$A B\" \"$(pwd)\" \"$(id -un)\" \"$0\" \"$1\"", "zero", "one two"])
            .env("A", "a b")
            .cwd("/var/tmp")
            .user("www-data");
        let output = Sandbox::run(container).await.unwrap();
        assert_eq!(text(&output), "a b B|/var/tmp|www-data|zero|one two|");
    }
}
