//! The disks of a running machine: which layer is behind which.

use kata_image::{ReadyImage, Rootfs};

use crate::container::{Container, Writable};
use crate::error::{Error, ErrorKind};
use crate::report::Stage;
use crate::spec::LayerDisk;

/// Digests of the layers that the machine has, with their disks.
#[derive(Debug)]
pub(crate) struct Disks(Vec<(String, LayerDisk)>);

impl Disks {
    /// Those that the machine was built with.
    pub(crate) fn new(digests: Vec<String>, disks: &[LayerDisk]) -> Self {
        Self(digests.into_iter().zip(disks.iter().cloned()).collect())
    }

    /// The disks of an image's layers. They are read-only, so that several containers may have one; one whose blocks
    /// are checked is checked for all.
    pub(crate) fn of(&self, container: &Container, image: &ReadyImage) -> Result<Vec<LayerDisk>, Error> {
        if container.writable != Writable::Memory {
            return Err(unsupported(
                "a disk of its own cannot be given to a container of a running sandbox",
            ));
        }
        let find = |layer: &Rootfs| {
            let mut disks = self.0.iter();
            let found = disks.find(|(known, _)| *known == layer.digest);
            let what = match found {
                None => "disks of",
                Some((_, disk)) if layer.hash_tree.is_some() && disk.verity.is_none() => "hash trees of",
                Some((_, disk)) => return Ok(disk.clone()),
            };
            let image = container.image.display();
            Err(unsupported(format!(
                "image {image} has layers that the running sandbox has no {what}"
            )))
        };
        image.layers.iter().map(find).collect()
    }
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, Stage::Prepare, message)
}
