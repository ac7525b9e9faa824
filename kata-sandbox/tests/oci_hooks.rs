//! `hooks` of a specification: when they run, where, what they are told, and what their failure means.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;
mod guest;

use std::time::Duration;

use bed::{Bed, eventually};
use guest::{Guest, RESULTS, ROOT, bind, looks_outside, process, spec};
use kata_agent_proto::agent::{SignalProcessRequest, StatsContainerRequest};
use kata_agent_proto::{FailureKind, oci};

/// A shell of the idle container's root, for where there is no other: by its loader, without anything of that root.
fn outside(script: &str) -> oci::Hook {
    // By no link that begins at the root, which is another here.
    let loader = format!("{ROOT}/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let libraries = format!("{ROOT}/lib/x86_64-linux-gnu");
    oci::Hook {
        path: loader.clone(),
        args: vec![
            loader,
            "--library-path".into(),
            libraries,
            format!("{ROOT}/bin/bash"),
            "-c".into(),
            script.into(),
        ],
        env: vec!["WORD=hook".into()],
        ..Default::default()
    }
}

fn inside(script: &str) -> oci::Hook {
    oci::Hook {
        path: "/bin/bash".into(),
        args: ["bash", "-c", script].map(String::from).to_vec(),
        ..Default::default()
    }
}

/// Builtins only: its name, the host name that it sees, whether it sees the agent's root, and the state.
fn told(name: &str, results: &str) -> String {
    format!(
        "read -r host </proc/sys/kernel/hostname; root=no; [ -d {ROOT} ] && root=yes; read -r state; \
         echo \"{name} $host $root $WORD $state\" >>{results}/order"
    )
}

/// Says which processes of this agent are hooks that wait at the pipe.
fn hook_processes() -> oci::Spec {
    let mut spec = looks_outside(&format!(
        "for process in /agent/proc/[0-9]*; do \
             tr '\\0' ' ' <$process/cmdline | grep '{RESULTS}/neve[r]'; \
         done 2>/dev/null; true"
    ));
    spec.mounts.push(bind("/proc", "/agent/proc", &["rbind", "ro"]));
    spec
}

fn hooked(script: &str) -> oci::Spec {
    let mut spec = spec(script);
    spec.hostname = "box".into();
    spec.annotations.insert("key".into(), "value".into());
    spec
}

on_every_backend! {
    /// Conformance: oci hooks.prestart
    /// Conformance: oci hooks.createRuntime
    /// Conformance: oci hooks.createContainer
    /// Conformance: oci hooks.startContainer
    /// Conformance: oci hooks.poststart
    /// Conformance: oci hooks.poststop
    async fn hooks_run_at_their_moments_in_their_namespaces(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let results = format!("{ROOT}{RESULTS}");
        let mut spec = hooked(&format!("echo program >>{RESULTS}/order; sleep 1000"));
        spec.hooks = Some(oci::Hooks {
            prestart: vec![outside(&told("prestart", &results)), outside(&told("again", &results))],
            create_runtime: vec![outside(&told("createRuntime", &results))],
            create_container: vec![outside(&told("createContainer", &results))],
            start_container: vec![inside(&told("startContainer", RESULTS))],
            poststart: vec![outside(&told("poststart", &results))],
            poststop: vec![outside(&told("poststop", &results)), outside("exit 3"), outside(&told("last", &results))],
            ..Default::default()
        })
        .into();
        let agents = guest.shell("true").await;
        assert_eq!(agents, "");
        guest.create("hooked", spec).await;
        let created = guest.result("order").await;
        let names = |text: &str| text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&created), ["prestart", "again", "createRuntime", "createContainer"]);
        guest.start("hooked").await.unwrap();
        // The program runs, and so its word may come before or after that of the hook that follows its start.
        eventually("the program says so", async || guest.result("order").await.contains("program")).await;
        let mut started = names(&guest.result("order").await);
        assert_eq!(started.remove(4), "startContainer");
        started.sort();
        assert!(started.ends_with(&["prestart".into(), "program".into()]) && started.contains(&"poststart".into()), "{started:?}");
        guest.kill("hooked").await;
        assert_eq!(guest.wait("hooked", "hooked").await, 137);
        guest.remove("hooked").await;

        let order = guest.result("order").await;
        assert_eq!(names(&order)[7..], ["poststop", "last"], "{order}");
        for line in order.lines().filter(|line| *line != "program") {
            let words: Vec<&str> = line.splitn(5, ' ').collect();
            let [name, host, root, word, state] = words[..] else { panic!("{line}") };
            let in_container = matches!(name, "createContainer" | "startContainer");
            assert_eq!(host == "box", in_container, "the UTS namespace of {line}");
            // Before the root is entered, the agent's files are still there.
            assert_eq!(root == "yes", name != "startContainer", "the root of {line}");
            assert_eq!(word, if name == "startContainer" { "" } else { "hook" }, "the environment of {line}");
            let status = match name {
                "prestart" | "again" | "createRuntime" | "createContainer" => "creating",
                "startContainer" => "created",
                "poststart" => "running",
                _ => "stopped",
            };
            let part = |text: String| assert!(state.contains(&text), "{text} is not in {line}");
            part(format!("\"status\":\"{status}\""));
            part("\"id\":\"hooked\"".into());
            part("\"ociVersion\":\"1.2.0\"".into());
            part("\"annotations\":{\"key\":\"value\"}".into());
            part("\"bundle\":\"/".into());
            assert_eq!(state.contains("\"pid\":"), status != "stopped", "{line}");
            assert_eq!(state.contains("\"pid\":1,"), in_container, "its number where it runs: {line}");
        }
        guest.stop().await;
    }

    async fn a_hook_that_fails_is_told_and_leaves_nothing(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let before = guest.traces().await;
        let results = format!("{ROOT}{RESULTS}");
        let after = || vec![outside(&format!("echo after >>{results}/after"))];
        let with = |change: &dyn Fn(&mut oci::Hooks)| {
            let mut spec = hooked("echo ran");
            let mut hooks = oci::Hooks { poststop: after(), ..Default::default() };
            change(&mut hooks);
            spec.hooks = Some(hooks).into();
            spec
        };
        let fails = || vec![outside("exit 0"), outside("echo why >&2; exit 3")];
        let told = |stage: &str| format!("hooks.{stage}[1]: ");
        type Change<'a> = &'a dyn Fn(&mut oci::Hooks);
        let cases: [(&str, Change<'_>); 3] = [
            ("prestart", &|hooks| hooks.prestart = fails()),
            ("createRuntime", &|hooks| hooks.create_runtime = fails()),
            ("createContainer", &|hooks| hooks.create_container = fails()),
        ];
        for (stage, change) in cases {
            let (kind, subject) = guest.refused(with(change)).await;
            assert_eq!(kind, FailureKind::Container);
            assert!(subject.starts_with(&told(stage)) && subject.ends_with("exit status 3: why"), "{subject}");
        }
        // What follows the end of a container follows the end of one that never was.
        assert_eq!(guest.result("after").await, "after\nafter\nafter");
        let start = with(&|hooks| hooks.start_container = vec![inside("exit 0"), inside("echo why; kill -9 $$")]);
        let (_, subject) = guest.refused_start(start).await;
        assert!(subject.starts_with(&told("startContainer")) && subject.ends_with("killed by signal 9: why"), "{subject}");

        // One that follows the start ends what was started.
        let id = guest.fresh();
        let mut spec = with(&|hooks| hooks.poststart = fails());
        spec.process.mut_or_insert_default().args = ["sleep", "1000"].map(String::from).to_vec();
        guest.create(&id, spec).await;
        let failed = guest.start(&id).await.unwrap_err().to_string();
        assert!(failed.contains(&told("poststart")), "{failed}");
        assert_eq!(guest.wait(&id, &id).await, 137);
        guest.remove(&id).await;

        // One that takes too long is killed; one that is not there is a failure as well.
        let mut slow = outside("while :; do read -t 1 x <>/dev/zero; done");
        slow.timeout = 1;
        let (_, subject) = guest.refused(with(&|hooks| hooks.prestart = vec![slow.clone()])).await;
        assert!(subject.starts_with("hooks.prestart[0]: ") && subject.ends_with("not done in 1s"), "{subject}");
        let nowhere = oci::Hook { path: "/no/such/hook".into(), ..Default::default() };
        let (_, subject) = guest.refused(with(&|hooks| hooks.create_container = vec![nowhere.clone()])).await;
        assert!(subject.starts_with("hooks.createContainer[0]: /no/such/hook"), "{subject}");
        let relative = oci::Hook { path: "hook".into(), ..Default::default() };
        guest.refused_as(with(&|hooks| hooks.poststop = vec![relative.clone()]), FailureKind::Invalid, "hooks.poststop[0].path").await;
        assert_eq!(guest.traces().await, before, "nothing is left");
        guest.stop().await;
    }

    /// Conformance: semantics 6
    async fn a_making_that_hangs_holds_up_no_other_container(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let before = guest.traces().await;
        let results = format!("{ROOT}{RESULTS}");
        guest.shell(&format!("mkfifo {RESULTS}/go")).await;
        let other = guest.idle(spec("")).await;
        let mut slow = spec("true");
        let waits = outside(&format!("echo begun >{results}/begun; read -r go <{results}/go"));
        slow.hooks = Some(oci::Hooks { prestart: vec![waits], ..Default::default() }).into();
        let mut making = Box::pin(guest.create("slow", slow.clone()));
        tokio::select! {
            () = &mut making => panic!("it waits for its hook"),
            () = eventually("the hook runs", async || guest.result("begun").await == "begun") => {}
        }
        let others = async {
            let stats = StatsContainerRequest { container_id: other.clone(), ..Default::default() };
            guest.client.stats_container(stats).await.unwrap();
            assert_eq!(guest.exec(&other, process("echo answers")).await.output, "answers");
            guest.kill(&other).await;
            assert_eq!(guest.wait(&other, &other).await, 137);
            guest.remove(&other).await;
            assert_eq!(guest.output(spec("echo another")).await, "another");
            let again = guest.try_create("slow", slow, None).await.unwrap_err();
            assert_eq!(again.kind(), Some(FailureKind::AlreadyExists), "it is being made");
        };
        tokio::select! {
            () = &mut making => panic!("it waits for its hook"),
            done = tokio::time::timeout(Duration::from_secs(30) * bed::patience(), others) => done.unwrap(),
        }
        let go = format!("echo go >{RESULTS}/go");
        tokio::join!(making, guest.shell(&go));
        guest.start("slow").await.unwrap();
        assert_eq!(guest.wait("slow", "slow").await, 0);
        guest.remove("slow").await;
        assert_eq!(guest.traces().await, before, "nothing is left");
        guest.stop().await;
    }

    /// Conformance: semantics 6
    /// Conformance: semantics 19
    /// Conformance: api SignalProcess
    /// Conformance: api RemoveContainer
    async fn a_making_that_hangs_can_be_ended(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let before = guest.traces().await;
        let hanging = |name: &str, in_container: bool| {
            let hook = outside(&format!("echo begun >{ROOT}{RESULTS}/{name}; read -r x <>{ROOT}{RESULTS}/never"));
            let mut spec = spec("true");
            let mut hooks = oci::Hooks::default();
            *(if in_container { &mut hooks.create_container } else { &mut hooks.create_runtime }) = vec![hook];
            spec.hooks = Some(hooks).into();
            spec
        };
        guest.shell(&format!("mkfifo {RESULTS}/never")).await;
        for (round, (in_container, removed)) in [(false, false), (true, true)].into_iter().enumerate() {
            let name = format!("begun{round}");
            let mut making = Box::pin(guest.try_create("hangs", hanging(&name, in_container), None));
            tokio::select! {
                made = &mut making => panic!("it waits for its hook: {made:?}"),
                () = eventually("the hook runs", async || guest.result(&name).await == "begun") => {}
            }
            assert_ne!(guest.output(hook_processes()).await, "", "one is seen");
            let early = SignalProcessRequest { container_id: "hangs".into(), signal: 15, ..Default::default() };
            let refused = guest.client.signal_process(early).await.unwrap_err();
            assert_eq!(refused.kind(), Some(FailureKind::NotRunning), "{refused}");
            if removed {
                guest.remove("hangs").await;
            } else {
                guest.kill("hangs").await;
            }
            let ended = tokio::time::timeout(Duration::from_secs(30) * bed::patience(), making).await.unwrap().unwrap_err();
            assert_eq!(ended.kind(), Some(FailureKind::NotRunning), "{ended}");
            assert!(ended.to_string().contains("hangs was killed while it was made"), "{ended}");
            let left = guest.output(hook_processes()).await;
            assert_eq!(left, "", "no process of a hook is left");
            assert_eq!(guest.traces().await, before, "nothing is left");
        }
        assert_eq!(guest.output(spec("echo another")).await, "another");

        // A sandbox ends with what is made in it.
        let mut making = Box::pin(guest.try_create("hangs", hanging("last", false), None));
        tokio::select! {
            made = &mut making => panic!("it waits for its hook: {made:?}"),
            () = eventually("the hook runs", async || guest.result("last").await == "begun") => {}
        }
        let (ended, destroyed) = tokio::time::timeout(Duration::from_secs(30) * bed::patience(), async {
            tokio::join!(making, guest.client.destroy_sandbox(Default::default()))
        }).await.unwrap();
        destroyed.unwrap();
        assert_eq!(ended.unwrap_err().kind(), Some(FailureKind::NotRunning));
    }
}
