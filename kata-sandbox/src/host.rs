//! Stages 3 and 4: what the host can do, and the root filesystem image. Both look at the disk, so
//! they run off the caller's runtime threads.

use kata_image::{Rootfs, Source, Store, StoreError};
use kata_vmm::hypervisor::{Capabilities, probe};

use crate::container::Container;
use crate::error::{Error, ErrorKind};
use crate::report::Stage;

/// Probes the host and makes the image ready.
pub(crate) async fn ready(container: &Container) -> Result<(Capabilities, Rootfs), Error> {
    let image = container.image.clone();
    tokio::task::spawn_blocking(move || Ok((probe(), rootfs(&image)?)))
        .await
        .map_err(|cause| {
            Error::new(ErrorKind::Io, Stage::Image, "the runtime is shutting down").with_source(cause)
        })?
}

fn rootfs(image: &std::ffi::OsStr) -> Result<Rootfs, Error> {
    let unusable = || {
        let message = format!("{} cannot be used as a root filesystem", image.display());
        Error::new(ErrorKind::Image, Stage::Image, message)
    };
    let source = Source::detect(image).map_err(|cause| unusable().with_source(cause))?;
    let store = Store::default_directory()
        .and_then(Store::open)
        .map_err(|cause| Error::new(store_kind(&cause), Stage::Image, "no image store").with_source(cause))?;
    store
        .rootfs(&source, &mut |_| ())
        .map_err(|cause| match store_kind(&cause) {
            ErrorKind::NoSpace => {
                Error::new(ErrorKind::NoSpace, Stage::Image, "no space for the image").with_source(cause)
            }
            _ => unusable().with_source(cause),
        })
}

fn store_kind(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::NoSpace { .. } => ErrorKind::NoSpace,
        _ => ErrorKind::Image,
    }
}
