//! Stages 3 and 4: what the host can do, and the image. Both look at the disk or the network, so they run off the
//! caller's runtime threads.

use std::ffi::OsStr;

use kata_image::{ImageSource, Progress, ReadyImage, Store, StoreError};
use kata_vmm::hypervisor::{Capabilities, probe};

use crate::container::Container;
use crate::error::{Error, ErrorKind};
use crate::report::Stage;

/// What was made ready before anything is planned.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) capabilities: Capabilities,
    pub(crate) image: ReadyImage,
    /// Where the image is kept, and where a disk to write to is made.
    pub(crate) store: Store,
}

/// Probes the host and makes the image ready.
pub(crate) async fn ready(container: &Container) -> Result<Ready, Error> {
    let container = container.clone();
    let look = move || {
        let store = Store::default_directory()
            .and_then(Store::open)
            .map_err(|cause| error(store_kind(&cause), "no image store").with_source(cause))?;
        Ok(Ready {
            capabilities: probe(),
            image: image(&store, &container)?,
            store,
        })
    };
    tokio::task::spawn_blocking(look)
        .await
        .map_err(|cause| error(ErrorKind::Io, "the runtime is shutting down").with_source(cause))?
}

fn image(store: &Store, container: &Container) -> Result<ReadyImage, Error> {
    let name: &OsStr = &container.image;
    let unusable = |kind| error(kind, format!("{} cannot be used as an image", name.display()));
    let source = ImageSource::detect(name).map_err(|cause| unusable(ErrorKind::Image).with_source(cause))?;
    let report = &mut |progress: Progress| {
        tracing::debug!(
            image = %name.display(),
            stage = %progress.stage,
            done_bytes = progress.done_bytes,
            total_bytes = progress.total_bytes,
            counted = progress.entries,
            "{progress}"
        );
    };
    let image = store.image(&source, &container.pull, report);
    image.map_err(|cause| match store_kind(&cause) {
        ErrorKind::NoSpace => error(ErrorKind::NoSpace, "no space for the image").with_source(cause),
        kind => unusable(kind).with_source(cause),
    })
}

fn error(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, Stage::Image, message)
}

fn store_kind(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::NoSpace { .. } => ErrorKind::NoSpace,
        _ => ErrorKind::Image,
    }
}
