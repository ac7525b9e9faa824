//! Records of the store, as JSON, one file each: which image belongs to a source, what a layer became, what an
//! image of several layers consists of.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::lock::temporary;
use crate::layer::Notes;
use crate::oci::{self, ConfigDocument, Platform};
use crate::source::Source;

/// Another version's images may differ for the same source: the number is part of every key.
const FORMAT_VERSION: u32 = 2;

/// Names a source: its kind and its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    pub(super) fn new(source: &Source) -> Self {
        let kind = match source {
            Source::Directory(_) => b'd',
            Source::Archive(_) => b'a',
            Source::Erofs(_) => b'e',
        };
        Self::hash(&[kind], &[source.path().as_os_str().as_bytes()])
    }

    /// Of an image in a kind of place, for a platform.
    pub(super) fn of_image(kind: &str, name: &str, platform: &Platform) -> Self {
        let platform = platform.to_string();
        Self::hash(b"image", &[kind.as_bytes(), name.as_bytes(), platform.as_bytes()])
    }

    /// Of a layer, whichever image it belongs to.
    pub(super) fn of_layer(diff_id: &oci::Digest) -> Self {
        Self::hash(b"layer", &[diff_id.as_str().as_bytes()])
    }

    /// Of the hash tree of an image.
    pub(super) fn of_tree(image: &oci::Digest) -> Self {
        Self::hash(b"tree", &[image.as_str().as_bytes()])
    }

    fn hash(kind: &[u8], words: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(FORMAT_VERSION.to_le_bytes());
        hasher.update(kind);
        for word in words {
            hasher.update((word.len() as u64).to_le_bytes());
            hasher.update(word);
        }
        Self(oci::hex(&hasher.finalize()))
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }
}

/// What a file's metadata were; another value means that somebody may have written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileState {
    pub(super) size_bytes: u64,
    device: u64,
    inode: u64,
    mtime_ns: i128,
    ctime_ns: i128,
}

impl FileState {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let status = file.metadata()?;
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Self {
            size_bytes: status.len(),
            device: status.dev(),
            inode: status.ino(),
            mtime_ns: nanoseconds(status.mtime(), status.mtime_nsec()),
            ctime_ns: nanoseconds(status.ctime(), status.ctime_nsec()),
        })
    }
}

/// What was made of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Where it came from, for people; empty for a layer.
    pub(super) name: String,
    /// Of the source, when it was read; empty for a layer.
    pub(super) fingerprint: String,
    /// Of the image.
    pub(super) digest: oci::Digest,
    /// Of the image's file, when it was hashed.
    pub(super) image: FileState,
}

/// What was made of a layer, and what that leaves to the layers below.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) record: Record,
    pub(super) notes: Notes,
}

/// An image of several layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// Reference or path, for people.
    pub(super) name: String,
    /// Of the layout or archive; empty for a registry.
    pub(super) fingerprint: String,
    /// Of the manifest.
    pub(super) manifest: oci::Digest,
    pub(super) config: ConfigDocument,
    /// What stands for its layers in the store, the lowest first.
    pub(super) layers: Vec<oci::Digest>,
}

/// A record that is one file.
pub(super) trait Stored: Serialize + DeserializeOwned {
    /// `None` when there is none. One that is damaged counts as none: it is written anew.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let record = serde_json::from_slice(&text);
        if let Err(error) = &record {
            log::warn!("{} is damaged and is written anew: {error}", path.display());
        }
        Ok(record.ok())
    }

    /// Replaces the record whole.
    fn write(&self, path: &Path, tmp: &Path) -> io::Result<()> {
        let mut file = temporary(tmp)?;
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }
}

impl Stored for Record {}
impl Stored for LayerRecord {}
impl Stored for ImageRecord {}

/// Notes that a record was used now. Whether that succeeds decides only what a sweep takes first.
pub(super) fn touch(path: &Path) {
    let now = Timestamps {
        last_access: NOW,
        last_modification: NOW,
    };
    if let Err(error) = rustix::fs::utimensat(CWD, path, &now, AtFlags::empty()) {
        log::debug!("cannot note the use of {}: {error}", path.display());
    }
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: rustix::fs::UTIME_NOW,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_paths_have_keys_of_their_own() {
        let keys = [
            Key::new(&Source::Archive("/a".into())),
            Key::new(&Source::Directory("/a".into())),
            Key::new(&Source::Erofs("/a".into())),
            Key::new(&Source::Archive("/b".into())),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key));
        }
    }

    #[test]
    fn damaged_records_count_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.json");
        assert_eq!(Record::read(&path).unwrap(), None);
        let image = FileState::of(&File::open("/dev/null").unwrap()).unwrap();
        let record = Record {
            name: "/a".to_owned(),
            fingerprint: "f".to_owned(),
            digest: oci::Digest::of(b""),
            image,
        };
        record.write(&path, directory.path()).unwrap();
        assert_eq!(Record::read(&path).unwrap().as_ref(), Some(&record));
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..20]).unwrap();
        assert_eq!(Record::read(&path).unwrap(), None);
        // A digest becomes part of a path.
        let elsewhere = serde_json::to_string(&record)
            .unwrap()
            .replace("sha256:e3b0", "sha256:../");
        std::fs::write(&path, elsewhere).unwrap();
        assert_eq!(Record::read(&path).unwrap(), None);
    }
}
