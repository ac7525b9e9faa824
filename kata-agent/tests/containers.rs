//! Containers and their processes, on the agent as an ordinary process.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod harness;

use harness::{Agent, execution, text, user};
use kata_agent_proto::agent::StartContainerRequest;
use kata_agent_proto::{CallError, FailureKind, annotation};

fn kind<T: std::fmt::Debug>(result: Result<T, CallError>) -> FailureKind {
    result
        .expect_err("a failure")
        .kind()
        .expect("a failure with a kind")
}

#[tokio::test]
async fn a_container_runs_and_its_outputs_arrive_apart() {
    let Some(agent) = Agent::start().await else { return };
    assert!(agent.hello.process_mode && agent.hello.ready_ns >= agent.hello.init_start_ns);
    let (status, stdout, stderr) = agent.run("c1", "echo out; echo err >&2; hostname; exit 7").await;
    assert_eq!(
        (status, stdout.as_str(), stderr.as_str()),
        (7, "out\nbox\n", "err\n")
    );
}

#[tokio::test]
async fn a_status_is_the_code_or_128_and_the_signal() {
    let Some(agent) = Agent::start().await else { return };
    assert_eq!(agent.run("zero", "true").await.0, 0);
    agent.idle("idle").await;
    assert_eq!(
        agent
            .exec("idle", "term", &["sh", "-c", "kill -TERM $$"])
            .await
            .unwrap()
            .0,
        143
    );
    assert_eq!(
        agent
            .exec("idle", "code", &["sh", "-c", "exit 42"])
            .await
            .unwrap()
            .0,
        42
    );
}

/// Conformance: semantics 5
#[tokio::test]
async fn waiting_works_during_and_after_the_exit_from_several_waiters_until_removal() {
    let Some(agent) = Agent::start().await else { return };
    agent
        .start_container(agent.container("c1", &["sleep", "1000"]))
        .await
        .unwrap();
    let (first, second, killed) = tokio::join!(
        agent.wait("c1", "c1"),
        agent.wait("c1", "c1"),
        agent.signal("c1", "c1", 9)
    );
    killed.unwrap();
    assert_eq!((first, second), (Ok(137), Ok(137)));
    assert_eq!(agent.wait("c1", "c1").await, Ok(137));
    agent.remove("c1").await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Err(CallError::NotFound));
    assert_eq!(agent.remove("c1").await, Err(CallError::NotFound));
}

#[tokio::test]
async fn what_cannot_be_executed_is_told_by_kind_before_anything_is_made() {
    let Some(agent) = Agent::start().await else { return };
    let created = |args: &[&str]| agent.client.create_container(agent.container("c1", args));
    assert_eq!(kind(created(&["nosuch"]).await), FailureKind::NotFound);
    assert_eq!(kind(created(&["/data/plain"]).await), FailureKind::NotExecutable);
    let mut request = agent.container("c1", &["true"]);
    request.string_user = Some(user("nobody", "")).into();
    assert_eq!(
        kind(agent.client.create_container(request).await),
        FailureKind::NoSuchUser
    );

    agent.idle("c1").await;
    assert_eq!(
        kind(agent.exec("c1", "e", &["nosuch"]).await),
        FailureKind::NotFound
    );
    assert_eq!(
        kind(agent.exec("c1", "e", &["/bin/nosuch"]).await),
        FailureKind::NotFound
    );
    assert_eq!(
        kind(agent.exec("c1", "e", &["/data/plain"]).await),
        FailureKind::NotExecutable
    );
    let mut request = execution("c1", "e", &["true"]);
    request.process.mut_or_insert_default().cwd = "/nosuch".into();
    assert_eq!(
        kind(agent.client.exec_process(request).await),
        FailureKind::NoSuchDirectory
    );
    let mut request = execution("c1", "e", &["true"]);
    request.string_user = Some(user("nobody", "")).into();
    assert_eq!(
        kind(agent.client.exec_process(request).await),
        FailureKind::NoSuchUser
    );
    assert_eq!(
        agent.exec("c1", "e", &["true"]).await.unwrap().0,
        0,
        "the name is free after failures"
    );
}

