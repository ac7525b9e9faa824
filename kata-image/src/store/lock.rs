//! Locks that die with their holder (flock(2)), and temporary files that are told alive by them.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;

/// Waits for the lock of `file`, which is held until the file is closed.
fn lock(file: &File) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| {
        flock(file, FlockOperation::LockExclusive)
    })?)
}

/// Waits until nobody has the file's lock alone, and has it together with others until the file is closed.
fn share(file: &File) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| {
        flock(file, FlockOperation::LockShared)
    })?)
}

/// Opens a file for reading, and says by a lock that it is in use. The lock goes with the open file, to another
/// process too, and lasts until the last one closes it.
pub(super) fn open_shared(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    share(&file)?;
    Ok(file)
}

/// Shares the lock file at `path`, which is made if need be, until the result is dropped.
pub(super) fn hold(path: &Path) -> io::Result<File> {
    let file = lock_file(path)?;
    share(&file)?;
    Ok(file)
}

/// Has the lock file at `path`, which is made if need be, alone until the result is dropped.
pub(super) fn alone(path: &Path) -> io::Result<File> {
    let file = lock_file(path)?;
    lock(&file)?;
    Ok(file)
}

fn lock_file(path: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

/// Whether somebody else has the file's lock, alone or with others. If not, it is this file's alone from now on.
pub(super) fn is_locked(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_err()
}

/// A file that is removed when it is dropped, and by the next [`sweep`] if this process dies before.
pub(super) fn temporary(tmp: &Path) -> io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new().prefix("part-").tempfile_in(tmp)?;
        lock(file.as_file())?;
        // A sweep may have taken it for a dead one before it was locked.
        if file.as_file().metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

/// Removes the files whose writers are dead: nobody holds their locks.
pub(super) fn sweep(tmp: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(tmp)? {
        let path = entry?.path();
        let file = match File::open(&path) {
            // Its writer, or another sweep, was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        if !is_locked(&file) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_files_of_the_dead_are_swept() {
        let directory = tempfile::tempdir().unwrap();
        let dead = directory.path().join("part-dead");
        std::fs::write(&dead, "half an image").unwrap();
        let alive = temporary(directory.path()).unwrap();
        sweep(directory.path()).unwrap();
        assert!(!dead.exists());
        assert!(alive.path().exists());
    }
}
