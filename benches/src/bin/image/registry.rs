//! docker's own registry on a free port of this machine, for as long as the value lives. What is in it, it must not
//! know.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;

/// How long it may take to listen; it takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// A registry that keeps everything in a directory.
#[derive(Debug)]
pub(crate) struct Registry {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub(crate) host: String,
}

impl Registry {
    /// Starts one without users and without encryption.
    ///
    /// # Errors
    /// When it does not start, or does not listen in time.
    pub(crate) fn start(directory: &Path) -> Result<Self, Box<dyn Error>> {
        let config = json!({
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": directory.join("data")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        let path = directory.join("config.yml");
        // JSON is YAML.
        fs::write(&path, config.to_string())?;
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("docker-registry: {error}"))?;
        let log = child.stderr.take().ok_or("the registry has no log")?;
        let mut registry = Self {
            child,
            host: String::new(),
        };
        registry.host = listening(log)?;
        Ok(registry)
    }
}

/// Where it listens, as its log says. The log is read to its end, so that it never blocks.
fn listening(log: impl std::io::Read + Send + 'static) -> Result<String, mpsc::RecvTimeoutError> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("listening on ") {
                let host = rest.split(['"', ',', ' ']).next().unwrap_or_default();
                // Whoever waited has given up, or has heard it.
                let _ = sender.send(host.to_owned());
            }
        }
    });
    receiver.recv_timeout(PATIENCE)
}

impl Drop for Registry {
    fn drop(&mut self) {
        // One that has ended by itself has failed requests, which were told.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
