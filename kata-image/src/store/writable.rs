//! The writable half of a root filesystem on a disk: an ext4 image of a given size, which is its quota.
//!
//! One that is thrown away has no name from the start, so that nothing is left whatever happens. One that is
//! kept lies in `writable`, and one machine at a time has it. Knows nothing of what is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Store, lock};

/// How long an ended machine may take to let a disk go.
const LETTING_GO: Duration = Duration::from_secs(1);

/// The least that ext4 makes sense in.
const SIZE_BYTES_MIN: u64 = 4 << 20;

/// A disk for what a container writes.
#[derive(Debug)]
pub struct Writable {
    /// The ext4 image, open for reading and writing, and locked for this use alone.
    pub file: File,
    /// Its size.
    pub size_bytes: u64,
    /// Where it is kept; nowhere if it is thrown away when the file is closed.
    pub path: Option<PathBuf>,
}

/// Why there is no disk to write to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WritableError {
    /// The size is too small for a filesystem.
    #[error("a writable disk of {size_bytes} bytes is too small: it has at least {SIZE_BYTES_MIN}")]
    TooSmall {
        /// What was asked for.
        size_bytes: u64,
    },
    /// The name is not one of a file.
    #[error(
        "{name:?} cannot name a writable disk: 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', not first '.'"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// It exists with another size.
    #[error("the writable disk {name:?} has {size_bytes} bytes, and {asked_bytes} were asked for")]
    OtherSize {
        /// Its name.
        name: String,
        /// As it is.
        size_bytes: u64,
        /// As asked.
        asked_bytes: u64,
    },
    /// Another machine has it.
    #[error("the writable disk {name:?} is in use")]
    InUse {
        /// Its name.
        name: String,
    },
    /// There is none of this name.
    #[error("there is no writable disk {name:?}")]
    Missing {
        /// The name.
        name: String,
    },
    /// The program that makes filesystems is not there.
    #[error("mke2fs was not found; install the package e2fsprogs")]
    NoMke2fs,
    /// The program that makes filesystems failed.
    #[error("mke2fs failed: {said}")]
    Mke2fs {
        /// The last line that it said.
        said: String,
    },
    /// The file cannot be made or opened.
    #[error("cannot use {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
}

impl Store {
    /// A disk that is gone when the last holder of its file is.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn scratch(&self, size_bytes: u64) -> Result<Writable, WritableError> {
        let tmp = self.tmp();
        let temporary = lock::temporary(&tmp).map_err(io_error(&tmp))?;
        // Nobody mounts it twice, and nobody will miss it after a crash: a journal would only be written.
        make_ext4(
            temporary.as_file(),
            temporary.path(),
            size_bytes,
            &["-O", "^has_journal"],
        )?;
        let (file, path) = temporary.into_parts();
        path.close().map_err(io_error(&tmp))?;
        Ok(Writable {
            file,
            size_bytes,
            path: None,
        })
    }

    /// The disk that is kept under this name, with all that was written to it; made empty if there is none.
    ///
    /// # Errors
    ///
    /// When it is in use, has another size, or cannot be made.
    pub fn kept(&self, name: &str, size_bytes: u64) -> Result<Writable, WritableError> {
        let path = self.writable_path(name)?;
        loop {
            match File::options().read(true).write(true).open(&path) {
                Ok(file) => match take(&file, &path).map_err(io_error(&path))? {
                    Taken::Ours => return of_size(file, name, path, size_bytes),
                    Taken::InUse => return Err(in_use(name)),
                    Taken::Gone => continue,
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error(&path)(error)),
            }
            let temporary = lock::temporary(&self.tmp()).map_err(io_error(&path))?;
            make_ext4(temporary.as_file(), temporary.path(), size_bytes, &[])?;
            temporary.as_file().sync_all().map_err(io_error(&path))?;
            match temporary.persist_noclobber(&path) {
                Ok(file) => {
                    return Ok(Writable {
                        file,
                        size_bytes,
                        path: Some(path),
                    });
                }
                // Somebody else made it meanwhile.
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error(&path)(error.error)),
            }
        }
    }

    /// Removes a disk that is kept, with all that was written to it.
    ///
    /// # Errors
    ///
    /// When there is none, or it is in use.
    pub fn remove_kept(&self, name: &str) -> Result<(), WritableError> {
        let path = self.writable_path(name)?;
        loop {
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(WritableError::Missing {
                        name: name.to_owned(),
                    });
                }
                file => file.map_err(io_error(&path))?,
            };
            match take(&file, &path).map_err(io_error(&path))? {
                Taken::Ours => return lock::remove(&path).map_err(io_error(&path)),
                Taken::InUse => return Err(in_use(name)),
                Taken::Gone => {}
            }
        }
    }

    fn writable_path(&self, name: &str) -> Result<PathBuf, WritableError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(word) {
            return Err(WritableError::Name {
                name: name.to_owned(),
            });
        }
        Ok(self.directory.join("writable").join(format!("{name}.ext4")))
    }
}

/// What became of a disk that was opened.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// Its lock is ours, and its name is its own.
    Ours,
    /// Somebody else has it.
    InUse,
    /// It was removed before we had the lock: whoever has the name now is another one.
    Gone,
}

fn take(file: &File, path: &Path) -> io::Result<Taken> {
    // A successful look takes the lock.
    if stays_locked(file) {
        return Ok(Taken::InUse);
    }
    let ours = file.metadata()?;
    match path.metadata() {
        Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => Ok(Taken::Ours),
        Ok(_) => Ok(Taken::Gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Taken::Gone),
        Err(error) => Err(error),
    }
}

