//! The store: a directory of images named after their digests, shared by any number of processes.
//!
//! ```text
//!  images/
//!    sha256-<hex>.verity    the hash tree of an image, where one was asked for
//!    sha256-<hex>.erofs     an image or a layer; only ever appears whole, by rename; who uses it shares its lock
//!    index/<key>.json       what a source was when its image was made, and which image that is
//!    layers/<key>.json      what a layer became, and what it leaves to the layers below
//!    names/<key>.json       which manifest, configuration and layers an image consists of
//!    trees/<key>.json       the root hash of an image's tree
//!    writable/<name>.ext4   what a container wrote that was asked to be kept
//!    lock/<key>             whoever converts this source or layer holds it; lock/sweep: who sweeps, or opens
//!    tmp/<random>           an image that is being written; its writer holds a lock on it
//!
//!  rootfs(source):  index says unchanged, image is intact ──────────────────────────► open it
//!                   otherwise: lock the key ─► look again ─► convert ─► rename ─► index ─► open it
//! ```
//!
//! A process that dies leaves at most a file in `tmp`, which the next [`Store::open`] removes because nobody
//! holds its lock. Knows sources and images, not who boots them.

mod convert;
mod fingerprint;
mod image;
mod index;
mod layers;
mod lock;
mod sweep;
mod trees;
mod writable;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::{CacheDirectoryError, cache_directory};
use crate::erofs::{self, Superblock, SuperblockError};
use crate::layout::LayoutError;
use crate::oci::Digest;
use crate::progress::Progress;
use crate::source::Source;
use crate::transfer::TransferError;
use crate::verity::VerityError;
use fingerprint::Fingerprint;
use index::{FileState, Key, Record, Stored};

pub use image::{Pull, PullPolicy, ReadyImage};
pub use sweep::{Pruned, StoredImage};
pub use trees::StoredHashTree;
pub use writable::{Writable, WritableError, find_mke2fs};

/// Name of the lock that sweeps take alone.
const SWEEP: &str = "sweep";

/// A directory of images.
///
/// An image stays until it is [removed](Store::remove) or [pruned](Store::prune), and never goes while a machine runs
/// on it: who uses an image shares a lock on its file, which dies with the last process that does.
///
/// An image that is made here is bounded by the default [`Limits`](erofs::Limits), and in practice by the disk: where
/// it is full, the conversion ends with [`StoreError::NoSpace`] and leaves nothing behind.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    /// What its images may occupy; no limit without.
    limit_bytes: Option<u64>,
}

/// A root filesystem that is ready to be attached to a machine.
#[derive(Debug)]
pub struct Rootfs {
    /// The image, open for reading. It stays usable whatever happens to the path.
    pub file: File,
    /// Where the image is.
    pub path: PathBuf,
    /// `sha256:` and the digest of the image's bytes in hexadecimal.
    pub digest: String,
    /// Size of the image.
    pub size_bytes: u64,
    /// Whether it was there already: nothing was converted or hashed.
    pub cached: bool,
    /// What proves its every block, where that was [asked for](Pull::hash_trees).
    pub hash_tree: Option<StoredHashTree>,
}

/// Why the store has no image of a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no default directory.
    #[error("no place for images")]
    CacheDirectory(#[from] CacheDirectoryError),
    /// The store's directory, or a file in it, cannot be used.
    #[error("cannot use {} of the image store", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The disk or the quota is full. Nothing of the image is left.
    #[error(
        "no space for an image of at least {needed_bytes} bytes in {}, where {available_bytes} are free",
        .path.display()
    )]
    NoSpace {
        /// The store's directory.
        path: PathBuf,
        /// The least that the image needs.
        needed_bytes: u64,
        /// What the filesystem has free for this user.
        available_bytes: u64,
    },
    /// The source cannot be looked at.
    #[error("cannot read {}", .path.display())]
    Source {
        /// What cannot be read.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A ready image is not one.
    #[error("{} is not a usable EROFS image", .path.display())]
    Superblock {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SuperblockError,
    },
    /// The image can have no hash tree.
    #[error("cannot make a hash tree of {}", .path.display())]
    HashTree {
        /// The image.
        path: PathBuf,
        /// Why not.
        #[source]
        source: VerityError,
    },
    /// The image cannot be fetched, or is not what its documents say.
    #[error("cannot fetch {name}")]
    Transfer {
        /// The image.
        name: String,
        /// Why not.
        #[source]
        source: Box<TransferError>,
    },
    /// There is no such image in a layout or archive.
    #[error("cannot use the image in {}", .path.display())]
    Layout {
        /// The layout or archive.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<LayoutError>,
    },
    /// The image is not in the store, and was not to be fetched.
    #[error("{name} is not in the image store")]
    NotStored {
        /// The image.
        name: String,
    },
    /// The source cannot be made into an image.
    #[error("cannot make an image of {}", .path.display())]
    Convert {
        /// The source.
        path: PathBuf,
        /// Why not.
        #[source]
        source: erofs::Error,
    },
}

