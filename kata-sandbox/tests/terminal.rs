//! Terminals: `docs/conformance.md`, behaviours 9 and 11.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use bed::{Bed, chain, sh};
use kata_sandbox::process::{Process, TerminalSize};
use kata_sandbox::{Command, ErrorKind, Sandbox, blocking};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIZE: TerminalSize = TerminalSize {
    rows: 30,
    columns: 100,
};
const LARGER: TerminalSize = TerminalSize {
    rows: 41,
    columns: 132,
};

const CTRL_C: &[u8] = &[3];
const CTRL_D: &[u8] = &[4];
const CTRL_Z: &[u8] = &[26];

/// Reads what the process shows until it ends with this text. The bed's deadline bounds it.
async fn until(process: &mut Process, expected: &str) -> String {
    let stdout = process.stdout.as_mut().unwrap();
    let mut shown = Vec::new();
    while !shown.ends_with(expected.as_bytes()) {
        let byte = stdout.read_u8().await;
        shown.push(byte.unwrap_or_else(|_| panic!("ended without {expected:?}: {:?}", lossy(&shown))));
    }
    lossy(&shown)
}

async fn rest(process: &mut Process) -> String {
    let mut shown = Vec::new();
    process
        .stdout
        .as_mut()
        .unwrap()
        .read_to_end(&mut shown)
        .await
        .unwrap();
    lossy(&shown)
}

