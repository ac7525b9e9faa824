//! The programs that keep credentials: `docker-credential-NAME get`, the registry on standard input, JSON on
//! standard output (docker/docker-credential-helpers).

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;

use super::credentials::Credentials;

/// Why a program gave no credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// Its name could lead anywhere.
    #[error("{name:?} is no name of a credential helper")]
    Name {
        /// As the file has it.
        name: String,
    },
    /// It cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not end in time.
    #[error("{program} did not answer within {} s", .limit.as_secs())]
    Late {
        /// The program.
        program: String,
        /// How long was waited.
        limit: Duration,
    },
    /// It failed.
    #[error("{program} fails: {message}")]
    Failed {
        /// The program.
        program: String,
        /// What it printed.
        message: String,
    },
    /// What it printed is not JSON of its kind.
    #[error("{program} answers something else than credentials")]
    Answer {
        /// The program.
        program: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
}

/// How long it may take: some of them ask a person.
const LIMIT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// What a helper prints when it has nothing (docker-credential-helpers, `credentials/error.go`).
const NOT_FOUND: &str = "credentials not found in native keychain";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks `docker-credential-NAME` for the credentials of a registry; `None` when it has none.
///
/// # Errors
/// When it cannot be run, fails, or answers something else.
pub(super) fn get(name: &str, registry: &str) -> Result<Option<Credentials>, KeeperError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_plain) {
        return Err(KeeperError::Name {
            name: name.to_owned(),
        });
    }
    run(&format!("docker-credential-{name}"), registry, LIMIT)
}

fn run(program: &str, registry: &str, limit: Duration) -> Result<Option<Credentials>, KeeperError> {
    let failed = |source| KeeperError::Run {
        program: program.to_owned(),
        source,
    };
    let child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let mut child = Reaped(child);
    if let Some(mut input) = child.0.stdin.take() {
        // One that does not read its input may still answer.
        input.write_all(registry.as_bytes()).ok();
    }
    let answer = output(&mut child.0, limit).map_err(failed)?;
    let answer = answer.filter(|_| ends(&child.0, limit));
    let answer = answer.ok_or_else(|| KeeperError::Late {
        program: program.to_owned(),
        limit,
    })?;
    let status = child.0.wait().map_err(failed)?;
    let message = String::from_utf8_lossy(&answer).trim().to_owned();
    if status.success() {
        return credentials(program, &answer).map(Some);
    }
    if message == NOT_FOUND {
        return Ok(None);
    }
    Err(KeeperError::Failed {
        program: program.to_owned(),
        message: message
            .chars()
            .filter(|letter| !letter.is_control())
            .take(200)
            .collect(),
    })
}

fn credentials(program: &str, answer: &[u8]) -> Result<Credentials, KeeperError> {
    let answer: Answer = serde_json::from_slice(answer).map_err(|source| KeeperError::Answer {
        program: program.to_owned(),
        source,
    })?;
    // The user name `<token>` says that the secret is an identity token.
    Ok(if answer.username == "<token>" {
        Credentials::IdentityToken(answer.secret)
    } else {
        Credentials::Password {
            user: answer.username,
            password: answer.secret,
        }
    })
}

/// What it prints until it closes its output; `None` when that takes too long.
fn output(child: &mut Child, limit: Duration) -> io::Result<Option<Vec<u8>>> {
    let Some(output) = child.stdout.take() else {
        return Ok(Some(Vec::new()));
    };
    let (sender, receiver) = mpsc::channel();
    // It ends with the program, which is killed when it is late.
    std::thread::Builder::new()
        .name("credentials".into())
        .spawn(move || {
            let mut answer = Vec::new();
            let read = output.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
            sender.send(read.map(|_| answer)).ok();
        })?;
    match receiver.recv_timeout(limit) {
        Ok(answer) => answer.map(Some),
        Err(_) => Ok(None),
    }
}

/// Whether it ends in time.
fn ends(child: &Child, limit: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let Ok(process) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else {
        return false;
    };
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// A child that does not outlive its use.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn answer(script: &str, limit: Duration) -> Result<Option<Credentials>, KeeperError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("helper");
        // Written by another process, so that no fork of this one holds it open for writing.
        let written = Command::new("sh")
            .args([
                "-c",
                "printf '%s' \"$1\" > \"$2\"",
                "sh",
                &format!("#!/bin/sh\n{script}\n"),
            ])
            .arg(&path)
            .status()
            .unwrap();
        assert!(written.success());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        run(path.to_str().unwrap(), "h.io", limit)
    }

    #[test]
    fn a_program_gives_credentials_or_says_why_not() {
        let good = r#"read host; echo "{\"ServerURL\":\"x\",\"Username\":\"$1\",\"Secret\":\"$host\"}""#;
        let found = answer(good, LIMIT).unwrap();
        let (user, password) = ("get".into(), "h.io".into());
        assert_eq!(found, Some(Credentials::Password { user, password }));
        let token = answer(r#"echo '{"Username":"<token>","Secret":"t"}'"#, LIMIT).unwrap();
        assert_eq!(token, Some(Credentials::IdentityToken("t".into())));
        let none = answer(&format!("echo {NOT_FOUND}; exit 1"), LIMIT).unwrap();
        assert_eq!(none, None);
        let error = answer("echo locked; exit 1", LIMIT).unwrap_err().to_string();
        assert!(error.ends_with("helper fails: locked"), "{error}");
        assert!(matches!(
            answer("echo hello", LIMIT),
            Err(KeeperError::Answer { .. })
        ));
        assert!(matches!(get("../x", "h.io"), Err(KeeperError::Name { .. })));
        assert!(matches!(
            get("that-does-not-exist", "h.io"),
            Err(KeeperError::Run { .. })
        ));
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let error = answer("exec cat < /dev/zero > /dev/null", Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, KeeperError::Late { .. }), "{error}");
    }
}
