//! Standard streams by calls, as Kata's own tools use them.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod bed;

use api::{MAIN, client, execution, read_all, reading, run, wait};
use bed::Bed;
use kata_agent_proto::agent::{CloseStdinRequest, TtyWinResizeRequest, WriteStreamRequest};
use kata_agent_proto::{CallError, Client, FailureKind};
use kata_sandbox::Sandbox;

fn writing(exec_id: &str, data: &[u8]) -> WriteStreamRequest {
    WriteStreamRequest {
        container_id: MAIN.into(),
        exec_id: exec_id.into(),
        data: data.to_vec(),
        ..Default::default()
    }
}

fn closing(exec_id: &str) -> CloseStdinRequest {
    CloseStdinRequest {
        container_id: MAIN.into(),
        exec_id: exec_id.into(),
        ..Default::default()
    }
}

/// A mebibyte through a process: more than all the buffers on the way hold.
async fn through(client: &Client) {
    let mebibyte: Vec<u8> = (0..1_u32 << 20).map(|byte| byte.to_le_bytes()[0]).collect();
    client
        .exec_process(execution(MAIN, "through", "cat; echo ended >&2; exit 3"))
        .await
        .unwrap();
    let write = async {
        for piece in mebibyte.chunks(50_000) {
            let written = client.write_stdin(writing("through", piece)).await.unwrap();
            assert_eq!(written.len as usize, piece.len());
        }
        client.close_stdin(closing("through")).await.unwrap();
        client.close_stdin(closing("through")).await.unwrap();
    };
    let ((), read) = tokio::join!(write, read_all(client, MAIN, "through"));
    assert!(read == mebibyte, "{} bytes came back", read.len());
    let stderr = client.read_stderr(reading(MAIN, "through", 100)).await.unwrap();
    assert_eq!(stderr.data, b"ended\n");
    assert_eq!(wait(client, MAIN, "through").await, Ok(3));
    let again = client.read_stdout(reading(MAIN, "through", 100)).await;
    assert_eq!(again.unwrap_err(), CallError::EndOfStream);
    let late = client.write_stdin(writing("through", b"late")).await;
    assert_eq!(late.unwrap_err().kind(), Some(FailureKind::NoSuchStream));
}

/// Both ways of saying that there is no more, and what is left when the process is gone.
async fn ends(client: &Client) {
    client
        .exec_process(execution(MAIN, "empty", "cat; echo over"))
        .await
        .unwrap();
    client.write_stdin(writing("empty", b"")).await.unwrap();
    assert_eq!(read_all(client, MAIN, "empty").await, b"over\n");
    // A grandchild that holds the output does not hold its end.
    let script = "sleep 1000 & echo left behind";
    client
        .exec_process(execution(MAIN, "parent", script))
        .await
        .unwrap();
    assert_eq!(wait(client, MAIN, "parent").await, Ok(0));
    assert_eq!(read_all(client, MAIN, "parent").await, b"left behind\n");
    // Nobody reads: the process waits, and nothing of it is lost.
    let script = "head -c 4194304 /dev/zero; echo >&2";
    client
        .exec_process(execution(MAIN, "much", script))
        .await
        .unwrap();
    assert_eq!(read_all(client, MAIN, "much").await.len(), 4 << 20);
    assert_eq!(wait(client, MAIN, "much").await, Ok(0));
}

async fn terminal(client: &Client) {
    let mut request = execution(MAIN, "tty", "read line; stty size; cat; echo closed");
    request.process.as_mut().unwrap().terminal = true;
    client.exec_process(request).await.unwrap();
    let size = TtyWinResizeRequest {
        container_id: MAIN.into(),
        exec_id: "tty".into(),
        row: 31,
        column: 101,
        ..Default::default()
    };
    client.tty_win_resize(size.clone()).await.unwrap();
    client.write_stdin(writing("tty", b"go\n")).await.unwrap();
    client.close_stdin(closing("tty")).await.unwrap();
    let text = String::from_utf8(read_all(client, MAIN, "tty").await).unwrap();
    assert!(text.contains("31 101") && text.contains("closed"), "{text:?}");
    assert_eq!(wait(client, MAIN, "tty").await, Ok(0));
    let late = client.tty_win_resize(size).await;
    assert_eq!(late.unwrap_err().kind(), Some(FailureKind::NotRunning));
}

async fn refusals(client: &Client) {
    let nobody = client.read_stdout(reading(MAIN, "nobody", 1)).await;
    assert_eq!(nobody.unwrap_err(), CallError::NotFound);
    assert_eq!(
        client.write_stdin(writing("nobody", b"x")).await.unwrap_err(),
        CallError::NotFound
    );
    assert_eq!(
        client.close_stdin(closing("nobody")).await.unwrap_err(),
        CallError::NotFound
    );
    let mut request = execution(MAIN, "silent", "true");
    request.no_streams = true;
    client.exec_process(request.clone()).await.unwrap();
    let none = client.read_stdout(reading(MAIN, "silent", 1)).await;
    assert_eq!(none.unwrap_err().kind(), Some(FailureKind::NoSuchStream));
    let twice = client.exec_process(request).await.unwrap_err();
    assert_eq!(twice.kind(), Some(FailureKind::AlreadyExists));
    assert_eq!(
        run(client, MAIN, "after", "echo fine").await,
        (0, "fine\n".into())
    );
}

on_every_backend! {
    /// Conformance: api ExecProcess
    /// Conformance: api WriteStdin
    /// Conformance: api ReadStdout
    /// Conformance: api ReadStderr
    /// Conformance: api CloseStdin
    /// Conformance: api TtyWinResize
    /// Conformance: api WaitProcess
    async fn streams_are_read_and_written_by_calls(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        through(&client).await;
        ends(&client).await;
        terminal(&client).await;
        refusals(&client).await;
        sandbox.stop().await.unwrap();
    }
}
