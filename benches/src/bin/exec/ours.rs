//! What a sandbox does, from a call of the library to its answer.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use kata_sandbox::process::ExitStatus;
use kata_sandbox::{Command, Container, Sandbox};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

fn succeeded(what: &str, status: ExitStatus) -> Result<(), Box<dyn Error>> {
    match status.success() {
        true => Ok(()),
        false => Err(format!("{what} ended with {status}").into()),
    }
}

/// A process that does nothing.
pub(crate) async fn exec(sandbox: &Sandbox) -> Result<Duration, Box<dyn Error>> {
    let begin = Instant::now();
    let status = sandbox.exec(Command::new("true")).await?.wait().await?;
    let time = begin.elapsed();
    succeeded("true", status)?;
    Ok(time)
}

/// A container that does nothing, from its creation to its removal.
pub(crate) async fn container(sandbox: &Sandbox, image: &str) -> Result<Duration, Box<dyn Error>> {
    let begin = Instant::now();
    let container = sandbox
        .create_container(Container::new(image).args(["true"]))
        .await?;
    let status = container.spawn().await?.wait().await?;
    container.remove().await?;
    let time = begin.elapsed();
    succeeded("the container", status)?;
    Ok(time)
}

/// So many bytes of a process's output, from its start to its end.
pub(crate) async fn output(sandbox: &Sandbox, bytes: u64) -> Result<Duration, Box<dyn Error>> {
    let begin = Instant::now();
    let command = Command::new("head").args(["-c", &bytes.to_string(), "/dev/zero"]);
    let mut process = sandbox.exec(command).await?;
    let mut stdout = process.stdout.take().ok_or("no output")?;
    let mut buffer = vec![0; 1 << 20];
    let mut read = 0;
    loop {
        match stdout.read(&mut buffer).await? {
            0 => break,
            more => read += more as u64,
        }
    }
    succeeded("head", process.wait().await?)?;
    let time = begin.elapsed();
    match read == bytes {
        true => Ok(time),
        false => Err(format!("{read} bytes of {bytes} arrived").into()),
    }
}

/// A file on the host that goes into the sandbox and comes out of it.
pub(crate) struct Files(TempDir);

/// Where it is in the container.
const COPIED: &str = "/copied";

impl Files {
    /// With so many bytes in it, none of which is a hole.
    pub(crate) fn new(bytes: u64) -> Result<Self, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("in"), vec![0x5a; usize::try_from(bytes)?])?;
        Ok(Self(directory))
    }

    pub(crate) async fn copy_in(&self, sandbox: &Sandbox) -> Result<Duration, Box<dyn Error>> {
        let begin = Instant::now();
        sandbox.copy_in(self.0.path().join("in"), COPIED).await?;
        Ok(begin.elapsed())
    }

    /// Brings back what was copied last, and looks whether it is the same.
    pub(crate) async fn copy_out(&self, sandbox: &Sandbox) -> Result<Duration, Box<dyn Error>> {
        let (from, to) = (self.0.path().join("in"), self.0.path().join("out"));
        let begin = Instant::now();
        sandbox.copy_out(COPIED, &to).await?;
        let time = begin.elapsed();
        match fs::read(from)? == fs::read(to)? {
            true => Ok(time),
            false => Err("what came back is not what was copied".into()),
        }
    }
}

/// So many processes at the same time, from the first start to the last end.
pub(crate) async fn at_once(sandbox: &Sandbox, count: usize) -> Result<Duration, Box<dyn Error>> {
    let begin = Instant::now();
    let mut started = Vec::new();
    let mut waiting = JoinSet::new();
    for _ in 0..count {
        let command = Command::new("cat").stdin_piped();
        started.push(sandbox.exec(command).await?);
    }
    // All of them run now; each ends with its input.
    for mut process in started {
        drop(process.stdin.take());
        waiting.spawn(async move { process.wait().await });
    }
    while let Some(ended) = waiting.join_next().await {
        succeeded("cat", ended??)?;
    }
    Ok(begin.elapsed())
}
