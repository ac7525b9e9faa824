//! The shelf of a machine: one read-only disk that shows files which come and go while the machine runs.
//!
//! Owns the rules for those files and the words of a refusal. It must not know where the disk is attached, nor
//! what is in the files.

use std::fs::File;
use std::os::fd::OwnedFd;

use kata_virtio::block::{self, Block, Extent};
use rustix::fs::OFlags;

use super::Refusal;
use super::devices::Named;
use super::vm::{chain, failure};
use crate::control::LaunchError;
use crate::machine::Machine;

/// See the module; empty for a machine without one.
#[derive(Debug, Default)]
pub(super) struct Shelf(Option<block::Shelf>);

impl Shelf {
    /// The shelf that the machine is to have, with nothing on it.
    pub(super) fn of(machine: &Machine) -> Self {
        Self(machine.shelf.as_ref().map(|_| block::Shelf::new()))
    }

    /// The disk, if there is one. Who reads it waits for the host's page cache and no more, so one queue is enough.
    pub(super) fn device(&self, machine: &Machine) -> Result<Option<Named>, LaunchError> {
        let (Some(shelf), Some(serial)) = (&self.0, &machine.shelf) else {
            return Ok(None);
        };
        let device = Block::of_shelf(shelf)
            .serial(serial)
            .build()
            .map_err(|cause| failure(&format!("make the disk {serial:?}"), &cause))?;
        Ok(Some((format!("block {serial}"), Box::new(device))))
    }

    /// Gives a file, which can only be read, a place on the disk.
    pub(super) fn add(&self, file: OwnedFd) -> Result<Extent, Refusal> {
        const OPERATION: &str = "adding an extent";
        let shelf = self.there(OPERATION)?;
        // A descriptor that cannot write is what keeps an image from being written.
        match rustix::fs::fcntl_getfl(&file).map(|flags| flags & OFlags::RWMODE) {
            Ok(OFlags::RDONLY) => {}
            Ok(_) => {
                return Err(refusal(
                    OPERATION,
                    "its descriptor is not opened for reading only",
                ));
            }
            Err(cause) => return Err(refusal(OPERATION, cause)),
        }
        shelf
            .add(File::from(file))
            .map_err(|cause| refusal(OPERATION, chain(&cause)))
    }

    /// Takes it away again.
    pub(super) fn remove(&self, offset: u64) -> Result<(), Refusal> {
        const OPERATION: &str = "removing an extent";
        let removed = self.there(OPERATION)?.remove(offset);
        removed.map_err(|cause| refusal(OPERATION, chain(&cause)))
    }

    fn there(&self, operation: &str) -> Result<&block::Shelf, Refusal> {
        let there = self.0.as_ref();
        there.ok_or_else(|| refusal(operation, "the machine was made without a shelf"))
    }
}

/// Shorthand for a [`Refusal`].
pub(super) fn refusal(operation: &str, reason: impl ToString) -> Refusal {
    Refusal {
        operation: operation.to_owned(),
        reason: reason.to_string(),
    }
}
