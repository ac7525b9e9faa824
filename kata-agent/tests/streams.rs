//! Standard streams, on the agent as an ordinary process.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod harness;

use std::time::{Duration, Instant};

use harness::{Agent, DEADLINE, execution, text, user};
use kata_agent_proto::agent::{CloseStdinRequest, TtyWinResizeRequest};
use kata_agent_proto::{CallError, FailureKind, oci};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const MIB: usize = 1 << 20;

/// Bytes until the end of the stream.
async fn count(mut stream: UnixStream) -> usize {
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => return total,
            read => total += read,
        }
    }
}

#[tokio::test]
async fn sixty_four_mebibytes_written_just_before_the_exit_arrive_whole() {
    let Some(agent) = Agent::start().await else { return };
    let mut request = agent.container("c1", &["head", "-c", "67108864", "/dev/zero"]);
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    agent.start_container(request).await.unwrap();
    let counted = tokio::time::timeout(DEADLINE, async {
        tokio::join!(agent.wait("c1", "c1"), count(stdout))
    });
    assert_eq!(counted.await.unwrap(), (Ok(0), 64 * MIB));
}

#[tokio::test]
async fn sixty_four_mebibytes_of_input_arrive_whole() {
    let Some(agent) = Agent::start().await else { return };
    let mut request = agent.container("c1", &["wc", "-c"]);
    let (in_port, mut stdin) = agent.stream();
    let (out_port, stdout) = agent.stream();
    (request.stdin_port, request.stdout_port) = (in_port, out_port);
    agent.start_container(request).await.unwrap();
    let block = vec![7; MIB];
    for _ in 0..64 {
        stdin.write_all(&block).await.unwrap();
    }
    stdin.shutdown().await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(0));
    assert_eq!(text(stdout).await, "67108864\n");
}

#[tokio::test]
async fn without_input_a_reader_ends_at_once() {
    let Some(agent) = Agent::start().await else { return };
    assert_eq!(agent.run("c1", "cat; echo ended").await.1, "ended\n");
}

#[tokio::test]
async fn closing_the_input_ends_it_after_what_has_arrived() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let mut request = execution("c1", "e", &["cat"]);
    let (in_port, mut stdin) = agent.stream();
    let (out_port, stdout) = agent.stream();
    (request.stdin_port, request.stdout_port) = (in_port, out_port);
    agent.client.exec_process(request).await.unwrap();
    stdin.write_all(b"arrived").await.unwrap();
    let close = CloseStdinRequest {
        container_id: "c1".into(),
        exec_id: "e".into(),
        ..Default::default()
    };
    agent.client.close_stdin(close).await.unwrap();
    assert_eq!(agent.wait("c1", "e").await, Ok(0));
    assert_eq!(text(stdout).await, "arrived");
}

#[tokio::test]
async fn a_background_child_that_keeps_the_output_open_delays_nothing() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let begun = Instant::now();
    let script = "(while true; do echo more; sleep 0.01; done) & echo first";
    let (status, stdout) = agent.exec("c1", "e", &["sh", "-c", script]).await.unwrap();
    assert_eq!(status, 0);
    assert!(stdout.contains("first\n"), "{stdout}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "it waited for the child"
    );
    // The child still writes and has not been killed by a closed pipe.
    let (_, left) = agent
        .exec("c1", "look", &["sh", "-c", "cat /proc/[0-9]*/comm"])
        .await
        .unwrap();
    assert!(left.lines().filter(|line| *line == "sh").count() >= 2, "{left}");
}

/// Conformance: semantics 3
#[tokio::test]
async fn a_host_that_does_not_read_does_not_hold_the_exit_back() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    // More than a socket holds, less than socket, buffer and pipe.
    let mut request = execution("c1", "e", &["sh", "-c", "head -c 400000 /dev/zero; exit 5"]);
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    agent.client.exec_process(request).await.unwrap();
    assert_eq!(agent.wait("c1", "e").await, Ok(5));
    assert_eq!(
        count(stdout).await,
        400_000,
        "the rest is delivered in the background"
    );
}

#[tokio::test]
async fn a_host_that_goes_away_costs_the_process_nothing() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let mut request = execution("c1", "e", &["sh", "-c", "head -c 8388608 /dev/zero && exit 3"]);
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    drop(stdout);
    agent.client.exec_process(request).await.unwrap();
    assert_eq!(agent.wait("c1", "e").await, Ok(3));
}

/// Conformance: semantics 12
#[tokio::test]
async fn a_writer_that_is_faster_than_its_reader_slows_down() {
    let Some(agent) = Agent::start().await else { return };
    agent.idle("c1").await;
    let mut request = execution(
        "c1",
        "e",
        &["sh", "-c", "head -c 16777216 /dev/zero; echo done >&2"],
    );
    let (out_port, stdout) = agent.stream();
    let (err_port, mut stderr) = agent.stream();
    (request.stdout_port, request.stderr_port) = (out_port, err_port);
    agent.client.exec_process(request).await.unwrap();
    stdout.readable().await.unwrap();
    let mut word = [0; 4];
    let early = tokio::time::timeout(Duration::from_millis(300), stderr.read_exact(&mut word)).await;
    assert!(early.is_err(), "16 MiB were taken without a reader");
    assert_eq!(count(stdout).await, 16 * MIB);
    stderr.read_exact(&mut word).await.unwrap();
    assert_eq!(agent.wait("c1", "e").await, Ok(0));
}

