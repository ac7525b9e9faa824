//! Making an image and putting it into the store whole.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::fingerprint::Fingerprint;
use super::index::{FileState, Key, Record};
use super::lock::temporary;
use super::{Rootfs, Store, StoreError};
use crate::erofs::{self, Error};
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
        let summary = written.map_err(|error| self.convert_error(source, error, &temporary, &fingerprint))?;
        if summary.xattrs_left_out > 0 {
            let (path, count) = (source.path().display(), summary.xattrs_left_out);
            log::warn!("{path}: {count} extended attributes of its own filesystem are not in the image");
        }
        let size_bytes = summary.size_bytes;
        let (digest, path) = self
            .publish(temporary, size_bytes, progress)
            .map_err(|error| self.full_or_io(error, size_bytes))?;
        let failed = |error| self.io_error(&path, error);
        let file = File::open(&path).map_err(failed)?;
        let image = FileState::of(&file).map_err(failed)?;
        self.write_record(
            &Record::new(fingerprint, digest.clone(), image),
            &self.index_path(key),
        )?;
        Ok(Rootfs {
            file,
            path,
            digest,
            size_bytes,
            cached: false,
        })
    }

    /// Names a finished image after its digest. From here on it is there whole or not at all.
    fn publish(
        &self,
        temporary: NamedTempFile,
        size_bytes: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> io::Result<(String, PathBuf)> {
        let digest = digest(temporary.as_file(), size_bytes, progress)?;
        temporary
            .as_file()
            .set_permissions(Permissions::from_mode(0o644))?;
        temporary.as_file().sync_all()?;
        let path = self.image_path(&digest);
        temporary.persist(&path)?;
        File::open(&self.directory)?.sync_all()?;
        Ok((digest, path))
    }

    fn convert_error(
        &self,
        source: &Source,
        error: Error,
        temporary: &NamedTempFile,
        fingerprint: &Fingerprint,
    ) -> StoreError {
        match error {
            Error::Write(error) => {
                let written = temporary.as_file().metadata().map_or(0, |status| status.len());
                self.full_or_io(error, written.max(fingerprint.least_bytes))
            }
            error => StoreError::Convert {
                path: source.path().to_path_buf(),
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

/// Whether a write failed for want of space: of the disk or of the user's quota.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// `sha256:…` of a file's first `size_bytes`.
pub(super) fn digest(file: &File, size_bytes: u64, progress: &mut dyn FnMut(Progress)) -> io::Result<String> {
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
    Ok(format!("sha256:{}", hex::encode(hasher.finalize())))
}
