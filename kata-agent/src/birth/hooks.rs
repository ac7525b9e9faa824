//! Programs that are run at certain moments of a container's life (config.md#posix-platform-hooks).
//!
//! Owns their running: the state on standard input, the timeout, what counts as a failure. In which namespaces they run is
//! their caller's. Must not know containers.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use kata_agent_proto::{Failed, FailureKind};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::PidfdFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::spec::json::strings;

/// Longest part of what a failed hook said that is told.
const WORDS_MAX_BYTES: u64 = 512;

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hook {
    /// Where it stands in the specification, as `hooks.prestart[0]`.
    field: String,
    path: String,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<Duration>,
}

/// The hooks of a stage, in order.
///
/// # Errors
/// Invalid, by the field.
pub(crate) fn of(spec: &Value, stage: &str) -> Result<Vec<Hook>, Failed> {
    let list = spec["hooks"][stage].as_array().into_iter().flatten().enumerate();
    list.map(|(index, hook)| Hook::of(format!("hooks.{stage}[{index}]"), hook))
        .collect()
}

/// What a hook is told of its container (runtime.md#state).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) version: String,
    pub(crate) id: String,
    pub(crate) bundle: String,
    pub(crate) annotations: Value,
}

impl State {
    fn text(&self, status: &str, pid: Option<i32>) -> String {
        let mut state = json!({
            "ociVersion": self.version, "id": self.id, "status": status, "bundle": self.bundle,
        });
        if let Some(pid) = pid {
            state["pid"] = json!(pid);
        }
        if self.annotations.is_object() {
            state["annotations"] = self.annotations.clone();
        }
        state.to_string()
    }
}

/// Runs hooks one after the other.
///
/// # Errors
/// The first that fails, by its field; those behind it are not run.
pub(crate) fn run(hooks: &[Hook], state: &State, status: &str, pid: Option<i32>) -> Result<(), Failed> {
    let state = state.text(status, pid);
    hooks.iter().try_for_each(|hook| hook.run(&state))
}

/// Runs all hooks, whatever becomes of them.
pub(crate) fn run_all(hooks: &[Hook], state: &State, status: &str) {
    let state = state.text(status, None);
    for failed in hooks.iter().filter_map(|hook| hook.run(&state).err()) {
        crate::warn(&failed.to_string());
    }
}

impl Hook {
    fn of(field: String, hook: &Value) -> Result<Self, Failed> {
        let path = hook["path"].as_str().unwrap_or_default().to_owned();
        let (args, env) = (strings(&hook["args"]), strings(&hook["env"]));
        let invalid = |part: &str| Failed::new(FailureKind::Invalid, format!("{field}.{part}"));
        if !path.starts_with('/') {
            return Err(invalid(&format!("path: {path:?} is not absolute")));
        }
        let timeout = hook["timeout"].as_i64();
        if timeout.is_some_and(|seconds| seconds <= 0) {
            return Err(invalid("timeout: not above zero"));
        }
        let texts = [std::slice::from_ref(&path), &args, &env];
        if texts.into_iter().flatten().any(|text| text.contains('\0')) {
            return Err(invalid("path, args, env: a text with a null byte"));
        }
        let timeout = timeout.and_then(|seconds| u64::try_from(seconds).ok());
        Ok(Hook {
            field,
            path,
            args,
            env,
            timeout: timeout.map(Duration::from_secs),
        })
    }

    fn failed(&self, what: impl std::fmt::Display) -> Failed {
        Failed::new(
            FailureKind::Container,
            format!("{}: {}: {what}", self.field, self.path),
        )
    }

    fn run(&self, state: &str) -> Result<(), Failed> {
        let mut said = memory_file("").map_err(|error| self.failed(error))?;
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut child = self.spawn(state, &said).map_err(|error| self.failed(error))?;
        if !wait(&child, deadline).map_err(|error| self.failed(error))? {
            // Both fail only where there is nobody any more.
            let _ = child.kill();
            let _ = child.wait();
            return Err(self.failed(format_args!("not done in {:?}", self.timeout.unwrap_or_default())));
        }
        let status = child.wait().map_err(|error| self.failed(error))?;
        if status.success() {
            return Ok(());
        }
        let how = match status.signal() {
            Some(signal) => format!("killed by signal {signal}"),
            None => format!("exit status {}", status.code().unwrap_or(-1)),
        };
        let mut words = Vec::new();
        let read = said
            .rewind()
            .and_then(|()| said.take(WORDS_MAX_BYTES).read_to_end(&mut words));
        let words = read.map_or_else(
            |_| String::new(),
            |_| String::from_utf8_lossy(&words).trim().to_owned(),
        );
        Err(self.failed(format_args!("{how}: {words}")))
    }

