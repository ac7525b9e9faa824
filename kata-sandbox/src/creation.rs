//! A container on its way into a running sandbox.
//!
//! ```text
//!  begin ──► asked ──the agent's answer──► made ──finish──► one of the sandbox's
//!              │                             │
//!              └── dropped: given up ────────┴── dropped: removed again, then its layers go
//! ```
//!
//! The agent goes on with a creation that it was asked for whether somebody waits for it or not, until it is asked to
//! remove the container; another's than ours may finish it even then. Owns that nothing stays of one that failed or was
//! given up. Must not know what a container is made of.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kata_agent_proto::agent::{CreateContainerRequest, RemoveContainerRequest};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind};
use crate::link::Link;
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
        /// Somebody still wants it: dropped, it is given up.
        _wanted: oneshot::Sender<()>,
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
        let (wanted, given_up) = oneshot::channel();
        let answer = shared
            .hub
            .runtime()
            .spawn(async move { ask(&link, request, given_up).await });
        Self {
            shared: Arc::clone(shared),
            id,
            gone: Arc::default(),
            progress: Progress::Asked {
                answer,
                layers,
                _wanted: wanted,
            },
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
            Progress::Asked { answer, layers, .. } => (Some(answer), Some(layers)),
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

/// Asks for a container until the agent answers; once it is given up, also for its removal. An error means that nothing
/// is left of it.
async fn ask(
    link: &Link,
    request: CreateContainerRequest,
    given_up: oneshot::Receiver<()>,
) -> Result<(), Error> {
    let removal = RemoveContainerRequest {
        container_id: request.container_id.clone(),
        ..RemoveContainerRequest::default()
    };
    let call = link.client.create_container(request);
    let mut answer = pin!(link.call(Stage::Create, "create the container", call));
    tokio::select! {
        // In this order, so that the agent hears of the container before it hears of the end of it.
        biased;
        answer = &mut answer => return answer,
        _ = given_up => {}
    }
    let call = link.client.remove_container(removal);
    match link.call(Stage::Stop, "remove the container", call).await {
        // Its name may be another's from now on, whatever the agent's answer was.
        Ok(()) => Err(Error::new(
            ErrorKind::InvalidState,
            Stage::Create,
            "the container was given up",
        )),
        // It failed by itself, or this agent does not remove what it still makes.
        Err(_) => answer.await,
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        self.roll_back();
    }
}
