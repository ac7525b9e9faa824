//! Making an image and putting it into the store whole.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::fingerprint::Fingerprint;
use super::index::{FileState, Key, Record};
use super::lock::{self, temporary};
use super::{Rootfs, Store, StoreError};
use crate::erofs::{self, Error};
use crate::oci;
use crate::progress::{Progress, Stage};
use crate::source::Source;

const BUFFER_BYTES: usize = 1 << 20;
const REPORT_BYTES: u64 = 16 << 20;

impl Store {
    /// Converts the source. The caller holds the key's lock.
    pub(super) fn convert(
        &self,
        source: &Source,
        key: &Key,
        fingerprint: Fingerprint,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Rootfs, StoreError> {
        let temporary = temporary(&self.tmp()).map_err(|error| self.io_error(&self.tmp(), error))?;
        let written = erofs::write(source, temporary.as_file(), progress);
        let least_bytes = fingerprint.least_bytes;
        let summary =
            written.map_err(|error| self.convert_error(source.path(), error, &temporary, least_bytes))?;
        if summary.xattrs_left_out > 0 {
            let (path, count) = (source.path().display(), summary.xattrs_left_out);
            log::warn!("{path}: {count} extended attributes of its own filesystem are not in the image");
        }
        let (rootfs, record) = self.adopt_finished(temporary, summary.size_bytes, progress)?;
        let record = Record {
            name: source.path().display().to_string(),
            fingerprint: fingerprint.digest,
            ..record
        };
        self.write_record(&record, &self.index_path(key))?;
        Ok(rootfs)
    }

    /// Names a finished image after its digest. From here on it is there whole or not at all; it is open in the
    /// answer, so that no sweep takes it before a record names it.
    pub(super) fn adopt_finished(
        &self,
        temporary: NamedTempFile,
        size_bytes: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Rootfs, Record), StoreError> {
        let full_or_io = |error| self.full_or_io(error, size_bytes);
        let digest = digest(temporary.as_file(), size_bytes, progress).map_err(full_or_io)?;
        let path = self.image_path(&digest);
        let _sweeps_wait = self.hold()?;
        publish(temporary, &path, &self.directory).map_err(full_or_io)?;
        let failed = |error| self.io_error(&path, error);
        let file = lock::open_shared(&path).map_err(failed)?;
        let image = FileState::of(&file).map_err(failed)?;
        let record = Record {
            name: String::new(),
            fingerprint: String::new(),
            digest: digest.clone(),
            image,
        };
        let rootfs = Rootfs {
            file,
            path,
            digest: digest.to_string(),
            size_bytes,
            cached: false,
            hash_tree: None,
        };
        Ok((rootfs, record))
    }

    /// What a failed conversion means to who asked for it.
    pub(super) fn convert_error(
        &self,
        source: &Path,
        error: Error,
        temporary: &NamedTempFile,
        least_bytes: u64,
    ) -> StoreError {
        match error {
            Error::Write(error) => {
                let written = temporary.as_file().metadata().map_or(0, |status| status.len());
                self.full_or_io(error, written.max(least_bytes))
            }
            error => StoreError::Convert {
                path: source.to_path_buf(),
                source: error,
            },
        }
    }

    fn full_or_io(&self, source: io::Error, needed_bytes: u64) -> StoreError {
        if is_full(&source) {
            return self.no_space(needed_bytes);
        }
        StoreError::Io {
            path: self.tmp(),
            source,
        }
    }
}

pub(super) fn publish(temporary: NamedTempFile, path: &Path, directory: &Path) -> io::Result<()> {
    temporary
        .as_file()
        .set_permissions(Permissions::from_mode(0o644))?;
    temporary.as_file().sync_all()?;
    temporary.persist(path)?;
    File::open(directory)?.sync_all()
}

/// Whether a write failed for want of space: of the disk or of the user's quota.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// `sha256:…` of a file's first `size_bytes`.
pub(super) fn digest(
    file: &File,
    size_bytes: u64,
    progress: &mut dyn FnMut(Progress),
) -> io::Result<oci::Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut done_bytes, mut reported) = (0, 0);
    while done_bytes < size_bytes {
        let most = usize::try_from(size_bytes - done_bytes)
            .unwrap_or(BUFFER_BYTES)
            .min(BUFFER_BYTES);
        let count = file.read_at(&mut buffer[..most], done_bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..count]);
        done_bytes += count as u64;
        if done_bytes - reported >= REPORT_BYTES || done_bytes == size_bytes {
            let (stage, total_bytes) = (Stage::Hashing, Some(size_bytes));
            progress(Progress {
                stage,
                done_bytes,
                total_bytes,
                entries: 0,
            });
            reported = done_bytes;
        }
    }
    Ok(oci::Digest::finish(hasher))
}
