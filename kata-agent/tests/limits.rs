//! Limits, device rules, freezing and figures, on the agent as an ordinary process.
//!
//! What the machine's cgroup v2 has no controller for is tested on files in the agent itself.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod harness;

use std::fs;
use std::time::Duration;

use harness::{Agent, DEADLINE, execution};
use kata_agent_proto::agent::{
    CreateContainerRequest, GetOOMEventRequest, OOMEvent, PauseContainerRequest, ResumeContainerRequest,
    StartContainerRequest, StatsContainerRequest, StatsContainerResponse, UpdateContainerRequest,
};
use kata_agent_proto::agent_ttrpc::AgentServiceClient;
use kata_agent_proto::{Failed, FailureKind, oci};
use tokio::io::{AsyncBufReadExt, BufReader};
use ttrpc::context::{self, Context};

/// How a request ended that has no answer but its end.
#[derive(Debug, PartialEq)]
enum End {
    Done,
    NotFound,
    Failed(Failed),
}

impl End {
    fn kind(&self) -> Option<FailureKind> {
        match self {
            End::Failed(failed) => Some(failed.kind),
            _ => None,
        }
    }
}

fn end<T>(answer: ttrpc::Result<T>) -> End {
    match answer {
        Ok(_) => End::Done,
        Err(ttrpc::Error::RpcStatus(status)) => match Failed::from_status(&status) {
            Some(failed) => End::Failed(failed),
            None if status.code() == ttrpc::Code::NOT_FOUND => End::NotFound,
            None => panic!("{status:?}"),
        },
        Err(error) => panic!("{error}"),
    }
}

fn deadline() -> Context {
    context::with_duration(DEADLINE)
}

async fn pause(api: &AgentServiceClient, id: &str) -> End {
    let request = PauseContainerRequest {
        container_id: id.into(),
        ..Default::default()
    };
    end(api.pause_container(deadline(), &request).await)
}

async fn resume(api: &AgentServiceClient, id: &str) -> End {
    let request = ResumeContainerRequest {
        container_id: id.into(),
        ..Default::default()
    };
    end(api.resume_container(deadline(), &request).await)
}

async fn stats(api: &AgentServiceClient, id: &str) -> ttrpc::Result<StatsContainerResponse> {
    let request = StatsContainerRequest {
        container_id: id.into(),
        ..Default::default()
    };
    api.stats_container(deadline(), &request).await
}

async fn update(api: &AgentServiceClient, id: &str, resources: oci::LinuxResources) -> End {
    let request = UpdateContainerRequest {
        container_id: id.into(),
        resources: Some(resources).into(),
        ..Default::default()
    };
    end(api.update_container(deadline(), &request).await)
}

fn start(id: &str) -> StartContainerRequest {
    StartContainerRequest {
        container_id: id.into(),
        ..Default::default()
    }
}

