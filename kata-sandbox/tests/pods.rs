//! Several containers in one sandbox.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::time::Duration;

use bed::{Bed, script, script_in, text};
use kata_sandbox::report::Event;
use kata_sandbox::{Container, ErrorKind, MiB, Sandbox, blocking};
use tokio::io::AsyncReadExt;

/// No test waits for so long.
const LONG: Duration = Duration::from_secs(3600);

/// A server on 127.0.0.1:5000 that greets, and says when it listens.
const SERVES: &str = r#"
use IO::Socket::INET;
$| = 1;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 5000, Listen => 5, ReuseAddr => 1) or die;
$SIG{TERM} = sub { exit 7 };
print "listens\n";
while (my $client = $server->accept) { print $client "hello\n"; close $client }
"#;

/// Says what the server says.
const ASKS: &str = "exec 3<>/dev/tcp/127.0.0.1/5000; cat <&3";

fn asks() -> kata_sandbox::Command {
    kata_sandbox::Command::new("bash").args(["-c", ASKS])
}

fn server(bed: &Bed) -> Container {
    bed.member("server").args(["perl", "-e", SERVES])
}

on_every_backend! {
    /// Conformance: semantics 29
    async fn containers_share_network_and_ipc_and_nothing_else(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle().name("first")).await.unwrap();
        assert_eq!(sandbox.container().name(), "first");
        let server = sandbox.create_container(server(&bed)).await.unwrap();
        let mut served = server.spawn().await.unwrap();
        let mut said = [0; 8];
        served.stdout.as_mut().unwrap().read_exact(&mut said).await.unwrap();
        let output = sandbox.exec(asks()).await.unwrap().output().await.unwrap();
        assert_eq!(text(&output), "hello", "{}", String::from_utf8_lossy(&output.stderr));

        let other = sandbox.create_container(Container::new(&bed.rootfs).idle().hostname("other")).await.unwrap();
        assert_eq!(other.name(), "container-2");
        // System V and POSIX shared memory: key 7, IPC_CREAT | 0600.
        let write = r#"perl -e '$id = shmget(7, 16, 01600) // die; shmwrite($id, "shared", 0, 6)'; echo too >/dev/shm/file"#;
        assert!(script(&sandbox, write).await.status.success());
        let read = r#"perl -e '$id = shmget(7, 16, 0) // die; shmread($id, $text, 0, 6); print "$text\n"'; cat /dev/shm/file"#;
        assert_eq!(text(&script_in(&other, read).await), "shared\ntoo");
        // Files, names and processes are each container's own.
        script(&sandbox, "echo mine >/mine").await;
        let look = "test -e /mine || echo no file; hostname; grep -l perl /proc/[0-9]*/comm || echo no server";
        assert_eq!(text(&script_in(&other, look).await), "no file\nother\nno server");
        assert_eq!(text(&script(&sandbox, "hostname").await), sandbox.info().name);
        sandbox.stop().await.unwrap();
        assert_eq!(server.wait().await.unwrap_err().kind(), ErrorKind::Stopped);
    }

    /// Conformance: semantics 5
    /// Conformance: semantics 20
    /// Conformance: semantics 29
    /// Conformance: api CreateContainer
    /// Conformance: api StartContainer
    /// Conformance: api SignalProcess
    /// Conformance: api WaitProcess
    /// Conformance: api RemoveContainer
    async fn containers_come_and_go_one_by_one(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut events = sandbox.events();
        let server = sandbox.create_container(server(&bed)).await.unwrap();
        assert_eq!(server.exec(bed::sh("true")).await.unwrap_err().kind(), ErrorKind::InvalidState);
        let mut served = server.spawn().await.unwrap();
        assert_eq!(server.spawn().await.unwrap_err().kind(), ErrorKind::InvalidState);
        served.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).await.unwrap();
        let taken = sandbox.create_container(self::server(&bed)).await.unwrap_err();
        assert_eq!((taken.kind(), taken.is_sandbox_lost()), (ErrorKind::InvalidState, false));
        assert_eq!(taken.to_string(), "create container: cannot create the container: server exists already");

        // Its own process handles the signal; the sandbox goes on without it.
        let (waited, stopped) = tokio::join!(server.wait(), server.stop(LONG));
        assert_eq!((waited.unwrap().code(), stopped.unwrap().code()), (7, 7));
        assert_eq!((server.wait().await.unwrap().code(), server.stop(LONG).await.unwrap().code()), (7, 7));
        let exited = events.next().await.unwrap();
        assert!(matches!(exited, Event::ContainerExited { container, status } if container == "server" && status.code() == 7));
        assert!(!sandbox.exec(asks()).await.unwrap().output().await.unwrap().status.success());

        server.remove().await.unwrap();
        server.clone().remove().await.unwrap();
        // Its name is free, and what it was is nobody else.
        let next = sandbox.create_container(self::server(&bed)).await.unwrap();
        let process = next.spawn().await.unwrap();
        for _ in 0..2 {
            assert_eq!(server.wait().await.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(server.kill().await.unwrap_err().kind(), ErrorKind::NotFound);
            assert_eq!(served.wait().await.unwrap_err().kind(), ErrorKind::NotFound);
            server.remove().await.unwrap();
        }
        next.kill().await.unwrap();
        assert_eq!(process.wait().await.unwrap().code(), 137);
        next.remove().await.unwrap();

        // The first is a container as others are.
        let last = sandbox.create_container(bed.member("last").idle()).await.unwrap();
        sandbox.container().remove().await.unwrap();
        assert_eq!(sandbox.exec(bed::sh("true")).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(text(&script_in(&last, "echo alone").await), "alone");
        assert!(last.stop(LONG).await.unwrap().success(), "what idles ends when it is asked to");
        sandbox.stop().await.unwrap();
        while let Some(event) = events.next().await {
            if let Event::SandboxEnded { kind, .. } = event {
                assert_eq!(kind, ErrorKind::Stopped);
            }
        }
        assert_eq!(sandbox.events().next().await.map(|event| matches!(event, Event::SandboxEnded { .. })), Some(true));
    }

    /// Conformance: semantics 6
    /// Conformance: api PauseContainer
    /// Conformance: api ResumeContainer
    /// Conformance: api ExecProcess
    async fn a_frozen_container_holds_nobody_up(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let frozen = sandbox.create_container(bed.member("frozen").idle()).await.unwrap();
        let ticks = frozen.exec(bed::sh("while :; do echo tick; sleep 0.02; done")).await.unwrap();
        let mut ticks = ticks;
        let mut stdout = ticks.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 50]).await.unwrap();
        frozen.pause().await.unwrap();
        frozen.pause().await.unwrap();
        // The others, and questions about it, are answered; a program that is started in it waits, and so does its exec.
        assert_eq!(text(&script(&sandbox, "echo awake").await), "awake");
        let stats = frozen.stats().await.unwrap();
        let waiting = tokio::spawn({
            let frozen = frozen.clone();
            async move { script_in(&frozen, "echo thawed").await }
        });
        frozen.resume().await.unwrap();
        assert_eq!(text(&waiting.await.unwrap()), "thawed");
        assert!(frozen.stats().await.unwrap().cpu_time >= stats.cpu_time);
        // Held again, it can be killed.
        frozen.pause().await.unwrap();
        frozen.kill().await.unwrap();
        assert_eq!(frozen.wait().await.unwrap().code(), 137);
        assert_eq!(ticks.wait().await.unwrap().code(), 137);
        frozen.remove().await.unwrap();
        sandbox.stop().await.unwrap();
    }

    /// Conformance: api StatsContainer
    async fn figures_come_as_a_stream(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let other = sandbox.create_container(bed.member("other").idle()).await.unwrap();
        let mut samples = sandbox.stats(Duration::from_millis(20));
        let first = samples.next().await.unwrap().unwrap();
        let names: Vec<&String> = first.containers.keys().collect();
        assert_eq!(names, ["main", "other"]);
        assert!(first.network.contains_key("lo"));
        script_in(&other, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").await;
        let busy = other.stats().await.unwrap();
        let later = samples.next().await.unwrap().unwrap();
        assert!(later.taken > first.taken);
        if bed.has_guest() {
            assert!(busy.cpu_time > first.containers["other"].cpu_time, "{busy:?}");
            assert!(busy.memory_bytes > 0 && busy.processes > 0, "{busy:?}");
        }
        other.remove().await.unwrap();
        // One that was asked for before the removal may still come.
        let mut without = samples.next().await.unwrap().unwrap();
        while without.containers.contains_key("other") {
            without = samples.next().await.unwrap().unwrap();
        }
        sandbox.stop().await.unwrap();
        while let Some(Ok(_)) = samples.next().await {}
        assert!(samples.next().await.is_none());
    }

    async fn what_a_running_machine_cannot_have_is_refused_by_name(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let error = sandbox.create_container(bed.member("x").disk(MiB(16))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        let error = sandbox.create_container(bed.member("x").vcpus(2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContainer);
        assert_eq!(text(&script(&sandbox, "echo goes on").await), "goes on");
        sandbox.stop().await.unwrap();
    }

    async fn the_blocking_face_has_pods_too(bed: Bed) {
        tokio::task::spawn_blocking(move || {
            let sandbox = blocking::Sandbox::boot(bed.idle()).unwrap();
            let mut events = sandbox.events();
            let other = sandbox.create_container(bed.member("other").args(["sh", "-c", "echo out; exit 3"])).unwrap();
            let output = other.spawn().unwrap().output().unwrap();
            assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"out\n"[..], 3));
            assert_eq!(other.wait().unwrap().code(), 3);
            let exited = events.next().unwrap();
            assert!(matches!(exited, Event::ContainerExited { container, .. } if container == "other"));
            let sample = sandbox.stats(Duration::from_millis(1)).next().unwrap().unwrap();
            assert_eq!(sample.containers.len(), 2);
            other.remove().unwrap();
            let output = sandbox.container().exec(bed::sh("echo main")).unwrap().output().unwrap();
            assert_eq!(output.stdout, b"main\n");
            sandbox.stop().unwrap();
            assert!(matches!(events.last(), Some(Event::SandboxEnded { .. })));
        })
        .await
        .unwrap();
    }
}
