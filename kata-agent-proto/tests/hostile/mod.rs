//! Any bytes as what a guest says, and what must hold whatever it is. For tests and for fuzzing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "this is test code, and each user takes a part"
)]

use std::time::Duration;

use kata_agent_proto::agent::{
    ListRoutesRequest, ReadStreamRequest, StatsContainerRequest, WaitProcessRequest,
};
use kata_agent_proto::{CallError, Client, HELLO_MAX_BYTES, read_hello};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest text of a guest that may reach a person.
const TEXT_MAX_BYTES: usize = 2048;

/// How long a script may take: a guess at what hangs.
const DEADLINE: Duration = Duration::from_secs(20);

fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, work)
            .await
            .expect("an end whatever the guest says");
    });
}

/// Turns a script into what goes over the wire: the first byte says how.
///
/// 0 is bytes as they are. Anything else is a list of frames, each of a type, a stream, a length that is announced, and
/// a length that follows.
fn wire(script: &[u8]) -> Vec<u8> {
    let Some((mode, mut rest)) = script.split_first() else {
        return Vec::new();
    };
    if *mode == 0 {
        return rest.to_vec();
    }
    let mut wire = Vec::new();
    while let [kind, stream, announced, follows, tail @ ..] = rest {
        let follows = tail.len().min(usize::from(*follows));
        let length = match announced {
            255 => u32::MAX,
            254 => (4 << 20) + 1,
            253 => 1 << 20,
            // Mostly the truth.
            0..=127 => u32::try_from(follows).unwrap_or(0),
            other => u32::from(*other),
        };
        wire.extend(length.to_be_bytes());
        wire.extend(u32::from(*stream).to_be_bytes());
        wire.extend([*kind, 0]);
        wire.extend(&tail[..follows]);
        rest = &tail[follows..];
    }
    wire
}

/// The client against a guest that says this and closes the connection.
pub(crate) fn client(script: &[u8]) {
    block_on(async {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        let client = Client::new(near);
        let guest = async {
            // Answers come to requests: the first is on its way.
            let mut request = [0; 64];
            let _ = far.read(&mut request).await;
            let _ = far.write_all(&wire(script)).await;
            let _ = far.shutdown().await;
            // What is asked further is read and not answered.
            while far.read(&mut request).await.is_ok_and(|read| read > 0) {}
        };
        let asked = async {
            let results = tokio::join!(
                async { client.check().await.map(drop) },
                async { client.wait_process(WaitProcessRequest::new()).await.map(drop) },
                async {
                    client
                        .stats_container(StatsContainerRequest::new())
                        .await
                        .map(drop)
                },
                async { client.list_routes(ListRoutesRequest::new()).await.map(drop) },
                async {
                    let request = ReadStreamRequest {
                        len: u32::MAX,
                        ..Default::default()
                    };
                    client.read_stdout(request).await.map(drop)
                },
            );
            let results = [results.0, results.1, results.2, results.3, results.4];
            results
                .into_iter()
                .filter_map(Result::err)
                .for_each(|error| check(&error));
            let end = client.closed().await;
            match client.check().await {
                Err(error @ (CallError::Closed | CallError::Cut)) => {
                    assert_eq!((error, client.breach()), (end, None));
                }
                Err(CallError::Broken { what }) => assert_eq!(client.breach(), Some(what)),
                other => unreachable!("after the end: {other:?}"),
            }
            drop(client);
        };
        tokio::join!(guest, asked);
    });
}

/// What a guest says may reach a terminal, and a log.
fn check(error: &CallError) {
    let text = error.to_string();
    assert!(text.len() <= TEXT_MAX_BYTES, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// The hello of a guest that says this and closes the connection.
pub(crate) fn hello(bytes: &[u8]) {
    block_on(async {
        let mut rest = bytes;
        if let Ok(hello) = read_hello(&mut rest).await {
            assert!(bytes.len() - rest.len() <= HELLO_MAX_BYTES + 4);
            for text in [hello.agent_version, hello.kernel_release] {
                assert!(
                    text.len() <= TEXT_MAX_BYTES && !text.chars().any(char::is_control),
                    "{text:?}"
                );
            }
        }
    });
}
