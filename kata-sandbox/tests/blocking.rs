//! The blocking face.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::io::{Read, Write};

use bed::{Bed, text};
use kata_sandbox::{Command, blocking};

on_every_backend! {
    async fn the_blocking_face_does_the_same(bed: Bed) {
        tokio::task::spawn_blocking(move || {
            let output = blocking::Sandbox::run(bed.shell("cat; exit 5").stdin("in")).unwrap();
            assert_eq!((text(&output).as_str(), output.status.code()), ("in", 5));

            let sandbox = blocking::Sandbox::boot(bed.idle()).unwrap();
            let mut process = sandbox.exec(Command::new("cat").stdin_piped()).unwrap();
            let mut stdin = process.stdin.take().unwrap();
            stdin.write_all(b"through").unwrap();
            drop(stdin);
            let mut echoed = String::new();
            process.stdout.take().unwrap().read_to_string(&mut echoed).unwrap();
            assert_eq!(echoed, "through");
            assert!(process.wait().unwrap().success());
            let output = sandbox.exec(Command::new("wc").arg("-c").stdin("12345")).unwrap().output().unwrap();
            assert_eq!(text(&output), "5");
            let process = sandbox.exec(Command::new("sleep").arg("1000")).unwrap();
            process.kill().unwrap();
            assert_eq!(process.wait().unwrap().code(), 137);
            sandbox.stop().unwrap();
        })
        .await
        .unwrap();
    }
}
