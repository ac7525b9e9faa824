//! Fingerprints of sources: digests of metadata that change whenever contents do.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::oci;
use crate::source::Source;

/// What a source looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fingerprint {
    pub(super) digest: String,
    /// The least that its image needs.
    pub(super) least_bytes: u64,
}

/// The path that could not be read, and why.
type Failure = (PathBuf, io::Error);

/// The clock that times of files are taken from ticks every 1 to 10 ms. What was written within the last tick can be
/// written again without a change of its times.
const TICK: Duration = Duration::from_millis(20);

impl Fingerprint {
    /// Looks at the source's metadata: of a directory all that is in it, without following links. Waits one tick
    /// if something changed within the last one, so that every later change has another time.
    pub(super) fn take(source: &Source) -> Result<Self, Failure> {
        let walk = Walk::over(source)?;
        if !walk.is_fresh() {
            return Ok(walk.finish());
        }
        std::thread::sleep(TICK);
        Walk::over(source).map(Walk::finish)
    }
}

struct Walk {
    hasher: Sha256,
    newest: SystemTime,
    bytes: u64,
}

impl Walk {
    fn over(source: &Source) -> Result<Self, Failure> {
        let mut walk = Self {
            hasher: Sha256::new(),
            newest: SystemTime::UNIX_EPOCH,
            bytes: 0,
        };
        match source {
            Source::Directory(path) => walk.directory(path)?,
            Source::Archive(path) | Source::Erofs(path) => {
                let status = std::fs::metadata(path).map_err(|error| (path.clone(), error))?;
                walk.entry(Path::new(""), &status);
            }
        }
        Ok(walk)
    }

    fn directory(&mut self, root: &Path) -> Result<(), Failure> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |error| (path, error)
        };
        let status = std::fs::metadata(root).map_err(failed(root))?;
        self.entry(Path::new(""), &status);
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            let path = root.join(&relative);
            let entries = std::fs::read_dir(&path).map_err(failed(&path))?;
            let mut entries: Vec<_> = entries.collect::<io::Result<_>>().map_err(failed(&path))?;
            entries.sort_unstable_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let relative = relative.join(entry.file_name());
                let status = entry.metadata().map_err(failed(&entry.path()))?;
                self.entry(&relative, &status);
                if status.is_dir() {
                    pending.push(relative);
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, status: &Metadata) {
        let name = path.as_os_str().as_bytes();
        self.hasher.update((name.len() as u64).to_le_bytes());
        self.hasher.update(name);
        for number in [
            status.dev(),
            status.ino(),
            status.size(),
            u64::from(status.mode()),
        ] {
            self.hasher.update(number.to_le_bytes());
        }
        for number in [
            status.mtime(),
            status.mtime_nsec(),
            status.ctime(),
            status.ctime_nsec(),
        ] {
            self.hasher.update(number.to_le_bytes());
        }
        if status.is_file() {
            self.bytes += status.size().min(status.blocks() * 512);
        }
        self.newest = self.newest.max(changed(status));
    }

    /// Whether something changed within the last tick.
    fn is_fresh(&self) -> bool {
        SystemTime::now()
            .duration_since(self.newest)
            .is_ok_and(|age| age < TICK)
    }

    fn finish(self) -> Fingerprint {
        Fingerprint {
            digest: oci::hex(&self.hasher.finalize()),
            least_bytes: self.bytes,
        }
    }
}

fn changed(status: &Metadata) -> SystemTime {
    let seconds = u64::try_from(status.ctime()).unwrap_or_default();
    let nanoseconds = u64::try_from(status.ctime_nsec()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn take(path: &Path) -> String {
        Fingerprint::take(&Source::Directory(path.to_path_buf()))
            .unwrap()
            .digest
    }

    #[test]
    fn every_kind_of_change_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("d")).unwrap();
        fs::write(path("d/f"), "one").unwrap();
        let mut seen = vec![take(directory.path())];
        assert_eq!(seen[0], take(directory.path()));
        let changes: [&dyn Fn(); 6] = [
            &|| fs::write(path("d/f"), "two").unwrap(),
            &|| fs::set_permissions(path("d/f"), fs::Permissions::from_mode(0o600)).unwrap(),
            &|| fs::rename(path("d/f"), path("d/g")).unwrap(),
            &|| std::os::unix::fs::symlink("g", path("d/l")).unwrap(),
            &|| fs::write(path("new"), "").unwrap(),
            &|| fs::remove_file(path("new")).unwrap(),
        ];
        for (index, change) in changes.iter().enumerate() {
            change();
            let now = take(directory.path());
            assert!(!seen.contains(&now), "change {index} was not seen");
            seen.push(now);
        }
    }
}