async fn type_in(process: &mut Process, keys: &[u8]) {
    process.stdin.as_mut().unwrap().write_all(keys).await.unwrap();
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

on_every_backend! {
    /// Conformance: semantics 11
    async fn a_terminal_has_its_size_and_name_and_merges_the_outputs(bed: Bed) {
        let script = "stty size; echo error >&2; for fd in 0 1 2; do test -t $fd || exit 9; done; echo $TERM; exit 3";
        let output = Sandbox::run(bed.shell(script).terminal(SIZE)).await.unwrap();
        assert_eq!(lossy(&output.stdout), "30 100\r\nerror\r\nxterm\r\n");
        assert!(output.stderr.is_empty());
        assert_eq!(output.status.code(), 3);

        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let process = sandbox.exec(sh(script).terminal(LARGER).env("TERM", "vt220")).await.unwrap();
        assert!(process.stderr.is_none());
        let output = process.output().await.unwrap();
        assert_eq!(lossy(&output.stdout), "41 132\r\nerror\r\nvt220\r\n");
        assert_eq!(output.status.code(), 3);
    }

    async fn a_terminal_is_the_controlling_one_also_of_a_user(bed: Bed) {
        let script = "id -un; echo through >/dev/tty; tty";
        let output = Sandbox::run(bed.shell(script).user("nobody").terminal(SIZE)).await.unwrap();
        assert_eq!(lossy(&output.stdout), "nobody\r\nthrough\r\n/dev/pts/0\r\n");
        assert!(output.status.success());
    }

    /// Conformance: semantics 10
    async fn a_user_can_open_the_terminal_again(bed: Bed) {
        let script = "echo out >/dev/stdout; echo err >/dev/stderr; stat -c %U $(tty)";
        let expected = "out\r\nerr\r\nnobody\r\n";
        let output = Sandbox::run(bed.shell(script).user("nobody").terminal(SIZE)).await.unwrap();
        assert_eq!(lossy(&output.stdout), expected);
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let process = sandbox.exec(sh(script).user("nobody").terminal(SIZE)).await.unwrap();
        assert_eq!(lossy(&process.output().await.unwrap().stdout), expected);
    }

    /// Conformance: semantics 11
    async fn a_resize_is_told_to_the_programs(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let script = "trap 'stty size; kill $!; exit 4' WINCH; sleep 1000 & echo ready; wait";
        let mut process = sandbox.exec(sh(script).terminal(SIZE)).await.unwrap();
        until(&mut process, "ready\r\n").await;
        process.resize(LARGER).await.unwrap();
        assert_eq!(rest(&mut process).await, "41 132\r\n");
        assert_eq!(process.wait().await.unwrap().code(), 4);
    }

    /// Conformance: semantics 11
    async fn a_resize_without_a_terminal_or_after_the_end_is_an_error_that_says_so(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let process = sandbox.exec(Command::new("cat").stdin_piped()).await.unwrap();
        let error = process.resize(SIZE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState);
        assert!(error.to_string().ends_with("the process was started without one"), "{error}");
        assert!(process.output().await.unwrap().status.success(), "it goes on");

        let process = sandbox.exec(Command::new("true").terminal(SIZE)).await.unwrap();
        assert!(process.wait().await.unwrap().success());
        let resized = process.resize(LARGER).await.unwrap_err();
        let signalled = process.signal(15).await.unwrap_err();
        assert_eq!(resized.kind(), ErrorKind::InvalidState, "{}", chain(&resized));
        assert_eq!(resized.kind(), signalled.kind());

        let error = Sandbox::boot(bed.idle().terminal(SIZE)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContainer, "nobody would have it");
    }

    /// Conformance: semantics 11
    async fn the_keys_of_a_terminal_interrupt_and_end(bed: Bed) {
        let script = "trap : INT; sh -c 'echo begun; exec sleep 1000'; echo interrupted $?; exec cat";
        let sandbox = Sandbox::boot(bed.shell(script).terminal(SIZE).stdin_piped()).await.unwrap();
        let mut process = sandbox.spawn().await.unwrap();
        until(&mut process, "begun\r\n").await;
        type_in(&mut process, CTRL_C).await;
        assert_eq!(until(&mut process, "interrupted 130\r\n").await, "^Cinterrupted 130\r\n");
        type_in(&mut process, b"typed\n").await;
        // Once by the terminal's echo, once by cat.
        until(&mut process, "typed\r\ntyped\r\n").await;
        type_in(&mut process, CTRL_D).await;
        assert_eq!(rest(&mut process).await, "");
        assert!(process.wait().await.unwrap().success());
    }

    /// Conformance: semantics 11
    async fn a_shell_with_a_terminal_is_interactive_and_has_jobs(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let mut process = sandbox.exec(Command::new("sh").terminal(SIZE).stdin_piped()).await.unwrap();
        until(&mut process, "# ").await;
        // A job is suspended by its key, and continued in the foreground.
        type_in(&mut process, b"sh -c 'echo be\"\"gun; exec sleep 1000'\n").await;
        until(&mut process, "begun\r\n").await;
        type_in(&mut process, CTRL_Z).await;
        until(&mut process, "# ").await;
        type_in(&mut process, b"kill %1; fg; echo killed $?\n").await;
        until(&mut process, "killed 143\r\n").await;
        type_in(&mut process, b"exit 6\n").await;
        assert_eq!(process.wait().await.unwrap().code(), 6);
    }

    /// Conformance: semantics 9
    async fn closed_input_ends_a_terminal_as_it_ends_a_pipe(bed: Bed) {
        let ends = |output: kata_sandbox::Output| (lossy(&output.stdout), output.status.code());
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let cat = || sh("cat; echo ended").terminal(SIZE);
        // From the start, after the bytes that were given, and when the caller drops it.
        let process = sandbox.exec(cat()).await.unwrap();
        assert!(process.stdin.is_none());
        assert_eq!(ends(process.output().await.unwrap()), ("ended\r\n".into(), 0));
        let process = sandbox.exec(cat().stdin("line\n")).await.unwrap();
        assert_eq!(ends(process.output().await.unwrap()), ("line\r\nline\r\nended\r\n".into(), 0));
        let mut process = sandbox.exec(cat().stdin_piped()).await.unwrap();
        type_in(&mut process, b"more\n").await;
        until(&mut process, "more\r\nmore\r\n").await;
        drop(process.stdin.take());
        assert_eq!(ends(process.output().await.unwrap()), ("ended\r\n".into(), 0));

        let output = Sandbox::run(bed.shell("cat; echo ended").terminal(SIZE)).await.unwrap();
        assert_eq!(ends(output), ("ended\r\n".into(), 0));
    }

    async fn a_mebibyte_written_to_a_terminal_just_before_the_exit_arrives_whole(bed: Bed) {
        // Lines of 63 characters and an end, of which a terminal makes two.
        let script = "yes 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde | head -c 1048576";
        let output = Sandbox::run(bed.shell(script).terminal(SIZE)).await.unwrap();
        assert!(output.status.success());
        let line = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\r\n";
        assert_eq!(output.stdout.len(), (1 << 14) * line.len());
        assert!(output.stdout.chunks(line.len()).all(|chunk| chunk == line));
    }

    async fn the_blocking_face_has_terminals_too(bed: Bed) {
        tokio::task::spawn_blocking(move || {
            use std::io::{Read, Write};
            let sandbox = blocking::Sandbox::boot(bed.idle()).unwrap();
            let script = "stty -echo; echo ready; read line; stty size; cat; echo ended";
            let mut process = sandbox.exec(sh(script).terminal(SIZE).stdin_piped()).unwrap();
            assert!(process.stderr.is_none());
            let (mut stdin, mut stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
            let mut ready = [0; 7];
            stdout.read_exact(&mut ready).unwrap();
            process.resize(LARGER).unwrap();
            stdin.write_all(b"go\n").unwrap();
            drop(stdin);
            let mut shown = String::new();
            stdout.read_to_string(&mut shown).unwrap();
            assert_eq!(shown, "41 132\r\nended\r\n");
            assert!(process.wait().unwrap().success());
            let output = sandbox.exec(sh("cat; stty size").terminal(SIZE)).unwrap().output().unwrap();
            assert_eq!(output.stdout, b"30 100\r\n");
            sandbox.stop().unwrap();
        })
        .await
        .unwrap();
    }
}