fn huge_pages(limit: u64) -> oci::LinuxResources {
    oci::LinuxResources {
        hugepage_limits: vec![oci::LinuxHugepageLimit {
            pagesize: "2MB".into(),
            limit,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn frozen(agent: &Agent, id: &str) -> bool {
    let events = fs::read_to_string(agent.cgroup(id).join("cgroup.events")).unwrap();
    events.contains("frozen 1")
}

#[tokio::test]
async fn a_paused_container_stands_still_until_it_is_resumed() {
    let Some(agent) = Agent::start().await else { return };
    let api = agent.every_method();
    agent.idle("c1").await;
    assert_eq!(resume(&api, "c1").await, End::Done, "it runs");
    for _ in 0..2 {
        assert_eq!(pause(&api, "c1").await, End::Done);
        assert!(frozen(&agent, "c1"));
    }
    let exec = agent.exec("c1", "e", &["true"]);
    tokio::pin!(exec);
    tokio::select! {
        _ = &mut exec => panic!("a process ran in a frozen container"),
        stats = stats(&api, "c1") => assert!(stats.is_ok()),
    }
    assert_eq!(resume(&api, "c1").await, End::Done);
    assert!(!frozen(&agent, "c1"));
    let executed = tokio::time::timeout(DEADLINE, exec).await.expect("it goes on");
    assert_eq!(executed.unwrap().0, 0);
}

#[tokio::test]
async fn a_kill_succeeds_while_stats_and_exec_wait_on_a_frozen_container() {
    let Some(agent) = Agent::start().await else { return };
    let api = agent.every_method();
    for (id, exec_id) in [("one", "one"), ("all", "")] {
        agent.idle(id).await;
        assert_eq!(pause(&api, id).await, End::Done);
        let client = agent.connect();
        let exec =
            tokio::spawn(async move { client.exec_process(execution(id, "e", &["sleep", "1000"])).await });
        stats(&api, id).await.unwrap();
        assert!(!exec.is_finished() && frozen(&agent, id));
        let (killed, figures) = tokio::join!(agent.signal(id, exec_id, 9), stats(&api, id));
        killed.unwrap();
        figures.unwrap();
        assert_eq!(agent.wait(id, id).await, Ok(137));
        // Its process was killed too, or was too late.
        let exec = tokio::time::timeout(DEADLINE, exec)
            .await
            .expect("an end")
            .unwrap();
        if let Err(error) = exec {
            assert_eq!(error.kind(), Some(FailureKind::NotRunning), "{error}");
        }
        agent.remove(id).await.unwrap();
    }
}

#[tokio::test]
async fn a_frozen_container_is_removed_and_destroyed() {
    let Some(agent) = Agent::start().await else { return };
    let api = agent.every_method();
    for id in ["removed", "destroyed"] {
        agent.idle(id).await;
        assert_eq!(pause(&api, id).await, End::Done);
    }
    agent.remove("removed").await.unwrap();
    assert_eq!(pause(&api, "removed").await, End::NotFound);
    agent.destroy().await.unwrap();
}

#[tokio::test]
async fn a_termination_reaches_a_frozen_container_when_it_goes_on() {
    let Some(agent) = Agent::start().await else { return };
    let api = agent.every_method();
    let script = "trap 'exit 3' TERM; echo ready; while true; do sleep 0.05; done";
    let mut request = agent.container("c1", &["sh", "-c", script]);
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    agent.start_container(request).await.unwrap();
    let mut lines = BufReader::new(stdout).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
    assert_eq!(pause(&api, "c1").await, End::Done);
    agent.signal("c1", "c1", 15).await.unwrap();
    assert!(frozen(&agent, "c1"));
    assert_eq!(resume(&api, "c1").await, End::Done);
    assert_eq!(agent.wait("c1", "c1").await, Ok(3));
}

#[tokio::test]
async fn only_what_runs_can_be_paused_and_only_what_is_there_can_be_asked() {
    let Some(agent) = Agent::start().await else { return };
    let api = agent.every_method();
    assert_eq!(pause(&api, "c1").await, End::NotFound);
    assert_eq!(resume(&api, "c1").await, End::NotFound);
    assert_eq!(update(&api, "c1", huge_pages(1)).await, End::NotFound);
    assert_eq!(end(stats(&api, "c1").await), End::NotFound);

    agent
        .client
        .create_container(agent.container("c1", &[]))
        .await
        .unwrap();
    for not_started in [pause(&api, "c1").await, resume(&api, "c1").await] {
        assert_eq!(not_started.kind(), Some(FailureKind::NotRunning));
    }
    assert_eq!(end(stats(&api, "c1").await), End::Done);
    assert_eq!(update(&api, "c1", oci::LinuxResources::new()).await, End::Done);

    agent.client.start_container(start("c1")).await.unwrap();
    agent.signal("c1", "c1", 9).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(137));
    for ended in [
        pause(&api, "c1").await,
        resume(&api, "c1").await,
        update(&api, "c1", huge_pages(1)).await,
    ] {
        assert_eq!(ended.kind(), Some(FailureKind::NotRunning));
    }
    assert_eq!(end(stats(&api, "c1").await), End::Done);
}

/// Conformance: semantics 15
#[tokio::test]
async fn limits_are_set_at_the_creation_and_changed_later_all_or_none() {
    let Some(agent) = Agent::start().await else { return };
    let api = agent.every_method();
    let test = "limits_are_set_at_the_creation_and_changed_later_all_or_none";
    if !has(&agent, "hugetlb.2MB.max", test) {
        return;
    }
    let mut request = agent.container("c1", &[]);
    linux(&mut request).resources = Some(huge_pages(4 << 20)).into();
    agent.client.create_container(request).await.unwrap();
    let limit = || fs::read_to_string(agent.cgroup("c1").join("hugetlb.2MB.max")).unwrap();
    assert_eq!(limit(), "4194304\n");
    assert_eq!(update(&api, "c1", huge_pages(6 << 20)).await, End::Done);
    agent.client.start_container(start("c1")).await.unwrap();
    assert_eq!(limit(), "6291456\n");
    assert_eq!(pause(&api, "c1").await, End::Done);
    assert_eq!(update(&api, "c1", huge_pages(8 << 20)).await, End::Done);
    assert_eq!(limit(), "8388608\n");

    let mut resources = huge_pages(2 << 20);
    resources.memory.mut_or_insert_default().swappiness = 1;
    let refused = update(&api, "c1", resources).await;
    assert_eq!(refused.kind(), Some(FailureKind::Unsupported), "{refused:?}");
    let mut resources = huge_pages(2 << 20);
    resources.hugepage_limits.push(oci::LinuxHugepageLimit {
        pagesize: "3MB".into(),
        ..Default::default()
    });
    let refused = update(&api, "c1", resources).await;
    let subject = "hugepage_limits.3MB: the kernel has no hugetlb.3MB.max for it";
    let expected = Failed::new(FailureKind::Unsupported, subject);
    assert_eq!(refused, End::Failed(expected));
    assert_eq!(limit(), "8388608\n", "nothing of it was done");
}

fn linux(request: &mut CreateContainerRequest) -> &mut oci::Linux {
    request.oci.mut_or_insert_default().linux.mut_or_insert_default()
}

fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> oci::LinuxDeviceCgroup {
    oci::LinuxDeviceCgroup {
        allow,
        type_: kind.into(),
        major,
        minor,
        access: access.into(),
        ..Default::default()
    }
}

fn rules(devices: Vec<oci::LinuxDeviceCgroup>) -> oci::LinuxResources {
    oci::LinuxResources {
        devices,
        ..Default::default()
    }
}

/// A container with the kernel's log as `/dev/log-device`.
fn with_log_device(agent: &Agent, id: &str, devices: Vec<oci::LinuxDeviceCgroup>) -> CreateContainerRequest {
    let mut request = agent.container(id, &[]);
    linux(&mut request).devices = vec![oci::LinuxDevice {
        path: "/dev/log-device".into(),
        type_: "c".into(),
        major: 1,
        minor: 11,
        file_mode: 0o666,
        ..Default::default()
    }];
    linux(&mut request).resources = Some(rules(devices)).into();
    request
}

/// Whether a device can be opened for writing; nothing is written.
async fn opens(agent: &Agent, id: &str, exec_id: &str, device: &str) -> bool {
    let script = format!(": > {device}");
    let executed = agent.exec(id, exec_id, &["sh", "-c", &script]).await;
    executed.unwrap().0 == 0
}

/// Without rules a node of another's device can be made, and not opened; an update without rules changes nothing.
async fn default_rules_hold(agent: &Agent, api: &AgentServiceClient) {
    agent
        .start_container(agent.container("default", &[]))
        .await
        .unwrap();
    let made = "mknod /dev/log c 1 11 && mknod /dev/disk b 7 0 && mknod /dev/nothing c 1 3";
    let made = agent.exec("default", "made", &["sh", "-c", made]).await;
    assert_eq!(made.unwrap().0, 0, "mknod");
    for when in ["before", "after"] {
        for (device, allowed) in [("log", false), ("disk", false), ("nothing", true), ("zero", true)] {
            let exec_id = format!("{device}-{when}");
            let opened = opens(agent, "default", &exec_id, &format!("/dev/{device}")).await;
            assert_eq!(opened, allowed, "{device} {when}");
        }
        assert_eq!(update(api, "default", rules(vec![])).await, End::Done);
    }
}

/// Conformance: semantics 15
#[tokio::test]
async fn device_rules_hold_and_can_be_changed() {
    let Some(agent) = Agent::start().await else { return };
    let api = agent.every_method();
    let deny_all = || rule(false, "", 0, 0, "rwm");
    let allow_all = || rule(true, "a", -1, -1, "rwm");
    for (id, devices, allowed) in [
        // Without any rule, what the specification itself has is allowed.
        ("none", vec![], true),
        ("all", vec![allow_all()], true),
        ("denied", vec![deny_all()], false),
        ("reading", vec![deny_all(), rule(true, "c", 1, 11, "r")], false),
        ("allowed", vec![deny_all(), rule(true, "c", 1, 11, "rw")], true),
        ("taken", vec![allow_all(), rule(false, "c", 1, 11, "w")], false),
    ] {
        let request = with_log_device(&agent, id, devices);
        agent.start_container(request).await.unwrap();
        assert_eq!(opens(&agent, id, "log", "/dev/log-device").await, allowed, "{id}");
        assert!(opens(&agent, id, "null", "/dev/null").await, "{id}");
        assert!(opens(&agent, id, "pts", "/dev/ptmx").await, "{id}");
    }
    default_rules_hold(&agent, &api).await;
    for (number, (devices, allowed)) in [
        (vec![deny_all(), rule(true, "c", 1, -1, "rw")], true),
        (vec![deny_all()], false),
        (vec![allow_all()], true),
        (vec![deny_all()], false),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(update(&api, "denied", rules(devices)).await, End::Done);
        let exec_id = format!("again{number}");
        assert_eq!(
            opens(&agent, "denied", &exec_id, "/dev/log-device").await,
            allowed,
            "{number}"
        );
    }
    let refused = update(&api, "denied", rules(vec![rule(true, "x", 1, 1, "r")])).await;
    let expected = Failed::new(FailureKind::Invalid, "devices[0].type: \"x\"");
    assert_eq!(refused, End::Failed(expected));
}

#[tokio::test]
async fn figures_name_the_interfaces_of_the_sandbox() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let figures = stats(&agent.every_method(), "c1").await.unwrap();
    let names = figures.network_stats.iter().map(|one| one.name.as_str());
    assert!(
        names.clone().any(|name| name == "lo"),
        "{:?}",
        names.collect::<Vec<_>>()
    );
    let sizes = fs::read_dir(agent.cgroup("c1")).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
        name.starts_with("hugetlb.") && name.ends_with("B.current")
    });
    assert_eq!(figures.cgroup_stats.hugetlb_stats.len(), sizes.count());
}

