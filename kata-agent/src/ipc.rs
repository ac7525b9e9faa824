//! The IPC namespace that the containers of a sandbox share, as those of a pod do and as Kata's agent has it.
//!
//! It is made when the first container asks for one, and lives as long as the sandbox: containers come and go. Owns
//! what "an IPC namespace" without a path means; must not know how a container is made.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use kata_agent_proto::{Failed, FailureKind};
use serde_json::{Value, json};

use crate::sys;

/// See the module.
#[derive(Default)]
pub(crate) struct Ipc(Mutex<Option<OwnedFd>>);

impl Ipc {
    /// Puts the shared namespace in the place of a new one.
    ///
    /// A container with users of its own has an IPC namespace of its own, too: it may not enter one that is not theirs.
    pub(crate) fn share(&self, spec: &mut Value) -> Result<(), Failed> {
        let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() else {
            return Ok(());
        };
        if namespaces.iter().any(|namespace| namespace["type"] == "user") {
            return Ok(());
        }
        let is_new = |namespace: &&mut Value| namespace["type"] == "ipc" && namespace["path"].is_null();
        for namespace in namespaces.iter_mut().filter(is_new) {
            namespace["path"] = json!(self.path()?);
        }
        Ok(())
    }

    fn path(&self) -> Result<String, Failed> {
        // Nothing panics while holding it.
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = match &*shared {
            Some(shared) => shared,
            None => {
                let made = sys::new_ipc_namespace();
                let failed = |error| Failed::new(FailureKind::Container, format!("IPC namespace: {error}"));
                shared.insert(made.map_err(failed)?)
            }
        };
        // The agent's, whoever looks there: the worker is another process.
        Ok(format!("/proc/{}/fd/{}", std::process::id(), shared.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(ipc: &Ipc, namespaces: &Value) -> Value {
        let mut spec = json!({ "linux": { "namespaces": namespaces } });
        ipc.share(&mut spec).expect("shared");
        spec["linux"]["namespaces"].take()
    }

    #[test]
    fn what_has_a_path_or_users_of_its_own_is_left_alone() {
        let ipc = Ipc::default();
        for namespaces in [
            json!([{ "type": "mount" }, { "type": "ipc", "path": "/proc/1/ns/ipc" }]),
            json!([{ "type": "ipc" }, { "type": "user" }]),
            json!([]),
            Value::Null,
        ] {
            assert_eq!(shared(&ipc, &namespaces), namespaces);
        }
        assert!(ipc.0.lock().expect("free").is_none(), "nothing was made");
    }
}
