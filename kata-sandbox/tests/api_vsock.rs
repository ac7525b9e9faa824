//! The guest's vsock as a socket of the host.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod bed;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bed::{Bed, eventually};
use kata_agent_proto::{Client, port};
use kata_sandbox::Sandbox;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Says a line, and reads what comes until the end of a line or of the stream.
async fn ask(path: &Path, line: &str) -> (String, UnixStream) {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(line.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // One byte of buffer, so that nothing after the line is taken.
    BufReader::with_capacity(1, &mut stream)
        .read_line(&mut answer)
        .await
        .unwrap_or(0);
    (answer, stream)
}

on_every_backend! {
    async fn the_vsock_is_served_as_firecracker_serves_it(bed: Bed) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kata.hvsock");
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        sandbox.serve_vsock(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(sandbox.serve_vsock(&path).await.is_err(), "the file exists");

        let (answer, stream) = ask(&path, &format!("CONNECT {}\n", port::AGENT)).await;
        let host_port = answer.strip_prefix("OK ").unwrap().trim_end();
        assert!(host_port.parse::<u32>().is_ok(), "{answer:?}");
        let (client, other) = (Client::new(stream), ask(&path, "CONNECT 1024\n").await.1);
        client.check().await.unwrap();
        let output = api::run(&client, api::MAIN, "by-vsock", "echo hello").await;
        assert_eq!(output, (0, "hello\n".into()));
        // A second connection, as the tool has one for each service.
        Client::new(other).version().await.unwrap();

        // Nobody listens there: without a guest that is only known afterwards.
        let (answer, mut stream) = ask(&path, "CONNECT 9999\n").await;
        assert_eq!(answer.is_empty(), bed.has_guest(), "{answer:?}");
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
        for line in ["HELLO 1024\n", "CONNECT\n", "CONNECT 1024 1024\n", &"x".repeat(100)] {
            assert_eq!(ask(&path, line).await.0, "", "{line:?}");
        }
        client.check().await.unwrap();

        sandbox.stop().await.unwrap();
        client.closed().await;
        eventually("the socket is removed", async || !path.exists()).await;
    }
}