#[tokio::test]
async fn a_program_that_fails_to_execute_fails_the_start_and_ends_with_126() {
    let Some(agent) = Agent::start().await else { return };
    let started = agent
        .start_container(agent.container("c1", &["/data/broken"]))
        .await;
    let expected = CallError::Failed {
        kind: FailureKind::NotExecutable,
        subject: "/data/broken".into(),
    };
    assert_eq!(started, Err(expected));
    assert_eq!(agent.wait("c1", "c1").await, Ok(126));
    agent.remove("c1").await.unwrap();
}

#[tokio::test]
async fn requests_in_the_wrong_state_are_refused_by_kind() {
    let Some(agent) = Agent::start().await else { return };
    agent
        .client
        .create_container(agent.container("c1", &["sleep", "1000"]))
        .await
        .unwrap();
    let again = agent
        .client
        .create_container(agent.container("c1", &["true"]))
        .await;
    assert_eq!(kind(again), FailureKind::AlreadyExists);
    assert_eq!(
        kind(agent.exec("c1", "e", &["true"]).await),
        FailureKind::NotRunning
    );
    assert_eq!(kind(agent.signal("c1", "c1", 15).await), FailureKind::NotRunning);
    let start = || StartContainerRequest {
        container_id: "c1".into(),
        ..Default::default()
    };
    agent.client.start_container(start()).await.unwrap();
    assert_eq!(
        kind(agent.client.start_container(start()).await),
        FailureKind::AlreadyExists
    );
    assert_eq!(
        kind(agent.exec("c1", "c1", &["true"]).await),
        FailureKind::AlreadyExists
    );
    assert_eq!(kind(agent.signal("c1", "c1", 65).await), FailureKind::Invalid);
    agent.signal("c1", "", 9).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(137));
    assert_eq!(kind(agent.signal("c1", "c1", 15).await), FailureKind::NotRunning);
    assert_eq!(
        kind(agent.exec("c1", "e", &["true"]).await),
        FailureKind::NotRunning
    );
    assert_eq!(agent.wait("c1", "nosuch").await, Err(CallError::NotFound));
}

#[tokio::test]
async fn a_kill_before_the_start_ends_the_container() {
    let Some(agent) = Agent::start().await else { return };
    agent
        .client
        .create_container(agent.container("c1", &["true"]))
        .await
        .unwrap();
    agent.signal("c1", "c1", 9).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(137));
    agent.remove("c1").await.unwrap();
}

#[tokio::test]
async fn a_termination_is_delivered_once() {
    let Some(agent) = Agent::start().await else { return };
    let script = "n=0; trap 'n=$((n+1)); echo $n' TERM; echo ready; while [ $n -lt 2 ]; do sleep 0.05; done";
    let mut request = agent.container("c1", &["sh", "-c", script]);
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    agent.start_container(request).await.unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stdout));
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
    for count in ["1", "2"] {
        agent.signal("c1", "c1", 15).await.unwrap();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some(count));
    }
    assert_eq!(agent.wait("c1", "c1").await, Ok(0));
    assert_eq!(lines.next_line().await.unwrap(), None);
}

#[tokio::test]
async fn an_idle_container_ends_when_it_is_told_to() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let (status, processes) = agent.exec("c1", "e", &["cat", "/proc/1/comm"]).await.unwrap();
    assert_eq!((status, processes.as_str()), (0, "pause\n"));
    agent.signal("c1", "c1", 15).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(0));
}

#[tokio::test]
async fn a_user_has_its_groups_home_and_streams() {
    let Some(agent) = Agent::start().await else { return };
    let script = "id -u; id -g; id -G; echo $HOME; pwd; echo opened > /dev/stdout";
    let mut request = agent.container("c1", &["sh", "-c", script]);
    request.string_user = Some(user("web", "")).into();
    request
        .oci
        .mut_or_insert_default()
        .process
        .mut_or_insert_default()
        .cwd = "/made/for/it".into();
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    agent.start_container(request).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(0));
    assert_eq!(
        harness::text(stdout).await,
        "33\n34\n34 29\n/data\n/made/for/it\nopened\n"
    );
}

#[tokio::test]
async fn missing_files_of_etc_are_made() {
    let Some(agent) = Agent::start().await else { return };
    let (status, stdout, stderr) = agent
        .run("c1", "cat /etc/resolv.conf /etc/hosts /etc/hostname")
        .await;
    assert_eq!(status, 0, "{stderr}");
    assert!(
        stdout.contains("nameserver 192.0.2.1\n") && stdout.contains("127.0.1.1\tbox\n"),
        "{stdout}"
    );
}

