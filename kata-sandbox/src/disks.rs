//! The disks of a running machine: which layer is behind which.

use kata_image::ReadyImage;

use crate::container::{Container, Writable};
use crate::error::{Error, ErrorKind};
use crate::report::Stage;

/// Digests of the layers that the machine has, with the serials of their disks.
#[derive(Debug)]
pub(crate) struct Disks(Vec<(String, String)>);

impl Disks {
    /// Those that the machine was built with.
    pub(crate) fn new(digests: Vec<String>, serials: &[String]) -> Self {
        Self(digests.into_iter().zip(serials.iter().cloned()).collect())
    }

    /// The serials of an image's layers. Disks are read-only, so that several containers may have one.
    pub(crate) fn serials(&self, container: &Container, image: &ReadyImage) -> Result<Vec<String>, Error> {
        if container.writable != Writable::Memory {
            return Err(unsupported(
                "a disk of its own cannot be given to a container of a running sandbox",
            ));
        }
        let serial = |digest: &str| {
            self.0
                .iter()
                .find(|(known, _)| known == digest)
                .map(|(_, serial)| serial)
        };
        let serials: Option<Vec<String>> = image
            .layers
            .iter()
            .map(|layer| serial(&layer.digest).cloned())
            .collect();
        serials.ok_or_else(|| {
            unsupported(format!(
                "image {} has layers that the running sandbox has no disks of",
                container.image.display()
            ))
        })
    }
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, Stage::Prepare, message)
}