#[tokio::test]
async fn who_waits_for_want_of_memory_hears_of_the_end_of_the_sandbox() {
    let Some(agent) = Agent::start().await else { return };
    let api = agent.every_method();
    agent.idle("c1").await;
    let waiting = |api: AgentServiceClient| async move {
        let event: ttrpc::Result<OOMEvent> = api.get_oom_event(deadline(), &GetOOMEventRequest::new()).await;
        end(event)
    };
    let waiting = [waiting(api.clone()), waiting(api.clone())].map(tokio::spawn);
    stats(&api, "c1").await.unwrap();
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    // One that gives up takes nothing along.
    let impatient = context::with_duration(Duration::from_millis(1));
    assert!(
        api.get_oom_event(impatient, &GetOOMEventRequest::new())
            .await
            .is_err()
    );
    agent.destroy().await.unwrap();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), End::NotFound);
    }
}

/// Whether the machine's cgroup v2 has a file for containers; says so when it has not.
fn has(agent: &Agent, file: &str, test: &str) -> bool {
    let there = agent.cgroup("").join(file).exists();
    if !there {
        eprintln!("SKIPPED {test}: optional: no {file} in cgroup v2");
    }
    there
}

#[tokio::test]
async fn every_kill_for_want_of_memory_is_an_event_of_its_container() {
    let test = "every_kill_for_want_of_memory_is_an_event_of_its_container";
    let Some(agent) = Agent::start().await else { return };
    if !has(&agent, "memory.events", test) {
        return;
    }
    let api = agent.every_method();
    for id in ["one", "other"] {
        let mut request = agent.container(id, &[]);
        let resources = linux(&mut request).resources.mut_or_insert_default();
        resources.memory.mut_or_insert_default().limit = 32 << 20;
        resources.memory.mut_or_insert_default().swap = 32 << 20;
        agent.start_container(request).await.unwrap();
    }
    let hog = ["sh", "-c", "a=0123456789abcdef; while true; do a=$a$a; done"];
    for (id, exec_id) in [("one", "e1"), ("one", "e2"), ("other", "e1"), ("one", "e3")] {
        assert_eq!(agent.exec(id, exec_id, &hog).await.unwrap().0, 137);
    }
    // What the removed container had is not lost.
    agent.remove("other").await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..4 {
        let event = api
            .get_oom_event(deadline(), &GetOOMEventRequest::new())
            .await
            .unwrap();
        ids.push(event.container_id);
    }
    ids.sort();
    assert_eq!(ids, ["one", "one", "one", "other"]);
    let figures = stats(&api, "one").await.unwrap();
    assert!(figures.cgroup_stats.memory_stats.usage.failcnt >= 3);
    assert_eq!(figures.cgroup_stats.memory_stats.usage.limit, 32 << 20);
}

/// Conformance: semantics 15
#[tokio::test]
async fn a_number_of_processes_is_held_and_can_be_raised() {
    let test = "a_number_of_processes_is_held_and_can_be_raised";
    let Some(agent) = Agent::start().await else { return };
    if !has(&agent, "pids.max", test) {
        return;
    }
    let api = agent.every_method();
    let limit = |limit| oci::LinuxResources {
        pids: Some(oci::LinuxPids {
            limit,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let mut request = agent.container("c1", &[]);
    linux(&mut request).resources = Some(limit(3)).into();
    agent.start_container(request).await.unwrap();
    let three = ["sh", "-c", "sleep 0 & sleep 0 & wait; wait"];
    let (status, _) = agent.exec("c1", "few", &three).await.unwrap();
    assert_ne!(status, 0, "the init, the shell and one more are all there may be");
    assert_eq!(update(&api, "c1", limit(-1)).await, End::Done);
    assert_eq!(agent.exec("c1", "many", &three).await.unwrap().0, 0);
}
