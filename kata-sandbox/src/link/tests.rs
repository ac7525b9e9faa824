//! A sandbox whose agent is Kata's own: what this project adds to the API is not there.

use std::sync::atomic::AtomicBool;

use kata_agent_proto::kata::CopyRequest;
use kata_vmm::control::Socket;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::events::Hub;
use crate::process::Handle;

/// What a process ends with there.
const STATUS: u8 = 7;

/// Answers as Kata's agent does: waiting is of its service, and what is of another service has none.
async fn answer(mut stream: tokio::net::UnixStream) -> io::Result<()> {
    loop {
        // A header of ttrpc: length, stream, type and flags.
        let mut header = [0; 10];
        stream.read_exact(&mut header).await?;
        let [length, number] = [0, 4].map(|at| [0, 1, 2, 3].map(|byte| header[at + byte]));
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut request).await?;
        let waits = request.windows(11).any(|part| part == b"WaitProcess");
        let body = if waits {
            // A status without anything in it, and field 1 of the answer.
            vec![0x0a, 0, 0x12, 2, 0x08, STATUS]
        } else {
            let words = b"kata.Guest service does not exist";
            let length = u8::try_from(words.len()).unwrap();
            // INVALID_ARGUMENT and why.
            [&[0x0a, length + 4, 0x08, 3, 0x12, length], &words[..]].concat()
        };
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        stream
            .write_all(&[&length[..], &number, &[2, 0], &body].concat())
            .await?;
    }
}

/// A link to such an agent, and what has to be kept for it.
fn link() -> (Arc<Link>, Socket, watch::Sender<State>) {
    let (near, far) = tokio::net::UnixStream::pair().unwrap();
    tokio::spawn(answer(far));
    let (control, monitor) = Control::of_nobody().unwrap();
    let (sender, state) = watch::channel(State::Running);
    let link = Link::new(Client::new(near), Dialer::new(Arc::new(control)), state);
    (Arc::new(link), monitor, sender)
}

#[tokio::test]
async fn a_process_ends_without_a_receipt_and_asking_for_one_is_unsupported() {
    let (link, _monitor, _state) = link();
    let handle = Handle {
        link,
        hub: Arc::new(Hub::new()),
        container_id: "c1".into(),
        exec_id: "e1".into(),
        gone: Arc::new(AtomicBool::new(false)),
        output_limit_bytes: 0,
        has_terminal: false,
        stop_signal: 15,
    };
    assert_eq!(handle.wait().await.unwrap().code(), i32::from(STATUS));
    let (status, receipt) = handle.finish().await.unwrap();
    assert_eq!((status.code(), receipt.is_none()), (i32::from(STATUS), true));
    let error = handle.receipt().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_sandbox_lost()),
        (ErrorKind::Unsupported, false)
    );
    assert_eq!(
        error.to_string(),
        "exit: cannot tell what the process used: this agent does not keep it"
    );
}

#[tokio::test]
async fn a_copy_is_unsupported_and_the_sandbox_goes_on() {
    let (link, _monitor, _state) = link();
    for what in ["copy into the container", "copy out of the container"] {
        let request = CopyRequest::new();
        let copied = match what.contains("into") {
            true => link.call(Stage::Copy, what, link.client.copy_in(request)).await,
            false => link.call(Stage::Copy, what, link.client.copy_out(request)).await,
        };
        let error = copied.unwrap_err();
        assert_eq!(
            (error.kind(), error.is_sandbox_lost()),
            (ErrorKind::Unsupported, false)
        );
        assert!(
            error
                .to_string()
                .contains(&format!("cannot {what}: this agent does not offer it"))
        );
    }
    assert!(matches!(*link.state().borrow(), State::Running));
}
