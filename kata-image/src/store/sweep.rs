//! What is in the store, and making room: the least recently used go first, and nothing that is in use.
//!
//! A sweep runs alone (`lock/sweep`), so that nobody finds a file that is about to go. It removes names first
//! and then files that no name reaches, so that a sweep that dies leaves a valid store.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::index::{ImageRecord, LayerRecord, Record, Stored};
use super::{SWEEP, Store, StoreError, lock};
use crate::oci::Digest;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredImage {
    /// A reference, or the path of the source.
    pub name: String,
    /// `sha256:` and the digest of its manifest, or of its only layer where it has none.
    pub digest: String,
    /// How many layers it has here; merged ones count as one.
    pub layers: usize,
    /// What its layers occupy on the disk, with their hash trees. A layer that other images have too counts for each of them.
    pub size_bytes: u64,
    /// When it was last asked for.
    pub last_used: SystemTime,
    /// Whether a machine runs on it, or somebody has it open.
    pub in_use: bool,
}

/// What a sweep removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Pruned {
    /// The names of the images.
    pub images: Vec<String>,
    /// What the files occupied on the disk.
    pub freed_bytes: u64,
    /// What is left occupies so much; more than was asked for if it is in use.
    pub left_bytes: u64,
}

/// A name and what it reaches.
#[derive(Debug)]
struct Entry {
    record: PathBuf,
    name: String,
    digest: Digest,
    files: Vec<Digest>,
    last_used: SystemTime,
}

/// An image's file, its hash tree, or both.
#[derive(Debug, Clone, Copy, Default)]
struct ImageFile {
    bytes: u64,
    in_use: bool,
}

/// All that is there, the last used first.
#[derive(Debug)]
struct Inventory {
    entries: Vec<Entry>,
    files: HashMap<Digest, ImageFile>,
}