impl Store {
    /// Opens the store in `directory`, which is made if need be, and removes what dead processes left in it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or used.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self {
            directory: directory.into(),
            limit_bytes: None,
        };
        for name in ["index", "layers", "lock", "names", "tmp", "trees", "writable"] {
            let path = store.directory.join(name);
            std::fs::create_dir_all(&path).map_err(|source| store.io_error(&path, source))?;
        }
        lock::sweep(&store.tmp()).map_err(|source| store.io_error(&store.tmp(), source))?;
        Ok(store)
    }

    /// The same store with a limit to what its images occupy on the disk: when one is added and there are more, the
    /// least recently used go. What is in use stays, even beyond the limit.
    #[must_use]
    pub fn limit(self, most_bytes: u64) -> Self {
        Self {
            limit_bytes: Some(most_bytes),
            ..self
        }
    }

    /// `images` in the [cache directory](cache_directory).
    ///
    /// # Errors
    ///
    /// When there is no cache directory.
    pub fn default_directory() -> Result<PathBuf, StoreError> {
        Ok(cache_directory()?.join("images"))
    }

    /// The image of `source`: the one that was made before if the source has not changed since, else a new one.
    /// When several ask for the same source at once, one converts and the others wait.
    ///
    /// Whether a source changed is told from metadata: of an archive or image its path, size, times, inode and
    /// device, of a directory those of everything in it. A cached image that was touched is hashed again, and
    /// made again if it is not what it was.
    ///
    /// # Errors
    ///
    /// When the source cannot be read or holds what no image can hold, or the store cannot be written; with
    /// [`StoreError::NoSpace`] when the disk is full.
    pub fn rootfs(&self, source: &Source, progress: &mut dyn FnMut(Progress)) -> Result<Rootfs, StoreError> {
        let source = canonical(source)?;
        let key = Key::new(&source);
        let fingerprint = self.fingerprint(&source)?;
        if let Some(rootfs) = self.cached(&source, &key, &fingerprint)? {
            return Ok(rootfs);
        }
        let _lock = self.lock(&key)?;
        // Whoever held the lock may have made it, of a source that has changed since.
        let fingerprint = self.fingerprint(&source)?;
        if let Some(rootfs) = self.cached(&source, &key, &fingerprint)? {
            return Ok(rootfs);
        }
        match &source {
            Source::Erofs(path) => self.adopt(path, &key, fingerprint, progress),
            Source::Directory(_) | Source::Archive(_) => {
                let rootfs = self.convert(&source, &key, fingerprint, progress)?;
                self.keep_to_limit()?;
                Ok(rootfs)
            }
        }
    }

    fn fingerprint(&self, source: &Source) -> Result<Fingerprint, StoreError> {
        let failed = |(path, source)| StoreError::Source { path, source };
        Fingerprint::take(source).map_err(failed)
    }

    /// The image that the index knows, if the source and the image are what they were.
    fn cached(
        &self,
        source: &Source,
        key: &Key,
        fingerprint: &Fingerprint,
    ) -> Result<Option<Rootfs>, StoreError> {
        let index = self.index_path(key);
        let record = Record::read(&index).map_err(|source| self.io_error(&index, source))?;
        let Some(record) = record.filter(|record| record.fingerprint == fingerprint.digest) else {
            return Ok(None);
        };
        let path = match source {
            Source::Erofs(path) => path.clone(),
            Source::Directory(_) | Source::Archive(_) => self.image_path(&record.digest),
        };
        let _sweeps_wait = self.hold()?;
        let rootfs = self.intact(path, record, &|record| record.write(&index, &self.tmp()))?;
        if rootfs.is_some() {
            index::touch(&index);
        }
        Ok(rootfs)
    }

    /// The image of a record, unless it is gone or not what it was. One that was only touched is noted by `keep`.
    fn intact(
        &self,
        path: PathBuf,
        record: Record,
        keep: &dyn Fn(&Record) -> io::Result<()>,
    ) -> Result<Option<Rootfs>, StoreError> {
        let failed = |source| self.io_error(&path, source);
        let file = match lock::open_shared(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let state = FileState::of(&file).map_err(failed)?;
        if state.size_bytes != record.image.size_bytes {
            log::warn!(
                "{} has another size than it had; it is made again",
                path.display()
            );
            return Ok(None);
        }
        let digest = record.digest.to_string();
        if state != record.image {
            // Touched: copied, restored from a backup, or written to.
            if convert::digest(&file, state.size_bytes, &mut |_| {}).map_err(failed)? != record.digest {
                log::warn!(
                    "{} has other contents than it had; it is made again",
                    path.display()
                );
                return Ok(None);
            }
            keep(&Record {
                image: state,
                ..record
            })
            .map_err(failed)?;
        }
        Ok(Some(Rootfs {
            file,
            path,
            digest,
            size_bytes: state.size_bytes,
            cached: true,
            hash_tree: None,
        }))
    }

    /// Takes a ready image as it is; only its digest is noted.
    fn adopt(
        &self,
        path: &Path,
        key: &Key,
        fingerprint: Fingerprint,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Rootfs, StoreError> {
        let failed = |source| StoreError::Source {
            path: path.to_path_buf(),
            source,
        };
        let file = lock::open_shared(path).map_err(failed)?;
        Superblock::read(&file).map_err(|source| StoreError::Superblock {
            path: path.to_path_buf(),
            source,
        })?;
        let image = FileState::of(&file).map_err(failed)?;
        let digest = convert::digest(&file, image.size_bytes, progress).map_err(failed)?;
        let record = Record {
            name: path.display().to_string(),
            fingerprint: fingerprint.digest,
            digest: digest.clone(),
            image,
        };
        self.write_record(&record, &self.index_path(key))?;
        Ok(Rootfs {
            file,
            path: path.to_path_buf(),
            digest: digest.to_string(),
            size_bytes: image.size_bytes,
            cached: false,
            hash_tree: None,
        })
    }

    /// Waits until nobody else converts this source.
    fn lock(&self, key: &Key) -> Result<File, StoreError> {
        let path = self.directory.join("lock").join(key.name());
        lock::alone(&path).map_err(|source| self.io_error(&path, source))
    }

    /// Keeps sweeps waiting: what is found or named meanwhile is still there when it is locked.
    fn hold(&self) -> Result<File, StoreError> {
        let path = self.directory.join("lock").join(SWEEP);
        lock::hold(&path).map_err(|source| self.io_error(&path, source))
    }

    fn write_record(&self, record: &Record, index: &Path) -> Result<(), StoreError> {
        record
            .write(index, &self.tmp())
            .map_err(|source| self.io_error(index, source))
    }

    fn index_path(&self, key: &Key) -> PathBuf {
        self.directory.join("index").join(format!("{}.json", key.name()))
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("sha256-{}.erofs", digest.hex()))
    }

    fn tmp(&self) -> PathBuf {
        self.directory.join("tmp")
    }

    fn io_error(&self, path: &Path, source: io::Error) -> StoreError {
        if convert::is_full(&source) {
            return self.no_space(4096);
        }
        StoreError::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    fn no_space(&self, needed_bytes: u64) -> StoreError {
        let available_bytes = rustix::fs::statvfs(&self.directory)
            .map_or(0, |filesystem| filesystem.f_bavail * filesystem.f_frsize);
        StoreError::NoSpace {
            path: self.directory.clone(),
            needed_bytes,
            available_bytes,
        }
    }
}

/// The same source by a path that means the same from everywhere.
fn canonical(source: &Source) -> Result<Source, StoreError> {
    let failed = |error| StoreError::Source {
        path: source.path().to_path_buf(),
        source: error,
    };
    let path = source.path().canonicalize().map_err(failed)?;
    Ok(match source {
        Source::Directory(_) => Source::Directory(path),
        Source::Archive(_) => Source::Archive(path),
        Source::Erofs(_) => Source::Erofs(path),
    })
}
