//! An image that never comes: the time that the caller set bounds it, and nobody waits for what was given up.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kata_sandbox::report::Stage;
use kata_sandbox::{Container, Error, ErrorKind, Sandbox, blocking};

/// Long for a machine with something else to do, and less than a registry is waited for.
const SOON: Duration = Duration::from_secs(20);

/// A registry that takes calls and answers none of them; and the calls.
fn stalling_registry() -> (String, Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/stalls/image:latest", listener.local_addr().unwrap());
    let (sender, calls) = channel();
    std::thread::spawn(move || {
        for call in listener.incoming() {
            // A test that is over wants no more of them.
            let _ = sender.send(call.unwrap());
        }
    });
    (image, calls)
}

fn check(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::BootTimedOut, "{error:?}");
    assert_eq!(error.stage(), Stage::Image);
    assert!(error.is_sandbox_lost());
    assert_eq!(
        error.to_string(),
        "image: the sandbox was not ready within 200ms; it is given up"
    );
}

fn container(image: String) -> Container {
    Container::new(image)
        .args(["true"])
        .boot_timeout(Duration::from_millis(200))
}

#[test]
fn an_image_that_stalls_is_given_up_in_time() {
    let (image, calls) = stalling_registry();
    let begin = Instant::now();
    check(&blocking::Sandbox::run(container(image.clone())).unwrap_err());
    check(&blocking::Sandbox::boot(container(image)).unwrap_err());
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    calls.recv_timeout(SOON).unwrap();
}

#[test]
fn the_asynchronous_face_gives_up_too_and_its_runtime_goes_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (image, _calls) = stalling_registry();
    let begin = Instant::now();
    check(&runtime.block_on(Sandbox::run(container(image))).unwrap_err());
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!(runtime.block_on(async { 7 }), 7);
    runtime.shutdown_background();
}
