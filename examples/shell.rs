//! A shell in a virtual machine of its own, in front of you: `cargo run --example shell -- IMAGE [COMMAND…]`.
//!
//! Keys go to the guest as they are, ctrl-c and ctrl-d among them; its size is that of your terminal, whose settings
//! are put back however this ends. The exit status is the shell's.

use std::convert::Infallible;
use std::error::Error;
use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use examples::{fetch, print_error};
use kata_sandbox::process::{ExitStatus, Process, TerminalSize};
use kata_sandbox::{Container, Sandbox};
use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

type Failure = Box<dyn Error + Send + Sync>;

/// What runs where no command is named: the friendlier shell, if the image has it.
const SHELL: [&str; 3] = ["sh", "-c", "exec $(command -v bash || echo sh)"];

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(image) = words.next() else {
        eprintln!("usage: shell IMAGE [COMMAND...]");
        return ExitCode::from(2);
    };
    if !std::io::stdin().is_terminal() {
        eprintln!("error: standard input is not a terminal");
        return ExitCode::from(2);
    }
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(&error);
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        // The one that loses is dropped, which puts everything back: the terminal's settings, the machine.
        tokio::select! {
            ended = shell(image, words.collect()) => ended,
            killed = killed() => killed,
        }
    });
    // Nobody waits for an image that is being fetched in vain.
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            print_error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// Boots, and lets the person and the shell talk until the shell ends.
async fn shell(image: OsString, command: Vec<OsString>) -> Result<u8, Failure> {
    let mut resized = signal(SignalKind::window_change())?;
    let name = image.clone();
    // It reads files or the network, for long maybe.
    tokio::task::spawn_blocking(move || fetch(&name)).await??;
    let sandbox = Sandbox::boot(container(image, command)?).await?;
    let mut process = sandbox.spawn().await?;

    let raw = Raw::set()?;
    let ended = talk(&mut process, &mut resized).await;
    drop(raw);
    let status = ended?;
    sandbox.stop().await?;
    Ok(u8::try_from(status.code())?)
}

fn container(image: OsString, command: Vec<OsString>) -> Result<Container, Failure> {
    let container = Container::new(image).terminal(size()?).stdin_piped();
    // The colours and keys of this terminal, if the image knows it by name.
    let container = match std::env::var("TERM") {
        Ok(name) if !name.is_empty() => container.env("TERM", name),
        _ => container,
    };
    if command.is_empty() {
        return Ok(container.entrypoint(SHELL));
    }
    let words: Result<Vec<String>, OsString> = command.into_iter().map(OsString::into_string).collect();
    let words = words.map_err(|word| format!("{} is not UTF-8", word.display()))?;
    Ok(container.args(words))
}

/// Until the shell's output ends, which its exit follows or the sandbox's end with its reason.
async fn talk(process: &mut Process, resized: &mut Signal) -> Result<ExitStatus, Failure> {
    let stdin = process.stdin.take();
    let mut shown = process.stdout.take().ok_or("the process has no output")?;
    tokio::select! {
        failed = follow_size(process, resized) => return Err(failed),
        never = pass_keys(keys(), stdin) => match never {},
        result = show(&mut shown) => result?,
    }
    Ok(process.wait().await?)
}

/// Writes all that the shell writes, at once.
async fn show(shown: &mut (impl AsyncReadExt + Unpin)) -> Result<(), Failure> {
    let (mut stdout, mut bytes) = (tokio::io::stdout(), vec![0; 64 << 10]);
    // A reset is the machine's end, which the wait reports with its cause.
    while let Ok(count @ 1..) = shown.read(&mut bytes).await {
        stdout.write_all(&bytes[..count]).await?;
        stdout.flush().await?;
    }
    Ok(())
}

/// Passes keys on, and their end when the terminal has hung up. Returns never: the shell's end is its output's.
async fn pass_keys(
    mut keys: mpsc::Receiver<Vec<u8>>,
    stdin: Option<Box<dyn AsyncWrite + Send + Sync + Unpin>>,
) -> Infallible {
    if let Some(mut stdin) = stdin {
        while let Some(bytes) = keys.recv().await {
            if stdin.write_all(&bytes).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

/// What is typed. A thread waits for it, which a runtime would wait for in its turn: it ends with the program.
fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut bytes) {
            if sender.blocking_send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Gives the guest's terminal the size of this one, also what it became during the boot. Returns when that fails.
async fn follow_size(process: &Process, resized: &mut Signal) -> Failure {
    while resized.recv().await.is_some() {
        let size = match size() {
            Ok(size) => size,
            Err(error) => return error,
        };
        // A shell that has just ended needs no size; the wait tells how it ended.
        let _ = process.resize(size).await;
    }
    "no signals arrive any more".into()
}

fn size() -> Result<TerminalSize, Failure> {
    let size = tcgetwinsize(stdio::stdin())?;
    Ok(TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// The terminal without a line discipline of its own, for as long as this lives.
struct Raw(Termios);

impl Raw {
    fn set() -> std::io::Result<Self> {
        let before = tcgetattr(stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has hung up has no settings to put back.
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Asked to end from outside, or by ctrl-c during the boot: the code that a shell would tell.
async fn killed() -> Result<u8, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let kind = tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = terminate.recv() => SignalKind::terminate(),
        _ = hangup.recv() => SignalKind::hangup(),
    };
    Ok(128 + u8::try_from(kind.as_raw_value())?)
}
