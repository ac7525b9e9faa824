//! The agent's own life, as an ordinary process: what it leaves behind, and what does not disturb it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod harness;

use std::path::PathBuf;

use harness::{Agent, DEADLINE, execution};
use kata_agent_proto::CallError;
use kata_agent_proto::agent::{
    GuestDetailsRequest, ReseedRandomDevRequest, SetGuestDateTimeRequest, SetPolicyRequest,
};
use tokio::io::AsyncReadExt;

/// The agent's cgroup, seen from outside.
fn cgroup(agent: &Agent) -> Option<PathBuf> {
    let name = format!("kata-{}", agent.process.id());
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or("");
    let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    mounts
        .map(|mount| PathBuf::from(mount).join(own).join(&name))
        .into_iter()
        .find(|path| path.exists())
}

/// Processes below the agent's outer process.
fn descendants(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<u32> = list.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    children
        .iter()
        .flat_map(|&pid| descendants(pid))
        .chain(children.clone())
        .collect()
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

async fn lost(agent: &mut Agent) {
    let end = tokio::time::timeout(DEADLINE, agent.lifeline.read(&mut [0; 1])).await;
    assert_eq!(end.expect("the agent ended in time").unwrap_or(0), 0);
}

#[tokio::test]
async fn destroying_leaves_no_process_mount_or_cgroup() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent
        .start_container(agent.container("c1", &["sleep", "1000"]))
        .await
        .unwrap();
    agent.idle("c2").await;
    let inside = descendants(agent.process.id());
    assert!(inside.len() >= 3, "{inside:?}");
    let group = cgroup(&agent);
    assert!(group.is_some());
    agent.destroy().await.unwrap();
    lost(&mut agent).await;
    assert!(agent.process.wait().unwrap().success());
    assert_eq!(cgroup(&agent), None);
    assert!(inside.into_iter().all(|pid| !is_alive(pid)));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("/run/sandbox"), "{mounts}");
}

#[tokio::test]
async fn removing_a_container_leaves_nothing_of_it() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("watch").await;
    for round in 0..3 {
        assert_eq!(
            agent.run("c1", "touch /made; (sleep 1000 &); exit 4").await.0,
            4,
            "round {round}"
        );
        agent.remove("c1").await.unwrap();
    }
    let agent_pid = descendants(agent.process.id()).into_iter().min().unwrap();
    let mounts = std::fs::read_to_string(format!("/proc/{agent_pid}/mounts")).unwrap();
    assert!(!mounts.contains("/run/sandbox/c1"), "{mounts}");
    let run = PathBuf::from(format!("/proc/{agent_pid}/root/run/kata"));
    let left: Vec<_> = std::fs::read_dir(run)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["watch"]);
    assert!(!cgroup(&agent).unwrap().join("c1").exists());
}

#[tokio::test]
async fn the_end_of_the_host_ends_everything() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent
        .start_container(agent.container("c1", &["sleep", "1000"]))
        .await
        .unwrap();
    let inside = descendants(agent.process.id());
    agent.hang_up();
    lost(&mut agent).await;
    agent.process.wait().unwrap();
    assert!(inside.into_iter().all(|pid| !is_alive(pid)));
    assert_eq!(cgroup(&agent), None);
}

/// Conformance: semantics 19
#[tokio::test]
async fn a_killed_agent_leaves_nothing_that_the_next_does_not_sweep() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent
        .start_container(agent.container("c1", &["sleep", "1000"]))
        .await
        .unwrap();
    let inside = descendants(agent.process.id());
    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    lost(&mut agent).await;
    let pids = inside
        .iter()
        .map(|pid| rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap());
    for pid in pids {
        // Readable when it is dead; an error says that it is gone already.
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            let timeout = rustix::time::Timespec {
                tv_sec: 60,
                tv_nsec: 0,
            };
            assert_eq!(rustix::event::poll(&mut polled, Some(&timeout)).unwrap(), 1);
        }
    }
    let _next = Agent::start().await.unwrap();
    assert_eq!(cgroup(&agent), None);
}

#[tokio::test]
async fn a_lost_connection_does_not_disturb_the_sandbox() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let second = agent.connect();
    let request = execution("c1", "e", &["sleep", "1000"]);
    second.exec_process(request).await.unwrap();
    drop(second);
    let third = agent.connect();
    assert_eq!(third.check().await.unwrap().status.value(), 1);
    agent.signal("c1", "e", 9).await.unwrap();
    assert_eq!(agent.wait("c1", "e").await, Ok(137));
}

#[tokio::test]
async fn many_processes_at_once_get_their_own_status() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let runs: Vec<_> = (0..16)
        .map(|number| {
            let (agent, name) = (&agent, format!("e{number}"));
            async move {
                let script = format!("echo {number}; exit {number}");
                agent.exec("c1", &name, &["sh", "-c", &script]).await.unwrap()
            }
        })
        .collect();
    for (number, run) in join_all(runs).await.into_iter().enumerate() {
        assert_eq!(run, (i32::try_from(number).unwrap(), format!("{number}\n")));
    }
}

/// Polls all of them side by side.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *output = Some(value);
            }
        }
        if outputs.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[tokio::test]
async fn the_guest_tells_about_itself() {
    let Some(agent) = Agent::start().await else { return };
    let details = agent
        .client
        .get_guest_details(GuestDetailsRequest::new())
        .await
        .unwrap();
    assert_eq!(details.agent_details.version, agent.hello.agent_version);
    assert!(!details.agent_details.init_daemon);
    assert_eq!(
        agent.client.version().await.unwrap().agent_version,
        agent.hello.agent_version
    );
    let seed = ReseedRandomDevRequest {
        data: vec![1; 32],
        ..Default::default()
    };
    agent.client.reseed_random_dev(seed).await.unwrap();
    let before = std::time::SystemTime::now();
    let time = SetGuestDateTimeRequest {
        sec: 1,
        ..Default::default()
    };
    agent.client.set_guest_date_time(time).await.unwrap();
    assert!(
        std::time::SystemTime::now() >= before,
        "the host's clock was changed"
    );
}

#[tokio::test]
async fn a_method_that_is_not_offered_is_unimplemented() {
    let Some(agent) = Agent::start().await else { return };
    let error = agent
        .client
        .set_policy(SetPolicyRequest::new())
        .await
        .unwrap_err();
    assert_eq!(error, CallError::Unimplemented);
}