/// A process with a terminal of 30 by 100, its input and its output.
async fn terminal(agent: &Agent, script: &str) -> (UnixStream, UnixStream) {
    agent.idle("c1").await;
    let mut request = execution("c1", "e", &["sh", "-c", script]);
    let process = request.process.mut_or_insert_default();
    process.terminal = true;
    process.console_size = Some(oci::Box {
        height: 30,
        width: 100,
        ..Default::default()
    })
    .into();
    let (in_port, stdin) = agent.stream();
    let (out_port, stdout) = agent.stream();
    (request.stdin_port, request.stdout_port) = (in_port, out_port);
    agent.client.exec_process(request).await.unwrap();
    (stdin, stdout)
}

/// Conformance: semantics 11
#[tokio::test]
async fn a_terminal_has_its_size_and_merges_the_outputs() {
    let Some(agent) = Agent::start().await else { return };
    let (_stdin, stdout) = terminal(&agent, "stty size; echo err >&2; test -t 0 && echo yes").await;
    assert_eq!(agent.wait("c1", "e").await, Ok(0));
    assert_eq!(text(stdout).await, "30 100\r\nerr\r\nyes\r\n");
}

/// Conformance: semantics 10
#[tokio::test]
async fn a_terminal_belongs_to_its_user_who_can_open_it_again() {
    let Some(agent) = Agent::start().await else { return };
    let script = "echo out >/dev/stdout; echo err >/dev/stderr; echo tty >/dev/tty; stat -c %u $(tty)";
    let shell = ["sh", "-c", script];
    let mut request = agent.container("c1", &shell);
    request.string_user = Some(user("4711", "4712")).into();
    let process = request
        .oci
        .mut_or_insert_default()
        .process
        .mut_or_insert_default();
    process.terminal = true;
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    agent.start_container(request).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(0));
    assert_eq!(text(stdout).await, "out\r\nerr\r\ntty\r\n4711\r\n");

    agent.idle("c2").await;
    let mut request = execution("c2", "e", &shell);
    request.string_user = Some(user("4711", "4712")).into();
    request.process.mut_or_insert_default().terminal = true;
    let (port, stdout) = agent.stream();
    request.stdout_port = port;
    agent.client.exec_process(request).await.unwrap();
    assert_eq!(agent.wait("c2", "e").await, Ok(0));
    assert_eq!(text(stdout).await, "out\r\nerr\r\ntty\r\n4711\r\n");
}

/// Conformance: semantics 9
#[tokio::test]
async fn a_terminal_is_resized_and_ended_by_its_character() {
    let Some(agent) = Agent::start().await else { return };
    let (mut stdin, mut stdout) = terminal(
        &agent,
        "stty -echo; echo ready; read line; stty size; cat; echo ended",
    )
    .await;
    let mut ready = [0; 7];
    stdout.read_exact(&mut ready).await.unwrap();
    let resize = TtyWinResizeRequest {
        container_id: "c1".into(),
        exec_id: "e".into(),
        row: 40,
        column: 120,
        ..Default::default()
    };
    agent.client.tty_win_resize(resize).await.unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    let close = CloseStdinRequest {
        container_id: "c1".into(),
        exec_id: "e".into(),
        ..Default::default()
    };
    agent.client.close_stdin(close).await.unwrap();
    assert_eq!(agent.wait("c1", "e").await, Ok(0));
    assert_eq!(text(stdout).await, "40 120\r\nended\r\n");
}

/// Conformance: semantics 11
#[tokio::test]
async fn a_resize_after_the_end_is_refused_by_kind() {
    let Some(agent) = Agent::start().await else { return };
    let (_stdin, stdout) = terminal(&agent, "stty size").await;
    assert_eq!(agent.wait("c1", "e").await, Ok(0));
    assert_eq!(text(stdout).await, "30 100\r\n");
    let resize = TtyWinResizeRequest {
        container_id: "c1".into(),
        exec_id: "e".into(),
        row: 40,
        column: 120,
        ..Default::default()
    };
    let refused = agent.client.tty_win_resize(resize).await;
    assert!(
        matches!(
            &refused,
            Err(CallError::Failed {
                kind: FailureKind::NotRunning,
                ..
            })
        ),
        "{refused:?}"
    );
}

/// Conformance: semantics 11
#[tokio::test]
async fn a_resize_before_the_start_is_kept() {
    let Some(agent) = Agent::start().await else { return };
    let mut request = agent.container("c1", &["stty", "size"]);
    request
        .oci
        .mut_or_insert_default()
        .process
        .mut_or_insert_default()
        .terminal = true;
    let (in_port, _stdin) = agent.stream();
    let (out_port, stdout) = agent.stream();
    (request.stdin_port, request.stdout_port) = (in_port, out_port);
    agent.client.create_container(request).await.unwrap();
    let resize = TtyWinResizeRequest {
        container_id: "c1".into(),
        exec_id: "c1".into(),
        row: 11,
        column: 22,
        ..Default::default()
    };
    agent.client.tty_win_resize(resize).await.unwrap();
    let start = kata_agent_proto::agent::StartContainerRequest {
        container_id: "c1".into(),
        ..Default::default()
    };
    agent.client.start_container(start).await.unwrap();
    assert_eq!(agent.wait("c1", "c1").await, Ok(0));
    assert_eq!(text(stdout).await, "11 22\r\n");
}
