//! Files in and out of containers by the agent's own service, and receipts: what the API of Kata cannot say.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code"
)]

mod harness;

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{Agent, DEADLINE};
use kata_agent_proto::files::{self, FilesError, Policy, Root, StepWriter, Tally, name_of};
use kata_agent_proto::kata::{CopyRequest, Entry, KernelLogRequest, ReceiptRequest, entry::Kind};
use kata_agent_proto::{CallError, FailureKind};
use tokio::io::AsyncWriteExt;

const POLICY: Policy = Policy {
    owners: true,
    privileges: true,
    limit_bytes: None,
};

/// A stream of the agent, for a thread that waits on it.
fn blocking(agent: &Agent) -> (u32, StdStream) {
    let (port, stream) = agent.stream();
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    (port, stream)
}

fn request(id: &str, path: &str, name: &[u8], port: u32) -> CopyRequest {
    CopyRequest {
        container_id: id.into(),
        path: path.into(),
        name: name.into(),
        port,
        ..Default::default()
    }
}

type Ends = (Result<(), CallError>, Result<Tally, FilesError>);

async fn copy_in(agent: &Agent, id: &str, from: &Path, to: &str) -> Ends {
    let (port, stream) = blocking(agent);
    let from = from.to_path_buf();
    let request = request(id, to, name_of(&from).unwrap_or_default(), port);
    let sending = tokio::task::spawn_blocking(move || {
        files::send(&Root::own().unwrap(), &from, &stream, &mut |_, _| {})
    });
    let (called, sent) = tokio::join!(agent.client.copy_in(request), sending);
    (called, sent.unwrap())
}

async fn copy_out(agent: &Agent, id: &str, from: &str, to: PathBuf) -> Ends {
    let (port, stream) = blocking(agent);
    let name = name_of(Path::new(from)).map(<[u8]>::to_vec);
    let receiving = tokio::task::spawn_blocking(move || {
        files::receive(
            &Root::own().unwrap(),
            &to,
            name.as_deref(),
            POLICY,
            &stream,
            &mut |_, _| {},
        )
    });
    let call = agent.client.copy_out(request(id, from, b"", port));
    let (called, received) = tokio::join!(call, receiving);
    (called, received.unwrap())
}

fn kind(called: Result<(), CallError>) -> (FailureKind, String) {
    match called {
        Err(CallError::Failed { kind, subject }) => (kind, subject),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn files_go_in_and_come_out_again() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let host = tempfile::tempdir().unwrap();
    let tree = host.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("sub/file"), "text").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
    std::os::unix::fs::chown(tree.join("sub/file"), Some(33), Some(34)).unwrap();
    let (called, sent) = copy_in(&agent, "c1", &tree, "tmp").await;
    called.unwrap();
    assert_eq!((sent.as_ref().unwrap().entries, sent.unwrap().bytes), (4, 4));
    let seen = agent
        .exec("c1", "e1", &["stat", "-c", "%u %g %s", "/tmp/tree/sub/file"])
        .await
        .unwrap();
    assert_eq!(seen, (0, "33 34 4\n".into()));
    let back = host.path().join("back");
    let (called, received) = copy_out(&agent, "c1", "/tmp/tree", back.clone()).await;
    called.unwrap();
    assert_eq!(received.unwrap().entries, 4);
    assert_eq!(std::fs::metadata(back.join("sub/file")).unwrap().uid(), 33);
    assert_eq!(
        std::fs::read_link(back.join("link")).unwrap(),
        Path::new("/etc/passwd")
    );
    // A link in the container leads to the container's file.
    let (called, _) = copy_in(&agent, "c1", &tree.join("sub/file"), "/tmp/tree/link").await;
    called.unwrap();
    let (_, text) = agent.exec("c1", "e2", &["cat", "/etc/passwd"]).await.unwrap();
    assert_eq!(text, "text");
    assert!(std::fs::read_to_string("/etc/passwd").unwrap().contains("root:"));
}

#[tokio::test]
async fn what_cannot_be_copied_has_a_kind_and_the_container_goes_on() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let host = tempfile::tempdir().unwrap();
    let file = host.path().join("file");
    std::fs::write(&file, "text").unwrap();
    let cases = [
        ("/no/such/place", FailureKind::NoSuchFile, "/no/such"),
        ("/data/plain/x", FailureKind::NotADirectory, "/data/plain/x"),
        ("/tmp/absent/", FailureKind::NoSuchFile, "/tmp/absent/"),
    ];
    for (to, expected, subject) in cases {
        let (called, _) = copy_in(&agent, "c1", &file, to).await;
        assert_eq!(kind(called), (expected, subject.into()), "{to}");
    }
    let (called, received) = copy_out(&agent, "c1", "/no/such/file", host.path().join("x")).await;
    assert_eq!(kind(called), (FailureKind::NoSuchFile, "/no/such".into()));
    assert!(matches!(received, Err(FilesError::Stream(_))));
    // Its root has 16 MiB.
    let large = host.path().join("large");
    std::fs::write(&large, vec![1; 24 << 20]).unwrap();
    let (called, _) = copy_in(&agent, "c1", &large, "/tmp").await;
    assert_eq!(kind(called), (FailureKind::NoSpace, "/tmp/large".into()));
    let (status, listed) = agent.exec("c1", "e1", &["ls", "/tmp"]).await.unwrap();
    assert_eq!((status, listed.as_str()), (0, ""), "no part of a file stays");
    let (called, _) = copy_in(&agent, "nobody", &file, "/tmp").await;
    assert_eq!(called, Err(CallError::NotFound));
}