impl Store {
    /// The images in the store, the last used first.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<StoredImage>, StoreError> {
        let _alone = self.alone()?;
        let inventory = self.inventory()?;
        Ok(inventory
            .entries
            .iter()
            .map(|entry| inventory.describe(entry))
            .collect())
    }

    /// Forgets the images of this name, as [`list`](Self::list) says it, and removes what no other image needs.
    /// What is in use stays until it is not, and goes with the next sweep.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotStored`] when there is none, and when the store cannot be written.
    pub fn remove(&self, name: &str) -> Result<Pruned, StoreError> {
        let _alone = self.alone()?;
        let mut inventory = self.inventory()?;
        let (named, rest): (Vec<_>, Vec<_>) = inventory
            .entries
            .into_iter()
            .partition(|entry| entry.name == name);
        if named.is_empty() {
            return Err(StoreError::NotStored {
                name: name.to_owned(),
            });
        }
        inventory.entries = rest;
        let mut pruned = Pruned::default();
        for entry in named {
            self.forget(entry, &mut pruned)?;
        }
        self.sweep(&mut inventory, &mut pruned)?;
        Ok(pruned)
    }

    /// Removes what no image needs, and then the least recently used images until what is left occupies at most
    /// `most_bytes`. Nothing that is in use is removed. With 0, everything else is.
    ///
    /// # Errors
    ///
    /// When the store cannot be read or written.
    pub fn prune(&self, most_bytes: u64) -> Result<Pruned, StoreError> {
        let _alone = self.alone()?;
        let mut inventory = self.inventory()?;
        let mut pruned = Pruned::default();
        self.sweep(&mut inventory, &mut pruned)?;
        let mut place = inventory.entries.len();
        while place > 0 && inventory.bytes() > most_bytes {
            place -= 1;
            // A name whose files are not here gives nothing back.
            let entry = &inventory.entries[place];
            if entry.files.is_empty() || inventory.is_in_use(entry) {
                continue;
            }
            self.forget(inventory.entries.remove(place), &mut pruned)?;
            self.sweep(&mut inventory, &mut pruned)?;
        }
        Ok(pruned)
    }

    /// Makes room after something was added, if there is a limit.
    pub(super) fn keep_to_limit(&self) -> Result<(), StoreError> {
        let Some(limit_bytes) = self.limit_bytes else {
            return Ok(());
        };
        let pruned = self.prune(limit_bytes)?;
        if !pruned.images.is_empty() {
            log::info!(
                "removed {} from the image store, which is full",
                pruned.images.join(", ")
            );
        }
        if pruned.left_bytes > limit_bytes {
            let left_bytes = pruned.left_bytes;
            log::warn!("images in use occupy {left_bytes} bytes, and the store's limit is {limit_bytes}");
        }
        Ok(())
    }

    /// Waits until nobody is just opening or naming an image, and keeps everybody from it.
    fn alone(&self) -> Result<File, StoreError> {
        let path = self.directory.join("lock").join(SWEEP);
        lock::alone(&path).map_err(|source| self.io_error(&path, source))
    }

    fn inventory(&self) -> Result<Inventory, StoreError> {
        let failed = |source| self.io_error(&self.directory, source);
        let files = self.files().map_err(failed)?;
        let mut entries = self.sources(&files).map_err(failed)?;
        entries.extend(self.images().map_err(failed)?);
        entries.sort_by_key(|entry| Reverse(entry.last_used));
        Ok(Inventory { entries, files })
    }

    /// Directories and archives of files.
    fn sources(&self, files: &HashMap<Digest, ImageFile>) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for path in records(&self.directory.join("index"))? {
            let last_used = modified(&path)?;
            let Some(Record { name, digest, .. }) = Record::read(&path)? else {
                continue;
            };
            // An image that lies elsewhere is nobody's to remove.
            let files = files
                .contains_key(&digest)
                .then(|| digest.clone())
                .into_iter()
                .collect();
            entries.push(Entry {
                record: path,
                name,
                digest,
                files,
                last_used,
            });
        }
        Ok(entries)
    }

    /// Images of several layers.
    fn images(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for path in records(&self.directory.join("names"))? {
            let last_used = modified(&path)?;
            let Some(record) = ImageRecord::read(&path)? else {
                continue;
            };
            let mut files = Vec::new();
            for id in &record.layers {
                files.extend(LayerRecord::read(&self.layer_path(id))?.map(|layer| layer.record.digest));
            }
            let (name, digest) = (record.name, record.manifest);
            entries.push(Entry {
                record: path,
                name,
                digest,
                files,
                last_used,
            });
        }
        Ok(entries)
    }

    fn files(&self) -> io::Result<HashMap<Digest, ImageFile>> {
        let mut files = HashMap::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let Some(digest) = digest_of(&path) else { continue };
            let file = File::open(&path)?;
            let found: &mut ImageFile = files.entry(digest).or_default();
            found.bytes += file.metadata()?.blocks() * 512;
            found.in_use |= lock::is_locked(&file);
        }
        Ok(files)
    }

    fn forget(&self, entry: Entry, pruned: &mut Pruned) -> Result<(), StoreError> {
        lock::remove(&entry.record).map_err(|source| self.io_error(&entry.record, source))?;
        pruned.images.push(entry.name);
        Ok(())
    }

    /// Removes the files that no name reaches and nobody uses, and the records of layers that are gone.
    fn sweep(&self, inventory: &mut Inventory, pruned: &mut Pruned) -> Result<(), StoreError> {
        let reached: HashSet<&Digest> = inventory.entries.iter().flat_map(|entry| &entry.files).collect();
        let is_dead = |digest: &Digest, file: &ImageFile| !file.in_use && !reached.contains(digest);
        let dead: Vec<Digest> = inventory
            .files
            .iter()
            .filter(|(digest, file)| is_dead(digest, file))
            .map(|(digest, _)| digest.clone())
            .collect();
        for digest in dead {
            self.remove_tree(&digest)?;
            let path = self.image_path(&digest);
            lock::remove(&path).map_err(|source| self.io_error(&path, source))?;
            pruned.freed_bytes += inventory.files.remove(&digest).map_or(0, |file| file.bytes);
        }
        pruned.left_bytes = inventory.bytes();
        let layers = self.directory.join("layers");
        self.forget_layers(&layers, inventory)
            .map_err(|source| self.io_error(&layers, source))
    }

    fn forget_layers(&self, layers: &Path, inventory: &Inventory) -> io::Result<()> {
        for path in records(layers)? {
            let layer = LayerRecord::read(&path)?;
            if layer.is_none_or(|layer| !inventory.files.contains_key(&layer.record.digest)) {
                lock::remove(&path)?;
            }
        }
        Ok(())
    }
}

impl Inventory {
    fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    fn files_of(&self, entry: &Entry) -> impl Iterator<Item = &ImageFile> {
        entry.files.iter().filter_map(|digest| self.files.get(digest))
    }

    fn is_in_use(&self, entry: &Entry) -> bool {
        self.files_of(entry).any(|file| file.in_use)
    }

    fn describe(&self, entry: &Entry) -> StoredImage {
        StoredImage {
            name: entry.name.clone(),
            digest: entry.digest.to_string(),
            layers: entry.files.len(),
            size_bytes: self.files_of(entry).map(|file| file.bytes).sum(),
            last_used: entry.last_used,
            in_use: self.is_in_use(entry),
        }
    }
}

fn records(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let is_record = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let paths: io::Result<Vec<PathBuf>> = std::fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect();
    Ok(paths?.into_iter().filter(is_record).collect())
}

fn modified(path: &Path) -> io::Result<SystemTime> {
    std::fs::metadata(path)?.modified()
}

/// The digest that an image's file, or its tree, is named after.
fn digest_of(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    let name = name
        .strip_suffix(".erofs")
        .or_else(|| name.strip_suffix(".verity"))?;
    name.replacen("sha256-", "sha256:", 1).parse().ok()
}
