//! A guest that lies: the fuzzers' corpus as an ordinary test, and the lies that have a name.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "hostile/mod.rs"]
mod scripts;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kata_agent_proto::agent::{StatsContainerRequest, WaitProcessRequest};
use kata_agent_proto::{CallError, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

fn corpus(name: &str, run: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        run(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 5, "the corpus of {name} is there");
}

#[test]
fn what_the_fuzzers_start_from_is_survived() {
    corpus("client", scripts::client);
    corpus("hello", scripts::hello);
}

/// Bytes without an order, the same on every machine (xorshift64).
fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    let next = std::iter::repeat_with(move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()[0]
    });
    next.take(length).collect()
}

#[test]
fn noise_is_survived() {
    for seed in 1..200 {
        let mut script = noise(seed, 200);
        scripts::hello(&script);
        scripts::client(&script);
        // The same as frames of a type that exists.
        script[0] = 1;
        for (place, byte) in [(1, 2), (2, 1), (3, 0)] {
            script[place] = byte;
        }
        scripts::client(&script);
    }
}

fn frame(length: u32, stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [length.to_be_bytes(), stream.to_be_bytes()].concat();
    frame.extend([kind, 0]);
    frame.extend(payload);
    frame
}

/// What a call comes to when the guest answers the first request with these bytes, again and again, until it is
/// hung up on; and how many bytes it was rid of.
async fn lie(answer: Vec<u8>, close: bool) -> (CallError, Option<String>, usize) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let client = Client::new(near);
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let guest = tokio::spawn(async move {
        let _ = far.read(&mut [0; 64]).await;
        loop {
            match far.write(&answer).await {
                Ok(bytes) => count.fetch_add(bytes, Ordering::Relaxed),
                Err(_) => return,
            };
            if close {
                return;
            }
        }
    });
    let error = client
        .stats_container(StatsContainerRequest::new())
        .await
        .unwrap_err();
    client.closed().await;
    let breach = client.breach();
    drop(client);
    guest.await.unwrap();
    (error, breach, written.load(Ordering::Relaxed))
}

/// A guest gets rid of what the socket and one read hold, not of more.
const MOST_BYTES: usize = 2 << 20;

#[tokio::test]
async fn an_answer_of_an_absurd_length_ends_the_connection_before_it_is_read() {
    for length in [u32::MAX, 4 << 20, (1 << 20) + 1] {
        let mut answer = frame(length, 1, 2, b"");
        answer.resize(1 << 16, 0);
        let (error, breach, written) = lie(answer, false).await;
        let what = format!("an answer of {length} bytes, where 1048576 are the most");
        assert_eq!(error, CallError::Broken { what: what.clone() });
        assert_eq!(breach, Some(what));
        assert!(written < MOST_BYTES, "{written}");
    }
}

#[tokio::test]
async fn a_flood_ends_the_connection_whatever_it_is_of() {
    let data_for_the_call = frame(4, 1, 3, b"data");
    let answers_to_nobody = frame(4, 77, 2, b"\x0a\x02\x08\x05");
    let requests_of_its_own = frame(0, 2, 1, b"");
    for flood in [data_for_the_call, answers_to_nobody, requests_of_its_own] {
        let (error, breach, written) = lie(flood.repeat(1000), false).await;
        assert!(matches!(error, CallError::Broken { .. }), "{error:?}");
        assert!(breach.is_some());
        assert!(written < MOST_BYTES, "{written}");
    }
}

#[tokio::test]
async fn the_second_answer_to_a_request_is_one_too_many() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let client = Client::new(near);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait_process(WaitProcessRequest::new()).await }
    });
    far.readable().await.unwrap();
    // An empty message of the right type, twice; the first is right.
    far.write_all(&frame(0, 1, 2, b"")).await.unwrap();
    waiting.await.unwrap().expect("an answer");
    far.write_all(&frame(0, 1, 2, b"")).await.unwrap();
    client.closed().await;
    assert_eq!(
        client.breach().as_deref(),
        Some("an answer to a request 1 that was not made, or that had one")
    );
}

#[tokio::test]
async fn an_end_within_a_frame_says_so() {
    let (error, breach, _) = lie(frame(100, 1, 2, b"half"), true).await;
    assert_eq!((error, breach), (CallError::Cut, None));
}

#[tokio::test]
async fn an_answer_that_is_no_message_fails_its_call_alone() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let client = Client::new(near);
    let asked = client.stats_container(StatsContainerRequest::new());
    let answer = async {
        far.readable().await.unwrap();
        far.write_all(&frame(3, 1, 2, b"\xff\xff\xff")).await.unwrap();
    };
    let (error, ()) = tokio::join!(asked, answer);
    assert!(matches!(error, Err(CallError::Status { .. })), "{error:?}");
    assert_eq!(client.breach(), None);
}
