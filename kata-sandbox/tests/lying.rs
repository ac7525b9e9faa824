//! A guest that lies costs its own sandbox, gives an error that names the lie, and leaves nothing.
//!
//! The lies are told by `examples/lie.rs` in place of the agent: as the program of the process backend, and as the init
//! of an initramfs that has nothing else in it. That init loads no modules, so the kernel has to be the tailored one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bed::{Bed, all_gone, chain, descendants, eventually, patience, script, sh, text, traces};
use kata_image::initramfs;
use kata_sandbox::report::{Event, Log};
use kata_sandbox::{Container, Error, ErrorKind, Sandbox};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

const LIAR: &str = "the agent in the guest cannot be trusted";
const GONE: &str = "the agent in the guest is gone";

/// What is told when statistics are asked for, and how the error begins and ends.
const ONCE_ASKED: &[(&str, &str, &str)] = &[
    (
        "garbage",
        LIAR,
        "the agent broke the protocol: a frame of type 110",
    ),
    (
        "absurd-length",
        LIAR,
        "the agent broke the protocol: an answer of 4294967295 bytes, where 1048576 are the most",
    ),
    (
        "answers-that-nobody-asked-for",
        LIAR,
        "that was not made, or that had one",
    ),
    (
        "requests-of-its-own",
        LIAR,
        "the agent broke the protocol: a frame of type 1",
    ),
    (
        "goes-on-after-its-hello",
        LIAR,
        "the agent went on talking after its hello",
    ),
    (
        "ends-within-an-answer",
        GONE,
        // In the middle of an answer; a call that is being sent may be the first to find it lost.
        "the connection to the agent ",
    ),
    (
        "ends-between-answers",
        GONE,
        "the connection to the agent is lost",
    ),
];

/// What is told in place of a hello or with it.
const AT_ONCE: &[(&str, ErrorKind, &str)] = &[
    (
        "garbage-for-a-hello",
        ErrorKind::AgentLost,
        "the agent's hello cannot be understood",
    ),
    (
        "a-hello-without-an-end",
        ErrorKind::AgentLost,
        "bytes, where 4096 are the most",
    ),
    (
        "half-a-hello",
        ErrorKind::AgentLost,
        "guest agent: the agent in the guest is gone",
    ),
    (
        "goes-on-behind-its-hello",
        ErrorKind::AgentLost,
        "the agent went on talking after its hello",
    ),
    (
        "no-hello",
        ErrorKind::BootTimedOut,
        "the agent had called, and had not said its hello",
    ),
    (
        "silent",
        ErrorKind::BootTimedOut,
        "the agent had said its hello, and the container was not created",
    ),
];