/// Conformance: semantics 4
#[tokio::test]
async fn orphans_are_reaped() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    // The grandchildren lose their parents; without a reaper they would stay zombies.
    let script = "for i in 1 2 3 4 5; do (sleep 0 & exec true) & done; wait";
    assert_eq!(agent.exec("c1", "e", &["sh", "-c", script]).await.unwrap().0, 0);
    for attempt in 0.. {
        let (_, states) = agent
            .exec(
                "c1",
                &format!("ps{attempt}"),
                &["sh", "-c", "cat /proc/[0-9]*/stat"],
            )
            .await
            .unwrap();
        if !states.contains(") Z ") {
            break;
        }
        assert!(attempt < 50, "{states}");
    }
    let zombies = children_of(&agent)
        .into_iter()
        .filter(|stat| stat.contains(") Z "))
        .collect::<Vec<_>>();
    assert!(zombies.len() <= 1, "{zombies:?}");
}

/// The stat lines of the children of the agent proper.
fn children_of(agent: &Agent) -> Vec<String> {
    let children = |pid: &str| {
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let agent = children(&agent.process.id().to_string());
    let pids = agent.iter().flat_map(|pid| children(pid));
    pids.filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .collect()
}

#[tokio::test]
async fn statistics_are_of_the_container() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let request = kata_agent_proto::agent::StatsContainerRequest {
        container_id: "c1".into(),
        ..Default::default()
    };
    agent
        .exec(
            "c1",
            "e",
            &["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"],
        )
        .await
        .unwrap();
    let stats = agent.client.stats_container(request).await.unwrap();
    assert!(stats.cgroup_stats.cpu_stats.cpu_usage.total_usage > 1_000_000);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_name() {
    let Some(agent) = Agent::start().await else { return };
    let mut request = agent.container("c1", &["true"]);
    request
        .oci
        .mut_or_insert_default()
        .linux
        .mut_or_insert_default()
        .mount_label = "a:b".into();
    let error = agent.client.create_container(request).await.expect_err("refused");
    assert_eq!(
        error,
        CallError::Failed {
            kind: FailureKind::Unsupported,
            subject: "linux.mountLabel: SELinux labels".into()
        }
    );
    let mut request = agent.container("c1", &["true"]);
    request.storages[0].source = "nosuch".into();
    assert_eq!(
        kind(agent.client.create_container(request).await),
        FailureKind::NoSuchDisk
    );
    let mut request = agent.container("c1", &["true"]);
    request.stdout_port = 4711;
    assert_eq!(
        kind(agent.client.create_container(request).await),
        FailureKind::NoSuchStream
    );
    assert_eq!(agent.run("c1", "true").await.0, 0, "nothing was left behind");
}

/// The numbers of a line of proc(5) `status` that is a mask of signals.
fn mask(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

/// Conformance: semantics 6
#[tokio::test]
async fn a_signal_right_after_the_start_of_an_idle_container_is_not_lost() {
    let Some(agent) = Agent::start().await else { return };
    agent
        .client
        .create_container(agent.container("c1", &[]))
        .await
        .unwrap();
    // Before the start already, so there is no moment in which one could be lost.
    let processes = std::fs::read_to_string(agent.cgroup("c1").join("cgroup.procs")).unwrap();
    let init = processes.trim();
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    let terminate = 1 << (15 - 1);
    assert_ne!(mask(&status, "SigBlk:") & terminate, 0, "{status}");
    let start = StartContainerRequest {
        container_id: "c1".into(),
        ..Default::default()
    };
    agent.client.start_container(start).await.unwrap();
    agent.signal("c1", "c1", 15).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(0));
}

#[tokio::test]
async fn directories_that_are_asked_for_are_there() {
    let Some(agent) = Agent::start().await else { return };
    let script = "stat -c '%n %a %u' /srv/new/deep /tmp; test ! -e /dev/no && echo hidden";
    let mut request = agent.container("c1", &["sh", "-c", script]);
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    let asked = "/srv/new/deep\n/tmp\n/dev/no".to_owned();
    let spec = request.oci.mut_or_insert_default();
    spec.annotations.insert(annotation::DIRECTORIES.into(), asked);
    let (_, tmp, _) = agent.run("before", "stat -c '%n %a %u' /tmp").await;
    let expected = format!("/srv/new/deep 755 0\n{tmp}hidden\n");
    agent.start_container(request).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(0));
    assert_eq!(text(stdout).await, expected);
}