    /// The state is a file, which does not wait for its reader.
    fn spawn(&self, state: &str, said: &File) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        let (name, args) = match self.args.split_first() {
            Some((name, args)) => (name.as_str(), args),
            None => (self.path.as_str(), &self.args[..]),
        };
        command.arg0(name).args(args).env_clear();
        for entry in &self.env {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            command.env(key, value);
        }
        command
            .stdin(memory_file(state)?)
            .stdout(said.try_clone()?)
            .stderr(said.try_clone()?)
            .spawn()
    }
}

fn memory_file(text: &str) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Waits for the end of a process, until a moment; returns whether it came.
fn wait(child: &Child, deadline: Option<Instant>) -> rustix::io::Result<bool> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let pidfd: OwnedFd = rustix::process::pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(script: &str, timeout: Option<i64>) -> Vec<Hook> {
        let mut hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=1"] });
        if let Some(timeout) = timeout {
            hook["timeout"] = json!(timeout);
        }
        of(&json!({ "hooks": { "prestart": [hook] } }), "prestart").expect("hooks")
    }

    fn state() -> State {
        State {
            version: "1.2.0".into(),
            id: "c1".into(),
            bundle: "/b".into(),
            annotations: json!({ "k": "v" }),
        }
    }

    #[test]
    fn a_hook_gets_the_state_and_only_its_environment() {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("out");
        let script = format!("{{ cat; echo; env; }} > {}", out.display());
        run(&hooks(&script, None), &state(), "creating", Some(7)).expect("done");
        let text = std::fs::read_to_string(out).expect("written");
        let (told, env) = text.split_once('\n').expect("lines");
        let expected = json!({
            "ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 7, "bundle": "/b", "annotations": { "k": "v" },
        });
        assert_eq!(serde_json::from_str::<Value>(told).expect("JSON"), expected);
        let env: Vec<_> = env
            .lines()
            .filter(|line| !line.starts_with("PWD=") && !line.starts_with('_'))
            .collect();
        assert!(
            env.contains(&"A=1") && !env.iter().any(|line| line.starts_with("PATH=")),
            "{env:?}"
        );
    }

    #[test]
    fn a_failure_is_told_with_its_field_and_words() {
        let failed =
            run(&hooks("echo no >&2; exit 3", None), &state(), "creating", None).expect_err("failed");
        assert_eq!(failed.subject, "hooks.prestart[0]: /bin/sh: exit status 3: no");
        let failed = run(&hooks("kill -9 $$", None), &state(), "creating", None).expect_err("failed");
        assert!(failed.subject.contains("killed by signal 9"), "{failed}");
        let begin = Instant::now();
        let failed = run(&hooks("exec sleep 60", Some(1)), &state(), "creating", None).expect_err("failed");
        assert!(failed.subject.contains("not done in 1s"), "{failed}");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_hook_that_reads_nothing_is_done() {
        let mut state = state();
        state.annotations = json!({ "long": "x".repeat(1 << 20) });
        run(&hooks("exit 0", None), &state, "creating", None).expect("done");
    }

    #[test]
    fn what_has_no_meaning_is_invalid() {
        for (hook, part) in [
            (json!({ "path": "relative" }), "path"),
            (json!({ "path": "/x", "timeout": -1 }), "timeout"),
            (json!({ "path": "/x", "args": ["\0"] }), "args"),
        ] {
            let failed = of(&json!({ "hooks": { "poststop": [hook] } }), "poststop").expect_err("invalid");
            assert_eq!(failed.kind, FailureKind::Invalid);
            assert!(
                failed.subject.contains("hooks.poststop[0]") && failed.subject.contains(part),
                "{failed}"
            );
        }
    }
}