on_every_backend! {
    /// Conformance: semantics 31
    async fn a_lie_ends_every_call_by_its_name_and_no_other_sandbox(bed: Bed) {
        let Some(scene) = Scene::set(&bed).await else { return };
        for (lie, begin, named) in ONCE_ASKED {
            let sandbox = Sandbox::boot(scene.liar(&bed, lie)).await.unwrap();
            let pids = processes(&sandbox);
            let process = sandbox.exec(sh("true")).await.unwrap();
            let mut events = sandbox.events();
            let (waited, asked, ended) = tokio::join!(process.wait(), sandbox.usage(), sandbox.ended());
            let later = [sandbox.exec(sh("true")).await.unwrap_err(), sandbox.machine().await.unwrap_err()];
            let under_way = [waited.unwrap_err(), asked.unwrap_err(), ended.unwrap_err()];
            for error in under_way.iter().chain(&later) {
                check(error, lie, ErrorKind::AgentLost, named);
                // The stage is in front.
                let said = error.to_string();
                assert!(said.split_once(": ").unwrap().1.starts_with(begin), "{lie}: {said}");
            }
            let Some(Event::SandboxEnded { kind, .. }) = events.next().await else { panic!("{lie}: no end") };
            assert_eq!(kind, ErrorKind::AgentLost, "{lie}");
            assert!(pids.iter().all(|pid| !bed::alive(*pid)), "{lie}: an error of an end comes after it");
            drop((sandbox, process, events));
            scene.is_as_before(lie, &pids).await;
        }
    }

    /// Conformance: semantics 31
    async fn a_lie_instead_of_a_hello_ends_the_boot_in_time(bed: Bed) {
        let Some(scene) = Scene::set(&bed).await else { return };
        // What nobody says has to be waited for: for a whole boot where there is one.
        let limit = if bed.has_guest() { Duration::from_secs(10) * patience() } else { Duration::from_secs(2) };
        for (lie, kind, named) in AT_ONCE {
            let begin = Instant::now();
            let container = scene.liar(&bed, lie);
            let container = if *kind == ErrorKind::BootTimedOut { container.boot_timeout(limit) } else { container };
            let error = Sandbox::boot(container).await.unwrap_err();
            check(&error, lie, *kind, named);
            if *kind == ErrorKind::BootTimedOut {
                let took = begin.elapsed();
                assert!((limit..limit + Duration::from_secs(10) * patience()).contains(&took), "{lie}: {took:?}");
            }
            scene.is_as_before(lie, &[]).await;
        }
    }

    async fn what_an_agent_of_katas_lacks_is_unsupported_and_the_sandbox_goes_on(bed: Bed) {
        let Some(scene) = Scene::set(&bed).await else { return };
        let sandbox = Sandbox::boot(scene.liar(&bed, "as-katas")).await.unwrap();
        let mut logs = sandbox.logs().await.unwrap();
        let told = async {
            loop {
                match logs.next().await {
                    Some(Log::Console(line)) if line.contains("an agent of Kata's") => break,
                    Some(Log::Kernel(record)) => panic!("nobody tells of the kernel: {record:?}"),
                    Some(_) => {}
                    None => panic!("the console ends without a word"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30) * patience(), told).await.unwrap();
        let process = sandbox.exec(sh("true")).await.unwrap();
        assert!(process.wait().await.unwrap().success());
        let errors = [
            sandbox.exec(sh("true")).await.unwrap().receipt().await.unwrap_err(),
            sandbox.copy_in(scene.files.path(), "/").await.unwrap_err(),
            sandbox.copy_out("/", scene.files.path().join("out")).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
            assert!(!error.is_sandbox_lost(), "{error:?}");
        }
        assert!(sandbox.usage().await.is_ok());
        let pids = processes(&sandbox);
        sandbox.stop().await.unwrap();
        drop((sandbox, logs, process));
        scene.is_as_before("as-katas", &pids).await;
    }

    /// Conformance: semantics 6
    async fn a_container_that_is_given_up_while_it_is_made_is_asked_to_be_removed(bed: Bed) {
        let Some(scene) = Scene::set(&bed).await else { return };
        let sandbox = Sandbox::boot(scene.liar(&bed, "hangs-at-a-creation")).await.unwrap();
        let creation = sandbox.create_container(bed.member("never").idle());
        assert!(tokio::time::timeout(Duration::from_secs(1), creation).await.is_err(), "it hangs");
        let next = sandbox.create_container(bed.member("next").idle());
        tokio::time::timeout(Duration::from_secs(30) * patience(), next).await.unwrap().unwrap();
    }

    async fn a_boot_whose_start_fails_ends_in_the_containers_time(bed: Bed) {
        let Some(scene) = Scene::set(&bed).await else { return };
        let lie = "hangs-at-a-removal";
        let boot = Sandbox::boot(scene.liar(&bed, lie).timeout(Duration::from_secs(3)));
        let error = tokio::time::timeout(Duration::from_secs(60) * patience(), boot).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("cannot start the container"), "{error:?}");
        scene.is_as_before(lie, &[]).await;
    }

    /// Conformance: semantics 31
    async fn a_guest_that_falls_silent_is_bounded_by_the_containers_time(bed: Bed) {
        let Some(scene) = Scene::set(&bed).await else { return };
        let lie = "silent-later";
        let sandbox = Sandbox::boot(scene.liar(&bed, lie).timeout(Duration::from_secs(3))).await.unwrap();
        let pids = processes(&sandbox);
        let (asked, ended) = tokio::join!(sandbox.usage(), sandbox.ended());
        for error in [asked.unwrap_err(), ended.unwrap_err()] {
            check(&error, lie, ErrorKind::TimedOut, "the container ran longer than its timeout");
        }
        drop(sandbox);
        scene.is_as_before(lie, &pids).await;
    }
}

fn check(error: &Error, lie: &str, kind: ErrorKind, named: &str) {
    assert_eq!(error.kind(), kind, "{lie}: {error:?}");
    assert!(error.is_sandbox_lost(), "{lie}: {error:?}");
    assert!(chain(error).contains(named), "{lie}: {}", chain(error));
}

/// All that belong to a sandbox on the host.
fn processes(sandbox: &Sandbox) -> Vec<u32> {
    let pids = sandbox.info().pids.iter();
    pids.flat_map(|pid| std::iter::once(*pid).chain(descendants(*pid)))
        .collect()
}

/// One scene at a time: descriptors are this process's, whoever opened them.
static STAGE: Mutex<()> = Mutex::const_new(());

/// A sandbox that has nothing to do with the liars, and what there was before them.
struct Scene {
    honest: Sandbox,
    files: TempDir,
    descriptors: BTreeMap<String, usize>,
    traces: BTreeSet<String>,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    /// Nothing where no lie can be told, which is said.
    async fn set(bed: &Bed) -> Option<Self> {
        let alone = STAGE.lock().await;
        let honest = Sandbox::boot(bed.idle()).await.unwrap();
        assert_eq!(text(&script(&honest, "echo honest").await), "honest");
        if let Some(kernel) = &honest.info().kernel
            && !kernel.parent().is_some_and(|set| set.ends_with("tailored"))
        {
            bed.cannot_tell("its init loads no modules, which this kernel needs");
            return None;
        }
        // Its streams and those of a first boot are closed by tasks.
        let mut descriptors = open_descriptors();
        eventually("descriptors rest", async || {
            let before = std::mem::replace(&mut descriptors, open_descriptors());
            tokio::time::sleep(Duration::from_millis(200)).await;
            before == descriptors
        })
        .await;
        Some(Self {
            honest,
            files: tempfile::tempdir().unwrap(),
            descriptors,
            traces: traces(),
            _alone: alone,
        })
    }

    /// A container that idles in a sandbox whose agent tells this lie.
    fn liar(&self, bed: &Bed, lie: &str) -> Container {
        let liar = liar();
        let path = self.files.path().join(lie);
        if bed.has_guest() {
            std::fs::write(&path, guest(&liar, lie)).unwrap();
            return bed.idle().initramfs(path);
        }
        bed::executable(
            &path,
            &format!("#!/bin/sh\nexec '{}' {lie} \"$@\"\n", liar.display()),
        );
        bed.idle().agent(path)
    }

    /// Nothing of the liar is left, and the other sandbox goes on.
    async fn is_as_before(&self, lie: &str, pids: &[u32]) {
        all_gone(pids).await;
        eventually(&format!("{lie}: descriptors are as before"), async || {
            open_descriptors() == self.descriptors
        })
        .await;
        assert_eq!(traces(), self.traces, "{lie}");
        eventually(
            &format!("{lie}: processes are the honest sandbox's"),
            async || {
                let ours: BTreeSet<u32> = descendants(std::process::id()).into_iter().collect();
                ours == processes(&self.honest).into_iter().collect()
            },
        )
        .await;
        assert_eq!(text(&script(&self.honest, "echo still").await), "still", "{lie}");
    }
}

/// The program, which cargo builds beside the tests.
fn liar() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let target = exe.parent().and_then(Path::parent).unwrap();
    target.join("examples").join("lie")
}

