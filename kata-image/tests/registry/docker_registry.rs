//! docker's own registry, started on a free port of this machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

/// A registry that ends with its value.
pub(crate) struct DockerRegistry {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub(crate) host: String,
    directory: tempfile::TempDir,
}

/// How long it may take to listen; it takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(60);

impl DockerRegistry {
    pub(crate) const PROGRAM: &'static str = "docker-registry";

    /// Without users and without encryption.
    pub(crate) fn plain() -> Self {
        Self::start(&json!({}), &json!({}))
    }

    /// With these sections in its configuration: how it listens, and how users are told.
    pub(crate) fn start(http: &Value, auth: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": directory.path().join("data")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        for (name, value) in http.as_object().unwrap() {
            config["http"][name] = value.clone();
        }
        if auth.as_object().is_some_and(|auth| !auth.is_empty()) {
            config["auth"] = auth.clone();
        }
        let path = directory.path().join("config.yml");
        // JSON is YAML.
        fs::write(&path, config.to_string()).unwrap();
        let mut child = Command::new(Self::PROGRAM)
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let host = listening(&mut child);
        Self {
            child,
            host,
            directory,
        }
    }

    /// The files in which it keeps a blob's bytes.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Where it listens, as its log says. The log is read to its end, so that it never blocks.
fn listening(child: &mut Child) -> String {
    let log = BufReader::new(child.stderr.take().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("listening on ") {
                let host = rest.split(['"', ',', ' ']).next().unwrap_or_default();
                sender.send(host.to_owned()).ok();
            }
        }
    });
    receiver.recv_timeout(PATIENCE).expect("the registry listens")
}
