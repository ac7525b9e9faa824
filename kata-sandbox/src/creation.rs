//! A container on its way into a running sandbox.
//!
//! ```text
//!  begin ──► asked ──the agent's answer──► made ──finish──► one of the sandbox's
//!              │                             │
//!              └── dropped: waits for it ────┴── dropped: removed again, then its layers go
//! ```
//!
//! The agent finishes a creation that it was asked for whether somebody waits for it or not. Owns that nothing stays
//! of one that failed or was given up. Must not know what a container is made of.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kata_agent_proto::agent::CreateContainerRequest;
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::members::{Shared, take_away};
use crate::report::Stage;
use crate::shelf::Layers;

/// See the module. Its Drop is the rollback.
#[derive(Debug)]
pub(crate) struct Creation {
    shared: Arc<Shared>,
    id: String,
    /// Of which of those that have this name one after another this is; see [`Shared::admit`].
    gone: Arc<AtomicBool>,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    Asked {
        answer: JoinHandle<Result<(), Error>>,
        layers: Layers,
    },
    Made,
    /// It is one of the sandbox's, or nothing is left of it.
    Over,
}

impl Creation {
    /// Asks the agent for a container that `layers` are of.
    pub(crate) fn begin(shared: &Arc<Shared>, request: CreateContainerRequest, layers: Layers) -> Self {
        let id = request.container_id.clone();
        let link = Arc::clone(&shared.link);
        let answer = shared.hub.runtime().spawn(async move {
            let call = link.client.create_container(request);
            link.call(Stage::Create, "create the container", call).await
        });
        Self {
            shared: Arc::clone(shared),
            id,
            gone: Arc::default(),
            progress: Progress::Asked { answer, layers },
        }
    }

    /// Waits for the agent's answer.
    pub(crate) async fn made(&mut self) -> Result<(), Error> {
        let Progress::Asked { answer, .. } = &mut self.progress else {
            return Ok(());
        };
        let answer = self.shared.joined(Stage::Create, answer).await;
        // One that the agent refuses leaves nothing there.
        let progress = std::mem::replace(&mut self.progress, Progress::Over);
        answer?;
        if let Progress::Asked { layers, .. } = progress {
            self.shared.admit(&self.id, &self.gone, layers);
            self.progress = Progress::Made;
        }
        Ok(())
    }

    /// What will say that it was removed.
    pub(crate) fn gone(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.gone)
    }

    /// It stays.
    pub(crate) fn finish(mut self) {
        self.progress = Progress::Over;
    }

    /// Removes what was made of it, and returns when nothing is left.
    pub(crate) async fn undo(mut self) {
        if let Some(undoing) = self.roll_back() {
            // Of a runtime that ends nothing is left either.
            let _ = undoing.await;
        }
    }

    fn roll_back(&mut self) -> Option<JoinHandle<()>> {
        let (answer, layers) = match std::mem::replace(&mut self.progress, Progress::Over) {
            Progress::Asked { answer, layers } => (Some(answer), Some(layers)),
            Progress::Made => (None, None),
            Progress::Over => return None,
        };
        let (shared, id, gone) = (Arc::clone(&self.shared), self.id.clone(), Arc::clone(&self.gone));
        Some(self.shared.hub.runtime().spawn(async move {
            if let Some(answer) = answer
                && !matches!(answer.await, Ok(Ok(())))
            {
                return;
            }
            if let Some(layers) = layers {
                shared.admit(&id, &gone, layers);
            }
            // With the sandbox it ends anyway.
            if let Err(error) = take_away(&shared, &id, &gone).await {
                tracing::debug!(container = id, %error, "a container that was given up is not removed");
            }
        }))
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        self.roll_back();
    }
}