/// An initramfs with the liar, its libraries, which are this test's, and its lie.
fn guest(liar: &Path, lie: &str) -> Vec<u8> {
    let mut builder = initramfs::Builder::new();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libraries: BTreeSet<&str> = maps
        .lines()
        .filter_map(|line| line.get(line.find('/')?..))
        .filter(|path| path.contains(".so"))
        .collect();
    for path in libraries {
        let bytes = std::fs::read(path).unwrap();
        // Where the program looks for its loader (System V ABI, AMD64 supplement, "Program Interpreter").
        if path.ends_with("/ld-linux-x86-64.so.2") {
            builder
                .file("/lib64/ld-linux-x86-64.so.2", 0o755, &bytes)
                .unwrap();
        } else {
            builder.file(path, 0o755, &bytes).unwrap();
        }
    }
    builder
        .file("/init", 0o755, &std::fs::read(liar).unwrap())
        .unwrap()
        .file("/lie", 0o644, lie.as_bytes())
        .unwrap()
        .device("/dev/console", 0o600, 5, 1)
        .unwrap()
        .device("/dev/null", 0o666, 1, 3)
        .unwrap()
        .build()
        .unwrap()
}

/// This process's descriptors by what they are, without those that each test's runtime has.
fn open_descriptors() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.display().to_string();
        if target.contains("[event") || target.contains("/fd") {
            continue;
        }
        let count = found.entry(target.clone()).or_insert(0);
        // A socket has a name of its own; runtimes share one for signals.
        *count = if target.starts_with("socket:") {
            1
        } else {
            *count + 1
        };
    }
    found
}
