//! Records of the index: which image belongs to a source, as JSON, one file for each source.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::fingerprint::Fingerprint;
use super::lock::temporary;
use crate::source::Source;

/// Another version's images may differ for the same source: the number is part of every key.
const FORMAT_VERSION: u32 = 1;

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
        let mut hasher = Sha256::new();
        hasher.update(FORMAT_VERSION.to_le_bytes());
        hasher.update([kind]);
        hasher.update(source.path().as_os_str().as_bytes());
        Self(hex::encode(hasher.finalize()))
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Of the source, when it was read.
    pub(super) fingerprint: String,
    /// Of the image.
    pub(super) digest: String,
    /// Of the image's file, when it was hashed.
    pub(super) image: FileState,
}

impl Record {
    pub(super) fn new(fingerprint: Fingerprint, digest: String, image: FileState) -> Self {
        Self {
            fingerprint: fingerprint.digest,
            digest,
            image,
        }
    }

    /// `None` when there is none. One that is damaged counts as none: it is written anew.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let record = serde_json::from_slice(&text);
        if let Err(error) = &record {
            log::warn!("{} is damaged and is written anew: {error}", path.display());
        }
        Ok(record.ok().filter(Self::is_plausible))
    }

    /// The digest becomes part of a path.
    fn is_plausible(&self) -> bool {
        let hex = self.digest.strip_prefix("sha256:");
        hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }

    /// Replaces the record whole.
    pub(super) fn write(&self, path: &Path, tmp: &Path) -> io::Result<()> {
        let mut file = temporary(tmp)?;
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }
}

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
        let digest = format!("sha256:{}", "0".repeat(64));
        let record = Record {
            fingerprint: "f".to_owned(),
            digest,
            image,
        };
        record.write(&path, directory.path()).unwrap();
        assert_eq!(Record::read(&path).unwrap().as_ref(), Some(&record));
        std::fs::write(&path, &std::fs::read(&path).unwrap()[..20]).unwrap();
        assert_eq!(Record::read(&path).unwrap(), None);
        Record {
            digest: "sha256:../../x".to_owned(),
            ..record
        }
        .write(&path, directory.path())
        .unwrap();
        assert_eq!(Record::read(&path).unwrap(), None);
    }
}
