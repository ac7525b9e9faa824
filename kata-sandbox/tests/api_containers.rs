//! The agent's methods for containers, called one by one.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod api;
mod bed;

use std::collections::HashSet;

use api::inside::Inside;
use api::{client, creation, execution, read_all, reading, run, signal, start, wait};
use bed::Bed;
use kata_agent_proto::agent::{
    CreateContainerRequest, Device, FSGroup, GetOOMEventRequest, PauseContainerRequest,
    RemoveContainerRequest, ResumeContainerRequest, SharedMount, StartContainerRequest,
    StatsContainerRequest, Storage, UpdateContainerRequest,
};
use kata_agent_proto::{CallError, Client, FailureKind, oci, port};
use kata_sandbox::Sandbox;
use protobuf::MessageField;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// Says when it is ready, and ends with 3 when it is asked to.
const WAITS: &str = "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 1000 & wait $!; done";

async fn remove(client: &Client, id: &str) -> Result<(), CallError> {
    let request = RemoveContainerRequest {
        container_id: id.into(),
        timeout: 30,
        ..Default::default()
    };
    client.remove_container(request).await
}

fn stats(id: &str) -> StatsContainerRequest {
    StatsContainerRequest {
        container_id: id.into(),
        ..Default::default()
    }
}

async fn pause(client: &Client, id: &str) -> Result<(), CallError> {
    let request = PauseContainerRequest {
        container_id: id.into(),
        ..Default::default()
    };
    client.pause_container(request).await
}

async fn resume(client: &Client, id: &str) -> Result<(), CallError> {
    let request = ResumeContainerRequest {
        container_id: id.into(),
        ..Default::default()
    };
    client.resume_container(request).await
}

fn update(id: &str, resources: oci::LinuxResources) -> UpdateContainerRequest {
    UpdateContainerRequest {
        container_id: id.into(),
        resources: MessageField::some(resources),
        ..Default::default()
    }
}

