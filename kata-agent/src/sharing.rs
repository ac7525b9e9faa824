//! What containers of a sandbox share: a PID namespace, and mounts.
//!
//! The namespace is held by a process that does nothing else, so that containers come and go in any order; it is made
//! when the first of them asks for it. Must not know how either is joined.

use kata_agent_proto::agent::SharedMount;
use kata_agent_proto::{Failed, FailureKind};
use serde_json::{Value, json};

use crate::container;
use crate::exec::streams::Streams;
use crate::launch;
use crate::order::{Order, Share};
use crate::reaper::Child;
use crate::sandbox::{Creation, Sandbox};

/// The process that holds the shared PID namespace, once one asked for it.
pub(crate) type Pause = tokio::sync::Mutex<Option<Child>>;

impl Sandbox {
    /// The process that holds the PID namespace which containers share.
    async fn pause(&self) -> Result<i32, Failed> {
        let mut pause = self.pause.lock().await;
        match &*pause {
            Some(child) if child.has_ended() => {
                Err(Failed::new(FailureKind::NotRunning, "the shared PID namespace"))
            }
            Some(child) => Ok(child.pid()),
            None => {
                let streams = Streams::null().map_err(|error| {
                    Failed::new(FailureKind::Container, format!("shared PID namespace: {error}"))
                })?;
                let never = std::future::pending();
                let child = launch::process(&self.reaper, &Order::Pause, streams, &[], never).await?;
                Ok(pause.insert(child).pid())
            }
        }
    }

    /// The mounts of others that a container is to see.
    pub(crate) fn shares(
        &self,
        id: &str,
        spec: &Value,
        mounts: &[SharedMount],
    ) -> Result<Vec<Share>, Failed> {
        let name = container::name(spec);
        let theirs = mounts
            .iter()
            .filter(|mount| mount.dst_ctr == id || Some(mount.dst_ctr.as_str()) == name);
        let share = |mount: &SharedMount| {
            let source = self
                .roster
                .find(|other| other.is_called(&mount.src_ctr))
                .and_then(|other| other.init().child())
                .ok_or_else(|| Failed::new(FailureKind::NotRunning, &mount.src_ctr))?;
            Ok(Share {
                source_pid: source.pid(),
                source_path: mount.src_path.clone(),
                path: mount.dst_path.clone(),
            })
        };
        theirs.map(share).collect()
    }

    /// Puts a container into the PID namespace that it shares, where it does.
    pub(crate) async fn share_pids(&self, creation: &mut Creation) -> Result<(), Failed> {
        if !creation.shared_pids && !self.names().shared_pids {
            return Ok(());
        }
        let shared = json!({ "type": "pid", "path": format!("/proc/{}/ns/pid", self.pause().await?) });
        match &mut creation.spec["linux"]["namespaces"] {
            Value::Array(list) => {
                list.retain(|item| item["type"] != "pid");
                list.push(shared);
            }
            list => *list = json!([shared]),
        }
        Ok(())
    }
}