/// The removal of a container ends its copies, which wait for bytes that do not come.
#[tokio::test]
async fn a_container_that_ends_ends_its_copies() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let (port, stream) = blocking(&agent);
    let entry = Entry {
        kind: Kind::FILE.into(),
        mode: 0o644,
        ..Default::default()
    };
    let client = agent.client.clone();
    let copying = tokio::spawn(async move { client.copy_in(request("c1", "/tmp/x", b"x", port)).await });
    let stalling = std::thread::spawn(move || {
        let mut writer = StepWriter::new(&stream);
        writer.entry(entry).unwrap();
        writer.piece(0, &vec![1; 1 << 20]).unwrap();
        stream
    });
    // It is under way: the file is there.
    let waiting = "while [ ! -e /tmp/x ]; do :; done";
    assert_eq!(agent.exec("c1", "e1", &["sh", "-c", waiting]).await.unwrap().0, 0);
    tokio::time::timeout(DEADLINE, agent.remove("c1"))
        .await
        .unwrap()
        .unwrap();
    let copied = tokio::time::timeout(DEADLINE, copying).await.unwrap().unwrap();
    assert_eq!(kind(copied).0, FailureKind::NotRunning);
    drop(stalling.join());
}

#[tokio::test]
async fn a_container_that_is_only_created_or_paused_can_be_copied_to() {
    let Some(agent) = Agent::start().await else { return };
    agent
        .client
        .create_container(agent.container("c1", &["cat", "/tmp/file"]))
        .await
        .unwrap();
    let host = tempfile::tempdir().unwrap();
    let file = host.path().join("file");
    std::fs::write(&file, "text").unwrap();
    copy_in(&agent, "c1", &file, "/tmp").await.0.unwrap();
    let back = host.path().join("back");
    copy_out(&agent, "c1", "/tmp/file", back.clone()).await.0.unwrap();
    assert_eq!(std::fs::read_to_string(back).unwrap(), "text");
}

#[tokio::test]
async fn a_stream_that_is_none_is_refused_and_nothing_leaves_the_root() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let streams: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff\xff\xff",
        b"",
        &[0; 4096],
    ];
    for bytes in streams {
        let (port, mut stream) = agent.stream();
        let call = agent.client.copy_in(request("c1", "/tmp", b"x", port));
        let (called, ()) = tokio::join!(call, async {
            // It may be refused before all of it is written.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
        });
        assert_eq!(kind(called).0, FailureKind::Malformed, "{bytes:?}");
    }
    let call = agent.client.copy_in(request("c1", "/tmp", b"x", 1));
    let late = tokio::time::timeout(Duration::from_secs(30), call).await.unwrap();
    assert_eq!(kind(late), (FailureKind::NoSuchStream, "1".into()));
    assert_eq!(
        agent.exec("c1", "e1", &["ls", "/tmp"]).await.unwrap(),
        (0, String::new())
    );
}

#[tokio::test]
async fn a_receipt_tells_what_a_process_used() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; cat; echo err >&2; exit 3";
    let mut execution = harness::execution("c1", "e1", &["sh", "-c", script]);
    let ((in_port, mut stdin), (out_port, stdout), (err_port, stderr)) =
        (agent.stream(), agent.stream(), agent.stream());
    (execution.stdin_port, execution.stdout_port, execution.stderr_port) = (in_port, out_port, err_port);
    agent.client.exec_process(execution).await.unwrap();
    stdin.write_all(b"twelve bytes").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let request = ReceiptRequest {
        container_id: "c1".into(),
        exec_id: "e1".into(),
        ..Default::default()
    };
    let receipt = agent.client.receipt(request.clone());
    let (receipt, _, _) = tokio::join!(receipt, harness::text(stdout), harness::text(stderr));
    let receipt = receipt.unwrap();
    assert_eq!(receipt.status, 3);
    assert!(receipt.user_ns + receipt.system_ns > 1_000_000, "{receipt:?}");
    assert!(receipt.wall_ns >= receipt.user_ns, "{receipt:?}");
    assert!(receipt.memory_peak_bytes > 100 << 10, "{receipt:?}");
    let moved = (receipt.stdin_bytes, receipt.stdout_bytes, receipt.stderr_bytes);
    assert_eq!(moved, (12, 12, 4));
    assert!(receipt.container.is_none() && receipt.started_ns > 0);
    // It is the same for everybody, until the container is gone.
    assert_eq!(agent.client.receipt(request.clone()).await.unwrap(), receipt);
    agent.signal("c1", "c1", 9).await.unwrap();
    let of_container = ReceiptRequest {
        exec_id: "c1".into(),
        ..request.clone()
    };
    let whole = agent.client.receipt(of_container).await.unwrap();
    assert_eq!(whole.status, 137);
    let usage = whole.container.as_ref().unwrap();
    assert!(usage.user_ns + usage.system_ns >= receipt.user_ns, "{whole:?}");
    agent.remove("c1").await.unwrap();
    assert_eq!(agent.client.receipt(request).await, Err(CallError::NotFound));
}

#[tokio::test]
async fn the_hosts_own_kernel_log_is_not_told() {
    let Some(agent) = Agent::start().await else { return };
    let (port, stream) = agent.stream();
    let request = KernelLogRequest {
        port,
        ..Default::default()
    };
    assert_eq!(
        kind(agent.client.kernel_log(request).await).0,
        FailureKind::Unsupported
    );
    assert_eq!(harness::text(stream).await, "");
}