fn pids(limit: i64) -> oci::LinuxResources {
    oci::LinuxResources {
        pids: MessageField::some(oci::LinuxPids {
            limit,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(limit: i64) -> oci::LinuxResources {
    oci::LinuxResources {
        memory: MessageField::some(oci::LinuxMemory {
            limit,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn shares(shares: u64) -> oci::LinuxResources {
    oci::LinuxResources {
        cpu: MessageField::some(oci::LinuxCPU {
            shares,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Files of version 2 of control groups that a container here is limited by. A host may have its controllers in version
/// 1, where they are of no use to an agent that is a process of it.
async fn limit_files(bed: &Bed, client: &Client) -> HashSet<String> {
    let mut inside = Inside::new(client).await;
    let own = "ls /proc/1/root/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)";
    let files: HashSet<String> = inside.done(own).await.lines().map(str::to_owned).collect();
    let all = ["cpu.weight", "memory.max", "pids.max"];
    assert!(
        !bed.has_guest() || all.iter().all(|file| files.contains(*file)),
        "{files:?}"
    );
    inside.remove().await;
    files
}

/// The refusal of a limit that needs a controller which is not there.
fn no_file(field: &str, file: &str) -> CallError {
    CallError::Failed {
        kind: FailureKind::Unsupported,
        subject: format!("{field}: the kernel has no {file} for it"),
    }
}

/// From the making of a container to its removal, with an init that has a name of its own.
async fn life(client: &Client) {
    let mut request = creation("c1", WAITS);
    request.exec_id = "the-init".into();
    client.create_container(request.clone()).await.unwrap();
    let twice = client.create_container(request).await.unwrap_err();
    assert_eq!(twice.kind(), Some(FailureKind::AlreadyExists));
    let early = signal(client, "c1", "the-init", SIGTERM).await.unwrap_err();
    assert_eq!(early.kind(), Some(FailureKind::NotRunning));
    let request = StartContainerRequest {
        container_id: "c1".into(),
        ..Default::default()
    };
    client.start_container(request.clone()).await.unwrap();
    let twice = client.start_container(request).await.unwrap_err();
    assert_eq!(twice.kind(), Some(FailureKind::AlreadyExists));
    let ready = client.read_stdout(reading("c1", "the-init", 100)).await.unwrap();
    assert_eq!(ready.data, b"ready\n");
    assert_eq!(run(client, "c1", "e1", "echo $PPID; exit 4").await.0, 4);
    signal(client, "c1", "the-init", SIGTERM).await.unwrap();
    for name in ["the-init", "c1", ""] {
        assert_eq!(wait(client, "c1", name).await, Ok(3), "{name:?}");
    }
    assert_eq!(read_all(client, "c1", "the-init").await, b"asked\n");
    let late = signal(client, "c1", "the-init", SIGTERM).await.unwrap_err();
    assert_eq!(late.kind(), Some(FailureKind::NotRunning));
    remove(client, "c1").await.unwrap();
    assert_eq!(remove(client, "c1").await, Err(CallError::NotFound));
    assert_eq!(wait(client, "c1", "the-init").await, Err(CallError::NotFound));
}

/// Each limit holds and is told of, or is refused by its field, and then none of the request holds.
async fn limits(files: &HashSet<String>, client: &Client, id: &str) {
    let figures = async || client.stats_container(stats(id)).await.unwrap().cgroup_stats;
    let has = |file: &str| files.contains(file);
    for (resources, mut more, field, file) in [
        (pids(20), pids(30), "pids.limit", "pids.max"),
        (memory(64 << 20), memory(96 << 20), "memory.limit", "memory.max"),
        (shares(512), shares(256), "cpu.shares", "cpu.weight"),
    ] {
        let answer = client.update_container(update(id, resources)).await;
        let expected = if has(file) {
            Ok(())
        } else {
            Err(no_file(field, file))
        };
        assert_eq!(answer, expected, "{field}");
        // With one that nobody has.
        more.unified.insert("no.such".into(), "1".into());
        let answer = client.update_container(update(id, more)).await;
        let expected = if has(file) {
            no_file("unified.no.such", "no.such")
        } else {
            no_file(field, file)
        };
        assert_eq!(answer, Err(expected), "{field}");
    }
    let work = "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done";
    assert_eq!(run(client, id, "works", work).await.0, 0);
    let found = figures().await;
    assert!(found.cpu_stats.cpu_usage.total_usage > 1_000_000, "{found:?}");
    let limit = if has("pids.max") { 20 } else { 0 };
    assert_eq!(
        (found.pids_stats.limit, found.pids_stats.current > 0),
        (limit, limit > 0)
    );
    // Kata's way to say that there is no limit is another here.
    let limit = if has("memory.max") { 64 << 20 } else { u64::MAX };
    let usage = found.memory_stats.usage.clone().unwrap_or_default();
    assert_eq!((usage.limit, usage.usage > 0), (limit, has("memory.max")));
}

/// A container that stands still, and one whose limits change.
async fn changes(bed: &Bed, client: &Client) {
    start(client, creation("c2", WAITS)).await;
    client.read_stdout(reading("c2", "", 100)).await.unwrap();
    pause(client, "c2").await.unwrap();
    pause(client, "c2").await.unwrap();
    let frozen = client.stats_container(stats("c2")).await.unwrap();
    assert!(frozen.cgroup_stats.cpu_stats.is_some() && !frozen.network_stats.is_empty());
    resume(client, "c2").await.unwrap();
    assert_eq!(
        run(client, "c2", "e1", "echo goes on").await,
        (0, "goes on\n".into())
    );
    limits(&limit_files(bed, client).await, client, "c2").await;
    // All of its processes at once.
    signal(client, "c2", "", SIGKILL).await.unwrap();
    assert_eq!(wait(client, "c2", "c2").await, Ok(137));
    remove(client, "c2").await.unwrap();
}

/// The output of a container that ends by itself.
async fn output(client: &Client, request: CreateContainerRequest) -> String {
    let id = request.container_id.clone();
    start(client, request).await;
    let output = read_all(client, &id, "").await;
    assert_eq!(wait(client, &id, "").await, Ok(0), "{id}");
    remove(client, &id).await.unwrap();
    String::from_utf8(output).unwrap()
}

/// Containers that see each other's processes.
async fn shared_pids(client: &Client) {
    let shared = |id: &str, script: &str| CreateContainerRequest {
        sandbox_pidns: true,
        ..creation(id, script)
    };
    start(client, shared("p1", "echo ready; exec sleep 4711")).await;
    client.read_stdout(reading("p1", "", 100)).await.unwrap();
    let script = "cat /proc/1/comm; until cat /proc/[0-9]*/comm | grep -q ^sleep; do :; done; echo seen";
    assert_eq!(output(client, shared("p2", script)).await, "pause\nseen\n");
    let alone = output(client, creation("p3", "cat /proc/1/comm")).await;
    assert_eq!(alone, "sh\n", "one that does not share has its own");
    // The one that was first goes, and the namespace stays.
    signal(client, "p1", "", SIGKILL).await.unwrap();
    assert_eq!(wait(client, "p1", "").await, Ok(137));
    remove(client, "p1").await.unwrap();
    assert_eq!(output(client, shared("p4", "cat /proc/1/comm")).await, "pause\n");
}

/// What the guest has, given to a container: a device, a volume with a group, and a mount of another container.
async fn given(client: &Client) {
    let mut request = creation("d1", "head -c 3 /dev/given | wc -c; stat -c %F /dev/given");
    request.devices = vec![Device {
        type_: "mmioblk".into(),
        vm_path: "/dev/zero".into(),
        container_path: "/dev/given".into(),
        ..Default::default()
    }];
    assert_eq!(
        output(client, request.clone()).await,
        "3\ncharacter special file\n"
    );
    request.devices[0].vm_path = "/dev".into();
    let failed = client.create_container(request).await.unwrap_err();
    assert_eq!(failed.kind(), Some(FailureKind::Invalid));

    let volume = "/run/kata-containers/volume-of-g1";
    let mut request = creation("g1", "stat -c '%g %a' /volume");
    request.storages = vec![Storage {
        driver: "ephemeral".into(),
        fstype: "tmpfs".into(),
        options: vec!["mode=0700".into()],
        mount_point: volume.into(),
        fs_group: MessageField::some(FSGroup {
            group_id: 4711,
            ..Default::default()
        }),
        ..Default::default()
    }];
    request.oci.as_mut().unwrap().mounts.push(oci::Mount {
        destination: "/volume".into(),
        source: volume.into(),
        type_: "bind".into(),
        options: vec!["bind".into()],
        ..Default::default()
    });
    assert_eq!(output(client, request).await, "4711 2770\n");

    let script =
        "mkdir /gift; mount -t tmpfs gift /gift && echo from m1 > /gift/word; echo ready; exec sleep 1000";
    start(client, creation("m1", script)).await;
    client.read_stdout(reading("m1", "", 100)).await.unwrap();
    let mut request = creation("m2", "cat /taken/word");
    request.shared_mounts = vec![SharedMount {
        name: "gift".into(),
        src_ctr: "m1".into(),
        src_path: "/gift".into(),
        dst_ctr: "m2".into(),
        dst_path: "/taken".into(),
        ..Default::default()
    }];
    assert_eq!(output(client, request.clone()).await, "from m1\n");
    request.shared_mounts[0].src_ctr = "nobody".into();
    let failed = client.create_container(request).await.unwrap_err();
    assert_eq!(failed.kind(), Some(FailureKind::NotRunning));
    signal(client, "m1", "", SIGKILL).await.unwrap();
    remove(client, "m1").await.unwrap();
}

async fn nobody(client: &Client) {
    assert_eq!(
        client.stats_container(stats("none")).await.unwrap_err(),
        CallError::NotFound
    );
    assert_eq!(pause(client, "none").await, Err(CallError::NotFound));
    assert_eq!(resume(client, "none").await, Err(CallError::NotFound));
    assert_eq!(
        client.update_container(update("none", pids(1))).await,
        Err(CallError::NotFound)
    );
    assert_eq!(
        signal(client, "none", "", SIGKILL).await,
        Err(CallError::NotFound)
    );
    let exec = client.exec_process(execution("none", "e1", "true")).await;
    assert_eq!(exec, Err(CallError::NotFound));
}

/// A ttrpc request by hand: length, stream, type and flags, then service (1) and method (2).
async fn call_by_hand(sandbox: &Sandbox, service: &str, method: &str) -> Vec<u8> {
    let mut stream = sandbox.connect(port::AGENT).await.unwrap();
    let text = |number: u8, text: &str| {
        [
            &[number << 3 | 2, u8::try_from(text.len()).unwrap()],
            text.as_bytes(),
        ]
        .concat()
    };
    let payload = [text(1, service), text(2, method)].concat();
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let frame = [&length[..], &1_u32.to_be_bytes(), &[1, 0], &payload].concat();
    stream.write_all(&frame).await.unwrap();
    let mut header = [0; 10];
    stream.read_exact(&mut header).await.unwrap();
    let length = u32::from_be_bytes(header[..4].try_into().unwrap());
    let mut answer = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

/// What begins an answer whose status has this code: its first field is the status, whose first is the code.
fn has_code(answer: &[u8], code: u8) -> bool {
    // A status of less than 128 bytes has one byte of length.
    answer.first() == Some(&0x0a) && answer[2..].starts_with(&[0x08, code])
}

on_every_backend! {
    /// Conformance: api CreateContainer
    /// Conformance: api StartContainer
    /// Conformance: api SignalProcess
    /// Conformance: api RemoveContainer
    /// Conformance: api PauseContainer
    /// Conformance: api ResumeContainer
    /// Conformance: api StatsContainer
    /// Conformance: api UpdateContainer
    async fn containers_are_made_and_changed_by_calls(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        life(&client).await;
        changes(&bed, &client).await;
        shared_pids(&client).await;
        given(&client).await;
        nobody(&client).await;
        for (service, method) in [
            ("grpc.AgentService", "NoSuchMethod"),
            ("grpc.AgentService", "SetPolicy"),
            ("grpc.Health", "NoSuchMethod"),
        ] {
            let answer = call_by_hand(&sandbox, service, method).await;
            assert!(has_code(&answer, 12), "{service}/{method}: {answer:?}");
        }
        sandbox.stop().await.unwrap();
    }

    /// Conformance: semantics 6
    async fn a_kill_succeeds_while_stats_and_exec_are_held_open_on_a_frozen_container(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let api = client(&sandbox).await;
        start(&api, creation("frozen", WAITS)).await;
        api.read_stdout(reading("frozen", "", 100)).await.unwrap();
        pause(&api, "frozen").await.unwrap();
        // The process is born frozen, so that its making does not come to an end.
        let mut exec = Box::pin(api.exec_process(execution("frozen", "e1", "true")));
        tokio::select! {
            biased;
            made = &mut exec => panic!("{made:?}"),
            // Sent after it, on the same connection.
            found = api.stats_container(stats("frozen")) => drop(found.unwrap()),
        }
        let again = api.exec_process(execution("frozen", "e1", "true")).await.unwrap_err();
        assert_eq!(again.kind(), Some(FailureKind::AlreadyExists), "it is being made");
        let other = client(&sandbox).await;
        let watching = tokio::spawn(async move {
            let mut count = 0;
            while other.stats_container(stats("frozen")).await.is_ok() {
                count += 1;
            }
            count
        });
        let hurried = api.with_deadline(std::time::Duration::from_secs(20) * bed::patience());
        signal(&hurried, "frozen", "", SIGKILL).await.unwrap();
        assert_eq!(wait(&api, "frozen", "").await, Ok(137));
        let exec = exec.await;
        assert!(exec.is_ok() || exec.as_ref().unwrap_err().kind().is_some(), "{exec:?}");
        remove(&api, "frozen").await.unwrap();
        assert!(watching.await.unwrap() > 0);
        sandbox.stop().await.unwrap();
    }

    /// Conformance: api GetOOMEvent
    async fn the_kill_for_want_of_memory_is_told_and_so_is_the_sandboxs_end(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        let mut request = creation("hog", "head -c 100000000 /dev/zero | tail");
        let linux = request.oci.as_mut().unwrap().linux.as_mut().unwrap();
        linux.resources = MessageField::some(memory(16 << 20));
        if limit_files(&bed, &client).await.contains("memory.max") {
            start(&client, request).await;
            let event = client.get_oom_event(GetOOMEventRequest::new()).await.unwrap();
            assert_eq!(event.container_id, "hog");
        } else {
            let refused = client.create_container(request).await;
            assert_eq!(refused, Err(no_file("memory.limit", "memory.max")));
            assert_eq!(client.stats_container(stats("hog")).await.unwrap_err(), CallError::NotFound);
        }
        let waiting = client.clone();
        let waiting = tokio::spawn(async move { waiting.get_oom_event(GetOOMEventRequest::new()).await });
        // Both calls are on one connection, so this one is answered after the other has come.
        client.check().await.unwrap();
        client.destroy_sandbox(Default::default()).await.unwrap();
        match waiting.await.unwrap() {
            Err(CallError::NotFound | CallError::Closed) => {}
            other => panic!("{other:?}"),
        }
    }
}