fn in_use(name: &str) -> WritableError {
    WritableError::InUse {
        name: name.to_owned(),
    }
}

fn of_size(file: File, name: &str, path: PathBuf, asked_bytes: u64) -> Result<Writable, WritableError> {
    let size_bytes = file.metadata().map_err(io_error(&path))?.len();
    if size_bytes != asked_bytes {
        return Err(WritableError::OtherSize {
            name: name.to_owned(),
            size_bytes,
            asked_bytes,
        });
    }
    Ok(Writable {
        file,
        size_bytes,
        path: Some(path),
    })
}

/// Whether somebody else has the disk and keeps it. Of a machine that has just ended, the host may take a moment to let
/// the file go (a loop device is cleared some time after its last user).
fn stays_locked(file: &File) -> bool {
    let deadline = Instant::now() + LETTING_GO;
    while lock::is_locked(file) {
        if Instant::now() >= deadline {
            return true;
        }
        std::thread::sleep(LETTING_GO / 50);
    }
    false
}

/// Makes a file an empty ext4 filesystem of this size. It stays sparse.
fn make_ext4(file: &File, path: &Path, size_bytes: u64, options: &[&str]) -> Result<(), WritableError> {
    if size_bytes < SIZE_BYTES_MIN {
        return Err(WritableError::TooSmall { size_bytes });
    }
    file.set_len(size_bytes).map_err(io_error(path))?;
    let mut command = Command::new(find_mke2fs().ok_or(WritableError::NoMke2fs)?);
    // No blocks are set aside for root, who is the only one to write; what is zero already is not zeroed again.
    command
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-m",
            "0",
            "-E",
            "nodiscard,lazy_itable_init=1,root_owner=0:0",
        ])
        .args(options)
        .arg(path)
        .stdin(Stdio::null());
    let output = command.output().map_err(io_error(path))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("nothing")
        .trim()
        .to_owned();
    Err(WritableError::Mke2fs { said })
}

/// The program `mke2fs`, which makes writable disks: on PATH, or where it is on machines whose users have no such
/// directories on theirs.
#[must_use]
pub fn find_mke2fs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join("mke2fs"))
        .find(|program| program.is_file())
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> WritableError + use<> {
    let path = path.to_path_buf();
    move |source| WritableError::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        (directory, store)
    }

    fn is_ext4(file: &mut File) -> bool {
        let mut magic = [0; 2];
        file.seek(SeekFrom::Start(1024 + 0x38)).unwrap();
        file.read_exact(&mut magic).unwrap();
        magic == [0x53, 0xef]
    }

    #[test]
    fn scratch_is_a_filesystem_without_a_name() {
        let (directory, store) = store();
        let mut writable = store.scratch(16 << 20).unwrap();
        assert!(is_ext4(&mut writable.file));
        assert_eq!(writable.file.metadata().unwrap().len(), 16 << 20);
        assert_eq!(
            std::fs::read_dir(directory.path().join("tmp")).unwrap().count(),
            0
        );
        assert!(matches!(
            store.scratch(100),
            Err(WritableError::TooSmall { size_bytes: 100 })
        ));
    }

    #[test]
    fn what_is_kept_is_one_machines_at_a_time() {
        let (_directory, store) = store();
        let mut first = store.kept("data", 8 << 20).unwrap();
        assert!(is_ext4(&mut first.file));
        first.file.seek(SeekFrom::End(-4)).unwrap();
        first.file.write_all(b"mine").unwrap();
        assert!(matches!(
            store.kept("data", 8 << 20),
            Err(WritableError::InUse { .. })
        ));
        assert!(matches!(
            store.remove_kept("data"),
            Err(WritableError::InUse { .. })
        ));
        drop(first);
        let other = store.kept("data", 16 << 20).unwrap_err().to_string();
        assert!(
            other.contains("has 8388608 bytes, and 16777216 were asked for"),
            "{other}"
        );
        let mut again = store.kept("data", 8 << 20).unwrap();
        again.file.seek(SeekFrom::End(-4)).unwrap();
        let mut text = String::new();
        again.file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "mine");
        drop(again);
        store.remove_kept("data").unwrap();
        assert!(matches!(
            store.remove_kept("data"),
            Err(WritableError::Missing { .. })
        ));
    }

    #[test]
    fn a_disk_that_was_removed_before_it_was_taken_is_not_used() {
        let (_directory, store) = store();
        let path = store.kept("data", 8 << 20).unwrap().path.unwrap();
        let opened = File::open(&path).unwrap();
        assert_eq!(take(&opened, &path).unwrap(), Taken::Ours);
        assert_eq!(take(&File::open(&path).unwrap(), &path).unwrap(), Taken::InUse);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(take(&opened, &path).unwrap(), Taken::Gone);
        // Another one of that name is another one.
        let _other = store.kept("data", 8 << 20).unwrap();
        assert_eq!(take(&opened, &path).unwrap(), Taken::Gone);
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        let (_directory, store) = store();
        for name in ["", "..", ".hidden", "a/b", "../x", "a\0b", &"x".repeat(65)] {
            assert!(
                matches!(store.kept(name, 8 << 20), Err(WritableError::Name { .. })),
                "{name:?}"
            );
        }
    }
}
