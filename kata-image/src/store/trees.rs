//! Hash trees of images: made when they are first asked for, of bytes that were checked just before, and gone with
//! their image. How a tree is written, [`verity`](crate::verity) knows.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::convert::{self, publish};
use super::index::{FileState, Key, Stored};
use super::lock::{self, temporary};
use super::{Rootfs, Store, StoreError};
use crate::oci::Digest;
use crate::progress::Progress;
use crate::verity::{self, HashTree, Salt};

/// The dm-verity hash tree of an image, in the store.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoredHashTree {
    /// The tree behind its superblock, open for reading; it stays usable whatever happens to the path.
    pub file: File,
    /// Where it is.
    pub path: PathBuf,
    /// The root hash, which has to come to whoever checks by a way that is trusted, and sizes.
    pub tree: HashTree,
    /// What was hashed before every block: it follows from the image's digest.
    pub salt: Salt,
}

/// What was written for an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct TreeRecord {
    root_hash: [u8; 32],
    data_blocks: u64,
    hash_blocks: u64,
    /// Of the tree's file, when it was written.
    file: FileState,
}

impl Stored for TreeRecord {}

impl Store {
    /// The hash tree of an image, made if there is none. The image is open, so nothing of it goes meanwhile.
    pub(super) fn hash_tree(
        &self,
        image: &Rootfs,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<StoredHashTree, StoreError> {
        let digest: Digest = image
            .digest
            .parse()
            .map_err(|error| self.io_error(&image.path, io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let salt = Salt::of(&digest);
        if let Some(tree) = self.stored_tree(&digest, &salt)? {
            return Ok(tree);
        }
        let _lock = self.lock(&Key::of_tree(&digest))?;
        if let Some(tree) = self.stored_tree(&digest, &salt)? {
            return Ok(tree);
        }
        let tree = self.make_tree(image, &digest, salt, progress)?;
        self.keep_to_limit()?;
        Ok(tree)
    }

    /// The tree that is here, if it is what it was when it was written.
    fn stored_tree(&self, digest: &Digest, salt: &Salt) -> Result<Option<StoredHashTree>, StoreError> {
        let (path, record_path) = (self.tree_path(digest), self.tree_record_path(digest));
        let record = TreeRecord::read(&record_path).map_err(|source| self.io_error(&record_path, source))?;
        let Some(record) = record else { return Ok(None) };
        let _sweeps_wait = self.hold()?;
        let failed = |source| self.io_error(&path, source);
        let file = match lock::open_shared(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        if FileState::of(&file).map_err(failed)? != record.file {
            log::warn!("{} was touched; it is made again", path.display());
            return Ok(None);
        }
        Ok(Some(StoredHashTree {
            file,
            tree: HashTree {
                root_hash: record.root_hash,
                data_blocks: record.data_blocks,
                hash_blocks: record.hash_blocks,
            },
            salt: salt.clone(),
            path,
        }))
    }

    fn make_tree(
        &self,
        image: &Rootfs,
        digest: &Digest,
        salt: Salt,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<StoredHashTree, StoreError> {
        let unreadable = |source| self.io_error(&image.path, source);
        // A tree says of any bytes that they are the image's.
        if convert::digest(&image.file, image.size_bytes, progress).map_err(unreadable)? != *digest {
            let what = "its bytes are no longer what its digest says";
            return Err(unreadable(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        let temporary = temporary(&self.tmp()).map_err(|error| self.io_error(&self.tmp(), error))?;
        let tree = verity::write(&image.file, temporary.as_file(), &salt).map_err(|source| match source {
            verity::VerityError::Write(source) => self.io_error(&self.tmp(), source),
            source => StoreError::HashTree {
                path: image.path.clone(),
                source,
            },
        })?;
        let path = self.tree_path(digest);
        let failed = |error| self.io_error(&path, error);
        let _sweeps_wait = self.hold()?;
        publish(temporary, &path, &self.directory).map_err(failed)?;
        let file = lock::open_shared(&path).map_err(failed)?;
        let record = TreeRecord {
            root_hash: tree.root_hash,
            data_blocks: tree.data_blocks,
            hash_blocks: tree.hash_blocks,
            file: FileState::of(&file).map_err(failed)?,
        };
        let record_path = self.tree_record_path(digest);
        record
            .write(&record_path, &self.tmp())
            .map_err(|source| self.io_error(&record_path, source))?;
        Ok(StoredHashTree {
            file,
            path,
            tree,
            salt,
        })
    }

    /// Removes the tree of an image, if there is one.
    pub(super) fn remove_tree(&self, digest: &Digest) -> Result<(), StoreError> {
        for path in [self.tree_record_path(digest), self.tree_path(digest)] {
            lock::remove(&path).map_err(|source| self.io_error(&path, source))?;
        }
        Ok(())
    }

    fn tree_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("sha256-{}.verity", digest.hex()))
    }

    fn tree_record_path(&self, digest: &Digest) -> PathBuf {
        let key = Key::of_tree(digest);
        self.directory.join("trees").join(format!("{}.json", key.name()))
    }
}
