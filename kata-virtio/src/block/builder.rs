//! How a disk is made, in the words of `std::fs::OpenOptions`.

use std::fs::File;
use std::io;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::device::Block;
use super::disk::Disk;
use super::engine::Engine;
use super::shelf::Shelf;
use super::verdict::SERIAL_BYTES;
use crate::RateLimit;

/// Most queues of a disk.
const QUEUES_MAX: u16 = 32;

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// What is behind it cannot be used as a disk.
    #[error("cannot use the file as a disk")]
    File(#[source] io::Error),
    /// The descriptor cannot do what the driver will ask for.
    #[error("the file is not open for {wanted}")]
    Access {
        /// What is missing.
        wanted: &'static str,
    },
    /// A serial that does not fit.
    #[error("serial {serial:?} is not up to {SERIAL_BYTES} visible ASCII characters")]
    Serial {
        /// The serial.
        serial: String,
    },
    /// None, or too many.
    #[error("{queues} queues, where 1 to {QUEUES_MAX} are possible")]
    Queues {
        /// What was asked for.
        queues: u16,
    },
    /// The engine cannot be had here.
    #[error("cannot use {engine:?}")]
    Engine {
        /// What was asked for.
        engine: Engine,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// What a shelf cannot do: be written, or be read past the host's page cache.
    #[error("a shelf cannot be {wanted}")]
    Shelf {
        /// What was asked for.
        wanted: &'static str,
    },
    /// No descriptors are left.
    #[error("cannot make the events of the disk")]
    Events(#[source] io::Error),
}

/// Settings of a disk that is about to be made.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    source: Source,
    settings: Settings,
}

/// What the disk is made of.
#[derive(Debug)]
enum Source {
    File(File),
    Shelf(Shelf),
}

// Whoever changes a field changes what others have kept: their form needs another version.
const _: () = assert!(size_of::<Settings>() == 80);

/// What can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) read_only: bool,
    pub(super) serial: String,
    pub(super) queues: u16,
    pub(super) rate_limit: RateLimit,
    pub(super) direct: bool,
    pub(super) engine: Engine,
}

impl Builder {
    /// A disk of this file: writable, without a name, of one queue, as fast as it goes.
    pub fn new(file: File) -> Self {
        Self::of(Source::File(file), false)
    }

    /// A disk of a shelf's extents: read-only, without a name, of one queue, as fast as it goes.
    pub fn of_shelf(shelf: &Shelf) -> Self {
        Self::of(Source::Shelf(shelf.clone()), true)
    }

    fn of(source: Source, read_only: bool) -> Self {
        Self {
            source,
            settings: Settings {
                read_only,
                serial: String::new(),
                queues: 1,
                rate_limit: RateLimit::default(),
                direct: false,
                engine: Engine::Auto,
            },
        }
    }

    /// Whether it is never written. The file may then be open for reading only.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.settings.read_only = read_only;
        self
    }

    /// The name by which the guest finds it: up to 20 visible ASCII characters.
    pub fn serial(mut self, serial: &str) -> Self {
        serial.clone_into(&mut self.settings.serial);
        self
    }

    /// How many queues, from 1 to 32; one for each vCPU is a good choice. One worker serves them all.
    pub fn queues(mut self, queues: u16) -> Self {
        self.settings.queues = queues;
        self
    }

    /// How much the guest may do, reads and writes together.
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.settings.rate_limit = limit;
        self
    }

    /// Whether the host's page cache is passed by (`O_DIRECT`). That is a flag of the open file, so it
    /// changes for everybody who shares the descriptor.
    pub fn direct(mut self, direct: bool) -> Self {
        self.settings.direct = direct;
        self
    }

    /// How requests reach the disk.
    pub fn engine(mut self, engine: Engine) -> Self {
        self.settings.engine = engine;
        self
    }

    /// Makes the disk.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(self) -> Result<Block, BuildError> {
        let Self { source, settings } = self;
        settings.check()?;
        let file = match source {
            Source::File(file) => file,
            Source::Shelf(shelf) => return of_shelf(shelf, settings),
        };
        let access = rustix::fs::fcntl_getfl(&file).map_err(|cause| BuildError::File(cause.into()))?;
        let access = access & OFlags::RWMODE;
        if access == OFlags::WRONLY {
            return Err(BuildError::Access { wanted: "reading" });
        }
        if !settings.read_only && access != OFlags::RDWR {
            return Err(BuildError::Access { wanted: "writing" });
        }
        let disk = Disk::open(file, settings.direct).map_err(BuildError::File)?;
        Block::assemble(disk, settings)
    }
}

fn of_shelf(shelf: Shelf, settings: Settings) -> Result<Block, BuildError> {
    let refused = |wanted| Err(BuildError::Shelf { wanted });
    match settings {
        Settings { read_only: false, .. } => refused("written"),
        Settings { direct: true, .. } => refused("read past the page cache"),
        settings => Block::assemble(Disk::of_shelf(shelf), settings),
    }
}

impl Settings {
    fn check(&self) -> Result<(), BuildError> {
        let visible = self.serial.bytes().all(|byte| byte.is_ascii_graphic());
        if self.serial.len() > SERIAL_BYTES || !visible {
            return Err(BuildError::Serial {
                serial: self.serial.clone(),
            });
        }
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return Err(BuildError::Queues { queues: self.queues });
        }
        Ok(())
    }
}
