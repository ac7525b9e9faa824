//! A program that serves in a container: what it says, line by line, and how it ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code"
)]

use std::time::Duration;

use kata_sandbox::process::ExitStatus;
use kata_sandbox::{Process, Sandbox};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::bed::patience;

/// A program says what is expected within this, also in software emulation.
const SAYS: Duration = Duration::from_secs(120);

pub(crate) struct Server {
    process: Process,
    lines: UnboundedReceiver<String>,
    said: Vec<String>,
}

impl Server {
    /// Starts the command of the sandbox's container.
    pub(crate) async fn start(sandbox: &Sandbox) -> Self {
        let mut process = sandbox.spawn().await.unwrap();
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(forward(process.stdout.take().unwrap(), sender.clone()));
        tokio::spawn(forward(process.stderr.take().unwrap(), sender));
        Self {
            process,
            lines,
            said: Vec::new(),
        }
    }

    /// Waits until it says a line with these words, on either stream; lines before are behind it then.
    pub(crate) async fn says(&mut self, words: &str) {
        let found = tokio::time::timeout(SAYS * patience(), self.find(words)).await;
        if !found.unwrap_or(false) {
            panic!("it never said {words:?}, but:\n{}", self.said.join("\n"));
        }
    }

    /// Whether there is such a line before the end.
    async fn find(&mut self, words: &str) -> bool {
        while let Some(line) = self.lines.recv().await {
            let found = line.contains(words);
            self.said.push(line);
            if found {
                return true;
            }
        }
        false
    }

    pub(crate) async fn signal(&self, signal: i32) {
        self.process.signal(signal).await.unwrap();
    }

    /// Ends it by the signal that its image names (OCI image-spec config.md, `StopSignal`); gives back how it ended and
    /// all that it said.
    pub(crate) async fn stop(mut self) -> (ExitStatus, String) {
        let status = self.process.stop(SAYS * patience()).await.unwrap();
        while let Some(line) = self.lines.recv().await {
            self.said.push(line);
        }
        (status, self.said.join("\n"))
    }
}

/// Every line of a stream, until its end.
async fn forward(stream: Box<dyn AsyncRead + Send + Unpin>, lines: UnboundedSender<String>) {
    let mut stream = BufReader::new(stream).lines();
    while let Some(line) = stream.next_line().await.unwrap() {
        // A test that is over listens no more.
        let _ = lines.send(line);
    }
}
